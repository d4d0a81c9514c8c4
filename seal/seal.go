// Package seal protects secrets: a type for clear text that never prints its content, and
// encryption with the keys of tenants, which a KMS key wraps.
package seal

import (
	"bytes"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// Hidden is the text form of every Secret and Fields.
const Hidden = "[secret]"

var (
	errNotEncoded = errors.New("seal: a secret is not encoded")
	errNotDecoded = errors.New("seal: a secret is not decoded: use NewSecret or ParseFields")
)

// Secret holds clear text. The zero Secret is empty.
//
// A closure holds the bytes: reflection, which every formatter, encoder and logger uses, finds
// the address of a function, even if the Secret is an unexported field. The methods that
// formatters call return Hidden. Secrets cannot be compared with == or be keys of a map.
type Secret struct{ clear func() []byte }

// NewSecret returns a Secret of b. It takes ownership of b: the caller must not use it any
// more.
func NewSecret(b []byte) Secret {
	return Secret{clear: func() []byte { return b }}
}

// bytes returns the clear text itself; do not modify or return it.
func (s Secret) bytes() []byte {
	if s.clear == nil {
		return nil
	}
	return s.clear()
}

// Reveal returns a copy of the clear text. The caller may wipe it after use.
func (s Secret) Reveal() []byte { return bytes.Clone(s.bytes()) }

func (s Secret) Len() int { return len(s.bytes()) }

// IsZero reports whether the clear text is empty.
func (s Secret) IsZero() bool { return s.Len() == 0 }

// Equal reports whether two secrets have the same clear text. For equal lengths, its time does
// not depend on the content.
func (s Secret) Equal(t Secret) bool {
	return subtle.ConstantTimeCompare(s.bytes(), t.bytes()) == 1
}

// String returns Hidden.
func (s Secret) String() string { return Hidden }

// GoString returns Hidden.
func (s Secret) GoString() string { return Hidden }

// Format writes Hidden for every verb and flag.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, Hidden) }

// LogValue returns Hidden.
func (s Secret) LogValue() slog.Value { return slog.StringValue(Hidden) }

// MarshalText returns Hidden; encoding/xml and map keys use it.
func (s Secret) MarshalText() ([]byte, error) { return []byte(Hidden), nil }

// MarshalJSON returns Hidden as a JSON string.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + Hidden + `"`), nil }

// GobEncode always fails: it could not encode the secret.
func (s Secret) GobEncode() ([]byte, error) { return nil, errNotEncoded }

// UnmarshalText always fails, so that Hidden is never decoded as a secret.
func (s *Secret) UnmarshalText([]byte) error { return errNotDecoded }

// UnmarshalJSON always fails, so that Hidden is never decoded as a secret.
func (s *Secret) UnmarshalJSON([]byte) error { return errNotDecoded }

// GobDecode always fails.
func (s *Secret) GobDecode([]byte) error { return errNotDecoded }
