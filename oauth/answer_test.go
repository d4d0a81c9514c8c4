package oauth_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/oauth/oauthtest"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/verify"
)

// granted is what a test looks at of a Token.
type granted struct {
	Access, Refresh string
	Lifetime        time.Duration
	Type, Scope     string
}

func look(t oauth.Token) granted {
	return granted{plain(t.Access), plain(t.Refresh), t.Lifetime, t.Type, t.Scope}
}

// What is odd about a good answer costs no more than itself.
func TestOddAnswers(t *testing.T) {
	const day = 24 * time.Hour
	p := oauth.Provider{Lifetimes: oauth.Lifetimes{Declared: 20 * time.Minute}}
	good := granted{"a", "r", time.Hour, "Bearer", ""}
	lives := func(d time.Duration) granted { g := good; g.Lifetime = d; return g }
	expires := func(value string) string {
		return `{"access_token":"a","refresh_token":"r","expires_in":` + value + `}`
	}
	for body, want := range map[string]granted{
		expires("3600"):      good,
		expires(`"3600"`):    good,
		expires(`" 3600 "`):  good,
		expires("3600.7"):    good,
		expires("36e2"):      good,
		expires("0"):         lives(20 * time.Minute),
		expires("-1"):        lives(20 * time.Minute),
		expires("0.5"):       lives(20 * time.Minute),
		expires("1e12"):      lives(366 * day),
		expires("1e400"):     lives(20 * time.Minute),
		expires("null"):      lives(20 * time.Minute),
		expires(`"soon"`):    lives(20 * time.Minute),
		expires(`"NaN"`):     lives(20 * time.Minute),
		expires(`"Inf"`):     lives(20 * time.Minute),
		expires(`{"a":[1]}`): lives(20 * time.Minute),
		expires("true"):      lives(20 * time.Minute),

		`{"access_token":"a","refresh_token":"r"}`:                                            lives(20 * time.Minute),
		"\xef\xbb\xbf \r\n" + expires("3600"):                                                 good,
		expires("3600") + "\n<!-- 12 ms -->":                                                  good,
		`{"access_token":"x","access_token":"a","refresh_token":"r","expires_in":3600}`:       good,
		`{"access_token":"a","refresh_token":"r","expires_in":3600,"x":"` + "\xff" + `"}`:     good,
		`{"access_token":"a","refresh_token":"r","expires_in":3600,"":1,"\u0000":2}`:          good,
		`{"access_token":"a","refresh_token":"r","expires_in":3600,"error":null}`:             good,
		`{"access_token":"a","refresh_token":"r","expires_in":3600,"error":""}`:               good,
		`{"access_token":"a","refresh_token":"r","expires_in":3600,"token_type":"bearer"}`:    good,
		`{"access_token":"a","refresh_token":"r","expires_in":3600,"token_type":null}`:        good,
		`{"access_token":"a","refresh_token":"r","expires_in":3600,"token_type":"a\nb"}`:      good,
		`{"access_token":"A","refresh_token":"R","expires_in":3600,"token_type":"mac"}`:       {"A", "R", time.Hour, "mac", ""},
		`{"access_token":"a","refresh_token":"","expires_in":3600}`:                           {"a", "", time.Hour, "Bearer", ""},
		`{"access_token":"a","refresh_token":null,"expires_in":3600}`:                         {"a", "", time.Hour, "Bearer", ""},
		`{"access_token":"a","refresh_token":12345678901234567890,"expires_in":3600}`:         {"a", "12345678901234567890", time.Hour, "Bearer", ""},
		`{"access_token":"a","refresh_token":"r\n","expires_in":3600}`:                        {"a", "r\n", time.Hour, "Bearer", ""},
		`{"access_token":"a\u00e4","refresh_token":"r","expires_in":3600}`:                    {"aä", "r", time.Hour, "Bearer", ""},
		`{"access_token":"A","refresh_token":"R","expires_in":3600,"scope":"x y"}`:            {"A", "R", time.Hour, "Bearer", "x y"},
		`{"access_token":"A","refresh_token":"R","expires_in":3600,"scope":["x","y"]}`:        {"A", "R", time.Hour, "Bearer", "x y"},
		`{"access_token":"A","refresh_token":"R","expires_in":3600,"scope":[1]}`:              {"A", "R", time.Hour, "Bearer", ""},
		`{"access_token":"A","refresh_token":"R","expires_in":3600,"scope":"x\u001b[2J"}`:     {"A", "R", time.Hour, "Bearer", ""},
		`{"access_token":"A","refresh_token":"R","expires_in":3600,"scope":"x R"}`:            {"A", "R", time.Hour, "Bearer", ""},
		`{"access_token":"A","refresh_token":"R","expires_in":3600,"scope":"our canary too"}`: {"A", "R", time.Hour, "Bearer", ""},
		`{"access_token":"A","x":` + deep(40) + `,"refresh_token":"R","expires_in":3600}`:     {"A", "R", time.Hour, "Bearer", ""},
		`access_token=a&refresh_token=r&expires_in=3600&token_type=bearer`:                    good,
		`access_token=a%2Bb&scope=repo%2Cgist`:                                                {"a+b", "", 20 * time.Minute, "Bearer", "repo,gist"},
	} {
		token, _, whole, ok := oauth.Parse([]byte(body), p, secret("canary"))
		if !whole || !ok {
			t.Errorf("%.80s: no token", body)
			continue
		}
		if diff := cmp.Diff(want, look(token)); diff != "" {
			t.Errorf("%.80s (-want +got):\n%s", body, diff)
		}
		if access, _ := token.Answer.Text("access_token"); plain(access) != want.Access {
			t.Errorf("%.80s: the answer as kept has %v", body, token.Answer.Names())
		}
	}
	token, _, _, _ := oauth.Parse([]byte(`{"access_token":"a","instance_url":"https://eu1.example.com","more":{"a":[1, 2]},"x":`+deep(40)+`}`), oauth.Provider{})
	if token.Lifetime != oauth.DefaultLifetime {
		t.Errorf("a lifetime nobody names is %v", token.Lifetime)
	}
	if got := plain(token.Answer.Marshal()); got != `{"access_token":"a","instance_url":"https://eu1.example.com","more":{"a":[1, 2]}}` {
		t.Errorf("the answer is kept as %s", got)
	}
}

