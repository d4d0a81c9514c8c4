package verify

import (
	"bytes"
	"regexp"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// Condition is a condition on one member of a JSON document. Exactly one of Equals, OneOf,
// Matches and Exists is set.
type Condition struct {
	Pointer string           // RFC 6901; "" is the whole document
	Equals  jsontext.Value   // a JSON value
	OneOf   []jsontext.Value // JSON values
	Matches *regexp.Regexp   // of the first 4 KiB of a string, or of a number as it is written
	Exists  *bool            // whether the member exists, even if it is null
}

// maxMatched bounds the bytes that a pattern is matched against: the author of the pattern,
// who may control the response too, determines the cost.
const maxMatched = 4 << 10

// Holds reports whether document meets the condition. A truncated document is read up to its
// end. If the member is not found, only Exists can hold.
func (c Condition) Holds(document []byte) bool {
	value, found := Member(document, c.Pointer)
	switch {
	case c.Exists != nil:
		return found == *c.Exists
	case !found:
		return false
	case c.Matches != nil:
		text, ok := Text(value)
		return ok && c.Matches.MatchString(text[:min(len(text), maxMatched)])
	case c.Equals != nil:
		return sameJSON(value, c.Equals)
	}
	return slices.ContainsFunc(c.OneOf, func(v jsontext.Value) bool { return sameJSON(value, v) })
}

// Text returns the content of a JSON string, or a number or boolean as it is written; ok is
// false for other values.
func Text(value jsontext.Value) (text string, ok bool) {
	switch value.Kind() {
	case '"':
		b, _ := jsontext.AppendUnquote(nil, value) // an error means that bad UTF-8 was replaced
		return string(b), true
	case '0', 't', 'f':
		return string(value), true
	}
	return "", false
}

func sameJSON(a, b jsontext.Value) bool {
	if a.Kind() != b.Kind() {
		return false
	}
	a, b = a.Clone(), b.Clone()
	return a.Canonicalize() == nil && b.Canonicalize() == nil && bytes.Equal(a, b)
}

// Member returns the value at a JSON pointer. It does not read the document beyond it.
func Member(document []byte, pointer string) (value jsontext.Value, found bool) {
	lenient := []jsontext.Options{jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)}
	dec := jsontext.NewDecoder(bytes.NewReader(document), lenient...)
	for token := range jsontext.Pointer(pointer).Tokens() {
		switch dec.PeekKind() {
		case '{':
			found = seekName(dec, token)
		case '[':
			found = seekIndex(dec, token)
		default:
			found = false
		}
		if !found {
			return nil, false
		}
	}
	v, err := dec.ReadValue()
	return v.Clone(), err == nil
}

func seekName(dec *jsontext.Decoder, name string) bool {
	if _, err := dec.ReadToken(); err != nil {
		return false
	}
	for dec.PeekKind() == '"' {
		token, err := dec.ReadToken()
		if err != nil {
			return false
		}
		if token.String() == name {
			return true
		}
		if dec.SkipValue() != nil {
			return false
		}
	}
	return false
}

func seekIndex(dec *jsontext.Decoder, index string) bool {
	n, err := strconv.ParseUint(index, 10, 16)
	if _, tokenErr := dec.ReadToken(); err != nil || tokenErr != nil {
		return false
	}
	for ; n > 0; n-- {
		if kind := dec.PeekKind(); kind == ']' || dec.SkipValue() != nil {
			return false
		}
	}
	return dec.PeekKind() != ']' && dec.PeekKind() != 0
}
