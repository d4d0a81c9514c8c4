package oauth

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/credstream/credstream/seal"
)

// maxRetryAfter limits the Retry-After of a provider.
const maxRetryAfter = time.Hour

// Error is a failed request to a provider. It holds no secret: Code is one of a closed list,
// and the provider's message that Says quotes has passed Clean.
type Error struct {
	Outcome    Outcome
	Status     int           // of the response, 0 if there was none
	Code       string        // of RFC 6749 or one of its extensions, "" if the response has no known one
	RetryAfter time.Duration // the least time to wait; 0 if unknown
	Sent       bool          // the request may have reached the provider
	Busy       bool          // nothing was sent, because no request slot became free in time
	Final      bool          // of Revoked: the provider's response explicitly says that the grant was revoked

	step    step
	cause   cause
	limited bool   // the provider's rate limit was exceeded, whatever the status
	message string // the provider's own, cleaned; "" for none
}

// step is the operation that failed.
type step string

const (
	redeeming  step = "redeeming a code"
	refreshing step = "refreshing a token"
	acquiring  step = "acquiring a token"
	revoking   step = "revoking a token"
)

// cause is why there is no usable response; "" if the response itself says it. The outcomes
// of verify are causes too, under their own names.
type cause string

const (
	circuitOpen cause = "circuit_open" // the circuit breaker is open
	busy        cause = "busy"         // no request slot became free in time
	redirect    cause = "redirect"     // status 3xx
	truncated   cause = "truncated"    // a success with a truncated body
	oversize    cause = "oversize"     // a success with too large a body
	noToken     cause = "no_token"     // a success without a token
	noURI       cause = "no_uri"       // no valid endpoint URI

	noRefresh cause = "no_refresh_token"
)

// Error implements error, for logs. Says is for people.
func (e *Error) Error() string {
	var b strings.Builder
	if e.step != "" {
		b.WriteString(string(e.step) + ": ")
	}
	b.WriteString(string(e.Outcome))
	if e.Status != 0 {
		fmt.Fprintf(&b, ", status %d", e.Status)
	}
	for _, word := range []string{e.Code, string(e.cause)} {
		if word != "" {
			b.WriteString(", " + word)
		}
	}
	return b.String()
}

// MaySpend reports whether the provider may have consumed the code or the refresh token
// although no usable response arrived. Do not repeat the request then.
func (e *Error) MaySpend() bool {
	return e.Sent && (e.Outcome == Transient || e.Outcome == Malformed) && e.Status != http.StatusTooManyRequests && !e.limited
}

var causeSentences = map[cause]string{
	circuitOpen:      "The provider's recent responses were errors, so requests to it are paused for a while.",
	busy:             "Too many requests to the provider are in flight.",
	redirect:         "The provider's token endpoint redirects to another address (status %d). Secrets are not sent there: correct the token_uri in the component.json.",
	truncated:        "The provider's response was incomplete.",
	oversize:         "The provider's response was too large. Check the token_uri in the component.json.",
	noToken:          "The provider's response contained no token (status %d). Check the token_uri in the component.json.",
	noURI:            "The component names no usable endpoint of the provider for this operation.",
	noRefresh:        "There is no refresh token, so the authorization cannot be renewed. Connect the account again.",
	"address_denied": "The provider's host was not found, or the service may not connect to its address or port.",
	"closed":         "The provider closed the connection without a response.",
	"protocol":       "The provider's response was not HTTP.",
	"refused":        "The provider refused the connection.",
	"timeout":        "The provider did not answer in time.",
	"tls":            "No secure connection to the provider: its certificate is not trusted, is for another name or has expired, or it does not support TLS 1.2 or newer.",
	"too_large":      "The provider's response was too large.",
	"unreachable":    "The provider is unreachable from this service.",
}

// Says explains the error, and what to do, to the person who manages the credential. Of the
// provider's response it quotes a known error code and the cleaned message.
func (e *Error) Says() string {
	text := causeSentences[e.cause]
	switch {
	case text == "":
		text = e.explain()
	case strings.Contains(text, "%d"):
		text = fmt.Sprintf(text, e.Status)
	}
	if e.Outcome == Transient || e.Outcome == Malformed {
		text += e.step.retrySentence()
	}
	if e.message != "" && e.Outcome != Transient {
		text += fmt.Sprintf(" The provider says: %q", e.message)
	}
	if e.Code != "" {
		text += " Provider error: " + e.Code + "."
	}
	return text
}

// retrySentence says who retries.
func (s step) retrySentence() string {
	switch s {
	case refreshing, acquiring:
		return " The service will retry."
	case redeeming:
		return " Try to connect again later."
	}
	return " The grant may still be active at the provider: revoke it there."
}

