package app

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/highwayhash"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/storage"
	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/events"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/events/memory"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/vault"
)

// blocks is the folder of a stream's block files.
func blocks(data, stream string) string {
	return filepath.Join(data, "nats", "jetstream", "CREDSTREAM", "streams", stream, "msgs")
}

// splitBlocks writes the one block of a stopped stream anew as blocks of one message each,
// number n holding the n-th message, as if the stream were as many times larger.
func splitBlocks(t *testing.T, data, stream string) (n int) {
	t.Helper()
	dir := blocks(data, stream)
	all, err := os.ReadFile(filepath.Join(dir, "1.blk"))
	must(t, err)
	must(t, os.Remove(filepath.Join(dir, "index.db")))
	for len(all) > 0 {
		n++
		size := binary.LittleEndian.Uint32(all) &^ (1 << 31)
		record := all[:size]
		all = all[size:]
		subject := int(binary.LittleEndian.Uint16(record[20:]))
		from := 22 + subject
		if record[3]&0x80 != 0 { // headers, whose length stands first
			from += 4
		}
		key := sha256.Sum256(fmt.Appendf(nil, "%s-%d", stream, n))
		sum, err := highwayhash.New64(key[:])
		must(t, err)
		for _, part := range [][]byte{record[4:20], record[22 : 22+subject], record[from : size-8]} {
			_, _ = sum.Write(part)
		}
		copy(record[size-8:], sum.Sum(nil))
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.blk", n)), record, 0o600))
	}
	return n
}

// notReadyReasons are the reasons that readiness gives; none when it is ready.
func (u *up) notReadyReasons(t testing.TB) string {
	t.Helper()
	resp, err := http.Get(u.base + "/readyz")
	must(t, err)
	defer resp.Body.Close()
	var answer struct {
		Ready   bool
		Reasons []string
	}
	must(t, json.NewDecoder(resp.Body).Decode(&answer))
	if answer.Ready != (resp.StatusCode == http.StatusOK) || answer.Ready != (len(answer.Reasons) == 0) {
		t.Errorf("readiness is %d %+v", resp.StatusCode, answer)
	}
	return strings.Join(answer.Reasons, "\n")
}

// A log that has lost a block is not believed, whichever block it is: no write, no
// secret, no collection, no new administrator key; and readiness names the first commit that is missing.
// What is asked for is refused with that reason, also where the views wait for the commit.
func TestLogWithAHole(t *testing.T) {
	for i := range 8 {
		lost, views := []int{1, 2, 5, 6}[i/2], i%2 == 0 // of 6: tenant, key, component, two credentials, a third one
		t.Run(fmt.Sprintf("block %d, with views %v", lost, views), func(t *testing.T) {
			t.Parallel()
			data := t.TempDir()
			u := bring(t, data)
			registerPlain(t, u.base)
			var ids [3]string
			for i := range ids {
				ids[i] = u.create(t)
			}
			u.stop()
			if n := splitBlocks(t, data, eventlog.Stream); n != 6 {
				t.Fatalf("%d commits", n)
			}
			must(t, os.Remove(filepath.Join(blocks(data, eventlog.Stream), fmt.Sprintf("%d.blk", lost))))
			if !views {
				must(t, errors.Join(os.Remove(filepath.Join(data, "views.db")), os.Remove(filepath.Join(data, "views.db.clean"))))
			}
			u = bring(t, data)
			want, where := eventlog.ErrLogIncomplete.Code, fmt.Sprintf("from commit %d on", lost)
			if lost == 6 {
				want, where = eventlog.ErrLogCutShort.Code, "commit 6"
			}
			if !u.firstKey.IsZero() {
				t.Error("a new first administrator key was made")
			}
			if reasons := u.notReadyReasons(t); !strings.Contains(reasons, where) {
				t.Errorf("readiness says %q", reasons)
			}
			if err := u.writesAllowed(); err == nil || fault.Of(err).Code != want {
				t.Errorf("writes: %v", err)
			}
			if got := code(t, u.command("component.delete", "named", map[string]any{"id": "plain"}, nil)); got != want {
				t.Errorf("a command is answered with %q", got)
			}
			for i, id := range ids { // of the commits from the 4th on; reading goes on where it can
				if got := code(t, u.query("credential.get", "id="+id, nil)); got != want && (got != "" || i+4 == lost && !views) {
					t.Errorf("a query for credential %d is answered with %q", i+1, got)
				}
			}
			if _, err := u.held(t.Context(), ids[0]); err == nil {
				t.Error("a secret leaves")
			}
			if n, err := u.svc.Secrets.Collect(t.Context(), 0); err == nil || n != 0 || vaultSize(t, u) != 3 {
				t.Errorf("the collector erased %d: %v, %d are left", n, err, vaultSize(t, u))
			}
		})
	}
}

