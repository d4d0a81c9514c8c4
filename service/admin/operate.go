package admin

import (
	"context"
	"sync"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
)

type RewindAudit struct {
	Seq uint64 `json:"seq"` // first log sequence to be delivered again; 1 is the beginning
}

// ErrNoConsumers is returned if the bus has no consumers to rewind.
var ErrNoConsumers = fault.New(fault.Unavailable, "audit_consumers_absent", "This service has no audit consumers.")

func (s *Service) rewindAudit(ctx context.Context, call *service.Call, in RewindAudit) (service.Done, error) {
	if in.Seq == 0 {
		return service.Done{}, service.ErrRange.Withf("The first log sequence is 1.").At("/seq")
	}
	if s.Rewind == nil {
		return service.Done{}, ErrNoConsumers
	}
	call.Detach()
	return service.Done{Seq: in.Seq}, s.Rewind(ctx, call.Tenant, in.Seq)
}

// rebuild is the state of the rebuild of the views, of which there is one at a time.
type rebuild struct {
	mu        sync.Mutex
	running   bool
	done, end uint64
	err       string
	wait      sync.WaitGroup
}

type RebuildViews struct{}

// rebuildViews starts a rebuild and returns at once: viewsStatus reports the
// progress. Close waits for it.
func (s *Service) rebuildViews(ctx context.Context, _ *service.Call, _ RebuildViews) (service.Done, error) {
	if s.RebuildViews == nil {
		return service.Done{}, fault.ErrUnavailable
	}
	end, err := s.Log.Store.End(ctx)
	if err != nil {
		return service.Done{}, err
	}
	r := &s.rebuild
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running {
		return service.Done{}, projections.ErrViewsRebuilding
	}
	r.running, r.done, r.end, r.err = true, 0, end, ""
	r.wait.Go(func() {
		err := s.RebuildViews(s.Kernel.Background(), func(done, end uint64) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.done, r.end = done, end
		})
		r.mu.Lock()
		defer r.mu.Unlock()
		r.running = false
		if err != nil {
			s.Logger.Error("rebuild of the read models failed", "err", err)
			r.err = fault.Of(err).Msg
		}
	})
	return service.Done{Seq: end}, nil
}

// ViewsStatus requests the position of the read models.
type ViewsStatus struct{}

// ViewsPosition is the progress of the read models. Positions are log sequences.
type ViewsPosition struct {
	Position   uint64 `json:"position"` // position of the read models
	End        uint64 `json:"end"`      // the last commit of the log
	Rebuilding bool   `json:"rebuilding"`
	Rebuilt    uint64 `json:"rebuilt"`          // position of the running or last rebuild
	RebuildEnd uint64 `json:"rebuild_end"`      // position that it must reach
	Error      string `json:"error,omitzero"`   // why the last rebuild ended early
	Stopped    string `json:"stopped,omitzero"` // why the read models have stopped
}

func (s *Service) viewsStatus(ctx context.Context, _ *service.Call, _ ViewsStatus) (ViewsPosition, error) {
	end, err := s.Log.Store.End(ctx)
	if err != nil {
		return ViewsPosition{}, err
	}
	s.rebuild.mu.Lock()
	defer s.rebuild.mu.Unlock()
	p := ViewsPosition{
		Position: s.Views.Position(), End: end, Rebuilding: s.rebuild.running,
		Rebuilt: s.rebuild.done, RebuildEnd: s.rebuild.end, Error: s.rebuild.err,
	}
	if err := s.Projector.Err(); err != nil {
		p.Stopped = err.Error() // names the event
	}
	return p, nil
}

// AttestDurability records that the operator attests the durability of the
// streams: why says which of it was weak or unverified. A repeat is recorded once.
func (s *Service) AttestDurability(ctx context.Context, replicas int, why string) error {
	_, _, err := service.Execute(ctx, s.Kernel, service.System(events.System, "serve"), aggregates.Installation, events.System,
		commands.Installation(commands.AttestDurability{Replicas: replicas, Why: why}))
	return err
}