func deep(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

// A grant is lost by nothing but the provider's word for it, and the provider's
// words are shown to nobody.
func TestFaultyAnswers(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("a redirect was followed")
	}))
	t.Cleanup(elsewhere.Close)
	type want struct {
		Outcome oauth.Outcome
		Status  int
		Code    string
		Retry   time.Duration
		Refresh string // that is returned with the error
	}
	type test struct {
		answer http.HandlerFunc
		want   want
	}
	malformed := want{Outcome: oauth.Malformed, Status: 200}
	tests := map[string]test{
		"HTML":                     {oauthtest.HTML(200), malformed},
		"HTML 500":                 {oauthtest.HTML(500), want{Outcome: oauth.Transient, Status: 500}},
		"HTML 400":                 {oauthtest.HTML(400), want{Outcome: oauth.Refused, Status: 400}},
		"truncated":                {oauthtest.JSON(`{"access_token":"canary-a","refresh_token":"canary-r","sc`), want{oauth.Malformed, 200, "", 0, "canary-r"}},
		"truncated in the token":   {oauthtest.JSON(`{"access_token":"canary-a","refresh_token":"canary-`), malformed},
		"broken off":               {oauthtest.Broken, want{oauth.Transient, 200, "", 0, "canary-whole"}},
		"empty":                    {oauthtest.JSON(""), malformed},
		"empty object":             {oauthtest.JSON("{}"), malformed},
		"array":                    {oauthtest.JSON(`[{"access_token":"canary-a"}]`), malformed},
		"string":                   {oauthtest.JSON(`"canary-a"`), malformed},
		"text":                     {oauthtest.Text("text/plain", "canary-a"), malformed},
		"204":                      {oauthtest.Status(204, ""), want{Outcome: oauth.Malformed, Status: 204}},
		"access_token number":      {oauthtest.JSON(`{"access_token":1,"refresh_token":"canary-r"}`), want{oauth.Malformed, 200, "", 0, "canary-r"}},
		"access_token null":        {oauthtest.JSON(`{"access_token":null,"refresh_token":"canary-r"}`), want{oauth.Malformed, 200, "", 0, "canary-r"}},
		"access_token empty":       {oauthtest.JSON(`{"access_token":""}`), malformed},
		"access_token blank":       {oauthtest.JSON(`{"access_token":"  "}`), malformed},
		"access_token line break":  {oauthtest.JSON(`{"access_token":"canary\r\nX-Evil: 1"}`), malformed},
		"access_token object":      {oauthtest.JSON(`{"access_token":{"a":"canary"}}`), malformed},
		"no access_token":          {oauthtest.JSON(`{"refresh_token":"canary-r","expires_in":3600}`), want{oauth.Malformed, 200, "", 0, "canary-r"}},
		"huge":                     {oauthtest.Huge, malformed},
		"gzip bomb":                {oauthtest.GzipBomb, malformed},
		"slow drip":                {oauthtest.Drip, want{Outcome: oauth.Transient, Status: 200}},
		"no answer":                {oauthtest.Hang, want{Outcome: oauth.Transient}},
		"connection closed":        {oauthtest.Hangup, want{Outcome: oauth.Transient}},
		"redirect 301":             {oauthtest.Redirect(301, elsewhere.URL), want{Outcome: oauth.Refused, Status: 301}},
		"redirect 302":             {oauthtest.Redirect(302, elsewhere.URL), want{Outcome: oauth.Transient, Status: 302}},
		"redirect 303":             {oauthtest.Redirect(303, elsewhere.URL), want{Outcome: oauth.Transient, Status: 303}},
		"redirect 307":             {oauthtest.Redirect(307, elsewhere.URL), want{Outcome: oauth.Transient, Status: 307}},
		"redirect 308":             {oauthtest.Redirect(308, elsewhere.URL), want{Outcome: oauth.Refused, Status: 308}},
		"invalid_grant":            {oauthtest.Status(400, "invalid_grant"), want{Outcome: oauth.Revoked, Status: 400, Code: "invalid_grant"}},
		"invalid_grant 200":        {oauthtest.Status(200, "invalid_grant"), want{Outcome: oauth.Revoked, Status: 200, Code: "invalid_grant"}},
		"invalid_grant 401":        {oauthtest.Status(401, "invalid_grant"), want{Outcome: oauth.Revoked, Status: 401, Code: "invalid_grant"}},
		"invalid_grant 500":        {oauthtest.Status(500, "invalid_grant"), want{Outcome: oauth.Transient, Status: 500}},
		"invalid_grant 429":        {oauthtest.Status(429, "invalid_grant"), want{Outcome: oauth.Transient, Status: 429}},
		"invalid_grant, form":      {oauthtest.Text("application/x-www-form-urlencoded", "error=invalid_grant&error_description=gone"), want{Outcome: oauth.Revoked, Status: 200, Code: "invalid_grant"}},
		"bad_refresh_token 200":    {oauthtest.Status(200, "bad_refresh_token"), want{Outcome: oauth.Revoked, Status: 200, Code: "invalid_grant"}},
		"interaction_required":     {oauthtest.Status(400, "interaction_required"), want{Outcome: oauth.Revoked, Status: 400, Code: "interaction_required"}},
		"invalid_client":           {oauthtest.Status(401, "invalid_client"), want{Outcome: oauth.ClientRefused, Status: 401, Code: "invalid_client"}},
		"invalid_client 400":       {oauthtest.Status(400, "invalid_client"), want{Outcome: oauth.ClientRefused, Status: 400, Code: "invalid_client"}},
		"unauthorized_client":      {oauthtest.Status(400, "unauthorized_client"), want{Outcome: oauth.ClientRefused, Status: 400, Code: "unauthorized_client"}},
		"401":                      {oauthtest.Status(401, ""), want{Outcome: oauth.ClientRefused, Status: 401}},
		"401, unknown code":        {oauthtest.Status(401, "canary-code"), want{Outcome: oauth.ClientRefused, Status: 401}},
		"invalid_scope":            {oauthtest.Status(400, "invalid_scope"), want{Outcome: oauth.Refused, Status: 400, Code: "invalid_scope"}},
		"unknown code":             {oauthtest.Status(400, "canary-code"), want{Outcome: oauth.Refused, Status: 400}},
		"unknown code 200":         {oauthtest.Status(200, "canary-code"), want{Outcome: oauth.Refused, Status: 200}},
		"error object":             {oauthtest.JSON(`{"error":{"message":"Something is wrong"}}`), malformed},
		"temporarily_unavailable":  {oauthtest.Status(400, "temporarily_unavailable"), want{Outcome: oauth.Transient, Status: 400, Code: "temporarily_unavailable"}},
		"503":                      {oauthtest.Later(503, "120"), want{Outcome: oauth.Transient, Status: 503, Retry: 2 * time.Minute}},
		"429":                      {oauthtest.Later(429, "86400"), want{Outcome: oauth.Transient, Status: 429, Retry: time.Hour}},
		"403 with Retry-After":     {oauthtest.Later(403, "60"), want{Outcome: oauth.Transient, Status: 403, Retry: time.Minute}},
		"429 with negative":        {oauthtest.Later(429, "-5"), want{Outcome: oauth.Transient, Status: 429}},
		"429 with nonsense":        {oauthtest.Later(429, "canary"), want{Outcome: oauth.Transient, Status: 429}},
		"404":                      {oauthtest.Status(404, ""), want{Outcome: oauth.Refused, Status: 404}},
		"echo":                     {oauthtest.Echo(400, "invalid_request"), want{Outcome: oauth.Refused, Status: 400, Code: "invalid_request"}},
		"echo as the code":         {echoCode, want{Outcome: oauth.Refused, Status: 400}},
		"echo with success":        {oauthtest.Echo(200, ""), want{Outcome: oauth.Malformed, Status: 200}},
		"endless header":           {endlessHeader, want{Outcome: oauth.Transient}},
		"status that is no status": {oauthtest.Status(799, ""), want{Outcome: oauth.Refused, Status: 799}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var logs bytes.Buffer
			patient := 5 * time.Second
			if name == "slow drip" || name == "no answer" {
				patient = 200 * time.Millisecond
			}
			x := oauth.New(verify.NewClient(verify.Config{
				AllowPrivate: true, Timeout: patient,
				Logger: slog.New(slog.NewTextHandler(&logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
			}))
			s := oauthtest.NewServer(t)
			s.AnswerNext(1, test.answer)
			p, c := s.Provider(), s.Client()
			p.Basic = name == "echo"
			token, err := x.Refresh(t.Context(), "t", p, c, secret("canary-refresh"))
			e := failure(t, err)
			got := want{e.Outcome, e.Status, e.Code, e.RetryAfter, plain(token.Refresh)}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !e.Sent || s.Requests() != 1 {
				t.Errorf("sent %v, %d requests", e.Sent, s.Requests())
			}
			if !token.Access.IsZero() {
				t.Error("an access token comes with an error")
			}
			slog.New(slog.NewJSONHandler(&logs, nil)).Error("refresh", "error", err, "token", token, "provider", p, "client", c)
			all := logs.String() + e.Says()
			for _, v := range []any{err, *e, token, &token, p, c, &c, []any{token}, x} {
				all += fmt.Sprintf("%v %+v %#v %s %q %x", v, v, v, v, v, v)
			}
			for _, hidden := range []string{"canary", fmt.Sprintf("%x", "canary"), "Y2FuYXJ5", s.URL + "/token?"} {
				if strings.Contains(all, hidden) {
					t.Errorf("%q is shown", hidden)
				}
			}
			if strings.Contains(e.Error()+e.Says(), "127.0.0.1") {
				t.Errorf("an address is shown: %v", e)
			}
		})
	}
}

