package app

import (
	"errors"

	"golang.org/x/sys/unix"
)

// forbidDumps keeps the memory of the process, which holds clear secrets for moments, out
// of core files, and from debuggers of the same user: getrlimit(2), prctl(2).
func forbidDumps() error {
	return errors.Join(
		unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}),
		unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0),
	)
}
