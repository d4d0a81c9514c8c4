package connect

import (
	"context"
	"errors"
	"net/netip"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
)

// Errors of a link.
var (
	ErrLinkUnknown = fault.New(fault.NotFound, "connect_link_unknown", "Unknown link: it has expired or was not copied completely. Request a new link.")
	ErrLinkUsed    = fault.New(fault.Precondition, "connect_link_used", "This link was already used. Request a new link.")
	ErrLinkExpired = fault.New(fault.Precondition, "connect_link_expired", "This link has expired: links are valid for ten minutes. Request a new link.")
)

// Errors of a callback that do not change a connection.
var (
	ErrStateMissing = fault.New(fault.Invalid, "connection_state_missing", "The provider's response does not identify exactly one connection.")
	ErrStateUnknown = fault.New(fault.NotFound, "connection_state_unknown", "The provider's response matches no pending connection.")
	ErrStateUsed    = fault.New(fault.Precondition, "connection_state_used", "The provider's response was already received. It is accepted only once.")
)

// Errors of a callback that end its connection. The code is not redeemed.
var (
	ErrConnectionContext = fault.New(fault.Denied, "connection_other_context",
		"The connection ended: the provider's response arrived at the address of another component or tenant.")
	ErrConnectionBrowser = fault.New(fault.Denied, "connection_other_browser",
		"The connection ended: the provider's response came from another browser than the one that opened the link.")
	ErrConnectionIssuer = fault.New(fault.Denied, "connection_issuer_mismatch",
		"The connection ended: the response is not from the provider that the component names.")
	ErrConnectionAnswer = fault.New(fault.Invalid, "connection_answer_invalid",
		"The connection ended: the provider's response must hold exactly one code or one error.")
	ErrConnectionDenied  = fault.New(fault.Precondition, "connection_denied", "You denied the access, so nothing was connected.")
	ErrConnectionRefused = fault.New(fault.Precondition, "connection_refused", "The provider denied the access, so nothing was connected.")
)

const (
	maxCode     = 8 << 10 // bytes
	maxProvider = 200     // characters of a provider's message to the user
)

// Browser returns the cookies of a browser for a connection, "" for a missing one: opened
// was set when it opened the link, starter when it requested the link.
type Browser func(connection string) (opened, starter string)

// browsers stands for a tenant in the admission control of browsers without a valid link or
// state. It is not a valid tenant name.
const browsers = "(browsers)"

// admitLink returns the connection of a link or state, "<id>.<secret>", or
// ErrConnectionNotFound if the secret does not match the fingerprint that in selects.
// Browsers have no key: the lookup counts against the share of their address, everything
// after it against that of the connection's tenant. If either is exhausted, it returns
// admission.ErrBusy and the link stays unused. The caller must call leave at the end.
func (s *Service) admitLink(ctx context.Context, from netip.Addr, link string, in func(connection) fingerprint) (c connection, admitted context.Context, leave func(), err error) {
	p, err := s.Kernel.Pass(ctx, admission.Caller{Tenant: browsers, Key: admission.Network(from).String()}, admission.Request, 0)
	if err != nil {
		return c, nil, nil, err
	}
	c, err = s.connection(ctx, ConnectionID(link))
	p.Leave()
	_, secret, _ := strings.Cut(link, ".")
	if err == nil && !in(c).of(secret) {
		err = ErrConnectionNotFound
	}
	if err == nil {
		p, err = s.Kernel.Pass(ctx, admission.Caller{Tenant: c.Tenant, Key: c.Actor.Kind + ":" + c.Actor.ID}, admission.Request, 0)
	}
	if err != nil {
		return connection{}, nil, nil, err
	}
	return c, p.With(ctx), p.Leave, nil
}

// OpenedLink is the result for a browser that has opened a link.
type OpenedLink struct {
	Connection string
	Tenant     string
	Cookie     string // for the browser, which presents it at the callback
	Location   string // URL of the provider; it contains the state and is a secret
}

