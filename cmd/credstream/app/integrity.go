package app

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/bus/edge"
	"github.com/credstream/credstream/bus/feed"
	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/bus/storage"
	"github.com/credstream/credstream/events"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/vault"
)

const (
	checkTime    = 30 * time.Second // for one check
	checkEvery   = time.Minute      // between two checks of everything that is stored
	lookEvery    = 2 * time.Second  // between two checks of positions and files
	recheckEvery = 2 * time.Second  // while it is damaged: the verdict may come from an old leader of a cluster
)

// keptStreams are the streams besides the log that cannot be rebuilt.
var keptStreams = []string{vault.Stream, keyStream, kv.AccessStream, edge.FlowsStream, edge.QueueStream, edge.DeadLetterStream}

func (p *program) highWaterFile() string { return filepath.Join(p.cfg.Data, "high-water.json") }

func (p *program) marksFile() string { return filepath.Join(p.cfg.Data, "marks.json") }

// durableMark is a sequence up to which a stream is known to have been durable; 0: unknown.
func (p *program) durableMark(stream string) uint64 {
	if stream == eventlog.Stream {
		if p.cfg.EventStore != "" { // the mark is a position in the event store
			return 0
		}
		return eventlog.Marked(p.highWaterFile())
	}
	return storage.MarkedLast(p.marksFile(), stream)
}

// openMarks reads the recorded positions of streams besides the log.
func (p *program) openMarks(conn *nats.Conn, names ...string) error {
	js, err := jetstream.New(conn)
	if err != nil {
		return fmt.Errorf("open JetStream: %w", err)
	}
	var streams []storage.Marked
	for _, name := range names {
		streams = append(streams, storage.Marked{
			Stream: name, Durable: p.durable(name),
			Exact:       p.node != nil && (name == vault.Stream || name == keyStream), // messages of the others are removed by age, or when they are done
			OnlyExpires: p.node != nil && name == kv.AccessStream,
		})
	}
	p.marks, err = storage.OpenMarks(p.marksFile(), js, p.log, streams...)
	return err
}

// integrity is whether the stored data is damaged. While it is, nothing is written, no
// secret is returned and none is collected. Each check starts from scratch.
type integrity struct {
	mu     sync.Mutex
	damage error
	whole  chan struct{} // closed when the damage is repaired; nil while nobody waits
}

// Err is the proof of damage, or nil.
func (i *integrity) Err() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.damage
}

// set records the verdict of a check and reports whether it differs from the last one.
func (i *integrity) set(damage error) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	was := i.damage
	i.damage = damage
	if damage == nil && i.whole != nil {
		close(i.whole)
		i.whole = nil
	}
	return (was == nil) != (damage == nil)
}

// await returns when there is no damage; false means that ctx ended first.
func (i *integrity) await(ctx context.Context) bool {
	i.mu.Lock()
	if i.damage == nil {
		i.mu.Unlock()
		return true
	}
	if i.whole == nil {
		i.whole = make(chan struct{})
	}
	whole := i.whole
	i.mu.Unlock()
	select {
	case <-whole:
		return true
	case <-ctx.Done():
		return false
	}
}

// isDamage distinguishes proven damage from a failed check.
func isDamage(err error) bool {
	return slices.ContainsFunc([]error{
		eventlog.ErrLogCutShort, eventlog.ErrLogIncomplete, storage.ErrStoredIncomplete, storage.ErrStoredChanged, feed.ErrFeedAhead, projections.ErrViewsAhead, seal.ErrKeysetMissing,
		secrets.ErrVaultBehind,
	}, func(proof error) bool { return errors.Is(err, proof) })
}

// checkIntegrity compares the stored data with itself and with the recorded positions.
// It returns an error, and keeps the last verdict, if a check could not be made.
func (p *program) checkIntegrity(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	err := p.look(ctx)
	for _, check := range []struct {
		open bool
		run  func(context.Context) error
	}{
		{p.views != nil, p.compareViews},
		{p.keysets != nil, p.checkKeysets},
		{p.feed != nil, p.compareFeeds},
		{p.svc != nil && p.node != nil, func(ctx context.Context) error { return p.svc.Secrets.CheckNewest(ctx) }}, // a cluster's vault survives one disk
	} {
		if err == nil && check.open {
			err = check.run(ctx)
		}
	}
	if err != nil && !isDamage(err) {
		return err
	}
	p.damaged(ctx, err)
	return nil
}

// look makes the checks that cost little: of the streams' positions, and of the files.
func (p *program) look(ctx context.Context) error {
	err := p.marks.Check(ctx)
	if err == nil && p.highWater != nil {
		err = p.highWater.Check(ctx)
	}
	if err == nil && p.scrubber != nil {
		err = p.scrubber.Check(ctx)
	}
	return err
}

