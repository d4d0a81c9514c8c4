package access

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/oauth2"
	"golang.org/x/time/rate"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// Errors of a token, and of the configuration for tokens.
var (
	ErrToken       = fault.New(fault.Unauthenticated, "token_invalid", "The token was not issued by the configured issuer for this service.")
	ErrIssuerAway  = fault.New(fault.Unavailable, "token_issuer_unavailable", "The signing keys of the OpenID Connect issuer are not available. Try again shortly, or use an API key.")
	ErrTokenConfig = fault.New(fault.Invalid, "token_config_invalid",
		"OpenID Connect requires the https URL of the issuer, an audience, and the claims for the tenant and the permissions.")
)

// TokenConfig is the accepted issuer and the claims of its tokens.
type TokenConfig struct {
	Issuer      string // URL; https, or http on the same machine
	Audience    string // required audience (aud) of a token: the id of a client, or the name of this API
	Tenant      string // claim: a tenant, or a list of them; the first is the home
	Permissions string // claim: permissions and roles, as a list or separated by spaces; unknown ones are ignored

	// With a ClientID, people sign in to the web page at the issuer.
	ClientID     string
	ClientSecret seal.Secret // zero for a public client
	Scopes       string      // separated by spaces; openid is one of them

	Client *http.Client     // for requests to the issuer; one with a timeout when nil
	Now    func() time.Time // time.Now when nil
}

// Tokens verifies the tokens of one OpenID Connect issuer (OpenID Connect Core 1.0,
// RFC 9068 for access tokens). It fetches the issuer's configuration and keys
// when the first token arrives, so that the service can start without the issuer.
type Tokens struct {
	cfg   TokenConfig
	known *lru.Cache[[sha256.Size]byte, knownToken]

	mu    sync.Mutex // held during requests to the issuer
	ask   *rate.Limiter
	rules *oidc.Config
	keys  *issuerKeys

	endpoint oauth2.Endpoint // does not change after rules is set
}

// knownToken is the cached result of a verification.
type knownToken struct {
	principal service.Principal
	until     time.Time
}

const (
	maxTokens      = 10_000
	maxToken       = 8 << 10          // bytes
	tokenTrust     = time.Minute      // how long the result of a verification is cached
	issuerTimeout  = 5 * time.Second  // timeout of one request
	issuerMax      = 256 << 10        // bytes of a response
	issuerKeyAge   = 5 * time.Minute  // age at which the keys are fetched again: the issuer may have withdrawn one
	issuerKeyStale = time.Hour        // maximum age of the keys while the issuer does not respond
	issuerAsk      = 10 * time.Second // interval of requests after a burst
	issuerBurst    = 3                // requests at once
)

