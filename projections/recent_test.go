package projections_test

import (
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
)

// A change that was applied is read, by its id and in lists, also where another reader was about
// to cache what it had read before.
func TestReadsShowWhatWasApplied(t *testing.T) {
	const changes = 1000
	v := open(t, filepath.Join(t.TempDir(), "views.db"))
	all := [][]events.Event{{events.CredentialCreated{Component: "petstore", Name: "n0", Keys: keys(1, verified)}}}
	for n := range changes {
		all = append(all, []events.Event{events.CredentialRenamed{Name: fmt.Sprint("n", n+1)}})
	}
	recs := commits(events.StreamID{Tenant: "acme", Category: "credential", ID: "c1"}, 1, all...)
	var ended atomic.Bool
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for !ended.Load() {
				if _, _, err := v.Credential(t.Context(), "acme", "c1"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for n, r := range recs {
		if err := v.Apply(t.Context(), []events.Record{r}); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprint("n", n)
		c, _, err := v.Credential(t.Context(), "acme", "c1")
		if err != nil || c.Name != want {
			t.Fatalf("%q, %v, want %q", c.Name, err, want)
		}
		page, _, err := v.Credentials(t.Context(), projections.CredentialFilter{Tenant: "acme"})
		if err != nil || len(page) != 1 || page[0].Name != want {
			t.Fatalf("%+v, %v, want %q", page, err, want)
		}
	}
	ended.Store(true)
	readers.Wait()
}
