package projections_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/spec"
	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
)

var update = flag.Bool("update", false, "write the golden files that are missing; existing ones are for ever")

// What is not for everybody is listed here, so that nothing is hidden by mistake either.
func TestInternalFacts(t *testing.T) {
	hidden := []string{"secret.abandoned", "credential.refresh_started", "installation.durability_attested", "connector.use_abandoned", "throttle_policy.used", "throttle_policy.released", "credential.throttle_policy_use_abandoned", "command.started", "command.completed"}
	for _, typ := range events.All().Types() {
		internal := typ.Audience == events.Internal
		if internal != slices.Contains(hidden, typ.Name) || internal != (typ.PublicData() == nil) {
			t.Errorf("%s: audience %s, public data %v", typ.Name, typ.Audience, typ.PublicData())
		}
	}
}

// Who follows credentials, components and flows reads of these and of nothing
// else: a new category is for the audit stream until it is listed here.
func TestAudiences(t *testing.T) {
	followed := []string{"credential", "throttle_policy", "component", "flow", "oauth_client", "auth_client", "secret"}
	for _, typ := range events.All().Types() {
		category, fact, _ := strings.Cut(typ.Name, ".")
		want := events.Audit
		if slices.Contains(followed, category) && fact != "revealed" || typ.Name == "api_key.expiring" { // which warns those who have no audit stream, too
			want = events.Changes
		}
		if typ.Audience != want && typ.Audience != events.Internal {
			t.Errorf("%s is for the audience %q, want %q", typ.Name, typ.Audience, want)
		}
	}
}

// feedText is a message as a golden file holds it.
func feedText(m projections.Message) string {
	var b strings.Builder
	fmt.Fprintf(&b, "subject %s\n", cmp.Or(m.Subject, m.AuditSubject))
	for _, h := range m.Headers() {
		fmt.Fprintf(&b, "%s: %s\n", h[0], h[1])
	}
	fmt.Fprintf(&b, "\n%s\n", m.Data)
	return b.String()
}

func TestFeedGolden(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range everything() {
		r.Meta.Commit, r.Meta.Correlation = "0198c1a0-0000-7000-8000-000000000001", "corr-1"
		m, ok := projections.Public(r)
		if !ok || seen[m.Type] {
			continue
		}
		seen[m.Type] = true
		file := filepath.Join("testdata", "feed", strings.TrimPrefix(m.Type, "credstream.")+".golden")
		want, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) && *update {
			want = []byte(feedText(m))
			err = os.WriteFile(file, want, 0o600)
		}
		if err != nil {
			t.Error(err)
			continue
		}
		if diff := gocmp.Diff(string(want), feedText(m)); diff != "" {
			t.Errorf("%s has changed, and others rely on it: %s", m.Type, diff)
		}
	}
	for _, typ := range events.All().Types() {
		if typ.Audience != events.Internal && !seen["credstream."+typ.Name+".v1"] {
			t.Errorf("%s has no golden file", typ.Name)
		}
	}
}

func TestFeedTellsNoSecrets(t *testing.T) {
	for _, r := range everything() {
		m, ok := projections.Public(r)
		switch r.Event.(type) {
		case events.SecretAbandoned, events.DurabilityAttested:
			if ok {
				t.Errorf("%T is public", r.Event)
			}
			continue
		}
		text := strings.NewReplacer("connector_secret.", "", "api_key_secret_id", "").Replace(feedText(m)) // names, and the id that callers know
		for _, word := range []string{"secret", "mac", strings.Repeat("ab", 32), `"{`} {
			if strings.Contains(text, word) {
				t.Errorf("%s tells %q: %s", m.Type, word, m.Data)
			}
		}
	}
}

func TestFeedPlaces(t *testing.T) {
	var last projections.Message
	for _, r := range everything() {
		m, ok := projections.Public(r)
		if !ok {
			continue
		}
		if m.LogSeq < last.LogSeq || m.LogSeq == last.LogSeq && m.LogIndex <= last.LogIndex {
			t.Errorf("(%d, %d) comes after (%d, %d)", m.LogSeq, m.LogIndex, last.LogSeq, last.LogIndex)
		}
		rest := fmt.Sprintf(".acme.%s.%s", r.Stream.Category, events.Token(r.Stream.ID))
		if m.AuditSubject != "credstream.audit"+rest {
			t.Errorf("audit subject %q, want credstream.audit%s", m.AuditSubject, rest)
		}
		if public := m.Audience == events.Changes; public != (m.Subject == "credstream.events"+rest) || !public && m.Subject != "" {
			t.Errorf("subject %q of %s, which is for the audience %s", m.Subject, m.Type, m.Audience)
		}
		last = m
	}
}

// natsMessage reads a message as the CloudEvents SDK's own NATS binding does.
type natsMessage struct {
	headers [][2]string
	data    []byte
}

