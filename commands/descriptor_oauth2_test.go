package commands_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/fault"
)

func TestOAuth2OfDescriptors(t *testing.T) {
	for file, want := range map[string]*commands.OAuth2{
		"oauth-with-endpoints.json": {
			AuthURI:        "https://accounts.example.com/authorize",
			TokenURI:       "https://accounts.example.com/token",
			Scopes:         []string{"https://api.example.com/auth/rows", "https://api.example.com/auth/names.readonly"},
			ScopeSeparator: " ",
			AuthParams:     map[string]string{"access_type": "offline", "prompt": "consent"},
		},
		"oauth-by-auth-client.json": nil,
		"host-in-field.json":        nil,
	} {
		raw, err := os.ReadFile("testdata/components/" + file)
		if err != nil {
			t.Fatal(err)
		}
		d, err := commands.ParseDescriptor(raw)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, d.OAuth2); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file, diff)
		}
	}
}

// block is a component.json with an oauth2 block of two endpoints and these members.
func block(members string) []byte {
	if members != "" {
		members = ", " + members
	}
	return with(`"oauth2": {"auth_uri": "https://as.example.com/authorize", "token_uri": "https://as.example.com/token"` + members + `}`)
}

func TestOAuth2IsRead(t *testing.T) {
	const auth, token = "https://as.example.com/authorize", "https://as.example.com/token"
	base := func(change func(*commands.OAuth2)) *commands.OAuth2 {
		o := &commands.OAuth2{AuthURI: auth, TokenURI: token, ScopeSeparator: " "}
		if change != nil {
			change(o)
		}
		return o
	}
	scopes := func(separator string, s ...string) *commands.OAuth2 {
		return base(func(o *commands.OAuth2) { o.Scopes, o.ScopeSeparator = s, separator })
	}
	for name, c := range map[string]struct {
		raw  []byte
		want *commands.OAuth2
	}{
		"least":         {block(""), base(nil)},
		"no endpoint":   {with(`"oauth2": {"client_id": "{{A}}", "prompt": "{{not looked at}}"}`), nil},
		"no object":     {with(`"oauth2": true`), nil},
		"null":          {with(`"oauth2": null`), nil},
		"in both":       {[]byte(`{"title": "T", "oauth2": {"client_id": "{{A}}"}, "credentials": {"oauth2": {"auth_uri": "` + auth + `", "token_uri": "` + token + `"}}}`), base(nil)},
		"the upper one": {[]byte(`{"title": "T", "oauth2": {"auth_uri": "` + auth + `", "token_uri": "` + token + `"}, "credentials": {"oauth2": {"auth_uri": "https://b.example.com/", "token_uri": "https://b.example.com/"}}}`), base(nil)},
		"everything": {block(`"client_id": "{{A}}", "client_secret": "{{B}}", "issuer": "https://as.example.com/realm", "require_iss": true,
			"revocation_uri": "https://as.example.com/revoke", "token_endpoint_auth_method": "client_secret_basic", "scopes": ["a", "b c"], "scope_separator": " ",
			"auth_params": {"audience": "x"}, "access_type": "offline", "prompt": "", "token_params": {"resource": "y"}, "pkce": false,
			"grant_type": "authorization_code", "response_type": "code", "token_lifetime": 7200, "refresh_rotation": "always",
			"numbers": 1, "objects": {}, "switch": true`), &commands.OAuth2{
			Issuer: "https://as.example.com/realm", RequireIssuer: true, AuthURI: auth, TokenURI: token, RevocationURI: "https://as.example.com/revoke",
			Basic: true, Scopes: []string{"a", "b", "c"}, ScopeSeparator: " ", AuthParams: map[string]string{"audience": "x", "access_type": "offline", "prompt": ""},
			TokenParams: map[string]string{"resource": "y"}, NoPKCE: true, TokenLifetime: 7200, RefreshRotation: "always",
		}},
		"client credentials": {
			with(`"oauth2": {"token_uri": "` + token + `", "grant_type": "client_credentials", "token_endpoint_auth_method": "client_secret_post"}`),
			&commands.OAuth2{TokenURI: token, ScopeSeparator: " ", ClientCredentials: true},
		},
		"client credentials with auth_uri": {block(`"grant_type": "client_credentials"`), base(func(o *commands.OAuth2) { o.AuthURI, o.ClientCredentials = "", true })},
		"one string":                       {block(`"scopes": "a b  c"`), scopes(" ", "a", "b", "c")},
		"scope":                            {block(`"scope": "a b"`), scopes(" ", "a", "b")},
		"comma":                            {block(`"scopes": "a,b", "scope_separator": ","`), scopes(",", "a", "b")},
		"no scopes":                        {block(`"scopes": []`), base(nil)},
		"pkce true":                        {block(`"pkce": true`), base(nil)},
		"pkce S256":                        {block(`"pkce": "S256"`), base(nil)},
		"this machine": {
			with(`"oauth2": {"auth_uri": "http://localhost:8080/a", "token_uri": "http://127.0.0.1:8080/t", "revocation_uri": "http://[::1]/r", "issuer": "http://LOCALHOST"}`),
			&commands.OAuth2{AuthURI: "http://localhost:8080/a", TokenURI: "http://127.0.0.1:8080/t", RevocationURI: "http://[::1]/r", Issuer: "http://LOCALHOST", ScopeSeparator: " "},
		},
		"query": {
			with(`"oauth2": {"auth_uri": "https://as.example.com/a?tenant=1&p=b2c", "token_uri": "https://as.example.com/t?p=b2c"}`),
			&commands.OAuth2{AuthURI: "https://as.example.com/a?tenant=1&p=b2c", TokenURI: "https://as.example.com/t?p=b2c", ScopeSeparator: " "},
		},
	} {
		d, err := commands.ParseDescriptor(c.raw)
		if err != nil {
			t.Errorf("%s: %v at %s", name, err, fault.Of(err).Pointer)
			continue
		}
		if diff := cmp.Diff(c.want, d.OAuth2); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestOAuth2Refused(t *testing.T) {
	list := func(n int, item string) string { return strings.Repeat(item+", ", n-1) + item }
	numbered := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `, "p%d": "v"`, i)
		}
		return b.String()[2:]
	}
	cases := map[string]struct{ members, at string }{
		"response type":          {`"response_type": "token"`, "/oauth2/response_type"},
		"response types":         {`"response_type": "code id_token"`, "/oauth2/response_type"},
		"pkce plain":             {`"pkce": "plain"`, "/oauth2/pkce"},
		"pkce method":            {`"code_challenge_method": "plain"`, "/oauth2/code_challenge_method"},
		"grant":                  {`"grant_type": "password"`, "/oauth2/grant_type"},
		"auth method":            {`"token_endpoint_auth_method": "client_secret_jwt"`, "/oauth2/token_endpoint_auth_method"},
		"no key to sign":         {`"token_endpoint_auth_method": "private_key_jwt"`, "/oauth2"},
		"a claim of ours":        {`"signing": {"key": "{{apiKey}}", "claims": {"exp": "1"}}`, "/oauth2/signing/claims/exp"},
		"a captured code":        {`"capture": [{"field": "apiKey", "callback": "code"}]`, "/oauth2/capture/0/callback"},
		"a captured no field":    {`"capture": [{"field": "nobody", "callback": "realm"}]`, "/oauth2/capture/0/field"},
		"a captured token":       {`"capture": [{"field": "apiKey", "response": "/data/refresh_token"}]`, "/oauth2/capture/0/response"},
		"captured twice":         {`"capture": [{"field": "apiKey", "callback": "realm", "response": "/x"}]`, "/oauth2/capture/0"},
		"lifetime 0":             {`"token_lifetime": 0`, "/oauth2/token_lifetime"},
		"lifetime a fraction":    {`"token_lifetime": 0.5`, "/oauth2/token_lifetime"},
		"lifetime a string":      {`"token_lifetime": "3600"`, "/oauth2/token_lifetime"},
		"lifetime too long":      {`"token_lifetime": 31622401`, "/oauth2/token_lifetime"},
		"rotation":               {`"refresh_rotation": "sometimes"`, "/oauth2/refresh_rotation"},
		"101 scopes":             {`"scopes": [` + list(101, `"a"`) + `]`, "/oauth2/scopes"},
		"101 scopes in one":      {`"scope": "` + strings.Repeat("a ", 101) + `"`, "/oauth2/scope"},
		"scope quote":            {`"scopes": ["a\"b"]`, "/oauth2/scopes"},
		"scope backslash":        {`"scopes": ["a\\b"]`, "/oauth2/scopes"},
		"scope line break":       {`"scopes": ["a\nb"]`, "/oauth2/scopes"},
		"scope umlaut":           {`"scopes": "ä"`, "/oauth2/scopes"},
		"scope space and comma":  {`"scopes": "a b,c", "scope_separator": ","`, "/oauth2/scopes"},
		"scope number":           {`"scopes": [1]`, "/oauth2/scopes/0"},
		"scope twice":            {`"scopes": ["a"], "scope": "b"`, "/oauth2/scopes"},
		"separator":              {`"scope_separator": "a"`, "/oauth2/scope_separator"},
		"separator empty":        {`"scope_separator": ""`, "/oauth2/scope_separator"},
		"33 params":              {`"auth_params": {` + numbered(33) + `}`, "/oauth2/auth_params"},
		"33 params in the block": {numbered(33), "/oauth2"},
		"33 params in all":       {numbered(20) + `, "auth_params": {` + strings.ReplaceAll(numbered(13), `"p`, `"q`) + `}`, "/oauth2"},
		"param twice":            {`"prompt": "a", "auth_params": {"prompt": "b"}`, "/oauth2/auth_params/prompt"},
		"param long":             {`"prompt": "` + strings.Repeat("x", 1025) + `"`, "/oauth2/prompt"},
		"param control":          {`"prompt": "a\u0000"`, "/oauth2/prompt"},
		"param template":         {`"prompt": "{{X}}"`, "/oauth2/prompt"},
		"param name":             {`"auth_params": {"a b": "c"}`, "/oauth2/auth_params/a b"},
		"param name empty":       {`"auth_params": {"": "c"}`, "/oauth2/auth_params/"},
		"param number":           {`"auth_params": {"a": 1}`, "/oauth2/auth_params/a"},
		"require_iss alone":      {`"require_iss": true`, "/oauth2/require_iss"},
		"require_iss string":     {`"require_iss": "true"`, "/oauth2/require_iss"},
		"issuer query":           {`"issuer": "https://as.example.com?a=b"`, "/oauth2/issuer"},
		"issuer empty query":     {`"issuer": "https://as.example.com?"`, "/oauth2/issuer"},
		"a pattern's steps":      {`"answers": [{"pointer": "/e", "matches": "(.?){501}", "outcome": "revoked"}]`, "/oauth2/answers/0/matches"},
		"nested repeats":         {`"answers": [{"pointer": "/e", "matches": "((a|b){30}){30}", "outcome": "revoked"}]`, "/oauth2/answers/0/matches"},
		"issuer http":            {`"issuer": "http://as.example.com"`, "/oauth2/issuer"},
	}
	for _, name := range []string{"client_id", "redirect_uri", "state", "code_challenge", "code_challenge_method", "request", "request_uri"} {
		if name != "client_id" { // which is a member of its own
			cases["own "+name] = struct{ members, at string }{fmt.Sprintf(`%q: "x"`, name), "/oauth2/" + name}
		}
		cases["auth param "+name] = struct{ members, at string }{fmt.Sprintf(`"auth_params": {%q: "x"}`, name), "/oauth2/auth_params/" + name}
	}
	for _, name := range []string{"response_type", "scope"} {
		cases["auth param "+name] = struct{ members, at string }{fmt.Sprintf(`"auth_params": {%q: "code"}`, name), "/oauth2/auth_params/" + name}
	}
	for _, name := range []string{"client_id", "grant_type", "code", "code_verifier", "refresh_token", "redirect_uri", "scope", "client_assertion", "password", "username"} {
		cases["token param "+name] = struct{ members, at string }{fmt.Sprintf(`"token_params": {%q: "swordfish"}`, name), "/oauth2/token_params/" + name}
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) { refused(t, block(c.members), commands.ErrDescriptorInvalid, c.at) })
	}
	for _, where := range []string{"auth_params", "token_params"} {
		refused(t, block(fmt.Sprintf(`%q: {"client_secret": "swordfish"}`, where)), commands.ErrSecretInDescriptor, "/oauth2/"+where+"/client_secret")
	}
	refused(t, with(`"oauth2": {"token_uri": "https://as.example.com/", "grant_type": "authorization_code"}`), commands.ErrDescriptorInvalid, "/oauth2")
	refused(t, []byte(`{"title": "T", "credentials": {"oauth2": {"token_uri": "https://as.example.com/", "auth_uri": "x"}}}`), commands.ErrDescriptorInvalid, "/credentials/oauth2/auth_uri")
	refused(t, with(`"oauth2": {"token_uri": 1}`), commands.ErrDescriptorInvalid, "/oauth2/token_uri")
}