// echoCode answers with the secret itself for an error code.
func echoCode(w http.ResponseWriter, r *http.Request) {
	oauthtest.Status(400, r.PostForm.Get("refresh_token"))(w, r)
}

func endlessHeader(w http.ResponseWriter, _ *http.Request) {
	for i := range 1000 {
		w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("canary", 20))
	}
}

// The provider has replaced the refresh token: whatever else it says, the new one
// comes back, and the one before is dead.
func TestNewRefreshTokenIsNeverLost(t *testing.T) {
	s := oauthtest.NewServer(t)
	refresh := secret(s.Grant()["refresh_token"].(string))
	oddities := map[string]func(map[string]any){
		"nothing":        func(map[string]any) {},
		"error as well":  func(a map[string]any) { a["error"] = "invalid_grant" },
		"no token":       func(a map[string]any) { delete(a, "access_token") },
		"token a number": func(a map[string]any) { a["access_token"] = 7 },
		"token evil":     func(a map[string]any) { a["access_token"] = "a\nb" },
		"everything": func(a map[string]any) {
			for _, name := range []string{"access_token", "expires_in", "scope", "token_type", "id_token", "error_description"} {
				a[name] = []any{nil, 1e300, map[string]any{"": deep(50)}}
			}
		},
	}
	for _, v := range []any{0, -1, 1e12, "3600", "soon", nil, true, []int{1}} {
		oddities[fmt.Sprintf("expires_in %v", v)] = func(a map[string]any) { a["expires_in"] = v }
		oddities[fmt.Sprintf("scope %v", v)] = func(a map[string]any) { a["scope"] = v }
		oddities[fmt.Sprintf("token_type %v", v)] = func(a map[string]any) { a["token_type"] = v }
	}
	for _, name := range slices.Sorted(maps.Keys(oddities)) {
		s.Mangle(oddities[name])
		token, err := exchanger().Refresh(t.Context(), "t", s.Provider(), s.Client(), refresh)
		if token.Refresh.IsZero() || !s.Live(plain(token.Refresh)) {
			t.Fatalf("%s: the new refresh token is lost, error %v", name, err)
		}
		if err != nil && token.Access.Len() > 0 || err == nil && (token.Access.IsZero() || token.Lifetime <= 0) {
			t.Errorf("%s: %+v, %v", name, token, err)
		}
		refresh = token.Refresh
	}
}

