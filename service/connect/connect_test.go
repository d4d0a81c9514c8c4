package connect_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/credstream/credstream/service/connect"
)

func TestPublicURL(t *testing.T) {
	for text, want := range map[string]string{
		"https://credstream.example.org":    "https://credstream.example.org",
		"https://credstream.example.org/":   "https://credstream.example.org",
		"https://example.org:8443/secrets/": "https://example.org:8443/secrets",
		"http://127.0.0.1:8080":             "http://127.0.0.1:8080",
		"http://[::1]:8080":                 "http://[::1]:8080",
		"http://localhost:8080":             "http://localhost:8080",
		"http://example.org":                "", "http://10.0.0.1": "", "": "", "https://": "", "example.org": "", "ftp://example.org": "",
		"https://user@example.org": "", "https://example.org?x": "", "https://example.org#x": "", `https://example.org\x`: "", "http://localhost.example.org": "",
	} {
		got, err := connect.PublicURL(text)
		if got != want || (want == "") != errors.Is(err, connect.ErrPublicURL) {
			t.Errorf("%q is %q, %v", text, got, err)
		}
	}
}

func TestReturnOrigin(t *testing.T) {
	for text, good := range map[string]bool{
		"https://app.example.org": true, "https://app.example.org:8443": true, "http://localhost:3000": true, "http://127.0.0.1": true,
		"https://app.example.org/": false, "https://app.example.org/x": false, "https://App.example.org": false, "http://app.example.org": false,
		"https://u@app.example.org": false, "*": false, "": false, "app.example.org": false, "https://app.example.org?x": false, "null": false,
	} {
		if _, err := connect.ReturnOrigin(text); good != (err == nil) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Codes of some providers are long, and one that is too long says so.
func TestLongCodes(t *testing.T) {
	for _, n := range []int{2471, 8 << 10} {
		if size, refusal, _ := connect.AnswerIn(url.Values{"code": {strings.Repeat("x", n)}}); size != n || refusal != "" {
			t.Errorf("%d bytes: %q", n, refusal)
		}
	}
	if _, refusal, _ := connect.AnswerIn(url.Values{"code": {strings.Repeat("x", 8193)}}); refusal != "connection_answer_invalid" {
		t.Errorf("8193 bytes: %q", refusal)
	}
}

// Whatever comes to the callback: one code that can be sent on, or one refusal, and
// words that can be shown.
func FuzzAnswer(f *testing.F) {
	for _, q := range []string{
		"code=x", "code=x&code=y", "error=access_denied&error_description=%3Cscript%3E", "code=x&error=y", "", "code=%00", "code=" + strings.Repeat("x", 8192), "code=" + strings.Repeat("x", 8193),
		"error=&error_description=%e2%80%ae%1b[31m%ff", "error=server_error", "error=x&error_description=" + strings.Repeat("%c3%a4", 500),
	} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		query, err := url.ParseQuery(raw)
		if err != nil {
			t.Skip()
		}
		size, refusal, says := connect.AnswerIn(query)
		if (size > 0) == (refusal != "") || size > 8<<10 {
			t.Errorf("a code of %d bytes and the refusal %q", size, refusal)
		}
		if size > 0 && (len(query["code"]) != 1 || query.Has("error")) {
			t.Error("a code is taken that does not stand alone")
		}
		if utf8.RuneCountInString(says) > 200 || !utf8.ValidString(says) || strings.ContainsFunc(says, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("to be shown: %q", says)
		}
	})
}

// An address that is taken leads where it seems to, with what is added to it.
func FuzzReturnTo(f *testing.F) {
	const origin = "https://app.example.org"
	for _, address := range []string{
		origin, origin + "/", origin + "?a=b", origin + "/x?a=b&c", "http://127.0.0.1:80/x", "http://[::1]:80", origin + "@evil.example", origin + ".evil.example", "//evil.example", `https:\\evil.example`,
	} {
		f.Add(address)
	}
	f.Fuzz(func(t *testing.T, address string) {
		if address == "" || !connect.ReturnsTo(address, origin) {
			t.Skip()
		}
		u, err := url.Parse(connect.WithParameters(address, "connection", "x1", "confirm", "a&b=c"))
		if err != nil || u.User != nil || u.Fragment != "" {
			t.Fatalf("%q becomes %v, %v", address, u, err)
		}
		loopback := u.Scheme == "http" && (u.Hostname() == "127.0.0.1" || u.Hostname() == "::1") && u.Port() != ""
		if at := u.Scheme + "://" + u.Host; at != origin && !loopback {
			t.Errorf("%q leads to %q", address, at)
		}
		if q := u.Query(); len(q["connection"]) != 1 || q.Get("connection") != "x1" || q.Get("confirm") != "a&b=c" {
			t.Errorf("%q brings %v", address, q)
		}
	})
}