func TestOAuth2EndpointsRefused(t *testing.T) {
	for _, uri := range []string{
		"as.example.com/token", "//as.example.com/token", "ftp://as.example.com/", "https:as.example.com", "https://", "https:///token", "javascript:alert(1)",
		"http://as.example.com/", "http://10.0.0.1/", "http://127.0.0.2/", "http://127.1/", "http://localhost.example.com/", "http://[::ffff:127.0.0.1]/", "http://0.0.0.0/",
		"https://swordfish@as.example.com/", "https://a:swordfish@as.example.com/", "https://as.example.com/#", "https://as.example.com/#a",
		"https://as.example.com/a b", "https://as.example.com/\\b", "https://ä.example.com/",
		"https://as.example.com:0/", "https://as.example.com:65536/", "https://as.example.com:/", "https://as.example.com:x/", "https://[::1/", "https://as.example.com/%zz",
		"https://as.example.com/?state=1", "https://as.example.com/?a=b&redirect_uri=https://evil.example.com", "https://as.example.com/?client_id=1",
		"https://as.example.com/?response_type=token", "https://as.example.com/?code_challenge=1", "https://as.example.com/?st%61te=1", "https://as.example.com/?client_secret=swordfish",
		"https://as.example.com/?a;state=1", "https://as.example.com/?refresh_token", "https://as.example.com/" + strings.Repeat("x", 2048),
	} {
		for _, member := range []string{"auth_uri", "token_uri", "revocation_uri", "issuer"} {
			t.Run(member+" "+uri[:min(len(uri), 60)], func(t *testing.T) {
				members := fmt.Sprintf(`%q: %q`, member, uri)
				for _, other := range []string{"auth_uri", "token_uri"} {
					if other != member {
						members += fmt.Sprintf(`, %q: "https://as.example.com/"`, other)
					}
				}
				refused(t, with(`"oauth2": {`+members+`}`), commands.ErrDescriptorInvalid, "/oauth2/"+member)
			})
		}
	}
}

