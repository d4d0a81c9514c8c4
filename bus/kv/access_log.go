package kv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/credstream/credstream/jsapi"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/credential"
)

// AccessStream is the stream of the access log: which caller resolved which credential.
const AccessStream = "CREDSTREAM_ACCESS"

// The limits of the retention of the access log.
const (
	DefaultAccessRetention = 400 * 24 * time.Hour
	MinAccessRetention     = 24 * time.Hour
)

// The stored format; it never changes: the header Cs-Format and a service.AccessFact in JSON,
// on "credstream.access.<tenant>.<token of the credential>".
const (
	accessPrefix       = "credstream.access."
	accessFormatHeader = "Cs-Format"
	accessFormat       = "1"
)

const (
	accessTime = 5 * time.Second // timeout of an append or a read
	accessSkew = 5 * time.Minute // tolerated difference between the clocks of servers and services
	accessSize = 16 << 10        // bytes of one message; an entry has at most some 1,500
)

// AccessConfig is the stream of the access log. It does not use Nats-Msg-Id: a
// duplicated entry is harmless, a wrongly deduplicated one is not.
func AccessConfig(replicas int, retention time.Duration) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: AccessStream, Description: "credstream: access log. Who got which credential, when and for how long. No secrets.",
		Subjects: []string{accessPrefix + ">"}, Storage: jetstream.FileStorage, Replicas: replicas,
		MaxAge: retention, MaxMsgSize: accessSize, AllowDirect: true, DenyDelete: true, DenyPurge: true,
	}
}

// EnsureAccessLog creates the stream, or checks the existing one as
// EnsureStream does, but applies another retention. It reports whether
// it changed anything that must be synced.
func EnsureAccessLog(ctx context.Context, js jetstream.JetStream, replicas int, retention time.Duration) (changed bool, err error) {
	stream, err := js.Stream(ctx, AccessStream)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
	case err != nil:
		return false, fmt.Errorf("looking up stream %s: %w", AccessStream, err)
	case stream.CachedInfo().Config.MaxAge != retention:
		cfg := stream.CachedInfo().Config
		cfg.MaxAge = retention
		if _, err := js.UpdateStream(ctx, cfg); err != nil {
			return false, fmt.Errorf("changing the retention of %s: %w", AccessStream, err)
		}
		changed = true
	}
	created, err := jsapi.EnsureStream(ctx, js, AccessConfig(replicas, retention))
	return created || changed, err
}

// AccessLog is the access log in its stream. It may be used by many goroutines.
type AccessLog struct {
	js      jetstream.JetStream
	api     jsapi.API
	durable func(context.Context) error
}

var _ credential.AccessLog = (*AccessLog)(nil)

// NewAccessLog creates an AccessLog over a connection of the service. durable returns
// after an fsync of everything that the stream stored before the call; nil means that
// the server syncs by itself. The stream must exist.
func NewAccessLog(nc *nats.Conn, durable func(context.Context) error) (*AccessLog, error) {
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncTimeout(accessTime), jetstream.WithPublishAsyncMaxPending(streams.MaxUnacked))
	if err != nil {
		return nil, fmt.Errorf("opening JetStream for the access log: %w", err)
	}
	return &AccessLog{js: js, api: jsapi.Of(js), durable: durable}, nil
}

