package secrets

import (
	"bytes"
	"context"
	"encoding/base64"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
)

// ErrKeysMasked rejects the mask as a value.
var ErrKeysMasked = fault.New(fault.Invalid, "keys_masked",
	"The mask ******** is not a value. Enter the value itself.")

// Mask replaces a secret value in responses, and is rejected as a value.
const Mask = "********"

// Keys is the object of clear values in a request. It cannot be printed.
type Keys struct{ seal.Fields }

// UnmarshalJSON implements json.Unmarshaler. Its errors do not quote the input.
func (k *Keys) UnmarshalJSON(b []byte) error {
	fields, err := seal.ParseFields(b)
	k.Fields = fields
	return service.PointAt(err, "/keys")
}

// CheckMask rejects the mask as a value at any depth, however it is escaped.
func CheckMask(keys seal.Fields) error {
	for _, name := range keys.Names() {
		v, _ := keys.Get(name)
		for in := jsontext.NewDecoder(bytes.NewReader(v.Reveal())); ; {
			token, err := in.ReadToken()
			if err != nil { // the end: the value was parsed before
				break
			}
			if token.Kind() == '"' && token.String() == Mask {
				return ErrKeysMasked.At("/keys/" + service.EscapePointer(name))
			}
		}
	}
	return nil
}

// maxShape bounds a stored Shape, in bytes.
const maxShape = 8 << 10

// Shape returns the structure of nested keys as events.CredentialTyped stores it: the names,
// without values. A list counts as one value. It returns "" if no value is nested, or the names
// are too long.
func Shape(keys seal.Fields) string {
	shape, nested, ok := shapeOf(keys)
	if !nested || !ok || len(shape) > maxShape {
		return ""
	}
	return string(shape)
}

func shapeOf(keys seal.Fields) (b []byte, nested, ok bool) {
	b = []byte{'{'}
	for i, name := range keys.Names() {
		if i > 0 {
			b = append(b, ',')
		}
		b, _ = jsontext.AppendQuote(b, name) // valid UTF-8: it was parsed
		b = append(b, ':')
		inner, is := keys.Object(name)
		if !is {
			if v, _ := keys.Get(name); bytes.HasPrefix(v.Reveal(), []byte("{")) {
				return nil, true, false // a name that is invalid at the top level
			}
			b = append(b, '0')
			continue
		}
		below, _, fine := shapeOf(inner)
		if !fine || len(below) > maxShape {
			return nil, true, false
		}
		nested, b = true, append(b, below...)
	}
	return append(b, '}'), nested, true
}

// Masked returns keys with these names, or those of their shape, with the mask in place of each
// value.
func Masked(names []string, shape string) map[string]any {
	keys := map[string]any{}
	if shape == "" || json.Unmarshal([]byte(shape), &keys) != nil {
		for _, name := range names {
			keys[name] = Mask
		}
		return keys
	}
	mask(keys)
	return keys
}

func mask(keys map[string]any) {
	for name, v := range keys {
		if inner, is := v.(map[string]any); is {
			mask(inner)
			continue
		}
		keys[name] = Mask
	}
}

// ErrClientSecret rejects an invalid client secret.
var ErrClientSecret = fault.New(fault.Invalid, "oauth_client_secret_invalid", "A client secret must have 1 to 4096 characters and cannot be the mask.")

// Secret is a clear value in a request. It cannot be printed.
type Secret struct{ value seal.Secret }

// UnmarshalJSON implements json.Unmarshaler. Its errors do not quote the input.
func (c *Secret) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return ErrClientSecret
	}
	if text == Mask {
		return ErrKeysMasked
	}
	if len(text) == 0 || len(text) > 4096 || !utf8.ValidString(text) {
		return ErrClientSecret
	}
	c.value = seal.NewSecret([]byte(text))
	return nil
}

// IsZero reports whether there is no value.
func (c Secret) IsZero() bool { return c.value.IsZero() }

// ErrKeysSealed rejects malformed encrypted keys.
var ErrKeysSealed = fault.New(fault.Invalid, "keys_sealed_invalid", "keys_sealed must be unpadded base64url, without keys beside it, in a command with a command id.")

// sealedInfo binds encrypted keys to one request: the lines "credstream/keys-sealed/1",
// tenant, command, command id and target, which is the component of a new
// credential or the id of an existing one. So whoever reads the encrypted keys cannot have them
// decrypted for another component. It is the info of HPKE (RFC 9180).
func sealedInfo(tenant, command, commandID, target string) []byte {
	return []byte(strings.Join([]string{"credstream/keys-sealed/1", tenant, command, commandID, target}, "\n"))
}

// UnsealKeys returns the keys of a request: the decrypted sealed keys, or keys.
func (s *Service) UnsealKeys(ctx context.Context, call *service.Call, command, target string, keys Keys, sealed string) (Keys, error) {
	if sealed == "" {
		return keys, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(sealed)
	if err != nil || !call.Named() || len(keys.Names()) > 0 {
		return Keys{}, ErrKeysSealed.At("/keys_sealed")
	}
	clear, err := s.Keyring.OpenFor(ctx, call.Tenant, sealedInfo(call.Tenant, command, call.CommandID, target), raw)
	if err != nil {
		return Keys{}, service.PointAt(err, "/keys_sealed")
	}
	fields, err := seal.ParseFields(clear.Reveal())
	if err != nil {
		return Keys{}, service.PointAt(err, "/keys_sealed")
	}
	return Keys{fields}, nil
}

// Value is the secret itself.
func (c Secret) Value() seal.Secret { return c.value }