// Real descriptors have blocks that lead to no provider: such a component is taken, and says why.
func TestOAuth2Unusable(t *testing.T) {
	const field = `{"title": "T", "credentials": {"fields": {"oauth": {"viewClass": "OAuthFieldView"}}}%s}`
	for block, want := range map[string]string{
		``: "no oauth2 block",
		`, "oauth2": {"auth_uri": "https://as.example.com/"}`:                                                       "no token_uri",
		`, "oauth2": {"auth_uri": "https://{{env}}.example.com/", "token_uri": "https://as.example.com/"}`:          "auth_uri of the oauth2 block (/oauth2) is a template",
		`, "oauth2": {"auth_uri": "https://as.example.com/", "token_uri": "https://as.example.com/{{tenant}}/t"}`:   "token_uri of the oauth2 block (/oauth2) is a template",
		`, "oauth2": {"auth_uri": "/authorize", "token_uri": "/token"}`:                                             "relative address",
		`, "oauth2": {"auth_uri": "https://as.example.com/", "token_uri": "https://as.example.com/", "scope": "a"}`: "",
	} {
		d, err := commands.ParseDescriptor([]byte(fmt.Sprintf(field, block)))
		if err != nil || (d.OAuth2 != nil) != (want == "") || !strings.Contains(d.CannotConnect, want) || want == "" && d.CannotConnect != "" {
			t.Errorf("%s: %v, %q, want %q", block, err, d.CannotConnect, want)
		}
	}
	d, err := commands.ParseDescriptor([]byte(fmt.Sprintf(field, `, "oauth2": {"token_uri": "https://as.example.com/"}`)))
	if err != nil || d.OAuth2 == nil || !d.OAuth2.ClientCredentials || !d.WantsClient {
		t.Errorf("a token_uri alone: %v, %+v", err, d.OAuth2)
	}
	if d, err := commands.ParseDescriptor(with("")); err != nil || d.CannotConnect != "" {
		t.Errorf("without a field for tokens: %v, %q", err, d.CannotConnect)
	}
}

