package access

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// Errors of signing in with OpenID Connect.
var (
	ErrSignInOff = fault.New(fault.Precondition, "sign_in_not_configured",
		"Sign-in with OpenID Connect is not configured. Sign in with an API key, or ask the operator to set --oidc-client-id and --public-url.")
	ErrSignIn = fault.New(fault.Unauthenticated, "sign_in_failed", "The sign-in is not complete or was started in another browser. Start it again.")
	// ErrSessionTooLarge refuses a token that does not fit into a cookie.
	ErrSessionTooLarge = fault.New(fault.Unauthenticated, "session_too_large",
		"The issuer's token has too many claims for a browser session. Ask the issuer's administrator to reduce the claims for this client.")
)

// SignIn is the state of a sign-in (OpenID Connect Core 1.0, section 3.1, with PKCE, RFC 7636). The
// browser keeps it in a cookie while it is at the issuer, so the sign-in can only be completed in
// the browser in which it was started.
type SignIn struct {
	State    string `json:"state"`
	Nonce    string `json:"nonce"`
	Verifier string `json:"verifier"`
}

// SignInIssuer is the host of the issuer at which people sign in; empty if they cannot.
func (s *Service) SignInIssuer() string {
	if s.Tokens == nil || s.Tokens.cfg.ClientID == "" {
		return ""
	}
	u, _ := url.Parse(s.Tokens.cfg.Issuer) // NewTokens has validated it
	return u.Host
}

// BeginSignIn returns the address of the issuer's sign-in page, which sends the browser to
// callback. It returns ErrSignInOff and ErrIssuerAway.
func (s *Service) BeginSignIn(ctx context.Context, callback string) (string, SignIn, error) {
	if s.SignInIssuer() == "" {
		return "", SignIn{}, ErrSignInOff
	}
	client, err := s.Tokens.client(ctx, callback)
	if err != nil {
		return "", SignIn{}, err
	}
	in := SignIn{State: oauth2.GenerateVerifier(), Nonce: oauth2.GenerateVerifier(), Verifier: oauth2.GenerateVerifier()}
	return client.AuthCodeURL(in.State, oidc.Nonce(in.Nonce), oauth2.S256ChallengeOption(in.Verifier)), in, nil
}

// EndSignIn redeems the code of the issuer's callback, and returns a session of the user. The
// session contains the issuer's token and ends when that expires. Errors: ErrSignIn, ErrToken,
// ErrSessionTooLarge, ErrIssuerAway; ErrWrongKeys after too many refusals from the address.
func (s *Service) EndSignIn(ctx context.Context, in SignIn, callback string, answer url.Values, from netip.Addr) (string, service.Principal, error) {
	if s.SignInIssuer() == "" {
		return "", service.Principal{}, ErrSignInOff
	}
	if err := s.wrongKeys.check(from); err != nil { // each attempt is a request to the issuer
		return "", service.Principal{}, err
	}
	token, err := s.Tokens.redeem(ctx, in, callback, answer)
	if err != nil {
		return "", service.Principal{}, s.wrongKeys.refuse(from, err)
	}
	p, err := s.AuthenticateToken(ctx, token, from)
	if err != nil {
		return "", p, err
	}
	switch _, exists, err := s.Views.Tenant(ctx, p.Home); {
	case err != nil:
		return "", p, err
	case !exists: // a session would create its keyset
		return "", p, ErrToken.Withf("The token's tenant is not registered in this installation.")
	}
	until := s.Kernel.Now().Add(SessionLife)
	if p.Expires.Before(until) {
		until = p.Expires
	}
	sealed, err := s.sealSession(ctx, p.Home, session{Token: token, Until: until})
	return sealed, p, err
}

// client returns the OAuth client for the issuer, with the endpoints of its discovery document.
func (t *Tokens) client(ctx context.Context, callback string) (*oauth2.Config, error) {
	if _, _, err := t.issuer(ctx); err != nil {
		return nil, err
	}
	if t.endpoint.AuthURL == "" || t.endpoint.TokenURL == "" {
		return nil, ErrSignInOff.Withf("The OpenID Connect issuer publishes no authorization and token endpoint.")
	}
	return &oauth2.Config{
		ClientID: t.cfg.ClientID, ClientSecret: string(t.cfg.ClientSecret.Reveal()), RedirectURL: callback,
		Endpoint: t.endpoint, Scopes: strings.Fields(t.cfg.Scopes),
	}, nil
}

// redeem returns the token whose audience is this service: the ID token if the configured
// audience is the id of the client, else the access token (RFC 9068).
func (t *Tokens) redeem(ctx context.Context, in SignIn, callback string, answer url.Values) (string, error) {
	if in.State == "" || in.Nonce == "" || in.Verifier == "" || subtle.ConstantTimeCompare([]byte(answer.Get("state")), []byte(in.State)) != 1 {
		return "", ErrSignIn
	}
	if iss := answer.Get("iss"); iss != "" && iss != t.cfg.Issuer { // RFC 9207
		return "", ErrSignIn.Withf("The response came from another issuer. Start again.")
	}
	if code := answer.Get("error"); code != "" {
		return "", refusedBy(code)
	}
	client, err := t.client(ctx, callback)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(oidc.ClientContext(context.WithoutCancel(ctx), t.cfg.Client), issuerTimeout)
	defer cancel()
	granted, err := client.Exchange(ctx, answer.Get("code"), oauth2.VerifierOption(in.Verifier))
	if refused, ok := errors.AsType[*oauth2.RetrieveError](err); ok && refused.Response.StatusCode < 500 {
		return "", refusedBy(refused.ErrorCode)
	} else if err != nil {
		return "", fmt.Errorf("redeeming a code at the issuer: %w", ErrIssuerAway) // err may quote the response
	}
	idToken, _ := granted.Extra("id_token").(string)
	rules, keys, err := t.issuer(ctx)
	if err != nil {
		return "", err
	}
	own := *rules
	own.ClientID = t.cfg.ClientID
	attempt := &attempt{keys: keys}
	checked, err := oidc.NewVerifier(t.cfg.Issuer, attempt, &own).Verify(ctx, idToken)
	switch {
	case attempt.err != nil:
		return "", attempt.err
	case err != nil:
		return "", ErrToken
	case subtle.ConstantTimeCompare([]byte(checked.Nonce), []byte(in.Nonce)) != 1: // the token belongs to another sign-in
		return "", ErrSignIn
	case t.cfg.ClientID == t.cfg.Audience:
		return idToken, nil
	}
	if !IsToken(granted.AccessToken) {
		return "", ErrToken.Withf("The issuer's access token is not a signed token (RFC 9068) for the audience of this service. Set --oidc-audience to the id of the client, or have the issuer sign its access tokens.")
	}
	return granted.AccessToken, nil
}

// refusedBy returns ErrSignIn with the issuer's error code, if that is well-formed (RFC 6749,
// section 4.1.2.1).
func refusedBy(code string) error {
	if code == "" || len(code) > 40 || strings.Trim(code, "abcdefghijklmnopqrstuvwxyz_") != "" {
		return ErrSignIn.Withf("The OpenID Connect issuer refused the sign-in.")
	}
	return ErrSignIn.Withf("The OpenID Connect issuer refused the sign-in: %s.", code)
}
