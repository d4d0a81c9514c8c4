package credential_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/stage"
)

// The pages of a history say what the whole says, wherever they begin: the version of
// the keys, too, which most facts do not name.
func TestHistoryPages(t *testing.T) {
	s := stage.New(t)
	stream := events.StreamID{Tenant: "default", Category: "credential", ID: events.NewID()}
	keys := func(version int) events.KeysVersion {
		return events.KeysVersion{Version: version, SecretID: events.NewID(), Revision: 1, Verification: events.Verification{Status: events.Verified}}
	}
	facts := []events.Event{events.CredentialCreated{Component: "petstore", Name: "0", Keys: keys(1)}}
	for version := 2; version <= 4; version++ {
		for i := range 5 {
			facts = append(facts, events.CredentialRenamed{Name: fmt.Sprint(version, i)})
		}
		facts = append(facts, events.SecretAbandoned{SecretID: events.NewID()}, events.CredentialKeysReplaced{Keys: keys(version)})
	}
	facts = append(facts, events.CredentialReverted{To: 1, Keys: keys(5)}, events.CredentialRenamed{Name: "last"}, events.CredentialDeleted{})
	var last uint64
	for _, f := range facts {
		meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "test"}, Command: events.NewID(), Time: time.Now(), Via: "system"}
		last = stage.Must(s.Store.Append(t.Context(), stream, last, meta, f))(t)
	}
	page := func(after uint64, limit int) credential.History {
		t.Helper()
		return stage.Must(s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "credential.history",
			fmt.Appendf(nil, `{"id":%q,"after":%d,"limit":%d}`, stream.ID, after, limit)))(t).(credential.History)
	}
	whole := page(0, 1000).Events
	if got := whole[len(whole)-1]; len(whole) != len(facts)-3 || got.Version != 0 || whole[len(whole)-2].Version != 5 {
		t.Fatalf("%d of %d facts, the last %+v", len(whole), len(facts)-3, got)
	}
	afters := []uint64{last + 1}
	for _, e := range slices.Backward(whole) {
		afters = append(afters, e.Seq, e.Seq-1)
	}
	for range 2 { // from the end to the start, and again with what the first round left behind
		for _, after := range afters {
			var want []credential.HistoryEntry
			for _, e := range whole {
				if e.Seq > after {
					want = append(want, e)
				}
			}
			got := page(after, 3)
			if diff := cmp.Diff(want[:min(3, len(want))], append([]credential.HistoryEntry(nil), got.Events...)); diff != "" {
				t.Fatalf("after %d (-want +got):\n%s", after, diff)
			}
			if (got.Next != 0) != (len(want) > 3) {
				t.Fatalf("after %d: next is %d where %d facts follow", after, got.Next, len(want))
			}
		}
		slices.Reverse(afters)
	}
}

// BenchmarkHistoryPage reads ten facts of a credential that has 50,000.
func BenchmarkHistoryPage(b *testing.B) {
	const facts = 50_000
	s := stage.New(b)
	stream := events.StreamID{Tenant: "default", Category: "credential", ID: events.NewID()}
	meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "test"}, Command: "c", Time: time.Now(), Via: "system"}
	last := stage.Must(s.Store.Append(b.Context(), stream, 0, meta, events.CredentialCreated{Component: "petstore", Name: "n", Keys: events.KeysVersion{Version: 1}}))(b)
	places := []uint64{last}
	for i := range facts - 1 {
		last = stage.Must(s.Store.Stage(b.Context(), stream, last, meta, events.CredentialRenamed{Name: fmt.Sprint(i)}))(b)
		places = append(places, last)
	}
	stage.OK(b, s.Store.WaitDurable(b.Context(), last))
	for _, c := range []struct {
		name  string
		after uint64
	}{{"first", 0}, {"middle", places[facts/2]}, {"last", places[facts-11]}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				h := stage.Must(s.Service.Serve(b.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "credential.history",
					fmt.Appendf(nil, `{"id":%q,"after":%d,"limit":10}`, stream.ID, c.after)))(b).(credential.History)
				if len(h.Events) != 10 {
					b.Fatalf("%d facts", len(h.Events))
				}
			}
		})
	}
}
