package app

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/bus/storage"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/vault"
)

// Whatever is damaged in a file that cannot be rebuilt, the check names the stream, and most often
// what is affected; the start refuses what it would not read back.
func TestLogCheck(t *testing.T) {
	t.Parallel()
	one, other := install(t, 6), install(t, 6)
	u := bring(t, one.data)
	engine := u.as(u.engine(t))
	for _, id := range one.ids {
		must(t, engine.query("credential.resolve", "cleartext=true&id="+id, nil))
	}
	u.settle(t)
	within(t, "everything is marked", func() bool {
		return u.durableMark(kv.AccessStream) >= uint64(len(one.ids)) && u.durableMark(eventlog.Stream) == u.store.Durable()
	})
	live, err := CheckFolder(t.Context(), one.data)
	if err != nil || !live.Intact || live.Commits == 0 {
		t.Errorf("in use: %+v %v", live, err)
	}
	u.stop()
	whole, err := CheckFolder(t.Context(), one.data)
	if err != nil || !whole.Intact || whole.Err() != nil || whole.InUse || len(whole.Streams) < 5 {
		t.Fatalf("%+v %v", whole, err)
	}
	if _, err := CheckFolder(t.Context(), t.TempDir()); !errors.Is(err, ErrNoLog) {
		t.Error(err)
	}
	seed := uint64(1)
	random := rand.New(rand.NewPCG(seed, 15))
	block := func(stream string) string {
		return filepath.Join("nats", "jetstream", natsserver.Account, "streams", stream, "msgs", "1.blk")
	}
	kinds := map[string]func(path, stream string) error{
		"a bit": func(path, _ string) error {
			return rewrite(path, func(b []byte) []byte { b[random.IntN(len(b))] ^= 1 << random.IntN(8); return b })
		},
		"a page of zeros": func(path, _ string) error {
			return rewrite(path, func(b []byte) []byte {
				at := random.IntN(len(b) - 64)
				clear(b[at:min(len(b), at+4096)])
				return b
			})
		},
		"a cut tail": func(path, _ string) error {
			return rewrite(path, func(b []byte) []byte { return b[:random.IntN(len(b))] })
		},
		"garbage": func(path, _ string) error {
			return rewrite(path, func(b []byte) []byte {
				at := random.IntN(len(b) - 64)
				for i := range b[at : at+64] {
					b[at+i] = byte(random.Uint32())
				}
				return b
			})
		},
		"a part removed": func(path, _ string) error {
			return rewrite(path, func(b []byte) []byte {
				at := random.IntN(len(b) - 64)
				return append(b[:at], b[at+1+random.IntN(63):]...)
			})
		},
		"a message removed": func(path, _ string) error {
			return rewrite(path, func(b []byte) []byte { return withoutRecord(b, random.IntN(5)) })
		},
		"missing":              func(path, _ string) error { return os.Remove(path) },
		"another installation": func(path, stream string) error { return replaceBy(path, filepath.Join(other.data, block(stream))) },
		"older":                func(path, stream string) error { return replaceBy(path, filepath.Join(one.older, block(stream))) },
	}
	cases, named := 0, 0
	for _, stream := range []string{eventlog.Stream, vault.Stream, keyStream, kv.AccessStream} {
		for _, kind := range []string{
			"a bit", "a bit", "a bit", "a bit", "a bit", "a bit", "a bit", "a bit", "a bit", "a bit", "a page of zeros", "a page of zeros", "a page of zeros",
			"a cut tail", "a cut tail", "a cut tail", "garbage", "garbage", "garbage", "a part removed", "a part removed", "a message removed", "missing", "another installation", "older",
		} {
			older, err := os.ReadFile(filepath.Join(one.older, block(stream)))
			now, err2 := os.ReadFile(filepath.Join(one.data, block(stream)))
			must(t, err2)
			if kind == "older" && (err != nil || bytes.Equal(older, now)) {
				continue // nothing was written to it since
			}
			cases++
			data := t.TempDir()
			copyFolder(t, data, one.data)
			must(t, kinds[kind](filepath.Join(data, block(stream)), stream))
			got, err := CheckFolder(t.Context(), data)
			name := fmt.Sprintf("case %d: %s of %s", cases, kind, stream)
			if err != nil || got.Intact {
				t.Errorf("%s is not found: %v", name, err)
				continue
			}
			if err := got.Err(); !errors.Is(err, ErrFolderDamaged) || len(got.Damages) > 0 && got.Damages[0].Stream != stream {
				t.Errorf("%s: %v", name, err)
			}
			if stream == eventlog.Stream && got.Damages[0].From == 0 {
				t.Errorf("%s: no sequence: %+v", name, got.Damages)
			}
			if slices.ContainsFunc(got.Affected, func(a Affected) bool { return a.Category == "credential" && slices.Contains(one.ids, a.ID) }) {
				named++
			}
			verifier := storage.Verifier{
				Streams: natsserver.StreamsDir(data), Aside: filepath.Join(data, "damaged"), Kept: append([]string{eventlog.Stream}, keptStreams...),
				Durable: (&program{cfg: Config{Data: data}}).durableMark, Logger: slog.New(slog.DiscardHandler),
			}
			switch kind {
			case "a message removed", "missing", "older", "another installation": // found when the streams are open
			default:
				if err := verifier.Verify(); !errors.Is(err, storage.ErrStoredDamaged) {
					t.Errorf("%s does not refuse the start: %v", name, err)
				}
			}
		}
	}
	if cases < 95 || named < 20 {
		t.Errorf("%d cases, %d of them name a credential", cases, named)
	}
	t.Logf("seed %d: %d cases, %d of them name a credential", seed, cases, named)
}