// A template cannot let the one who enters a credential choose the server that gets the client's secret.
func TestOAuth2Templates(t *testing.T) {
	const file = `{"title": "T", "credentials": {"fields": {"oauth": {"viewClass": "OAuthFieldView"}, "env": {}, "pass": {"viewClass": "PasswordFieldView"}}},
		"oauth2": {"auth_uri": "https://as.example.com/", "token_uri": %q}}`
	for uri, usable := range map[string]bool{
		"https://{{env}}.example.com/t": true, "https://eu-{{env}}.login.example.com/t": true, "https://as.example.com/{{env}}/t": true,
		"https://{{env}}/t": false, "https://{{env}}.com/t": false, "https://{{env}}.co.uk/t": false, "https://{{env}}.s3.amazonaws.com/t": false,
		"https://{{env}}.github.io/t": false, "https://x{{env}}.example.com/t": false, "https://as.example.{{env}}/t": false, "{{env}}/t": false,
		"https://as.example.com:{{env}}/t": false, "https://as.example.com/?x={{env}}": false, "https://{{env}}@as.example.com/": false,
		"https://{{pass}}.example.com/t": false, "https://{{oauth}}.example.com/t": false, "https://{{other}}.example.com/t": false,
		"http://{{env}}.example.com/t": false, "https://{{env}.example.com/t": false,
	} {
		d, err := commands.ParseDescriptor([]byte(fmt.Sprintf(file, uri)))
		if err != nil || (d.OAuth2 != nil) != usable || (d.CannotConnect == "") != usable {
			t.Errorf("%s: %v, %+v, %q", uri, err, d.OAuth2, d.CannotConnect)
		}
	}
}

