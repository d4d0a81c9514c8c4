package commands

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/net/publicsuffix"

	"github.com/credstream/credstream/events"
)

const (
	maxScopes      = 100
	maxOAuthParams = 32
	maxOAuthValue  = 1024 // bytes of a parameter's value
)

// OAuth2 describes how a component's tokens are obtained from the provider and renewed.
// ParseDescriptor has checked it: its URIs are absolute, https except for loopback, and no
// parameter replaces one of the protocol's own.
type OAuth2 struct {
	Issuer            string            // identifier of the authorization server (RFC 8414), "" if not declared
	RequireIssuer     bool              // the callback must carry iss (RFC 9207)
	AuthURI           string            // authorization endpoint; "" for client credentials
	TokenURI          string            // token endpoint
	RevocationURI     string            // revocation endpoint (RFC 7009), "" if there is none
	Basic             bool              // the client authenticates by HTTP Basic; else by client_id and client_secret in the body
	Scopes            []string          // in the order of the file
	ScopeSeparator    string            // " " if not declared
	AuthParams        map[string]string // additional parameters of the authorization request
	TokenParams       map[string]string // additional parameters of token requests
	NoPKCE            bool              // the provider refuses PKCE (RFC 7636)
	ClientCredentials bool              // the grant is client credentials, without a person
	RefreshParams     map[string]string // additional parameters of refreshes, which take precedence over TokenParams
	JSON              bool              // token requests are JSON objects
	Public            bool              // the client has no secret, and uses only PKCE
	TokenLifetime     int               // lifetime of an access token in seconds if the provider states none; 0: not declared
	LifetimeOverride  bool              // TokenLifetime takes precedence over the provider's response
	Milliseconds      bool              // the provider's expires_in is in milliseconds
	RefreshBefore     int               // seconds before the expiry of an access token at which it is renewed; 0: derived from its lifetime
	RefreshNotBefore  int               // the provider refuses to renew earlier than this, in seconds before the expiry; 0: none known
	Answers           []AnswerRule      // for responses of the token endpoint without tokens
	RefreshRotation   string            // whether the provider rotates refresh tokens: "always", "never" or "" (unknown)
	RefreshLifetime   int               // lifetime of a refresh token in seconds from its grant, which renewals do not extend; 0: not declared
	RefreshURI        string            // where tokens are renewed; "" is TokenURI
	Grant             string            // grant_type of requests without a person; "" is client_credentials
	NoRefresh         bool              // the provider issues no refresh tokens
	TokenAt           string            // JSON pointer of the object with the tokens in a response; "" is the response itself
	JWT               *JWT              // signs assertions; nil if there is none
	PrivateKeyJWT     bool              // the client authenticates by an assertion (RFC 7523, section 2.2)
	Capture           []Capture         // what a connection keeps as fields of the credential
	Supplied          bool              // the endpoints are those of the tenant's OAuth client, not of the component.json
}

// JWT describes how assertions (RFC 7523) are made. Its strings are templates of fields and {{client_id}}.
type JWT struct {
	Alg      string            `json:"alg"`
	Key      string            `json:"key"`      // the private key in PEM, a field: {{privateKey}}
	KeyID    string            `json:"kid"`      // "" for none
	Claims   map[string]string `json:"claims"`   // iss, sub, aud, scope and others; aud is the token endpoint when absent
	Lifetime int               `json:"lifetime"` // seconds; 300 when 0
}

// Capture is a value that a connection keeps as a field of the credential: exactly one of Callback and
// Response is set.
type Capture struct {
	Field    string `json:"field"`
	Callback string `json:"callback"` // name of a parameter of the callback
	Response string `json:"response"` // JSON pointer into the token response
	Forward  bool   `json:"forward"`  // the parameter of the callback is sent with the token request, too
}

