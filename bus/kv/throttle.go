package kv

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/jsapi"
	"github.com/credstream/credstream/service/throttle"
)

// ThrottleStream is the stream of the throttle buckets: the last message of a subject is
// the state of one credential's bucket.
const ThrottleStream = "CREDSTREAM_THROTTLE"

const (
	throttlePrefix = "credstream.throttle."
	throttleAge    = 26 * time.Hour   // longer than the longest period and a slot of it
	throttleClock  = 10 * time.Second // between two readings of the server's clock
)

// ThrottleBuckets implements throttle.Buckets by compare-and-set on a stream. A single
// server stores it in a file without fsync: it survives a restart, but a power cut may lose the
// last moments. A cluster stores it in memory on all its replicas.
type ThrottleBuckets struct {
	js     jetstream.JetStream
	stream jetstream.Stream
	config jetstream.StreamConfig

	mu     sync.Mutex
	server time.Time // by the server's clock, at read
	read   time.Time // when it was read, by this process's monotonic clock; zero: never
}

// ThrottleConfig is the stream of the buckets. It is read through its leader.
func ThrottleConfig(replicas int) jetstream.StreamConfig {
	cfg := jetstream.StreamConfig{
		Name: ThrottleStream, Description: "credstream: tokens taken from throttled credentials. May be deleted.",
		Subjects: []string{throttlePrefix + "*.*"}, Storage: jetstream.FileStorage, Replicas: replicas,
		MaxMsgsPerSubject: 1, MaxAge: throttleAge, MaxMsgSize: 64 << 10,
	}
	if replicas > 1 {
		cfg.Storage = jetstream.MemoryStorage
	}
	return cfg
}

// OpenThrottle creates the stream, unless it exists.
func OpenThrottle(ctx context.Context, js jetstream.JetStream, replicas int) (*ThrottleBuckets, error) {
	b := &ThrottleBuckets{js: js, config: ThrottleConfig(replicas)}
	if _, err := jsapi.EnsureStream(ctx, js, b.config); err != nil {
		return nil, err
	}
	var err error
	if b.stream, err = js.Stream(ctx, ThrottleStream); err != nil {
		return nil, fmt.Errorf("looking up stream %s: %w", ThrottleStream, err)
	}
	return b, nil
}

func throttleSubject(tenant, credential string) string {
	return throttlePrefix + events.Token(tenant) + "." + events.Token(credential)
}

// Load implements throttle.Buckets.
func (b *ThrottleBuckets) Load(ctx context.Context, tenant, credential string) (value []byte, revision uint64, err error) {
	m, err := b.stream.GetLastMsgForSubject(ctx, throttleSubject(tenant, credential))
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return nil, 0, nil
	case errors.Is(err, jetstream.ErrStreamNotFound): // lost with the memory of a whole cluster
		_, err = jsapi.EnsureStream(ctx, b.js, b.config)
		return nil, 0, err
	case err != nil:
		return nil, 0, fmt.Errorf("reading a throttle bucket: %w", err)
	}
	return m.Data, m.Sequence, nil
}

// Store implements throttle.Buckets.
func (b *ThrottleBuckets) Store(ctx context.Context, tenant, credential string, value []byte, revision uint64) (uint64, error) {
	m := nats.NewMsg(throttleSubject(tenant, credential))
	m.Data = value
	ack, err := b.js.PublishMsg(ctx, m, jetstream.WithExpectLastSequencePerSubject(revision), jetstream.WithRetryAttempts(0))
	switch {
	case err == nil:
		return ack.Sequence, nil
	case jsapi.WrongLast(err):
		return 0, throttle.ErrMoved
	}
	return 0, fmt.Errorf("storing a throttle bucket: %w", err)
}

// Now implements throttle.Buckets: the clock of the stream's leader, read every ten seconds.
// The clocks of the processes may differ.
func (b *ThrottleBuckets) Now(ctx context.Context) (time.Time, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.read.IsZero() || time.Since(b.read) > throttleClock {
		requested := time.Now()
		info, err := b.stream.Info(ctx)
		if errors.Is(err, jetstream.ErrStreamNotFound) { // see Load
			if _, err = jsapi.EnsureStream(ctx, b.js, b.config); err == nil {
				requested = time.Now()
				info, err = b.stream.Info(ctx)
			}
		}
		if err != nil {
			return time.Time{}, fmt.Errorf("reading the clock of the server: %w: %w", fault.ErrUnavailable, err)
		}
		b.read = time.Now()
		b.server = info.TimeStamp.Add(b.read.Sub(requested) / 2)
	}
	return b.server.Add(time.Since(b.read)), nil // monotonic: a step of this machine's clock changes nothing
}
