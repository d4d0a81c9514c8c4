package connect

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/client"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/service/token"
	"github.com/credstream/credstream/verify"
)

// Errors of starting or completing a connection.
var (
	ErrConnectAbsent = fault.New(fault.Precondition, "connect_absent",
		"Account connection is disabled: start the service with --public-url, the address where browsers reach it.")
	// ErrRedeemFailed means that a code yielded no tokens, for a reason other than the client or the consent.
	ErrRedeemFailed    = fault.New(fault.Unprocessable, "oauth_redeem_failed", "The provider did not issue tokens. Try again later.")
	ErrConnectNeedless = fault.New(fault.Unprocessable, "oauth_connect_needless",
		"The component needs no account connection: its OAuth client requests tokens itself. Use credential.create.")
	ErrConnectKeysNeeded = fault.New(fault.Precondition, "connect_keys_needed",
		"The component's rules for its other fields have changed since their values were entered: other "+
			"hosts, another dry request or fewer masked fields. Enter all of them again in keys.")
	ErrReturnTo = fault.New(fault.Invalid, "return_to_invalid",
		"return_to must be an address of an origin that --connect-return-to lists, or of http://127.0.0.1 or http://[::1] with a port.")
	ErrConnectionNotFound    = fault.New(fault.NotFound, "connection_not_found", "Connection not found: it does not exist or has expired.")
	ErrConnectionExpired     = fault.New(fault.Precondition, "connection_expired", "The connection has expired: each step must follow within ten minutes. Start again.")
	ErrConnectionOther       = fault.New(fault.Denied, "connection_of_another", "Another caller started this connection. Only that caller can complete it.")
	ErrConnectionNotReturned = fault.New(fault.Precondition, "connection_not_returned", "The browser has not returned from the provider yet. Try again when it has.")
	ErrConnectionConfirm     = fault.New(fault.Invalid, "connection_confirm_wrong", "The confirmation does not match this connection.")
	ErrConnectionBusy        = fault.New(fault.Unavailable, "connection_busy", "The connection is being completed. Try again shortly.")
	ErrConnectionEnded       = fault.New(fault.Precondition, "connection_ended", "The connection ended without a credential. Start again.")
)

// Errors that end a connection, in addition to those of the provider and the dry
// request. The event access.connect_aborted has the code.
var (
	ErrConnectionGuessed = fault.New(fault.Precondition, "connection_confirm_guessed",
		"The connection ended after five wrong confirmations. Start again.")
	ErrConnectionUserMismatch = fault.New(fault.Denied, "connection_user_mismatch",
		"The connection ended: it was started for another user. Start again.")
	ErrConnectionComponentChanged = fault.New(fault.Precondition, "connection_component_changed",
		"The component now names another provider. Start again.")
	ErrConnectionUnknownOutcome = fault.New(fault.Unavailable, "connection_outcome_unknown",
		"The provider issued tokens, but it is not known yet whether they were saved. The service completes the connection, or revokes them. Repeat the request later.")
)

// Start requests a link by which a person connects an account at the
// component's provider.
type Start struct {
	Component  string              `json:"component,omitzero"`         // needed for a new credential
	Credential string              `json:"credential,omitzero"`        // id of a credential to connect again, in place; requires the permission credentials.edit
	Name       string              `json:"name,omitzero"`              // of a new credential; derived from the component's title when absent
	Workspace  string              `json:"workspace,omitzero"`         // of a new credential: an id of the caller, stored as given
	Keys       secrets.Keys        `json:"keys,omitzero"`              // a value for each other field of the component; an existing credential keeps its own when absent
	User       string              `json:"user,omitzero"`              // id of the user at the caller, which oauth.complete must repeat
	ReturnTo   string              `json:"return_to,omitzero"`         // where the browser goes from the callback, with the parameters connection and confirm, or error
	For        *credential.ForStep `json:"for,omitzero"`               // the step of a flow for which a new credential is created
	Expected   int                 `json:"expected_revision,omitzero"` // refuse unless this is the revision of the component's current descriptor
}

type Connected struct {
	ID      string    `json:"id"`      // of the connection
	URL     string    `json:"url"`     // to be opened once, in a browser; a secret
	Expires time.Time `json:"expires"` // when it is too late to open it

	starter string
}

// Starter is the secret that identifies the browser that requested the link: an
// edge sends it to the browser as a cookie. It is "" if the link was not requested over HTTP.
func (c Connected) Starter() string { return c.starter }

