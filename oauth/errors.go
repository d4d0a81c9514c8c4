package oauth

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/credstream/credstream/seal"
)

// maxRetryAfter is the longest time a provider can make us wait by one answer.
const maxRetryAfter = time.Hour

// Error says why a provider granted nothing. Code comes from a closed list, and the
// sentence of the provider's that Says quotes has passed Clean.
type Error struct {
	Outcome    Outcome
	Status     int           // of the answer, 0 when there was none
	Code       string        // of RFC 6749 or one of its extensions, "" when the answer has none that is known
	RetryAfter time.Duration // how long to wait at least; 0 when not known
	Sent       bool          // the request may have reached the provider
	Busy       bool          // nothing was sent, since other requests were in the way too long: it says nothing of the provider
	Final      bool          // of Revoked: the provider says in so many words that the grant was revoked

	step     step
	cause    cause
	limited  bool   // for too many requests, whatever the status
	sentence string // the provider's own, cleaned; "" for none
}

// step is what was asked of the provider.
type step string

const (
	redeeming  step = "redeeming a code"
	refreshing step = "refreshing a token"
	acquiring  step = "acquiring a token"
	revoking   step = "revoking a token"
)

// cause is why there was no answer, or none that could be used; "" when the
// answer itself says it. Those of verify stand here by their own names.
type cause string

const (
	resting  cause = "resting"  // the provider is left alone for now
	busy     cause = "busy"     // too many other requests
	redirect cause = "redirect" // a 3xx
	cut      cause = "cut"      // a success that broke off
	oversize cause = "oversize" // a success with too large a body
	noToken  cause = "no_token" // a success without a token
	noURI    cause = "no_uri"   // nowhere to send the request

	noRefresh cause = "no_refresh_token" // nothing to refresh with
)

// Error implements error. It is for logs; Says is for people.
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

// MaySpend reports whether the provider may have used up a code or a refresh token, without
// a word of what came of it: so the request is not repeated.
func (e *Error) MaySpend() bool {
	return e.Sent && (e.Outcome == Transient || e.Outcome == Malformed) && e.Status != http.StatusTooManyRequests && !e.limited
}

// says are the sentences for causes.
var says = map[cause]string{
	resting:          "The provider's recent responses were errors, so requests to it are paused for a while.",
	busy:             "Too many requests to the provider are in flight.",
	redirect:         "The provider's token endpoint redirects to another address (status %d). Secrets are not sent there: correct the token_uri in the component.json.",
	cut:              "The provider's response was incomplete.",
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

// Says tells the person who looks after the credential, in a plain sentence or
// two, what is the matter and what to do. Of what the provider wrote it holds the error
// code, where that is a known one, and the sentence, cleaned.
func (e *Error) Says() string {
	text := says[e.cause]
	switch {
	case text == "":
		text = e.explain()
	case strings.Contains(text, "%d"):
		text = fmt.Sprintf(text, e.Status)
	}
	if e.Outcome == Transient || e.Outcome == Malformed {
		text += e.step.again()
	}
	if e.sentence != "" && e.Outcome != Transient {
		text += fmt.Sprintf(" The provider says: %q", e.sentence)
	}
	if e.Code != "" {
		text += " Provider error: " + e.Code + "."
	}
	return text
}

// again says how the next try comes about.
func (s step) again() string {
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
		return "The provider renews the access token nearer to its end only. The token in use stays valid until then."
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

// verdict is what an error code stands for.
type verdict struct {
	code    string // the standard's own word for it
	outcome Outcome
}

// verdicts are the codes that are known; what is not here is not repeated.
var verdicts = map[string]verdict{
	// RFC 6749, section 5.2.
	"invalid_request":        {"invalid_request", Refused},
	"invalid_client":         {"invalid_client", ClientRefused},
	"invalid_grant":          {"invalid_grant", Revoked},
	"unauthorized_client":    {"unauthorized_client", ClientRefused},
	"unsupported_grant_type": {"unsupported_grant_type", Refused},
	"invalid_scope":          {"invalid_scope", Refused},
	// RFC 6749, section 4.1.2.1: of the authorization endpoint, and in use here, too.
	"access_denied":             {"access_denied", Refused},
	"unsupported_response_type": {"unsupported_response_type", Refused},
	"server_error":              {"server_error", Transient},
	"temporarily_unavailable":   {"temporarily_unavailable", Transient},
	// RFC 7009, section 2.2.1; RFC 8707, section 2; RFC 6750, section 3.1.
	"unsupported_token_type": {"unsupported_token_type", Refused},
	"invalid_target":         {"invalid_target", Refused},
	"invalid_token":          {"invalid_token", Refused},
	// OpenID Connect Core 1.0, section 3.1.2.6: the person has to come back.
	"interaction_required": {"interaction_required", Revoked},
	"login_required":       {"login_required", Revoked},
	"consent_required":     {"consent_required", Revoked},
	// What GitHub and Slack say instead, with status 200.
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

// judge classifies an answer that grants nothing. Of what it says it keeps an error code
// that is known, and its sentence without any of secrets.
func (p Provider) judge(status int, h http.Header, a answer, secrets []seal.Secret) *Error {
	e, code := &Error{Status: status, Sent: true}, a.code()
	known, isKnown := verdicts[strings.ToLower(code)]
	inTrouble := status/100 == 5 || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout || status == http.StatusTooEarly
	declared, builtIn := meaning(p.Answers, status, a.document()), Meaning("")
	if !inTrouble {
		builtIn = meaning(knownRules, status, a.document())
	}
	switch {
	case declared != "":
		e.means(declared)
	// What a server says while it is in trouble is not to be believed of a grant.
	case inTrouble:
		e.Outcome = Transient
		if known.outcome == Transient {
			e.Code = known.code
		}
	case status == http.StatusMovedPermanently, status == http.StatusPermanentRedirect:
		e.Outcome, e.cause = Refused, redirect
	case status/100 == 3: // a page for the time of maintenance, say
		e.Outcome, e.cause = Transient, redirect
	case builtIn != "":
		e.means(builtIn)
	case isKnown:
		e.Outcome, e.Code = known.outcome, known.code
	case status == http.StatusUnauthorized:
		e.Outcome = ClientRefused
	case status/100 == 2 && code == "":
		e.Outcome, e.cause = Malformed, noToken
	case h.Get("Retry-After") != "": // a 403, say, for too many requests
		e.Outcome = Transient
	default:
		e.Outcome = Refused
	}
	if e.Outcome == Transient {
		e.RetryAfter = retryAfter(h, time.Now())
	}
	if e.cause == "" {
		e.sentence = a.sentence(secrets)
	}
	e.Final = e.Outcome == Revoked && (code == "token_revoked" || strings.Contains(strings.ToLower(e.sentence), "revoked"))
	return e
}

// retryAfter is when an answer lets us come again: seconds or a date (RFC 9110,
// section 10.2.3), at most maxRetryAfter from now; 0 when it does not say.
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
