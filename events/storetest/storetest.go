// Package storetest holds what every events.Store must do, as one suite of
// tests, and a disk whose power can be cut.
package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/events"
)

// Harness is a store under test.
type Harness struct {
	Store events.Store // empty, over events.All()
	// Restart stops what keeps the log, starts it again on the same data and
	// returns the store to continue with. nil: there is nothing to restart.
	Restart func(t *testing.T) events.Store
	// Sparse: sequences increase by more than one, since the store makes them from places in a
	// file.
	Sparse bool
}

// Run tests the store that open makes, a new and empty one for each test.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Harness)
	}{
		{"append and read back", appendAndReadBack},
		{"wrong revision", wrongRevision},
		{"one racing writer wins", oneRacingWriterWins},
		{"ids that need a token", idsThatNeedAToken},
		{"refused ids", refusedIDs},
		{"refused commits", refusedCommits},
		{"tenants", tenants},
		{"system streams", systemStreams},
		{"long stream", longStream},
		{"follow from everywhere", followFromEverywhere},
		{"follow resumed", followResumed},
		{"follow live", followLive},
		{"follow beyond the end", followBeyondTheEnd},
		{"follow ends", followEnds},
		{"before the last commits", beforeTheLast},
		{"wait durable", waitDurable},
		{"snapshots", snapshots},
		{"cancelled", cancelled},
		{"restart", restart},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

// Meta is the meta of a commit of tenant by a test.
func Meta(tenant, command string) events.Meta {
	return events.Meta{
		Tenant:      tenant,
		Actor:       events.Actor{Kind: "key", ID: "key-1"},
		Command:     command,
		Request:     "mac",
		Causation:   "cause",
		Correlation: "correlation",
		Time:        time.Date(2030, 1, 2, 3, 4, 5, 6_000, time.UTC),
		Via:         "http",
	}
}

// Credential is the stream of a credential of tenant.
func Credential(tenant, id string) events.StreamID {
	return events.StreamID{Tenant: tenant, Category: "credential", ID: id}
}

func named(name string) events.Event { return events.CredentialRenamed{Name: name} }

// put appends one event and returns the commit's sequence.
func put(t *testing.T, s events.Store, stream events.StreamID, expected uint64, name string) uint64 {
	t.Helper()
	seq, err := s.Append(t.Context(), stream, expected, Meta(stream.Tenant, "command-"+name), named(name))
	if err != nil {
		t.Fatalf("append %s to %v after %d: %v", name, stream, expected, err)
	}
	return seq
}

// load returns the records of a stream above after.
func load(t *testing.T, s events.Store, stream events.StreamID, after uint64) []events.Record {
	t.Helper()
	var recs []events.Record
	for r, err := range s.Stream(t.Context(), stream, after) {
		if err != nil {
			t.Fatalf("load %v after %d: %v", stream, after, err)
		}
		recs = append(recs, r)
	}
	return recs
}

// loadBack returns the records of a stream up to upTo, newest first.
func loadBack(t *testing.T, s events.Store, stream events.StreamID, upTo uint64) []events.Record {
	t.Helper()
	var recs []events.Record
	for r, err := range s.Back(t.Context(), stream, upTo) {
		if err != nil {
			t.Fatalf("load %v back from %d: %v", stream, upTo, err)
		}
		recs = append(recs, r)
	}
	return recs
}

// follow returns the next n records of the log above after.
func follow(t *testing.T, s events.Store, after uint64, n int) []events.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // only a failing test waits for it
	defer cancel()
	var recs []events.Record
	if n == 0 {
		return nil
	}
	for r, err := range s.Follow(ctx, after) {
		if err != nil {
			t.Fatalf("follow after %d: %v", after, err)
		}
		if recs = append(recs, r); len(recs) == n {
			return recs
		}
	}
	t.Fatalf("follow after %d ended with %d of %d records", after, len(recs), n)
	return nil
}

