package secrets

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/vault"
)

// A follow-up is the work of a commit outside the log: erase secrets,
// notify a provider. The caller that makes the commit does it at once; RunFollowUps, the process
// manager, follows the log and completes what a crash or a failure left undone.
// A follow-up may run twice.

// The bounds of the process manager.
const (
	followUpsOpen   = 4096
	followUpsAtOnce = 64
	followUpsShare  = 8           // of these, for one tenant
	followUpsDone   = 1 << 16     // commits whose follow-up is known to be complete
	followUpTime    = time.Hour   // how long one is retried; the collector erases the remaining secrets
	followUpPause   = time.Minute // maximum, between two attempts
	followUpAttempt = 5 * time.Minute
	checkpointEvery = 2 * time.Second
	lookBack        = 10_000 // commits checked when there is no checkpoint
)

// Grace is how long the process manager leaves a commit to the process that made it, and how
// long a provider that does not confirm is retried.
func (s *Service) Grace() time.Duration { return 2 * s.RefreshTakeoverTimeout }

// Checkpoint stores the position of a follower of the log, for the process that
// takes over.
type Checkpoint interface {
	// Load returns the last saved position; the zero Position when there is none.
	Load(ctx context.Context) (Position, error)
	// Save returns when the position is durable.
	Save(ctx context.Context, p Position) error
}

// Position is a position in the log. The commit's id detects whether the log still holds
// that commit there.
type Position struct {
	Seq    uint64 `json:"seq"`
	Commit string `json:"commit"`
}

// secretOwner is the state of an aggregate whose secrets are in the vault.
type secretOwner interface {
	Secrets() []string
	References(secretID string) bool
}

// Dropped returns the secrets that an owner had before and no longer has. of identifies the owner.
func Dropped(of vault.Ref, before, after secretOwner) (refs []vault.Ref) {
	for _, secretID := range before.Secrets() {
		of.SecretID = secretID
		if secretID != "" && !after.References(secretID) && !slices.Contains(refs, of) {
			refs = append(refs, of)
		}
	}
	return refs
}

var registry = events.All()

// needsFollowUp reports whether an event may need a follow-up. An unknown event may.
func needsFollowUp(e events.Event) bool {
	switch e := e.(type) {
	case events.CredentialReauthorizationRequired:
		return e.Reason == aggregates.ReasonRevokedHere
	case events.Credential, events.OAuthClient, events.AuthClient, events.ConnectorSecret, events.Webhook, events.Component:
		t, _ := registry.TypeOf(e)
		return !t.KeepsSecrets
	}
	return false
}

// followUpTracker tracks the streams whose commits are being followed up by their callers,
// and the commits whose follow-up is complete.
type followUpTracker struct {
	mu   sync.Mutex
	held map[events.StreamID]*holders
	done *lru.Cache[uint64, struct{}]
	wake chan struct{} // holds one token when the process manager should check again
}

type holders struct {
	n       int
	awaited bool // by the process manager
}

func newFollowUpTracker() (*followUpTracker, error) {
	done, err := lru.New[uint64, struct{}](followUpsDone)
	if err != nil {
		return nil, fmt.Errorf("cache of follow-ups: %w", err)
	}
	return &followUpTracker{held: map[events.StreamID]*holders{}, done: done, wake: make(chan struct{}, 1)}, nil
}

// hold keeps the process manager away from the commits of a stream until release is called:
// the caller does their follow-up. What it does not finish is left to the
// process manager.
func (f *followUpTracker) hold(stream events.StreamID) (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.held[stream]
	if h == nil {
		h = &holders{}
		f.held[stream] = h
	}
	h.n++
	return sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if h.n--; h.n == 0 {
			delete(f.held, stream)
			if h.awaited {
				f.poke()
			}
		}
	})
}

// finish records that the follow-up of commits is complete.
func (f *followUpTracker) finish(seqs ...uint64) {
	for _, seq := range seqs {
		f.done.Add(seq, struct{}{})
	}
}

