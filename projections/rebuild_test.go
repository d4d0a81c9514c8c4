package projections_test

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
)

var rebuildCommits = flag.Int("rebuild-commits", 30_000, "commits of the log in TestRebuildOfABusyLog: 500000 are those of a large installation")

// busy is a log of n commits: of ten, two create a credential, three rename one,
// one deletes one and four renew tokens, each of any credential that there is.
func busy(n int) []events.Record {
	rng := rand.New(rand.NewPCG(3, 4))
	made := created(n/5 + 1)
	var live []events.StreamID
	epochs := map[events.StreamID]int{}
	recs := make([]events.Record, 0, n)
	for i := range n {
		rec := made[0] // the first: its meta serves as a pattern
		rec.Seq, rec.Meta.Commit, rec.Meta.Command = uint64(i+1), fmt.Sprintf("0198c1a0-0000-7000-8000-%012d", i), fmt.Sprintf("cmd-%d", i)
		if i%5 == 0 {
			rec.Stream, rec.Event = made[i/5].Stream, made[i/5].Event
			rec.Meta.Tenant = rec.Stream.Tenant
			live = append(live, rec.Stream)
			recs = append(recs, rec)
			continue
		}
		k := rng.IntN(len(live))
		rec.Stream = live[k]
		rec.Meta.Tenant = rec.Stream.Tenant
		switch {
		case i%10 <= 3:
			rec.Event = events.CredentialRenamed{Name: fmt.Sprintf("%s %s", words[rng.IntN(len(words))], words[rng.IntN(len(words))])}
		case i%10 == 6 && len(live) > 1:
			rec.Event = events.CredentialDeleted{}
			live[k] = live[len(live)-1]
			live = live[:len(live)-1]
		case epochs[rec.Stream]%2 == 0:
			epochs[rec.Stream]++
			rec.Event = events.CredentialRefreshStarted{Epoch: epochs[rec.Stream]/2 + 1, Grant: 1, SecretID: "s", Holder: "h"}
		default:
			rec.Event = events.CredentialRefreshed{Epoch: epochs[rec.Stream]/2 + 1, Grant: 1, SecretID: "s", Expires: rec.Meta.Time.Add(time.Hour), Lifetime: 3600}
			epochs[rec.Stream]++
		}
		recs = append(recs, rec)
	}
	return recs
}

// dumpFile writes the dump into a file, since that of a busy log is large, and
// returns the path.
func dumpFile(t *testing.T, v *projections.Views) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "dump"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := v.Dump(context.Background(), f); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// A log with many renames, deletes and renewals of tokens can be rebuilt, into
// the same rows as the views that followed it commit by commit.
func TestRebuildOfABusyLog(t *testing.T) {
	recs := busy(*rebuildCommits)
	live := open(t, filepath.Join(t.TempDir(), "views.db"))
	for rest := recs; len(rest) > 0; rest = rest[min(1000, len(rest)):] {
		if err := live.Apply(t.Context(), rest[:min(1000, len(rest))]); err != nil {
			t.Fatal(err)
		}
	}
	rebuilt := open(t, filepath.Join(t.TempDir(), "views.db"))
	if err := rebuilt.Rebuild(t.Context(), tape{recs: recs}, nil); err != nil {
		t.Fatal(err)
	}
	a, b := dumpFile(t, live), dumpFile(t, rebuilt)
	rows, diff := compareLines(t, a, b)
	if diff != "" {
		t.Errorf("the rebuilt views differ from those that followed the log: %s", diff)
	}
	t.Logf("%d commits, %d rows alike", len(recs), rows)
}

// compareLines returns the number of lines of two files and the first that differ.
func compareLines(t *testing.T, a, b string) (lines int, diff string) {
	t.Helper()
	var files [2]*bufio.Scanner
	for i, path := range []string{a, b} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = bufio.NewScanner(f)
		files[i].Buffer(nil, 1<<20)
	}
	for {
		moreA, moreB := files[0].Scan(), files[1].Scan()
		if moreA != moreB || files[0].Text() != files[1].Text() {
			return lines, fmt.Sprintf("line %d: %.300q, %.300q", lines+1, files[0].Text(), files[1].Text())
		}
		if !moreA {
			if err := errors.Join(files[0].Err(), files[1].Err()); err != nil {
				t.Fatal(err)
			}
			return lines, ""
		}
		lines++
	}
}

// SQLite says "database or disk is full" of an index without a free segment too.
func TestAFullIndexIsNotCalledAFullDisk(t *testing.T) {
	if err := projections.ExhaustNames(filepath.Join(t.TempDir(), "views.db")); !errors.Is(err, projections.ErrIndexFull) {
		t.Errorf("the index has no segment left, and the error is %v", err)
	}
}