// What was never sent cannot have cost anything, and the error knows.
func TestNotSent(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	plainHTTP := httptest.NewServer(nil)
	t.Cleanup(plainHTTP.Close)
	strict := oauth.New(verify.NewClient(verify.Config{}))
	_, err := strict.Refresh(t.Context(), "t", oauth.Provider{TokenURI: gone.URL}, oauth.Client{ID: "c"}, seal.Secret{})
	if e := failure(t, err); e.Outcome != oauth.Refused || e.Sent || !strings.Contains(e.Says(), "no refresh token") {
		t.Errorf("without a refresh token: %v", e)
	}
	for name, test := range map[string]struct {
		x    *oauth.Exchanger
		uri  string
		want oauth.Outcome
	}{
		"nobody listens":  {exchanger(), gone.URL, oauth.Transient},
		"private address": {strict, gone.URL, oauth.Transient},
		"no TLS":          {exchanger(), "https" + strings.TrimPrefix(plainHTTP.URL, "http"), oauth.Transient},
		"metadata":        {exchanger(), "http://169.254.169.254/", oauth.Transient},
		"no name":         {exchanger(), "http://nowhere.invalid/", oauth.Transient},
		"no URI":          {exchanger(), "", oauth.Refused},
		"no host":         {exchanger(), "/token", oauth.Refused},
		"control":         {exchanger(), "http://a\x7fb/", oauth.Refused},
		"scheme":          {exchanger(), "ftp://127.0.0.1/", oauth.Transient},
	} {
		_, err := test.x.Refresh(t.Context(), "t", oauth.Provider{TokenURI: test.uri}, oauth.Client{ID: "c"}, secret("canary"))
		if e := failure(t, err); e.Outcome != test.want || e.Sent || strings.Contains(e.Error(), "127") {
			t.Errorf("%s: %v, sent %v", name, e, e.Sent)
		}
	}
}

