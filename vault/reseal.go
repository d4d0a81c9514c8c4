package vault

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/credstream/credstream/jsapi"
	"github.com/credstream/credstream/seal"
)

const (
	bodyBatch    = 100 // messages per fetch, of at most 1 MB each
	resealBatch  = 64  // secrets per fsync
	resealAtOnce = 16
	maxFilters   = 64 // tenants that a consumer selects; with more it reads the secrets of all
)

// sealedEntry is a stored secret with its ciphertext.
type sealedEntry struct {
	Entry
	sealed seal.Sealed
}

// sealedBy calls each with every secret of some tenants, oldest first.
func (v *Vault) sealedBy(ctx context.Context, tenants map[string]uint32, each func(sealedEntry) error) error {
	cfg := jetstream.ConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy}
	if len(tenants) <= maxFilters {
		for tenant := range tenants {
			cfg.FilterSubjects = append(cfg.FilterSubjects, prefix+"."+tenant+".>")
		}
	}
	for msg, err := range v.messages(ctx, cfg, bodyBatch) {
		if err != nil {
			return err
		}
		e, err := entryOf(msg)
		if err != nil {
			return err
		}
		if _, wanted := tenants[e.Ref.Tenant]; !wanted {
			continue
		}
		sealed, err := decode(&jsapi.Message{Seq: e.Seq, Header: msg.Headers(), Data: msg.Data()})
		if err == nil {
			err = each(sealedEntry{e, sealed})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// CountKeys counts the secrets of a tenant by the id of their encryption key. It reads all of
// them.
func (v *Vault) CountKeys(ctx context.Context, tenant string) (map[uint32]int, error) {
	counts := map[uint32]int{}
	err := v.sealedBy(ctx, map[string]uint32{tenant: 0}, func(e sealedEntry) error {
		counts[seal.KeyOf(e.sealed)]++
		return nil
	})
	return counts, err
}

// Reseal encrypts the secrets of tenants again that have another key than the given one, and erases
// their previous ciphertexts. found is the number of such secrets by tenant: if it is zero, and the
// call began late enough (see seal.Keyring.Retire), only the given key is in use. A secret that
// cannot be decrypted is counted and not changed. progress gets the number of secrets that were
// encrypted again since its last call. It is safe for concurrent use, also by several processes.
func (v *Vault) Reseal(ctx context.Context, keys map[string]uint32, progress func(n int)) (found map[string]int, err error) {
	found = map[string]int{}
	var batch []sealedEntry
	flush := func() error {
		n, err := v.resealBatch(ctx, batch)
		batch = batch[:0]
		progress(n)
		return err
	}
	err = v.sealedBy(ctx, keys, func(e sealedEntry) error {
		if seal.KeyOf(e.sealed) == keys[e.Ref.Tenant] {
			return nil
		}
		found[e.Ref.Tenant]++
		if batch = append(batch, e); len(batch) < resealBatch {
			return nil
		}
		return flush()
	})
	if err == nil && len(batch) > 0 {
		err = flush()
	}
	if err != nil {
		return found, fmt.Errorf("encrypting secrets again: %w", err)
	}
	return found, nil
}

// resealBatch encrypts secrets again and, when that is durable, erases the previous ciphertexts.
func (v *Vault) resealBatch(ctx context.Context, batch []sealedEntry) (resealed int, err error) {
	var mu sync.Mutex
	var replaced []sealedEntry // whose subject has a later message
	var all errgroup.Group
	all.SetLimit(resealAtOnce)
	for _, e := range batch {
		all.Go(func() error {
			done, err := v.resealOne(ctx, e)
			if done {
				mu.Lock()
				defer mu.Unlock()
				replaced = append(replaced, e)
			}
			return err
		})
	}
	failed := all.Wait() // continue with the others: a subject holds at most two messages
	if err := v.waitDurable(ctx); err != nil {
		return 0, errors.Join(failed, err)
	}
	erase, done := v.eraser()
	for _, e := range replaced {
		v.recent.erase(e.Ref.subject())
		if err := erase(ctx, e.Seq); err != nil {
			if m, lookErr := v.api.FromLeader(ctx, Stream, jsapi.Question{Seq: e.Seq}); m != nil || lookErr != nil {
				return resealed, done(errors.Join(failed, err, lookErr))
			} // another caller has erased it
		}
		resealed++
	}
	return resealed, errors.Join(failed, done(v.waitDurable(ctx)))
}

// resealOne stores the secret of a message again, encrypted with the newest key. replaced reports
// whether the secret has a later message, also one of an earlier attempt.
func (v *Vault) resealOne(ctx context.Context, e sealedEntry) (replaced bool, err error) {
	if err := v.check(e.Ref); err != nil {
		return false, err
	}
	secret, err := v.keys.Open(ctx, e.Ref.Tenant, e.sealed, e.Ref.AssociatedData())
	if errors.Is(err, seal.ErrSecretUnopenable) {
		return v.hasLater(ctx, e)
	}
	if err != nil {
		return false, err
	}
	sealed, err := v.keys.Seal(ctx, e.Ref.Tenant, secret, e.Ref.AssociatedData())
	if err != nil {
		return false, err
	}
	err = v.publishOnce(ctx, &nats.Msg{Subject: e.Ref.subject(), Data: encode(sealed), Header: nats.Header{
		formatHeader:                        {format},
		jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(e.Seq, 10)},
	}})
	if err == nil {
		return true, v.keys.Confirm(ctx, e.Ref.Tenant, sealed)
	}
	if isRejected(err) {
		return false, err
	}
	return v.hasLater(ctx, e) // erased meanwhile, or replaced by another caller, or by this one
}

// hasLater reports whether the secret of a message has a later one.
func (v *Vault) hasLater(ctx context.Context, e sealedEntry) (bool, error) {
	m, err := v.lastFromLeader(ctx, e.Ref.subject())
	return m != nil && m.Seq > e.Seq, err
}