func names(recs []events.Record) []string {
	all := []string{}
	for _, r := range recs {
		all = append(all, r.Event.(events.CredentialRenamed).Name)
	}
	return all
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func is(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got error %v, want %v", what, got, want)
	}
}

func appendAndReadBack(t *testing.T, h Harness) {
	stream := Credential("acme", "c1")
	facts := []events.Event{
		events.CredentialCreated{
			Component: "petstore", Name: "Ünïcode ☂", Workspace: "w",
			Keys: events.KeysVersion{
				Version: 1, SecretID: "s", Fields: []string{"apiKey"}, Revision: 1, Hosts: []string{"example.org"}, HostMAC: "m",
				Verification: events.Verification{Status: events.Verified, Probe: "http", Outcome: "2xx", LatencyMS: 12},
			},
		},
		events.CredentialRenamed{Name: "n"},
		events.CredentialDeleted{},
	}
	meta := Meta("acme", "command-1")
	meta.Time = meta.Time.In(time.FixedZone("", 3600)).Add(321) // stored in UTC and microseconds
	seq, err := h.Store.Append(t.Context(), stream, 0, meta, facts...)
	if err != nil {
		t.Fatal(err)
	}
	meta.Time = Meta("", "").Time
	recs := load(t, h.Store, stream, 0)
	if len(recs) != len(facts) {
		t.Fatalf("%d records, want %d", len(recs), len(facts))
	}
	if recs[0].Meta.Commit == "" {
		t.Error("the commit has no id")
	}
	meta.Commit = recs[0].Meta.Commit
	var want []events.Record
	for i, f := range facts {
		want = append(want, events.Record{Stream: stream, Seq: seq, Index: i, Of: len(facts), Meta: meta, Event: f})
	}
	equal(t, "Stream", recs, want)
	equal(t, "Follow", follow(t, h.Store, 0, len(facts)), want)
	recs, err = h.Store.Commit(t.Context(), seq)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "Commit", recs, want)

	last, err := h.Store.Last(t.Context(), stream)
	if err != nil || last != seq {
		t.Errorf("Last is %d, %v; want %d", last, err, seq)
	}
	if last, err = h.Store.Last(t.Context(), Credential("acme", "none")); err != nil || last != 0 {
		t.Errorf("Last of nothing is %d, %v", last, err)
	}
	if end, err := h.Store.End(t.Context()); err != nil || end != seq {
		t.Errorf("End is %d, %v; want %d", end, err, seq)
	}
	for _, none := range []uint64{0, seq + 1, 1 << 62} {
		_, err := h.Store.Commit(t.Context(), none)
		is(t, fmt.Sprintf("Commit(%d)", none), err, events.ErrNoSuchCommit)
	}
	if recs := load(t, h.Store, Credential("acme", "none"), 0); len(recs) > 0 {
		t.Errorf("a stream that does not exist has %d records", len(recs))
	}
}

func wrongRevision(t *testing.T, h Harness) {
	a, b := Credential("acme", "a"), Credential("acme", "b")
	first := put(t, h.Store, a, 0, "a1")
	other := put(t, h.Store, b, 0, "b1")
	second := put(t, h.Store, a, first, "a2")
	for _, c := range []struct {
		stream   events.StreamID
		expected uint64
	}{
		{a, 0},
		{a, first},
		{a, other},
		{a, second + 1},
		{b, second},
		{b, 0},
		{b, first},
		{Credential("acme", "new"), first},
		{Credential("acme", "new"), 1 << 60},
		{Credential("other", "a"), second},
	} {
		_, err := h.Store.Append(t.Context(), c.stream, c.expected, Meta(c.stream.Tenant, "late"), named("late"))
		is(t, fmt.Sprintf("append to %v after %d", c.stream, c.expected), err, events.ErrConflict)
	}
	put(t, h.Store, a, second, "a3") // a conflict leaves nothing behind
	put(t, h.Store, b, other, "b2")
	equal(t, "log", names(follow(t, h.Store, 0, 5)), []string{"a1", "b1", "a2", "a3", "b2"})
}

