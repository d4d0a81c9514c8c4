package oauth

import (
	"regexp"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/verify"
)

// Rule says what answers of a token endpoint mean that grant nothing.
type Rule struct {
	Status  int // of the answer; 0: any
	When    verify.Condition
	Meaning Meaning
}

// Meaning is what an answer means.
type Meaning string

// The meanings.
const (
	MeansRevoked       Meaning = "revoked"       // the grant has ended
	MeansTransient     Meaning = "transient"     // a later try may succeed
	MeansRateLimited   Meaning = "rate_limited"  // as MeansTransient, for too many requests
	MeansTooEarly      Meaning = "too_early"     // the access token still lives, and the provider renews it nearer to its end only
	MeansMisconfigured Meaning = "misconfigured" // the OAuth client has to be mended
)

// knownRules are answers of well-known providers that the standard's error codes do not
// cover. They come after the component's own. docs/providers.md says where each is from.
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

// meaning is that of the first rule that an answer meets, "" of none.
func meaning(rules []Rule, status int, document []byte) Meaning {
	for _, r := range rules {
		if (r.Status == 0 || r.Status == status) && r.When.Holds(document) {
			return r.Meaning
		}
	}
	return ""
}

// means gives an error the outcome of a meaning.
func (e *Error) means(m Meaning) {
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
