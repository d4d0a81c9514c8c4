package kv

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/credstream/credstream/jsapi"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/events"
)

// LeaseBucket is the KV bucket of the leases, one key for each role. It is kept
// in memory: if the servers lose a lease, the next process waits for a TTL, as after the loss
// of its holder.
const LeaseBucket = "CREDSTREAM_LEASES"

// DefaultLeaseTTL is the time without a renewal after which another process acquires the lease.
const DefaultLeaseTTL = 3 * time.Second

const (
	leasePrefix  = "$KV." + LeaseBucket + "."
	leaseRelease = time.Second           // timeout of the release
	leaseSoon    = 10 * time.Millisecond // until the next check after a change
)

// LeaseConfig is the role to acquire. Role and Holder are plain ids.
type LeaseConfig struct {
	JS       jetstream.JetStream
	Replicas int           // of the bucket; 0 is 1
	Role     string        // "feed"
	Holder   string        // identifies the process in logs
	TTL      time.Duration // the same in every process; 0 means DefaultLeaseTTL
	Log      *slog.Logger  // nil discards the log lines
}

// errLeaseLost is the cause of the end of a context whose lease was lost.
var errLeaseLost = errors.New("bus: the lease was lost")

// RunLeased waits until this process acquires the lease of the role, then calls run with a
// context that ends when the lease is lost or ctx ends, and starts over when it
// was lost. It returns nil when ctx has ended, and the result of run if run returns
// while it holds the lease. The lease is released when run has
// returned, so that another process acquires it at once.
//
// The holder renews the lease every third of the TTL. Its context ends 5/6 of
// the TTL after the start of the last successful renewal. Another
// process acquires the lease when it has seen it unchanged for a whole TTL,
// by compare-and-set. Both use their own monotonic clocks; wall clocks do
// not matter. So two processes act in one role at the same time only if run needs
// more than a sixth of the TTL to return after its context has ended, or if a
// machine is suspended. What must not happen
// twice even then must be guarded where it is written.
func RunLeased(ctx context.Context, cfg LeaseConfig, run func(ctx context.Context) error) error {
	if !events.Plain(cfg.Role) || !events.Plain(cfg.Holder) {
		return fmt.Errorf("role %q of %q: %w", cfg.Role, cfg.Holder, events.ErrID)
	}
	if cfg.TTL == 0 {
		cfg.TTL = DefaultLeaseTTL
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l := &lease{cfg: cfg, log: cfg.Log.With("role", cfg.Role), changed: make(chan struct{}, 1)}
	if err := l.open(ctx); errors.Is(err, jsapi.ErrStreamConfig) {
		return err
	}
	sub, err := cfg.JS.Conn().Subscribe(leasePrefix+cfg.Role, func(*nats.Msg) {
		select {
		case l.changed <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return fmt.Errorf("watching the lease %s: %w", cfg.Role, err)
	}
	defer func() { _ = sub.Unsubscribe() }() // fails when the connection is closed already
	for l.acquire(ctx) {
		l.log.Info("acquired lease", "holder", cfg.Holder)
		lost, err := l.hold(ctx, run)
		switch {
		case !lost:
			return err
		case ctx.Err() != nil:
			return nil
		}
		l.log.Warn("lost lease", "holder", cfg.Holder, "err", err)
	}
	return nil
}

// lease is one process's side of a role.
type lease struct {
	cfg     LeaseConfig
	log     *slog.Logger
	stream  jetstream.Stream // nil until it is found
	changed chan struct{}    // holds one token when the key may have changed

	term      string    // identifies the writes of this process while it holds the lease; new for each attempt to acquire it
	rev       uint64    // of the last value that this process wrote
	renewedAt time.Time // start of that write: the lease is valid from then on
}

// leaseValue is the value of a role's key.
type leaseValue struct {
	Holder   string `json:"holder"`
	Term     string `json:"term"`               // random, for one period in which a process holds the lease
	Released bool   `json:"released,omitempty"` // free for the next process
}

// leaseStream is the bucket: a KV bucket without direct reads, which a lagging
// replica could serve.
func leaseStream(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: "KV_" + LeaseBucket, Description: "credstream: leases of roles. In memory, may be deleted.",
		Subjects: []string{leasePrefix + ">"}, Storage: jetstream.MemoryStorage, Replicas: replicas,
		MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew, AllowRollup: true, DenyDelete: true,
	}
}

// open finds or creates the bucket.
func (l *lease) open(ctx context.Context) error {
	want := leaseStream(l.cfg.Replicas)
	if _, err := jsapi.EnsureStream(ctx, l.cfg.JS, want); err != nil {
		return err
	}
	var err error
	if l.stream, err = l.cfg.JS.Stream(ctx, want.Name); err != nil {
		return fmt.Errorf("looking up stream %s: %w", want.Name, err)
	}
	return nil
}

// read returns the value of the role's key, from its leader; rev
// is 0 if there is none.
func (l *lease) read(ctx context.Context) (value leaseValue, rev uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.TTL/3)
	defer cancel()
	if l.stream == nil {
		if err := l.open(ctx); err != nil {
			return value, 0, err
		}
	}
	msg, err := l.stream.GetLastMsgForSubject(ctx, leasePrefix+l.cfg.Role)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return value, 0, nil
	case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, nats.ErrNoResponders):
		l.stream = nil // perhaps lost with the servers' memory
	}
	if err != nil {
		return value, 0, fmt.Errorf("reading the lease: %w", err)
	}
	if err := json.Unmarshal(msg.Data, &value); err != nil {
		value = leaseValue{} // its holder will not renew it
	}
	return value, msg.Sequence, nil
}

