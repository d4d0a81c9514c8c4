//go:build unix

package seal

import (
	"io/fs"
	"os"
	"syscall"
)

// private reports whether a file with this information is kept from other users.
func private(info fs.FileInfo) bool {
	owner := -1
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		owner = int(s.Uid)
	}
	return privateTo(info.Mode().Perm(), owner, os.Geteuid())
}

// privateTo reports whether only the owner may read a file. A group may read it, too, if root owns
// it and the process runs as another user: Kubernetes mounts a secret like this.
func privateTo(mode fs.FileMode, owner, user int) bool {
	return mode&0o077 == 0 || mode&0o037 == 0 && owner == 0 && user != 0
}