func (f *followUpTracker) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// status reports whether a caller is following up the commits of a stream, and whether the
// follow-up of the one at seq is complete.
func (f *followUpTracker) status(stream events.StreamID, seq uint64) (held, finished bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if h := f.held[stream]; h != nil {
		h.awaited, held = true, true
	}
	return held, f.done.Contains(seq)
}

// Hold keeps the process manager away from the commits of a stream until release is called:
// the caller does their follow-up. What it does not finish is left to the
// process manager.
func (s *Service) Hold(stream events.StreamID) (release func()) { return s.tracker.hold(stream) }

// Finish records that the follow-up of commits is complete.
func (s *Service) Finish(seqs ...uint64) { s.tracker.finish(seqs...) }

// Change executes a command on an owner of secrets and erases those that it drops: see EraseDropped.
func Change[S secretOwner, C commands.Command, E any](ctx context.Context, s *Service, call *service.Call,
	d aggregates.Decider[S, C, E], tenant string, cmd C,
) (before S, after aggregates.State[S], err error) {
	release := s.tracker.hold(d.Stream(tenant, cmd.Target()))
	held := true
	defer func() { // also after a panic
		if held {
			release()
		}
	}()
	was, after, err := service.Commit(ctx, s.Kernel, call, d, tenant, cmd)
	if err != nil || after.Seq == was.Seq {
		return was.Value, after, err
	}
	held = false // EraseDropped releases it
	owner := vault.Ref{Tenant: call.Tenant, Category: d.Category, Owner: cmd.Target()}
	s.EraseDropped(ctx, call, Dropped(owner, was.Value, after.Value), after.Seq, release)
	return was.Value, after, nil
}

// Postponed is why a follow-up is not complete, and when it can continue.
type Postponed struct {
	After time.Duration
	Why   string
}

func (p *Postponed) Error() string { return p.Why }

// followUp is a commit whose follow-up the process manager has not completed.
type followUp struct {
	commit []events.Record
	seen   time.Time
	due    time.Time
	tries  int
	busy   bool
	done   bool
}

func (u *followUp) stream() events.StreamID { return u.commit[0].Stream }

// processManager is the state of RunFollowUps.
type processManager struct {
	s    *Service
	room chan struct{} // closed when there is capacity for more, and then replaced

	mu     sync.Mutex
	read   uint64         // the last commit read
	open   []*followUp    // in log order
	busy   int            // in progress
	shares map[string]int // of these, by tenant
}

