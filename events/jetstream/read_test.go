package jetstream_test

import (
	"fmt"
	"iter"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/events/storetest"
)

// Who reads a page of a long stream makes the server send the page, and one commit in
// fifty to find it.
func TestPageOfALongStream(t *testing.T) {
	const commits, page = 1500, 10
	n := startNode(t, t.TempDir())
	nc := n.connect(t)
	s := openStore(t, jetstream.Config{Conn: nc})
	stream := storetest.Credential("acme", "long")
	var seqs []uint64
	var last uint64
	for i := range commits {
		last = appendTo(t, s, stream, last, fmt.Sprint(i))
		seqs = append(seqs, last)
	}
	for _, c := range []struct {
		name string
		of   func() []uint64
		want []uint64
	}{
		{"the first", func() []uint64 { return pageOf(t, s.Stream(t.Context(), stream, 0), page) }, seqs[:page]},
		{"in the middle", func() []uint64 { return pageOf(t, s.Stream(t.Context(), stream, seqs[700]), page) }, seqs[701 : 701+page]},
		{"the last", func() []uint64 { return pageOf(t, s.Stream(t.Context(), stream, seqs[commits-page-1]), page) }, seqs[commits-page:]},
		{"back from the end", func() []uint64 { return pageOf(t, s.Back(t.Context(), stream, 0), page) }, reversed(seqs[commits-page:])},
		{"back from the middle", func() []uint64 { return pageOf(t, s.Back(t.Context(), stream, seqs[700]), page) }, reversed(seqs[701-page : 701])},
	} {
		before := nc.Stats().InMsgs
		if diff := cmp.Diff(c.want, c.of()); diff != "" {
			t.Errorf("%s page (-want +got):\n%s", c.name, diff)
		}
		if sent := nc.Stats().InMsgs - before; sent > commits/50+50+2*page {
			t.Errorf("%s page of %d commits took %d messages", c.name, page, sent)
		}
	}
}

func reversed(seqs []uint64) []uint64 {
	seqs = slices.Clone(seqs)
	slices.Reverse(seqs)
	return seqs
}

// A commit that names a predecessor of another stream, or one that is not there, or too
// few, ends the reading with an error, whichever way it goes.
func TestBrokenChain(t *testing.T) {
	n := startNode(t, t.TempDir())
	nc := n.connect(t)
	s := openStore(t, jetstream.Config{Conn: nc})
	meta := storetest.Meta("acme", "c")
	other := appendTo(t, s, storetest.Credential("acme", "other"), 0, "other")
	for _, c := range []struct {
		name string
		prev func(first, second uint64) string
	}{
		{"of another stream", func(_, _ uint64) string { return fmt.Sprint(other) }},
		{"of another stream behind its own", func(_, second uint64) string { return fmt.Sprintf("%d,%d", second, other) }},
		{"too few", func(_, second uint64) string { return fmt.Sprint(second) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			stream := storetest.Credential("acme", events.NewID())
			first := appendTo(t, s, stream, 0, "first")
			second := appendTo(t, s, stream, first, "second")
			meta.Commit = events.NewID()
			body, err := events.All().EncodeCommit(meta, []events.Event{renamed("third")})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := js(t, nc).PublishMsg(t.Context(), &nats.Msg{
				Subject: stream.Subject(jetstream.Prefix), Data: body,
				Header: nats.Header{"Cs-Format": {"1"}, "Cs-Commit": {meta.Commit}, "Cs-Prev": {c.prev(first, second)}},
			}); err != nil {
				t.Fatal(err)
			}
			fresh := openStore(t, jetstream.Config{Conn: nc}) // knows no sequences
			for name, read := range map[string]func() error{
				"forward": func() (last error) {
					for _, err := range fresh.Stream(t.Context(), stream, 0) {
						last = err
					}
					return last
				},
				"back": func() (last error) {
					for _, err := range fresh.Back(t.Context(), stream, 0) {
						last = err
					}
					return last
				},
			} {
				if err := read(); err == nil {
					t.Errorf("%s: read without an error", name)
				}
			}
		})
	}
}

// pageOf is the sequences of the first n records.
func pageOf(t *testing.T, recs iter.Seq2[events.Record, error], n int) (seqs []uint64) {
	t.Helper()
	for r, err := range recs {
		if err != nil {
			t.Fatal(err)
		}
		if seqs = append(seqs, r.Seq); len(seqs) == n {
			break
		}
	}
	return seqs
}
