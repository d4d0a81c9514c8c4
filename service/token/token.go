package token

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/client"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/vault"
	"github.com/credstream/credstream/verify"
)

// Errors of tokens in a request.
var (
	ErrTokensInvalid = fault.New(fault.Invalid, "oauth_tokens_invalid",
		"An OAuth field takes the provider's token response as an object: access_token, refresh_token, expires_in and more.")
	ErrRefreshTokenMissing = fault.New(fault.Unprocessable, "oauth_refresh_token_missing",
		"The refresh_token is missing, so the credential would stop working when its access token expires. Request offline access at the provider.")
	ErrOAuthEndpointsMissing = fault.New(fault.Unprocessable, "oauth_endpoints_missing",
		"The component.json has no oauth2 block with a token_uri, so the tokens could not be renewed.")
	ErrTokenRefused = fault.New(fault.Unprocessable, "oauth_token_refused", "The provider did not issue a token.")
	// ErrTokenUnconfirmed refuses tokens if the provider's response to their renewal was unclear.
	ErrTokenUnconfirmed = fault.New(fault.Unprocessable, "oauth_token_unconfirmed", "The provider did not confirm the renewal of the token.")
)

// The known members of the object in an OAuth field.
const (
	AccessToken  = "access_token"
	RefreshToken = "refresh_token"
	expiresAt    = "expires_at"
)

// Provider converts the descriptor's oauth2 block to an oauth.Provider for one credential: values
// are those of its fields. It returns verify.ErrValueInvalid for a value that does not fit into an
// endpoint or a parameter.
func Provider(o *commands.OAuth2, c oauth.Client, values verify.Values) (oauth.Provider, error) {
	p := oauth.Provider{
		Issuer: o.Issuer, RequireIssuer: o.RequireIssuer,
		Basic: o.Basic, Public: o.Public, JSON: o.JSON, Scopes: o.Scopes, ScopeSeparator: o.ScopeSeparator,
		NoPKCE: o.NoPKCE, ClientCredentials: o.ClientCredentials, Lifetimes: lifetimes(o),
		Grant: o.Grant, TokenAt: o.TokenAt, PrivateKeyJWT: o.PrivateKeyJWT,
	}
	for _, rule := range o.Answers {
		p.Answers = append(p.Answers, oauth.Rule{Status: rule.Status, When: Condition(rule.Condition), Meaning: oauth.Meaning(rule.Outcome)})
	}
	values = withClientID(values, c.ID)
	var err error
	for _, e := range []struct {
		from string
		to   *string
	}{{o.AuthURI, &p.AuthURI}, {o.TokenURI, &p.TokenURI}, {o.RefreshURI, &p.RefreshURI}, {o.RevocationURI, &p.RevocationURI}} {
		if *e.to, err = endpoint(e.from, values); err != nil {
			return p, err
		}
	}
	for _, e := range []struct {
		from map[string]string
		to   *map[string]string
	}{{o.AuthParams, &p.AuthParams}, {o.TokenParams, &p.TokenParams}, {o.RefreshParams, &p.RefreshParams}} {
		if *e.to, err = parameters(e.from, values); err != nil {
			return p, err
		}
	}
	if o.JWT != nil {
		p.JWT, err = assertions(o.JWT, values)
	}
	return p, err
}

// assertions fills the templates of how assertions are signed.
func assertions(j *commands.JWT, values verify.Values) (*oauth.JWT, error) {
	claims, err := parameters(j.Claims, values)
	if err != nil {
		return nil, err
	}
	keyID, err := verify.FillText(j.KeyID, values)
	if err != nil {
		return nil, err
	}
	key, _ := values(strings.Trim(j.Key, "{}"))
	return &oauth.JWT{
		Alg: cmp.Or(j.Alg, "RS256"), Key: key, KeyID: keyID, Claims: claims, Lifetime: time.Duration(j.Lifetime) * time.Second,
	}, nil
}

func withClientID(values verify.Values, id string) verify.Values {
	return func(name string) (seal.Secret, bool) {
		if values != nil {
			if v, ok := values(name); ok {
				return v, true
			}
		}
		return seal.NewSecret([]byte(id)), name == commands.ClientIDTemplate
	}
}