func (s *Service) connectOAuth(ctx context.Context, call *service.Call, in Start) (Connected, error) {
	if s.Connections == nil || s.PublicURL == "" {
		return Connected{}, ErrConnectAbsent
	}
	if in.Credential == "" {
		if err := service.Required("/component", in.Component); err != nil {
			return Connected{}, err
		}
	}
	if perm := connectPermission(in.Credential); !call.Principal.May(perm) {
		return Connected{}, s.Access.Deny(ctx, call, perm)
	}
	c := connection{
		id: call.DeriveID("connection"), Tenant: call.Tenant, Actor: call.Principal.Actor, Component: in.Component, Credential: in.Credential,
		Name: in.Name, Workspace: in.Workspace, For: in.For, User: in.User, ReturnTo: in.ReturnTo, keys: in.Keys.Fields,
		KeepKeys: in.Credential != "" && len(in.Keys.Names()) == 0,
		Stage:    stageCreated, Expires: s.Kernel.Now().Add(stepTime).UTC().Truncate(time.Second),
	}
	if in.User != "" && events.CheckID(in.User) != nil {
		return Connected{}, events.ErrID.At("/user")
	}
	if err := s.checkReturnTo(in.ReturnTo); err != nil {
		return Connected{}, err
	}
	var err error
	if in.Credential == "" {
		err = s.checkNew(ctx, call, in)
	} else {
		c.Component, err = s.checkReconnect(ctx, call, in)
	}
	if err != nil {
		return Connected{}, err
	}
	d, revision, err := s.connectable(ctx, call.Tenant, c.Component, in.Expected)
	if err != nil {
		return Connected{}, err
	}
	c.Revision, c.Provider = revision, providerOfBlock(d.OAuth2)
	if err := checkOtherKeys(d, c); err != nil {
		return Connected{}, err
	}
	// Templates in endpoints need values before the browser goes to the provider.
	if _, err := s.authorizationServer(ctx, c, d, oauth.Client{}); err != nil {
		return Connected{}, err
	}
	if err := s.Access.AdmitConnect(call.Tenant); err != nil {
		return Connected{}, err
	}
	if _, err := s.Kernel.Begin(ctx, call, events.CommandStarted{}); err != nil {
		return Connected{}, err
	}
	call.Detach()
	if call.Resumed() != nil { // an interrupted attempt may have created it
		existing, err := s.connection(ctx, c.id)
		if err == nil {
			answer, _, err := s.link(ctx, call, existing.id, existing.Expires)
			return answer, err
		}
		if !errors.Is(err, ErrConnectionNotFound) {
			return Connected{}, err
		}
	}
	answer, secret, err := s.link(ctx, call, c.id, c.Expires)
	if err != nil {
		return Connected{}, err
	}
	c.Link = fingerprintOf(secret)
	if call.Via == "http" {
		c.Starter = fingerprintOf(answer.starter)
	}
	if err := s.pending.start(c.Tenant, c.id, s.Kernel.Now(), c.Expires); err != nil {
		return Connected{}, err
	}
	if _, err := s.save(ctx, &c); err != nil {
		s.pending.remove(c.Tenant, c.id)
		return Connected{}, err
	}
	s.outcomes.WithLabelValues("started").Inc()
	return answer, nil
}

// link builds the link of a connection, with its secret. The same connection has the
// same link, so that a repeated command returns it again: its secrets are derived
// from the tenant's key, and not stored.
func (s *Service) link(ctx context.Context, call *service.Call, id string, expires time.Time) (answer Connected, secret string, err error) {
	deriveSecret := func(what string) (string, error) {
		mac, err := s.Keyring.MAC(ctx, call.Tenant, events.LengthPrefixed("credstream/connection-"+what+"/1", id))
		if err != nil {
			return "", fmt.Errorf("create the link of a connection: %w", err)
		}
		return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(mac), nil
	}
	if secret, err = deriveSecret("link"); err != nil {
		return Connected{}, "", err
	}
	answer = Connected{ID: id, URL: s.PublicURL + "/oauth/connect/" + id + "." + secret, Expires: expires}
	if call.Via == "http" {
		answer.starter, err = deriveSecret("starter")
	}
	return answer, secret, err
}

// checkNew validates the input for a new credential.
func (s *Service) checkNew(ctx context.Context, call *service.Call, in Start) error {
	if in.Name != "" {
		if err := service.CheckName("/name", in.Name); err != nil {
			return err
		}
	}
	if err := commands.CheckRef("/workspace", in.Workspace); err != nil {
		return err
	}
	if err := s.Kernel.CheckNew(ctx, call, "", in.Component, in.Workspace); err != nil {
		return err
	}
	_, err := s.Credentials.CheckFor(ctx, call, credential.Create{Component: in.Component, For: in.For})
	return err
}

// checkReconnect validates the input for a credential that is connected again, and
// returns its component.
func (s *Service) checkReconnect(ctx context.Context, call *service.Call, in Start) (component string, err error) {
	for _, member := range []struct {
		name  string
		given bool
	}{{"name", in.Name != ""}, {"workspace", in.Workspace != ""}, {"for", in.For != nil}} {
		if member.given {
			return "", service.ErrBody.Withf("The member %s is only for a new credential.", member.name).At("/" + member.name)
		}
	}
	if err := service.CheckTarget(in.Credential, 0); err != nil {
		return "", fault.Of(err).At("/credential")
	}
	state, err := s.Secrets.Live(ctx, call.Tenant, in.Credential, 0)
	switch {
	case err != nil:
		return "", service.PointAt(err, "/credential")
	case in.Component != "" && in.Component != state.Component:
		return "", service.ErrBody.Withf("The credential belongs to another component.").At("/component")
	}
	return state.Component, nil
}