// A secret whose owner has no commits is an orphan only where the log cannot have lost
// them: it is not older than the log, and the views do not know its owner.
func TestCollectorNeedsProof(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	known := u.create(t)
	end, err := u.store.End(t.Context())
	must(t, err)
	must(t, u.proj.Wait(t.Context(), end))
	put := func(owner string) {
		t.Helper()
		must(t, u.vault.Put(t.Context(), vault.Ref{Tenant: "default", Category: "credential", Owner: owner, SecretID: events.NewID()}, seal.NewSecret([]byte("x"))))
	}
	put("nobody")
	collect := func(logBegan time.Time) (erased int) {
		t.Helper()
		store := memory.New(events.All()) // another log than the one that the vault and the views belong to
		_, err := store.Append(t.Context(), events.StreamID{Tenant: "default", Category: "flow", ID: "f"}, 0,
			events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "test"}, Command: "c", Time: logBegan, Via: "system"}, events.FlowReleased{})
		must(t, err)
		states, err := aggregates.NewLog(store, 100)
		must(t, err)
		svc, err := application.New(application.Config{
			Log: states, Views: u.views, Projector: u.proj, Vault: u.vault, Keyring: u.keyring, Logger: slog.New(slog.DiscardHandler),
		})
		must(t, err)
		defer svc.Close()
		erased, err = svc.Secrets.Collect(t.Context(), 0)
		must(t, err)
		return erased
	}
	if n := collect(time.Now().Add(time.Hour)); n != 0 {
		t.Errorf("%d secrets that are older than the log were erased", n)
	}
	if n := collect(time.Now().Add(-time.Hour)); n != 1 {
		t.Errorf("%d secrets were erased, not the one of nobody", n)
	}
	if _, err := u.held(t.Context(), known); err != nil {
		t.Errorf("the secret of a credential that the views know: %v", err)
	}
}

// Keysets that are lost are never made anew: not for a tenant that is in the log, and no
// new KMS key for them.
func TestKeysetsLost(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data)
	must(t, u.command("tenant.register", "", map[string]any{"id": "acme"}, nil))
	registerPlain(t, u.base)
	id := u.create(t)
	u.stop()
	must(t, os.RemoveAll(filepath.Dir(blocks(data, keyStream))))
	must(t, os.Remove(filepath.Join(data, "marks.json"))) // which would tell, too

	u = bring(t, data)
	if reasons := u.notReadyReasons(t); !strings.Contains(reasons, "encryption keys of 2 tenants in the log are missing, acme") {
		t.Errorf("readiness says %q", reasons)
	}
	for _, tenant := range []string{"acme", "default"} {
		if got := code(t, u.command("tenant.register", "", map[string]any{"id": tenant}, nil)); got != seal.ErrKeysetMissing.Code {
			t.Errorf("registering %s: %q", tenant, got)
		}
	}
	if _, err := u.held(t.Context(), id); err == nil {
		t.Error("a secret leaves")
	}
	u.integrity.set(nil) // the tenant's own check holds without the one of the start, too
	if err := u.command("tenant.register", "again", map[string]any{"id": "acme"}, nil); err == nil {
		t.Error("a tenant without its keyset was registered again")
	}
	if have, err := u.keysetTenants(t.Context()); err != nil || len(have) != 0 {
		t.Errorf("new keysets of %v, %v", have, err)
	}
	u.stop()

	must(t, os.Remove(filepath.Join(data, "kms.key")))
	if p, err := start(t.Context(), u.cfg, &bustest.LogBuffer{}); !errors.Is(err, errKeyFileMissing) {
		t.Errorf("without the key file: %v %v", p, err)
	}
	if _, err := os.Stat(filepath.Join(data, "kms.key")); err == nil {
		t.Error("a new KMS key was made")
	}
}

// A keyset that a start does not open is opened afterwards: readiness names what does not
// open, and the other tenants go on.
func TestKeysetAmongMany(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data)
	registerPlain(t, u.base)
	for n := range keysetsAtStart {
		must(t, u.command("tenant.register", "", map[string]any{"id": fmt.Sprintf("t-%03d", n)}, nil))
	}
	conn, err := u.nats.Conn("test")
	must(t, err)
	js, err := jetstream.New(conn)
	must(t, err)
	kv, err := js.KeyValue(t.Context(), keyBucket)
	must(t, err)
	last := fmt.Sprintf("t-%03d", keysetsAtStart-1)
	good, err := kv.Get(t.Context(), last)
	must(t, err)
	_, err = kv.Put(t.Context(), last, []byte(`{"format":1}`))
	must(t, err)
	u.stop()

	u = bring(t, data)
	await(t, "readiness to name the keyset", func() (bool, error) {
		return slices.ContainsFunc(u.notReady(), func(r string) bool { return strings.HasPrefix(r, "keysets: ") }), nil
	})
	u.create(t)
	conn, err = u.nats.Conn("test")
	must(t, err)
	js, err = jetstream.New(conn)
	must(t, err)
	kv, err = js.KeyValue(t.Context(), keyBucket)
	must(t, err)
	_, err = kv.Put(t.Context(), last, good.Value())
	must(t, err)
	await(t, "readiness", func() (bool, error) { return len(u.notReady()) == 0, nil })
}

