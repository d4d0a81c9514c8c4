package app

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"
)

const (
	restartMin   = 250 * time.Millisecond // the pause before a component restarts, doubled with each failure...
	restartMax   = 30 * time.Second       // ...up to this
	restartSound = 5 * time.Second        // a component that has run for so long works again
)

// supervisor restarts failed components: a full disk, a server without a
// leader and damaged views are temporary, and the component then resumes.
type supervisor struct {
	log *slog.Logger

	mu     sync.Mutex
	failed map[string]error // last error by component; absent once it works again
}

// run runs a component until it returns nil or ctx ends. After each failure it waits
// and runs the component again.
func (s *supervisor) run(ctx context.Context, part string, run func(context.Context) error) error {
	for pause := restartMin; ; pause = min(2*pause, restartMax) {
		began := time.Now()
		sound := time.AfterFunc(restartSound, func() { s.note(part, nil) })
		err := run(ctx)
		sound.Stop()
		if err == nil || ctx.Err() != nil {
			s.note(part, nil)
			return nil
		}
		if time.Since(began) >= restartSound {
			pause = restartMin
		}
		s.note(part, err)
		s.log.Error("component failed; restarting it", "part", part, "in", pause, "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

func (s *supervisor) note(part string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.failed, part)
		return
	}
	if s.failed == nil {
		s.failed = map[string]error{}
	}
	s.failed[part] = err
}

// failures are the components that failed and do not work again yet.
func (s *supervisor) failures() map[string]error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]error{}
	maps.Copy(all, s.failed)
	return all
}
