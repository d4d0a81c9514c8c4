package storage_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/storage"
)

// The marks of a stream bear out what was deleted on purpose, and notice what was not.
func TestMarks(t *testing.T) {
	n := bustest.StartNode(t)
	conn, err := n.Conn("test")
	if err != nil {
		t.Fatal(err)
	}
	js := bustest.Must(jetstream.New(conn))(t)
	ctx := t.Context()
	create := func() jetstream.Stream {
		return bustest.Must(js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s.*"}}))(t)
	}
	stream := create()
	put := func() uint64 { return bustest.Must(js.Publish(ctx, "s.a", []byte("x")))(t).Sequence }
	path := filepath.Join(t.TempDir(), "marks.json")
	open := func() *storage.Marks {
		return bustest.Must(storage.OpenMarks(path, js, slog.New(slog.DiscardHandler), storage.Marked{Stream: "S", Exact: true, Durable: n.Syncer("S").Wait}))(t)
	}
	check := func(when string, damaged bool) {
		t.Helper()
		if err := open().Check(ctx); errors.Is(err, storage.ErrStoredIncomplete) != damaged || err != nil && !damaged {
			t.Errorf("%s: %v", when, err)
		}
	}
	record := func(m *storage.Marks) {
		t.Helper()
		if err := m.Record(ctx); err != nil {
			t.Fatal(err)
		}
	}

	check("without a mark", false)
	for range 300 {
		put()
	}
	m := open()
	record(m)
	check("as it was", false)
	put()
	check("with more", false)

	for seq := uint64(1); seq <= 280; seq++ { // more than are allowed for at once
		done := bustest.Must(m.Deleting(ctx))(t)
		if err := stream.DeleteMsg(ctx, seq); err != nil {
			t.Fatal(err)
		}
		done(true)
		if seq%70 == 0 {
			check(fmt.Sprint("after deleting ", seq), false)
		}
	}
	done := bustest.Must(m.Deleting(ctx))(t)
	record(m) // beside one under way
	if err := stream.DeleteMsg(ctx, 281); err != nil {
		t.Fatal(err)
	}
	done(true)
	check("after one under way", false)
	record(m)
	check("after all of them", false)

	done = bustest.Must(m.Deleting(ctx))(t)
	done(false)
	record(m)
	if err := stream.DeleteMsg(ctx, 282); err != nil {
		t.Fatal(err)
	}
	check("after one that came late", false)
	record(open())
	if err := stream.DeleteMsg(ctx, 283); err != nil {
		t.Fatal(err)
	}
	check("after one that nobody deleted", true)

	record(open())
	if err := js.DeleteStream(ctx, "S"); err != nil {
		t.Fatal(err)
	}
	check("without the stream", true)
	create()
	check("with another stream", true)

	for _, content := range []string{"", "{", `{"format":2}`} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := storage.OpenMarks(path, js, nil); !errors.Is(err, storage.ErrMarks) {
			t.Errorf("marks %q: %v", content, err)
		}
	}
}