// OpenLink consumes a link, "<id>.<secret>". The browser that opened it may open it
// again until it has returned from the provider, because users press Back and reload.
// Errors: ErrLinkUnknown, ErrLinkExpired, ErrLinkUsed, admission.ErrBusy, and those
// of the component.
func (s *Service) OpenLink(ctx context.Context, link string, from netip.Addr, browser Browser) (OpenedLink, error) {
	ctx, cancel := context.WithTimeout(ctx, service.MaxCall)
	defer cancel()
	c, ctx, leave, err := s.admitLink(ctx, from, link, func(c connection) fingerprint { return c.Link })
	switch {
	case errors.Is(err, ErrConnectionNotFound):
		return OpenedLink{}, ErrLinkUnknown
	case err != nil:
		return OpenedLink{}, err
	}
	defer leave()
	cookie, _ := browser(c.id)
	again := c.Stage == stageOpened && c.Opened.of(cookie)
	switch {
	case c.Stage != stageCreated && !again:
		return OpenedLink{}, ErrLinkUsed
	case c.expired(s.Kernel.Now()):
		return OpenedLink{}, ErrLinkExpired
	}
	d, client, err := s.providerOf(ctx, c)
	if err != nil {
		return OpenedLink{}, err
	}
	provider, err := s.authorizationServer(ctx, c, d, client)
	if err != nil {
		return OpenedLink{}, err
	}
	if !again {
		cookie = newSecret()
		c.Opened, c.Stage = fingerprintOf(cookie), stageOpened
		c.Expires = s.Kernel.Now().Add(stepTime).UTC().Truncate(time.Second)
	}
	state := newSecret()
	c.State, c.verifier, c.Redirect = fingerprintOf(state), oauth.NewVerifier(), s.redirectURI(c.Tenant, c.Component)
	saved, err := s.save(ctx, &c)
	switch {
	case err != nil:
		return OpenedLink{}, err
	case !saved:
		return OpenedLink{}, ErrLinkUsed
	}
	return OpenedLink{
		Connection: c.id, Tenant: c.Tenant, Cookie: cookie,
		Location: s.OAuth.AuthorizationURL(provider, client.ID, c.Redirect, c.id+"."+state, c.verifier),
	}, nil
}

// Callback is the request of a browser that returns from a provider.
type Callback struct {
	Tenant, Component string     // of the path
	Query             string     // unparsed
	From              netip.Addr // of the browser
	Browser           Browser
}

// Returned is the result for a browser that has returned from a provider.
type Returned struct {
	Connection string       // "" when unknown
	Location   string       // where to redirect the browser; it may contain a secret. "": nowhere
	Confirm    string       // code that the user gives to the starter; "" when there is nothing to confirm
	Done       service.Done // the saved credential, if this browser requested the link
}

// ReturnConnection processes a provider's response. It redeems the code only if the
// browser has requested the link itself; else the code waits, encrypted, until the
// starter confirms the user. An error may come with a Location,
// which reports it to the program that started the connection.
func (s *Service) ReturnConnection(ctx context.Context, cb Callback) (Returned, error) {
	ctx, cancel := context.WithTimeout(ctx, service.MaxCall)
	defer cancel()
	query, err := url.ParseQuery(cb.Query)
	state := query["state"]
	if err != nil || len(state) != 1 || !strings.Contains(state[0], ".") {
		return Returned{}, ErrStateMissing
	}
	c, ctx, leave, err := s.admitLink(ctx, cb.From, state[0], func(c connection) fingerprint { return c.State })
	switch {
	case errors.Is(err, ErrConnectionNotFound):
		return Returned{}, ErrStateUnknown
	case err != nil:
		return Returned{}, err
	}
	defer leave()
	opened, starter := cb.Browser(c.id)
	switch {
	case c.Stage != stageOpened:
		return Returned{Connection: c.id}, ErrStateUsed
	case c.expired(s.Kernel.Now()):
		return Returned{Connection: c.id}, ErrConnectionExpired
	case cb.Tenant != c.Tenant || cb.Component != c.Component:
		return Returned{}, s.abort(ctx, c, ErrConnectionContext)
	case !c.Opened.of(opened):
		return Returned{}, s.abort(ctx, c, ErrConnectionBrowser)
	}
	if err := s.checkIssuer(ctx, c, query["iss"]); errors.Is(err, ErrConnectionIssuer) {
		return s.abortAndRedirect(ctx, c, ErrConnectionIssuer, "")
	} else if err != nil {
		return Returned{Connection: c.id}, err
	}
	code, refusal, says := parseResponse(query)
	if refusal != nil {
		return s.abortAndRedirect(ctx, c, refusal, says)
	}
	d, err := s.descriptorOf(ctx, c)
	if err != nil {
		return Returned{Connection: c.id}, err
	}
	c.code, c.Stage, c.keys = code, stageReturned, captureCallback(d.OAuth2, query, c.keys)
	c.Expires = s.Kernel.Now().Add(stepTime).UTC().Truncate(time.Second)
	back, confirm := Returned{Connection: c.id}, ""
	startedInThisBrowser := c.ReturnTo == "" && c.Starter.of(starter)
	switch {
	case startedInThisBrowser:
		c.Stage, c.Holder = stageRedeeming, s.InstanceID
		if err := s.Connections.Mark(ctx, c.id); err != nil {
			return Returned{Connection: c.id}, err
		}
		defer s.redeemings.begin(c.id)()
	case c.ReturnTo != "":
		confirm = newSecret()
		back.Location = withParameters(c.ReturnTo, "connection", c.id, "confirm", confirm)
	default:
		confirm = newSecret()[:confirmSize]
		back.Confirm = confirm
	}
	if confirm != "" {
		c.Confirm = fingerprintOf(confirm)
	}
	saved, err := s.save(ctx, &c)
	switch {
	case err != nil:
		return Returned{Connection: c.id}, err
	case !saved:
		return Returned{Connection: c.id}, ErrStateUsed
	case !startedInThisBrowser:
		return back, nil
	}
	if err := s.starterMay(ctx, c); err != nil {
		return back, s.abort(ctx, c, fault.Of(err))
	}
	back.Done, err = s.finish(ctx, callOf(c), c, false)
	return back, err
}

