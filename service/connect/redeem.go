package connect

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service"
)

// resumeEvery is how often the process manager checks for interrupted connections.
const resumeEvery = 5 * time.Second

// redeemings tracks the connections whose codes this process redeems, and those that it has
// seen another process redeem.
type redeemings struct {
	mu     sync.Mutex
	own    map[string]int
	others map[string]sighting
}

type sighting struct {
	revision uint64
	at       time.Time
}

// maxOthers bounds redeemings.others. Beyond it, all are forgotten.
const maxOthers = 4096

// begin records that this process redeems the code of a connection, until end is called.
func (r *redeemings) begin(id string) (end func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.own[id]++
	delete(r.others, id)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.own[id]--; r.own[id] == 0 { // two calls may overlap: the loser of a race ends first
			delete(r.own, id)
		}
	}
}

// abandoned reports whether the process that redeems the code of a connection is dead or hangs:
// its own time limits have passed, measured by this process's monotonic clock.
func (r *redeemings) abandoned(s *Service, c connection) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.own[c.id] > 0 {
		return false
	}
	if s.SingleInstance || c.Holder == s.InstanceID {
		return true
	}
	if seen, is := r.others[c.id]; is && seen.revision == c.revision {
		return s.Kernel.Now().Sub(seen.at) > service.MaxCall+s.RefreshTakeoverTimeout
	}
	if len(r.others) >= maxOthers {
		clear(r.others)
	}
	r.others[c.id] = sighting{c.revision, s.Kernel.Now()}
	return false
}

// target is the id of the credential that the connection creates or updates.
func (c connection) target() string {
	if c.Credential != "" {
		return c.Credential
	}
	return events.DeriveID(c.Tenant, c.Actor, c.id, "credential/"+c.Component)
}

// takeOver redeems the code of a connection that has returned, or completes what a dead
// process began.
func (s *Service) takeOver(ctx context.Context, call *service.Call, c connection) (service.Done, error) {
	defer s.redeemings.begin(c.id)()
	resumed := c.redeeming()
	if !resumed {
		c.Stage = stageRedeeming
	}
	c.Holder = s.InstanceID
	if err := s.Connections.Mark(ctx, c.id); err != nil {
		return service.Done{}, err
	}
	if saved, err := s.save(ctx, &c); err != nil || !saved {
		return service.Done{}, errors.Join(err, ErrConnectionBusy.WithRetryAfter(time.Second))
	}
	return s.finish(ctx, call, c, resumed)
}

// savedConnection finds the commit that saved the credential of a connection.
func (s *Service) savedConnection(ctx context.Context, c connection) (done service.Done, found bool, err error) {
	stream := aggregates.Credential.Stream(c.Tenant, c.target())
	if _, err := aggregates.Credential.Fresh(ctx, s.Log, stream); err != nil {
		return done, false, err
	}
	for rec, err := range s.Log.Store.Stream(ctx, stream, 0) {
		if err != nil {
			return done, false, fmt.Errorf("load %s: %w", stream, err)
		}
		if e, is := rec.Event.(events.CredentialAuthorized); !is || e.Connection != c.id {
			continue
		}
		recs, err := s.Log.Store.Commit(ctx, rec.Seq)
		if err != nil {
			return done, false, fmt.Errorf("commit of a connection: %w", err)
		}
		done, err = s.Kernel.Recorded(ctx, recs)
		return done, true, err
	}
	return done, false, nil
}

// resumeConnections completes, until ctx ends, the connections that a process has left
// between the code and the credential: their callers may never repeat the request.
func (s *Service) resumeConnections(ctx context.Context) {
	if s.Connections == nil {
		return
	}
	for tick := time.NewTicker(resumeEvery); ; {
		ids, err := s.Connections.Marked(ctx)
		if err != nil && ctx.Err() == nil {
			s.Logger.WarnContext(ctx, "cannot list the connections that are being redeemed", "err", err)
		}
		for _, id := range ids {
			if err := s.resumeConnection(ctx, id); err != nil && ctx.Err() == nil {
				s.Logger.WarnContext(ctx, "interrupted connection not completed", "connection", id, "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return
		}
	}
}

func (s *Service) resumeConnection(ctx context.Context, id string) error {
	c, err := s.connection(ctx, id)
	switch {
	case errors.Is(err, ErrConnectionNotFound):
		return s.Connections.Unmark(ctx, id)
	case err != nil:
		return err
	case !s.redeemings.abandoned(s, c):
		return nil
	case !c.redeeming():
		return s.Connections.Unmark(ctx, id)
	}
	_, err = s.takeOver(ctx, callOf(c), c)
	return err
}