// AnswerRule gives a meaning to responses of the token endpoint without tokens.
type AnswerRule struct {
	Condition
	Status  int    `json:"status"`  // 0: any
	Outcome string `json:"outcome"` // "revoked", "transient", "rate_limited", "too_early" or "misconfigured"
}

// sends returns what requests to the provider contain of the credential's fields, and where they go;
// the zero value if they contain none.
func (o *OAuth2) sends() OAuth2 {
	if o == nil {
		return OAuth2{}
	}
	uris := []string{o.AuthURI, o.TokenURI, o.RefreshURI, o.RevocationURI}
	texts := slices.Clone(uris)
	for _, params := range []map[string]string{o.AuthParams, o.TokenParams, o.RefreshParams} {
		texts = slices.AppendSeq(texts, maps.Values(params))
	}
	if o.JWT == nil && len(o.Capture) == 0 && !slices.ContainsFunc(texts, fillsField) {
		return OAuth2{}
	}
	return OAuth2{
		AuthURI: o.AuthURI, TokenURI: o.TokenURI, RefreshURI: o.RefreshURI, RevocationURI: o.RevocationURI,
		AuthParams: o.AuthParams, TokenParams: o.TokenParams, RefreshParams: o.RefreshParams, JWT: o.JWT, Capture: o.Capture,
	}
}

// fillsField reports whether a text contains the value of a field.
func fillsField(text string) bool {
	fields, ok := placeholders(text)
	return !ok || slices.ContainsFunc(fields, func(name string) bool { return name != ClientIDTemplate })
}

// AddressFields returns the names of the fields whose values determine where a credential's values,
// its tokens or the code of a connection are sent, and which server may receive them: those of
// HostFields, of the endpoints, and of the ports and CAs of the dry request.
func (d Descriptor) AddressFields() []string {
	names := d.HostFields()
	for _, template := range d.Verification.addresses() {
		fields, _ := placeholders(template)
		names = append(names, fields...)
	}
	if d.OAuth2 != nil {
		for _, uri := range []string{d.OAuth2.AuthURI, d.OAuth2.TokenURI, d.OAuth2.RefreshURI, d.OAuth2.RevocationURI} {
			fields, _ := placeholders(uri)
			names = append(names, fields...)
		}
	}
	return names
}

// SecretHosts returns the hosts, with ports, that the client's secret and the tokens are sent to:
// those of the token endpoint and the revocation endpoint.
func (o *OAuth2) SecretHosts() []string {
	if o == nil {
		return nil
	}
	return hostsOf(o.TokenURI, o.RefreshURI, o.RevocationURI)
}

// ConsentHosts returns the host, with its port, that people who connect an account are redirected
// to: that of the authorization endpoint.
func (o *OAuth2) ConsentHosts() []string {
	if o == nil {
		return nil
	}
	return hostsOf(o.AuthURI)
}