func refused(t *testing.T, raw []byte, want *fault.Error, at string) {
	t.Helper()
	_, err := commands.ParseDescriptor(raw)
	if err == nil {
		t.Fatal("taken")
	}
	got := fault.Of(err)
	if !errors.Is(err, want) || got.Pointer != at {
		t.Fatalf("error %v at %q, want %s at %q", err, got.Pointer, want.Code, at)
	}
	if strings.Contains(got.Msg, "swordfish") || len(got.Msg) > 300 || !strings.HasSuffix(got.Msg, ".") {
		t.Errorf("it says %q", got.Msg)
	}
}

// A secret goes beyond its hosts when one of its two addresses does.
func TestSecretHosts(t *testing.T) {
	at := func(token, revocation string) *commands.OAuth2 {
		return &commands.OAuth2{AuthURI: "https://login.example.org/a", TokenURI: token, RevocationURI: revocation}
	}
	plain := at("https://Accounts.example.org/token", "")
	for name, c := range map[string]struct {
		now    *commands.OAuth2
		others []*commands.OAuth2
		beyond []string
	}{
		"the same":                     {plain, []*commands.OAuth2{plain}, nil},
		"another path":                 {at("https://accounts.example.org/v2/token?x=1", ""), []*commands.OAuth2{plain}, nil},
		"in other letters":             {at("https://ACCOUNTS.example.ORG:443/token", ""), []*commands.OAuth2{plain}, nil},
		"revocation at the same host":  {at("https://accounts.example.org/token", "https://accounts.example.org/revoke"), []*commands.OAuth2{plain}, nil},
		"revocation at another host":   {at("https://accounts.example.org/token", "https://evil.example.org/"), []*commands.OAuth2{plain}, []string{"evil.example.org:443"}},
		"tokens from another host":     {at("https://accounts.example.org.evil.example/token", ""), []*commands.OAuth2{plain}, []string{"accounts.example.org.evil.example:443"}},
		"another port":                 {at("https://accounts.example.org:8443/token", ""), []*commands.OAuth2{plain}, []string{"accounts.example.org:8443"}},
		"no revocation any more":       {plain, []*commands.OAuth2{at("https://accounts.example.org/t", "https://revoke.example.org/")}, nil},
		"one of those confirmed":       {plain, []*commands.OAuth2{at("https://new.example.org/", ""), plain}, nil},
		"none confirmed":               {plain, nil, []string{"accounts.example.org:443"}},
		"confirmed without a block":    {plain, []*commands.OAuth2{nil}, []string{"accounts.example.org:443"}},
		"no block":                     {nil, nil, nil},
		"this machine, the other port": {at("http://127.0.0.1:80/", "http://127.0.0.1/"), []*commands.OAuth2{at("http://127.0.0.1:81/", "")}, []string{"127.0.0.1:80"}},
		"a number of version 6":        {at("http://[::1]:9000/", ""), []*commands.OAuth2{at("http://[::1]:9000/other", "")}, nil},
	} {
		if got := c.now.Beyond(c.others...); !slices.Equal(got, c.beyond) {
			t.Errorf("%s: beyond are %q, want %q", name, got, c.beyond)
		}
	}
}