// NewTokens creates Tokens. It returns ErrTokenConfig if something is missing.
func NewTokens(cfg TokenConfig) (*Tokens, error) {
	u, err := url.Parse(cfg.Issuer)
	if err != nil || u.Host == "" || cfg.Audience == "" || cfg.Tenant == "" || cfg.Permissions == "" {
		return nil, ErrTokenConfig
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		return nil, ErrTokenConfig.Withf("The issuer URL must begin with https://. http:// is only allowed for this machine.")
	}
	if cfg.ClientID != "" && !slices.Contains(strings.Fields(cfg.Scopes), oidc.ScopeOpenID) {
		return nil, ErrTokenConfig.Withf("The scopes of a sign-in must contain openid.")
	}
	if cfg.Client == nil {
		cfg.Client = &http.Client{Timeout: issuerTimeout}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	known, err := lru.New[[sha256.Size]byte, knownToken](maxTokens)
	if err != nil {
		return nil, fmt.Errorf("cache of tokens: %w", err)
	}
	return &Tokens{cfg: cfg, known: known, ask: rate.NewLimiter(rate.Every(issuerAsk), issuerBurst)}, nil
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// IsToken reports whether a Bearer value is a signed token rather than a key: three
// parts with dots between (RFC 7519).
func IsToken(bearer string) bool {
	return strings.Count(bearer, ".") == 2 && !strings.HasPrefix(bearer, keyPrefix)
}

// AuthenticateToken returns the principal of a token of the configured issuer. Errors: ErrToken,
// ErrIssuerAway, ErrKeyMalformed if no issuer is configured; ErrWrongKeys instead of a rejection
// after too many of them from the address.
func (s *Service) AuthenticateToken(ctx context.Context, token string, from netip.Addr) (service.Principal, error) {
	if s.Tokens == nil {
		return service.Principal{}, s.wrongKeys.refuse(from, ErrKeyMalformed)
	}
	p, err := s.Tokens.principal(ctx, token)
	return p, s.wrongKeys.refuse(from, err)
}

// principal verifies a token: its signature by a key of the issuer, the issuer, the
// audience and the time; and reads its claims.
func (t *Tokens) principal(ctx context.Context, token string) (service.Principal, error) {
	if len(token) > maxToken {
		return service.Principal{}, ErrToken
	}
	sum, now := sha256.Sum256([]byte(token)), t.cfg.Now()
	if k, ok := t.known.Get(sum); ok && now.Before(k.until) {
		return k.principal, nil
	}
	rules, keys, err := t.issuer(ctx)
	if err != nil {
		return service.Principal{}, err
	}
	attempt := &attempt{keys: keys}
	checked, err := oidc.NewVerifier(t.cfg.Issuer, attempt, rules).Verify(ctx, token)
	if attempt.err != nil {
		return service.Principal{}, attempt.err
	}
	if expired := (*oidc.TokenExpiredError)(nil); errors.As(err, &expired) {
		return service.Principal{}, ErrToken.Withf("The token has expired.")
	}
	if err != nil {
		return service.Principal{}, ErrToken
	}
	p, err := t.read(checked)
	if err != nil {
		return service.Principal{}, err
	}
	until := now.Add(tokenTrust)
	if checked.Expiry.Before(until) {
		until = checked.Expiry
	}
	t.known.Add(sum, knownToken{p, until})
	return p, nil
}

// issuer fetches the issuer's configuration (OpenID Connect Discovery 1.0),
// once. Concurrent callers wait for the response.
func (t *Tokens) issuer(ctx context.Context) (*oidc.Config, *issuerKeys, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rules != nil {
		return t.rules, t.keys, nil
	}
	if !t.ask.AllowN(t.cfg.Now(), 1) {
		return nil, nil, ErrIssuerAway
	}
	ctx, cancel := context.WithTimeout(oidc.ClientContext(context.WithoutCancel(ctx), t.cfg.Client), issuerTimeout)
	defer cancel()
	provider, err := oidc.NewProvider(ctx, t.cfg.Issuer)
	var found struct {
		Keys       string   `json:"jwks_uri"`
		Algorithms []string `json:"id_token_signing_alg_values_supported"`
	}
	if err == nil {
		err = provider.Claims(&found)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("fetching the issuer's keys: %w: %w", ErrIssuerAway, err)
	}
	known := slices.DeleteFunc(found.Algorithms, func(a string) bool { return !slices.Contains(signatures, a) })
	if len(known) == 0 {
		known = []string{oidc.RS256}
	}
	t.endpoint = provider.Endpoint()
	t.rules = &oidc.Config{ClientID: t.cfg.Audience, SupportedSigningAlgs: known, Now: t.cfg.Now}
	t.keys = &issuerKeys{client: t.cfg.Client, url: found.Keys, now: t.cfg.Now, ask: rate.NewLimiter(rate.Every(issuerAsk), issuerBurst)}
	return t.rules, t.keys, nil
}

// attempt is the key set for one token. The library drops the chain of a key
// set's error, so an error that is not caused by the token is kept here.
type attempt struct {
	keys *issuerKeys
	err  error
}

// VerifySignature implements oidc.KeySet.
func (a *attempt) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	payload, err := a.keys.verify(ctx, token)
	if errors.Is(err, ErrIssuerAway) {
		a.err = err
	}
	return payload, err
}

// signatures are the accepted signature algorithms: only asymmetric ones.
var signatures = []string{
	oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA,
}

// read creates a principal from a token's claims.
func (t *Tokens) read(token *oidc.IDToken) (service.Principal, error) {
	var claims map[string]jsontext.Value
	var raw jsonBytes
	if err := token.Claims(&raw); err != nil || json.Unmarshal(raw, &claims, jsontext.AllowDuplicateNames(false)) != nil {
		return service.Principal{}, ErrToken
	}
	if token.Subject == "" {
		return service.Principal{}, ErrToken.Withf("The token has no sub claim.")
	}
	p := service.Principal{Actor: events.Actor{Kind: "user", ID: userID(token.Subject)}, Expires: token.Expiry} // a key that it issues expires no later
	for _, tenant := range words(claims, t.cfg.Tenant) {
		if events.CheckName(tenant) == nil && len(p.Tenants) < maxKeyTenants {
			p.Tenants = append(p.Tenants, tenant)
		}
	}
	if len(p.Tenants) == 0 { // there is no default tenant
		return service.Principal{}, ErrToken.Withf("The token has no tenant in its claim %s.", t.cfg.Tenant)
	}
	p.Home = p.Tenants[0]
	for _, word := range words(claims, t.cfg.Permissions) {
		if _, known := permission.Known[permission.Permission(word)]; known {
			p.Permissions = append(p.Permissions, permission.Permission(word))
		}
		switch role, known := permission.Roles[permission.Role(word)]; {
		case !known:
		case permission.Role(word) == permission.Administrator || p.Role == "":
			p.Permissions = append(p.Permissions, permission.Roles[p.Role]...)
			p.Role = permission.Role(word)
		default:
			p.Permissions = append(p.Permissions, role...)
		}
	}
	slices.Sort(p.Permissions)
	p.Permissions = slices.Compact(p.Permissions)
	return p, nil
}

// jsonBytes is a raw JSON value.
type jsonBytes []byte

// UnmarshalJSON implements json.Unmarshaler.
func (b *jsonBytes) UnmarshalJSON(v []byte) error { *b = slices.Clone(v); return nil }

// words reads a claim: a list of strings, or a string of words separated by spaces. If there is no
// claim with this name, a name with dots is a path into objects, such as "realm_access.roles".
func words(claims map[string]jsontext.Value, name string) []string {
	value, found := claims[name]
	if !found {
		outer, inner, nested := strings.Cut(name, ".")
		var within map[string]jsontext.Value
		if !nested || json.Unmarshal(claims[outer], &within) != nil {
			return nil
		}
		return words(within, inner)
	}
	var list []string
	if json.Unmarshal(value, &list) == nil {
		return list
	}
	var text string
	if json.Unmarshal(value, &text) == nil {
		return strings.Fields(text)
	}
	return nil
}

// hashedUser is the prefix of the id of a user whose subject (sub) is not a plain id, for example
// an e-mail address.
const hashedUser = "sub-"

// userID is the id of a user by the token's subject: the subject itself when it is
// a plain id, else a hash of it. Different subjects have different ids.
func userID(subject string) string {
	if events.Plain(subject) && !strings.HasPrefix(subject, hashedUser) {
		return subject
	}
	sum := sha256.Sum256([]byte(subject))
	return hashedUser + hex.EncodeToString(sum[:24])
}

// issuerKeys are the public keys of the issuer. Unlike the key set of the
// library, which queries the issuer for every token that does not verify and never
// drops a key, it limits the queries and the time for which a key is trusted.
type issuerKeys struct {
	client *http.Client
	url    string
	now    func() time.Time
	ask    *rate.Limiter

	mu   sync.Mutex // held during requests to the issuer
	set  jose.JSONWebKeySet
	when time.Time // of set
}

// verify returns the payload of a token that one of the keys has signed. It returns
// ErrToken, or ErrIssuerAway if there are no keys.
func (k *issuerKeys) verify(ctx context.Context, token string) ([]byte, error) {
	signed, err := jose.ParseSigned(token, algorithms)
	if err != nil || len(signed.Signatures) != 1 {
		return nil, ErrToken
	}
	switch typ, _ := signed.Signatures[0].Header.ExtraHeaders[jose.HeaderType].(string); strings.ToLower(typ) {
	case "", "jwt", "at+jwt", "application/at+jwt": // RFC 9068; not a logout token, for example
	default:
		return nil, ErrToken
	}
	set, when, err := k.current(ctx, time.Time{})
	if err != nil {
		return nil, err
	}
	if payload, ok := check(signed, set); ok {
		return payload, nil
	}
	if id := signed.Signatures[0].Header.KeyID; id != "" && len(set.Key(id)) > 0 {
		return nil, ErrToken
	}
	// The issuer may sign with a new key.
	if set, _, err = k.current(ctx, when); err != nil {
		return nil, ErrToken
	}
	if payload, ok := check(signed, set); ok {
		return payload, nil
	}
	return nil, ErrToken
}

var algorithms = func() (list []jose.SignatureAlgorithm) {
	for _, s := range signatures {
		list = append(list, jose.SignatureAlgorithm(s))
	}
	return list
}()

func check(signed *jose.JSONWebSignature, set jose.JSONWebKeySet) (payload []byte, ok bool) {
	id := signed.Signatures[0].Header.KeyID
	for _, key := range set.Keys {
		if id != "" && key.KeyID != id || key.Use != "" && key.Use != "sig" || !key.IsPublic() {
			continue
		}
		if payload, err := signed.Verify(&key); err == nil {
			return payload, true
		}
	}
	return nil, false
}

// current returns the keys and when they were fetched. Within the rate limit, it fetches them
// again if they are old, or were fetched no later than seen.
func (k *issuerKeys) current(ctx context.Context, seen time.Time) (jose.JSONWebKeySet, time.Time, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	fresh := !k.when.IsZero() && now.Sub(k.when) < issuerKeyAge
	if fresh && k.when.After(seen) {
		return k.set, k.when, nil
	}
	err := error(ErrIssuerAway)
	if k.ask.AllowN(now, 1) {
		var set jose.JSONWebKeySet
		if set, err = k.fetch(ctx); err == nil {
			k.set, k.when = set, now
			return k.set, k.when, nil
		}
	}
	if !k.when.IsZero() && now.Sub(k.when) < issuerKeyStale {
		return k.set, k.when, nil
	}
	return jose.JSONWebKeySet{}, time.Time{}, err
}

func (k *issuerKeys) fetch(ctx context.Context) (set jose.JSONWebKeySet, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), issuerTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url, nil)
	if err != nil {
		return set, fmt.Errorf("fetching the issuer's keys: %w: %w", ErrIssuerAway, err)
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return set, fmt.Errorf("fetching the issuer's keys: %w: %w", ErrIssuerAway, err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	body, err := io.ReadAll(io.LimitReader(resp.Body, issuerMax))
	if err != nil {
		return set, fmt.Errorf("reading the issuer's keys: %w: %w", ErrIssuerAway, err)
	}
	if resp.StatusCode != http.StatusOK {
		return set, fmt.Errorf("fetching the issuer's keys: %w: status %d", ErrIssuerAway, resp.StatusCode)
	}
	var list struct {
		Keys []jsontext.Value `json:"keys"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return set, fmt.Errorf("reading the issuer's keys: %w: %w", ErrIssuerAway, err)
	}
	for _, raw := range list.Keys {
		var key jose.JSONWebKey
		if key.UnmarshalJSON(raw) == nil { // other keys cannot be used
			set.Keys = append(set.Keys, key)
		}
	}
	return set, nil
}