// connectable returns a component for which accounts can be connected in the
// tenant, with the current descriptor.
func (s *Service) connectable(ctx context.Context, tenant, component string, expected int) (commands.Descriptor, int, error) {
	d, revision, err := s.Components.UsableAt(ctx, tenant, component, "/component", expected)
	if err == nil {
		d, err = s.Components.Effective(ctx, tenant, component, d)
	}
	switch {
	case err != nil:
		return d, 0, err
	case !d.UsesOAuth:
		return d, 0, client.ErrOAuthNotDeclared.Withf("The component.json has no field for OAuth tokens.").At("/component")
	case d.OAuth2 != nil && d.OAuth2.ClientCredentials:
		return d, 0, ErrConnectNeedless.At("/component")
	case d.OAuth2 == nil:
		return d, 0, token.ErrOAuthEndpointsMissing.Withf("No account can be connected: %s", d.CannotConnect).At("/component")
	}
	if _, err := s.Tokens.OAuthClient(ctx, tenant, component, d); err != nil {
		return d, 0, service.PointAt(err, "/component")
	}
	return d, revision, service.PointAt(s.Clients.CheckConsentAudience(ctx, tenant, component, d), "/component")
}

// oauthField is the field for the provider's tokens.
func oauthField(d commands.Descriptor) string {
	for _, f := range d.Fields {
		if f.OAuth() {
			return f.Name
		}
	}
	return ""
}

// checkOtherKeys validates the values of the other fields.
func checkOtherKeys(d commands.Descriptor, c connection) error {
	field, names := oauthField(d), c.keys.Names()
	switch {
	case c.keys.Marshal().Len() > maxConnectKeys:
		return seal.ErrKeysTooLarge.Withf("The values of the other fields are limited to 16 KiB.").At("/keys")
	case slices.Contains(names, field):
		return commands.ErrKeysFieldUnknown.Withf("Connecting sets the field %q. Omit it.", field).At("/keys/" + service.EscapePointer(field))
	case c.KeepKeys:
		return nil
	}
	if d.OAuth2 != nil {
		for _, captured := range d.OAuth2.Capture {
			names = append(names, captured.Field)
		}
	}
	if err := d.CheckKeys(append(names, field)); err != nil {
		return err
	}
	return secrets.CheckMask(c.keys)
}

// keptKeys decrypts the values of the other fields that a reconnect keeps, and returns
// their version. It returns ErrConnectKeysNeeded if d has other rules than the revision
// under which they were entered.
func (s *Service) keptKeys(ctx context.Context, c connection, d commands.Descriptor) (seal.Fields, int, error) {
	state, err := s.Secrets.Live(ctx, c.Tenant, c.Credential, 0)
	if err != nil {
		return seal.Fields{}, 0, err
	}
	now, field := state.Current(), oauthField(d)
	others := slices.DeleteFunc(slices.Clone(now.Fields), func(name string) bool { return name == field || name == state.Tokens.Field })
	if len(others) == 0 {
		return seal.Fields{}, now.Version, nil
	}
	entered, err := s.Components.Descriptor(ctx, state.Component, now.Revision)
	if err != nil {
		return seal.Fields{}, 0, err
	}
	if !d.KeepsRules(entered, others) {
		return seal.Fields{}, 0, ErrConnectKeysNeeded.At("/keys")
	}
	keys, err := s.Secrets.Open(ctx, c.Tenant, c.Credential, now)
	return keys.Without(field, state.Tokens.Field), now.Version, err
}

// Configuration errors.
var (
	ErrPublicURL = fault.New(fault.Invalid, "config_public_url",
		"The public URL must be https:// and a host, or http:// and localhost or a loopback address, without user, query or fragment.")
	ErrReturnOrigin = fault.New(fault.Invalid, "config_connect_return_to",
		"A return origin must be https:// and a host, or http:// and localhost or a loopback address, with nothing after it.")
)

// PublicURL validates the URL where browsers reach the service and returns it without a trailing
// slash, or ErrPublicURL. Providers and cookies require https, unless
// browser and service are on one machine.
func PublicURL(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.Opaque != "" || strings.ContainsAny(text, "?# \\") || !confidentialURL(u) {
		return "", ErrPublicURL
	}
	return strings.TrimRight(text, "/"), nil
}