// checkIssuer compares the issuer of the response with the expected one (RFC 9207, section 2.4).
func (s *Service) checkIssuer(ctx context.Context, c connection, issuers []string) error {
	d, err := s.descriptorOf(ctx, c)
	switch {
	case err != nil:
		return err
	case d.OAuth2 == nil, len(issuers) > 1,
		len(issuers) == 0 && d.OAuth2.RequireIssuer,
		len(issuers) == 1 && d.OAuth2.Issuer != "" && issuers[0] != d.OAuth2.Issuer:
		return ErrConnectionIssuer
	}
	return nil
}

// parseResponse returns the code of a provider's response, or the reason why there is none and
// the provider's message about it (RFC 6749, section 4.1.2).
func parseResponse(query url.Values) (code seal.Secret, refusal *fault.Error, says string) {
	codes, refusals := query["code"], query["error"]
	switch {
	case len(codes)+len(refusals) != 1:
		return code, ErrConnectionAnswer, ""
	case len(refusals) == 1:
		says = query.Get("error_description")
		if refusals[0] == "access_denied" {
			return code, ErrConnectionDenied, says
		}
		if says == "" {
			says = refusals[0]
		}
		return code, ErrConnectionRefused, says
	case len(codes[0]) > maxCode:
		return code, ErrConnectionAnswer.Withf("The connection ended: the provider's code has %d bytes. At most %d are accepted.", len(codes[0]), maxCode), ""
	case codes[0] == "" || strings.ContainsFunc(codes[0], func(r rune) bool { return r < ' ' || r > '~' }):
		return code, ErrConnectionAnswer, ""
	}
	return seal.NewSecret([]byte(codes[0])), nil, ""
}

// abortAndRedirect aborts a connection that this browser opened, and redirects the browser
// to where the connection was started. The provider's message is only for the
// user: it is in the error, and is not stored.
func (s *Service) abortAndRedirect(ctx context.Context, c connection, why *fault.Error, says string) (Returned, error) {
	back := Returned{Connection: c.id}
	err := s.abort(ctx, c, why)
	if !errors.Is(err, why) {
		return back, err
	}
	if c.ReturnTo != "" {
		back.Location = withParameters(c.ReturnTo, "connection", c.id, "error", why.Code)
	}
	if says = plainText(says); says != "" {
		why = why.Withf("%s The provider says: %q", why.Msg, says)
	}
	return back, why
}

// plainText is foreign text in a form that can be shown to a user: one line,
// limited in length, without control or direction characters.
func plainText(text string) string {
	text = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, ""), func(r rune) bool {
		return unicode.IsSpace(r) || !unicode.IsPrint(r)
	}), " ")
	if runes := []rune(text); len(runes) > maxProvider {
		text = string(runes[:maxProvider-1]) + "…"
	}
	return text
}
