package natsserver

import (
	"context"
	"encoding/json" // as the server reads a pull request
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/service"
)

// Clients query consumers from the service: their accounts import these subjects, which end
// with the stream and the consumer. Pull requests go to the server, which alone can answer
// them; the service only observes them.
const pullInfo = "credstream.consumer.info."

// Limits of a consumer's requests and unacknowledged messages.
const (
	maxFeedPending   = 20_000                 // unacknowledged events of all readers
	maxFeedBatch     = 1000                   // events per pull
	maxFeedBytes     = 8 << 20                // bytes per pull
	maxFeedExpires   = 5 * time.Minute        // per pull
	minPullHeartbeat = 100 * time.Millisecond // per pull
	feedAckWait      = 30 * time.Second       // until an event is redelivered
)

const (
	consumerAge        = 15 * time.Second // time for which a consumer is assumed to exist after a lookup
	consumerTime       = 5 * time.Second  // timeout of a creation
	consumersAtOnce    = 64               // concurrent lookups or creations
	queriesPerConsumer = 512              // pending queries per consumer
)

// Pulls creates the tenants' consumers of the feed and of the audit stream, and limits pull
// requests. A consumer costs memory and goroutines, so it is created when a client first
// queries it; it starts at the tenant's first event. A consumer that was lost, alone or with
// its stream, is recreated in the same way, also when a client only keeps pulling: its readers
// miss no event, but get earlier events again.
//
// The configuration of the consumer limits pulls, except their heartbeat, with which one pull
// can keep a core busy. The connections of a key that requests a heartbeat below 100 ms are
// closed.
type Pulls struct {
	cfg     PullsConfig
	js      jetstream.JetStream
	subs    []*nats.Subscription
	outcome *prometheus.CounterVec
	life    context.Context
	end     context.CancelFunc
	work    sync.WaitGroup

	mu      sync.Mutex
	seen    map[string]time.Time   // time of the last lookup that found the consumer
	waiting map[string][]*nats.Msg // pending queries of consumers that are being looked up
	warned  time.Time
	kicks   map[string]bool // keys whose connections are being closed; true: close them once more afterwards
}

// PullsConfig is the configuration of Pulls.
type PullsConfig struct {
	Conn          *nats.Conn // as the service
	Requests      *nats.Conn // may publish to reply subjects only: the one of the Endpoints
	Caller        func(nats.Header) (principal string, ok bool)
	DisconnectKey func(principal string)
	TenantExists  func(ctx context.Context, tenant string) (bool, error)
	Metrics       prometheus.Registerer // may be nil
	Logger        *slog.Logger
}

// ServePulls starts to serve the consumers. Close stops it.
func ServePulls(cfg PullsConfig) (*Pulls, error) {
	js, err := jetstream.New(cfg.Conn)
	if err != nil {
		return nil, fmt.Errorf("opening JetStream for the consumers: %w", err)
	}
	p := &Pulls{
		cfg: cfg, js: js, seen: map[string]time.Time{}, waiting: map[string][]*nats.Msg{}, kicks: map[string]bool{},
		outcome: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "credstream_nats_pulls_total",
			Help: "Requests for a consumer of the feed or of the audit stream: answered, pull, dropped, or heartbeat: one so short that the connections of its key were closed.",
		}, []string{"outcome"}),
	}
	service.FromZero(p.outcome, "answered", "pull", "dropped", "heartbeat")
	p.life, p.end = context.WithCancel(context.Background())
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(p.outcome)
	}
	for _, kind := range []streams.FeedKind{streams.FeedOfChanges, streams.FeedOfAudit} {
		for subject, receive := range map[string]func(streams.FeedKind) nats.MsgHandler{pullInfo: p.info, streams.NextAPI: p.next} {
			sub, err := cfg.Requests.QueueSubscribe(subject+kind.Stream+".*", "credstream", receive(kind))
			if err == nil {
				p.subs = append(p.subs, sub)
				err = sub.SetPendingLimits(-1, streams.MaxWaitingSize)
			}
			if err != nil {
				p.Close()
				return nil, fmt.Errorf("listening for pulls: %w", err)
			}
		}
	}
	if err := cfg.Requests.Flush(); err != nil {
		p.Close()
		return nil, fmt.Errorf("listening for pulls: %w", err)
	}
	if errors.Is(cfg.Requests.LastError(), nats.ErrPermissionViolation) {
		cfg.Logger.Warn("the NATS servers have the accounts of an earlier credstream version: the heartbeat of pulls is not limited, and consumers are only " +
			"created when a key connects; install deploy/nats/accounts.conf")
	}
	return p, nil
}

