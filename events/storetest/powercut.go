//go:build linux

package storetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Disk is an ext4 file system on a loop file whose power can be cut: what was
// not fsynced by then is lost, as far as the kernel had not written it. It can lie, too.
type Disk struct {
	Dir   string // where it is mounted
	image string
}

// shutdownNow is FS_IOC_SHUTDOWN with the flag that does not even flush the
// journal (include/uapi/linux/fs.h: _IOR('X', 125, __u32), NOLOGFLUSH).
const (
	shutdown    = 0x8004587d
	shutdownNow = 2
)

// NewDisk makes and mounts a disk of so many bytes; its file is sparse. It skips
// the test where there is no root, no loop device or no mkfs.ext4.
func NewDisk(t *testing.T, size int64) *Disk {
	t.Helper()
	return NewDiskAt(t, filepath.Join(t.TempDir(), "mnt"), size)
}

// NewDiskAt is NewDisk, mounted at a folder. What the folder holds moves to the disk.
func NewDiskAt(t *testing.T, dir string, size int64) *Disk {
	t.Helper()
	const skips = "not shown here what survives a power cut, or a disk that loses writes"
	if os.Getuid() != 0 {
		t.Skip("a disk of the test's own needs root:", skips)
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("a disk of the test's own needs mkfs.ext4:", skips)
	}
	d := &Disk{Dir: dir, image: filepath.Join(t.TempDir(), "disk.img")}
	if err := os.MkdirAll(d.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(d.image)
	if err == nil {
		err = f.Truncate(size)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", "-F", "-d", d.Dir, d.image)
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", d.image, d.Dir).CombinedOutput(); err != nil {
		t.Skipf("a disk of the test's own needs a loop device to mount (%v: %s): %s", err, out, skips)
	}
	t.Cleanup(func() {
		if err := exec.Command("umount", "-l", d.Dir).Run(); err != nil {
			t.Errorf("umount %s: %v", d.Dir, err)
		}
	})
	return d
}

// Lie has the disk lose, when Forget is called, every write from now on, whatever it
// acknowledges. Nothing may write to it during the call.
func (d *Disk) Lie(t *testing.T) {
	t.Helper()
	run(t, "sync", "-f", d.Dir)
	run(t, "cp", "--sparse=always", d.image, d.image+".kept")
}

// Forget brings the disk back as it was when Lie was called. Nothing may use it.
func (d *Disk) Forget(t *testing.T) {
	t.Helper()
	run(t, "umount", d.Dir)
	run(t, "cp", "--sparse=always", d.image+".kept", d.image)
	run(t, "mount", "-o", "loop", d.image, d.Dir)
}

// Cut cuts the power: from now on every write to the disk fails. It returns the
// time just before. The processes that use the disk go on until they are killed,
// but what they acknowledge after that time does not count: an fsync that is
// under way when the kernel shuts a file system down may report a success, which
// on a machine without power nobody would hear of.
func (d *Disk) Cut(t *testing.T) time.Time {
	t.Helper()
	f, err := os.Open(d.Dir)
	if err != nil {
		t.Fatal(err)
	}
	dark := time.Now()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, shutdownNow); err != nil {
		t.Fatalf("cutting the power: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return dark
}

// Remount brings the disk back as it is after a power cut. Nothing may use it.
func (d *Disk) Remount(t *testing.T) {
	t.Helper()
	run(t, "umount", d.Dir)
	run(t, "mount", "-o", "loop", d.image, d.Dir)
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}