func endpoint(uri string, values verify.Values) (string, error) {
	if !strings.Contains(uri, "{{") {
		return uri, nil
	}
	return verify.FillURL(uri, values)
}

func parameters(params map[string]string, values verify.Values) (map[string]string, error) {
	filled := make(map[string]string, len(params))
	for name, template := range params {
		var err error
		if filled[name], err = verify.FillText(template, values); err != nil {
			return nil, err
		}
	}
	return filled, nil
}

func lifetimes(o *commands.OAuth2) oauth.Lifetimes {
	if o == nil {
		return oauth.Lifetimes{}
	}
	return oauth.Lifetimes{Declared: time.Duration(o.TokenLifetime) * time.Second, Override: o.LifetimeOverride, Milliseconds: o.Milliseconds}
}

// Condition converts a condition of a descriptor.
func Condition(c commands.Condition) verify.Condition {
	converted := verify.Condition{Pointer: c.Pointer, Equals: c.Equals, OneOf: c.OneOf, Exists: c.Exists}
	if c.Matches != "" {
		converted.Matches = regexp.MustCompile(c.Matches) // ParseDescriptor has compiled it before
	}
	return converted
}

// OAuthClient opens the OAuth client that serves the component in the tenant: the
// tenant's own, else the variables of the component in its owner's tenant. It is
// for the provider that d names, a descriptor of the component of any revision.
// Errors: ErrOAuthClientMissing, aggregates.ErrOAuthClientUnusable,
// ErrOAuthClientHostsChanged.
func (s *Service) OAuthClient(ctx context.Context, tenant, component string, d commands.Descriptor) (oauth.Client, error) {
	state, err := aggregates.OAuthClient.Fresh(ctx, s.Log, aggregates.OAuthClient.Stream(tenant, component))
	switch defined := state.Value; {
	case err != nil:
		return oauth.Client{}, err
	case defined.ID != "" && defined.Unusable:
		return oauth.Client{}, aggregates.ErrOAuthClientUnusable
	case defined.ID != "":
		if err := s.Clients.CheckSecretAudience(ctx, tenant, component, defined, d); err != nil {
			return oauth.Client{}, err
		}
		secret, err := s.Vault.Get(ctx, client.SecretRef(tenant, component, defined.SecretID))
		if err != nil {
			return oauth.Client{}, fmt.Errorf("open the secret of the OAuth client of %s: %w", component, err)
		}
		return oauth.Client{ID: defined.ClientID, Secret: secret}, nil
	case d.OAuth2 != nil && !d.OAuth2.NeedsClient() && d.ClientIDVar == "":
		return oauth.Client{}, nil
	}
	owner, err := aggregates.Component.Fresh(ctx, s.Log, aggregates.Component.Stream(events.System, component))
	switch {
	case err != nil:
		return oauth.Client{}, err
	case owner.Value.Owner != tenant || owner.Value.EnvSecret == "":
		return oauth.Client{}, client.Missing(d)
	}
	given, err := s.Components.Descriptor(ctx, component, owner.Value.EnvRevision)
	if err != nil {
		return oauth.Client{}, err
	}
	if err := client.HostsChanged("the client secret", d.OAuth2.Beyond(given.OAuth2), client.EnterEnvAgain); err != nil {
		return oauth.Client{}, err
	}
	secret, err := s.Vault.Get(ctx, vault.Ref{
		Tenant: tenant, Category: aggregates.Component.Category, Owner: component, SecretID: owner.Value.EnvSecret,
	})
	if err != nil {
		return oauth.Client{}, fmt.Errorf("open the variables of %s: %w", component, err)
	}
	env, err := seal.ParseFields(secret.Reveal())
	if err != nil {
		return oauth.Client{}, fmt.Errorf("read the variables of %s: %w", component, err)
	}
	// The descriptor declares which of them is the secret: a client id is visible to browsers.
	id, hasID := env.Text(given.ClientIDVar)
	clientSecret, hasSecret := env.Text(given.ClientSecretVar)
	if !hasID || !hasSecret {
		return oauth.Client{}, client.Missing(d)
	}
	return oauth.Client{ID: string(id.Reveal()), Secret: clientSecret}, nil
}

