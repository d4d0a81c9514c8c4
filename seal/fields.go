package seal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/fault"
)

// The limits of one Fields.
const (
	MaxFieldsSize  = 64 << 10 // bytes of JSON
	MaxFieldsDepth = 32       // nested objects and arrays, with the outermost one
)

// Errors of ParseFields. They never quote the input.
var (
	// ErrKeysMalformed refuses input that is not one JSON object with unique, printable names,
	// in valid UTF-8 and without NUL.
	ErrKeysMalformed = fault.New(fault.Invalid, "keys_malformed", "The keys must be one JSON object.")
	// ErrKeysTooLarge refuses an object that exceeds MaxFieldsSize or MaxFieldsDepth.
	ErrKeysTooLarge = fault.New(fault.Invalid, "keys_too_large", "The keys are limited to 64 KiB and a nesting depth of 32.")
)

// Fields is a set of named secret values, such as the keys of a credential. A value is any
// JSON; all of it is secret, but the names are not. Like a Secret, it never prints its content.
// The zero Fields is empty.
type Fields struct {
	clear func() map[string]jsontext.Value
}

// ParseFields parses a JSON object (RFC 8259, in the strict form of RFC 7493: unique names,
// valid UTF-8). It keeps each value byte for byte. Errors: ErrKeysMalformed, ErrKeysTooLarge.
func ParseFields(jsonObject []byte) (Fields, error) {
	if len(jsonObject) > MaxFieldsSize {
		return Fields{}, ErrKeysTooLarge
	}
	if err := checkObject(jsonObject); err != nil {
		return Fields{}, err
	}
	dec := jsontext.NewDecoder(bytes.NewReader(jsonObject))
	if _, err := dec.ReadToken(); err != nil {
		return Fields{}, malformed(err)
	}
	values := map[string]jsontext.Value{}
	for dec.PeekKind() == '"' {
		name, err := dec.ReadToken()
		if err != nil {
			return Fields{}, malformed(err)
		}
		key := name.String() // copy it now: the token is only valid until the next read
		if key == "" || strings.ContainsFunc(key, unicode.IsControl) {
			return Fields{}, ErrKeysMalformed.Withf("A name in the keys is empty or has a control character.")
		}
		value, err := dec.ReadValue()
		if err != nil {
			return Fields{}, malformed(err)
		}
		values[key] = value.Clone()
	}
	return Fields{clear: func() map[string]jsontext.Value { return values }}, nil
}

// checkObject validates b, except that names are printable.
func checkObject(b []byte) error {
	dec := jsontext.NewDecoder(bytes.NewReader(b))
	if dec.PeekKind() != '{' {
		return ErrKeysMalformed
	}
	for ended := false; ; ended = dec.StackDepth() == 0 {
		tok, err := dec.ReadToken()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return malformed(err)
		case ended:
			return ErrKeysMalformed.Withf("There is more than one JSON value.")
		case dec.StackDepth() > MaxFieldsDepth:
			return ErrKeysTooLarge
		case tok.Kind() == '"' && strings.IndexByte(tok.String(), 0) >= 0:
			return ErrKeysMalformed.Withf("The keys have a NUL character.")
		}
	}
}

// malformed replaces the decoder's error, which quotes the input.
func malformed(err error) error {
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return ErrKeysMalformed.Withf("A name appears more than once in the keys.")
	}
	return ErrKeysMalformed.Withf("The keys are not valid JSON.")
}

func (f Fields) values() map[string]jsontext.Value {
	if f.clear == nil {
		return nil
	}
	return f.clear()
}

// Names returns the sorted names. They are not secret.
func (f Fields) Names() []string { return slices.Sorted(maps.Keys(f.values())) }

// Get returns the JSON of one value, byte for byte.
func (f Fields) Get(name string) (Secret, bool) {
	v, ok := f.values()[name]
	if !ok {
		return Secret{}, false
	}
	return NewSecret(v.Clone()), true
}

// Text returns one value as text for templates: a string without quotes and escapes, a number
// or boolean as written. It returns false for objects, arrays, null and absent names.
func (f Fields) Text(name string) (Secret, bool) {
	v, ok := f.values()[name]
	if !ok {
		return Secret{}, false
	}
	switch v.Kind() {
	case '"':
		text, err := jsontext.AppendUnquote(nil, v)
		return NewSecret(text), err == nil
	case '0', 't', 'f':
		return NewSecret(v.Clone()), true
	}
	return Secret{}, false
}

// Object returns a value that is an object, as Fields. It returns false if it is absent or no
// object.
func (f Fields) Object(name string) (Fields, bool) {
	v, ok := f.values()[name]
	if !ok {
		return Fields{}, false
	}
	members, err := ParseFields(v)
	return members, err == nil
}

// With returns a copy in which one value, given as JSON, is added or replaced.
func (f Fields) With(name string, value Secret) Fields {
	values := maps.Clone(f.values())
	if values == nil {
		values = map[string]jsontext.Value{}
	}
	values[name] = slices.Clone(value.bytes())
	return Fields{clear: func() map[string]jsontext.Value { return values }}
}

// Without returns a copy without the named values.
func (f Fields) Without(names ...string) Fields {
	values := maps.Clone(f.values())
	for _, name := range names {
		delete(values, name)
	}
	return Fields{clear: func() map[string]jsontext.Value { return values }}
}

// Over returns the values of f, and those of base that f does not have.
func (f Fields) Over(base Fields) Fields {
	values := maps.Clone(base.values())
	if values == nil {
		values = map[string]jsontext.Value{}
	}
	maps.Copy(values, f.values())
	return Fields{clear: func() map[string]jsontext.Value { return values }}
}

// Marshal returns a JSON object for ParseFields: names are sorted, values are unchanged byte
// for byte.
func (f Fields) Marshal() Secret {
	values := f.values()
	b := []byte{'{'}
	for i, name := range f.Names() {
		if i > 0 {
			b = append(b, ',')
		}
		b, _ = jsontext.AppendQuote(b, name) // fails only for invalid UTF-8, which ParseFields refused
		b = append(append(b, ':'), values[name]...)
	}
	return NewSecret(append(b, '}'))
}

// String returns Hidden.
func (f Fields) String() string { return Hidden }

// GoString returns Hidden.
func (f Fields) GoString() string { return Hidden }

// Format writes Hidden for every verb and flag.
func (f Fields) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, Hidden) }

// LogValue returns Hidden.
func (f Fields) LogValue() slog.Value { return slog.StringValue(Hidden) }

// MarshalText returns Hidden.
func (f Fields) MarshalText() ([]byte, error) { return []byte(Hidden), nil }

// MarshalJSON returns Hidden as a JSON string. Use Marshal for the content.
func (f Fields) MarshalJSON() ([]byte, error) { return []byte(`"` + Hidden + `"`), nil }

// GobEncode always fails: it could not encode the secrets.
func (f Fields) GobEncode() ([]byte, error) { return nil, errNotEncoded }

// UnmarshalText always fails: use ParseFields.
func (f *Fields) UnmarshalText([]byte) error { return errNotDecoded }

// UnmarshalJSON always fails: use ParseFields.
func (f *Fields) UnmarshalJSON([]byte) error { return errNotDecoded }

// GobDecode always fails.
func (f *Fields) GobDecode([]byte) error { return errNotDecoded }