func oneRacingWriterWins(t *testing.T, h Harness) {
	const writers, rounds = 8, 12
	stream := Credential("acme", "raced")
	var expected uint64
	var winners []string
	for round := range rounds {
		var (
			racing sync.WaitGroup
			mu     sync.Mutex
			won    []string
			seq    uint64
		)
		start := make(chan struct{})
		for w := range writers {
			racing.Go(func() {
				<-start
				name := fmt.Sprintf("round %d writer %d", round, w)
				got, err := h.Store.Append(t.Context(), stream, expected, Meta("acme", name), named(name))
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won, seq = append(won, name), got
				} else if !errors.Is(err, events.ErrConflict) {
					t.Errorf("a loser got %v", err)
				}
			})
		}
		close(start)
		racing.Wait()
		if len(won) != 1 {
			t.Fatalf("round %d has %d winners: %v", round, len(won), won)
		}
		winners, expected = append(winners, won[0]), seq
	}
	equal(t, "winners", names(load(t, h.Store, stream, 0)), winners)
}

func idsThatNeedAToken(t *testing.T, h Harness) {
	for _, id := range []string{"AAABcID5GBc=", "a.b", "*", ">", "a b", "=", "==", "=AAAA", "日本", strings.Repeat("x", 128), "-", "A", "a"} {
		stream := Credential("acme", id)
		seq := put(t, h.Store, stream, 0, id)
		seq = put(t, h.Store, stream, seq, id+"2")
		recs := load(t, h.Store, stream, 0)
		equal(t, id, names(recs), []string{id, id + "2"})
		equal(t, id, recs[1].Stream, stream)
		if last, err := h.Store.Last(t.Context(), stream); err != nil || last != seq {
			t.Errorf("%q: Last is %d, %v; want %d", id, last, err, seq)
		}
	}
}

func refusedIDs(t *testing.T, h Harness) {
	for _, stream := range []events.StreamID{
		{},
		Credential("", "a"), Credential("a.b", "a"), Credential("*", "a"), Credential("acme", ""), Credential("acme", "a\x00"),
		Credential("acme", "\xff"), Credential("acme", strings.Repeat("x", 129)),
		{Tenant: "acme", Category: "a.b", ID: "a"},
		{Tenant: "acme", Category: ">", ID: "a"},
	} {
		_, err := h.Store.Append(t.Context(), stream, 0, Meta("acme", "c"), named("n"))
		is(t, fmt.Sprintf("append to %q", stream), err, events.ErrID)
		_, err = h.Store.Last(t.Context(), stream)
		is(t, fmt.Sprintf("last of %q", stream), err, events.ErrID)
		for _, err = range h.Store.Stream(t.Context(), stream, 0) {
			is(t, fmt.Sprintf("stream %q", stream), err, events.ErrID)
		}
		for _, err = range h.Store.Back(t.Context(), stream, 0) {
			is(t, fmt.Sprintf("back %q", stream), err, events.ErrID)
		}
	}
}

func refusedCommits(t *testing.T, h Harness) {
	type unknown struct{}
	stream := Credential("acme", "a")
	big := events.ComponentRegistered{Owner: "acme", Descriptor: strings.Repeat("x", events.MaxCommit)}
	_, err := h.Store.Append(t.Context(), stream, 0, Meta("acme", "c"), big)
	is(t, "a large commit", err, events.ErrTooLarge)
	for name, c := range map[string]struct {
		meta events.Meta
		evs  []events.Event
	}{
		"no events":               {Meta("acme", "c"), nil},
		"an event of no type":     {Meta("acme", "c"), []events.Event{named("n"), unknown{}}},
		"another tenant's commit": {Meta("other", "c"), []events.Event{named("n")}},
		"no tenant":               {events.Meta{}, []events.Event{named("n")}},
		"not UTF-8":               {Meta("acme", "c"), []events.Event{named("\xff")}},
	} {
		if _, err := h.Store.Append(t.Context(), stream, 0, c.meta, c.evs...); err == nil {
			t.Errorf("%s was appended", name)
		}
	}
	if end, err := h.Store.End(t.Context()); err != nil || end != 0 {
		t.Errorf("the log ends at %d, %v; want it empty", end, err)
	}
	// The largest that fits goes in and comes out whole, headers and all.
	big.Descriptor = big.Descriptor[:events.MaxCommit-1000]
	seq, err := h.Store.Append(t.Context(), stream, 0, Meta("acme", "c"), big)
	if err != nil {
		t.Fatal(err)
	}
	recs, err := h.Store.Commit(t.Context(), seq)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "large commit", recs[0].Event, events.Event(big))
}