// ReturnOrigin validates an origin to which browsers may be redirected, such as
// "https://app.example.org". It returns ErrReturnOrigin if it is invalid.
func ReturnOrigin(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || text != u.Scheme+"://"+u.Host || text != strings.ToLower(text) || !confidentialURL(u) {
		return "", ErrReturnOrigin.Withf("%q is not an origin. Write https:// and a host, or http:// and localhost or a loopback address, with nothing after it.", text)
	}
	return text, nil
}

// checkConnect checks the configuration.
func (s *Service) checkConnect() (err error) {
	if s.PublicURL != "" {
		if s.PublicURL, err = PublicURL(s.PublicURL); err != nil {
			return err
		}
	}
	for _, origin := range s.ReturnTo {
		if _, err := ReturnOrigin(origin); err != nil {
			return err
		}
	}
	return nil
}

// confidentialURL reports whether requests to the URL are encrypted, or stay on this
// machine.
func confidentialURL(u *url.URL) bool {
	switch u.Scheme {
	case "https":
		return true
	case "http":
		ip, err := netip.ParseAddr(u.Hostname())
		return u.Hostname() == "localhost" || err == nil && ip.IsLoopback()
	}
	return false
}

// openRedirects are characters that browsers and this service parse differently in a URL.
const openRedirects = "\\\"'<>^`{|}#@"

