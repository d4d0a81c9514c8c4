// Package oauth talks to authorization servers: it builds the link that asks a
// person for consent, redeems codes, renews and revokes tokens (RFC 6749, 7636,
// 7009), and says in plain words what went wrong. Everything secret goes in and
// comes out as a seal.Secret, and of what a provider says nothing gets into an error
// but its own explanation, cleaned.
//
// Its answers can be relied on in two ways. What a provider granted is never
// lost over an oddity elsewhere in its answer: a new refresh token, which may
// have made the old one worthless, is returned even with an answer that is no
// good otherwise. And a grant is called revoked only when the provider said so,
// never because it could not be understood or reached.
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
	// DefaultLifetime is how long an access token is taken to live when neither
	// the provider nor the component says.
	DefaultLifetime = time.Hour
	// MaxLifetime is the longest lifetime of an access token that is believed.
	MaxLifetime = 366 * 24 * time.Hour
)

// Provider is an authorization server as a component describes it. Its URIs are
// absolute. It holds no secrets.
type Provider struct {
	Issuer            string // identifier (RFC 8414), "" when not known
	RequireIssuer     bool   // the callback must carry iss (RFC 9207)
	AuthURI           string // "" for client credentials
	TokenURI          string
	RevocationURI     string // "" when there is none
	Basic             bool   // the client authenticates by HTTP Basic; else in the form
	Scopes            []string
	ScopeSeparator    string            // "" is " "
	AuthParams        map[string]string // more parameters of the authorization request
	TokenParams       map[string]string // more parameters of token requests
	RefreshParams     map[string]string // more parameters of refreshes, which take precedence over TokenParams
	JSON              bool              // token requests are JSON objects; else forms
	NoPKCE            bool              // the provider refuses PKCE
	ClientCredentials bool              // the grant is client credentials
	Lifetimes         Lifetimes         // what is known of the lifetime of its access tokens
	Answers           []Rule            // what its answers mean, before what is known of well-known providers
}

// scope is the value of the parameter scope: the separator is the provider's.
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

// Client is what identifies us at a provider.
type Client struct {
	ID     string
	Secret seal.Secret // zero for a public client
}

// Token is what a provider granted.
type Token struct {
	Access   seal.Secret
	Refresh  seal.Secret   // zero when the answer has none
	Lifetime time.Duration // of Access, from when it was asked for; always positive
	Odd      string        // what is implausible about the lifetime that the provider named, a sentence; "" for nothing
	Type     string        // "Bearer", unless the provider says otherwise
	Scope    string        // as the provider answered, "" when it did not say
	Answer   seal.Fields   // every member of the provider's answer
}

// Exchanger makes the requests. It may be used by many goroutines; one for the
// whole process, so that it knows which providers are in trouble.
//
// A provider that fails for a tenant again and again, or asks it for fewer
// requests, is left alone by the tenant for a while: calls then end at once with an
// Error that says how long. One that fails so for several tenants is left alone by
// all. At most eight requests go to one host at a time, and as many of one tenant as
// the guarded client allows; the others wait, and end with an Error that says Busy
// when that takes too long.
//
// A request that has begun is waited for, for no longer than the guarded
// client's timeout, even when ctx ends: its answer may be the only copy of a new
// refresh token. ctx ends the waits before it.
type Exchanger struct {
	guarded *verify.Client
	breaker *breaker
}

// New returns an Exchanger that reaches providers through guarded alone.
func New(guarded *verify.Client) *Exchanger {
	return &Exchanger{guarded: guarded, breaker: newBreaker()}
}

// NewVerifier returns a new code verifier (RFC 7636, section 4.1) of 256 random bits.
func NewVerifier() seal.Secret { return seal.NewSecret([]byte(oauth2.GenerateVerifier())) }

// AuthorizationURL is where to send a person's browser to ask for consent (RFC
// 6749, section 4.1.1), with the S256 challenge of verifier unless the provider
// refuses PKCE. The parameters of the protocol take precedence over AuthParams.
func (x *Exchanger) AuthorizationURL(p Provider, clientID, redirectURI, state string, verifier seal.Secret) string {
	var options []oauth2.AuthCodeOption
	for name, value := range p.AuthParams {
		if !slices.Contains(ownParams, name) {
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

// ownParams are the parameters of an authorization request that are ours to set.
var ownParams = []string{"client_id", "code_challenge", "code_challenge_method", "redirect_uri", "response_type", "scope", "state"}

// Outcome is the class of an Error: what it means for the grant.
type Outcome string

// The outcomes.
const (
	Transient     Outcome = "transient"      // it says nothing about the grant: try again later
	Malformed     Outcome = "malformed"      // success without a token in it: as Transient
	Revoked       Outcome = "revoked"        // the provider does not know the grant, or no longer: a person must consent again
	ClientRefused Outcome = "client_refused" // the provider does not accept the client: its id or secret must be mended
	Refused       Outcome = "refused"        // it will not do this, for another reason
	TooEarly      Outcome = "too_early"      // the access token still lives, and is renewed nearer to its end
)