// ExtractTokens extracts the tokens from the keys of a new version. It returns the keys to
// store, and the metadata of the tokens; nil if there are none. A client-credentials client
// gets its first token here.
func (s *Service) ExtractTokens(ctx context.Context, tenant, component string, d commands.Descriptor, keys seal.Fields) (_ seal.Fields, _ *commands.Tokens, err error) {
	tokens := 0
	if d, err = s.Components.Effective(ctx, tenant, component, d); err != nil {
		return keys, nil, err
	}
	for _, f := range d.Fields {
		if object, is := keys.Object(f.Name); is && f.OAuth() && holdsTokens(object) {
			if tokens++; tokens > 1 {
				return keys, nil, ErrTokensInvalid.Withf("A credential can hold tokens in one field only; the component has several.").At("/keys/" + service.EscapePointer(f.Name))
			}
		}
	}
	for _, f := range d.Fields {
		if !f.OAuth() {
			continue
		}
		clientCredentials := d.OAuth2 != nil && d.OAuth2.ClientCredentials
		_, given := keys.Get(f.Name)
		if !given && clientCredentials {
			return s.firstToken(ctx, tenant, component, d, f.Name, keys)
		}
		if !given {
			continue
		}
		at := "/keys/" + service.EscapePointer(f.Name)
		object, is := keys.Object(f.Name)
		if !is {
			return keys, nil, ErrTokensInvalid.At(at)
		}
		_, access := object.Get(AccessToken)
		_, refresh := object.Get(RefreshToken)
		if !access && !refresh && f.OnlyOAuth() {
			return keys, nil, ErrTokensInvalid.At(at + "/" + AccessToken)
		}
		if !access && !refresh {
			continue // other means of authentication, which need no renewal
		}
		for _, name := range []string{AccessToken, RefreshToken} {
			if _, there := object.Get(name); there && !isToken(object, name) {
				return keys, nil, ErrTokensInvalid.Withf("The member %s must be a string without control characters.", name).At(at + "/" + name)
			}
		}
		switch {
		case d.OAuth2 == nil:
			return keys, nil, ErrOAuthEndpointsMissing.Withf("The tokens could not be renewed: %s", d.CannotConnect).At(at)
		case !refresh && !clientCredentials && !d.OAuth2.NoRefresh:
			return keys, nil, ErrRefreshTokenMissing.At(at)
		}
		if err := s.Clients.CheckRenewalAudience(ctx, tenant, component, d); err != nil {
			return keys, nil, err
		}
		life, odd := oauth.LifetimeOf(object, lifetimes(d.OAuth2), s.Kernel.Now(), true)
		if !access {
			life = 0 // it is renewed before its first use
		}
		renewable := refresh || clientCredentials
		if !renewable && !oauth.StatesLifetime(object) && d.OAuth2.TokenLifetime == 0 { // it is valid until it is revoked
			object = Bind(object, d)
			scope, _ := object.Text("scope")
			return keys.With(f.Name, object.Marshal()), &commands.Tokens{Field: f.Name, By: "keys", Scope: printable(scope)}, nil
		}
		if !renewable && life == 0 {
			return keys, nil, ErrTokensInvalid.Withf("The access token has expired, and it cannot be renewed.").At(at)
		}
		if life == 0 && d.Verification != nil { // the dry request needs a valid token
			if object, life, odd, err = s.firstRenewal(ctx, tenant, component, d, keys, object); err != nil {
				return keys, nil, err
			}
		}
		object, expires := WithExpiry(Bind(object, d), s.Kernel.Now(), life)
		scope, _ := object.Text("scope")
		return keys.With(f.Name, object.Marshal()), &commands.Tokens{
			Field: f.Name, By: "keys", Expires: expires, Lifetime: life, Renewable: renewable, Scope: printable(scope),
			Due: dueBy(d.OAuth2, expires, life, 0), Odd: odd, RefreshToken: s.refreshTokenLife(d.OAuth2, object, refresh),
		}, nil
	}
	return keys, nil, nil
}