func tenants(t *testing.T, h Harness) {
	var seqs []uint64
	for _, tenant := range []string{"acme", "Acme", "umbrella"} {
		seqs = append(seqs, put(t, h.Store, Credential(tenant, "same"), 0, tenant))
	}
	for i, tenant := range []string{"acme", "Acme", "umbrella"} {
		equal(t, tenant, names(load(t, h.Store, Credential(tenant, "same"), 0)), []string{tenant})
		if last, err := h.Store.Last(t.Context(), Credential(tenant, "same")); err != nil || last != seqs[i] {
			t.Errorf("Last of %s is %d, %v; want %d", tenant, last, err, seqs[i])
		}
	}
}

func systemStreams(t *testing.T, h Harness) {
	stream := events.StreamID{Tenant: events.System, Category: "component", ID: "petstore"}
	want := events.ComponentRegistered{Owner: "acme", Title: "Petstore", Descriptor: "{}"}
	if _, err := h.Store.Append(t.Context(), stream, 0, Meta("acme", "c"), want); err != nil {
		t.Fatal(err)
	}
	recs := load(t, h.Store, stream, 0)
	if len(recs) != 1 || recs[0].Meta.Tenant != "acme" || recs[0].Event != events.Event(want) {
		t.Errorf("read back %+v", recs)
	}
}

// longStream has more commits than any message can name as its predecessors,
// among those of other streams, and two events in every fifth commit.
func longStream(t *testing.T, h Harness) {
	const n = 123
	stream, other := Credential("acme", "long"), Credential("acme", "other")
	var want []string
	var seqs []uint64 // of each wanted record
	var last, lastOther uint64
	for i := range n {
		evs := []events.Event{named(fmt.Sprint(i))}
		if i%5 == 0 {
			evs = append(evs, named(fmt.Sprint(i, " again")))
		}
		var err error
		if last, err = h.Store.Append(t.Context(), stream, last, Meta("acme", fmt.Sprint(i)), evs...); err != nil {
			t.Fatal(err)
		}
		for _, e := range evs {
			want, seqs = append(want, e.(events.CredentialRenamed).Name), append(seqs, last)
		}
		if i%3 == 0 {
			lastOther = put(t, h.Store, other, lastOther, fmt.Sprint("other ", i))
		}
	}
	check := func(s events.Store) {
		t.Helper()
		for _, after := range h.around(last, seqs) {
			from := len(seqs)
			for i, seq := range seqs {
				if seq > after {
					from = i
					break
				}
			}
			if diff := cmp.Diff(want[from:], names(load(t, s, stream, after))); diff != "" {
				t.Fatalf("after %d (-want +got):\n%s", after, diff)
			}
			if after == 0 {
				from = len(want) // of everything
			}
			back := slices.Clone(want[:from])
			slices.Reverse(back)
			if diff := cmp.Diff(back, names(loadBack(t, s, stream, after))); diff != "" {
				t.Fatalf("back from %d (-want +got):\n%s", after, diff)
			}
		}
	}
	check(h.Store)
	for range h.Store.Stream(t.Context(), stream, 0) {
		break // a reader may leave early
	}
	for range h.Store.Back(t.Context(), stream, 0) {
		break
	}
	if h.Restart != nil { // and so does a store that remembers nothing
		s := h.Restart(t)
		check(s)
		put(t, s, stream, last, "more")
		equal(t, "one more", names(load(t, s, stream, last)), []string{"more"})
	}
}

