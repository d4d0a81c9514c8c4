package verify_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/credstream/credstream/verify"
)

// FuzzTemplate: whatever a value holds, it stays where the template puts it. The
// request is refused, or its scheme, host, path segments, query parameters,
// header fields and body have the template's structure and hold the value whole.
func FuzzTemplate(f *testing.F) {
	for _, v := range []string{
		"acme", "", "a b", "a/b", "..", `..\..`, "a?b=c&d=e#f", "%2e%2e%2f", "%", "\r\nHost: evil.net", "\x00", "evil.net/", "me@evil.net", "evil.net:443",
		"{{other}}", "}}{{", `"},{"`, "ü", "１２７.0.0.1", "\xff", "a;b", "+", "a:b", "-", ".", "127.0.0.1", "\u2028", `\u0022`, canary,
	} {
		f.Add(v, v)
		f.Add("acme", v)
		f.Add(v, "secret")
	}
	f.Fuzz(func(t *testing.T, sub, v string) {
		vals := values(map[string]string{"sub": sub, "v": v, "other": "OTHER"})
		hosts := []string{"{{sub}}.example.com"}
		target := "https://{{sub}}.example.com/a/{{v}}/b?x=1&k={{v}}&y={{sub}}"

		req, err := verify.Request(&verify.HTTP{URL: target}, hosts, vals)
		if err == nil {
			u, parseErr := url.Parse(req.URL.String())
			if parseErr != nil {
				t.Fatalf("not a URL: %v", parseErr)
			}
			if u.Scheme != "https" || u.User != nil || u.Fragment != "" || u.Host != strings.ToLower(sub)+".example.com" || req.Host != u.Host || u.Port() != "" {
				t.Fatalf("left the host: %q", u)
			}
			segments := strings.Split(u.EscapedPath(), "/")
			if len(segments) != 4 || segments[1] != "a" || segments[3] != "b" || segments[2] != url.PathEscape(v) {
				t.Fatalf("left the path: %q", u)
			}
			if clean := strings.FieldsFunc(u.Path, func(r rune) bool { return r == '/' || r == '\\' }); strings.Contains("/"+strings.Join(clean, "/")+"/", "/../") {
				t.Fatalf("climbs: %q", u)
			}
			q, queryErr := url.ParseQuery(u.RawQuery)
			if queryErr != nil || len(q) != 3 || q.Get("x") != "1" || len(q["k"]) != 1 || q.Get("k") != v || q.Get("y") != sub {
				t.Fatalf("left the query: %q, %v", u, queryErr)
			}
		} else if !errors.Is(err, verify.ErrValueInvalid) && !errors.Is(err, verify.ErrHostRefused) {
			t.Fatalf("refused with %v", err)
		}
		if err != nil && len(v) > 12 && strings.Contains(err.Error(), v) {
			t.Fatalf("the value came out: %v", err)
		}

		const plain = "https://api.example.com/"
		api := []string{"api.example.com"}
		if req, err := verify.Request(&verify.HTTP{URL: plain, Headers: map[string]string{"X-Key": "Key {{v}}!"}}, api, vals); err == nil {
			var wire strings.Builder
			if err := req.Header.Write(&wire); err != nil {
				t.Fatal(err)
			}
			if got, want := wire.String(), "User-Agent: credstream\r\nX-Key: Key "+v+"!\r\n"; got != want {
				t.Fatalf("left the header: %q, want %q", got, want)
			}
		} else if !errors.Is(err, verify.ErrValueInvalid) {
			t.Fatalf("refused with %v", err)
		}
		if req, err := verify.Request(&verify.HTTP{URL: plain, Basic: &verify.Basic{Username: "{{v}}", Password: "{{sub}}"}}, api, vals); err == nil {
			user, pass, ok := req.BasicAuth()
			if !ok || user != v || pass != sub {
				t.Fatalf("left basic: %q", req.Header.Get("Authorization"))
			}
			if _, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(req.Header.Get("Authorization"), "Basic ")); err != nil {
				t.Fatal(err)
			}
		}
		if req, err := verify.Request(&verify.HTTP{Method: "POST", URL: plain, Form: map[string]string{"a": "{{v}}", "b": "x{{sub}}"}}, api, vals); err == nil {
			body, _ := io.ReadAll(req.Body)
			q, err := url.ParseQuery(string(body))
			if err != nil || len(q) != 2 || len(q["a"]) != 1 || q.Get("a") != v || q.Get("b") != "x"+sub {
				t.Fatalf("left the form: %q", body)
			}
		}
		req, err = verify.Request(&verify.HTTP{Method: "POST", URL: plain, JSON: []byte(`{"a": ["{{v}}", 1], "b": "x{{v}}"}`)}, api, vals)
		switch {
		case err != nil && utf8.ValidString(v) && len(v) < 1000:
			t.Fatalf("text refused in a body: %v", err)
		case err == nil:
			body, _ := io.ReadAll(req.Body)
			var got struct {
				A []any
				B string
			}
			if err := json.Unmarshal(body, &got); err != nil || len(got.A) != 2 || got.A[0] != v || got.B != "x"+v {
				t.Fatalf("left the JSON: %q, %v", body, err)
			}
		}
	})
}