// refreshTokenLife is what the provider states of the refresh token in a new grant, or else what the
// component declares. The component's declaration also says that renewals do not extend it.
func (s *Service) refreshTokenLife(o *commands.OAuth2, object seal.Fields, has bool) commands.RefreshTokenLife {
	declared := time.Duration(o.RefreshLifetime) * time.Second
	life := cmp.Or(oauth.RefreshLifetimeOf(object), declared)
	if !has || life == 0 {
		return commands.RefreshTokenLife{}
	}
	return commands.RefreshTokenLife{Expires: s.Kernel.Now().Add(life).UTC().Truncate(time.Second), Lifetime: life, Fixed: declared > 0}
}

// issuedBy is the member of a token's object with the hosts that may get the tokens, if the endpoints
// are those of an OAuth client: who changes the client must not get tokens of another provider.
const issuedBy = "credstream_hosts"

// Bind records in a token's object which hosts may get the tokens.
func Bind(object seal.Fields, d commands.Descriptor) seal.Fields {
	if object = object.Without(issuedBy); !d.OAuth2.Supplied {
		return object
	}
	return object.With(issuedBy, quoted(seal.NewSecret([]byte(strings.Join(d.OAuth2.SecretHosts(), " ")))))
}

// checkBound returns aggregates.ErrOAuthClientHostsChanged if tokens would be sent to a host that
// did not issue them.
func checkBound(object seal.Fields, d commands.Descriptor) error {
	if !d.OAuth2.Supplied {
		return nil
	}
	bound, _ := object.Text(issuedBy)
	known := strings.Fields(string(bound.Reveal()))
	beyond := slices.DeleteFunc(d.OAuth2.SecretHosts(), func(host string) bool { return slices.Contains(known, host) })
	if len(beyond) == 0 {
		return nil
	}
	remedy := "Connect the account again."
	if d.OAuth2.ClientCredentials { // nobody connects these, and their fields may be part of the request
		remedy = "Replace the keys of the credential; the same values are accepted."
	}
	return aggregates.ErrOAuthClientHostsChanged.Withf("The OAuth client now names another provider: %s. %s", strings.Join(beyond, " and "), remedy)
}

func holdsTokens(object seal.Fields) bool {
	_, access := object.Get(AccessToken)
	_, refresh := object.Get(RefreshToken)
	return access || refresh
}

// isToken reports whether a member is a text that fits into a header.
func isToken(object seal.Fields, name string) bool {
	v, ok := object.Text(name)
	raw, _ := object.Get(name)
	text := v.Reveal()
	if !ok || len(text) == 0 || raw.Reveal()[0] != '"' {
		return false
	}
	for _, c := range text {
		if c < 0x20 || c == 0x7f {
			return false
		}
	}
	return true
}

// printable returns a scope for an event: at maxScope 1024 bytes, "" if it is not printable ASCII.
func printable(scope seal.Secret) string {
	const maxScope = 1024
	text := scope.Reveal()
	if len(text) > maxScope {
		text = text[:maxScope]
	}
	for _, c := range text {
		if c < 0x20 || c > 0x7e {
			return ""
		}
	}
	return string(text)
}

// firstToken requests the first token of a client-credentials client.
func (s *Service) firstToken(ctx context.Context, tenant, component string, d commands.Descriptor, field string, keys seal.Fields) (seal.Fields, *commands.Tokens, error) {
	client, err := s.OAuthClient(ctx, tenant, component, d)
	if err != nil {
		return keys, nil, err
	}
	provider, err := Provider(d.OAuth2, client, ProbeValues(d, keys))
	if err != nil {
		return keys, nil, err
	}
	requested := s.Kernel.Now()
	token, err := s.OAuth.ClientCredentials(ctx, tenant, provider, client)
	if err != nil {
		return keys, nil, RefusedToken(err)
	}
	object, expires := WithExpiry(Bind(token.Answer, d), requested, token.Lifetime)
	return keys.With(field, object.Marshal()), &commands.Tokens{
		Field: field, By: "client_credentials", Expires: expires, Lifetime: token.Lifetime, Renewable: true,
		Scope: printable(seal.NewSecret([]byte(token.Scope))), Due: dueBy(d.OAuth2, expires, token.Lifetime, 0), Odd: token.Odd,
	}, nil
}