// withoutRecord removes the n-th record of a block.
func withoutRecord(b []byte, n int) []byte {
	size := func(b []byte) int {
		return int(uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3]&0x7f)<<24)
	}
	at := 0
	for ; n > 0 && at+size(b[at:]) < len(b); n-- {
		at += size(b[at:])
	}
	return slices.Delete(slices.Clone(b), at, at+size(b[at:]))
}

// What happens to the files of a running service is noticed within seconds: it writes no more and
// returns no secret, says why, and serves again when the file is as it was.
func TestDamageWhileRunning(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	u := bring(t, data)
	registerPlain(t, u.base)
	var ids []string
	for range 3 {
		ids = append(ids, u.create(t))
	}
	engine := u.as(u.engine(t))
	resolve := func() error { return engine.query("credential.resolve", "cleartext=true&id="+ids[0], nil) }
	for _, id := range ids {
		must(t, engine.query("credential.resolve", "cleartext=true&id="+id, nil))
	}
	u.settle(t)
	within(t, "everything is marked", func() bool {
		return u.durableMark(eventlog.Stream) == u.store.Durable() && u.durableMark(vault.Stream) >= 3 && u.durableMark(kv.AccessStream) >= 3
	})
	within(t, "the files are known", func() bool { return u.scrubber.Check(t.Context()) == nil })
	intact := func() bool {
		return u.writesAllowed() == nil && u.notReadyReasons(t) == "" && resolve() == nil
	}
	metric := func() string {
		resp, err := http.Get(u.base + "/metrics")
		must(t, err)
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		must(t, err)
		_, rest, _ := strings.Cut(string(text), "\ncredstream_data_intact ")
		value, _, _ := strings.Cut(rest, "\n")
		return value
	}
	if !intact() || metric() != "1" {
		t.Fatal(u.notReadyReasons(t), metric())
	}
	for _, row := range []struct {
		stream, kind, code string
		damage             func([]byte) []byte
	}{
		{eventlog.Stream, "zeros", storage.ErrStoredChanged.Code, func(b []byte) []byte { clear(b[100:200]); return b }},
		{vault.Stream, "bit", storage.ErrStoredChanged.Code, func(b []byte) []byte { b[len(b)/3] ^= 1; return b }},
		{kv.AccessStream, "tail", storage.ErrStoredChanged.Code, func(b []byte) []byte { return b[:len(b)/2] }},
	} {
		path := filepath.Join(blocks(data, row.stream), "1.blk")
		was, err := os.ReadFile(path)
		must(t, err)
		put := func(b []byte) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0) // the same file, as a disk changes it
			must(t, err)
			_, err = f.Write(b)
			must(t, errors.Join(err, f.Truncate(int64(len(b))), f.Close()))
		}
		put(row.damage(bytes.Clone(was)))
		begun := time.Now()
		within(t, row.kind+" of "+row.stream+" is noticed", func() bool { return u.integrity.Err() != nil })
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("%s of %s: noticed after %v", row.kind, row.stream, took)
		}
		if err := u.writesAllowed(); err == nil || fault.Of(err).Code != row.code {
			t.Errorf("%s of %s: writes: %v", row.kind, row.stream, err)
		}
		if got := code(t, resolve()); got != row.code {
			t.Errorf("%s of %s: a secret leaves, or %q", row.kind, row.stream, got)
		}
		if reasons := u.notReadyReasons(t); !strings.Contains(reasons, row.stream) || metric() != "0" {
			t.Errorf("%s of %s: readiness says %q, %s", row.kind, row.stream, reasons, metric())
		}
		put(was)
		within(t, row.kind+" of "+row.stream+" is over", intact)
	}
	// A stream that is purged or deleted behind the service's back.
	conn, err := u.node.Conn("test")
	must(t, err)
	js, err := jetstream.New(conn)
	must(t, err)
	stream, err := js.Stream(t.Context(), vault.Stream)
	must(t, err)
	cfg := stream.CachedInfo().Config
	cfg.DenyPurge, cfg.DenyDelete = false, false
	if stream, err = js.UpdateStream(t.Context(), cfg); err == nil {
		err = stream.Purge(t.Context())
	} else {
		err = js.DeleteStream(t.Context(), vault.Stream)
	}
	must(t, err)
	begun := time.Now()
	within(t, "a purge is noticed", func() bool { return u.integrity.Err() != nil })
	if err := u.integrity.Err(); time.Since(begun) > 5*time.Second || !errors.Is(err, storage.ErrStoredIncomplete) {
		t.Errorf("after %v: %v", time.Since(begun), err)
	}
	time.Sleep(2500 * time.Millisecond) // the marks are not written over it
	if u.integrity.Err() == nil {
		t.Error("a purge is forgotten")
	}
}
