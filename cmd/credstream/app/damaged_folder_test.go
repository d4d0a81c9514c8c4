package app

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/bus/streams"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/vault"
)

// installation is a data folder of a service that has stopped, and what it acknowledged.
type installation struct {
	data  string
	older string // a copy, made before the last credential
	ids   []string
}

// install makes a data folder with a few credentials.
func install(t *testing.T, credentials int) installation {
	t.Helper()
	in := installation{data: t.TempDir(), older: t.TempDir()}
	u := bring(t, in.data)
	registerPlain(t, u.base)
	must(t, u.command("tenant.register", "", map[string]any{"id": "acme"}, nil))
	u.settle(t)
	nc := u.connect(t, adminKey) // and a consumer, which is kept once it has delivered something
	js, err := jetstream.New(nc)
	must(t, err)
	consumer, err := js.Consumer(t.Context(), streams.FeedStream, streams.EngineConsumer("default"))
	must(t, err)
	first, err := consumer.Next(jetstream.FetchMaxWait(time.Minute))
	must(t, err)
	must(t, first.DoubleAck(t.Context()))
	for i := range credentials {
		if i == credentials-1 {
			u.settle(t)
			u.stop()
			copyFolder(t, in.older, in.data)
			u = bring(t, in.data)
		}
		in.ids = append(in.ids, u.create(t))
	}
	u.settle(t)
	u.stop()
	return in
}

// copyFolder copies a data folder. The service opens no key file that others can read.
func copyFolder(t *testing.T, to, from string) {
	t.Helper()
	must(t, os.CopyFS(to, os.DirFS(from)))
	must(t, os.Chmod(filepath.Join(to, "kms.key"), 0o600))
}

// settle waits until everything made from the log is at its end.
func (u *up) settle(t *testing.T) {
	t.Helper()
	end, err := u.store.End(t.Context())
	must(t, err)
	must(t, u.proj.Wait(t.Context(), end))
	within(t, "the feeds are at the end of the log", func() bool { return u.feed.Position() >= end && u.audit.Position() >= end })
}

// The kinds of damage. Each changes the file or folder at a path of the copy of an
// installation; the other installation and the older copy have one at the same path.
var damages = map[string]func(path, other, older string) error{
	"whole":   func(string, string, string) error { return nil },
	"missing": func(path, _, _ string) error { return os.RemoveAll(path) },
	"empty":   func(path, _, _ string) error { return os.WriteFile(path, nil, 0o600) },
	"half": func(path, _, _ string) error {
		return rewrite(path, func(b []byte) []byte { return b[:len(b)/2] })
	},
	"a byte short": func(path, _, _ string) error {
		return rewrite(path, func(b []byte) []byte { return b[:len(b)-1] })
	},
	"a bit flipped": func(path, _, _ string) error {
		return rewrite(path, func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	},
	"garbage": func(path, _, _ string) error {
		return rewrite(path, func(b []byte) []byte { return bytes.Repeat([]byte{0xa5, 0x5a, 0x17}, len(b)/3+1) })
	},
	"of another installation": func(path, other, _ string) error { return replaceBy(path, other) },
	"an older copy":           func(path, _, older string) error { return replaceBy(path, older) },
	"a folder": func(path, _, _ string) error {
		return errors.Join(os.Remove(path), os.Mkdir(path, 0o700))
	},
}

func rewrite(path string, change func([]byte) []byte) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, change(b), 0o600)
}

func replaceBy(path, from string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return errors.Join(os.RemoveAll(path), os.CopyFS(path, os.DirFS(from)))
	}
	b, err := os.ReadFile(from)
	return errors.Join(err, os.WriteFile(path, b, 0o600))
}

