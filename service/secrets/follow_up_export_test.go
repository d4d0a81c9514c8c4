package secrets

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/credstream/credstream/events"
)

// FollowUp follows up the commit at seq as the process manager does.
func (s *Service) FollowUp(ctx context.Context, seq uint64) error {
	recs, err := s.Log.Store.Commit(ctx, seq)
	if err != nil {
		return err
	}
	_, err = s.followUp(ctx, recs, time.Now())
	return err
}

// FollowUpCategories are the categories whose commits may need a follow-up.
func (s *Service) FollowUpCategories() []string {
	return slices.Collect(maps.Keys(s.followUpByCategory))
}

// Tracked reports whether a caller is following up the commits of a stream, and whether the
// follow-up of the one at seq is complete.
func (s *Service) Tracked(stream events.StreamID, seq uint64) (held, finished bool) {
	return s.tracker.status(stream, seq)
}
