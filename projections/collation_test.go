package projections_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
)

// Names sort as people of most languages expect, whichever way an accent is encoded and however the
// list is paged, and a search finds them in both ways.
func TestNamesAreCollated(t *testing.T) {
	v := open(t, filepath.Join(t.TempDir(), "views.db"))
	names := []string{"Zebra", "äpfel", "Apfel", "Banane", "e\u0301clair", "Éclair", "Eclairs", "Azur", "Äpfel, rot", "apfel", "_x", "1", "Østerport", "Oslo", "日本", "Ωmega"}
	want := []string{"_x", "1", "Apfel", "apfel", "äpfel", "Äpfel, rot", "Azur", "Banane", "e\u0301clair", "Éclair", "Eclairs", "Oslo", "Østerport", "Zebra", "Ωmega", "日本"}
	start := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	var recs []events.Record
	for i, name := range names {
		stream := events.StreamID{Tenant: "acme", Category: "credential", ID: fmt.Sprint("c", i)}
		recs = append(recs, events.Record{
			Stream: stream, Seq: uint64(i + 1), Of: 1, Meta: events.Meta{Tenant: "acme", Time: start, Command: fmt.Sprint(i)},
			Event: events.CredentialCreated{Component: "crm", Name: name, Keys: keys(1, verified)},
		})
	}
	if err := v.Apply(t.Context(), recs); err != nil {
		t.Fatal(err)
	}
	for _, f := range []projections.CredentialFilter{{}, {Desc: true}, {Component: "crm"}, {Turn: true}, {Status: events.Verified}} {
		for limit := 1; limit <= 17; limit += 4 {
			f.Tenant, f.Limit, f.After = "acme", limit, ""
			var got []string
			for {
				page, next, err := v.Credentials(t.Context(), f)
				if err != nil {
					t.Fatal(err)
				}
				for _, c := range page {
					got = append(got, c.Name)
				}
				if f.After = next; next == "" {
					break
				}
			}
			want := slices.Clone(want)
			if f.Turn { // the younger of equal names first
				want[2], want[3], want[8], want[9] = want[3], want[2], want[9], want[8]
			}
			if f.Desc {
				slices.Reverse(want)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%+v: %q, want %q", f, got, want)
			}
		}
	}
	for _, term := range []string{"éclair", "E\u0301CLAIR", "\u00c9cl"} {
		page, _, err := v.Credentials(t.Context(), projections.CredentialFilter{Tenant: "acme", NameContains: term})
		if err != nil || len(page) != 2 {
			t.Errorf("%q: %d rows, %v", term, len(page), err)
		}
	}
	if page, _, err := v.Credentials(t.Context(), projections.CredentialFilter{Tenant: "acme", NameContains: "OP"}); err != nil || len(page) != 0 {
		t.Errorf("a search finds the key: %v, %v", page, err)
	}
}
