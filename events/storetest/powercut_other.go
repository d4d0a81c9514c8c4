//go:build !linux

package storetest

import (
	"testing"
	"time"
)

// Disk is a disk whose power can be cut; there is none on this system.
type Disk struct{ Dir string }

// NewDisk skips the test.
func NewDisk(t *testing.T, size int64) *Disk {
	t.Helper()
	return NewDiskAt(t, "", size)
}

// NewDiskAt skips the test.
func NewDiskAt(t *testing.T, _ string, _ int64) *Disk {
	t.Helper()
	t.Skip("a disk of the test's own needs Linux: not shown here what survives a power cut, or a disk that loses writes")
	return nil
}

// Lie does nothing.
func (*Disk) Lie(*testing.T) {}

// Forget does nothing.
func (*Disk) Forget(*testing.T) {}

// Cut does nothing.
func (*Disk) Cut(*testing.T) time.Time { return time.Time{} }

// Remount does nothing.
func (*Disk) Remount(*testing.T) {}
