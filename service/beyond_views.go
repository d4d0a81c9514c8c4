package service

import (
	"context"
	"errors"
	"sync"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
)

// beyondViews knows the named commands and the API keys in the commits after the place
// where the views stand still: somebody whom the event that they cannot apply does not
// concern need not wait for it.
type beyondViews struct {
	mu       sync.Mutex
	from, to uint64 // what follows is of the commits after from, up to to
	seqs     map[commandKey]uint64
	keys     map[string]string // ids by the hex SHA-256 of the key

	unknown    map[string]bool // tenants that have a commit of a form that this program does not know
	unreadKeys bool            // a commit of an API key cannot be read
}

// maxBeyondViews is the number of commits that are read for it at most.
const maxBeyondViews = 50_000

// command finds the commit that recorded a command id in the log after the position of the
// views, up to upTo. It returns projections.ErrViewsBehind when there is too much to read.
func (b *beyondViews) command(ctx context.Context, k *Kernel, key commandKey, at, upTo uint64) (seq uint64, found bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.read(ctx, k, at, upTo); err != nil {
		return 0, false, err
	}
	seq, found = b.seqs[key]
	if !found && b.unknown[key.tenant] {
		return 0, false, projections.ErrViewsBehind
	}
	return seq, found, nil
}

// key finds the id of the API key with a hash, as command finds a commit, or returns
// ErrKeyUnknown. Each commit is read once, whoever asks: wrong keys have nothing read again.
func (b *beyondViews) key(ctx context.Context, k *Kernel, sum string, at, upTo uint64) (id string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.read(ctx, k, at, upTo); err != nil {
		return "", err
	}
	id, found := b.keys[sum]
	switch {
	case found:
		return id, nil
	case b.unreadKeys: // it may have issued this one
		return "", projections.ErrViewsBehind
	}
	return "", ErrKeyUnknown
}

// read reads the log after the position of the views up to upTo.
func (b *beyondViews) read(ctx context.Context, k *Kernel, at, upTo uint64) error {
	if b.seqs == nil || at < b.from || at >= b.to { // nothing of it is needed, or it began later
		b.from, b.to, b.seqs, b.keys = at, at, map[commandKey]uint64{}, map[string]string{}
		b.unknown, b.unreadKeys = map[string]bool{}, false
	}
	if upTo > b.from+maxBeyondViews {
		return projections.ErrViewsBehind
	}
	for b.to < upTo {
		stream, m, err := k.cfg.Log.Store.Meta(ctx, b.to+1)
		if errors.Is(err, events.ErrCommitFormat) {
			b.unknown[stream.Tenant] = true
		} else if err != nil {
			return err
		}
		recs, err := k.cfg.Log.Store.Commit(ctx, b.to+1)
		if errors.Is(err, fault.ErrUnavailable) || ctx.Err() != nil {
			return err
		}
		if err != nil && stream.Category == aggregates.APIKey.Category {
			b.unreadKeys = true
		}
		for _, r := range recs { // none where it cannot be read, which may be why they stand still
			if issued, ok := r.Event.(events.APIKeyIssued); ok {
				b.keys[issued.SHA256] = r.Stream.ID
			}
		}
		b.to++
		if of := (commandKey{m.Tenant, m.Actor.Kind, m.Actor.ID, m.Command}); m.Command != "" && m.Request != "" && b.seqs[of] == 0 {
			b.seqs[of] = b.to
		}
	}
	return nil
}

// KeyBeyondViews finds the id of the API key with a hash (hex SHA-256) that was issued
// after at, where the views stand still. Errors: ErrKeyUnknown; projections.ErrViewsBehind
// when there is too much to read, or a commit of a key that cannot be read.
func (k *Kernel) KeyBeyondViews(ctx context.Context, sum string, at uint64) (id string, err error) {
	end, err := k.cfg.Log.Store.End(ctx)
	if err != nil {
		return "", err
	}
	return k.beyondViews.key(ctx, k, sum, at, end)
}