var prefixed = spec.WithPrefix("ce-")

func (natsMessage) ReadEncoding() binding.Encoding { return binding.EncodingBinary }

func (natsMessage) ReadStructured(context.Context, binding.StructuredWriter) error {
	return binding.ErrNotStructured
}

func (m natsMessage) ReadBinary(_ context.Context, w binding.BinaryWriter) error {
	version := prefixed.Version("1.0")
	for _, h := range m.headers {
		var err error
		if attr := version.Attribute(h[0]); attr != nil {
			err = w.SetAttribute(attr, h[1])
		} else {
			err = w.SetExtension(strings.TrimPrefix(h[0], "ce-"), h[1])
		}
		if err != nil {
			return err
		}
	}
	return w.SetData(bytes.NewReader(m.data))
}

func (m natsMessage) GetAttribute(kind spec.Kind) (spec.Attribute, any) {
	attr := prefixed.Version("1.0").AttributeFromKind(kind)
	for _, h := range m.headers {
		if attr != nil && h[0] == attr.PrefixedName() {
			return attr, h[1]
		}
	}
	return attr, nil
}

func (m natsMessage) GetExtension(name string) any {
	for _, h := range m.headers {
		if h[0] == "ce-"+name {
			return h[1]
		}
	}
	return nil
}

func (natsMessage) Finish(error) error { return nil }

func TestTheCloudEventsSDKReadsTheFeed(t *testing.T) {
	for _, r := range everything() {
		r.Meta.Correlation, r.Meta.Causation = "corr-1", "cause-1"
		m, ok := projections.Public(r)
		if !ok {
			continue
		}
		e, err := binding.ToEvent(t.Context(), natsMessage{m.Headers(), m.Data})
		if err == nil {
			err = e.Validate()
		}
		if err != nil {
			t.Errorf("%s: %v", m.Type, err)
			continue
		}
		got := map[string]any{
			"id": e.ID(), "type": e.Type(), "source": e.Source(), "time": e.Time().Format(time.RFC3339Nano), "content": e.DataContentType(), "version": e.SpecVersion(),
			"data": string(e.Data()), "subject": unescaped(t, e.Subject()), "extensions": e.Extensions(),
		}
		want := map[string]any{
			"id": r.ID(), "type": m.Type, "source": "/credstream/acme", "time": r.Meta.Time.Format(time.RFC3339Nano), "content": "application/json", "version": "1.0",
			"data": string(m.Data), "subject": r.Stream.String(), "extensions": map[string]any{
				"tenant": "acme", "actor": "key:k1", "commandid": strings.ReplaceAll(strings.ReplaceAll(r.Meta.Command, " ", "%20"), "ü", "%C3%BC"),
				"correlationid": "corr-1", "causationid": "cause-1", "logseq": fmt.Sprint(r.Seq), "logindex": fmt.Sprint(r.Index),
			},
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", m.Type, diff)
		}
	}
}

func unescaped(t *testing.T, s string) string {
	t.Helper()
	u, err := url.PathUnescape(s)
	if err != nil {
		t.Error(err)
	}
	return u
}

// Header values are printable ASCII without spaces and quotes, and decode to
// what they were: CloudEvents NATS protocol binding, "NATS Header Values".
func TestHeaderValues(t *testing.T) {
	m := projections.Message{EventSubject: "Euro € 😀", Actor: `a"b%c` + "\r\n\x7f~!"}
	for _, h := range m.Headers() {
		switch h[0] {
		case "ce-subject":
			if want := "Euro%20%E2%82%AC%20%F0%9F%98%80"; h[1] != want { // the specification's example
				t.Errorf("%q, want %q", h[1], want)
			}
		case "ce-actor":
			if want := `a%22b%25c%0D%0A%7F~!`; h[1] != want {
				t.Errorf("%q, want %q", h[1], want)
			}
		case "ce-commandid", "ce-tenant", "ce-causationid":
			t.Errorf("%s is empty and there", h[0])
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "value")
		if !utf8.ValidString(s) || s == "" {
			return
		}
		for _, h := range (projections.Message{CommandID: s}).Headers() {
			if h[0] != "ce-commandid" {
				continue
			}
			if strings.ContainsFunc(h[1], func(r rune) bool { return r <= ' ' || r > '~' || r == '"' }) {
				t.Fatalf("%q is written %q", s, h[1])
			}
			if back, err := url.PathUnescape(h[1]); back != s || err != nil {
				t.Fatalf("%q comes back as %q, %v", s, back, err)
			}
		}
	})
}

func BenchmarkPublic(b *testing.B) {
	r := created(1)[0]
	for b.Loop() {
		m, _ := projections.Public(r)
		_ = m.Headers()
	}
}
