package events

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/credstream/credstream/fault"
)

// ErrID refuses an id that is not valid in a subject, a key or a row.
var ErrID = fault.New(fault.Invalid, "id_invalid",
	"An id must have 1 to 128 bytes of UTF-8 without control characters. Ids of tenants and components have at most 64 letters, digits, '_' and '-'.")

// System is the tenant of what belongs to the whole installation: components, tenants and API
// keys.
const System = "_system"

// Plain reports whether id is 1 to 64 letters, digits, '_' and '-', so that it needs no encoding
// in a subject.
func Plain(id string) bool {
	if len(id) < 1 || len(id) > 64 {
		return false
	}
	for i := range len(id) {
		if !isPlain(id[i]) {
			return false
		}
	}
	return true
}

func isPlain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-'
}

// CheckName refuses, with ErrID, an id that is not plain or that starts with
// '_', which is reserved: the rule for tenants and components.
func CheckName(id string) error {
	if !Plain(id) || id[0] == '_' {
		return ErrID
	}
	return nil
}

// CheckNewID is CheckID for an id that a caller chooses for something new. It refuses ".", ".." and
// "/" too: HTTP clients resolve the dots in a path before they send it (RFC 3986, section 5.2.4),
// and an encoded slash alone reads as the end of the path.
func CheckNewID(id string) error {
	if id == "." || id == ".." || id == "/" {
		return ErrID.Withf("An id cannot be %q: it has another meaning in the path of a URL. Choose another one.", id)
	}
	return CheckID(id)
}

// CheckID refuses, with ErrID, an id that is not 1 to 128 bytes of UTF-8
// without control characters: the rule for every other id.
func CheckID(id string) error {
	if len(id) < 1 || len(id) > 128 || !utf8.ValidString(id) || strings.ContainsFunc(id, unicode.IsControl) {
		return ErrID
	}
	return nil
}

// Token encodes an id as one token of a subject or key: a plain id as it is, any other as '='
// and its unpadded base64url. Different ids have different tokens; ParseToken is the inverse.
func Token(id string) string {
	if Plain(id) {
		return id
	}
	return "=" + base64.RawURLEncoding.EncodeToString([]byte(id))
}

// ParseToken decodes a token. It refuses every other encoding than that of Token with ErrID, so
// that each id has exactly one token.
func ParseToken(token string) (string, error) {
	id := token
	if rest, ok := strings.CutPrefix(token, "="); ok {
		raw, err := base64.RawURLEncoding.Strict().DecodeString(rest)
		if err != nil {
			return "", ErrID
		}
		id = string(raw)
	}
	if CheckID(id) != nil || Token(id) != token {
		return "", ErrID
	}
	return id, nil
}

// LengthPrefixed concatenates parts, each prefixed by its length in bytes as a big-endian
// uint32: an injective encoding, for hashes and associated data.
func LengthPrefixed(parts ...string) []byte {
	n := 0
	for _, p := range parts {
		n += 4 + len(p)
	}
	b := make([]byte, 0, n)
	for _, p := range parts {
		b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	return b
}

// DeriveID derives the id that a command gives to a new resource: a UUIDv8 (RFC 9562) from
// SHA-256, so that a repeated command targets the stream that it created before. what names the
// resource, such as "oauth_client/petstore": one command id for two targets derives two ids.
func DeriveID(tenant string, actor Actor, command, what string) string {
	sum := sha256.Sum256(LengthPrefixed("credstream/id/2", tenant, actor.Kind, actor.ID, command, what))
	var id uuid.UUID
	copy(id[:], sum[:16])
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id.String()
}

// NewID returns a random id that sorts by time: a UUIDv7 (RFC 9562).
func NewID() string { return uuid.Must(uuid.NewV7()).String() }

// IDTime is when an id of NewID was made, to the millisecond, by the clock of the process that made
// it; the zero time if the id is another one.
func IDTime(id string) time.Time {
	u, err := uuid.Parse(id)
	if err != nil || u.Version() != 7 {
		return time.Time{}
	}
	return time.Unix(u.Time().UnixTime())
}

// StreamID names the stream of one aggregate.
type StreamID struct {
	Tenant   string // a tenant, or System
	Category string // the kind of aggregate: "credential"
	ID       string // verbatim, not yet a token
}

// String is the stream's name within its tenant: "credential.0198c1...".
func (s StreamID) String() string { return s.Category + "." + s.ID }

// Subject is the stream's subject below prefix: "<prefix>.<tenant>.<category>.<token>".
func (s StreamID) Subject(prefix string) string {
	return prefix + "." + s.Tenant + "." + s.Category + "." + Token(s.ID)
}

// ParseSubject returns the stream whose Subject below prefix is subject.
func ParseSubject(prefix, subject string) (StreamID, error) {
	rest, ok := strings.CutPrefix(subject, prefix+".")
	parts := strings.Split(rest, ".")
	if !ok || len(parts) != 3 || !Plain(parts[0]) || !Plain(parts[1]) {
		return StreamID{}, fmt.Errorf("%q is not a subject below %s: %w", subject, prefix, ErrID)
	}
	id, err := ParseToken(parts[2])
	if err != nil {
		return StreamID{}, fmt.Errorf("subject %q: %w", subject, err)
	}
	return StreamID{Tenant: parts[0], Category: parts[1], ID: id}, nil
}
