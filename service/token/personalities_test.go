package token_test

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/stage"
)

// says is one answer of a token endpoint.
type says struct {
	status int
	body   string
	after  string // Retry-After; "": none
}

func no(status int, body string) says { return says{status: status, body: body} }
func yes(body string) says            { return says{status: 200, body: body} }

const (
	minute = `{"access_token":"canary-next","expires_in":600}`
	hour   = `{"access_token":"canary-next","expires_in":3600}`
	fresh  = `{"access_token":"canary-first","refresh_token":"canary-refresh","expires_in":600}`
	over   = `{"access_token":"canary-first","refresh_token":"canary-refresh","expires_at":"2020-01-01T00:00:00Z"}`
)

// personality is how one provider answers, and what must follow. A step is "refresh" (a
// person asks for new tokens), "resolve" (a flow engine asks for the credential), "due"
// (the refresher looks at it), or a time to let pass ("+10m"); after ":" stands the code of
// the refusal, or "ok". Of several answers the last one is repeated.
type personality struct {
	name    string
	block   string // more members of the oauth2 block
	grant   string // the tokens that the credential is created with
	answers []says
	do      string
	asked   int           // token requests
	problem string        // part of the problem that people see; "" for none
	life    time.Duration // of the access token in use, as far as it is checked
	odd     string        // part of what is implausible

	tail  string   // path of the token endpoint; "/token" when empty
	sent  []string // parts of each token request: its line, header fields and body
	alone bool     // the tenant has no OAuth client
}

