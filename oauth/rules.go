package oauth

import (
	"regexp"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/verify"
)

// Rule gives a meaning to a token endpoint's responses without tokens.
type Rule struct {
	Status  int // of the response; 0: any
	When    verify.Condition
	Meaning Meaning
}

// Meaning is the meaning of a response without tokens.
type Meaning string

// The meanings.
const (
	MeansRevoked       Meaning = "revoked"       // the grant has ended
	MeansTransient     Meaning = "transient"     // a retry may succeed
	MeansRateLimited   Meaning = "rate_limited"  // as MeansTransient, for too many requests
	MeansTooEarly      Meaning = "too_early"     // the access token is still valid, and the provider renews it only shortly before it expires
	MeansMisconfigured Meaning = "misconfigured" // the OAuth client's settings must be corrected
)

// knownRules cover responses of well-known providers without a standard error code. The
// component's own rules take precedence. docs/providers.md says which of them were checked against a source.
var knownRules = []Rule{
	{400, equals("/status", `"BAD_REFRESH_TOKEN"`), MeansRevoked},                                             // HubSpot
	{0, matches("/error_description", `(?i)\balready being processed\b`), MeansTransient},                     // Salesforce
	{0, matches("/error_description", `(?i)\baccess[_ ]token (is )?not (yet )?expired\b`), MeansTooEarly},     // Exact Online
	{0, matches("/error_description", `(?i)\btoo many requests\b|\brate limit exceeded\b`), MeansRateLimited}, // Zoho
	{0, equals("/error/code", "190"), MeansRevoked},                                                           // Meta
	{0, equals("/errcode", "40030"), MeansRevoked},                                                            // WeChat
	{0, equals("/errcode", "42002"), MeansRevoked},                                                            // WeChat
	{0, equals("/errcode", "-1"), MeansTransient},                                                             // WeChat
}

func equals(pointer, value string) verify.Condition {
	return verify.Condition{Pointer: pointer, Equals: jsontext.Value(value)}
}

func matches(pointer, expression string) verify.Condition {
	return verify.Condition{Pointer: pointer, Matches: regexp.MustCompile(expression)}
}

// meaning returns the meaning of the first rule that matches a response, "" if none does.
func meaning(rules []Rule, status int, document []byte) Meaning {
	for _, r := range rules {
		if (r.Status == 0 || r.Status == status) && r.When.Holds(document) {
			return r.Meaning
		}
	}
	return ""
}

func (e *Error) setOutcome(m Meaning) {
	switch m {
	case MeansRevoked:
		e.Outcome = Revoked
	case MeansTransient:
		e.Outcome = Transient
	case MeansRateLimited:
		e.Outcome, e.limited = Transient, true
	case MeansTooEarly:
		e.Outcome = TooEarly
	case MeansMisconfigured:
		e.Outcome = ClientRefused
	}
}