// Whatever is damaged in a data folder, a start ends: the service is ready and holds all
// that it acknowledged, or it refuses to start, or writes nothing and says why.
func TestStartsOnDamagedFolders(t *testing.T) {
	one, other := install(t, 3), install(t, 3)
	stream := func(name string, rest ...string) string {
		return filepath.Join(append([]string{"nats", "jetstream", natsserver.Account, "streams", name}, rest...)...)
	}
	block := func(name string) string { return stream(name, "msgs", "1.blk") }
	all := []string{"missing", "empty", "half", "a byte short", "a bit flipped", "garbage", "of another installation", "an older copy", "a folder"}
	small := []string{"missing", "empty", "half", "garbage", "of another installation", "an older copy", "a folder"}
	rows := 0
	begun := time.Now() // a start is meant to end within 20 s; on a busy machine every one takes longer
	whole := t.TempDir()
	copyFolder(t, whole, one.data)
	startsOrSaysWhy(t, whole, one.ids, 2*time.Minute)
	limit := max(20*time.Second, 20*time.Since(begun))
	for _, row := range []struct {
		path  string
		kinds []string
	}{
		{"the folder", []string{"whole"}},
		{block(eventlog.Stream), all},
		{block(vault.Stream), all},
		{block(keyStream), all},
		{block(streams.FeedStream), []string{"missing", "a bit flipped", "garbage", "an older copy"}},
		{stream(eventlog.Stream, "msgs", "index.db"), []string{"missing", "a bit flipped", "garbage", "of another installation", "an older copy", "a folder"}},
		{stream(eventlog.Stream, "meta.inf"), []string{"missing", "empty", "a bit flipped", "a folder"}},
		{stream(eventlog.Stream, "meta.sum"), []string{"missing", "garbage"}},
		{stream(vault.Stream, "meta.inf"), []string{"of another installation"}},
		{stream(streams.FeedStream, "obs", "engine-default", "meta.inf"), []string{"missing", "garbage"}},
		{stream(streams.FeedStream, "obs", "engine-default", "o.dat"), []string{"missing", "garbage"}},
		{stream(eventlog.Stream), []string{"missing", "of another installation", "an older copy"}},
		{stream(vault.Stream), []string{"missing", "of another installation", "an older copy"}},
		{stream(keyStream), []string{"missing"}},
		{stream(streams.FeedStream), []string{"missing", "of another installation"}},
		{"nats", []string{"missing", "of another installation", "an older copy"}},
		{"views.db", []string{"missing", "empty", "half", "a bit flipped", "garbage", "of another installation", "an older copy"}},
		{"kms.key", []string{"missing", "empty", "half", "garbage", "of another installation", "a folder"}},
		{"marks.json", small},
		{"high-water.json", small},
		{"LOCK", []string{"missing", "garbage", "a folder"}},
	} {
		for _, kind := range row.kinds {
			rows++
			t.Run(row.path+" "+kind, func(t *testing.T) {
				t.Parallel()
				data := t.TempDir()
				copyFolder(t, data, one.data)
				must(t, damages[kind](filepath.Join(data, row.path), filepath.Join(other.data, row.path), filepath.Join(one.older, row.path)))
				how := startsOrSaysWhy(t, data, one.ids, limit)
				t.Log(how)
				if kind == "whole" && how != "ready" {
					t.Error("the whole folder:", how)
				}
			})
		}
	}
	if rows < 68 {
		t.Errorf("%d rows", rows)
	}
	// Two at a time: what one of them would prove the other one may hide.
	for _, pair := range [][2][2]string{
		{{block(eventlog.Stream), "an older copy"}, {"high-water.json", "missing"}},
		{{block(eventlog.Stream), "an older copy"}, {"views.db", "missing"}},
		{{block(eventlog.Stream), "an older copy"}, {block(streams.FeedStream), "an older copy"}},
		{{block(eventlog.Stream), "half"}, {block(vault.Stream), "half"}},
		{{block(eventlog.Stream), "missing"}, {"kms.key", "missing"}},
		{{block(vault.Stream), "an older copy"}, {"views.db", "garbage"}},
		{{block(vault.Stream), "missing"}, {block(keyStream), "missing"}},
		{{block(keyStream), "missing"}, {"kms.key", "missing"}},
		{{"nats", "an older copy"}, {"high-water.json", "an older copy"}},
		{{"nats", "an older copy"}, {"marks.json", "missing"}},
		{{"nats", "missing"}, {"views.db", "missing"}},
		{{"views.db", "half"}, {block(streams.FeedStream), "garbage"}},
		{{"marks.json", "garbage"}, {"high-water.json", "garbage"}},
		{{"marks.json", "missing"}, {"high-water.json", "missing"}},
	} {
		t.Run(pair[0][0]+" "+pair[0][1]+" and "+pair[1][0]+" "+pair[1][1], func(t *testing.T) {
			t.Parallel()
			data := t.TempDir()
			copyFolder(t, data, one.data)
			for _, d := range pair {
				must(t, damages[d[1]](filepath.Join(data, d[0]), filepath.Join(other.data, d[0]), filepath.Join(one.older, d[0])))
			}
			t.Log(startsOrSaysWhy(t, data, one.ids, limit))
		})
	}
	// A file that cannot be written to, as one process must not find out by itself alone.
	for _, path := range []string{".", "nats", block(eventlog.Stream), block(vault.Stream), "views.db", "kms.key", "marks.json", "high-water.json", "LOCK"} {
		t.Run(path+" read-only", func(t *testing.T) {
			t.Parallel()
			data := t.TempDir()
			copyFolder(t, data, one.data)
			readOnly(t, filepath.Join(data, path))
			t.Log(startsOrSaysWhy(t, data, one.ids, limit))
		})
	}
}

