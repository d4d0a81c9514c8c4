package projections_test

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
)

// journal is a log in memory that a test writes to by hand.
type journal struct {
	events.Store
	mu    sync.Mutex
	recs  []events.Record
	grown chan struct{}
	fail  error // given by Follow when it has reached the end
}

func newJournal(recs ...events.Record) *journal {
	return &journal{recs: recs, grown: make(chan struct{})}
}

func (j *journal) write(recs ...events.Record) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.recs = append(j.recs, recs...)
	close(j.grown)
	j.grown = make(chan struct{})
}

func (j *journal) End(context.Context) (uint64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.recs) == 0 {
		return 0, nil
	}
	return j.recs[len(j.recs)-1].Seq, nil
}

func (j *journal) commitAt(seq uint64) (string, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range j.recs {
		if r.Seq == seq {
			return r.Meta.Commit, nil
		}
	}
	return "", events.ErrNoSuchCommit
}

func (j *journal) Follow(ctx context.Context, after uint64) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		for i := 0; ; i++ {
			j.mu.Lock()
			for i == len(j.recs) {
				grown, fail := j.grown, j.fail
				j.mu.Unlock()
				if fail != nil {
					yield(events.Record{}, fail)
					return
				}
				select {
				case <-grown:
				case <-ctx.Done():
					return
				}
				j.mu.Lock()
			}
			r := j.recs[i]
			j.mu.Unlock()
			if r.Seq > after && !yield(r, nil) {
				return
			}
		}
	}
}

// commits numbers records from seq on: each slice of events is one commit.
func commits(stream events.StreamID, seq uint64, all ...[]events.Event) (recs []events.Record) {
	for i, evs := range all {
		for k, e := range evs {
			n := seq + uint64(i)
			recs = append(recs, events.Record{
				Stream: stream, Seq: n, Index: k, Of: len(evs), Event: e,
				Meta: events.Meta{
					Commit: "commit-" + string(rune('a'+n%26)) + strings.Repeat("x", int(n)/26), Tenant: stream.Tenant, Actor: events.Actor{Kind: "key", ID: "k1"},
					Command: "cmd-" + stream.ID + strings.Repeat("x", int(n)), Request: "r", Time: time.Date(2026, 5, 6, 7, 8, 9, 123456000, time.UTC).Add(time.Duration(n) * time.Second),
				},
			})
		}
	}
	return recs
}

// counter is a model that remembers the sizes of its batches.
type counter struct {
	mu      sync.Mutex
	pos     uint64
	batches [][]events.Record
	err     error
}

func (c *counter) Position() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pos
}

func (c *counter) Apply(_ context.Context, batch []events.Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.batches = append(c.batches, batch)
	c.pos = batch[len(batch)-1].Seq
	return nil
}

var someTenant = events.StreamID{Tenant: events.System, Category: "tenant", ID: "t1"}

func manyCommits(from uint64, n int) []events.Record {
	all := make([][]events.Event, n)
	for i := range all {
		for range 1 + i%3 {
			all[i] = append(all[i], events.TenantRegistered{Name: "x"})
		}
	}
	return commits(someTenant, from, all...)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// run runs a projector until the test ends, and returns a way to end it sooner.
func run(t *testing.T, p *projections.Projector) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = stop() })
	return stop
}

func TestProjectorAppliesWholeCommitsInOrderAndOnce(t *testing.T) {
	log := newJournal(manyCommits(1, 700)...)
	model := &counter{}
	p := projections.NewProjector(log, model, quiet())
	stop := run(t, p)
	if err := p.Wait(t.Context(), 700); err != nil {
		t.Fatal(err)
	}
	log.write(manyCommits(701, 1)...)
	if err := p.Wait(t.Context(), 701); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Fatalf("Run ended with %v", err)
	}
	log.write(manyCommits(702, 40)...)
	p = projections.NewProjector(log, model, quiet()) // goes on where the model is
	run(t, p)
	if err := p.Wait(t.Context(), 741); err != nil {
		t.Fatal(err)
	}
	for _, b := range model.batches {
		if b[0].Index != 0 || !b[len(b)-1].Last() {
			t.Fatalf("a batch tears a commit: it runs from %d/%d to %d/%d", b[0].Seq, b[0].Index, b[len(b)-1].Seq, b[len(b)-1].Index)
		}
	}
	if diff := cmp.Diff(log.recs, slices.Concat(model.batches...)); diff != "" {
		t.Error(diff)
	}
	if end, err := p.End(t.Context()); end != 741 || err != nil || p.Position() != 741 {
		t.Errorf("at %d of %d, %v", p.Position(), end, err)
	}
}

