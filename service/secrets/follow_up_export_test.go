package secrets

import (
	"context"
	"maps"
	"slices"
	"time"
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
