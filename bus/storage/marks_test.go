package storage_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/storage"
)

const storeFailed jetstream.ErrorCode = 10049 // JSStreamStoreFailedF of the server

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
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			stream, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s.*"}})
			// The server deletes the files of an earlier stream of that name later.
			if api := (*jetstream.APIError)(nil); errors.As(err, &api) && api.ErrorCode == storeFailed && time.Now().Before(end) {
				continue
			}
			return bustest.Must(stream, err)(t)
		}
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
	if err := open().Record(ctx); !errors.Is(err, storage.ErrStoredIncomplete) {
		t.Errorf("the marks are written over the proof of a loss: %v", err)
	}
	check("after an attempt to record the loss", true)

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
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

// A stream whose messages only expire has no gaps, and loses its oldest ones not before their time.
func TestMarksOfExpiringMessages(t *testing.T) {
	n := bustest.StartNode(t)
	conn := bustest.Must(n.Conn("test"))(t)
	js := bustest.Must(jetstream.New(conn))(t)
	ctx := t.Context()
	for name, row := range map[string]struct {
		age     time.Duration
		lose    []uint64
		damaged bool
	}{
		"nothing":            {time.Hour, nil, false},
		"without expiry":     {0, nil, false},
		"the oldest":         {time.Hour, []uint64{1, 2}, true},
		"one without expiry": {0, []uint64{1}, true},
		"one in the middle":  {time.Hour, []uint64{3}, true},
		"all":                {time.Hour, []uint64{1, 2, 3, 4, 5}, true},
		"expired ones":       {100 * time.Millisecond, nil, false},
	} {
		// The server deletes the files of a stream later, so each stream has a name of its own.
		id := strings.ReplaceAll(name, " ", "-")
		stream := bustest.Must(js.CreateStream(ctx, jetstream.StreamConfig{Name: id, Subjects: []string{id + ".*"}, MaxAge: row.age}))(t)
		for range 5 {
			bustest.Must(js.Publish(ctx, id+".a", []byte("x")))(t)
		}
		path := filepath.Join(t.TempDir(), "marks.json")
		open := func() *storage.Marks {
			return bustest.Must(storage.OpenMarks(path, js, slog.New(slog.DiscardHandler), storage.Marked{Stream: id, OnlyExpires: true}))(t)
		}
		if err := open().Record(ctx); err != nil {
			t.Fatal(err)
		}
		for _, seq := range row.lose {
			if err := stream.DeleteMsg(ctx, seq); err != nil {
				t.Fatal(err)
			}
		}
		for end := time.Now().Add(5 * time.Second); row.age < time.Second && row.age > 0 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if bustest.Must(stream.Info(ctx))(t).State.Msgs == 0 {
				break
			}
		}
		for _, err := range []error{open().Check(ctx), open().Record(ctx)} {
			if errors.Is(err, storage.ErrStoredIncomplete) != row.damaged || err != nil && !row.damaged {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
