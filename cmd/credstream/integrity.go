package main

import (
	"context"
	"sync"
	"time"

	eventlog "github.com/credstream/credstream/events/jetstream"
)

const (
	checkTime    = 30 * time.Second // for one check
	checkEvery   = time.Minute      // between two checks of what is stored
	recheckEvery = 2 * time.Second  // while it is damaged: the leader of a cluster may have been an old one
)

// integrity says whether what is stored is damaged. While it is, nothing is written, no
// secret leaves and none is collected. Each check looks at everything anew.
type integrity struct {
	mu     sync.Mutex
	damage error
}

// Err is the proof of damage, or nil.
func (i *integrity) Err() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.damage
}

// set notes the verdict of a check and reports whether it is another than before.
func (i *integrity) set(damage error) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	was := i.damage
	i.damage = damage
	return (was == nil) != (damage == nil)
}

// isDamage tells a proof from a check that could not be made.
func isDamage(err error) bool {
	return eventlog.Damage(err)
}

// checkIntegrity compares what is stored with itself and with what is remembered of it.
// It returns an error, and keeps the last verdict, when that could not be done.
func (p *program) checkIntegrity(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	err := p.water.Check(ctx)
	if err != nil && !isDamage(err) {
		return err
	}
	p.damaged(ctx, err)
	return nil
}

// damaged notes the verdict of a check; nil is whole.
func (p *program) damaged(ctx context.Context, damage error) {
	switch changed := p.integrity.set(damage); {
	case !changed:
	case damage != nil:
		p.log.ErrorContext(ctx, "stored data is damaged: nothing is written and no secret leaves", "err", damage)
	default:
		p.log.InfoContext(ctx, "stored data is whole again")
	}
}

// watchIntegrity checks what is stored every minute until ctx ends, and records how far
// it goes.
func (p *program) watchIntegrity(ctx context.Context) error {
	for {
		pause := checkEvery
		if p.integrity.Err() != nil {
			pause = recheckEvery
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		if err := p.checkIntegrity(ctx); err != nil && ctx.Err() == nil {
			p.log.WarnContext(ctx, "what is stored could not be checked", "err", err)
		}
	}
}
