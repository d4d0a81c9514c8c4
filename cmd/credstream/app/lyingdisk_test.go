package app

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/credstream/credstream/bus/storage"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/events/storetest"
	"github.com/credstream/credstream/vault"
)

// A disk acknowledges every fsync and loses what was written: below the log, the vault or
// both, with the marks or without. What tells a part of it is left, so the next start says
// what is missing, and writes nothing.
// Where all of it lies on the one disk, which loses
// all since the same moment, nothing can tell: that start is as of that moment.
func TestLyingDisk(t *testing.T) {
	const water, marks = "high-water.json", "marks.json"
	for _, row := range []struct {
		name  string
		disks []string // streams, each on a disk that lies; "" is one below the whole folder
		files []string // that are lost, too
		says  string
	}{
		{"the log", []string{eventlog.Stream}, nil, "durable up to commit "},
		{"the vault", []string{vault.Stream}, nil, "stream " + vault.Stream + " ends at message "},
		{"both", []string{eventlog.Stream, vault.Stream}, nil, "stream " + vault.Stream + " ends at message "},
		{"the log and its mark", []string{eventlog.Stream}, []string{water}, "read models"},
		{"the vault and its mark", []string{vault.Stream}, []string{marks}, "misses a secret of credential"},
		{"both, the marks and the read models", []string{eventlog.Stream, vault.Stream}, []string{water, marks, "views.db"}, "feed"},
		{"the folder", []string{""}, nil, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			data := filepath.Join(t.TempDir(), "data")
			p := spawn(t, data)
			registerPlain(t, p.http)
			create := func() (id string, seq uint64) {
				var made done
				must(t, caller(p).command("credential.create", "", map[string]any{"component": "plain", "keys": map[string]any{"apiKey": "k"}}, &made))
				return made.ID, made.Seq
			}
			first, _ := create()
			_ = p.kill(syscall.SIGTERM)
			var disks []*storetest.Disk
			for _, stream := range row.disks {
				dir, size := data, int64(1<<30) // the space that is free is watched there
				if stream != "" {
					dir, size = filepath.Dir(blocks(data, stream)), 64<<20
				}
				disks = append(disks, storetest.NewDiskAt(t, dir, size))
			}
			p = spawn(t, data)
			second, seq := create()
			kept := []string{first, second}
			marked(t, data, p, seq, len(kept))
			for _, d := range disks {
				d.Lie(t)
			}
			older := t.TempDir()
			for _, file := range row.files {
				copyFile(t, filepath.Join(older, file), filepath.Join(data, file))
			}
			const lost = 3
			for range lost {
				_, seq = create()
			}
			marked(t, data, p, seq, len(kept)+lost)
			_ = p.kill(syscall.SIGKILL)
			for _, d := range disks {
				d.Forget(t)
			}
			for _, file := range row.files {
				copyFile(t, filepath.Join(data, file), filepath.Join(older, file))
			}
			how := startsOrSaysWhy(t, data, kept, 2*time.Minute)
			t.Log(how)
			switch {
			case row.says == "" && how != "ready":
				t.Error("a folder as it once was is not served:", how)
			case row.says != "" && (how == "ready" || !strings.Contains(how, row.says)):
				t.Errorf("%d changes are lost, and the start does not say %q: %s", lost, row.says, how)
			}
		})
	}
}

// copyFile copies a file of a data folder, and a database with what stands beside it.
func copyFile(t *testing.T, to, from string) {
	t.Helper()
	for _, suffix := range []string{"", "-wal", "-shm", ".clean"} {
		b, err := os.ReadFile(from + suffix)
		if os.IsNotExist(err) {
			_ = os.Remove(to + suffix) // it may not be there either
			continue
		}
		must(t, err)
		must(t, os.WriteFile(to+suffix, b, 0o600))
	}
}

// marked returns when the marks, the read models and the feed of a process are at a commit
// and at so many secrets.
func marked(t *testing.T, data string, p *process, seq uint64, secrets int) {
	t.Helper()
	must(t, caller(p).query("credential.list", fmt.Sprintf("limit=1&min_seq=%d", seq), nil))
	within(t, "the marks and what is made from the log are at its end", func() bool {
		resp, err := http.Get(p.http + "/metrics")
		must(t, err)
		metrics, err := io.ReadAll(resp.Body)
		must(t, errors.Join(err, resp.Body.Close()))
		var feed uint64
		for line := range strings.Lines(string(metrics)) {
			_, _ = fmt.Sscanf(line, "credstream_feed_position %d", &feed) // of the one line that it is
		}
		return feed >= seq && eventlog.Marked(filepath.Join(data, "high-water.json")) >= seq &&
			storage.MarkedLast(filepath.Join(data, "marks.json"), vault.Stream) >= uint64(secrets)
	})
}