var personalities = []personality{
	// A withdrawn grant is recognized in any shape.
	{
		name: "HubSpot: a withdrawn grant", grant: over, answers: []says{no(400, `{"status":"BAD_REFRESH_TOKEN","message":"missing or invalid refresh token"}`)},
		do: "resolve:reauthorization_required", asked: 2, problem: `The provider says: "missing or invalid refresh token"`,
	},
	{
		name: "a code in an object", grant: over, answers: []says{no(400, `{"error":{"code":"invalid_grant","message":"Grant is gone."}}`)},
		do: "resolve:reauthorization_required", asked: 2, problem: `Grant is gone.`,
	},
	{
		name: "Meta: an object with a number", grant: over, answers: []says{no(400, `{"error":{"message":"The session has been invalidated.","type":"OAuthException","code":190}}`)},
		do: "resolve:reauthorization_required", asked: 2, problem: "session has been invalidated",
	},
	{
		name: "WeChat: a number in a success", grant: over, answers: []says{yes(`{"errcode":40030,"errmsg":"invalid refresh_token"}`)},
		do: "resolve:reauthorization_required", asked: 2, problem: "invalid refresh_token",
	},
	{
		name: "a code in a list of errors", grant: over, answers: []says{no(400, `{"errors":[{"code":"invalid_grant","detail":"x"}]}`)},
		do: "resolve:reauthorization_required", asked: 2, problem: "no longer accepts",
	},
	{
		name: "a mapping of the component's", grant: over, block: `"answers":[{"pointer":"/fault/code","one_of":["E42","E43"],"status":422,"outcome":"revoked"}]`,
		answers: []says{no(422, `{"fault":{"code":"E43"}}`)}, do: "resolve:reauthorization_required", asked: 2, problem: "no longer accepts",
	},
	{
		name: "a mapping does not fit another status", grant: over, block: `"answers":[{"pointer":"/fault/code","equals":"E43","status":422,"outcome":"revoked"}]`,
		answers: []says{no(400, `{"fault":{"code":"E43"}}`)}, do: "resolve:token_refresh_failed", asked: 1,
	},
	{
		name: "a mapping of a 500", grant: over, block: `"answers":[{"pointer":"/error","matches":"^expired","outcome":"revoked"}]`,
		answers: []says{no(500, `{"error":"expired_session"}`)}, do: "resolve:reauthorization_required", asked: 2, problem: "no longer accepts",
	},
	{
		name: "a mapping to the client", grant: over, block: `"answers":[{"pointer":"/code","equals":17,"outcome":"misconfigured"}]`,
		answers: []says{no(400, `{"code":17}`)}, do: "resolve:token_refresh_failed +1h resolve:token_refresh_failed", asked: 2,
	},
	{
		name: "a mapping to a rate", grant: over, block: `"answers":[{"pointer":"/code","exists":true,"outcome":"rate_limited"}]`,
		answers: []says{no(400, `{"code":17}`)}, do: "resolve:token_refresh_failed +1h resolve:token_refresh_failed", asked: 2,
	},
	{
		name: "a refusal of no known shape outlasts the token", grant: over, answers: []says{no(400, `{"oops":1,"message":"Computer says no"}`)},
		do: "resolve:token_refresh_failed +2m resolve:reauthorization_required", asked: 2, problem: `The provider says: "Computer says no"`,
	},
	{
		name: "a page with 403 outlasts the token", grant: over, answers: []says{no(403, `<html>`)},
		do: "resolve:token_refresh_failed +2m resolve:reauthorization_required", asked: 2, problem: "rejected the request (status 403)",
	},
	{
		name: "a refusal ends by itself", grant: over, answers: []says{no(400, `{"oops":1}`), no(400, `{"oops":1}`), yes(hour)},
		do: "resolve:token_refresh_failed +2m resolve:reauthorization_required +3h due:ok resolve:ok", asked: 3, life: time.Hour,
	},
	{
		name: "an explanation that repeats the token", grant: over, answers: []says{no(400, `{"error":"invalid_grant","error_description":"token canary-refresh is gone"}`)},
		do: "resolve:reauthorization_required", asked: 2, problem: "no longer accepts",
	},
	{
		name: "an explanation with control characters", grant: over, answers: []says{no(400, `{"error":"invalid_grant","error_description":"gone\u0007\n\u202egood\u200bbye  ann@example.org"}`)},
		do: "resolve:reauthorization_required", asked: 2, problem: `"gone good bye …"`,
	},
	{
		name: "trouble is no refusal", grant: over, answers: []says{no(503, `{"error":"invalid_grant"}`)},
		do: "resolve:token_refresh_failed +1h resolve:token_refresh_failed +1h resolve:token_refresh_failed", asked: 3,
	},

	// A live grant is not called dead.
	{
		name: "Salesforce: at the same moment", grant: over, answers: []says{no(400, `{"error":"invalid_grant","error_description":"token request is already being processed"}`), yes(hour)},
		do: "resolve:token_refresh_failed +1m resolve:ok", asked: 2, life: time.Hour,
	},
	{
		name: "a second opinion, while the token lives", grant: fresh, answers: []says{no(400, `{"error":"invalid_grant"}`), yes(hour)},
		do: "+8m due:token_refresh_failed resolve:ok due:ok +65s due:ok resolve:ok", asked: 2, life: time.Hour,
	},
	{
		name: "two opinions, while the token lives", grant: fresh, answers: []says{no(400, `{"error":"invalid_grant"}`)},
		do: "+8m due:token_refresh_failed resolve:ok +65s due:reauthorization_required resolve:reauthorization_required", asked: 2, problem: "no longer accepts",
	},
	{
		name: "somebody insists, while the token lives", grant: fresh, answers: []says{no(400, `{"error":"invalid_grant"}`)},
		do: "refresh:reauthorization_required", asked: 2, problem: "no longer accepts",
	},
	{
		name: "a grant that comes back", grant: over, answers: []says{no(400, `{"error":"invalid_grant"}`), no(400, `{"error":"invalid_grant"}`), no(400, `{"error":"invalid_grant"}`), yes(hour)},
		do: "resolve:reauthorization_required +30m due:ok +1h due:reauthorization_required +5h due:ok resolve:ok", asked: 4, life: time.Hour,
	},
	{
		name: "Google: revoked, in so many words", grant: over, answers: []says{no(400, `{"error":"invalid_grant","error_description":"Token has been expired or revoked."}`)},
		do: "resolve:reauthorization_required +48h due:ok", asked: 2, problem: "expired or revoked",
	},

	// A refused early renewal is no outage.
	{
		name:  "Exact Online: not before the last 30 seconds",
		grant: fresh, answers: []says{no(400, `{"error":"invalid_request","error_description":"Rate limit exceeded: access_token not expired"}`), no(400, `{"error":"invalid_request","error_description":"Rate limit exceeded: access_token not expired"}`), yes(minute)},
		do: "+8m due:token_refresh_failed resolve:ok +61s due:token_refresh_failed resolve:ok +31s due:ok resolve:ok +9m due:ok resolve:ok +45s due:ok", asked: 4,
	},
	{
		name:  "the component says when",
		grant: fresh, block: `"refresh_not_before":30`, answers: []says{yes(minute)},
		do: "+9m due:ok resolve:ok +20s due:ok resolve:ok +15s due:ok", asked: 1, life: 10 * time.Minute,
	},
	{
		name:  "the component wants it early",
		grant: `{"access_token":"canary-first","refresh_token":"canary-refresh","expires_in":36000}`, block: `"refresh_before":28800`, answers: []says{yes(hour)},
		do: "+1h55m due:ok +10m due:ok", asked: 1, life: time.Hour,
	},
	{
		name: "a refusal in passing, while the token lives", grant: fresh, answers: []says{no(403, `<html>`), yes(hour)},
		do: "+8m due:token_refresh_failed resolve:ok +61s due:ok resolve:ok", asked: 2, life: time.Hour,
	},
	{
		name: "a failure, with some of the token left", grant: fresh, answers: []says{no(502, `<html>`), yes(hour)},
		do: "+9m20s resolve:ok +30s resolve:ok", asked: 2, life: time.Hour,
	},

	// Lifetimes.
	{name: "seconds", grant: over, answers: []says{yes(`{"access_token":"a","expires_in":1800}`)}, do: "resolve:ok", asked: 1, life: 30 * time.Minute},
	{name: "a text", grant: over, answers: []says{yes(`{"access_token":"a","expires_in":"1800"}`)}, do: "resolve:ok", asked: 1, life: 30 * time.Minute},
	{name: "a float", grant: over, answers: []says{yes(`{"access_token":"a","expires_in":1800.5}`)}, do: "resolve:ok", asked: 1, life: 30 * time.Minute},
	{name: "milliseconds, declared", grant: over, block: `"expires_in_unit":"ms"`, answers: []says{yes(`{"access_token":"a","expires_in":1800000}`)}, do: "resolve:ok", asked: 1, life: 30 * time.Minute},
	{name: "milliseconds", grant: over, answers: []says{yes(`{"access_token":"a","expires_in":3600000}`)}, do: "resolve:ok", asked: 1, life: time.Hour, odd: "milliseconds"},
	{name: "60 days", grant: over, answers: []says{yes(`{"access_token":"a","expires_in":5184000}`)}, do: "resolve:ok", asked: 1, life: 60 * 24 * time.Hour},
	{name: "Zoho: both units", grant: over, answers: []says{yes(`{"access_token":"a","expires_in":1800000,"expires_in_sec":1800}`)}, do: "resolve:ok", asked: 1, life: 30 * time.Minute},
	{name: "zero, and the component says", grant: over, block: `"token_lifetime":1200`, answers: []says{yes(`{"access_token":"a","expires_in":0}`)}, do: "resolve:ok", asked: 1, life: 20 * time.Minute},
	{name: "nothing is said", grant: over, answers: []says{yes(`{"access_token":"a"}`)}, do: "resolve:ok", asked: 1, life: time.Hour},
	{name: "a point in time", grant: over, answers: []says{yes(`{"access_token":"a","expires_at":"{in:30m}"}`)}, do: "resolve:ok", asked: 1, life: 30 * time.Minute},
	{name: "a point in time without a zone", grant: over, answers: []says{yes(`{"access_token":"a","expires_at":"{bare:30m}"}`)}, do: "resolve:ok", asked: 1, life: 30 * time.Minute},
	{name: "a point in time in seconds", grant: over, answers: []says{yes(`{"access_token":"a","expires_at":{unix:30m}}`)}, do: "resolve:ok", asked: 1, life: 30 * time.Minute},
	{name: "a point in time in milliseconds", grant: over, answers: []says{yes(`{"access_token":"a","expires_at":{unix:30m}000}`)}, do: "resolve:ok", asked: 1, life: 30 * time.Minute},
	{name: "Entra v1: expires_on", grant: over, answers: []says{yes(`{"access_token":"a","expires_on":"{unix:30m}"}`)}, do: "resolve:ok", asked: 1, life: 30 * time.Minute},
	{name: "both", grant: over, answers: []says{yes(`{"access_token":"a","expires_in":1800,"expires_at":"{in:2h}"}`)}, do: "resolve:ok", asked: 1, life: 30 * time.Minute},
	{name: "a point in the past", grant: over, answers: []says{yes(`{"access_token":"a","expires_at":"2020-01-01T00:00:00Z"}`)}, do: "resolve:ok", asked: 1, life: time.Hour, odd: "is in the past"},
	{name: "two years", grant: over, answers: []says{yes(`{"access_token":"a","expires_at":"{in:17520h}"}`)}, do: "resolve:ok", asked: 1, life: 366 * 24 * time.Hour, odd: "366 days"},
	{
		name: "said at the grant alone", grant: `{"access_token":"canary-first","refresh_token":"canary-refresh","expires_in":600}`, answers: []says{yes(`{"access_token":"a"}`)},
		do: "+9m45s resolve:ok", asked: 1, life: 10 * time.Minute,
	},
	{name: "the component knows better", grant: over, block: `"token_lifetime":900,"token_lifetime_override":true`, answers: []says{yes(hour)}, do: "resolve:ok", asked: 1, life: 15 * time.Minute},
	{name: "entered by hand: a point in time", grant: `{"access_token":"a","refresh_token":"r","expires_in":3600,"expires_at":"{bare:-1h}"}`, answers: []says{yes(hour)}, do: "resolve:ok", asked: 1, life: time.Hour},
	// Shapes of requests.
	{
		name: "a template in an endpoint", grant: over, tail: "/{{realm}}/token", answers: []says{yes(hour)},
		do: "resolve:ok", asked: 1, sent: []string{"POST /acme%20corp/token HTTP"},
	},
	{
		name: "TikTok: the client's id under another name", grant: over, block: `"refresh_params":{"client_key":"{{client_id}}","account":"{{realm}}","scope":"a b"}`,
		answers: []says{yes(hour)}, do: "resolve:ok", asked: 1, sent: []string{"client_key=c&", "account=acme+corp", "scope=a+b"},
	},
	{
		name: "renewed elsewhere", grant: over, block: `"refresh_uri":"{server}/renew"`, answers: []says{yes(hour)},
		do: "resolve:ok", asked: 1, sent: []string{"POST /renew HTTP"},
	},
	{
		name: "Notion: JSON with Basic", grant: over, block: `"token_format":"json","token_endpoint_auth_method":"client_secret_basic"`, answers: []says{yes(hour)},
		do: "resolve:ok", asked: 1, sent: []string{"Authorization: Basic Yzpj", `"grant_type":"refresh_token"`, "Content-Type: application/json"},
	},
	{
		name: "Slack: tokens in a member", grant: over, block: `"token_at":"/authed_user"`,
		answers: []says{yes(`{"ok":true,"authed_user":{"access_token":"canary-next","refresh_token":"canary-other","expires_in":1800}}`)},
		do:      "resolve:ok", asked: 1, life: 30 * time.Minute,
	},
	{
		name: "Zoom: account credentials", block: `"grant_type":"account_credentials","token_params":{"account_id":"{{realm}}"}`, answers: []says{yes(hour)},
		do: "resolve:ok", asked: 1, life: time.Hour, sent: []string{"grant_type=account_credentials", "account_id=acme+corp"},
	},
	{
		name:    "Google: a service account",
		block:   `"grant_type":"urn:ietf:params:oauth:grant-type:jwt-bearer","signing":{"key":"{{key}}","kid":"k1","claims":{"iss":"{{realm}}","scope":"read"},"lifetime":3600}`,
		answers: []says{yes(hour)}, do: "resolve:ok +2h resolve:ok", asked: 2, alone: true, sent: []string{"grant_type=urn%3Aietf", "assertion=eyJ"},
	},
	{
		name: "private_key_jwt", grant: over, block: `"token_endpoint_auth_method":"private_key_jwt","signing":{"key":"{{key}}"}`, answers: []says{yes(hour)},
		do: "resolve:ok", asked: 1, sent: []string{"client_assertion=eyJ", "client_assertion_type=urn%3Aietf", "client_id=c"},
	},

	// Grants without a refresh token.
	{
		name: "GitHub: a token without an end", grant: `{"access_token":"canary-first","scope":"repo"}`, block: `"refresh":"none"`,
		do: "resolve:ok +9000h due:ok resolve:ok",
	},
	{
		name: "a token with an end and no renewal", grant: `{"access_token":"canary-first","expires_in":600}`, block: `"refresh":"none"`,
		do: "resolve:ok +9m30s due:ok resolve:ok +1m resolve:reauthorization_required",
	},
	{name: "entered by hand: milliseconds", grant: `{"access_token":"a","refresh_token":"r","expires_in":1800000}`, do: "resolve:ok", life: 30 * time.Minute, odd: "milliseconds"},
}