// around returns the sequences to read after: all up to one beyond last, or, of a sparse store, those
// of commits and the numbers before them.
func (h Harness) around(last uint64, seqs []uint64) []uint64 {
	var all []uint64
	if !h.Sparse {
		for seq := range last + 2 {
			all = append(all, seq)
		}
		return all
	}
	all = append(all, 0)
	for i, seq := range seqs {
		if i < 10 || i%13 == 0 || i > len(seqs)-3 {
			all = append(all, seq-1, seq)
		}
	}
	return slices.Compact(all)
}

// fill appends n commits over a few streams, some with two events, and returns
// every record of the log.
func fill(t *testing.T, s events.Store, n int) []events.Record {
	t.Helper()
	heads := map[events.StreamID]uint64{}
	total := 0
	for i := range n {
		stream := Credential("acme", fmt.Sprint("stream", i%3))
		evs := []events.Event{named(fmt.Sprint(i))}
		if i%2 == 1 {
			evs = append(evs, named(fmt.Sprint(i, " again")))
		}
		seq, err := s.Append(t.Context(), stream, heads[stream], Meta("acme", fmt.Sprint(i)), evs...)
		if err != nil {
			t.Fatal(err)
		}
		heads[stream] = seq
		total += len(evs)
	}
	return follow(t, s, 0, total)
}

func above(recs []events.Record, after uint64) []events.Record {
	for i, r := range recs {
		if r.Seq > after {
			return recs[i:]
		}
	}
	return nil
}

func followFromEverywhere(t *testing.T, h Harness) {
	all := fill(t, h.Store, 9)
	var seq uint64
	var seqs []uint64
	for _, r := range all {
		if r.Index == 0 {
			if r.Seq <= seq {
				t.Errorf("a commit of sequence %d comes after %d", r.Seq, seq)
			}
			seq++
			if h.Sparse {
				seq = r.Seq
			}
			seqs = append(seqs, seq)
		}
		if r.Seq != seq {
			t.Errorf("a record of commit %d has sequence %d", seq, r.Seq)
		}
	}
	for _, after := range h.around(all[len(all)-1].Seq-1, seqs) {
		want := above(all, after)
		equal(t, fmt.Sprint("after ", after), follow(t, h.Store, after, len(want)), append([]events.Record(nil), want...))
	}
}

// followResumed leaves after 1, 2, 3, ... commits and goes on where it was.
func followResumed(t *testing.T, h Harness) {
	all := fill(t, h.Store, 15)
	end := all[len(all)-1].Seq
	var got []events.Record
	var seqs []uint64
	for _, r := range all {
		if r.Index == 0 {
			seqs = append(seqs, r.Seq)
		}
	}
	for after, step := uint64(0), 1; after < end; step++ {
		ctx, cancel := context.WithCancel(t.Context())
		stopAt := seqs[min(slices.Index(seqs, after)+step, len(seqs)-1)] // of -1, before the first
		for r, err := range h.Store.Follow(ctx, after) {
			if err != nil {
				t.Fatal(err)
			}
			if r.Seq > stopAt {
				t.Fatalf("commit %d came after the end of commit %d cancelled", r.Seq, stopAt)
			}
			if got = append(got, r); r.Seq == stopAt {
				cancel() // in the midst of a commit, perhaps: the rest of it still comes
			}
		}
		cancel()
		after = stopAt
	}
	equal(t, "all in all", got, all)
}

