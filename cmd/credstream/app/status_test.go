package app

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service/credential"
)

// The statuses of a credential are one closed set: what the feed tells, filters
// take, on every surface, and the reference and the help name.
func TestStatuses(t *testing.T) {
	known := []string{client.StatusVerified, client.StatusFailed, client.StatusUnverified, client.StatusReauthorizationRequired}
	var all []string
	for _, s := range events.Statuses() {
		all = append(all, string(s))
	}
	if !slices.Equal(all, known) {
		t.Errorf("the service has %q, the Go client %q", all, known)
	}
	reference, err := os.ReadFile("../../../docs/reference.md")
	must(t, err)
	for name, text := range map[string]string{
		"the reference": string(reference), "the refusal": credential.ErrStatus.Msg,
	} {
		if !strings.Contains(text, events.StatusChoice()) {
			t.Errorf("%s does not name %s", name, events.StatusChoice())
		}
	}
	if n := bytes.Count(reference, []byte(events.StatusChoice())); n < 3 { // of two filters and the refusal
		t.Errorf("the reference names the statuses %d times", n)
	}
	u := bring(t, t.TempDir())
	nc := u.connect(t, adminKey)
	for _, query := range []string{"credential.list", "credential.counts"} {
		for _, status := range append(all, "revoked", "Verified") {
			want := ""
			if !slices.Contains(all, status) {
				want = "status_invalid"
			}
			if got, err := codeOf(u.query(query, "status="+status, nil)); err != nil || got != want {
				t.Errorf("%s of %q over HTTP: %q", query, status, got)
			}
			if got, err := codeOf(natsDo(t, nc, "credstream.query.default."+query, "", encode(t, map[string]string{"status": status}), nil)); err != nil || got != want {
				t.Errorf("%s of %q over NATS: %q", query, status, got)
			}
		}
	}
}
