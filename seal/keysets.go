package seal

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/nats-io/nats.go/jetstream"
)

// kvKeysets is a KeysetStore over a JetStream key-value bucket, one key a tenant.
type kvKeysets struct {
	kv      jetstream.KeyValue
	sync    func(context.Context) error
	durable atomic.Uint64 // revisions up to this one are known to be synced
}

// NewKVKeysets returns a KeysetStore over kv whose keys are the tenants. sync
// returns when all that was written to the bucket before the call is durable;
// nil says that the server itself syncs before it answers.
func NewKVKeysets(kv jetstream.KeyValue, sync func(context.Context) error) KeysetStore {
	return &kvKeysets{kv: kv, sync: sync}
}

// Keyset implements KeysetStore. What a writer stored whose own sync is still
// under way, or was given up, is synced before it is returned: nobody may seal
// with keys that a power cut could take away.
func (s *kvKeysets) Keyset(ctx context.Context, tenant string) ([]byte, uint64, error) {
	entry, err := s.kv.Get(ctx, tenant)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, 0, ErrNoKeyset
	}
	if err != nil {
		return nil, 0, fmt.Errorf("reading key %s: %w", tenant, err)
	}
	if err := s.waitDurable(ctx, entry.Revision()); err != nil {
		return nil, 0, err
	}
	return entry.Value(), entry.Revision(), nil
}

// CreateKeyset implements KeysetStore.
func (s *kvKeysets) CreateKeyset(ctx context.Context, tenant string, wrapped []byte) error {
	revision, err := s.kv.Create(ctx, tenant, wrapped)
	if lostRace(err) {
		return ErrKeysetExists
	}
	if err != nil {
		return fmt.Errorf("creating key %s: %w", tenant, err)
	}
	return s.waitDurable(ctx, revision)
}

// UpdateKeyset implements KeysetStore.
func (s *kvKeysets) UpdateKeyset(ctx context.Context, tenant string, wrapped []byte, revision uint64) error {
	revision, err := s.kv.Update(ctx, tenant, wrapped, revision)
	if lostRace(err) {
		return ErrKeysetExists
	}
	if err != nil {
		return fmt.Errorf("updating key %s: %w", tenant, err)
	}
	return s.waitDurable(ctx, revision)
}

// lostRace reports whether a write met another revision than it expected. A
// replicated stream reports the race by a code of its own, 10164.
func lostRace(err error) bool {
	if errors.Is(err, jetstream.ErrKeyExists) {
		return true
	}
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == 10164)
}

func (s *kvKeysets) waitDurable(ctx context.Context, revision uint64) error {
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
