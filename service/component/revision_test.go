package component_test

import (
	"context"
	"fmt"
	"iter"
	"path/filepath"
	"testing"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service/component"
	"github.com/credstream/credstream/service/stage"
)

// countingStore counts the commits that are read.
type countingStore struct {
	events.Store
	reads int
}

func (s *countingStore) Back(ctx context.Context, stream events.StreamID, upTo uint64) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		for rec, err := range s.Store.Back(ctx, stream, upTo) {
			s.reads++
			if !yield(rec, err) {
				return
			}
		}
	}
}

func (s *countingStore) Commit(ctx context.Context, seq uint64) ([]events.Record, error) {
	s.reads++
	return s.Store.Commit(ctx, seq)
}

// A revision of a descriptor costs one read, however many commits follow it.
func TestOldRevision(t *testing.T) {
	s := stage.New(t)
	stream := aggregates.Component.Stream(events.System, "busy")
	var last uint64
	add := func(e events.Event) {
		t.Helper()
		meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "test"}, Command: events.NewID(), Time: time.Now(), Via: "system"}
		last = stage.Must(s.Store.Stage(t.Context(), stream, last, meta, e))(t)
	}
	descriptor := func(revision int) string { return fmt.Sprintf(`{"title":"Revision %d"}`, revision) }
	add(events.ComponentRegistered{Owner: "default", Title: "T", Descriptor: descriptor(1)})
	revision := 1
	for range 100 {
		add(events.ComponentShared{})
		add(events.ComponentUnshared{})
		revision++
		add(events.ComponentUpdated{Title: "T", Descriptor: descriptor(revision), Revision: revision})
	}
	stage.OK(t, s.Store.WaitDurable(t.Context(), last))
	s.CaughtUp()
	deps := s.Service.Components.Deps
	store := &countingStore{Store: s.Store}
	deps.Log = stage.Must(aggregates.NewLog(store, 10))(t)
	components := stage.Must(component.New(deps))(t)
	for _, want := range []int{1, 50, revision - 1, revision} {
		store.reads = 0
		d, err := components.Descriptor(t.Context(), "busy", want)
		stage.OK(t, err)
		if d.Title != fmt.Sprintf("Revision %d", want) || store.reads > 1 {
			t.Errorf("revision %d is %q, after %d reads", want, d.Title, store.reads)
		}
	}
	store.reads = 0
	if _, err := components.Descriptor(t.Context(), "busy", revision+1); err == nil || store.reads > 1 {
		t.Errorf("a revision that there is not: %v, after %d reads", err, store.reads)
	}

	// Views that do not know it yet cost the commits that they lack.
	views := stage.Must(projections.OpenViews(filepath.Join(t.TempDir(), "views.db"), projections.ViewsOptions{}))(t)
	defer func() { stage.OK(t, views.Close()) }()
	deps.Views = views
	components = stage.Must(component.New(deps))(t)
	for _, want := range []int{revision, 1} {
		if d := stage.Must(components.Descriptor(t.Context(), "busy", want))(t); d.Title != fmt.Sprintf("Revision %d", want) {
			t.Errorf("without the views, revision %d is %q", want, d.Title)
		}
	}
}