// People go beyond the hosts they were sent to when the authorization endpoint does.
func TestConsentHosts(t *testing.T) {
	at := func(authorization string) *commands.OAuth2 {
		return &commands.OAuth2{AuthURI: authorization, TokenURI: "https://token.example.org/"}
	}
	plain := at("https://login.example.org/authorize")
	for name, c := range map[string]struct {
		now    *commands.OAuth2
		others []*commands.OAuth2
		beyond []string
	}{
		"another path":          {at("https://LOGIN.example.org:443/v2?x=1"), []*commands.OAuth2{plain}, nil},
		"another host":          {at("https://evil.example.org/authorize"), []*commands.OAuth2{plain}, []string{"evil.example.org:443"}},
		"where the secret goes": {at("https://token.example.org/authorize"), []*commands.OAuth2{plain}, []string{"token.example.org:443"}},
		"one of those":          {at("https://new.example.org/"), []*commands.OAuth2{plain, at("https://new.example.org/x")}, nil},
		"nobody was asked":      {plain, []*commands.OAuth2{at("")}, []string{"login.example.org:443"}},
		"nobody is asked":       {at(""), []*commands.OAuth2{plain}, nil},
		"there was no block":    {plain, []*commands.OAuth2{nil}, []string{"login.example.org:443"}},
		"there is no block":     {nil, []*commands.OAuth2{plain}, nil},
	} {
		if got := c.now.ConsentBeyond(c.others...); !slices.Equal(got, c.beyond) {
			t.Errorf("%s: beyond are %q, want %q", name, got, c.beyond)
		}
	}
}
