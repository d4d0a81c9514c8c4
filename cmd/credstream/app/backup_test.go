package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/bus/storage"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/service/backup"
	"github.com/credstream/credstream/vault"
)

// reader reads the stored messages of a service.
func (u *up) reader(t testing.TB) *storage.Reader {
	t.Helper()
	conn, err := u.nats.Conn("reader")
	must(t, err)
	js, err := jetstream.New(conn)
	must(t, err)
	return storage.NewReader(js, map[string]string{
		backup.KindLog: eventlog.Stream, backup.KindVault: vault.Stream, backup.KindKeysets: keyStream, backup.KindAccess: kv.AccessStream,
	})
}

// stored are the messages of a stream up to a sequence.
func (u *up) stored(t testing.TB, kind string, upTo uint64) (all []backup.Message) {
	t.Helper()
	r := u.reader(t)
	for at := uint64(0); at < upTo; {
		msgs, err := r.Read(t.Context(), kind, at, upTo)
		must(t, err)
		if len(msgs) == 0 {
			break
		}
		all = append(all, msgs...)
		at = msgs[len(msgs)-1].Seq
	}
	return all
}

// messages are the lines of a backup file, in clear.
func messages(t testing.TB, file string, id age.Identity) (f *backup.File, all []backup.Message) {
	t.Helper()
	r, err := os.Open(file)
	must(t, err)
	t.Cleanup(func() { _ = r.Close() })
	f, err = backup.Open(r, []age.Identity{id})
	must(t, err)
	for m, err := range f.Messages() {
		must(t, err)
		all = append(all, m)
	}
	return f, all
}

// restored restores backups into a new folder, with the KMS key of the first one.
func (x *transferrer) restored(data, identity string, files ...string) string {
	x.t.Helper()
	into := filepath.Join(x.t.(*testing.T).TempDir(), "restored")
	x.wants(0, append([]string{"restore", "--identity", identity, "--signed-by", "any", "--into", into}, files...)...)
	copyKey(x.t, data, into)
	return into
}

// copyKey does what an operator does after a restore.
func copyKey(t testing.TB, data, into string) {
	t.Helper()
	key, err := os.ReadFile(filepath.Join(data, "kms.key"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(into, "kms.key"), key, 0o600))
}

// made is a credential of a writer: where the log created and deleted it.
type made struct {
	id, value        string
	created, deleted uint64
}

// writing has writers create and delete credentials until it is stopped.
func (u *up) writing(writers int) (stop func() []made) {
	var mu sync.Mutex
	var all []made
	var wg sync.WaitGroup
	ended := make(chan struct{})
	for w := range writers {
		wg.Go(func() {
			var mine []made
			for i := 0; ; i++ {
				select {
				case <-ended:
					mu.Lock()
					all = append(all, mine...)
					mu.Unlock()
					return
				default:
				}
				m := made{value: fmt.Sprintf("canary-%d-%d", w, i)}
				var d done
				if u.command("credential.create", "", map[string]any{"component": "plain", "keys": map[string]any{"apiKey": m.value}}, &d) != nil {
					continue
				}
				m.id, m.created = d.ID, d.Seq
				mine = append(mine, m)
				if i%2 == 1 { // the one just made, or an older one
					old := &mine[len(mine)-1-rand.IntN(min(len(mine), 4))]
					if old.deleted == 0 && u.command("credential.delete", "", map[string]any{"id": old.id}, &d) == nil {
						old.deleted = d.Seq
					}
				}
			}
		})
	}
	return func() []made { close(ended); wg.Wait(); return all }
}

