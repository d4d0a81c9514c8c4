package secrets

import (
	"context"
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
