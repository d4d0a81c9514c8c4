//go:build !linux

package app

// forbidDumps does nothing: only Linux is told to keep memory out of core files.
func forbidDumps() error { return nil }