// hostsOf returns the distinct hosts of URIs, with ports. A template remains as it is written.
func hostsOf(uris ...string) (hosts []string) {
	for _, uri := range uris {
		scheme, host, port := origin(uri)
		if host == "" {
			continue
		}
		switch {
		case port != "":
		case scheme == "http":
			port = "80"
		default:
			port = "443"
		}
		if host = strings.ToLower(host) + ":" + port; !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// origin splits the beginning of an absolute URI, whose host may be a template.
func origin(uri string) (scheme, host, port string) {
	scheme, _, _ = strings.Cut(uri, "://")
	host = authority(uri)
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		host, port = host[:i], host[i+1:]
	}
	return scheme, host, port
}

// SameProvider reports whether two blocks have the same issuer, schemes and hosts.
func (o *OAuth2) SameProvider(other *OAuth2) bool {
	if other == nil || o.Issuer != other.Issuer {
		return false
	}
	for _, uris := range [][2]string{
		{o.AuthURI, other.AuthURI}, {o.TokenURI, other.TokenURI}, {o.RefreshURI, other.RefreshURI}, {o.RevocationURI, other.RevocationURI},
	} {
		scheme, host, port := origin(uris[0])
		otherScheme, otherHost, otherPort := origin(uris[1])
		if scheme != otherScheme || host != otherHost || port != otherPort {
			return false
		}
	}
	return true
}

// Beyond returns the SecretHosts that none of the others has.
func (o *OAuth2) Beyond(others ...*OAuth2) []string {
	return beyond((*OAuth2).SecretHosts, o, others)
}

// ConsentBeyond returns the ConsentHosts that none of the others has.
func (o *OAuth2) ConsentBeyond(others ...*OAuth2) []string {
	return beyond((*OAuth2).ConsentHosts, o, others)
}

func beyond(hosts func(*OAuth2) []string, o *OAuth2, others []*OAuth2) []string {
	return slices.DeleteFunc(hosts(o), func(host string) bool {
		return slices.ContainsFunc(others, func(other *OAuth2) bool { return slices.Contains(hosts(other), host) })
	})
}

// oauth2Members are the members of the block that are not parameters of the authorization request.
// Every other string member is one.
type oauth2Members struct {
	ClientID        jsontext.Value    `json:"client_id"`
	ClientSecret    jsontext.Value    `json:"client_secret"`
	Issuer          string            `json:"issuer"`
	RequireIssuer   bool              `json:"require_iss"`
	AuthURI         string            `json:"auth_uri"`
	TokenURI        string            `json:"token_uri"`
	RevocationURI   string            `json:"revocation_uri"`
	AuthMethod      string            `json:"token_endpoint_auth_method"`
	Scopes          jsontext.Value    `json:"scopes"`
	Scope           string            `json:"scope"`
	ScopeSeparator  *string           `json:"scope_separator"`
	AuthParams      map[string]string `json:"auth_params"`
	TokenParams     map[string]string `json:"token_params"`
	PKCE            jsontext.Value    `json:"pkce"`
	GrantType       string            `json:"grant_type"`
	ResponseType    string            `json:"response_type"`
	RefreshParams   map[string]string `json:"refresh_params"`
	TokenFormat     string            `json:"token_format"`
	TokenLifetime   int               `json:"token_lifetime"`
	Override        bool              `json:"token_lifetime_override"`
	ExpiresInUnit   string            `json:"expires_in_unit"`
	RefreshBefore   int               `json:"refresh_before"`
	NotBefore       int               `json:"refresh_not_before"`
	Answers         []AnswerRule      `json:"answers"`
	RefreshRotation string            `json:"refresh_rotation"`
	RefreshLifetime int               `json:"refresh_token_lifetime"`
	RefreshURI      string            `json:"refresh_uri"`
	Refresh         string            `json:"refresh"`
	TokenAt         string            `json:"token_at"`
	JWT             *JWT              `json:"signing"`
	Capture         []Capture         `json:"capture"`

	Others map[string]jsontext.Value `json:",embed"`
}

// ownAuthParams and ownTokenParams are the protocol's own parameters of the two requests (RFC 6749,
// 7636, 7521, 9126 and 9101): the service sets them, or they would let a descriptor change the
// subject or the purpose of the request.
var (
	ownAuthParams = []string{
		"client_id", "client_secret", "code_challenge", "code_challenge_method", "redirect_uri", "request", "request_uri",
		"response_type", "scope", "state",
	}
	ownTokenParams = []string{
		"assertion", "client_assertion", "client_assertion_type", "client_id", "client_secret", "code", "code_verifier", "grant_type",
		"password", "redirect_uri", "refresh_token", "scope", "token", "token_type_hint", "username",
	}
)

// ownRefreshParams lack scope and redirect_uri, which some providers also require for a refresh.
var ownRefreshParams = slices.DeleteFunc(slices.Clone(ownTokenParams), func(name string) bool { return name == "scope" || name == "redirect_uri" })

// oauth2 parses the block; nil if it names no endpoint. at points to it. With an *unusableError,
// the result is a block without endpoints, for the endpoints of an OAuth client, or nil.
func (m oauthMembers) oauth2(at string, d *Descriptor) (*OAuth2, error) {
	var in oauth2Members
	if m.OAuth2.Kind() != '{' {
		return nil, nil //nolint:nilnil // no block is not an error
	}
	if err := json.Unmarshal(m.OAuth2, &in); err != nil {
		return nil, invalidAt(at, "A member has a value of the wrong type.")
	}
	if in.AuthURI == "" && in.TokenURI == "" {
		return nil, nil //nolint:nilnil // as above
	}
	o := &OAuth2{
		Issuer: in.Issuer, RequireIssuer: in.RequireIssuer,
		AuthURI: in.AuthURI, TokenURI: in.TokenURI, RevocationURI: in.RevocationURI,
		Basic: in.AuthMethod == "client_secret_basic", ScopeSeparator: " ",
		TokenParams: in.TokenParams, NoPKCE: in.PKCE.Kind() == 'f',
		ClientCredentials: in.GrantType != "" && in.GrantType != "authorization_code",
		RefreshURI:        in.RefreshURI, NoRefresh: in.Refresh == "none", TokenAt: in.TokenAt, JWT: in.JWT, Capture: in.Capture,
		PrivateKeyJWT: in.AuthMethod == "private_key_jwt",
		TokenLifetime: in.TokenLifetime, RefreshRotation: in.RefreshRotation, RefreshLifetime: in.RefreshLifetime,
		RefreshParams: in.RefreshParams, JSON: in.TokenFormat == "json", Public: in.AuthMethod == "none",
		LifetimeOverride: in.Override, Milliseconds: in.ExpiresInUnit == "ms",
		RefreshBefore: in.RefreshBefore, RefreshNotBefore: in.NotBefore, Answers: in.Answers,
	}
	if in.ScopeSeparator != nil {
		o.ScopeSeparator = *in.ScopeSeparator
	}
	if o.ClientCredentials && in.GrantType != "client_credentials" {
		o.Grant = in.GrantType
	}
	unusable := &unusableError{}
	switch {
	case in.TokenURI == "":
		unusable.reason = fmt.Sprintf("The oauth2 block (%s) has no token_uri.", at)
	case o.ClientCredentials:
		o.AuthURI = "" // this grant needs no consent
	case in.AuthURI == "" && in.GrantType != "":
		return nil, invalidAt(at, "The member \"auth_uri\" is missing. Only grant_type client_credentials works without it.")
	case in.AuthURI == "":
		o.ClientCredentials = true // real descriptors imply it this way
	}
	for _, endpoint := range []struct{ member, uri string }{{"auth_uri", o.AuthURI}, {"token_uri", o.TokenURI}, {"refresh_uri", o.RefreshURI}, {"revocation_uri", o.RevocationURI}} {
		if reason := d.unusableEndpoint(endpoint.uri); reason != "" && unusable.reason == "" {
			unusable.reason = fmt.Sprintf("The member %s of the oauth2 block (%s) %s.", endpoint.member, at, reason)
		}
	}
	if unusable.reason != "" {
		o.AuthURI, o.TokenURI, o.RefreshURI, o.RevocationURI = "", "", "", ""
	}
	for _, check := range []func() error{
		func() error { return o.checkURIs(at) },
		func() error { return o.readScopes(at, in) },
		func() error { return o.readAuthParams(at, in, d) },
		func() error { return d.checkParams(at+"/token_params", o.TokenParams, ownTokenParams) },
		func() error { return d.checkParams(at+"/refresh_params", o.RefreshParams, ownRefreshParams) },
		func() error { return o.checkRenewal(at) },
		func() error { return d.checkJWT(at, o) },
		func() error { return d.checkCapture(at, o) },
	} {
		switch err := check(); {
		case err == nil:
		case unusable.reason != "": // such a file was always accepted
			return nil, unusable
		default:
			return nil, err
		}
	}
	if unusable.reason != "" {
		return o, unusable
	}
	return o, nil
}

// grantJWT is the grant of RFC 7523, section 2.1.
const grantJWT = "urn:ietf:params:oauth:grant-type:jwt-bearer"

// NeedsClient reports whether token requests need an OAuth client: an assertion of the credential's
// own key needs none.
func (o *OAuth2) NeedsClient() bool { return o.Grant != grantJWT }

func (d *Descriptor) checkJWT(at string, o *OAuth2) error {
	switch {
	case o.JWT == nil && (o.Grant == grantJWT || o.PrivateKeyJWT):
		return invalidAt(at, "The member \"signing\" is missing. It says how assertions are signed.")
	case o.JWT == nil:
		return nil
	}
	at += "/signing"
	key, ok := placeholders(o.JWT.Key)
	if !ok || len(key) != 1 || o.JWT.Key != "{{"+key[0]+"}}" {
		return ErrSecretInDescriptor.Withf("The key must be one field of the credential: {{field}}.").At(at + "/key")
	}
	if err := d.checkTemplate(at+"/key", o.JWT.Key); err != nil {
		return err
	}
	for _, name := range sorted(o.JWT.Claims) {
		if slices.Contains([]string{"iat", "exp", "nbf", "jti"}, name) {
			return invalidAt(at+pointer("claims", name), "The service sets the claim %q.", name)
		}
	}
	claims := maps.Clone(o.JWT.Claims)
	if claims == nil {
		claims = map[string]string{}
	}
	claims["kid"] = o.JWT.KeyID
	for _, name := range sorted(claims) {
		if err := d.checkParamTemplate(at+pointer("claims", name), claims[name]); err != nil {
			return err
		}
	}
	return nil
}

func (d *Descriptor) checkCapture(at string, o *OAuth2) error {
	for i, c := range o.Capture {
		at := at + pointer("capture", strconv.Itoa(i))
		f, known := d.Field(c.Field)
		switch {
		case !known || f.OAuth():
			return invalidAt(at+"/field", "The credential has no field %q that can hold a captured value.", short(c.Field))
		case (c.Callback == "") == (c.Response == ""):
			return invalidAt(at, "Give exactly one of callback and response.")
		case c.Response != "" && !jsontext.Pointer(c.Response).IsValid():
			return invalidAt(at+"/response", "This is not a JSON pointer (RFC 6901).")
		case slices.Contains(tokenMembers, jsontext.Pointer(c.Response).LastToken()):
			return invalidAt(at+"/response", "A token cannot be captured as a field.")
		case slices.Contains(callbackParams, c.Callback), c.Forward && slices.Contains(ownTokenParams, c.Callback):
			return invalidAt(at+"/callback", "The parameter %q belongs to the protocol.", short(c.Callback))
		case c.Forward && c.Callback == "":
			return invalidAt(at+"/forward", "Only a parameter of the callback can be forwarded.")
		}
	}
	return nil
}

// tokenMembers are the members of a token response that are tokens.
var tokenMembers = []string{"access_token", "refresh_token", "id_token"}

// callbackParams are the protocol's own parameters of a callback.
var callbackParams = []string{"code", "state", "error", "error_description", "error_uri", "iss"}

// unusableError means that an oauth2 block lacks a usable endpoint, as in many real descriptors. The
// component is registered nevertheless, and the tenant's OAuth client can supply the endpoints.
type unusableError struct{ reason string }

// Error implements error.
func (e *unusableError) Error() string { return e.reason }

// unusableEndpoint returns why an endpoint cannot be used, "" if it can. Templates may be in its path, and
// in its host below a domain that the file names: who creates a credential must not choose the
// server that gets the client secret.
func (d *Descriptor) unusableEndpoint(uri string) string {
	switch {
	case strings.HasPrefix(uri, "/") && !strings.HasPrefix(uri, "//"):
		return "is a relative address, and the file names no server"
	case !strings.Contains(uri, "{{"):
		return ""
	}
	names, ok := placeholders(uri)
	base, query, _ := strings.Cut(uri, "?")
	_, host, port := origin(base)
	if !ok || host == "" || strings.Contains(port+query, "{{") {
		return "is a template whose server is not known before an account is connected"
	}
	for _, name := range names {
		if f, known := d.Field(name); !known {
			return fmt.Sprintf("is a template with %q, which is not a field of the credential", short(name))
		} else if f.OAuth() || f.ViewClass == viewPassword {
			return fmt.Sprintf("is a template with %q, which is a password or a token", short(name))
		}
	}
	if strings.Contains(host, "}}") {
		if _, ok := hostPattern(host); !ok || !belowDomain(host) {
			return "is a template whose server is not known before an account is connected"
		}
	}
	if checkEndpoint("", fill(uri, "x")) != nil {
		return "is not an address after its templates are filled"
	}
	return ""
}

// Endpoints are the endpoints that an OAuth client supplies for a component.json without usable
// ones.
type Endpoints = events.OAuthEndpoints

// AcceptsEndpoints reports whether the component.json lacks the endpoints for its OAuth field, so
// that an OAuth client supplies them.
func (d Descriptor) AcceptsEndpoints() bool { return d.UsesOAuth && d.CannotConnect != "" }

// WithEndpoints returns the descriptor with the endpoints of an OAuth client. The pointers of its
// errors lead into e.
func (d Descriptor) WithEndpoints(e Endpoints) (Descriptor, error) {
	if e == (Endpoints{}) || !d.AcceptsEndpoints() {
		return d, nil
	}
	o := OAuth2{ScopeSeparator: " "}
	if d.Partial != nil {
		o = *d.Partial
	}
	o.AuthURI, o.TokenURI, o.RefreshURI, o.RevocationURI, o.Supplied = e.AuthURI, e.TokenURI, e.RefreshURI, e.RevocationURI, true
	o.ClientCredentials = o.ClientCredentials || e.AuthURI == ""
	if e.TokenURI == "" {
		return d, invalidAt("/token_uri", "The member \"token_uri\" is missing.")
	}
	if o.ClientCredentials {
		o.AuthURI = ""
	}
	if err := o.checkURIs(""); err != nil {
		return d, err
	}
	if e.Scopes != "" {
		o.Scopes = nil
		if err := o.readScopes("", oauth2Members{Scope: strings.Join(strings.Fields(e.Scopes), o.ScopeSeparator)}); err != nil {
			return d, err
		}
	}
	if e.Lifetime < 0 || e.Lifetime > maxTokenLifetime {
		return d, invalidAt("/token_lifetime", "The lifetime must be from 1 to %d seconds.", maxTokenLifetime)
	}
	if e.Lifetime > 0 {
		o.TokenLifetime = e.Lifetime
	}
	d.OAuth2, d.CannotConnect = &o, ""
	return d, nil
}

const maxTokenLifetime = 31622400 // seconds

// checkRenewal checks the times of renewal, and the answer rules.
func (o *OAuth2) checkRenewal(at string) error {
	switch {
	case o.LifetimeOverride && o.TokenLifetime == 0:
		return invalidAt(at+"/token_lifetime_override", "The member \"token_lifetime\" is missing.")
	case o.RefreshNotBefore > 0 && o.RefreshBefore > o.RefreshNotBefore:
		return invalidAt(at+"/refresh_before", "Tokens would be renewed before refresh_not_before allows it. Give at most %d.", o.RefreshNotBefore)
	}
	for i, rule := range o.Answers {
		if err := rule.check(at + pointer("answers", strconv.Itoa(i))); err != nil {
			return err
		}
	}
	return nil
}

func (o *OAuth2) checkURIs(at string) error {
	for _, uri := range []struct{ member, value string }{
		{"auth_uri", o.AuthURI}, {"token_uri", o.TokenURI}, {"refresh_uri", o.RefreshURI}, {"revocation_uri", o.RevocationURI}, {"issuer", o.Issuer},
	} {
		value := uri.value
		if value == "" {
			continue
		}
		if uri.member != "issuer" && !o.Supplied { // unusableEndpoint has checked the templates
			value = fill(value, "x")
		}
		if err := checkEndpoint(at+pointer(uri.member), value); err != nil {
			return err
		}
	}
	switch {
	case strings.Contains(o.Issuer, "?"):
		return invalidAt(at+"/issuer", "An issuer cannot have a query (RFC 8414).")
	case o.RequireIssuer && o.Issuer == "":
		return invalidAt(at+"/require_iss", "The member \"issuer\" is missing. It is required to check the iss parameter.")
	}
	return nil
}

// checkEndpoint checks the URI of an endpoint (RFC 6749, section 3): absolute, without fragment, and
// https, because secrets are sent to it.
func checkEndpoint(at, uri string) error {
	if strings.Contains(uri, "{{") {
		return invalidAt(at, "Templates are not supported here. Write the complete URI.")
	}
	if strings.ContainsFunc(uri, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '\\' }) {
		return invalidAt(at, "The URI contains a space, a backslash, a control character or a non-ASCII character. Percent-encode it.")
	}
	u, err := url.Parse(uri)
	switch {
	case err != nil || u.Opaque != "" || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http":
		return invalidAt(at, "The URI must begin with https:// and a host.")
	case u.Scheme == "http" && !isThisMachine(u.Hostname()):
		return invalidAt(at, "The URI must begin with https://. http:// is only allowed for localhost, 127.0.0.1 and [::1].")
	case u.Port() != "" && !isPort(u.Port()), strings.HasSuffix(u.Host, ":"):
		return invalidAt(at, "The port must be a number from 1 to 65535.")
	case u.User != nil:
		return invalidAt(at, "The URI contains a user name.")
	case strings.Contains(uri, "#"):
		return invalidAt(at, "The URI contains a fragment (#).")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return invalidAt(at, "The query of the URI is malformed.")
	}
	for _, name := range sorted(query) {
		if slices.Contains(ownAuthParams, name) || slices.Contains(ownTokenParams, name) {
			return invalidAt(at, "The query of the URI contains %q, which the service sets in each request.", short(name))
		}
	}
	return nil
}