func followLive(t *testing.T, h Harness) {
	const writers, each = 4, 25
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // only a failing test waits for it
	defer cancel()
	first := put(t, h.Store, Credential("acme", "first"), 0, "first")
	started := make(chan struct{})
	var writing sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			<-started
			var last uint64
			for i := range each {
				var err error
				name := fmt.Sprintf("%d/%d", w, i)
				if last, err = h.Store.Append(ctx, Credential("acme", fmt.Sprint("w", w)), last, Meta("acme", name), named(name)); err != nil {
					t.Errorf("append %s: %v", name, err)
					return
				}
			}
		})
	}
	next := make([]int, writers)
	seen, prior := 0, uint64(0)
	for r, err := range h.Store.Follow(ctx, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Seq != first+uint64(seen) && (!h.Sparse || r.Seq <= prior) {
			t.Fatalf("record %d has sequence %d", seen, r.Seq)
		}
		prior = r.Seq
		if seen++; seen == 1 {
			close(started) // what follows is appended while we follow
			continue
		}
		var w, i int
		if _, err := fmt.Sscanf(r.Event.(events.CredentialRenamed).Name, "%d/%d", &w, &i); err != nil || i != next[w] {
			t.Fatalf("writer %d: got %d, want %d (%v)", w, i, next[w], err)
		}
		if next[w]++; seen == 1+writers*each {
			break
		}
	}
	writing.Wait()
	equal(t, "seen", seen, 1+writers*each)
}

func followBeyondTheEnd(t *testing.T, h Harness) {
	stream := Credential("acme", "a")
	last := put(t, h.Store, stream, 0, "1")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var writing sync.WaitGroup
	if h.Sparse { // nobody knows a sequence that is not there yet
		writing.Go(func() { put(t, h.Store, stream, last, "2") })
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		for r, err := range h.Store.Follow(ctx, 1<<40) {
			t.Errorf("beyond the end came commit %d, %v", r.Seq, err)
		}
		writing.Wait()
		return
	}
	writing.Go(func() {
		for i := range 3 {
			var err error
			if last, err = h.Store.Append(ctx, stream, last, Meta("acme", "c"), named(fmt.Sprint(i+2))); err != nil {
				t.Errorf("append: %v", err)
				return
			}
		}
	})
	for r, err := range h.Store.Follow(ctx, 3) {
		if err != nil || r.Seq != 4 {
			t.Errorf("got commit %d, %v; want 4", r.Seq, err)
		}
		break
	}
	writing.Wait()
}

func followEnds(t *testing.T, h Harness) {
	put(t, h.Store, Credential("acme", "a"), 0, "1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for r, err := range h.Store.Follow(ctx, 0) {
		t.Errorf("a context that has ended yields %v, %v", r, err)
	}
}

