package app

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// A part that fails is started again, ever more slowly, and is named as failed
// until it works. What ends by itself is not started again.
func TestAPartThatFailsStartsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		s := &supervisor{log: slog.New(slog.DiscardHandler)}
		broken := errors.New("the disk is full")
		began := time.Now()
		var starts []time.Duration
		done := make(chan error)
		go func() {
			done <- s.run(ctx, "views", func(ctx context.Context) error {
				starts = append(starts, time.Since(began))
				if len(starts) <= 12 {
					return broken
				}
				<-ctx.Done()
				return errors.New("told to end")
			})
		}()
		time.Sleep(restartMin / 2)
		synctest.Wait()
		if got := s.failures(); !errors.Is(got["views"], broken) || len(got) != 1 {
			t.Errorf("while a part waits: %v", got)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := s.failures(); len(got) != 0 {
			t.Errorf("an hour after the part works: %v", got)
		}
		if len(starts) != 13 {
			t.Fatalf("%d starts, want 13: %v", len(starts), starts)
		}
		for i := 1; i < len(starts); i++ {
			if pause, want := starts[i]-starts[i-1], min(restartMin<<(i-1), restartMax); pause != want {
				t.Errorf("pause %d is %v, want %v", i, pause, want)
			}
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := s.run(t.Context(), "views", func(context.Context) error { return nil }); err != nil || len(s.failures()) > 0 {
			t.Error(err, s.failures())
		}
	})
}
