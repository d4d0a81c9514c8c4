package v1_test

import (
	"net/http"
	"strings"
	"testing"

	v1 "github.com/credstream/credstream/api/v1"
)

const resolve = "/v1/tenants/acme/credential.resolve"

// A page of another origin changes nothing, whatever path and method it tries, and
// has nobody given anything: the query that is recorded is refused as commands are,
// and the key that a browser may send along is not even looked at. What is no
// browser says nothing of origins and does not notice.
func TestCrossOriginMatrix(t *testing.T) {
	e := newEdge(t)
	type target struct{ method, path string }
	var targets []target
	for _, path := range []string{resolve, create, "/v1/tenants/acme/commands/none", get, "/v1/x", "/", "/docs", "/healthz", "/none"} {
		for _, method := range []string{"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "QUERY"} {
			targets = append(targets, target{method, path})
		}
	}
	refused, taken := 0, 0
	for _, to := range targets {
		for _, site := range []string{"", "none", "same-origin", "same-site", "cross-site", "nonsense"} {
			for _, from := range []string{"", e.URL, "https://evil.example", "null", "http://127.0.0.1:1"} {
				header := http.Header{}
				if site != "" {
					header.Set("Sec-Fetch-Site", site)
				}
				if from != "" {
					header.Set("Origin", from)
				}
				safe := to.method == "GET" || to.method == "HEAD" || to.method == "OPTIONS"
				ours := site == "none" || site == "same-origin" || site == "" && (from == "" || from == e.URL)
				want := !ours && (!safe || to.path == resolve && to.method != "OPTIONS")

				req, err := http.NewRequestWithContext(t.Context(), to.method, e.URL+to.path, http.NoBody)
				if err != nil {
					t.Fatal(err)
				}
				req.Header = header
				req.Header.Set("Authorization", "Bearer "+key)
				resp, err := e.Client().Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body := make([]byte, 1000)
				n, _ := resp.Body.Read(body)
				_ = resp.Body.Close()
				got := resp.StatusCode == 403 && (to.method == "HEAD" || strings.Contains(string(body[:n]), `"code":"cross_origin_refused"`))
				if got != want {
					t.Errorf("%s %s, site %q, origin %q: %d %s", to.method, to.path, site, from, resp.StatusCode, body[:n])
				}
				calls := e.asked()
				if want {
					refused++
					if len(calls) > 0 {
						t.Errorf("%s %s, site %q, origin %q: the service was asked %+v", to.method, to.path, site, from, calls)
					}
				} else if len(calls) > 0 {
					taken++
				}
				for name := range resp.Header {
					if strings.HasPrefix(name, "Access-Control-") {
						t.Errorf("%s %s: another origin is let in by %s", to.method, to.path, name)
					}
				}
			}
		}
	}
	if refused < 500 || taken < 50 {
		t.Errorf("refused %d, taken %d: the matrix has shrunk", refused, taken)
	}
}

// Every answer has the headers that keep a browser from doing anything with it.
func TestSecurityHeaders(t *testing.T) {
	e := newEdge(t, func(c *v1.Config) { c.Ready = func() []string { return []string{"storage: full"} } })
	none := http.Header{"Authorization": nil}
	foreign := http.Header{"Sec-Fetch-Site": {"cross-site"}}
	for _, c := range []struct {
		r      request
		status int
		fail   any // what the service panics with
	}{
		{request{"GET", get, nil, nil}, 200, nil},
		{request{"POST", create, strings.NewReader("{}"), nil}, 200, nil},
		{request{"GET", "/openapi.json", nil, none}, 200, nil},
		{request{"GET", "/docs", nil, none}, 200, nil},
		{request{"GET", "/", nil, none}, 200, nil},
		{request{"GET", "/metrics", nil, none}, 200, nil},
		{request{"GET", "/readyz", nil, none}, 503, nil},
		{request{"GET", get, nil, none}, 401, nil},
		{request{"GET", "/none", nil, none}, 404, nil},
		{request{"DELETE", get, nil, nil}, 405, nil},
		{request{"OPTIONS", create, nil, none}, 405, nil},
		{request{"POST", create, nil, foreign}, 403, nil},
		{request{"GET", get, nil, nil}, 500, "a panic"},
	} {
		e.answer = func(string, []byte) (any, error) {
			if c.fail != nil {
				panic(c.fail)
			}
			return struct{}{}, nil
		}
		resp, _ := e.do(t, c.r)
		if resp.StatusCode != c.status {
			t.Errorf("%s %s: %d, want %d", c.r.method, c.r.path, resp.StatusCode, c.status)
		}
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
			"Cross-Origin-Resource-Policy": "same-origin",
		} {
			if got := resp.Header.Values(name); len(got) != 1 || got[0] != want {
				t.Errorf("%s %s: %s is %q", c.r.method, c.r.path, name, got)
			}
		}
		policy := resp.Header.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none';") || !strings.Contains(policy, "frame-ancestors 'none'") {
			t.Errorf("%s %s: the policy is %q", c.r.method, c.r.path, policy)
		}
	}
}