// A service is backed up while eight writers create and delete: the restored log is a prefix of
// the log, byte for byte, and every credential in it resolves. Increments bring the rest, and
// what they delete does not come back.
func TestBackup(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data)
	registerPlain(t, u.base)
	identityFile, recipient, id := identity(t)
	x := newTransferrer(t, u, adminKey)
	dir := t.TempDir()
	full, next, last, keysets := filepath.Join(dir, "full"), filepath.Join(dir, "next"), filepath.Join(dir, "last"), filepath.Join(dir, "keysets")
	var d done
	must(t, u.command("credential.create", "", map[string]any{"component": "plain", "keys": map[string]any{"apiKey": "canary-gone"}}, &d))
	gone := d.ID
	_, err := u.held(t.Context(), gone)
	must(t, err)

	stop := u.writing(8)
	time.Sleep(300 * time.Millisecond) // so that there is something; any moment will do
	x.wants(0, "backup", full, "--to", recipient)
	x.wants(0, "backup", next, "--to", recipient, "--since", full)
	all := stop()
	sealed := vaultBytes(t, u, gone)
	must(t, u.command("credential.delete", "", map[string]any{"id": gone}, nil))
	x.wants(0, "backup", last, "--to", recipient, "--since", next, "--keysets", keysets)
	x.wants(0, "backup", "verify", full, "--identity", identityFile, "--signed-by", "any")
	x.wants(0, "backup", "verify", full, next, "--identity", identityFile, "--signed-by", "any")
	x.wants(6, "backup", full, "--to", recipient)

	first, lines := messages(t, full, id)
	for _, m := range lines {
		if bytes.Contains(m.Data, []byte("canary")) || strings.Contains(fmt.Sprint(m.Header, m.Subject), "canary") {
			t.Errorf("message %d of the %s holds a secret", m.Seq, m.Kind)
		}
	}
	end := logEnd(t, u.program)
	original := u.stored(t, backup.KindLog, end)
	if strings.Contains(u.logs.String(), "canary") {
		t.Error("a secret was logged")
	}
	u.stop()

	check := func(r *up, to uint64) {
		t.Helper()
		if reasons := r.notReadyReasons(t); reasons != "" {
			t.Fatalf("the restored service is not ready: %s", reasons)
		}
		if diff := cmp.Diff(original[:to], r.stored(t, backup.KindLog, to)); diff != "" {
			t.Fatalf("the log is no prefix: %s", diff)
		}
		live := 0
		for _, m := range all {
			got, err := r.held(t.Context(), m.id)
			switch {
			case m.created > to:
			case m.deleted != 0 && m.deleted <= to:
				if err != nil || !got.deleted {
					t.Errorf("%s, deleted by commit %d, is %+v %v", m.id, m.deleted, got, err)
				}
			case err != nil || got.key != m.value:
				t.Errorf("%s, created by commit %d and deleted by %d of %d: %v", m.id, m.created, m.deleted, to, err)
			default:
				live++
			}
		}
		if live == 0 {
			t.Error("nothing was checked")
		}
	}
	into := x.restored(data, identityFile, full)
	r := bring(t, into)
	check(r, first.Label.To.Log)
	if got, err := r.held(t.Context(), gone); err != nil || got.key != "canary-gone" {
		t.Errorf("what was deleted after the backup: %+v %v", got, err)
	}
	// The restored service goes on, and is backed up; the positions of the other one do not hold.
	r.create(t)
	y := newTransferrer(t, r, adminKey)
	y.wants(6, "backup", filepath.Join(dir, "other"), "--to", recipient, "--since", last)
	y.wants(0, "backup", filepath.Join(dir, "again"), "--to", recipient)
	r.stop()

	x.wants(2, "restore", full, next, last, "--identity", identityFile, "--signed-by", "any", "--into", filepath.Join(dir, "without"))
	into = filepath.Join(t.TempDir(), "restored")
	x.wants(0, "restore", full, next, last, "--identity", identityFile, "--signed-by", "any", "--into", into, "--keysets", keysets)
	copyKey(t, data, into)
	if holds(t, into, sealed) {
		t.Error("the secret that a later backup deletes came back")
	}
	r = bring(t, into)
	check(r, end)
	if got, err := r.held(t.Context(), gone); err != nil || !got.deleted {
		t.Errorf("what a later backup deletes: %+v %v", got, err)
	}
	r.stop()

	// What is damaged after the restore is noticed.
	into = x.restored(data, identityFile, full)
	must(t, os.RemoveAll(filepath.Dir(blocks(into, vault.Stream))))
	r = bring(t, into)
	if r.integrity.Err() == nil {
		t.Error("a restored folder without a vault is served")
	}
}

// vaultBytes is the stored secret of a credential.
func vaultBytes(t testing.TB, u *up, id string) []byte {
	t.Helper()
	for _, m := range u.stored(t, backup.KindVault, 1<<40) {
		if strings.Contains(m.Subject, "."+id+".") {
			return m.Data
		}
	}
	t.Fatal("it has no secret")
	return nil
}

// holds reports whether a file of a folder has some bytes.
func holds(t testing.TB, dir string, some []byte) (found bool) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		found = found || bytes.Contains(b, some)
		return err
	}))
	return found
}