// A flipped bit in a file that must be kept refuses the start, with the file named and
// nothing touched; one in what is derived from the log is set aside.
func TestFlippedBit(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data)
	registerPlain(t, u.base)
	id := u.create(t)
	for range 3 {
		u.create(t)
	}
	u.stop()
	for _, stream := range []string{eventlog.Stream, vault.Stream, keyStream} {
		file := filepath.Join(blocks(data, stream), "1.blk")
		whole, err := os.ReadFile(file)
		must(t, err)
		flipped := bytes.Clone(whole)
		flipped[len(flipped)/3] ^= 1
		must(t, os.WriteFile(file, flipped, 0o600))
		if p, err := start(t.Context(), u.cfg, &bustest.LogBuffer{}); !errors.Is(err, storage.ErrStoredDamaged) || !strings.Contains(err.Error(), stream) || !strings.Contains(err.Error(), "1.blk") {
			t.Errorf("%s: %v %v", stream, p, err)
		}
		now, err := os.ReadFile(file)
		must(t, err)
		if !bytes.Equal(now, flipped) {
			t.Errorf("%s was touched", stream)
		}
		must(t, os.WriteFile(file, whole, 0o600))
	}
	file := filepath.Join(blocks(data, streams.FeedStream), "1.blk")
	b, err := os.ReadFile(file)
	must(t, err)
	b[len(b)/3] ^= 1
	must(t, os.WriteFile(file, b, 0o600))
	u = bring(t, data)
	if reasons := u.notReadyReasons(t); reasons != "" {
		t.Error(reasons)
	}
	if _, err := u.held(t.Context(), id); err != nil {
		t.Error(err)
	}
	if kept, err := os.ReadDir(filepath.Join(data, "damaged")); err != nil || len(kept) != 1 {
		t.Errorf("set aside: %v %v", kept, err)
	}
}

// The end of the newest block that a kill or a power cut has torn is cut off, as ever,
// when it was not durable.
func TestTornEnd(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data)
	registerPlain(t, u.base)
	id := u.create(t)
	u.stop()
	file := filepath.Join(blocks(data, eventlog.Stream), "1.blk")
	whole, err := os.ReadFile(file)
	must(t, err)
	for name, torn := range map[string][]byte{
		"half a record": append(bytes.Clone(whole), whole[:100]...),
		"zeros":         append(bytes.Clone(whole), make([]byte, 4096)...),
	} {
		must(t, os.WriteFile(file, torn, 0o600))
		u := bring(t, data)
		if reasons := u.notReadyReasons(t); reasons != "" {
			t.Errorf("%s: %s", name, reasons)
		}
		if _, err := u.held(t.Context(), id); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		u.stop()
	}
	must(t, os.WriteFile(file, whole[:len(whole)-10], 0o600)) // of what was durable
	if p, err := start(t.Context(), u.cfg, &bustest.LogBuffer{}); !errors.Is(err, storage.ErrStoredDamaged) {
		t.Errorf("a durable end: %v %v", p, err)
	}
}

// What was made from the log and is ahead of it proves that the log was cut, also without
// a high-water mark: nothing is written, and no first key is made.
func TestLogBehindWhatWasMadeFromIt(t *testing.T) {
	for name, gone := range map[string][]string{
		"views": {streams.FeedStream, streams.AuditStream}, "feed": {"views.db", streams.AuditStream},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := t.TempDir()
			u := bring(t, data)
			registerPlain(t, u.base)
			end, err := u.store.End(t.Context())
			must(t, err)
			for until := time.Now().Add(time.Minute); u.feed.Position() < end; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(until) {
					t.Fatal("the feed does not get there")
				}
			}
			u.stop()
			for _, g := range append(gone, eventlog.Stream, "high-water.json") {
				if !strings.Contains(g, ".") {
					must(t, os.RemoveAll(filepath.Dir(blocks(data, g))))
				} else {
					must(t, os.Remove(filepath.Join(data, g)))
				}
			}
			u = bring(t, data)
			if !u.firstKey.IsZero() || u.writesAllowed() == nil {
				t.Errorf("a first key: %v; writes: %v", !u.firstKey.IsZero(), u.writesAllowed())
			}
			if end, err := u.store.End(t.Context()); err != nil || end != 0 {
				t.Errorf("the log goes to %d, %v", end, err)
			}
		})
	}
}