// isThisMachine reports whether a host is the loopback interface.
func isThisMachine(host string) bool {
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && (ip == netip.IPv6Loopback() || ip == netip.AddrFrom4([4]byte{127, 0, 0, 1}))
}

// readScopes accepts an array or one string: real descriptors use both.
func (o *OAuth2) readScopes(at string, in oauth2Members) error {
	member, listed := "scopes", []string(nil)
	switch in.Scopes.Kind() {
	case '"':
		var all string
		_ = json.Unmarshal(in.Scopes, &all)
		listed = []string{all}
	case '[':
		if err := json.Unmarshal(in.Scopes, &listed); err != nil {
			return invalidAt(at+"/scopes", "A scope must be a string.")
		}
	default:
		member, listed = "scope", []string{in.Scope}
	}
	at += pointer(member)
	if in.Scope != "" && member == "scopes" {
		return invalidAt(at, "Give the scopes in either scopes or scope, not both.")
	}
	for _, text := range listed {
		for scope := range strings.SplitSeq(text, o.ScopeSeparator) {
			if scope == "" {
				continue
			}
			// RFC 6749, section 3.3.
			if strings.ContainsFunc(scope, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '"' || r == '\\' }) {
				return invalidAt(at, "A scope contains a space, a quote, a backslash or a character that is not printable ASCII.")
			}
			o.Scopes = append(o.Scopes, scope)
		}
	}
	if len(o.Scopes) > maxScopes {
		return invalidAt(at, "At most %d scopes are allowed.", maxScopes)
	}
	return nil
}

