package edge

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/fault"
)

// The limits of one tenant's queued messages in one stream.
const (
	maxTenantBacklog = 10_000      // a message counts once per 64 KiB, so a tenant has at most 640 MB
	backlogPart      = 64 << 10    // bytes
	backlogRecheck   = time.Second // between two reads of the stream's state while it is full
	backlogTenants   = 10_000      // tenants in memory
)

// ErrDeadLettersFull is returned while a tenant's part of the dead-letter queue is full.
var ErrDeadLettersFull = fault.New(fault.Throttled, "poison_queue_full",
	"The dead-letter queue of this tenant is full. Retry or drop its messages (credstream "+
		"queue retry --all, credstream queue drop --all), then publish again.").WithRetryAfter(10 * time.Second)

// backlog limits the queued messages of each tenant in one stream, by number and bytes. It
// counts the messages that this process publishes, and reads the stream's state only when that
// count reaches the limit: N processes can together store up to N times the limit.
type backlog struct {
	stream, prefix string // the tenant follows the prefix in a subject
	full           *fault.Error
	limit          int

	mu      sync.Mutex
	tenants *lru.Cache[string, *backlogOf]
}

type backlogOf struct {
	mu     sync.Mutex
	parts  int
	readAt time.Time // zero: never
}

func newBacklog(stream, prefix string, full *fault.Error) (*backlog, error) {
	tenants, err := lru.New[string, *backlogOf](backlogTenants)
	if err != nil {
		return nil, fmt.Errorf("cache of backlogs: %w", err)
	}
	return &backlog{stream: stream, prefix: prefix, full: full, limit: maxTenantBacklog, tenants: tenants}, nil
}

// add counts a message for a subject, or returns an error if the tenant has too many.
func (b *backlog) add(ctx context.Context, js jetstream.JetStream, subject string) error {
	tenant, _, _ := strings.Cut(strings.TrimPrefix(subject, b.prefix), ".")
	b.mu.Lock()
	of, ok := b.tenants.Get(tenant)
	if !ok {
		of = &backlogOf{}
		b.tenants.Add(tenant, of)
	}
	b.mu.Unlock()
	_, parts := unsized(subject)
	of.mu.Lock()
	defer of.mu.Unlock()
	if now := time.Now(); of.readAt.IsZero() || of.parts+parts > b.limit && now.Sub(of.readAt) >= backlogRecheck {
		n, err := b.read(ctx, js, tenant)
		if err != nil {
			return err
		}
		of.parts, of.readAt = n, now
	}
	if of.parts+parts > b.limit {
		return b.full
	}
	of.parts += parts
	return nil
}

func (b *backlog) read(ctx context.Context, js jetstream.JetStream, tenant string) (parts int, err error) {
	stream, err := js.Stream(ctx, b.stream)
	if err != nil {
		return 0, fmt.Errorf("looking up stream %s: %w: %w", b.stream, streams.ErrNotStored, err)
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(b.prefix+tenant+".>"))
	if err != nil {
		return 0, fmt.Errorf("counting the messages of stream %s: %w: %w", b.stream, streams.ErrNotStored, err)
	}
	for subject, n := range info.State.Subjects {
		_, each := unsized(subject)
		parts += int(n) * each
	}
	return parts, nil
}

// sized returns the subject under which a message is stored. For more than 64 KiB, it appends
// the number of further parts of 64 KiB, so that the stream's state counts messages by size.
// Earlier versions did this only in the dead-letter queue.
func sized(subject string, size int) string {
	subject, _ = unsized(subject)
	if more := (size - 1) / backlogPart; more > 0 {
		return subject + "." + strconv.Itoa(more)
	}
	return subject
}

// unsized splits a subject of sized into the plain subject and the number of parts.
func unsized(subject string) (plain string, parts int) {
	dots := strings.Count(streams.DeadLetterSubject, ".") + 1 // a tenant, and a queue or a flow
	if strings.HasPrefix(subject, streams.QueueStoredPrefix) {
		dots++ // a command has two tokens
	}
	last := strings.LastIndexByte(subject, '.')
	if strings.Count(subject, ".") != dots+1 {
		return subject, 1
	}
	more, err := strconv.Atoi(subject[last+1:])
	if err != nil || more < 1 {
		return subject, 1
	}
	return subject[:last], 1 + more
}