func (e *Error) explain() string {
	switch {
	case e.Outcome == Revoked && e.step == redeeming:
		return "The provider rejected the authorization code: it was already used, has expired, or belongs to another client. Connect again."
	case e.Outcome == Revoked:
		return "The provider no longer accepts this authorization: it was revoked, has expired, or the account was changed. Connect the account again."
	case e.Outcome == ClientRefused && e.Code == "unauthorized_client":
		return "The provider does not allow this OAuth client to do this. Check the client's settings at the provider."
	case e.Outcome == ClientRefused:
		return "The provider rejected the OAuth client's id or secret. Check the OAuth client here and at the provider."
	case e.Outcome == TooEarly:
		return "The provider renews the access token only shortly before it expires. The current token stays valid until then."
	case e.Status == http.StatusTooManyRequests, e.limited:
		return "The provider limits the rate of requests. The account is not affected."
	case e.Outcome == Transient && e.Status != 0:
		return fmt.Sprintf("The provider reports an error of its own (status %d). The account is not affected.", e.Status)
	case e.Outcome == Transient:
		return "The provider cannot be reached."
	case e.Outcome == Malformed:
		return "The provider's response could not be parsed."
	case e.Code == "invalid_scope":
		return "The provider does not grant the scopes that the component requests."
	case e.Code == "access_denied":
		return "The provider denies this account or client the requested access."
	case e.Code == "unsupported_token_type":
		return "The provider does not revoke this type of token."
	case e.Code != "":
		return "The provider rejected the request. Check the oauth2 block of the component.json and the OAuth client's settings."
	}
	return fmt.Sprintf("The provider rejected the request (status %d). Check the token_uri in the component.json.", e.Status)
}

// knownCode is the meaning of a provider's error code.
type knownCode struct {
	standard string // the equivalent code of the standard
	outcome  Outcome
}

// knownCodes are the error codes that credstream understands. Others are never repeated in an
// error or a log.
var knownCodes = map[string]knownCode{
	// RFC 6749, section 5.2.
	"invalid_request":        {"invalid_request", Refused},
	"invalid_client":         {"invalid_client", ClientRefused},
	"invalid_grant":          {"invalid_grant", Revoked},
	"unauthorized_client":    {"unauthorized_client", ClientRefused},
	"unsupported_grant_type": {"unsupported_grant_type", Refused},
	"invalid_scope":          {"invalid_scope", Refused},
	// RFC 6749, section 4.1.2.1: codes of the authorization endpoint, which some token
	// endpoints send too.
	"access_denied":             {"access_denied", Refused},
	"unsupported_response_type": {"unsupported_response_type", Refused},
	"server_error":              {"server_error", Transient},
	"temporarily_unavailable":   {"temporarily_unavailable", Transient},
	// RFC 7009, section 2.2.1; RFC 8707, section 2; RFC 6750, section 3.1.
	"unsupported_token_type": {"unsupported_token_type", Refused},
	"invalid_target":         {"invalid_target", Refused},
	"invalid_token":          {"invalid_token", Refused},
	// OpenID Connect Core 1.0, section 3.1.2.6: the person must authorize again.
	"interaction_required": {"interaction_required", Revoked},
	"login_required":       {"login_required", Revoked},
	"consent_required":     {"consent_required", Revoked},
	// GitHub and Slack send these instead, with status 200.
	"bad_refresh_token":            {"invalid_grant", Revoked},
	"bad_verification_code":        {"invalid_grant", Revoked},
	"invalid_refresh_token":        {"invalid_grant", Revoked},
	"invalid_code":                 {"invalid_grant", Revoked},
	"code_already_used":            {"invalid_grant", Revoked},
	"token_revoked":                {"invalid_grant", Revoked},
	"incorrect_client_credentials": {"invalid_client", ClientRefused},
	"invalid_client_id":            {"invalid_client", ClientRefused},
	"bad_client_secret":            {"invalid_client", ClientRefused},
	"ratelimited":                  {"temporarily_unavailable", Transient},
	"internal_error":               {"server_error", Transient},
	"fatal_error":                  {"server_error", Transient},
}

// classify returns the error of a response without tokens. It keeps a known error code and
// the provider's message, without any of secrets.
func (p Provider) classify(status int, h http.Header, a response, secrets []seal.Secret) *Error {
	e, code := &Error{Status: status, Sent: true}, a.code()
	known, isKnown := knownCodes[strings.ToLower(code)]
	unavailable := status/100 == 5 || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout || status == http.StatusTooEarly
	declared, builtIn := meaning(p.Answers, status, a.document()), Meaning("")
	if !unavailable {
		builtIn = meaning(knownRules, status, a.document())
	}
	switch {
	case declared != "":
		e.setOutcome(declared)
	// The error code of a server that is unavailable says nothing reliable about the grant.
	case unavailable:
		e.Outcome = Transient
		if known.outcome == Transient {
			e.Code = known.standard
		}
	case status == http.StatusMovedPermanently, status == http.StatusPermanentRedirect:
		e.Outcome, e.cause = Refused, redirect
	case status/100 == 3: // for example to a maintenance page
		e.Outcome, e.cause = Transient, redirect
	case builtIn != "":
		e.setOutcome(builtIn)
	case isKnown:
		e.Outcome, e.Code = known.outcome, known.standard
	case status == http.StatusUnauthorized:
		e.Outcome = ClientRefused
	case status/100 == 2 && code == "":
		e.Outcome, e.cause = Malformed, noToken
	case h.Get("Retry-After") != "": // for example a 403 for too many requests
		e.Outcome = Transient
	default:
		e.Outcome = Refused
	}
	if e.Outcome == Transient {
		e.RetryAfter = retryAfter(h, time.Now())
	}
	if e.cause == "" {
		e.message = a.message(secrets)
	}
	e.Final = e.Outcome == Revoked && (code == "token_revoked" || strings.Contains(strings.ToLower(e.message), "revoked"))
	return e
}

// retryAfter parses Retry-After, seconds or a date (RFC 9110, section 10.2.3). It returns 0
// through maxRetryAfter, and 0 if there is none.
func retryAfter(h http.Header, now time.Time) time.Duration {
	value := h.Get("Retry-After")
	if d, ok := seconds(value); ok {
		return min(d, maxRetryAfter)
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), maxRetryAfter)
}
