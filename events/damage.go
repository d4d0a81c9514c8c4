package events

import "github.com/credstream/credstream/fault"

// Errors that prove the loss of a part of the log.
var (
	// ErrLogCutShort means that the log ends before a durable commit, or has another commit in
	// its place.
	ErrLogCutShort = fault.New(fault.Unavailable, "log_cut_short",
		"The log is shorter than it was, so it is damaged. Changes are refused and no secret is returned until it is restored from a backup.")
	// ErrLogIncomplete means that commits are missing between others, or before the first one.
	ErrLogIncomplete = fault.New(fault.Unavailable, "log_incomplete",
		"The log misses commits, so it is damaged. Changes are refused and no secret is returned until it is restored from a backup.")
)

// CutShort returns ErrLogCutShort for a log without the commit at seq.
func CutShort(seq uint64) error {
	return ErrLogCutShort.Withf("The log was durable up to commit %d but no longer contains that commit, so it is damaged. "+
		"Changes are refused and no secret is returned until it is restored from a backup.", seq)
}