// readAuthParams collects auth_params and the parameters that are members of the block itself.
func (o *OAuth2) readAuthParams(at string, in oauth2Members, d *Descriptor) error {
	if err := d.checkParams(at+"/auth_params", in.AuthParams, ownAuthParams); err != nil {
		return err
	}
	params := map[string]string{}
	for name, value := range in.Others {
		var text string
		if value.Kind() == '"' && json.Unmarshal(value, &text) == nil {
			params[name] = text
		}
	}
	if err := d.checkParams(at, params, ownAuthParams); err != nil {
		return err
	}
	for _, name := range sorted(in.AuthParams) {
		if _, twice := params[name]; twice {
			return invalidAt(at+pointer("auth_params", name), "The parameter is also a member of the block.")
		}
		params[name] = in.AuthParams[name]
	}
	if len(params) > maxOAuthParams {
		return invalidAt(at, "At most %d parameters of the authorization request are allowed.", maxOAuthParams)
	}
	for _, name := range sorted(params) { // they are in the address bar of the browser
		fields, _ := placeholders(params[name])
		for _, field := range fields {
			if f, _ := d.Field(field); f.ViewClass == viewPassword {
				return invalidAt(at, "The parameter %q contains {{%s}}, a password, which cannot be sent through the browser.", name, short(field))
			}
		}
	}
	if len(params) > 0 {
		o.AuthParams = params
	}
	return nil
}