// damaged records the verdict of a check; nil means intact.
func (p *program) damaged(ctx context.Context, damage error) {
	switch changed := p.integrity.set(damage); {
	case !changed:
	case damage != nil:
		p.log.ErrorContext(ctx, "stored data is damaged: changes are refused and no secret is returned", "err", damage)
	default:
		p.log.InfoContext(ctx, "stored data is intact again")
	}
}

// watchIntegrity checks positions and files every two seconds, and all of the stored data every
// minute or while it is damaged, until ctx ends.
func (p *program) watchIntegrity(ctx context.Context) error {
	seen := false // damage, by the last look
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(lookEvery):
		}
		if p.integrity.Err() == nil && time.Since(last) < checkEvery {
			once, cancel := context.WithTimeout(ctx, checkTime)
			err := p.look(once)
			cancel()
			if !isDamage(err) {
				seen = false
			} else if seen || p.node != nil { // of external servers, an old leader may have answered once
				p.damaged(ctx, err)
			} else {
				seen = true
			}
			continue
		}
		last = time.Now()
		if err := p.checkIntegrity(ctx); err != nil && ctx.Err() == nil {
			p.log.WarnContext(ctx, "integrity check failed", "err", err)
		}
	}
}

// openScrubber has the files of the embedded server verified while it uses them.
func (p *program) openScrubber() {
	if p.node == nil {
		return
	}
	p.scrubber = &storage.Scrubber{
		Streams: natsserver.StreamsDir(p.cfg.Data), Kept: keptStreams,
		Grows: []string{kv.AccessStream}, Durable: p.durableMark,
	}
	if p.cfg.EventStore == "" {
		p.scrubber.Kept = append([]string{eventlog.Stream}, keptStreams...)
		p.scrubber.Grows, p.scrubber.Whole = []string{eventlog.Stream, kv.AccessStream}, []string{eventlog.Stream}
	}
}

// compareFeeds returns feed.ErrFeedAhead if a feed has an event that the log does not hold; the
// writers of the feeds report everything else.
func (p *program) compareFeeds(ctx context.Context) error {
	for _, f := range []*feed.Feed{p.feed, p.audit} {
		if err := f.Check(ctx); errors.Is(err, feed.ErrFeedAhead) {
			return err
		}
	}
	return nil
}

// compareViews returns projections.ErrViewsAhead if the views reflect a commit that the log does not hold.
func (p *program) compareViews(ctx context.Context) error {
	return p.views.Check(func(seq uint64) (string, error) {
		recs, err := p.store.Commit(ctx, seq)
		if err != nil {
			return "", err
		}
		return recs[0].Meta.Commit, nil
	})
}

// checkKeysets returns seal.ErrKeysetMissing if a tenant in the log has no keyset. A
// keyset is stored before its tenant is in the log, and destroyed after the log says that the
// tenant is being erased.
func (p *program) checkKeysets(ctx context.Context) error {
	tenants, err := p.store.IDs(ctx, events.System, aggregates.Tenant.Category)
	if err != nil {
		return err
	}
	have, err := p.keysetTenants(ctx)
	if err != nil {
		return err
	}
	missing := slices.DeleteFunc(tenants, func(tenant string) bool { _, found := slices.BinarySearch(have, tenant); return found })
	for i := 0; i < len(missing); {
		state, err := aggregates.Tenant.Fresh(ctx, p.states, aggregates.Tenant.Stream(events.System, missing[i]))
		switch {
		case err != nil:
			return err
		case state.Value.Erasing:
			missing = slices.Delete(missing, i, i+1)
		default:
			i++
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return seal.ErrKeysetMissing.Withf("The encryption keys of %d tenants in the log are missing, %s among them. Changes are refused "+
		"and no secret is returned until the stream %s is restored from a backup.", len(missing), slices.Min(missing), keyStream)
}

// keysetTenants lists, in order, the tenants that have a keyset, as read from the leader.
func (p *program) keysetTenants(ctx context.Context) ([]string, error) {
	stream, err := p.keysets.Stream(ctx, keyStream)
	if err != nil {
		return nil, fmt.Errorf("list the keysets: %w", err)
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter("$KV."+keyBucket+".*"))
	if err != nil {
		return nil, fmt.Errorf("list the keysets: %w", err)
	}
	subjects := info.State.Subjects
	tenants := make([]string, 0, len(subjects))
	for subject := range subjects {
		tenants = append(tenants, strings.TrimPrefix(subject, "$KV."+keyBucket+"."))
	}
	slices.Sort(tenants)
	return tenants, nil
}
