package storage

import (
	"os"
)

// SetFsync has f called in place of fsync. Call it before the first Wait.
func (s *Syncer) SetFsync(f func(*os.File) error) { s.fsync = f }
