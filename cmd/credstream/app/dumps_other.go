//go:build !linux

package app

// forbidDumps does nothing: only Linux has a setting to keep memory out of core files.
func forbidDumps() error { return nil }