// checkReturnTo returns ErrReturnTo for an address to which no browser may be sent.
func (s *Service) checkReturnTo(address string) error {
	if address == "" {
		return nil
	}
	refused := ErrReturnTo.At("/return_to")
	if len(address) > 2048 || strings.ContainsAny(address, openRedirects) ||
		strings.ContainsFunc(address, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return refused
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.User != nil || u.Opaque != "" {
		return refused
	}
	rest, is := strings.CutPrefix(address, u.Scheme+"://"+u.Host)
	if !is || rest != "" && rest[0] != '/' && rest[0] != '?' {
		return refused
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil || query.Has("connection") || query.Has("confirm") || query.Has("error") {
		return ErrReturnTo.Withf("The service adds the parameters connection, confirm and error to return_to. Remove them from it.").At("/return_to")
	}
	if !slices.Contains(s.ReturnTo, u.Scheme+"://"+u.Host) && !isLoopback(u) {
		return refused
	}
	return nil
}

// isLoopback detects the address of a program on the browser's own machine, per
// RFC 8252, section 7.3: literal, and with any port.
func isLoopback(u *url.URL) bool {
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil || u.Scheme != "http" || host != "127.0.0.1" && host != "::1" {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// withParameters adds query parameters to an address that checkReturnTo has accepted.
func withParameters(address string, parameters ...string) string {
	separator := "?"
	if strings.Contains(address, "?") {
		separator = "&"
	}
	for i := 0; i+1 < len(parameters); i += 2 {
		address += separator + parameters[i] + "=" + url.QueryEscape(parameters[i+1])
		separator = "&"
	}
	return address
}

// redirectURI is the redirect URI at the provider: one for each tenant
// and component, so that responses cannot be confused between them.
func (s *Service) redirectURI(tenant, component string) string {
	return s.PublicURL + "/oauth/callback/" + tenant + "/" + component
}

type GetRedirectURI struct {
	Component string `json:"component"`
}

// RedirectURI is the redirect URI of a component.
type RedirectURI struct {
	RedirectURI string `json:"redirect_uri"` // to be registered at the provider, with the OAuth client
}

func (s *Service) getRedirectURI(ctx context.Context, call *service.Call, in GetRedirectURI) (RedirectURI, error) {
	if err := service.Required("/component", in.Component); err != nil {
		return RedirectURI{}, err
	}
	if _, _, err := s.Components.Usable(ctx, call.Tenant, in.Component); err != nil {
		return RedirectURI{}, service.PointAt(err, "/component")
	}
	if s.PublicURL == "" {
		return RedirectURI{}, ErrConnectAbsent
	}
	return RedirectURI{s.redirectURI(call.Tenant, in.Component)}, nil
}

// CompleteConnection confirms that the user who returned from the provider is the
// one who started.
type CompleteConnection struct {
	Connection string `json:"connection"`
	Confirm    string `json:"confirm"`       // the code that the return address, or the page, received
	User       string `json:"user,omitzero"` // as given when the connection was started
}

// completeConnection redeems the code of a connection for the caller who started it, and for
// nobody else: a victim who was talked into opening another user's link gives that user
// nothing, unless the victim also hands over the confirmation.
func (s *Service) completeConnection(ctx context.Context, call *service.Call, in CompleteConnection) (service.Done, error) {
	c, err := s.connectionOf(ctx, call, "/connection", in.Connection)
	if err != nil {
		return service.Done{}, err
	}
	if err := service.Required("/confirm", in.Confirm); err != nil {
		return service.Done{}, err
	}
	perm := c.permission()
	switch {
	case !call.Principal.May(perm):
		return service.Done{}, s.Access.Deny(ctx, call, perm)
	case c.Actor != call.Principal.Actor:
		s.Access.Denied(ctx, call, perm)
		return service.Done{}, ErrConnectionOther.At("/connection")
	case c.Stage == stageFailed:
		return service.Done{}, ErrConnectionEnded.Withf("%s", c.Says).With(map[string]string{"reason": c.Reason})
	case c.expired(s.Kernel.Now()):
		return service.Done{}, ErrConnectionExpired
	case c.Stage == stageCreated, c.Stage == stageOpened:
		return service.Done{}, ErrConnectionNotReturned
	case c.redeeming() && (len(c.Confirm) == 0 || !s.redeemings.abandoned(s, c)):
		return service.Done{}, ErrConnectionBusy.WithRetryAfter(time.Second)
	case !c.Confirm.of(normalizeConfirm(in.Confirm)):
		return service.Done{}, s.wrongConfirm(ctx, c)
	case c.Stage == stageDone:
		return c.Done, nil
	case in.User != c.User:
		return service.Done{}, s.abort(ctx, c, ErrConnectionUserMismatch)
	}
	return s.takeOver(ctx, call, c)
}

// normalizeConfirm ignores case, spaces and hyphens of a typed confirmation.
func normalizeConfirm(text string) string {
	return strings.ToUpper(strings.NewReplacer("-", "", " ", "").Replace(strings.TrimSpace(text)))
}

// wrongConfirm counts a wrong confirmation before it is refused, so that concurrent
// guesses cannot bypass the limit.
func (s *Service) wrongConfirm(ctx context.Context, c connection) error {
	if c.Stage == stageDone {
		return ErrConnectionConfirm.At("/confirm")
	}
	if c.Tries++; c.Tries >= maxTries {
		return s.abort(ctx, c, ErrConnectionGuessed)
	}
	saved, err := s.save(ctx, &c)
	switch {
	case err != nil:
		return err
	case !saved:
		return ErrConnectionBusy.WithRetryAfter(time.Second)
	}
	return ErrConnectionConfirm.Withf("The confirmation does not match this connection. Attempts left: %d.", maxTries-c.Tries).At("/confirm")
}

// finish redeems the code of a connection at stageRedeeming, and saves the result. It runs to
// the end even if the caller disconnects, because the tokens would be lost. resumed means
// that another process started it before.
func (s *Service) finish(ctx context.Context, call *service.Call, c connection, resumed bool) (service.Done, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), service.MaxCall)
	defer cancel()
	call.Detach()
	pending := false
	defer func() {
		if pending {
			return // the process manager finds the connection by its mark
		}
		if err := s.Connections.Unmark(ctx, c.id); err != nil {
			s.Logger.DebugContext(ctx, "in-flight mark of a connection not removed", "connection", c.id, "err", err)
		}
	}()
	done, codeSent, err := s.redeem(ctx, call, &c, resumed)
	if err != nil {
		why := fault.Of(err)
		if why == fault.ErrInternal {
			s.Logger.ErrorContext(ctx, "connection failed", "tenant", c.Tenant, "connection", c.id, "err", err)
		}
		transient := why.Kind == fault.Unavailable || why.Kind == fault.Throttled || why.Kind == fault.Internal
		switch {
		case transient && (c.Stage == stageRedeemed || resumed && !codeSent) && !c.expired(s.Kernel.Now()): // the outcome is resolved later
			pending = true
			return service.Done{}, why
		case c.Stage == stageRedeemed:
			s.revokeStoredTokens(ctx, c)
			return service.Done{}, s.abort(ctx, c, why)
		case codeSent || !transient || len(c.Confirm) == 0:
			return service.Done{}, s.abort(ctx, c, why)
		}
		c.Stage = stageReturned // the code is still valid, and the caller can try resumed
		if saved, saveErr := s.save(ctx, &c); saveErr != nil || !saved {
			s.Logger.WarnContext(ctx, "cannot release a connection; it still counts as being completed", "connection", c.id, "err", saveErr)
		}
		return service.Done{}, err
	}
	c.Stage, c.Done = stageDone, done
	c.forget()
	if saved, err := s.save(ctx, &c); err != nil || !saved {
		s.Logger.WarnContext(ctx, "connection completed but its state was not saved", "connection", c.id, "err", err)
	}
	s.outcomes.WithLabelValues("done").Inc()
	return done, nil
}

// redeem exchanges the code for tokens and saves them. codeSent means that the code may
// have reached the provider and is used up. If resumed is set, it returns the credential that
// was already saved, or saves the tokens that were already issued, or else sends the code
// again: a provider that has already accepted it rejects it and revokes the tokens issued for
// it (RFC 6749, section 4.1.2). After an error, a connection that contains the tokens is at
// stageRedeemed.
func (s *Service) redeem(ctx context.Context, call *service.Call, c *connection, resumed bool) (done service.Done, codeSent bool, err error) {
	if resumed {
		if done, found, err := s.savedConnection(ctx, *c); err != nil || found {
			return done, false, err
		}
	}
	if err := s.Kernel.WritesAllowed(); err != nil {
		return done, false, err
	}
	d, client, err := s.providerOf(ctx, *c)
	if err != nil {
		return done, false, err
	}
	if c.Stage == stageRedeemed {
		done, err = s.saveRedeemed(ctx, call, *c, d)
		return done, true, err
	}
	var kept seal.Fields // by a reconnect
	keys, version, captured := c.keys, 0, c.keys
	if c.Credential != "" {
		state, err := s.Secrets.Live(ctx, c.Tenant, c.Credential, 0)
		if err != nil {
			return done, false, err
		}
		version = state.Current().Version
	}
	if c.KeepKeys {
		if keys, version, err = s.keptKeys(ctx, *c, d); err != nil {
			return done, false, err
		}
		kept = keys
		if keys = captured.Over(kept); movesKept(d, kept, keys) {
			return done, false, ErrConnectKeysNeeded.At("/keys")
		}
	}
	provider, err := token.Provider(d.OAuth2, client, token.ProbeValues(d, keys))
	if err != nil {
		return done, false, err
	}
	provider.TokenParams = forwarded(provider.TokenParams, d.OAuth2, captured)
	requested := s.Kernel.Now()
	granted, err := s.OAuth.Redeem(ctx, c.Tenant, provider, client, c.code, c.verifier, c.Redirect)
	if err != nil {
		s.revokeUnsaved(ctx, *c, d, client, granted.Refresh, granted.Access)
		refusal, ok := errors.AsType[*oauth.Error](err)
		return done, ok && refusal.Sent, redeemFailed(err)
	}
	object := token.Bind(granted.Answer, d)
	if !d.OAuth2.NoRefresh || oauth.StatesLifetime(object) || d.OAuth2.TokenLifetime > 0 { // else it is valid until it is revoked
		object, _ = token.WithExpiry(object, requested, granted.Lifetime)
	}
	keys = captureTokens(d.OAuth2, granted.Answer, keys)
	if c.KeepKeys && movesKept(d, kept, keys) {
		s.revokeUnsaved(ctx, *c, d, client, granted.Refresh, granted.Access)
		return done, true, ErrConnectKeysNeeded.At("/keys")
	}
	// Store the tokens with the connection, so that a crash before the commit does not lose them.
	c.Stage, c.keys, c.Version = stageRedeemed, keys.With(oauthField(d), object.Marshal()), version
	c.code, c.verifier = seal.Secret{}, seal.Secret{}
	switch saved, err := s.save(ctx, c); {
	case err != nil:
		s.Logger.WarnContext(ctx, "tokens of a connection not stored temporarily; a crash now would lose them", "tenant", c.Tenant, "connection", c.id, "err", err)
	case !saved: // another process took over, and sent the code again
		if now, err := s.connection(ctx, c.id); err == nil && now.Stage == stageFailed {
			s.revokeStoredTokens(ctx, *c)
		}
		return done, true, ErrConnectionBusy.WithRetryAfter(time.Second)
	}
	done, err = s.saveRedeemed(ctx, call, *c, d)
	return done, true, err
}

// movesKept reports whether a captured value would send the values that a reconnect keeps somewhere
// else: a callback is text of the user's browser, and whoever reconnects need not know the values.
func movesKept(d commands.Descriptor, kept, keys seal.Fields) bool {
	if len(kept.Names()) == 0 {
		return false
	}
	return slices.ContainsFunc(d.AddressFields(), func(name string) bool {
		was, _ := kept.Text(name)
		now, _ := keys.Text(name)
		return !bytes.Equal(was.Reveal(), now.Reveal())
	})
}

// captureCallback keeps the parameters of a callback that the component declares as fields. Invalid
// ones are dropped: a required field without a value is refused when the credential is saved.
func captureCallback(o *commands.OAuth2, query url.Values, keys seal.Fields) seal.Fields {
	if o == nil { // the OAuth client that supplied the endpoints was deleted meanwhile
		return keys
	}
	for _, c := range o.Capture {
		if given := query[c.Callback]; c.Callback != "" && len(given) == 1 {
			keys = withCaptured(keys, c.Field, given[0])
		}
	}
	return keys
}

// captureTokens is captureCallback for the members of a token response.
func captureTokens(o *commands.OAuth2, response, keys seal.Fields) seal.Fields {
	for _, c := range o.Capture {
		if c.Response == "" {
			continue
		}
		value, _ := verify.Member(response.Marshal().Reveal(), c.Response)
		if text, ok := verify.Text(value); ok {
			keys = withCaptured(keys, c.Field, text)
		}
	}
	return keys
}

const maxCaptured = 2048 // bytes

func withCaptured(keys seal.Fields, field, value string) seal.Fields {
	quoted, err := jsontext.AppendQuote(nil, value)
	if err != nil || value == "" || len(value) > maxCaptured || strings.ContainsFunc(value, unicode.IsControl) {
		return keys
	}
	return keys.With(field, seal.NewSecret(quoted))
}

// forwarded adds the captured parameters that the token request repeats.
func forwarded(params map[string]string, o *commands.OAuth2, keys seal.Fields) map[string]string {
	all := maps.Clone(params)
	for _, c := range o.Capture {
		value, ok := keys.Text(c.Field)
		if !c.Forward || !ok {
			continue
		}
		if all == nil {
			all = map[string]string{}
		}
		all[c.Callback] = string(value.Reveal())
	}
	return all
}

// saveRedeemed saves the tokens that were issued for a connection, provided that its
// starter still has the permission.
func (s *Service) saveRedeemed(ctx context.Context, call *service.Call, c connection, d commands.Descriptor) (service.Done, error) {
	if err := s.starterMay(ctx, c); err != nil {
		return service.Done{}, err
	}
	done, err := s.saveConnected(ctx, call, c, d, c.keys, c.Version)
	saved, repeated := errors.AsType[*service.Repeat](err)
	switch {
	case err == nil:
		return done, nil
	case repeated:
		answer, is, err := saved.Outcome()
		if is {
			return answer, nil
		}
		return done, err
	case !service.IsRejected(err):
		s.Logger.ErrorContext(ctx, "outcome of saving a connected credential is unknown", "tenant", c.Tenant, "connection", c.id, "err", err)
		return done, ErrConnectionUnknownOutcome
	}
	// The refusal may be caused by an earlier attempt, which already saved them.
	if saved, found, lookErr := s.savedConnection(ctx, c); lookErr != nil || found {
		return saved, lookErr
	}
	return done, err
}

// revokeStoredTokens revokes the tokens that are stored with a connection and were not saved
// as a credential.
func (s *Service) revokeStoredTokens(ctx context.Context, c connection) {
	d, err := s.descriptorOf(ctx, c)
	if err == nil && d.OAuth2 != nil {
		var client oauth.Client
		if client, err = s.Tokens.OAuthClient(ctx, c.Tenant, c.Component, d); err == nil {
			object, _ := c.keys.Object(oauthField(d))
			refresh, _ := object.Text(token.RefreshToken)
			access, _ := object.Text(token.AccessToken)
			s.revokeUnsaved(ctx, c, d, client, refresh, access)
		}
	}
	if err != nil {
		s.Logger.WarnContext(ctx, "tokens that were not saved were not revoked at the provider", "tenant", c.Tenant, "connection", c.id, "err", err)
	}
}

// redeemFailed is the error of a provider that issued no tokens.
func redeemFailed(err error) error {
	refusal, ok := errors.AsType[*oauth.Error](err)
	switch {
	case !ok || refusal.Outcome != oauth.Transient && refusal.Outcome != oauth.Malformed:
		return token.RefusedToken(err)
	case !refusal.Sent:
		return fault.ErrUnavailable.Withf("%s", refusal.Says()).WithRetryAfter(max(refusal.RetryAfter, time.Second))
	}
	return ErrRedeemFailed.Withf("%s", refusal.Says())
}

// providerOf returns the descriptor for which the user gave consent, and its OAuth client.
// It returns ErrConnectionComponentChanged if the component names another provider by now,
// or the error of a component that is no longer usable.
func (s *Service) providerOf(ctx context.Context, c connection) (commands.Descriptor, oauth.Client, error) {
	now, _, err := s.Components.Usable(ctx, c.Tenant, c.Component)
	if err != nil {
		return now, oauth.Client{}, err
	}
	d, err := s.descriptorOf(ctx, c)
	if err == nil {
		now, err = s.Components.Effective(ctx, c.Tenant, c.Component, now)
	}
	switch {
	case err != nil:
		return d, oauth.Client{}, err
	case d.OAuth2 == nil || !d.OAuth2.SameProvider(now.OAuth2):
		return d, oauth.Client{}, ErrConnectionComponentChanged
	}
	if err := s.Clients.CheckConsentAudience(ctx, c.Tenant, c.Component, d); err != nil {
		return d, oauth.Client{}, err
	}
	client, err := s.Tokens.OAuthClient(ctx, c.Tenant, c.Component, d)
	return d, client, err
}

// descriptorOf returns the descriptor of a connection, with the endpoints of the tenant's OAuth client.
func (s *Service) descriptorOf(ctx context.Context, c connection) (commands.Descriptor, error) {
	d, err := s.Components.Descriptor(ctx, c.Component, c.Revision)
	if err != nil {
		return d, err
	}
	if d, err = s.Components.Effective(ctx, c.Tenant, c.Component, d); err == nil && c.Provider != "" && c.Provider != providerOfBlock(d.OAuth2) {
		err = ErrConnectionComponentChanged // the OAuth client supplies other endpoints than those that the user saw
	}
	return d, err
}

// providerOfBlock identifies the issuer and the endpoints of an oauth2 block.
func providerOfBlock(o *commands.OAuth2) string {
	if o == nil {
		return "none"
	}
	sum := sha256.Sum256(events.LengthPrefixed("credstream/provider/1", o.Issuer, o.AuthURI, o.TokenURI, o.RefreshURI, o.RevocationURI))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// authorizationServer returns the provider of a connection. The values for its templates are those of the
// other fields: the entered ones, or those that a reconnect keeps.
func (s *Service) authorizationServer(ctx context.Context, c connection, d commands.Descriptor, client oauth.Client) (oauth.Provider, error) {
	keys := c.keys
	if c.KeepKeys && c.Stage != stageRedeemed {
		var err error
		if keys, _, err = s.keptKeys(ctx, c, d); err != nil {
			return oauth.Provider{}, err
		}
	}
	return token.Provider(d.OAuth2, client, token.ProbeValues(d, keys))
}

// saveConnected verifies the keys and saves them, as a new credential or as the next
// version of the one that is connected again.
func (s *Service) saveConnected(ctx context.Context, call *service.Call, c connection, d commands.Descriptor, keys seal.Fields, version int) (service.Done, error) {
	var host credential.KnownHost
	if c.Credential != "" {
		state, err := s.Secrets.Live(ctx, c.Tenant, c.Credential, 0)
		if err != nil {
			return service.Done{}, err
		}
		host = credential.HostOf(state)
	}
	fields, known, err := s.Credentials.TryKeys(ctx, c.Tenant, c.Component, d, c.Revision, keys, host)
	if err != nil {
		return service.Done{}, err
	}
	if known.Tokens == nil {
		return service.Done{}, fmt.Errorf("provider of %s issued no tokens", c.Component)
	}
	known.Tokens.By, known.Tokens.User, known.Tokens.Connection = "connect", c.User, c.id
	if c.Credential != "" {
		return s.Credentials.Save(ctx, call, c.Credential, fields, func(secretID string) commands.Credential {
			known.SecretID = secretID
			return commands.ReplaceKeys{ID: c.Credential, Expected: version, Keys: known}
		})
	}
	id := c.target()
	if c.Name == "" {
		c.Name = credential.DefaultName(d.Title, id)
	}
	var step *commands.StepOfFlow
	if c.For != nil {
		step = &commands.StepOfFlow{Flow: c.For.Flow, Step: c.For.Step}
	}
	return s.Credentials.Save(ctx, call, id, fields, func(secretID string) commands.Credential {
		known.SecretID = secretID
		return commands.CreateCredential{
			ID: id, Component: c.Component, Name: c.Name, Workspace: c.Workspace, Keys: known, For: step,
		}
	})
}

// revokeUnsaved revokes tokens that were issued but not saved. If a credential that is
// connected again has other tokens, it does nothing: many providers would revoke the whole
// grant, and the credential may still depend on it.
func (s *Service) revokeUnsaved(ctx context.Context, c connection, d commands.Descriptor, client oauth.Client, refresh, access seal.Secret) {
	secret, hint := refresh, token.RefreshToken
	if secret.IsZero() {
		secret, hint = access, token.AccessToken
	}
	if secret.IsZero() || d.OAuth2.RevocationURI == "" {
		return
	}
	if c.Credential != "" {
		now, err := aggregates.Credential.Fresh(ctx, s.Log, aggregates.Credential.Stream(c.Tenant, c.Credential))
		if err != nil || now.Value.HoldsTokens() {
			return
		}
	}
	provider, err := s.authorizationServer(ctx, c, d, client)
	if err == nil {
		err = s.OAuth.Revoke(ctx, c.Tenant, provider, client, secret, hint)
	}
	if err != nil {
		s.Logger.WarnContext(ctx, "tokens that were not saved were not revoked at the provider", "tenant", c.Tenant, "connection", c.id, "err", err)
	}
}

// callOf returns a call on behalf of the caller that started a connection.
func callOf(c connection) *service.Call {
	return &service.Call{
		Tenant: c.Tenant, Principal: service.Principal{Actor: c.Actor}, Via: "http", CommandID: events.NewID(), Route: "oauth.complete",
	}
}

// starterMay returns nil if the caller that started a connection still has the permission, according to the log.
func (s *Service) starterMay(ctx context.Context, c connection) error {
	if c.Actor.Kind != "key" { // a user with an OIDC token, which cannot be revoked here
		return nil
	}
	p, err := s.Access.FreshPrincipal(ctx, c.Actor.ID)
	switch {
	case err != nil:
		return err
	case p.Expired(s.Kernel.Now()):
		return service.ErrKeyUnknown
	}
	call := callOf(c)
	call.Principal = p
	return s.Access.Authorize(ctx, call, c.permission())
}
