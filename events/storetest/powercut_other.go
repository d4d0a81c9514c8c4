//go:build !linux

package storetest

import (
	"testing"
	"time"
)

// Disk is a disk whose power can be cut; there is none on this system.
type Disk struct{ Dir string }

// NewDisk skips the test.
func NewDisk(t *testing.T, _ int64) *Disk {
	t.Helper()
	t.Skip("cutting the power of a disk needs Linux: not shown here that what is acknowledged survives it")
	return nil
}

// Cut does nothing.
func (*Disk) Cut(*testing.T) time.Time { return time.Time{} }

// Remount does nothing.
func (*Disk) Remount(*testing.T) {}
