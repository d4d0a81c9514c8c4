package oauthtest

import (
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"

	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/seal"
)

// OpenIDProvider is a real OpenID provider (zitadel/oidc) in this process, with
// a login page. It replaces refresh tokens when they are used and refuses the
// old ones. Its access tokens live five minutes.
type OpenIDProvider struct {
	URL string // and issuer
	*storage.Storage
}

// NewOpenIDProvider starts a provider that ends with the test and sends browsers
// back to these addresses alone.
func NewOpenIDProvider(t testing.TB, redirectURIs ...string) *OpenIDProvider {
	server := httptest.NewUnstartedServer(nil)
	issuer := "http://" + server.Listener.Addr().String()
	store := storage.NewStorageWithClients(storage.NewUserStore(issuer), map[string]*storage.Client{
		ClientID: storage.WebClient(ClientID, ClientSecret, redirectURIs...),
	})
	server.Config.Handler = exampleop.SetupServer(issuer, store, slog.New(slog.DiscardHandler), false)
	server.Start()
	t.Cleanup(server.Close)
	return &OpenIDProvider{URL: issuer, Storage: store}
}

// Provider describes the provider. Without the scope offline_access it gives no
// refresh token.
func (p *OpenIDProvider) Provider() oauth.Provider {
	return oauth.Provider{
		Issuer: p.URL, AuthURI: p.URL + "/auth", TokenURI: p.URL + "/oauth/token", RevocationURI: p.URL + "/revoke",
		Basic: true, Scopes: []string{"openid", "offline_access"},
	}
}

// Block is the provider as the oauth2 block of a component.json.
func (p *OpenIDProvider) Block() map[string]any {
	return map[string]any{
		"issuer": p.URL, "auth_uri": p.URL + "/auth", "token_uri": p.URL + "/oauth/token", "revocation_uri": p.URL + "/revoke",
		"token_endpoint_auth_method": "client_secret_basic", "scopes": "openid offline_access",
	}
}

// Client is the client for people's consent.
func (p *OpenIDProvider) Client() oauth.Client {
	return oauth.Client{ID: ClientID, Secret: seal.NewSecret([]byte(ClientSecret))}
}

// Service is the client for client credentials.
func (p *OpenIDProvider) Service() oauth.Client {
	return oauth.Client{ID: "sid1", Secret: seal.NewSecret([]byte("verysecret"))}
}

// Consent opens an authorization URL as a browser would, signs in, and returns
// the address of ours that the provider then sends the browser to.
func (p *OpenIDProvider) Consent(t testing.TB, authorizationURL string) *url.URL {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: jar, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if !strings.HasPrefix(r.URL.String(), p.URL) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	ask, err := http.NewRequestWithContext(t.Context(), http.MethodGet, authorizationURL, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	page, err := browser.Do(ask)
	if err != nil {
		t.Fatal(err)
	}
	_ = page.Body.Close()
	form := url.Values{"username": {"test-user2"}, "password": {"verysecure"}, "id": {page.Request.URL.Query().Get("authRequestID")}}
	signIn, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.URL+"/login/username", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	signIn.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := browser.Do(signIn)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	back, err := resp.Location()
	if err != nil {
		t.Fatalf("the provider answers %s and sends nobody back", resp.Status)
	}
	return back
}
