package commands

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
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
}

// AnswerRule gives a meaning to responses of the token endpoint without tokens.
type AnswerRule struct {
	Condition
	Status  int    `json:"status"`  // 0: any
	Outcome string `json:"outcome"` // "revoked", "transient", "rate_limited", "too_early" or "misconfigured"
}

// SecretHosts returns the hosts, with ports, that the client's secret and the tokens are sent to:
// those of the token endpoint and the revocation endpoint.
func (o *OAuth2) SecretHosts() []string {
	if o == nil {
		return nil
	}
	return hostsOf(o.TokenURI, o.RevocationURI)
}

// ConsentHosts returns the host, with its port, that people who connect an account are redirected
// to: that of the authorization endpoint.
func (o *OAuth2) ConsentHosts() []string {
	if o == nil {
		return nil
	}
	return hostsOf(o.AuthURI)
}

// hostsOf returns the distinct hosts of URIs, with ports.
func hostsOf(uris ...string) (hosts []string) {
	for _, uri := range uris {
		u, err := url.Parse(uri)
		if err != nil || u.Host == "" {
			continue
		}
		port := u.Port()
		switch {
		case port != "":
		case u.Scheme == "http":
			port = "80"
		default:
			port = "443"
		}
		host := strings.ToLower(net.JoinHostPort(u.Hostname(), port))
		if !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	return hosts
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

// oauth2 parses the block; nil if it names no endpoint. at points to it.
func (m oauthMembers) oauth2(at string) (*OAuth2, error) {
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
		ClientCredentials: in.GrantType == "client_credentials",
		TokenLifetime:     in.TokenLifetime, RefreshRotation: in.RefreshRotation,
		RefreshParams: in.RefreshParams, JSON: in.TokenFormat == "json", Public: in.AuthMethod == "none",
		LifetimeOverride: in.Override, Milliseconds: in.ExpiresInUnit == "ms",
		RefreshBefore: in.RefreshBefore, RefreshNotBefore: in.NotBefore, Answers: in.Answers,
	}
	if in.ScopeSeparator != nil {
		o.ScopeSeparator = *in.ScopeSeparator
	}
	switch {
	case in.TokenURI == "":
		return nil, &unusableError{fmt.Sprintf("The oauth2 block (%s) has no token_uri.", at)}
	case o.ClientCredentials:
		o.AuthURI = "" // this grant needs no consent
	case in.AuthURI == "" && in.GrantType != "":
		return nil, invalidAt(at, "The member \"auth_uri\" is missing. Only grant_type client_credentials works without it.")
	case in.AuthURI == "":
		o.ClientCredentials = true // real descriptors imply it this way
	}
	for _, endpoint := range []struct{ member, uri string }{{"auth_uri", o.AuthURI}, {"token_uri", o.TokenURI}, {"revocation_uri", o.RevocationURI}} {
		if reason := unusable(endpoint.uri); reason != "" {
			return nil, &unusableError{fmt.Sprintf("The member %s of the oauth2 block (%s) %s.", endpoint.member, at, reason)}
		}
	}
	for _, check := range []func() error{
		func() error { return o.checkURIs(at) },
		func() error { return o.readScopes(at, in) },
		func() error { return o.readAuthParams(at, in) },
		func() error { return checkParams(at+"/token_params", o.TokenParams, ownTokenParams) },
		func() error { return checkParams(at+"/refresh_params", o.RefreshParams, ownRefreshParams) },
		func() error { return o.checkRenewal(at) },
	} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// unusableError means that an oauth2 block lacks a usable endpoint, as in many real descriptors. The
// component is registered nevertheless.
type unusableError struct{ reason string }

// Error implements error.
func (e *unusableError) Error() string { return e.reason }

// unusable returns what an endpoint lacks, "" if it is usable.
func unusable(uri string) string {
	switch {
	case strings.Contains(uri, "{{"):
		return "is a template, whose values are not known before an account is connected"
	case strings.HasPrefix(uri, "/") && !strings.HasPrefix(uri, "//"):
		return "is a relative address, and the file names no server"
	}
	return ""
}

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
		{"auth_uri", o.AuthURI}, {"token_uri", o.TokenURI}, {"revocation_uri", o.RevocationURI}, {"issuer", o.Issuer},
	} {
		if uri.value == "" {
			continue
		}
		if err := checkEndpoint(at+pointer(uri.member), uri.value); err != nil {
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
func (o *OAuth2) readAuthParams(at string, in oauth2Members) error {
	if err := checkParams(at+"/auth_params", in.AuthParams, ownAuthParams); err != nil {
		return err
	}
	params := map[string]string{}
	for name, value := range in.Others {
		var text string
		if value.Kind() == '"' && json.Unmarshal(value, &text) == nil {
			params[name] = text
		}
	}
	if err := checkParams(at, params, ownAuthParams); err != nil {
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
	if len(params) > 0 {
		o.AuthParams = params
	}
	return nil
}

// checkParams checks parameters of a request against the protocol's own.
func checkParams(at string, params map[string]string, own []string) error {
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
		case strings.Contains(value, "{{"):
			return invalidAt(at, "Templates are not supported here. Write the complete value.")
		}
	}
	return nil
}