// firstRenewal renews expired tokens before the keys that contain them are verified. A
// provider that rotates refresh tokens then accepts only the new one, which is
// stored with the keys; if they are rejected, the account must be connected again.
func (s *Service) firstRenewal(ctx context.Context, tenant, component string, d commands.Descriptor, keys, object seal.Fields) (_ seal.Fields, life time.Duration, odd string, err error) {
	refresh, ok := object.Text(RefreshToken)
	if !ok {
		return object, 0, "", ErrRefreshTokenMissing
	}
	client, err := s.OAuthClient(ctx, tenant, component, d)
	if err != nil {
		return object, 0, "", err
	}
	provider, err := Provider(d.OAuth2, client, ProbeValues(d, keys))
	if err != nil {
		return object, 0, "", err
	}
	token, err := s.OAuth.Refresh(ctx, tenant, provider, client, refresh)
	if refusal, ok := errors.AsType[*oauth.Error](err); ok && refusal.MaySpend() {
		return object, 0, "", ErrTokenUnconfirmed.Withf("%s Nothing was saved. The provider may have used the refresh token up: get new tokens, or try these once more.", refusal.Says())
	}
	if err != nil {
		return object, 0, "", RefusedToken(err)
	}
	return renewed(token, object), token.Lifetime, token.Odd, nil
}

// RefusedToken is the error of a provider that issued no token.
func RefusedToken(err error) error {
	refusal, ok := errors.AsType[*oauth.Error](err)
	switch {
	case !ok:
		return err
	case refusal.Outcome == oauth.Transient || refusal.Outcome == oauth.Malformed:
		return ErrRefreshFailed.Withf("%s", refusal.Says()).WithRetryAfter(max(refusal.RetryAfter, time.Second))
	}
	return ErrTokenRefused.Withf("%s", refusal.Says())
}

// dueBy returns when tokens are due for renewal according to the component, or to refused
// renewals: learned is how long before their end the provider renews them, 0 if unknown. It
// returns zero if only their lifetime decides.
func dueBy(o *commands.OAuth2, expires time.Time, life, learned time.Duration) time.Time {
	ahead := learned
	for _, declared := range []int{o.RefreshBefore, o.RefreshNotBefore} {
		if d := time.Duration(declared) * time.Second; d > 0 && (ahead == 0 || d < ahead) {
			ahead = d
		}
	}
	if ahead == 0 || expires.IsZero() {
		return time.Time{}
	}
	return expires.Add(-min(ahead, life))
}

// WithExpiry replaces the lifetime in a token's object by its expiry, which it returns.
func WithExpiry(object seal.Fields, from time.Time, life time.Duration) (seal.Fields, time.Time) {
	expires := from.Add(life).UTC().Truncate(time.Second)
	return oauth.WithoutLifetime(object).With(expiresAt, seal.NewSecret([]byte(`"`+expires.Format(time.RFC3339)+`"`))), expires
}

// storedToken is the stored form of renewed tokens in the vault, and must stay readable. It
// has all that another process needs to activate them.
type storedToken struct {
	Object   jsontext.Value `json:"token"` // as OAuth fields hold it
	Expires  time.Time      `json:"expires"`
	Lifetime int64          `json:"lifetime"` // seconds
	Rotated  bool           `json:"rotated"`
	Scope    string         `json:"scope"`
	Odd      string         `json:"odd,omitzero"`

	RefreshExpires  time.Time `json:"refresh_expires,omitzero"`  // as the provider stated it; absent if it did not
	RefreshLifetime int64     `json:"refresh_lifetime,omitzero"` // seconds, when it was stated
}

// tokenObject opens the current tokens: an object in the form of the provider's response.
func (s *Service) tokenObject(ctx context.Context, tenant, id string, state aggregates.CredentialState, keys seal.Fields) (seal.Fields, error) {
	t := state.Tokens
	if t.Token.SecretID == state.Current().SecretID {
		object, ok := keys.Object(t.Field)
		if !ok {
			return object, fmt.Errorf("the keys of %s have no tokens", id)
		}
		return object, nil
	}
	stored, err := s.storedToken(ctx, tenant, id, t.Token.SecretID)
	if errors.Is(err, vault.ErrNoSecret) {
		return seal.Fields{}, s.Secrets.MissingSecretError(ctx, tenant, id, t.Token.SecretID)
	}
	if err != nil {
		return seal.Fields{}, err
	}
	return seal.ParseFields(stored.Object)
}