// RunFollowUps completes the follow-ups of commits until ctx ends, and returns
// nil. One process of an installation must run it; two do no harm. A provider that
// does not respond delays only its own follow-ups.
func (s *Service) RunFollowUps(ctx context.Context) error {
	var others sync.WaitGroup
	defer others.Wait()
	for _, run := range s.background {
		others.Go(func() { run(ctx) })
	}
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 10*time.Second) {
		begun := time.Now()
		err := s.followUpLog(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(begun) > followUpPause {
			pause = 100 * time.Millisecond
		}
		s.Logger.WarnContext(ctx, "process manager failed; restarting from its checkpoint", "err", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

// followUpLog is RunFollowUps until an error of the log or the checkpoint.
func (s *Service) followUpLog(ctx context.Context) error {
	from, err := s.followFrom(ctx)
	if err != nil {
		return err
	}
	m := &processManager{s: s, room: make(chan struct{}), read: from, shares: map[string]int{}}
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	all.Go(func() { cancel(m.follow(ctx, from)) })
	saved, at := from, time.Now()
	for {
		wait := time.NewTimer(m.start(ctx, &all))
		select {
		case <-s.tracker.wake:
		case <-wait.C:
		case <-ctx.Done():
		}
		wait.Stop()
		ended := ctx.Err() != nil
		if position := m.position(); position != saved && (ended || time.Since(at) > checkpointEvery) {
			if err := s.saveCheckpoint(context.WithoutCancel(ctx), position); err != nil {
				s.Logger.WarnContext(ctx, "checkpoint of the process manager not saved", "err", err)
			} else {
				saved = position
			}
			at = time.Now()
		}
		if ended {
			return context.Cause(ctx)
		}
	}
}

// followFrom is the commit after which the log is followed. A checkpoint whose commit the log
// does not hold is ignored: the log was truncated below it.
func (s *Service) followFrom(ctx context.Context) (uint64, error) {
	end, err := s.Log.Store.End(ctx)
	if err != nil {
		return 0, fmt.Errorf("end of the log: %w", err)
	}
	position, err := s.FollowedUp.Load(ctx)
	if err != nil {
		return 0, err
	}
	if position.Seq != 0 && position.Seq <= end {
		recs, err := s.Log.Store.Commit(ctx, position.Seq)
		switch {
		case err != nil && !errors.Is(err, events.ErrNoSuchCommit):
			return 0, fmt.Errorf("commit of the checkpoint: %w", err)
		case err == nil && recs[0].Meta.Commit == position.Commit:
			return position.Seq, nil
		}
	}
	return s.Log.Store.Before(ctx, lookBack)
}

func (s *Service) saveCheckpoint(ctx context.Context, seq uint64) error {
	ctx, cancel := context.WithTimeout(ctx, service.StopFor)
	defer cancel()
	recs, err := s.Log.Store.Commit(ctx, seq)
	if err != nil {
		return err
	}
	return s.FollowedUp.Save(ctx, Position{Seq: seq, Commit: recs[0].Meta.Commit})
}

// follow reads the log and adds the commits that need a follow-up.
func (m *processManager) follow(ctx context.Context, from uint64) error {
	var recs []events.Record
	for rec, err := range m.s.Log.Store.Follow(ctx, from) {
		if err != nil {
			return err
		}
		if recs = append(recs, rec); !rec.Last() {
			continue
		}
		if err := m.add(ctx, recs); err != nil {
			return err
		}
		recs = nil
	}
	return fault.ErrUnavailable // Follow ends only with ctx
}

// add adds one commit. It blocks while too many are open.
func (m *processManager) add(ctx context.Context, recs []events.Record) error {
	if !slices.ContainsFunc(recs, func(r events.Record) bool { return needsFollowUp(r.Event) }) {
		m.mu.Lock()
		m.read = recs[0].Seq
		m.mu.Unlock()
		return nil
	}
	for {
		m.mu.Lock()
		room := m.room
		if len(m.open) < followUpsOpen {
			u := &followUp{commit: recs, seen: time.Now(), due: time.Now()}
			if !m.s.SingleInstance { // another process may be doing it
				u.due = u.due.Add(m.s.Grace())
			}
			m.open, m.read = append(m.open, u), recs[0].Seq
			m.mu.Unlock()
			m.s.tracker.poke()
			return nil
		}
		m.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// position is the commit up to which all follow-ups are complete.
func (m *processManager) position() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.open) > 0 {
		return m.open[0].commit[0].Seq - 1
	}
	return m.read
}

// start begins the follow-ups that are due, as far as there is capacity, and returns how
// long to wait for the next one.
func (m *processManager) start(ctx context.Context, all *sync.WaitGroup) (wait time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	wait = checkpointEvery
	full := len(m.open) >= followUpsOpen
	for _, u := range m.open {
		if u.busy || u.done {
			continue
		}
		held, finished := m.s.tracker.status(u.stream(), u.commit[0].Seq)
		tenant := u.commit[0].Meta.Tenant
		switch left := time.Until(u.due); {
		case finished:
			u.done = true
		case held: // if its holder does not finish it, it has failed: do not retry at once
			u.due = time.Now().Add(time.Second)
		case left > 0:
			wait = min(wait, left)
		case m.busy < followUpsAtOnce && m.shares[tenant] < followUpsShare:
			u.busy = true
			m.busy++
			m.shares[tenant]++
			all.Go(func() { m.run(ctx, u) })
		}
	}
	m.open = slices.DeleteFunc(m.open, func(u *followUp) bool { return u.done })
	if full && len(m.open) < followUpsOpen {
		close(m.room)
		m.room = make(chan struct{})
	}
	m.s.metrics.followUpsOpen.Set(float64(len(m.open)))
	return wait
}

// run does the follow-up of one commit, once.
func (m *processManager) run(ctx context.Context, u *followUp) {
	seq := u.commit[0].Seq
	attempt, cancel := context.WithTimeout(ctx, followUpAttempt)
	worked, err := m.s.followUp(attempt, u.commit, u.seen)
	cancel()
	stream := u.stream()
	log := m.s.Logger.With("tenant", u.commit[0].Meta.Tenant, stream.Category, stream.ID, "seq", seq)
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.s.tracker.poke()
	tenant := u.commit[0].Meta.Tenant
	m.busy--
	if m.shares[tenant]--; m.shares[tenant] == 0 {
		delete(m.shares, tenant)
	}
	u.busy = false
	u.tries++
	pause := min(time.Second<<min(u.tries, 10), followUpPause)
	later, again := errors.AsType[*Postponed](err)
	switch {
	case ctx.Err() != nil: // the next process that follows the log does it
	case err == nil:
		u.done = true
		m.s.tracker.finish(seq)
		if worked {
			m.s.metrics.followUps.WithLabelValues("done").Inc()
			log.InfoContext(ctx, "completed the follow-up of a commit", "tries", u.tries)
		}
	case time.Since(u.seen) > followUpTime:
		u.done = true
		m.s.secretsLeft.Store(true)
		m.s.metrics.followUps.WithLabelValues("given_up").Inc()
		log.ErrorContext(ctx, "gave up the follow-up of a commit; the collector erases its secrets", "tries", u.tries, "err", err)
	case again:
		u.due = time.Now().Add(max(later.After, time.Second))
		log.DebugContext(ctx, "follow-up of a commit postponed", "err", err)
	default:
		u.due = time.Now().Add(pause)
		m.s.metrics.followUps.WithLabelValues("failed").Inc()
		log.WarnContext(ctx, "follow-up of a commit failed; will retry", "tries", u.tries, "err", err)
	}
}

// followUp does the follow-up of one commit.
func (s *Service) followUp(ctx context.Context, recs []events.Record, seen time.Time) (worked bool, err error) {
	if do := s.followUpByCategory[recs[0].Stream.Category]; do != nil {
		return do(ctx, recs, seen)
	}
	return false, nil
}

// erasing is the FollowUp of an aggregate whose commits only need the erasure of
// dropped secrets.
func erasing[S secretOwner, C commands.Command, E any](s *Service, d aggregates.Decider[S, C, E]) FollowUp {
	return func(ctx context.Context, recs []events.Record, _ time.Time) (worked bool, err error) {
		_, _, dropped, err := Around(ctx, s, d, recs)
		if err != nil {
			return false, err
		}
		worked, err = s.HasAny(ctx, dropped)
		return worked, errors.Join(err, s.EraseAll(ctx, dropped))
	}
}

// Around returns the states of a stream before a commit and now, and the secrets that this
// commit dropped and nothing references. What a later commit dropped belongs to its own
// follow-up, which may have to notify a provider first.
func Around[S secretOwner, C commands.Command, E any](ctx context.Context, s *Service, d aggregates.Decider[S, C, E], recs []events.Record) (before, now S, dropped []vault.Ref, err error) {
	before, after, err := d.Around(ctx, s.Log, recs)
	if err != nil {
		return before, now, nil, err
	}
	state, err := d.Fresh(ctx, s.Log, recs[0].Stream)
	now = state.Value
	dropped = slices.DeleteFunc(Dropped(ownerOf(recs), before, after), func(r vault.Ref) bool { return now.References(r.SecretID) })
	return before, now, dropped, err
}

// ownerOf is the vault reference of the owner of a commit.
func ownerOf(recs []events.Record) vault.Ref {
	return vault.Ref{Tenant: recs[0].Meta.Tenant, Category: recs[0].Stream.Category, Owner: recs[0].Stream.ID}
}

// HasAny reports whether the vault has one of the secrets.
func (s *Service) HasAny(ctx context.Context, refs []vault.Ref) (bool, error) {
	for _, ref := range refs {
		if has, err := s.Vault.Has(ctx, ref); err != nil || has {
			return has, err
		}
	}
	return false, nil
}
