package connect

import (
	"net/url"
)

// AnswerIn reads a provider's answer: the length of its code and the code of its
// refusal.
func AnswerIn(query url.Values) (size int, refusal, says string) {
	code, refused, says := parseResponse(query)
	if refused != nil {
		refusal = refused.Code
	}
	return code.Len(), refusal, plainText(says)
}

// ReturnsTo reports whether a browser may be sent back to an address, where these
// origins are allowed.
func ReturnsTo(address string, origins ...string) bool {
	s := &Service{Deps: Deps{ReturnTo: origins}}
	return s.checkReturnTo(address) == nil
}

// WithParameters adds parameters to an address.
func WithParameters(address string, parameters ...string) string {
	return withParameters(address, parameters...)
}