func (p *Pulls) Close() {
	for _, sub := range p.subs {
		_ = sub.Unsubscribe() // fails when the connection is closed
	}
	p.end()
	p.work.Wait()
}

// Forget drops the cached lookups of consumers.
func (p *Pulls) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.seen)
}

// noConsumer is the server's response for a consumer that does not exist.
const noConsumer = `{"type":"io.nats.jetstream.api.v1.consumer_info_response","error":{"code":404,"err_code":10014,"description":"consumer not found"}}`

// info answers a consumer info request.
func (p *Pulls) info(kind streams.FeedKind) nats.MsgHandler {
	return func(m *nats.Msg) {
		tenant, ok := kind.TenantOf(m.Subject)
		switch {
		case !IsReplySubject(m.Reply), ok && !p.lookUp(kind, tenant, m):
			p.outcome.WithLabelValues("dropped").Inc()
		case !ok:
			p.outcome.WithLabelValues("answered").Inc()
			_ = m.Respond([]byte(noConsumer)) // fails while the connection is away
		}
	}
}

// next observes the pull requests, which the server answers.
func (p *Pulls) next(kind streams.FeedKind) nats.MsgHandler {
	return func(m *nats.Msg) {
		tenant, ok := kind.TenantOf(m.Subject)
		if !ok {
			return
		}
		if shortHeartbeat(m.Data) {
			p.outcome.WithLabelValues("heartbeat").Inc()
			p.kick(m)
			return
		}
		p.outcome.WithLabelValues("pull").Inc()
		p.mu.Lock()
		seen, ok := p.seen[kind.Consumer(tenant)]
		p.mu.Unlock()
		if !ok || time.Since(seen) >= consumerAge {
			p.lookUp(kind, tenant, nil)
		}
	}
}

// shortHeartbeat reports whether a pull requests a heartbeat below the limit.
func shortHeartbeat(pull []byte) bool {
	var r server.JSApiConsumerGetNextRequest
	return json.Unmarshal(pull, &r) == nil && r.Heartbeat > 0 && r.Heartbeat < minPullHeartbeat
}

// kick closes the connections of the key that sent a request.
func (p *Pulls) kick(m *nats.Msg) {
	h := m.Header
	if said, is := h[MalformedHeader]; is { // the server processes the pull anyway
		h = nats.Header{server.ClientInfoHdr: said}
	}
	principal, ok := p.cfg.Caller(h)
	if !ok || !IsReplySubject(m.Reply) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, under := p.kicks[principal]; under {
		p.kicks[principal] = true
		return
	}
	p.kicks[principal] = false
	if now := time.Now(); now.Sub(p.warned) >= clientLogEvery {
		p.warned = now
		p.cfg.Logger.Warn("closed the connections of a key: it pulled with a heartbeat below 100 ms", "principal", principal)
	}
	p.work.Go(func() {
		for again := true; again; {
			p.cfg.DisconnectKey(principal)
			p.mu.Lock()
			if again = p.kicks[principal]; again {
				p.kicks[principal] = false
			} else {
				delete(p.kicks, principal)
			}
			p.mu.Unlock()
		}
	})
}

// lookUp ensures that a consumer exists, in one goroutine per consumer, and
// then answers its queries. It returns false when there are too many requests.
func (p *Pulls) lookUp(kind streams.FeedKind, tenant string, query *nats.Msg) bool {
	name := kind.Consumer(tenant)
	p.mu.Lock()
	defer p.mu.Unlock()
	line, looking := p.waiting[name]
	if !looking && len(p.waiting) >= consumersAtOnce || len(line) >= queriesPerConsumer {
		return false
	}
	if query != nil {
		line = append(line, query)
	}
	p.waiting[name] = line
	if looking {
		return true
	}
	p.work.Go(func() {
		ctx, cancel := context.WithTimeout(p.life, consumerTime)
		defer cancel()
		err := p.ensure(ctx, kind, tenant)
		p.mu.Lock()
		line := p.waiting[name]
		delete(p.waiting, name)
		p.mu.Unlock()
		if err == nil && len(line) > 0 {
			err = p.answer(ctx, streams.InfoAPI+kind.Stream+"."+name, line)
		}
		if err != nil && p.life.Err() == nil {
			p.cfg.Logger.Warn("consumer unavailable", "consumer", name, "err", err)
		}
	})
	return true
}

