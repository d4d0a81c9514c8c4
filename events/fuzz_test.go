package events_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/credstream/credstream/events"
)

// FuzzToken checks that an id and its token are the same thing in two
// spellings, that no two ids share a token, and that a token is safe in a subject.
func FuzzToken(f *testing.F) {
	ids := []string{"a", "A", "AAABcID5GBc=", "=", "==", "=YQ", "YQ", "a.b", "*", ">", " ", "日本", "\x00", "\xff", "", strings.Repeat("x", 64), strings.Repeat("x", 65), strings.Repeat("é", 64)}
	for _, id := range ids {
		f.Add(id, "a")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if id, err := events.ParseToken(b); err == nil && events.Token(id) != b {
			t.Errorf("token %q is read as %q, whose token is %q", b, id, events.Token(id))
		}
		if events.CheckID(a) != nil {
			if id, err := events.ParseToken(events.Token(a)); err == nil {
				t.Errorf("%q is no id and is read as %q", a, id)
			}
			return
		}
		token := events.Token(a)
		if strings.ContainsAny(token, ".*> \t\r\n/\\") || token == "" {
			t.Errorf("%q has token %q", a, token)
		}
		if id, err := events.ParseToken(token); err != nil || id != a {
			t.Errorf("%q is read back as %q, %v", a, id, err)
		}
		if a != b && token == events.Token(b) {
			t.Errorf("%q and %q have one token", a, b)
		}
		stream := events.StreamID{Tenant: "acme", Category: "credential", ID: a}
		if got, err := events.ParseSubject("p.q", stream.Subject("p.q")); err != nil || got != stream {
			t.Errorf("%v is read back as %v, %v", stream, got, err)
		}
	})
}

// FuzzParseSubject checks that each stream has one subject.
func FuzzParseSubject(f *testing.F) {
	for _, s := range []string{"p.acme.credential.a", "p.acme.credential.=QQ", "p.acme.credential.=QUFBQmNJRDVHQmM9", "p.acme.credential", "p.a.b.c.d", "q.a.b.c", "p._system.component.x", "p.a.b.=", "p...", "p.a.b.==AAA"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, subject string) {
		stream, err := events.ParseSubject("p", subject)
		if err == nil && stream.Subject("p") != subject {
			t.Errorf("%q is read as %v, whose subject is %q", subject, stream, stream.Subject("p"))
		}
	})
}

// FuzzLengthPrefixed checks that different lists of parts never have one
// encoding: neither moving a boundary nor adding an empty part goes unseen.
func FuzzLengthPrefixed(f *testing.F) {
	f.Add("a", "bc", "ab", "c")
	f.Add("", "", "", "\x00\x00\x00\x00")
	f.Add("\x00\x00\x00\x01a", "", "", "a")
	f.Fuzz(func(t *testing.T, a, b, c, d string) {
		lists := [][]string{{a, b}, {c, d}, {a + b}, {a, b, ""}, {a, b, c}, {a}, {}, {"", a, b}, {a, b + c, d}, {a, b, c + d}}
		for i, x := range lists {
			for _, y := range lists[:i] {
				same := string(events.LengthPrefixed(x...)) == string(events.LengthPrefixed(y...))
				if same != cmp.Equal(x, y) {
					t.Errorf("%q and %q: encoded alike is %v", x, y, same)
				}
			}
		}
	})
}

// FuzzDecodeCommit checks that nothing makes the reader panic, and that what it
// reads it writes with the same meaning.
func FuzzDecodeCommit(f *testing.F) {
	reg := events.All()
	for _, e := range samples {
		body, err := reg.EncodeCommit(meta, []events.Event{e})
		if err != nil {
			f.Fatal(err)
		}
		f.Add("acme", body)
	}
	all, err := reg.EncodeCommit(meta, samples)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(events.System, all)
	f.Add("other", all)
	f.Add("acme", all[:len(all)/2])
	f.Add("acme", []byte(`{"meta":{"commit":"c","tenant":"acme","time":"2030-01-02T03:04:05.999999999+01:00"},"events":[{"type":"credential.deleted","v":1,"data":null}]}`))
	f.Fuzz(func(t *testing.T, tenant string, body []byte) {
		stream := events.StreamID{Tenant: tenant, Category: "credential", ID: "a"}
		recs, err := reg.DecodeCommit(stream, 1, body)
		if err != nil {
			if recs != nil {
				t.Error("records beside an error")
			}
			return
		}
		m := recs[0].Meta
		var evs []events.Event
		for i, r := range recs {
			if r.Stream != stream || r.Seq != 1 || r.Index != i || r.Of != len(recs) || r.Meta != m {
				t.Errorf("record %d is %+v", i, r)
			}
			evs = append(evs, r.Event)
		}
		again, err := reg.EncodeCommit(m, evs)
		if err != nil {
			if len(body) < events.MaxCommit/8 { // it may have grown too large
				t.Errorf("what was read cannot be written: %v", err)
			}
			return
		}
		m.Time = m.Time.UTC().Truncate(time.Microsecond)
		for i := range recs {
			recs[i].Meta = m
		}
		got, err := reg.DecodeCommit(stream, 1, again)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if diff := cmp.Diff(recs, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("written and read again (-want +got):\n%s", diff)
		}
	})
}