// A provider's certificate must be trusted before anything is sent to it.
func TestUntrustedCertificate(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("asked") }))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	t.Cleanup(server.Close)
	_, err := exchanger().Refresh(t.Context(), "t", oauth.Provider{TokenURI: server.URL}, oauth.Client{ID: "c"}, secret("canary"))
	if e := failure(t, err); e.Outcome != oauth.Transient || e.Sent || !strings.Contains(e.Says(), "certificate") {
		t.Errorf("%v, sent %v: %s", e, e.Sent, e.Says())
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"":                              0,
		"0":                             0,
		"17":                            17 * time.Second,
		"1e9":                           time.Hour,
		"soon":                          0,
		"Wed, 02 Jan 2030 03:05:05 GMT": time.Minute,
		"Wed, 02 Jan 2030 03:00:00 GMT": 0,
		"Thu, 02 Jan 2031 03:05:05 GMT": time.Hour,
	} {
		h := http.Header{}
		h.Set("Retry-After", value)
		if got := oauth.RetryAfter(h, now); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}

// Whatever a provider sends: nothing panics, a token is fit for a header field, a
// refresh token that a strict reader finds is found, and nothing is shown.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		`{"access_token":"a","refresh_token":"r","expires_in":3600,"scope":"x"}`, `access_token=a&refresh_token=r`, `{"error":"invalid_grant"}`,
		`{"access_token":"a","expires_in":1e999,"x":[[{"":null}]]}`, "\xef\xbb\xbf{", `{"a`, `<html>`, `{"access_token":"\ud800"}`, `{"refresh_token":1}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		token, refresh, whole, ok := oauth.Parse(body, oauth.Provider{}, secret("canary-secret"))
		if ok {
			access := plain(token.Access)
			if strings.TrimSpace(access) == "" || strings.ContainsAny(access, "\r\n\x00") || !whole && bytes.HasPrefix(body, []byte("access_token=")) {
				t.Errorf("access token %q", access)
			}
			if token.Lifetime < time.Second || token.Lifetime > oauth.MaxLifetime || token.Type == "" {
				t.Errorf("%v, type %q", token.Lifetime, token.Type)
			}
			if _, err := seal.ParseFields(token.Answer.Marshal().Reveal()); err != nil {
				t.Errorf("the answer as kept: %v", err)
			}
			if strings.Contains(token.Scope+token.Type, "canary-secret") || strings.Contains(token.Scope, access) {
				t.Error("a secret is shown")
			}
		}
		strict := map[string]any{} // no struct: its names would match in any case
		if json.Unmarshal(body, &strict) == nil && whole {
			if want, _ := strict["refresh_token"].(string); want != "" && want != plain(refresh) {
				t.Errorf("the refresh token %q was read as %q", want, plain(refresh))
			}
		}
	})
}

// Errors that are no *Error are those of the context.
func TestContextEnds(t *testing.T) {
	s := oauthtest.NewServer(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range []error{
		second(exchanger().ClientCredentials(ctx, "t", s.Provider(), s.Client())),
		exchanger().Revoke(ctx, "t", s.Provider(), s.Client(), secret("x"), ""),
	} {
		if e := new(oauth.Error); !errors.Is(err, context.Canceled) || errors.As(err, &e) {
			t.Errorf("got %v", err)
		}
	}
	if s.Requests() != 0 || s.Revocations() != 0 {
		t.Error("something was sent")
	}
}

// A form that is ready to be written when its caller's deadline has passed is not
// sent: the process may have stood still, and another one may have sent the token.
func TestNoFormIsWrittenLate(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if form, _ := io.ReadAll(r.Body); len(form) > 0 {
			t.Error("sent")
		}
	}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var shaken atomic.Bool
	server.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		<-ctx.Done() // the handshake takes so long
		shaken.Store(true)
		return nil, nil //nolint:nilnil // as it is
	}}
	server.StartTLS()
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	x := oauth.New(verify.NewClient(verify.Config{AllowPrivate: true, RootCAs: roots}))
	_, err := x.Refresh(ctx, "t", oauth.Provider{TokenURI: server.URL}, oauth.Client{ID: "c"}, secret("canary"))
	if e := failure(t, err); e.Outcome != oauth.Transient || e.Sent || !shaken.Load() {
		t.Errorf("%v, sent %v, after the handshake: %v", e, e.Sent, shaken.Load())
	}
}