// readOnly has nobody write at a path until the test has ended.
func readOnly(t *testing.T, path string) {
	t.Helper()
	if err := syscall.Mount(path, path, "", syscall.MS_BIND, ""); err != nil {
		t.Skip("what a read-only file does is not tried: mounting it needs root:", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	must(t, syscall.Mount("", path, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
}

// startsOrSaysWhy starts a service on a folder which may be damaged, and holds it to what it
// acknowledged.
func startsOrSaysWhy(t *testing.T, data string, ids []string, limit time.Duration) (how string) {
	t.Helper()
	cfg := Config{
		Data: data, HTTP: "127.0.0.1:0", NATSListen: "127.0.0.1:0", AdminKey: adminKey, Durability: "group",
		AllowPrivateTargets: true, LogFormat: "json", LogLevel: "info",
	}
	logs := &bustest.LogBuffer{}
	type started struct {
		p   *program
		err error
	}
	end := make(chan started, 1)
	go func() {
		p, err := start(context.WithoutCancel(t.Context()), cfg, logs)
		end <- started{p, err}
	}()
	var s started
	select {
	case s = <-end:
	case <-time.After(limit):
		t.Fatalf("the start does not end within %v\n%s", limit, logs)
	}
	if s.err != nil {
		if len(s.err.Error()) < 30 {
			t.Errorf("the refusal says only %q", s.err)
		}
		return "refused: " + s.err.Error()
	}
	defer s.p.close()
	within(t, "the service is ready or says what is damaged", func() bool { return s.p.integrity.Err() != nil || len(s.p.notReady()) == 0 })
	if damage := s.p.integrity.Err(); damage != nil {
		if s.p.writesAllowed() == nil {
			t.Error("it writes")
		}
		return "read-only: " + damage.Error()
	}
	u := &up{program: s.p, api: api{base: "http://" + s.p.front.listener.Addr().String(), key: adminKey, tenant: "default"}}
	for _, id := range ids {
		if got, err := s.p.held(t.Context(), id); err != nil || got.key != "k" {
			t.Errorf("the service is ready, and credential %s: %v", id, err)
		}
	}
	u.create(t)
	var list listed
	within(t, "the list is whole", func() bool {
		must(t, u.query("credential.list", "limit=200", &list))
		return len(list.Credentials) == len(ids)+1
	})
	return "ready"
}