func beforeTheLast(t *testing.T, h Harness) {
	var seqs []uint64
	for _, r := range fill(t, h.Store, 40) {
		seqs = append(seqs, r.Seq)
	}
	seqs = slices.Compact(seqs)
	for _, n := range []int{0, 1, 2, 33, len(seqs) - 1, len(seqs), len(seqs) + 1} {
		before, err := h.Store.Before(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		above := 0
		for _, seq := range seqs {
			if seq > before {
				above++
			}
		}
		equal(t, fmt.Sprintf("commits above Before(%d)", n), above, min(n, len(seqs)))
	}
}

func waitDurable(t *testing.T, h Harness) {
	for range 3 {
		end, err := h.Store.End(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for seq := range min(end, 5) + 1 {
			if err := h.Store.WaitDurable(t.Context(), seq); err != nil {
				t.Errorf("waiting for %d of %d: %v", seq, end, err)
			}
		}
		is(t, "waiting beyond the end", h.Store.WaitDurable(t.Context(), end+1), events.ErrNoSuchCommit)
		put(t, h.Store, Credential("acme", fmt.Sprint("s", end)), 0, "n")
	}
}

func snapshots(t *testing.T, h Harness) {
	s, ctx := h.Store, t.Context()
	stream := Credential("acme", "AAABcID5GBc=")
	snap := func(fold int) events.Snapshot {
		t.Helper()
		got, err := s.Snapshot(ctx, stream, fold)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	save := func(v events.Snapshot) {
		t.Helper()
		if err := s.SaveSnapshot(ctx, stream, v); err != nil {
			t.Fatal(err)
		}
	}
	none := events.Snapshot{}
	equal(t, "snapshot of nothing", snap(1), none)

	first := put(t, s, stream, 0, "1")
	foreign := put(t, s, Credential("other", stream.ID), 0, "x")
	second := put(t, s, stream, first, "2")
	third := put(t, s, stream, second, "3")
	id := func(seq uint64) string {
		t.Helper()
		recs, err := s.Commit(ctx, seq)
		if err != nil {
			t.Fatal(err)
		}
		return recs[0].Meta.Commit
	}
	at := func(seq uint64, fold int, state string) events.Snapshot {
		return events.Snapshot{Seq: seq, Commit: id(seq), Fold: fold, State: json.RawMessage(state)}
	}

	// A snapshot older than the stream: the rest is loaded from there.
	save(at(second, 1, `{"name":"2"}`))
	equal(t, "older", snap(1), at(second, 1, `{"name":"2"}`))
	equal(t, "rest", names(load(t, s, stream, snap(1).Seq)), []string{"3"})
	// As new as the stream, so newer than what a caller may have kept.
	save(at(third, 1, `{"name":"3"}`))
	equal(t, "newer", snap(1), at(third, 1, `{"name":"3"}`))
	equal(t, "rest", names(load(t, s, stream, snap(1).Seq)), []string{})
	// Made by another fold.
	equal(t, "another fold", snap(2), none)
	save(at(third, 2, `[]`))
	equal(t, "the fold's own", snap(2), at(third, 2, `[]`))
	equal(t, "the old fold", snap(1), none)
	// What the log does not bear out: another commit there, another stream's, ahead of the log.
	save(events.Snapshot{Seq: third, Commit: id(second), Fold: 2, State: json.RawMessage(`{}`)})
	equal(t, "another commit", snap(2), none)
	save(at(foreign, 2, `{}`))
	equal(t, "another stream's commit", snap(2), none)
	if err := s.SaveSnapshot(ctx, stream, events.Snapshot{Seq: third + 1, Commit: id(third), Fold: 2, State: json.RawMessage(`{}`)}); err == nil {
		t.Error("a snapshot ahead of the log was saved")
	}
	equal(t, "ahead of the log", snap(2), none)
	// One tenant's snapshot is not another's.
	save(at(third, 2, `{}`))
	if got, err := s.Snapshot(ctx, Credential("other", stream.ID), 2); err != nil || got.Seq != 0 {
		t.Errorf("another tenant has snapshot %+v, %v", got, err)
	}
	is(t, "a large state", s.SaveSnapshot(ctx, stream, at(third, 2, `"`+strings.Repeat("x", events.MaxCommit)+`"`)), events.ErrTooLarge)

	if h.Restart != nil {
		s = h.Restart(t)
		equal(t, "after a restart", snap(2), at(third, 2, `{}`))
	}
}

func cancelled(t *testing.T, h Harness) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	stream := Credential("acme", "a")
	if _, err := h.Store.Append(ctx, stream, 0, Meta("acme", "c"), named("n")); err == nil {
		t.Error("a call whose time is up says that it appended")
	}
	put(t, h.Store, stream, 0, "next") // it was not even sent
}

func restart(t *testing.T, h Harness) {
	if h.Restart == nil {
		t.Skip("this store has nothing to restart")
	}
	all := fill(t, h.Store, 12)
	s := h.Restart(t)
	equal(t, "the log", follow(t, s, 0, len(all)), all)
	stream := Credential("acme", "stream0")
	last, err := s.Last(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Append(t.Context(), stream, 0, Meta("acme", "c"), named("n"))
	is(t, "append to an old stream as if new", err, events.ErrConflict)
	seq := put(t, s, stream, last, "after")
	if want := all[len(all)-1].Seq + 1; seq != want && !h.Sparse || seq < want {
		t.Errorf("the next commit has sequence %d, want %d", seq, want)
	}
	equal(t, "resumed", names(follow(t, s, seq-1, 1)), []string{"after"})
}
