package storage_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/bus/storage"
)

// Changes that the server makes to its files are no damage, others are.
func TestScrubber(t *testing.T) {
	dir := t.TempDir()
	n := bustest.Must(natsserver.StartNode(t.Context(), natsserver.NodeConfig{Dir: dir}))(t)
	defer func() { _ = n.Shutdown(t.Context()) }()
	js := bustest.Must(jetstream.New(bustest.Must(n.Conn("test"))(t)))(t)
	ctx := t.Context()
	for _, name := range []string{"GROWS", "ERASES"} {
		bustest.Must(js.CreateStream(ctx, jetstream.StreamConfig{Name: name, Subjects: []string{name}}))(t)
	}
	put := func(stream string) {
		for range 50 {
			bustest.Must(js.Publish(ctx, stream, make([]byte, 1000)))(t)
		}
	}
	s := &storage.Scrubber{
		Streams: natsserver.StreamsDir(dir), Kept: []string{"GROWS", "ERASES"}, Grows: []string{"GROWS"}, Whole: []string{"GROWS"},
		Durable: func(string) uint64 { return 50 },
	}
	check := func(when string, damaged bool) {
		t.Helper()
		for range 2 {
			if err := s.Check(ctx); errors.Is(err, storage.ErrStoredChanged) != damaged || err != nil && !damaged {
				t.Errorf("%s: %v", when, err)
			}
		}
	}
	put("GROWS")
	put("ERASES")
	check("at first", false)
	put("GROWS")
	put("ERASES")
	check("with more", false)
	erases := bustest.Must(js.Stream(ctx, "ERASES"))(t)
	for seq := uint64(2); seq < 60; seq += 2 {
		if err := erases.SecureDeleteMsg(ctx, seq); err != nil {
			t.Fatal(err)
		}
		if seq%20 == 0 {
			check("with erased messages", false)
		}
	}
	if err := erases.Purge(ctx); err != nil {
		t.Fatal(err)
	}
	check("with all messages erased", false) // on purpose or not shows in the marks
	put("ERASES")
	bustest.Must(js.UpdateStream(ctx, jetstream.StreamConfig{Name: "ERASES", Subjects: []string{"ERASES", "more"}}))(t)
	check("with another configuration", false)

	block := filepath.Join(s.Streams, "GROWS", "msgs", "1.blk")
	whole := bustest.Must(os.ReadFile(block))(t)
	write := func(path string, b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(b []byte) []byte{
		"a flipped bit":        func(b []byte) []byte { b[200] ^= 1; return b },
		"a flag of headers":    func(b []byte) []byte { b[3] ^= 0x80; return b },
		"zeros":                func(b []byte) []byte { clear(b[5000:9096]); return b },
		"a cut tail":           func(b []byte) []byte { return b[:len(b)-1] },
		"an older end":         func(b []byte) []byte { return b[:len(b)/2] },
		"nothing":              func([]byte) []byte { return nil },
		"a durable end zeroed": func(b []byte) []byte { clear(b[len(b)/4:]); return b },
	} {
		write(block, change(append([]byte(nil), whole...)))
		check(name, true)
		write(block, whole)
		check("without "+name, false)
	}
	meta := filepath.Join(s.Streams, "GROWS", "meta.inf")
	was := bustest.Must(os.ReadFile(meta))(t)
	write(meta, was[:len(was)-1])
	check("a damaged description", true)
	write(meta, was)
	check("the description again", false)
	write(block+".new", whole)
	if err := os.Rename(block+".new", block); err != nil {
		t.Fatal(err)
	}
	check("a replaced file", true)
	s.Forget()
	check("after a restart of the server", false)
	if err := os.Remove(block); err != nil {
		t.Fatal(err)
	}
	check("a missing file", true)
}
