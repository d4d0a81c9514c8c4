package app

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/fault"
)

// lines decodes one JSON document per line.
func lines(t testing.TB, text string) (all []struct {
	Item, Line, Version int
	ID, Status          string
	Error               *fault.Problem
},
) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(text))
	for dec.More() {
		all = append(all, struct {
			Item, Line, Version int
			ID, Status          string
			Error               *fault.Problem
		}{})
		must(t, dec.Decode(&all[len(all)-1]))
	}
	return all
}

// Batches from the command line and the Go client, over the real service: each item is reported,
// in order, by the number of its line; a repeat with the same command id does nothing twice.
func TestBatchCommands(t *testing.T) {
	u := bring(t, t.TempDir())
	pets := newPetstore(t, "canary-pet")
	must(t, u.command("component.register", "", map[string]any{"id": "petstore", "descriptor": verified(t, pets)}, nil))
	x := newTransferrer(t, u, adminKey)
	give := func(stdin string, code int, args ...string) string {
		t.Helper()
		x.stdin = strings.NewReader(stdin)
		return x.wants(code, append([]string{"credential"}, args...)...)
	}

	var input strings.Builder
	for i := range 600 { // more than two calls
		fmt.Fprintf(&input, "{\"id\":\"many-%03d\",\"type\":\"crm\",\"description\":\"No. %d\",\"keys\":{\"k\":\"canary\"}}\n", i, i)
	}
	input.WriteString("\n{\"component\":\"petstore\",\n \"keys\":{\"apiKey\":\"canary-wrong\"}} {\"type\":\"crm\",\"keyz\":{}}\n")
	input.WriteString(`{"id":"many-000","type":"crm","keys":{}}`)
	first := lines(t, give(input.String(), 2, "create-many", "-", "--json", "--command-id", "load-1"))
	if len(first) != 603 {
		t.Fatalf("%d lines", len(first))
	}
	for i, l := range first {
		if want := fmt.Sprintf("many-%03d", i); l.Item != i+1 || i < 600 && (l.ID != want || l.Error != nil || l.Version != 1 || l.Line != i+1) {
			t.Fatalf("line %d is %+v", i, l)
		}
	}
	for i, want := range map[int]struct {
		line       int
		code, from string
	}{600: {602, "credential_verification_failed", ""}, 601: {603, "body_invalid", "/keyz"}, 602: {604, "credential_exists", ""}} {
		if l := first[i]; l.Error == nil || l.Error.Code != want.code || l.Line != want.line || !strings.HasPrefix(l.Error.Pointer, want.from) {
			t.Errorf("line %d is %+v %+v", i, l, l.Error)
		}
	}
	end := logEnd(t, u.program)
	if again := give(input.String(), 2, "create-many", "-", "--json", "--command-id", "load-1"); len(lines(t, again)) != 603 || logEnd(t, u.program) != end {
		t.Errorf("a repeat made %d commits", logEnd(t, u.program)-end)
	}

	out := give(`[{"id":"many-001","description":"first"}, {"id":"nobody","description":"second"}]`, 2, "update-many", "-")
	if out != "done     many-001 unverified\nrefused  nobody line 1: Credential not found. (credential_not_found)\nUpdated 1, refused 1.\n" ||
		x.errOut.String() != "1 of 2 items were refused. The others are done. (batch_incomplete)\n" {
		t.Errorf("update-many says %q %q", out, x.errOut.String())
	}
	must(t, u.command("throttle_policy.define", "", map[string]any{"id": "p", "tokens": 1, "per": "day"}, nil))
	give("", 0, "update-many", "--description", "No. 1", "--id", "many-010,many-100", "--id", "many-200", "--set-throttle-policy", "p")
	must(t, u.proj.Wait(t.Context(), logEnd(t, u.program)))
	if out := give("", 0, "search", "--throttle-policy", "p", "--json"); len(lines(t, out)) != 2 || !strings.Contains(out, `"id":"many-010"`) || !strings.Contains(out, `"id":"many-100"`) {
		t.Errorf("search says %s", out)
	}
	must(t, u.proj.Wait(t.Context(), logEnd(t, u.program)))
	found := give("", 0, "search", "--type", "crm", "--all", "--json")
	if got := lines(t, found); len(got) != 600 {
		t.Errorf("search found %d", len(got))
	}
	if out := give(found, 0, "delete-many", "-"); !strings.HasSuffix(out, "\nDeleted 600, refused 0.\n") || count(t, u) != 0 {
		t.Errorf("delete-many ends %q", out[max(0, len(out)-80):])
	}

	// The Go client, typed.
	api, err := client.New(client.Config{URL: u.base, Key: adminKey})
	must(t, err)
	keys, err := client.NewKeys(map[string]any{"k": "canary"})
	must(t, err)
	news := []client.CreateCredential{{ID: "a", Type: "t", Keys: keys}, {ID: "b", Type: "t", Keys: keys}, {ID: "a", Type: "t", Keys: keys}, {Component: "none", Keys: keys}}
	got := func(results func(yield func(client.BatchResult, error) bool)) (said []string) {
		t.Helper()
		for r, err := range results {
			must(t, err)
			said = append(said, fmt.Sprint(r.Item, r.ID, r.Version, batchCode(r.Err)))
		}
		return said
	}
	text := "x"
	change := client.CredentialUpdate{Description: &text}
	for _, tc := range []struct {
		what string
		got  []string
		want string
	}{
		{"create", got(api.CreateCredentials(t.Context(), news)), "[0a1 1b1 2a0item_repeated 30component_not_found]"},
		{"update", got(api.UpdateCredentials(t.Context(), []client.UpdateOne{{ID: "a", CredentialUpdate: change}, {ID: "c", CredentialUpdate: change}})), "[0a1 1c0credential_not_found]"},
		{"update selected", got(api.UpdateSelected(t.Context(), client.Selection{Type: "t"}, change)), "[0a1 1b1]"},
		{"delete", got(api.DeleteCredentials(t.Context(), []string{"b", "c"})), "[0b0 1c0credential_not_found]"},
		{"delete selected", got(api.DeleteSelected(t.Context(), client.Selection{Description: "X"})), "[0a0]"},
	} {
		if fmt.Sprint(tc.got) != tc.want {
			t.Errorf("%s: %v, want %s", tc.what, tc.got, tc.want)
		}
	}
}

// batchCode is the code of an error, "" of none.
func batchCode(err error) string {
	if err == nil {
		return ""
	}
	return fault.Of(err).Code
}