// acquire waits for the role. False means that ctx has ended.
func (l *lease) acquire(ctx context.Context) bool {
	var seen uint64
	var since time.Time // when it was first seen; zero: not since the last error
	var failing bool
	// A write is notified before it can be read, so the next checks come soon.
	pause := leaseSoon
	for ctx.Err() == nil {
		wait := min(pause, l.cfg.TTL/3)
		pause = 2 * wait
		value, rev, err := l.read(ctx)
		switch {
		case err != nil:
			since = time.Time{} // in an emptied bucket the revisions begin again
			if !failing && ctx.Err() == nil {
				l.log.Warn("cannot read lease", "err", err)
			}
			failing = true
		default:
			failing = false
			if since.IsZero() || rev != seen {
				seen, since, wait = rev, time.Now(), l.cfg.TTL/3
			}
			// A lease that this process wrote but does not use is not used by anybody else.
			free := value.Released || rev != 0 && value.Term == l.term
			if left := l.cfg.TTL - time.Since(since); left > 0 && !free {
				wait = min(wait, left)
				break
			}
			l.term = rand.Text()
			if l.write(ctx, leaseValue{Holder: l.cfg.Holder, Term: l.term}, rev) == nil {
				return true
			}
			wait, pause = leaseSoon, 2*leaseSoon // another process was faster, or the outcome is unknown
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-l.changed:
			pause = leaseSoon
		case <-timer.C:
		}
		timer.Stop()
	}
	return false
}

// hold runs run while the lease is renewed. lost means that the lease was lost; err is
// then the reason.
func (l *lease) hold(ctx context.Context, run func(context.Context) error) (lost bool, err error) {
	validFor := 5 * l.cfg.TTL / 6
	running, end := context.WithCancelCause(ctx)
	defer end(nil)
	expiry := time.AfterFunc(validFor-time.Since(l.renewedAt), func() { end(errLeaseLost) })
	defer expiry.Stop()
	done := make(chan error, 1)
	go func() { done <- run(running) }() // hold does not return before it has
	tick := time.NewTicker(l.cfg.TTL / 3)
	defer tick.Stop()
	own := leaseValue{Holder: l.cfg.Holder, Term: l.term}
	// When ctx ends the lease is still renewed until run has returned.
	for work := context.WithoutCancel(ctx); ; {
		select {
		case err = <-done:
			if lost := errors.Is(context.Cause(running), errLeaseLost); lost {
				return true, errors.Join(errLeaseLost, err)
			}
			own.Released = true
			release, cancel := context.WithTimeout(work, leaseRelease)
			defer cancel()
			if err := l.write(release, own, l.rev); err != nil {
				l.log.Warn("lease not released; it will expire", "err", err)
			}
			if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
				err = nil
			}
			return false, err
		case <-tick.C:
			if err := l.renew(work, own); errors.Is(err, errLeaseLost) {
				end(errLeaseLost)
			} else if err != nil {
				l.log.Warn("lease not renewed", "err", err)
			} else if expiry.Stop() { // else it has expired meanwhile
				expiry.Reset(validFor - time.Since(l.renewedAt))
			}
		}
	}
}

// renew writes the lease again. errLeaseLost means that another process has it;
// after another error the outcome is unknown.
func (l *lease) renew(ctx context.Context, own leaseValue) error {
	err := l.write(ctx, own, l.rev)
	switch {
	case err == nil:
		return nil
	case !jsapi.WrongLast(err):
		return err
	}
	// An earlier renewal may have been stored although its response was lost.
	value, rev, err := l.read(ctx)
	switch {
	case err != nil:
		return err
	case rev == 0 || value.Term != l.term || value.Released:
		return errLeaseLost
	}
	l.rev = rev
	return l.write(ctx, own, rev)
}

// write stores the value if rev is still the last revision; 0: if there is none.
func (l *lease) write(ctx context.Context, value leaseValue, rev uint64) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("writing the lease: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.TTL/3)
	defer cancel()
	begun := time.Now()
	ack, err := l.cfg.JS.Publish(ctx, leasePrefix+l.cfg.Role, data,
		jetstream.WithExpectLastSequencePerSubject(rev), jetstream.WithRetryAttempts(0))
	if err != nil {
		return fmt.Errorf("writing the lease: %w", err)
	}
	l.rev, l.renewedAt = ack.Sequence, begun
	return nil
}