// answer sends the server's response for a consumer to all its pending queries.
func (p *Pulls) answer(ctx context.Context, subject string, line []*nats.Msg) error {
	info, err := p.cfg.Conn.RequestWithContext(ctx, subject, nil)
	if err != nil {
		return fmt.Errorf("requesting its info: %w", err)
	}
	for _, m := range line {
		if err := m.Respond(info.Data); err != nil {
			return fmt.Errorf("responding: %w", err)
		}
		p.outcome.WithLabelValues("answered").Inc()
	}
	return nil
}

// Ensure creates the consumers of an existing tenant, unless they exist.
func (p *Pulls) Ensure(ctx context.Context, tenant string, changes, audit bool) error {
	var errs []error
	if changes {
		errs = append(errs, p.ensureSeen(ctx, streams.FeedOfChanges, tenant))
	}
	if audit {
		errs = append(errs, p.ensureSeen(ctx, streams.FeedOfAudit, tenant))
	}
	return errors.Join(errs...)
}

func (p *Pulls) ensureSeen(ctx context.Context, kind streams.FeedKind, tenant string) error {
	p.mu.Lock()
	seen, ok := p.seen[kind.Consumer(tenant)]
	p.mu.Unlock()
	if ok && time.Since(seen) < consumerAge {
		return nil
	}
	return p.ensure(ctx, kind, tenant)
}

// ensure creates the consumer of an existing tenant, or updates the limits of an existing
// consumer.
func (p *Pulls) ensure(ctx context.Context, kind streams.FeedKind, tenant string) error {
	if exists, err := p.cfg.TenantExists(ctx, tenant); err != nil || !exists {
		return err
	}
	name := kind.Consumer(tenant)
	want := jetstream.ConsumerConfig{
		Durable:       name,
		FilterSubject: kind.Root + "." + tenant + ".>",
		DeliverPolicy: jetstream.DeliverAllPolicy,
		AckPolicy:     jetstream.AckExplicitPolicy,
		// One reader without acknowledgements must not block the others of its consumer.
		MaxAckPending: maxFeedPending, AckWait: feedAckWait,
		MaxRequestBatch: maxFeedBatch, MaxRequestExpires: maxFeedExpires, MaxRequestMaxBytes: maxFeedBytes,
	}
	there, err := p.js.Consumer(ctx, kind.Stream, name)
	if err == nil {
		if got := there.CachedInfo().Config; got.MaxAckPending == want.MaxAckPending && got.AckWait == want.AckWait &&
			got.MaxRequestBatch == want.MaxRequestBatch && got.MaxRequestExpires == want.MaxRequestExpires && got.MaxRequestMaxBytes == want.MaxRequestMaxBytes {
			p.saw(name)
			return nil
		}
	} else if !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("looking up the consumer %s: %w", name, err)
	}
	if _, err := p.js.CreateOrUpdateConsumer(ctx, kind.Stream, want); err != nil {
		return fmt.Errorf("creating the consumer %s: %w", name, err)
	}
	p.saw(name)
	return nil
}

func (p *Pulls) saw(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[name] = time.Now()
}

// DropUnused deletes the consumers that have never delivered anything: earlier versions
// created two for each tenant. They are recreated on demand. Call it while no
// client is connected.
func (p *Pulls) DropUnused(ctx context.Context) error {
	for _, kind := range []streams.FeedKind{streams.FeedOfChanges, streams.FeedOfAudit} {
		stream, err := p.js.Stream(ctx, kind.Stream)
		if err != nil {
			return fmt.Errorf("looking for consumers: %w", err)
		}
		var unused []string
		all := stream.ListConsumers(ctx)
		for c := range all.Info() {
			if strings.HasPrefix(c.Name, kind.Consumer("")) && c.Delivered.Stream == 0 && c.AckFloor.Stream == 0 && c.NumAckPending == 0 {
				unused = append(unused, c.Name)
			}
		}
		if err := all.Err(); err != nil {
			return fmt.Errorf("listing the consumers of %s: %w", kind.Stream, err)
		}
		for _, name := range unused {
			if err := stream.DeleteConsumer(ctx, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
				return fmt.Errorf("deleting the consumer %s: %w", name, err)
			}
		}
	}
	return nil
}
