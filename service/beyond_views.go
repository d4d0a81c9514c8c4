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

// beyondViews indexes the named commands and the API keys in the commits after the position
// at which the views have stopped, so that callers who do not need the event that cannot be
// applied do not have to wait for it.
type beyondViews struct {
	mu       sync.Mutex
	from, to uint64 // the index covers the commits after from, up to to
	seqs     map[commandKey]uint64
	keys     map[string]string // id by the hex SHA-256 of the key

	unknown    map[string]bool // tenants that have a commit in a format that this program does not know
	unreadKeys bool            // a commit of an API key cannot be read
}

// maxBeyondViews is the maximum number of commits that are read for the index.
const maxBeyondViews = 50_000

// command finds the commit that recorded a command id in the log after the position of the
// views, up to upTo. It returns projections.ErrViewsBehind if there are too many commits to read.
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
// ErrKeyUnknown. Each commit is read only once, so invalid keys cause no repeated reads.
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
	case b.unreadKeys: // it may have issued this key
		return "", projections.ErrViewsBehind
	}
	return "", ErrKeyUnknown
}

// read reads the log after the position of the views up to upTo.
func (b *beyondViews) read(ctx context.Context, k *Kernel, at, upTo uint64) error {
	if b.seqs == nil || at < b.from || at >= b.to { // the index is useless, or it starts too late
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
		for _, r := range recs { // empty if it cannot be decoded, which may be why the views have stopped
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
// after at, where the views have stopped. It returns ErrKeyUnknown, or projections.ErrViewsBehind
// if there are too many commits to read, or a commit of a key cannot be read.
func (k *Kernel) KeyBeyondViews(ctx context.Context, sum string, at uint64) (id string, err error) {
	end, err := k.cfg.Log.Store.End(ctx)
	if err != nil {
		return "", err
	}
	return k.beyondViews.key(ctx, k, sum, at, end)
}