func TestProjectorStopsLoudly(t *testing.T) {
	broken := errors.New("broken")
	var said strings.Builder
	for name, c := range map[string]struct {
		log   *journal
		model *counter
	}{
		"at an event that cannot be applied": {newJournal(manyCommits(1, 3)...), &counter{err: broken}},
		"at a log that cannot be read":       {&journal{grown: make(chan struct{}), fail: broken}, &counter{}},
	} {
		t.Run(name, func(t *testing.T) {
			said.Reset()
			p := projections.NewProjector(c.log, c.model, slog.New(slog.NewTextHandler(&said, nil)))
			waited := make(chan error, 1)
			go func() { waited <- p.Wait(t.Context(), 3) }()
			if err := p.Run(t.Context()); !errors.Is(err, broken) {
				t.Errorf("Run returned %v", err)
			}
			if err := <-waited; !errors.Is(err, projections.ErrViewsBehind) {
				t.Errorf("Wait returned %v", err)
			}
			if !errors.Is(p.Err(), broken) || !strings.Contains(said.String(), "level=ERROR") {
				t.Errorf("Err %v, log %q", p.Err(), &said)
			}
			if err := p.Wait(t.Context(), 0); err != nil {
				t.Errorf("what is applied can be waited for even now: %v", err)
			}
		})
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	p := projections.NewProjector(newJournal(), &counter{}, quiet())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Wait(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestAnUnknownEventStopsTheViews(t *testing.T) {
	type somethingNew struct{}
	log := newJournal(commits(someTenant, 1, []events.Event{events.TenantRegistered{Name: "x"}}, []events.Event{events.TenantRegistered{Name: "y"}, somethingNew{}})...)
	v := open(t, filepath.Join(t.TempDir(), "views.db"))
	if err := v.Apply(t.Context(), log.recs); err == nil {
		t.Fatal("applied what it does not know")
	}
	if _, found, err := v.Tenant(t.Context(), "t1"); v.Position() != 0 || found || err != nil {
		t.Errorf("a part of the batch stands: position %d, found %t, %v", v.Position(), found, err)
	}
}

func TestNextFollowsWithoutHurry(t *testing.T) {
	log := newJournal(manyCommits(1, 3)...)
	model := &counter{}
	p := projections.NewProjector(log, model, quiet())
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error, 1)
	go func() { waiting <- p.Next(ctx, 0) }()
	run(t, p)
	if err := <-waiting; err != nil || p.Position() == 0 {
		t.Fatalf("position %d, %v", p.Position(), err)
	}
	for p.Position() < 3 {
		if err := p.Next(t.Context(), p.Position()); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := p.Next(ctx, 3); !errors.Is(err, context.Canceled) {
		t.Errorf("there is nothing after the end of the log: %v", err)
	}
	idle := projections.NewProjector(log, model, quiet())
	if _ = idle.Next(ctx, 3); idle.Hurried() {
		t.Error("Next hurries the projector")
	}
	if _ = idle.Wait(ctx, 4); !idle.Hurried() {
		t.Error("Wait does not make the projector flush")
	}
	if end, err := p.End(t.Context()); end != 3 || err != nil {
		t.Errorf("the log ends at %d, %v", end, err)
	}
}

// What is applied is told before anybody who waits for it goes on.
func TestAppliedBatchesAreTold(t *testing.T) {
	log := newJournal(manyCommits(1, 50)...)
	model := &counter{}
	p := projections.NewProjector(log, model, quiet())
	var mu sync.Mutex
	var told []events.Record
	p.OnApplied(func(batch []events.Record) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, batch...)
		if last := batch[len(batch)-1].Seq; model.Position() < last {
			t.Errorf("told of %d at %d", last, model.Position())
		}
	})
	run(t, p)
	for seq := uint64(51); seq < 60; seq++ {
		log.write(manyCommits(seq, 1)...)
		if err := p.Wait(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		if last := told[len(told)-1].Seq; last < seq {
			t.Errorf("waited for %d and was told up to %d", seq, last)
		}
		mu.Unlock()
	}
	if diff := cmp.Diff(log.recs, told); diff != "" {
		t.Error(diff)
	}
}

// What a rebuild brought into the model while the projector stood still is told
// to those who follow what is applied.
func TestWhatARebuildAppliedIsToldToo(t *testing.T) {
	log := newJournal(manyCommits(1, 10)...)
	model := &counter{}
	p := projections.NewProjector(log, model, quiet())
	var told uint64
	p.OnApplied(func(batch []events.Record) { told = max(told, batch[len(batch)-1].Seq) })
	stop := run(t, p)
	if err := errors.Join(p.Wait(t.Context(), 10), stop()); err != nil {
		t.Fatal(err)
	}
	log.write(manyCommits(11, 10)...)
	model.pos = 20
	before := len(model.batches)
	stop = run(t, p)
	log.write(manyCommits(21, 1)...)
	reached(t, p, 21)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	first := model.batches[before][0].Seq
	if told != 21 || first > 11 {
		t.Errorf("told of %d, the first batch after the rebuild begins at %d", told, first)
	}
}
