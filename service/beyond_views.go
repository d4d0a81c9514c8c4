package service

import (
	"context"
	"sync"

	"github.com/credstream/credstream/projections"
)

// beyondViews knows the named commands in the commits after the place where the views
// stand still: a command of somebody whom the event that they cannot apply does not
// concern need not wait for it.
type beyondViews struct {
	mu       sync.Mutex
	from, to uint64 // seqs holds the commands of the commits after from, up to to
	seqs     map[commandKey]uint64
}

// maxBeyondViews is the number of commits that are read for it at most.
const maxBeyondViews = 50_000

// command finds the commit that recorded a command id in the log after the position of the
// views, up to upTo. It returns projections.ErrViewsBehind when there is too much to read.
func (b *beyondViews) command(ctx context.Context, s *Kernel, key commandKey, at, upTo uint64) (seq uint64, found bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.seqs == nil || at < b.from || at >= b.to { // nothing of it is needed, or it began later
		b.from, b.to, b.seqs = at, at, map[commandKey]uint64{}
	}
	if upTo > b.from+maxBeyondViews {
		return 0, false, projections.ErrViewsBehind
	}
	for b.to < upTo {
		m, err := s.cfg.Log.Store.Meta(ctx, b.to+1)
		if err != nil {
			return 0, false, err
		}
		b.to++
		if k := (commandKey{m.Tenant, m.Actor.Kind, m.Actor.ID, m.Command}); m.Command != "" && m.Request != "" && b.seqs[k] == 0 {
			b.seqs[k] = b.to
		}
	}
	seq, found = b.seqs[key]
	return seq, found, nil
}