// checkParams checks parameters of a request against the protocol's own, and their templates: of
// fields of the credential that are no tokens, and {{client_id}}.
func (d *Descriptor) checkParams(at string, params map[string]string, own []string) error {
	if len(params) > maxOAuthParams {
		return invalidAt(at, "At most %d parameters are allowed.", maxOAuthParams)
	}
	for _, name := range sorted(params) {
		at, value := at+pointer(name), params[name]
		switch {
		case slices.Contains(own, name):
			return invalidAt(at, "The parameter %q belongs to the protocol and cannot be set.", name)
		// RFC 6749, section 8.2, defines the characters of a name.
		case name == "" || strings.ContainsFunc(name, func(r rune) bool {
			return !strings.ContainsRune("-._", r) && (r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r))
		}):
			return invalidAt(at, "The name of a parameter can contain letters, digits, dots, hyphens and underscores.")
		case len(value) > maxOAuthValue:
			return invalidAt(at, "The value is longer than %d bytes.", maxOAuthValue)
		case strings.ContainsFunc(value, unicode.IsControl):
			return invalidAt(at, "The value contains a line break or another control character.")
		}
		if err := d.checkParamTemplate(at, value); err != nil {
			return err
		}
	}
	return nil
}

func (d *Descriptor) checkParamTemplate(at, value string) error {
	fields, ok := placeholders(value)
	if !ok {
		return invalidAt(at, "Braces are only allowed around the name of a field, or client_id: {{field}}.")
	}
	for _, field := range fields {
		if f, known := d.Field(field); field != ClientIDTemplate && (!known || f.OAuth()) {
			return invalidAt(at, "{{%s}} is neither a field of the credential without tokens nor {{client_id}}.", short(field))
		}
	}
	return nil
}

// ClientIDTemplate is the name of the OAuth client's id in templates of parameters.
const ClientIDTemplate = "client_id"

// belowDomain reports whether what follows the last template of a host ends in a domain that one
// organization owns, so that no value chooses whose server it is.
func belowDomain(host string) bool {
	_, domain, _ := strings.Cut(host[strings.LastIndex(host, "}}")+2:], ".")
	_, err := publicsuffix.EffectiveTLDPlusOne(domain)
	return err == nil
}
