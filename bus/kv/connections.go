package kv

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/credstream/credstream/jsapi"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/fault"
)

// ConnectBucket is the key-value bucket of the pending account connections: encrypted values
// by the connection's id. It is private.
const ConnectBucket = "CREDSTREAM_CONNECT"

const (
	connectPrefix = "$KV." + ConnectBucket + "."
	connectMark   = "redeeming."     // of the key of a mark
	connectAge    = 15 * time.Minute // after the last change of a connection
	connectBytes  = 512 << 20        // of all of them; more are refused
	connectTime   = 5 * time.Second  // for one read or write
)

// Connections stores the pending account connections, for all processes of one
// log. They are not fsynced: a user whose connection is lost in a power cut starts again.
type Connections struct{ kv jetstream.KeyValue }

// ConnectionsConfig is the stream of the bucket. It differs from a bucket of
// jetstream in one point: it is read through its leader, because
// a lagging replica misses what the browser just did.
func ConnectionsConfig(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: "KV_" + ConnectBucket, Description: "credstream: pending account connections. May be deleted.",
		Subjects: []string{connectPrefix + ">"}, Storage: jetstream.FileStorage, Replicas: replicas,
		MaxMsgsPerSubject: 1, MaxAge: connectAge, MaxBytes: connectBytes, Discard: jetstream.DiscardNew,
	}
}

// OpenConnections creates the bucket, unless it exists.
func OpenConnections(ctx context.Context, js jetstream.JetStream, replicas int) (*Connections, error) {
	if _, err := jsapi.EnsureStream(ctx, js, ConnectionsConfig(replicas)); err != nil {
		return nil, err
	}
	kv, err := js.KeyValue(ctx, ConnectBucket)
	if err != nil {
		return nil, fmt.Errorf("opening the bucket of connections: %w", err)
	}
	return &Connections{kv}, nil
}

// Create stores a new connection and returns its revision. Errors have
// fault.ErrUnavailable in their chain.
func (c *Connections) Create(ctx context.Context, id string, value []byte) (revision uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	if revision, err = c.kv.Create(ctx, id, value); err != nil {
		return 0, fmt.Errorf("storing a connection: %w: %w", fault.ErrUnavailable, err)
	}
	return revision, nil
}

// Get returns the newest value of a connection and its revision; found is false
// if it does not exist, or no longer does. Errors have fault.ErrUnavailable in their
// chain.
func (c *Connections) Get(ctx context.Context, id string) (value []byte, revision uint64, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	entry, err := c.kv.Get(ctx, id)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return nil, 0, false, nil
	case err != nil:
		return nil, 0, false, fmt.Errorf("reading a connection: %w: %w", fault.ErrUnavailable, err)
	}
	return entry.Value(), entry.Revision(), true, nil
}

// Update replaces the value that has this revision, and returns the new one; saved
// is false if the connection has another revision by now. After an error, which
// has fault.ErrUnavailable in its chain, the outcome is unknown.
func (c *Connections) Update(ctx context.Context, id string, value []byte, revision uint64) (next uint64, saved bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	next, err = c.kv.Update(ctx, id, value, revision)
	switch {
	case err == nil:
		return next, true, nil
	case jsapi.WrongLast(err) || errors.Is(err, jetstream.ErrKeyExists):
		return 0, false, nil
	}
	return 0, false, fmt.Errorf("changing a connection: %w: %w", fault.ErrUnavailable, err)
}

// Mark marks a connection whose code is about to be redeemed. Errors have
// fault.ErrUnavailable in their chain.
func (c *Connections) Mark(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	if _, err := c.kv.Put(ctx, connectMark+id, nil); err != nil {
		return fmt.Errorf("marking a connection: %w: %w", fault.ErrUnavailable, err)
	}
	return nil
}

// Unmark removes the mark of a connection. Errors have fault.ErrUnavailable in their
// chain.
func (c *Connections) Unmark(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	if err := c.kv.Delete(ctx, connectMark+id); err != nil {
		return fmt.Errorf("unmarking a connection: %w: %w", fault.ErrUnavailable, err)
	}
	return nil
}

// Marked lists the connections that are marked. Errors have fault.ErrUnavailable in
// their chain.
func (c *Connections) Marked(ctx context.Context) (ids []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	keys, err := c.kv.ListKeysFiltered(ctx, connectMark+"*")
	if err != nil {
		return nil, fmt.Errorf("listing the marks of connections: %w: %w", fault.ErrUnavailable, err)
	}
	defer func() { _ = keys.Stop() }()
	for key := range keys.Keys() {
		ids = append(ids, strings.TrimPrefix(key, connectMark))
	}
	return ids, ctx.Err()
}
