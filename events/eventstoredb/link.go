package eventstoredb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"google.golang.org/grpc/metadata"
)

// Times that bound one exchange with the server.
const (
	callTimeout     = 5 * time.Second       // for one call
	exchangeTimeout = 10 * time.Second      // for a call and its repetitions, unless the caller's deadline is earlier
	minBackOff      = 10 * time.Millisecond // before the first repetition; doubles each time
	maxBackOff      = 250 * time.Millisecond
)

// errNotSent means that there was no connection, so the server did not get the request.
var errNotSent = errors.New("the event store is not reachable")

// errClient means that the client module panicked on a message.
var errClient = errors.New("the client of the event store failed")

// links owns the client. A client that did not find a node is closed for good, panics if it is
// closed during a call, and ignores the context while it connects. So each client is tried before
// it is used, is replaced when it has lost its node, and is closed after its last call.
type links struct {
	cfg *esdb.Configuration

	mu         sync.Mutex
	cur        *link         // nil: connect first
	connecting chan struct{} // closed when the attempt in progress has ended; nil: none
	failed     error         // why the last attempt failed
	closed     bool
}

type link struct {
	client  *esdb.Client
	uses    int // guarded by links.mu, as is retired
	retired bool
}

// acquire returns the connected client. It returns errNotSent if one attempt to connect fails.
func (l *links) acquire(ctx context.Context) (*link, error) {
	l.mu.Lock()
	if k := l.cur; k != nil {
		k.uses++
		l.mu.Unlock()
		return k, nil
	}
	if l.closed {
		l.mu.Unlock()
		return nil, fmt.Errorf("%w: closed", errNotSent)
	}
	if l.connecting == nil {
		l.connecting = make(chan struct{})
		go l.connect(l.connecting) // ends after one attempt, at most twice the gossip timeout
	}
	wait := l.connecting
	l.mu.Unlock()
	select {
	case <-wait:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", errNotSent, ctx.Err())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cur == nil {
		return nil, fmt.Errorf("%w: %w", errNotSent, l.failed)
	}
	l.cur.uses++
	return l.cur, nil
}

func (l *links) connect(done chan struct{}) {
	client, err := esdb.NewClient(l.cfg)
	if err == nil {
		if _, err = client.GetServerVersion(); err != nil {
			_ = client.Close()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed = err; err == nil {
		if l.closed {
			_ = client.Close()
		} else {
			l.cur = &link{client: client}
		}
	}
	l.connecting = nil
	close(done)
}

// release ends a use of k. lost means that the use failed for want of a node.
func (l *links) release(k *link, lost bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k.uses--
	if lost && l.cur == k {
		l.cur, k.retired = nil, true
	}
	if k.retired && k.uses == 0 {
		_ = k.client.Close()
	}
}

func (l *links) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if k := l.cur; k != nil {
		if l.cur, k.retired = nil, true; k.uses == 0 {
			_ = k.client.Close()
		}
	}
}

// codeOf is the client's code of err; ErrorCodeUnknown if it has none. The client wraps some of
// its errors.
func codeOf(err error) esdb.ErrorCode {
	if e, ok := errors.AsType[*esdb.Error](err); ok {
		return e.Code()
	}
	return esdb.ErrorCodeUnknown
}

// isLost reports whether err means that the client has no node.
func isLost(err error) bool {
	if err == nil {
		return false
	}
	code := codeOf(err)
	return code == esdb.ErrorUnavailable || code == esdb.ErrorCodeConnectionClosed || errors.Is(err, errClient)
}

// fromLeader makes a follower refuse the call. The client has an option for it, and does not send
// it.
func fromLeader(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "requires-leader", "true")
}

// call runs one call of the client and returns when it is done, or when ctx or callTimeout ends.
func call[T any](ctx context.Context, l *links, run func(context.Context, *esdb.Client) (T, error)) (T, error) {
	var zero T
	ctx, cancel := context.WithTimeout(fromLeader(ctx), callTimeout)
	defer cancel()
	k, err := l.acquire(ctx)
	if err != nil {
		return zero, err
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() { // the client may ignore ctx while it connects
		var r result
		defer func() {
			if p := recover(); p != nil { // its reader panics on messages that it does not know
				r = result{err: fmt.Errorf("%w: %v", errClient, p)}
			}
			l.release(k, isLost(r.err))
			done <- r
		}()
		r.value, r.err = run(ctx, k.client)
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return zero, ctx.Err()
	}
}

// isTransient reports whether a read may succeed if it is repeated.
func isTransient(err error) bool {
	if errors.Is(err, errNotSent) || errors.Is(err, errClient) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	switch codeOf(err) { //nolint:exhaustive // the others are answers
	case esdb.ErrorUnavailable, esdb.ErrorCodeConnectionClosed, esdb.ErrorCodeNotLeader, esdb.ErrorCodeDeadlineExceeded, esdb.ErrorAborted:
		return true
	}
	return false
}

// ask is call for a read: it repeats it while the error is transient.
func ask[T any](ctx context.Context, l *links, run func(context.Context, *esdb.Client) (T, error)) (T, error) {
	for p := newPacer(); ; {
		v, err := call(ctx, l, run)
		if err == nil || !isTransient(err) || !p.pause(ctx) {
			return v, err
		}
	}
}

// drain reads the events of one read to its end.
func drain(r *esdb.ReadStream, err error) ([]*esdb.RecordedEvent, error) {
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var all []*esdb.RecordedEvent
	for {
		e, err := r.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, err
		case e.OriginalEvent() != nil:
			all = append(all, e.OriginalEvent())
		}
	}
}

// readStream reads at most count events of a stream; none if it has none.
func (l *links) readStream(ctx context.Context, name string, dir esdb.Direction, from esdb.StreamPosition, count uint64) ([]*esdb.RecordedEvent, error) {
	all, err := ask(ctx, l, func(ctx context.Context, c *esdb.Client) ([]*esdb.RecordedEvent, error) {
		return drain(c.ReadStream(ctx, name, esdb.ReadStreamOptions{Direction: dir, From: from}, count))
	})
	if codeOf(err) == esdb.ErrorCodeResourceNotFound {
		return nil, nil
	}
	return all, err
}

// readAll reads at most count events of $all: from a position on, that of an event included, or
// those before it.
func (l *links) readAll(ctx context.Context, dir esdb.Direction, from esdb.AllPosition, count uint64) ([]*esdb.RecordedEvent, error) {
	return ask(ctx, l, func(ctx context.Context, c *esdb.Client) ([]*esdb.RecordedEvent, error) {
		return drain(c.ReadAll(ctx, esdb.ReadAllOptions{Direction: dir, From: from}, count))
	})
}

// pacer backs off between attempts, until exchangeTimeout or the end of the caller's context.
type pacer struct {
	start time.Time
	next  time.Duration
}

func newPacer() pacer { return pacer{start: time.Now(), next: minBackOff} }

// pause waits before the next attempt; it returns false if there must be none.
func (p *pacer) pause(ctx context.Context) bool {
	if time.Since(p.start)+p.next > exchangeTimeout {
		return false
	}
	wait := p.next
	p.next = min(2*p.next, maxBackOff)
	return sleep(ctx, wait)
}

// sleep reports whether the time passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	if ctx.Err() != nil {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
