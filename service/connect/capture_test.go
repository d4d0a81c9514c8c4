package connect_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/client"
	"github.com/credstream/credstream/service/component"
	"github.com/credstream/credstream/service/connect"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/stage"
)

// Whoever connects an account again need not know the values that are kept, and gets none: not by an
// update of the component that puts them into a request to the provider, and not by a callback that
// names another host for them.
func TestReconnectKeepsNothingForOthers(t *testing.T) {
	var requests []string
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests = append(requests, r.URL.Path)
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"access_token":"canary-access","refresh_token":"canary-refresh","expires_in":600}`)
	}))
	t.Cleanup(provider.Close)
	s := stage.New(t, stage.AllowPrivate, func(c *application.Config) { c.PublicURL = "http://127.0.0.1:1" })
	serve := func(route, body string) (any, error) {
		return s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "nats", Confidential: true}, route, []byte(body))
	}
	descriptor := func(more string) string {
		return fmt.Sprintf(`{"title":"Books","hosts":["{{domain}}"],"credentials":{
			"fields":{"oauth":{"viewClass":"OAuthFieldView"},"domain":{"secret":false},"plan":{"viewClass":"TextFieldView"},"password":{"viewClass":"PasswordFieldView"}},
			"oauth2":{"auth_uri":"%[1]s/auth","token_uri":"%[1]s/token","capture":[{"field":"domain","callback":"domain"}]%[2]s}}}`, provider.URL, more)
	}
	s.Do("default", "component.register", `{"id":"books","descriptor":`+descriptor("")+`}`)
	s.Do("default", "oauth_client.define", `{"component":"books","client_id":"c","client_secret":"s"}`)
	s.CaughtUp()
	browser := ""
	cookies := func(string) (opened, starter string) { return browser, "" }
	connected := func(start, domain string) (service.Done, error) {
		t.Helper()
		answer, err := serve("oauth.connect", start)
		if err != nil {
			return service.Done{}, err
		}
		_, secret, _ := strings.Cut(answer.(connect.Connected).URL, "/oauth/connect/")
		opened := stage.Must(s.Service.Connects.OpenLink(t.Context(), secret, netip.MustParseAddr("127.0.0.1"), cookies))(t)
		browser = opened.Cookie
		back := stage.Must(s.Service.Connects.ReturnConnection(t.Context(), connect.Callback{
			Tenant: "default", Component: "books", From: netip.MustParseAddr("127.0.0.1"), Browser: cookies,
			Query: url.Values{"state": stage.Must(url.Parse(opened.Location))(t).Query()["state"], "code": {"x"}, "domain": {domain}}.Encode(),
		}))(t)
		done, err := serve("oauth.complete", fmt.Sprintf(`{"connection":%q,"confirm":%q}`, back.Connection, back.Confirm))
		s.CaughtUp()
		made, _ := done.(service.Done)
		return made, err
	}
	made := stage.Must(connected(`{"component":"books","name":"b","keys":{"password":"canary-password","plan":"p"}}`, "a.example.org"))(t)
	again := fmt.Sprintf(`{"credential":%q}`, made.ID)
	if _, err := connected(again, "a.example.org"); err != nil {
		t.Fatalf("connected again: %v", err)
	}
	asked := len(requests)
	if _, err := connected(again, "evil.example.org"); stage.CodeOf(err) != connect.ErrConnectKeysNeeded.Code || len(requests) != asked {
		t.Errorf("a callback with another host: %v, %d requests", err, len(requests)-asked)
	}
	for _, more := range []string{`,"auth_params":{"x":"{{password}}"}`, `,"x":"{{password}}"`} {
		if _, err := serve("component.update", `{"id":"books","descriptor":`+descriptor(more)+`}`); stage.CodeOf(err) != "component_descriptor_invalid" {
			t.Errorf("a password in the address of the browser, %s: %v", more, err)
		}
	}
	for _, more := range []string{`,"auth_params":{"x":"{{plan}}"}`, `,"token_params":{"x":"{{password}}"}`, `,"refresh_params":{"x":"{{password}}"}`} {
		s.Do("default", "component.update", `{"id":"books","descriptor":`+descriptor(more)+`}`)
		s.CaughtUp()
		if _, err := serve("oauth.connect", again); stage.CodeOf(err) != connect.ErrConnectKeysNeeded.Code {
			t.Errorf("connected again with %s: %v", more, err)
		}
	}
}

// A component.json without endpoints is usable once the OAuth client, or an auth client, supplies
// them. What the callback and the token response say is kept in fields. Tokens never go to endpoints
// that the client names later.
func TestConnectWithSuppliedEndpoints(t *testing.T) {
	var requests []string
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		requests = append(requests, r.URL.Path+" "+r.Form.Get("grant_type")+" "+r.Form.Get("realmId"))
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"access_token":"canary-access","refresh_token":"canary-refresh","expires_in":600,"instance_url":"https://na1.example.org"}`)
	}))
	t.Cleanup(provider.Close)
	for _, by := range []string{"oauth_client", "auth_client"} {
		t.Run(by, func(t *testing.T) {
			requests = nil
			s := stage.New(t, stage.AllowPrivate, func(c *application.Config) { c.PublicURL = "http://127.0.0.1:1" })
			serve := func(route, body string) (any, error) {
				return s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "nats", Confidential: true}, route, []byte(body))
			}
			s.Do("default", "component.register", `{"id":"books","descriptor":{"title":"Books","authClientTypes":["oauth2"],"credentials":{
				"fields":{"oauth":{"viewClass":"OAuthFieldView"},"realm":{"required":true,"secret":false},"instance":{"secret":false}},
				"oauth2":{"auth_uri":"/auth","token_uri":"/token","capture":[{"field":"realm","callback":"realmId","forward":true},{"field":"instance","response":"/instance_url"}]}}}}`)
			id, change := "", ""
			switch endpoints := fmt.Sprintf(`"auth_uri":"%[1]s/auth","token_uri":"%[1]s/token"`, provider.URL); by {
			case "oauth_client":
				if _, err := serve("oauth_client.define", `{"component":"books","client_id":"c","client_secret":"s","auth_uri":"https://idp.example.org/auth","token_uri":"http://idp.example.org/token"}`); stage.CodeOf(err) != "component_descriptor_invalid" {
					t.Errorf("an endpoint without TLS: %v", err)
				}
				id = s.Do("default", "oauth_client.define", `{"component":"books","client_id":"c","client_secret":"s",`+endpoints+`}`).ID
				change = `{"id":%q%s,"auth_uri":"https://evil.example.org/auth","token_uri":"https://evil.example.org/token"}`
			default:
				id = s.Do("default", "auth_client.create", `{"name":"n","type":"oauth2","components":["books"],"credentials":{"client_id":"c","client_secret":"s",`+endpoints+`}}`).ID
				change = `{"id":%q,"credentials":{"token_uri":"https://evil.example.org/token"%s}}`
			}
			s.CaughtUp()
			if c := stage.Must(serve("component.get", `{"id":"books"}`))(t).(component.Component); c.CannotConnect != "" {
				t.Errorf("cannot connect: %s", c.CannotConnect)
			}
			if k := stage.Must(serve("oauth_client.get", `{"component":"books"}`))(t).(client.OAuthClient); k.Supplies.TokenURI != provider.URL+"/token" {
				t.Errorf("the client shows %+v", k.Supplies)
			}
			link := stage.Must(serve("oauth.connect", `{"component":"books","name":"b"}`))(t).(connect.Connected)
			_, secret, _ := strings.Cut(link.URL, "/oauth/connect/")
			browser := ""
			cookies := func(string) (opened, starter string) { return browser, "" }
			opened := stage.Must(s.Service.Connects.OpenLink(t.Context(), secret, netip.MustParseAddr("127.0.0.1"), cookies))(t)
			browser = opened.Cookie
			at := stage.Must(url.Parse(opened.Location))(t)
			if !strings.HasPrefix(opened.Location, provider.URL+"/auth?") {
				t.Fatalf("the browser goes to %s", opened.Location)
			}
			back := stage.Must(s.Service.Connects.ReturnConnection(t.Context(), connect.Callback{
				Tenant: "default", Component: "books", From: netip.MustParseAddr("127.0.0.1"), Browser: cookies,
				Query: url.Values{"state": at.Query()["state"], "code": {"x"}, "realmId": {"4711"}}.Encode(),
			}))(t)
			made := stage.Must(serve("oauth.complete", fmt.Sprintf(`{"connection":%q,"confirm":%q}`, back.Connection, back.Confirm)))(t).(service.Done)
			s.CaughtUp()
			shown := stage.Must(serve("credential.get", fmt.Sprintf(`{"id":%q}`, made.ID)))(t).(credential.Credential)
			if keys := fmt.Sprint(shown.Keys); !strings.Contains(keys, "4711") || !strings.Contains(keys, "https://na1.example.org") {
				t.Errorf("the fields are %s", keys)
			}
			refresh := fmt.Sprintf(`{"id":%q}`, made.ID)
			if _, err := serve("credential.refresh", refresh); err != nil {
				t.Errorf("refresh: %v", err)
			}
			if got := strings.Join(requests, ","); got != "/token authorization_code 4711,/token refresh_token " {
				t.Errorf("the requests are %q", got)
			}

			// Other endpoints need the secret, and get no tokens that another provider issued, and no code
			// of a person who saw the earlier provider.
			link = stage.Must(serve("oauth.connect", `{"component":"books","name":"c"}`))(t).(connect.Connected)
			_, secret, _ = strings.Cut(link.URL, "/oauth/connect/")
			opened = stage.Must(s.Service.Connects.OpenLink(t.Context(), secret, netip.MustParseAddr("127.0.0.1"), cookies))(t)
			browser = opened.Cookie
			if _, err := serve(by+".change", fmt.Sprintf(change, id, "")); stage.CodeOf(err) != "oauth_client_endpoints_secret" {
				t.Errorf("other endpoints without the secret: %v", err)
			}
			with := map[string]string{"oauth_client": `,"client_secret":"s"`, "auth_client": `,"client_secret":"s2"`}[by]
			if _, err := serve(by+".change", fmt.Sprintf(change, id, with)); err != nil {
				t.Fatalf("other endpoints: %v", err)
			}
			s.CaughtUp()
			_, err := s.Service.Connects.ReturnConnection(t.Context(), connect.Callback{
				Tenant: "default", Component: "books", From: netip.MustParseAddr("127.0.0.1"), Browser: cookies,
				Query: url.Values{"state": stage.Must(url.Parse(opened.Location))(t).Query()["state"], "code": {"y"}, "realmId": {"1"}}.Encode(),
			})
			if stage.CodeOf(err) != connect.ErrConnectionComponentChanged.Code || len(requests) != 2 {
				t.Errorf("a callback after the endpoints changed: %v, %d requests", err, len(requests))
			}
			if _, err := serve("credential.refresh", refresh); stage.CodeOf(err) != "oauth_client_hosts_changed" || len(requests) != 2 {
				t.Errorf("refresh at another provider: %v, %d requests", err, len(requests))
			}
		})
	}
}