func (s *Service) storedToken(ctx context.Context, tenant, id, secretID string) (storedToken, error) {
	secret, err := s.Vault.Get(ctx, secrets.CredentialRef(tenant, id, secretID))
	if err != nil {
		return storedToken{}, fmt.Errorf("open the tokens of %s: %w", id, err)
	}
	var stored storedToken
	if json.Unmarshal(secret.Reveal(), &stored) != nil {
		return stored, fmt.Errorf("the stored tokens of %s are invalid", id) // never quote them
	}
	return stored, nil
}

// ActiveKeys opens the current keys, the current tokens among them.
func (s *Service) ActiveKeys(ctx context.Context, tenant, id string, state aggregates.CredentialState) (seal.Fields, error) {
	keys, err := s.Secrets.Open(ctx, tenant, id, state.Current())
	if err != nil || state.Tokens.Field == "" {
		return keys, err
	}
	object, err := s.tokenObject(ctx, tenant, id, state, keys)
	if err != nil {
		return keys, err
	}
	return keys.With(state.Tokens.Field, object.Marshal()), nil
}

// Values opens the values for a flow engine: the current keys and the access
// token, never a refresh token. expires is the access token's expiry, zero if there
// is none. aggregates.ErrCredentialVersionStale means that state is stale.
func (s *Service) Values(ctx context.Context, tenant, id string, state aggregates.CredentialState) (keys seal.Fields, expires time.Time, err error) {
	if keys, err = s.ActiveKeys(ctx, tenant, id, state); err != nil {
		return keys, time.Time{}, err
	}
	d, err := s.Components.Descriptor(ctx, state.Component, state.Current().Revision)
	if err != nil {
		return keys, time.Time{}, err
	}
	for _, f := range d.Fields {
		if value, ok := keys.Get(f.Name); ok && f.OAuth() {
			keys = keys.With(f.Name, withoutRefreshTokens(value))
		}
	}
	return keys, state.Tokens.Token.Expires, nil
}

// withoutRefreshTokens removes the refresh tokens from a JSON value, at any depth:
// some providers nest them.
func withoutRefreshTokens(value seal.Secret) seal.Secret {
	stripped, err := strip(nil, jsontext.NewDecoder(bytes.NewReader(value.Reveal())))
	if err != nil { // it was parsed before: this does not happen, and returning nothing is the safe choice
		return seal.NewSecret([]byte("null"))
	}
	return seal.NewSecret(stripped)
}

func strip(b []byte, dec *jsontext.Decoder) (_ []byte, err error) {
	kind := dec.PeekKind()
	if kind != '{' && kind != '[' {
		v, err := dec.ReadValue()
		return append(b, v...), err
	}
	if _, err = dec.ReadToken(); err != nil {
		return nil, err
	}
	b = append(b, byte(kind))
	for first := true; dec.PeekKind() != kind+2; { // '}' and ']' are two after their openings
		at := len(b)
		if !first {
			b = append(b, ',')
		}
		hide := false
		if kind == '{' {
			name, err := dec.ReadToken()
			if err != nil {
				return nil, err
			}
			hide = strings.EqualFold(strings.ReplaceAll(name.String(), "_", ""), "refreshtoken")
			if b, err = jsontext.AppendQuote(b, name.String()); err != nil {
				return nil, err
			}
			b = append(b, ':')
		}
		if b, err = strip(b, dec); err != nil {
			return nil, err
		}
		if hide {
			b = b[:at]
			continue
		}
		first = false
	}
	_, err = dec.ReadToken()
	return append(b, byte(kind+2)), err
}

// ProbeValues are the values for a dry request: an OAuth field is replaced by its
// access token.
func ProbeValues(d commands.Descriptor, keys seal.Fields) verify.Values {
	return func(name string) (seal.Secret, bool) {
		if f, ok := d.Field(name); ok && f.OAuth() {
			if object, is := keys.Object(name); is {
				return object.Text(AccessToken)
			}
		}
		return keys.Text(name)
	}
}
