// Package seal keeps secrets from being seen: clear text that cannot print
// itself, and the tenants' keys, themselves wrapped by a KMS key, that turn it
// into bytes which may be stored.
package seal

import (
	"bytes"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// Hidden is all that a Secret or Fields shows of itself.
const Hidden = "[secret]"

var (
	errNotEncoded = errors.New("seal: a secret is not encoded")
	errNotDecoded = errors.New("seal: a secret is not decoded: use NewSecret or ParseFields")
)

// Secret holds clear text. The zero Secret holds none.
//
// The bytes live in a closure: reflection, and with it every formatter, encoder
// and logger, reaches the address of a function and no further, even where the
// Secret is an unexported field and its methods are out of reach. Where methods
// are called they answer Hidden. Secrets cannot be compared with == nor be keys
// of a map.
type Secret struct{ clear func() []byte }

// NewSecret makes a Secret of b and takes it over: the caller must neither
// change nor keep it.
func NewSecret(b []byte) Secret {
	return Secret{clear: func() []byte { return b }}
}

// bytes is the clear text itself, for this package only.
func (s Secret) bytes() []byte {
	if s.clear == nil {
		return nil
	}
	return s.clear()
}

// Reveal returns a copy of the clear text, which the caller may wipe when done.
func (s Secret) Reveal() []byte { return bytes.Clone(s.bytes()) }

// Len is the length of the clear text in bytes.
func (s Secret) Len() int { return len(s.bytes()) }

// IsZero reports whether there is no clear text: the zero Secret, or an empty one.
func (s Secret) IsZero() bool { return s.Len() == 0 }

// Equal reports whether two secrets hold the same clear text; for equal lengths
// the time it takes does not depend on the content.
func (s Secret) Equal(t Secret) bool {
	return subtle.ConstantTimeCompare(s.bytes(), t.bytes()) == 1
}

// String is Hidden.
func (s Secret) String() string { return Hidden }

// GoString is Hidden.
func (s Secret) GoString() string { return Hidden }

// Format writes Hidden for every verb and flag.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, Hidden) }

// LogValue is Hidden.
func (s Secret) LogValue() slog.Value { return slog.StringValue(Hidden) }

// MarshalText is Hidden; it serves encoding/xml and map keys, too.
func (s Secret) MarshalText() ([]byte, error) { return []byte(Hidden), nil }

// MarshalJSON is Hidden as a JSON string.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + Hidden + `"`), nil }

// GobEncode always fails: what it could write would not be the secret.
func (s Secret) GobEncode() ([]byte, error) { return nil, errNotEncoded }

// UnmarshalText always fails, so that Hidden never comes back as a secret.
func (s *Secret) UnmarshalText([]byte) error { return errNotDecoded }

// UnmarshalJSON always fails, so that Hidden never comes back as a secret.
func (s *Secret) UnmarshalJSON([]byte) error { return errNotDecoded }

// GobDecode always fails.
func (s *Secret) GobDecode([]byte) error { return errNotDecoded }