// Each file that is not what was written is refused, with a code of its own, and nothing is left
// behind; so is a folder that has something.
func TestBackupRefused(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data)
	registerPlain(t, u.base)
	for range 40 {
		u.create(t)
	}
	identityFile, recipient, _ := identity(t)
	otherFile, _, _ := identity(t)
	x := newTransferrer(t, u, adminKey)
	dir := t.TempDir()
	full, next := filepath.Join(dir, "full"), filepath.Join(dir, "next")
	x.wants(0, "backup", full, "--to", recipient)
	u.create(t)
	x.wants(0, "backup", next, "--to", recipient, "--since", full)
	x.wants(2, "backup", filepath.Join(dir, "x"), "--to", "age1nobody")
	newTransferrer(t, u, u.issue(t, map[string]any{"role": "ADMINISTRATOR"})).wants(4, "backup", filepath.Join(dir, "x"), "--to", recipient) // one tenant's
	if names, err := os.ReadDir(dir); err != nil || len(names) != 2 {
		t.Errorf("refused backups left %v %v", names, err)
	}
	whole, err := os.ReadFile(full)
	must(t, err)
	change := func(name string, change func(b []byte) []byte) string {
		return writeFile(t, name, string(change(bytes.Clone(whole))), 0o600)
	}
	flip := func(at int) string {
		return change(fmt.Sprintf("flip-%d", at), func(b []byte) []byte { b[at] ^= 1; return b })
	}
	into := filepath.Join(t.TempDir(), "into")
	for _, c := range []struct {
		code  string
		files []string
		more  []string
	}{
		{"backup_damaged", []string{flip(200)}, nil},
		{"backup_damaged", []string{flip(backup.LabelSize - 2)}, nil},
		{"backup_damaged", []string{flip(backup.LabelSize + 5)}, nil},
		{"backup_damaged", []string{flip(backup.LabelSize + 400)}, nil},
		{"backup_damaged", []string{flip(len(whole) / 2)}, nil},
		{"backup_damaged", []string{flip(len(whole) - 1)}, nil},
		{"backup_damaged", []string{change("cut", func(b []byte) []byte { return b[:len(b)-1] })}, nil},
		{"backup_damaged", []string{change("half", func(b []byte) []byte { return b[:len(b)/2] })}, nil},
		{"backup_damaged", []string{change("head", func(b []byte) []byte { return b[:500] })}, nil},
		{"backup_damaged", []string{change("longer", func(b []byte) []byte { return append(b, b...) })}, nil},
		{"backup_file_invalid", []string{change("none", func([]byte) []byte { return nil })}, nil},
		{"backup_file_invalid", []string{identityFile}, nil},
		{"backup_format_newer", []string{change("newer", func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"format":1,`), []byte(`"format":2,`), 1)
		})}, nil},
		{"backup_identity_wrong", []string{full}, []string{"--identity", otherFile}},
		{"import_identity_invalid", []string{full}, []string{"--identity", full}},
		{"backup_signer_other", []string{full}, []string{"--signed-by", "ed25519:" + strings.Repeat("A", 43)}},
		{"signer_required", []string{full}, []string{"--signed-by", ""}},
		{"export_key_invalid", []string{full}, []string{"--signed-by", "ed25519:short"}},
		{"backup_files_unrelated", []string{next}, nil},
		{"backup_files_unrelated", []string{next, full}, nil},
		{"backup_files_unrelated", []string{full, full}, nil},
		{"backup_keysets_missing", []string{full}, []string{"--keysets", next}},
		{"file_unreadable", []string{filepath.Join(dir, "absent")}, nil},
		{"usage", nil, nil},
	} {
		args := append(append([]string{"restore", "--identity", identityFile, "--signed-by", "any", "--into", into}, c.files...), c.more...)
		if got := x.run(t.Context(), args...); got == 0 || !strings.Contains(x.errOut.String(), "("+c.code+")") {
			t.Errorf("%v: exit code %d, %s, want %s", args, got, x.errOut.String(), c.code)
		}
		if _, err := os.Lstat(into); err == nil {
			t.Fatalf("%v: a refused restore left a folder", args)
		}
	}
	x.wants(6, "restore", full, "--identity", identityFile, "--signed-by", "any", "--into", data)
	if !strings.Contains(x.errOut.String(), "data_folder_locked") {
		t.Errorf("the folder of a service: %s", x.errOut.String())
	}
	u.stop()
	x.wants(6, "restore", full, "--identity", identityFile, "--signed-by", "any", "--into", data)
	if !strings.Contains(x.errOut.String(), "restore_folder_not_empty") {
		t.Errorf("a folder that has something: %s", x.errOut.String())
	}
	if err := checkRestored(data); err != nil {
		t.Error("the folder of a service was marked:", err)
	}
}

// A restore is killed at any moment: serve refuses the folder and names it, and the same restore
// again completes it.
func TestRestoreKilled(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data)
	registerPlain(t, u.base)
	for range 30 {
		u.create(t)
	}
	end := logEnd(t, u.program)
	original := u.stored(t, backup.KindLog, end)
	identityFile, recipient, _ := identity(t)
	x := newTransferrer(t, u, adminKey)
	full := filepath.Join(t.TempDir(), "full")
	x.wants(0, "backup", full, "--to", recipient)
	u.stop()
	into := filepath.Join(t.TempDir(), "into")
	argv, err := json.Marshal([]string{"restore", full, "--identity", identityFile, "--signed-by", "any", "--into", into})
	must(t, err)
	killed, incomplete := 0, 0
	for try := range 12 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+string(argv))
		must(t, cmd.Start())
		for _, err := os.Lstat(into); err != nil && cmd.Process.Signal(syscall.Signal(0)) == nil; _, err = os.Lstat(into) {
			time.Sleep(time.Millisecond) // before that, nothing is at stake
		}
		time.Sleep(time.Duration(rand.IntN(20*(try+1))) * time.Millisecond) // the moment of the kill is meant to be any
		_ = cmd.Process.Kill()
		if cmd.Wait() == nil {
			break
		}
		killed++
		if checkRestored(into) == nil { // completed, or not begun
			if _, err := os.Lstat(filepath.Join(into, "high-water.json")); err == nil {
				break
			}
			continue
		}
		incomplete++
		if _, err := start(t.Context(), Config{Data: into, HTTP: "127.0.0.1:0", NATSListen: "127.0.0.1:0", Durability: "group", LogFormat: "text", LogLevel: "warn"}, &bytes.Buffer{}); err == nil ||
			!strings.Contains(err.Error(), into) {
			t.Fatalf("an incomplete folder is served: %v", err)
		}
	}
	t.Logf("%d kills, %d left an incomplete folder", killed, incomplete)
	if incomplete == 0 {
		must(t, os.MkdirAll(into, 0o700))
	}
	if _, err := os.Lstat(filepath.Join(into, "high-water.json")); err != nil || checkRestored(into) != nil {
		x.wants(0, "restore", full, "--identity", identityFile, "--signed-by", "any", "--into", into)
	}
	copyKey(t, data, into)
	r := bring(t, into)
	if reasons := r.notReadyReasons(t); reasons != "" {
		t.Errorf("the restored service is not ready: %s", reasons)
	}
	if diff := cmp.Diff(original, r.stored(t, backup.KindLog, end)); diff != "" {
		t.Errorf("the log differs: %s", diff)
	}
}

// meddling calls before and after each read of the vault with its number.
type meddling struct {
	backup.Streams
	reads         int
	before, after func(read int)
}

func (m *meddling) Read(ctx context.Context, kind string, after, upTo uint64) ([]backup.Message, error) {
	if kind != backup.KindVault {
		return m.Streams.Read(ctx, kind, after, upTo)
	}
	m.reads++
	m.before(m.reads)
	defer m.after(m.reads)
	return m.Streams.Read(ctx, kind, after, upTo)
}

// A credential is created after the vault was read, and deleted after the end of the log was:
// the log of the backup goes on to where it is deleted.
func TestBackupReadsOn(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	u.create(t)
	identityFile, recipient, _ := identity(t)
	short := ""
	u.svc.Backups.Streams = &meddling{Streams: u.svc.Backups.Streams, after: func(read int) {
		if read == 1 {
			short = u.create(t)
		}
	}, before: func(read int) {
		if read == 2 {
			must(t, u.command("credential.delete", "", map[string]any{"id": short}, nil))
			within(t, "the secret is erased", func() bool { return len(u.secretsOf(t, "credential", short)) == 0 })
		}
	}}
	x := newTransferrer(t, u, adminKey)
	full := filepath.Join(t.TempDir(), "full")
	x.wants(0, "backup", full, "--to", recipient)
	x.wants(0, "backup", "verify", full, "--identity", identityFile, "--signed-by", "any", "--json")
	var c struct{ To uint64 }
	must(t, json.Unmarshal(x.out.Bytes(), &c))
	if deleted := logEnd(t, u.program); short == "" || c.To != deleted {
		t.Errorf("the backup ends at commit %d, before the deletion by %d", c.To, deleted)
	}
}
