//go:build !linux

package main

// forbidDumps does nothing: only Linux is told to keep memory out of core files.
func forbidDumps() error { return nil }