// times puts points in time into a text: {in:30m} in RFC 3339, {bare:30m} without a
// zone, {unix:30m} in seconds.
func times(t *testing.T, text string, now time.Time) string {
	t.Helper()
	for {
		before, rest, found := strings.Cut(text, "{")
		form, _, _ := strings.Cut(rest, ":")
		if !found || form != "in" && form != "bare" && form != "unix" {
			if next, tail, more := strings.Cut(rest, "{"); found && more { // the first brace is the object's
				return before + "{" + next + times(t, "{"+tail, now)
			}
			return text
		}
		ahead, tail, _ := strings.Cut(rest[len(form)+1:], "}")
		at := now.Add(stage.Must(time.ParseDuration(ahead))(t)).UTC()
		said := map[string]string{"in": at.Format(time.RFC3339), "bare": at.Format("2006-01-02T15:04:05"), "unix": fmt.Sprint(at.Unix())}[form]
		text = before + said + tail
	}
}

// Providers as they are. Each row is the way in which one was seen to answer.
func TestPersonalities(t *testing.T) {
	s := stage.New(t, stage.AllowPrivate, func(c *application.Config) { c.RefreshTakeoverTimeout = 6 * time.Second })
	recipient := stage.NewRecipient(t).Public
	key := stage.Must(x509.MarshalPKCS8PrivateKey(stage.Must(rsa.GenerateKey(rand.Reader, 2048))(t)))(t)
	signingKey := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	for n, p := range personalities {
		t.Run(p.name, func(t *testing.T) {
			s.Skew.Store(0)
			now := func() time.Time { return time.Now().Add(time.Duration(s.Skew.Load())) }
			var mu sync.Mutex
			asked := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				request := string(stage.Must(httputil.DumpRequest(r, true))(t))
				for _, part := range p.sent {
					if !strings.Contains(request, part) {
						t.Errorf("a request lacks %q:\n%s", part, request)
					}
				}
				answer := p.answers[min(asked, len(p.answers)-1)]
				asked++
				w.Header().Set("Content-Type", "application/json")
				if answer.after != "" {
					w.Header().Set("Retry-After", answer.after)
				}
				w.WriteHeader(answer.status)
				fmt.Fprint(w, times(t, answer.body, now()))
			}))
			t.Cleanup(server.Close)
			component := fmt.Sprintf("provider-%d", n)
			more := strings.ReplaceAll(p.block, "{server}", server.URL)
			tail := cmp.Or(p.tail, "/token")
			if more != "" {
				more = "," + more
			}
			s.Do("default", "component.register", fmt.Sprintf(`{"id":%q,"descriptor":{"title":"T","useOAuthClient":%[5]t,"hosts":["api.example.org"],
				"credentials":{"fields":{"oauth":{"viewClass":"OAuthFieldView"},"realm":{},"key":{}},"oauth2":{"auth_uri":"%[2]s/auth","token_uri":"%[2]s%[4]s"%[3]s}}}}`, component, server.URL, more, tail, !p.alone))
			if !p.alone {
				s.Do("default", "oauth_client.define", fmt.Sprintf(`{"component":%q,"client_id":"c","client_secret":"canary-client"}`, component))
			}
			tokens := ""
			if p.grant != "" {
				tokens = `"oauth":` + times(t, p.grant, now()) + ","
			}
			id := s.Do("default", "credential.create", fmt.Sprintf(`{"component":%q,"keys":{%s"realm":"acme corp","key":%q}}`, component, tokens, signingKey)).ID
			for step := range strings.FieldsSeq(p.do) {
				what, want, _ := strings.Cut(step, ":")
				if ahead, is := strings.CutPrefix(what, "+"); is {
					s.Skew.Add(int64(stage.Must(time.ParseDuration(ahead))(t)))
					continue
				}
				if got := act(t, s, what, id, recipient); got != want {
					t.Fatalf("%s: %q, want %q, after %d requests", step, got, want, asked)
				}
			}
			if asked != p.asked {
				t.Errorf("the provider was asked %d times, want %d", asked, p.asked)
			}
			s.CaughtUp()
			info := shown(t, s, id).Tokens
			if !strings.Contains(info.Problem, p.problem) || p.problem == "" && info.Problem != "" {
				t.Errorf("the problem is %q, want %q in it", info.Problem, p.problem)
			}
			if !strings.Contains(info.Odd, p.odd) || p.odd == "" && info.Odd != "" {
				t.Errorf("what is odd is %q, want %q in it", info.Odd, p.odd)
			}
			if life := info.Expires.Sub(now()); p.life != 0 && (life > p.life || life < p.life-5*time.Minute-p.life/10) {
				t.Errorf("the token lives %v, want %v", life, p.life)
			}
		})
	}
	for _, hidden := range []string{"canary-", "PRIVATE KEY", "ann@example.org"} {
		if strings.Contains(s.Logs.String(), hidden) {
			t.Errorf("%s is logged", hidden)
		}
	}
}

// act takes a step of a personality, and returns the code of the refusal, or "ok".
func act(t *testing.T, s *stage.Stage, what, id, recipient string) string {
	t.Helper()
	var err error
	switch body := fmt.Sprintf(`{"id":%q}`, id); what {
	case "refresh":
		_, err = s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "credential.refresh", []byte(body))
	case "resolve":
		_, err = s.Resolve(fmt.Sprintf(`{"id":%q,"public_key":%q}`, id, recipient))
	case "due":
		err = s.Service.Tokens.RefreshDue(context.WithoutCancel(t.Context()), "default", id)
	default:
		t.Fatalf("unknown step %q", what)
	}
	if err == nil {
		return "ok"
	}
	return stage.CodeOf(err)
}

// shown is what people see of a credential.
func shown(t *testing.T, s *stage.Stage, id string) credential.Credential {
	t.Helper()
	answer := stage.Must(s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "credential.get", []byte(fmt.Sprintf(`{"id":%q}`, id))))(t)
	c, ok := answer.(credential.Credential)
	if !ok || c.Tokens == nil {
		t.Fatalf("credential.get answers %T %+v", answer, answer)
	}
	return c
}