// Append implements credential.AccessLog. It times out after five seconds.
func (l *AccessLog) Append(ctx context.Context, tenant string, fact credential.AccessFact) error {
	if !events.Plain(tenant) {
		return events.ErrID
	}
	if err := events.CheckID(fact.Credential); err != nil {
		return err
	}
	body, err := json.Marshal(fact)
	if err != nil {
		return fmt.Errorf("encoding an access record: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, accessTime)
	defer cancel()
	m := &nats.Msg{
		Subject: accessPrefix + tenant + "." + events.Token(fact.Credential), Data: body,
		Header: nats.Header{accessFormatHeader: {accessFormat}},
	}
	ack, err := l.js.PublishMsgAsync(m, jetstream.WithRetryAttempts(0))
	if err != nil {
		return fmt.Errorf("storing an access record: %w", err)
	}
	_, _, err = streams.Receipt{Stream: AccessStream, Ack: ack, Durable: l.durable}.Wait(ctx)
	return err
}

// Read implements credential.AccessLog. It leaves no state on the server: it reads the end of
// the log from the stream's leader, and a batch of entries from any replica. What a lagging
// replica misses comes from the leader.
func (l *AccessLog) Read(ctx context.Context, tenant string, of credential.AccessRange, limit int) (page []credential.AccessRecord, next uint64, err error) {
	if !events.Plain(tenant) {
		return nil, 0, events.ErrID
	}
	filter := accessPrefix + tenant + ".*"
	if of.Credential != "" {
		if err := events.CheckID(of.Credential); err != nil {
			return nil, 0, err
		}
		filter = accessPrefix + tenant + "." + events.Token(of.Credential)
	}
	end, err := l.ask(ctx, jsapi.Question{LastBySubject: filter})
	if err != nil || end == nil {
		return nil, 0, err
	}
	from := max(of.From, 1)
	if !of.Since.IsZero() {
		since := of.Since.Add(-accessSkew).UTC()
		first, err := l.ask(ctx, jsapi.Question{NextBySubject: filter, StartTime: &since})
		if err != nil || first == nil {
			return nil, 0, err
		}
		from = max(from, first.Seq)
	}
	for from <= end.Seq && len(page) < limit {
		batch, err := l.batch(ctx, jsapi.Question{NextBySubject: filter, Seq: from, Batch: limit - len(page)})
		if err != nil {
			return nil, 0, err
		}
		if len(batch) == 0 {
			m, err := l.ask(ctx, jsapi.Question{NextBySubject: filter, Seq: from})
			if err != nil {
				return nil, 0, err
			}
			if m == nil { // the last messages have expired in the meantime
				return page, 0, nil
			}
			batch = append(batch, *m)
		}
		page = append(page, batch...)
		from = page[len(page)-1].Seq + 1
	}
	if from > end.Seq {
		from = 0
	}
	return page, from, nil
}

// Last implements credential.AccessLog, by one request to any replica for 1,000 credentials.
func (l *AccessLog) Last(ctx context.Context, tenant string, credentials []string) (list []credential.AccessRecord, err error) {
	if !events.Plain(tenant) {
		return nil, events.ErrID
	}
	for some := range slices.Chunk(credentials, maxLast) {
		subjects := make([]string, len(some))
		for i, id := range some {
			if err := events.CheckID(id); err != nil {
				return nil, err
			}
			subjects[i] = accessPrefix + tenant + "." + events.Token(id)
		}
		batch, err := l.batch(ctx, jsapi.Question{MultiLast: subjects})
		if err != nil {
			return nil, err
		}
		list = append(list, batch...)
	}
	return list, nil
}

// maxLast is the number of subjects in one request; the server allows 1,024.
const maxLast = 1000

// ask reads one entry from the stream's leader; nil means that there is none.
func (l *AccessLog) ask(ctx context.Context, q jsapi.Question) (*credential.AccessRecord, error) {
	ctx, cancel := context.WithTimeout(ctx, accessTime)
	defer cancel()
	m, err := l.api.FromLeader(ctx, AccessStream, q)
	switch {
	case err != nil:
		return nil, unread(err)
	case m == nil:
		return nil, nil
	}
	rec, err := readAccess(m.Subject, m.Seq, m.Header, m.Data)
	return &rec, err
}

// batch reads entries from any replica, perhaps none.
func (l *AccessLog) batch(ctx context.Context, q jsapi.Question) (list []credential.AccessRecord, err error) {
	ctx, cancel := context.WithTimeout(ctx, accessTime)
	defer cancel()
	msgs, err := l.api.Batch(ctx, AccessStream, q)
	if err != nil {
		return nil, unread(err)
	}
	for _, m := range msgs {
		rec, err := readAccess(m.Subject, m.Seq, m.Header, m.Data)
		if err != nil {
			return nil, err
		}
		list = append(list, rec)
	}
	return list, nil
}

func unread(err error) error {
	return fmt.Errorf("reading the access log: %w: %w", fault.ErrUnavailable, err)
}

// readAccess decodes a message of the stream. It returns an error for every unknown format.
func readAccess(subject string, seq uint64, header nats.Header, body []byte) (credential.AccessRecord, error) {
	rec := credential.AccessRecord{Seq: seq}
	if f := header.Get(accessFormatHeader); f != accessFormat {
		return rec, fmt.Errorf("access record %d: unknown format %q", seq, f)
	}
	if err := json.Unmarshal(body, &rec.AccessFact, json.RejectUnknownMembers(true)); err != nil {
		return rec, fmt.Errorf("access record %d: %w", seq, err)
	}
	if !strings.HasSuffix(subject, "."+events.Token(rec.Credential)) {
		return rec, fmt.Errorf("access record %d of %s is stored on the subject %s", seq, rec.Credential, subject)
	}
	return rec, nil
}
