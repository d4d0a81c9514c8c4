package secrets

import (
	"context"
	"sync"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/vault"
)

// The server rewrites and fsyncs a whole block of the vault for each erasure, one after the
// other: some 10 ms each. A batch that waited for thousands of them would take minutes. So the
// items of a batch leave their erasures to the eraser, which works on after the response. If
// the process ends before, the process manager completes them like any other follow-up.
const (
	erasuresQueued = 1 << 14 // an item that finds the queue full erases before it responds
	erasers        = 4
	erasuresAtOnce = 16 // of one eraser: they wait for an fsync of the vault together
)

// erasure is the follow-up of a commit that dropped secrets.
type erasure struct {
	dropped []vault.Ref
	seq     uint64 // of the commit
	release func() // of its stream, see Hold
}

// eraser erases in the background what batches have dropped.
type eraser struct {
	queue  chan erasure
	mu     sync.Mutex
	active int // running goroutines
	group  sync.WaitGroup
}

func newEraser() *eraser { return &eraser{queue: make(chan erasure, erasuresQueued)} }

// EraseDropped erases the secrets that a commit dropped, and then calls release, which is that
// of Hold. For an item of a batch it does so after the response.
func (s *Service) EraseDropped(ctx context.Context, call *service.Call, dropped []vault.Ref, seq uint64, release func()) {
	one := erasure{dropped: dropped, seq: seq, release: release}
	if len(dropped) == 0 || !call.IsItem() || !s.eraseLater(one) {
		s.erase(ctx, one)
	}
}

func (s *Service) erase(ctx context.Context, group ...erasure) {
	var refs []vault.Ref
	for _, one := range group {
		refs = append(refs, one.dropped...)
	}
	var errs []error
	if len(refs) > 0 {
		errs = s.Vault.EraseEach(ctx, refs...)
	}
	for _, one := range group {
		n := len(one.dropped)
		if s.erased(ctx, one.dropped, errs[:n]) == nil {
			s.tracker.finish(one.seq)
		}
		one.release()
		errs = errs[n:]
	}
}

// eraseLater queues an erasure, unless the queue is full or the service is stopping.
func (s *Service) eraseLater(one erasure) bool {
	e, ctx := s.eraser, s.Kernel.Background()
	e.mu.Lock()
	defer e.mu.Unlock()
	if ctx.Err() != nil {
		return false
	}
	select {
	case e.queue <- one:
	default:
		return false
	}
	if e.active < erasers {
		e.active++
		e.group.Go(func() { s.eraseQueued(ctx) })
	}
	return true
}

// eraseQueued erases until the queue is empty or ctx ends.
func (s *Service) eraseQueued(ctx context.Context) {
	for e := s.eraser; ; {
		var group []erasure
		e.mu.Lock() // an erasure is queued either before this looks, or after it has left
		for len(group) < erasuresAtOnce && len(e.queue) > 0 {
			group = append(group, <-e.queue)
		}
		if len(group) == 0 {
			e.active--
			e.mu.Unlock()
			return
		}
		e.mu.Unlock()
		if ctx.Err() == nil {
			s.erase(context.WithoutCancel(ctx), group...) // Close waits for it
			continue
		}
		for _, one := range group {
			one.release()
		}
	}
}

// Close waits for the erasures in progress, which end with the kernel's background context.
func (s *Service) Close() {
	s.eraser.mu.Lock()   // callers that were about to queue have done so, or will see the end
	s.eraser.mu.Unlock() //nolint:staticcheck // intentionally empty
	service.WaitFor(&s.eraser.group)
}
