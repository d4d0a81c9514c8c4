// Package oauth is the client of authorization servers: it builds authorization URLs, redeems
// codes, renews and revokes tokens (RFC 6749, 7636, 7009), and explains failures in plain
// sentences. Secrets are passed and returned as seal.Secret. An error quotes of a provider's
// response only a known error code and its cleaned message.
//
// Two guarantees hold. A new refresh token, which may have invalidated the old one, is never
// lost: it is returned even if the rest of the response is unusable. And a grant is Revoked
// only if the provider said so, never because it was unreachable or its response unclear.
package oauth

import (
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/verify"
)

const (
	// DefaultLifetime of an access token applies if neither the provider nor the component
	// states one.
	DefaultLifetime = time.Hour
	// MaxLifetime limits the stated lifetime of an access token.
	MaxLifetime = 366 * 24 * time.Hour
)

// Provider is the configuration of an authorization server, from a component. Its URIs are
// absolute. It holds no secrets.
type Provider struct {
	Issuer            string // identifier (RFC 8414), "" if unknown
	RequireIssuer     bool   // the callback must carry iss (RFC 9207)
	AuthURI           string // "" for client credentials
	TokenURI          string
	RefreshURI        string // where tokens are renewed; "" is TokenURI
	RevocationURI     string // "" if there is none
	Basic             bool   // the client authenticates by HTTP Basic; else in the body
	Public            bool   // the client does not authenticate, so its secret is not sent
	Scopes            []string
	ScopeSeparator    string            // "" is " "
	AuthParams        map[string]string // additional parameters of the authorization request
	TokenParams       map[string]string // additional parameters of token requests
	RefreshParams     map[string]string // additional parameters of refreshes, which take precedence over TokenParams
	JSON              bool              // token requests are JSON objects; else forms
	NoPKCE            bool              // the provider refuses PKCE
	ClientCredentials bool              // the grant is client credentials
	Grant             string            // grant_type of ClientCredentials; "" is "client_credentials"
	TokenAt           string            // JSON pointer of the object with the tokens in a response; "" is the response itself
	JWT               *JWT              // signs assertions; nil if there is none
	PrivateKeyJWT     bool              // the client authenticates by an assertion
	Lifetimes         Lifetimes
	Answers           []Rule // for its responses without tokens; they take precedence over the built-in rules
}

// scope returns the values of the parameter scope, with the provider's separator.
func (p Provider) scope() []string {
	if len(p.Scopes) == 0 {
		return nil
	}
	separator := p.ScopeSeparator
	if separator == "" {
		separator = " "
	}
	return []string{strings.Join(p.Scopes, separator)}
}

// Client is an OAuth client registered with a provider.
type Client struct {
	ID     string
	Secret seal.Secret // zero for a public client
}

// Token is the tokens of a provider's response.
type Token struct {
	Access   seal.Secret
	Refresh  seal.Secret   // zero if the response has none
	Lifetime time.Duration // of Access, from the time of the response; always positive
	Odd      string        // a sentence about an implausible lifetime in the response; "" for none
	// RefreshLifetime is that of Refresh, or of the refresh token that was sent, from the time of the
	// response; 0 if the provider states none.
	RefreshLifetime time.Duration
	Type            string      // "Bearer", unless the provider says otherwise
	Scope           string      // as the provider stated it, "" if it did not
	Answer          seal.Fields // the members of the response
}

// Exchanger sends the requests. It is safe for concurrent use. Use one for the whole process:
// it holds the circuit breaker.
//
// After repeated failures, or at a rate limit, the circuit opens for the tenant, or for its
// OAuth client: calls fail at once with an Error that has RetryAfter. If the endpoint keeps
// failing for several tenants, it opens for all. At most eight requests are in flight to one
// host, and of one tenant as many as the guarded client allows; further calls wait, and fail
// with an Error that is Busy if no slot becomes free in time.
//
// Once a request is sent, the end of ctx does not cancel it, only the guarded client's
// timeout: the response may be the only copy of a new refresh token. ctx ends the waits for a
// slot.
type Exchanger struct {
	guarded *verify.Client
	breaker *breaker
}

// New returns an Exchanger that sends every request through guarded.
func New(guarded *verify.Client) *Exchanger {
	return &Exchanger{guarded: guarded, breaker: newBreaker()}
}

// NewVerifier returns a new code verifier (RFC 7636, section 4.1) of 256 random bits.
func NewVerifier() seal.Secret { return seal.NewSecret([]byte(oauth2.GenerateVerifier())) }

// AuthorizationURL returns the URL that asks a person for consent (RFC 6749, section 4.1.1),
// with the S256 challenge of verifier unless p.NoPKCE. The parameters of the protocol take
// precedence over p.AuthParams.
func (x *Exchanger) AuthorizationURL(p Provider, clientID, redirectURI, state string, verifier seal.Secret) string {
	var options []oauth2.AuthCodeOption
	for name, value := range p.AuthParams {
		if !slices.Contains(reservedParams, name) {
			options = append(options, oauth2.SetAuthURLParam(name, value))
		}
	}
	if !p.NoPKCE {
		options = append(options, oauth2.S256ChallengeOption(string(verifier.Reveal())))
	}
	config := oauth2.Config{
		ClientID: clientID, RedirectURL: redirectURI, Scopes: p.scope(),
		Endpoint: oauth2.Endpoint{AuthURL: p.AuthURI},
	}
	return config.AuthCodeURL(state, options...)
}

// reservedParams are the parameters of an authorization request that AuthParams cannot set.
var reservedParams = []string{"client_id", "code_challenge", "code_challenge_method", "redirect_uri", "response_type", "scope", "state"}

// Outcome classifies an Error by what it means for the grant.
type Outcome string

// The outcomes.
const (
	Transient     Outcome = "transient"      // the grant is unaffected: retry later
	Malformed     Outcome = "malformed"      // a success without a token: as Transient
	Revoked       Outcome = "revoked"        // the provider does not accept the grant, or no longer: a person must consent again
	ClientRefused Outcome = "client_refused" // the provider does not accept the client's id or secret
	Refused       Outcome = "refused"        // the provider refuses the request for another reason
	TooEarly      Outcome = "too_early"      // the access token is still valid, and the provider renews it only shortly before it expires
)
