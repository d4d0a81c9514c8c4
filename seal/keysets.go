package seal

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/credstream/credstream/jsapi"
	"github.com/nats-io/nats.go/jetstream"
)

// KVKeysets is a KeysetStore over a JetStream key-value bucket, with one key per tenant.
type KVKeysets struct {
	api      jsapi.API
	kv       jetstream.KeyValue
	sync     func(context.Context) error
	deleting func(context.Context) (done func(known bool), err error)
	durable  atomic.Uint64 // revisions up to this one are durable
}

// NewKVKeysets returns a KeysetStore over kv, a bucket of js whose keys are the tenants. sync
// returns when everything that was written to the bucket before the call is durable; nil means
// that the server fsyncs before it answers.
//
// JetStream does not overwrite removed messages of a bucket: the bytes of a removed revision, which
// the KMS key wraps, stay on disk until the server compacts their block.
func NewKVKeysets(js jetstream.JetStream, kv jetstream.KeyValue, sync func(context.Context) error) *KVKeysets {
	return &KVKeysets{api: jsapi.Of(js), kv: kv, sync: sync}
}

// OnDelete sets a hook that runs before a revision is removed, as that of vault.Vault. Set it
// before the first use.
func (s *KVKeysets) OnDelete(deleting func(context.Context) (done func(known bool), err error)) {
	s.deleting = deleting
}

// Keyset implements KeysetStore. It fsyncs an entry whose writer may not have done so yet:
// nobody may encrypt with keys that a power cut could lose.
func (s *KVKeysets) Keyset(ctx context.Context, tenant string) (wrapped []byte, revision uint64, err error) {
	entry, err := s.kv.Get(ctx, tenant)
	switch {
	case err == nil:
		wrapped, revision = entry.Value(), entry.Revision()
	case errors.Is(err, jetstream.ErrKeyNotFound): // on the replica that answered, which may be behind
		return s.NewestKeyset(ctx, tenant)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("reading key %s: %w", tenant, jsapi.Fault(err))
	}
	if err := s.waitDurable(ctx, revision); err != nil {
		return nil, 0, err
	}
	return wrapped, revision, nil
}

// NewestKeyset implements KeysetStore. It reads from the leader of the bucket's stream, which
// alone knows the newest revision.
func (s *KVKeysets) NewestKeyset(ctx context.Context, tenant string) (wrapped []byte, revision uint64, err error) {
	m, err := s.api.FromLeader(ctx, s.stream(), jsapi.Question{LastBySubject: s.subject(tenant)})
	switch {
	case err != nil:
		return nil, 0, fmt.Errorf("reading key %s: %w", tenant, jsapi.Fault(err))
	case m == nil || m.Header.Get("KV-Operation") != "": // it was deleted
		return nil, 0, fmt.Errorf("reading key %s: %w", tenant, ErrNoKeyset)
	}
	if err := s.waitDurable(ctx, m.Seq); err != nil {
		return nil, 0, err
	}
	return m.Data, m.Seq, nil
}

func (s *KVKeysets) stream() string { return "KV_" + s.kv.Bucket() }

func (s *KVKeysets) subject(tenant string) string { return "$KV." + s.kv.Bucket() + "." + tenant }

// CreateKeyset implements KeysetStore.
func (s *KVKeysets) CreateKeyset(ctx context.Context, tenant string, wrapped []byte) error {
	revision, err := s.kv.Create(ctx, tenant, wrapped)
	if lostRace(err) {
		return ErrKeysetExists
	}
	if err != nil {
		return fmt.Errorf("creating key %s: %w", tenant, jsapi.Fault(err))
	}
	return s.waitDurable(ctx, revision)
}

// UpdateKeyset implements KeysetStore.
func (s *KVKeysets) UpdateKeyset(ctx context.Context, tenant string, wrapped []byte, revision uint64) error {
	revision, err := s.kv.Update(ctx, tenant, wrapped, revision)
	if lostRace(err) {
		return ErrKeysetExists
	}
	if err != nil {
		return fmt.Errorf("updating key %s: %w", tenant, jsapi.Fault(err))
	}
	return s.waitDurable(ctx, revision)
}

// RemoveEarlier implements KeysetStore.
func (s *KVKeysets) RemoveEarlier(ctx context.Context, tenant string, revision uint64) error {
	return s.remove(ctx, tenant, revision)
}

// RemoveKeyset implements KeysetStore.
func (s *KVKeysets) RemoveKeyset(ctx context.Context, tenant string) error {
	return s.remove(ctx, tenant, 0)
}

// remove removes the revisions before one, or all if it is 0.
func (s *KVKeysets) remove(ctx context.Context, tenant string, before uint64) (failed error) {
	history, err := s.kv.History(ctx, tenant)
	if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
		return fmt.Errorf("listing the revisions of key %s: %w", tenant, jsapi.Fault(err))
	}
	if s.deleting != nil {
		for _, entry := range history {
			if before != 0 && entry.Revision() >= before {
				continue
			}
			done, err := s.deleting(ctx)
			if err != nil {
				return fmt.Errorf("removing revisions of key %s: %w", tenant, err)
			}
			defer func() { done(failed == nil) }()
		}
	}
	request := struct {
		Filter string `json:"filter"`
		Before uint64 `json:"seq,omitzero"`
	}{s.subject(tenant), before}
	err = s.api.Call(ctx, "STREAM.PURGE."+s.stream(), request, &struct{}{})
	if err == nil && s.sync != nil {
		err = s.sync(ctx)
	}
	if err != nil {
		return fmt.Errorf("removing revisions of key %s: %w", tenant, err)
	}
	return nil
}

// lostRace reports whether a write failed because the revision had changed.
func lostRace(err error) bool { return errors.Is(err, jetstream.ErrKeyExists) || jsapi.WrongLast(err) }

func (s *KVKeysets) waitDurable(ctx context.Context, revision uint64) error {
	if s.sync == nil || revision <= s.durable.Load() {
		return nil
	}
	if err := s.sync(ctx); err != nil {
		return fmt.Errorf("syncing the keysets: %w", err)
	}
	for {
		known := s.durable.Load()
		if known >= revision || s.durable.CompareAndSwap(known, revision) {
			return nil
		}
	}
}
