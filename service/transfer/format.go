package transfer

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// Format is the version of an export file, which has one JSON document per line: a Header,
// Items in the order of Kinds, and an End. Version 2 added the roles.
const Format = 2

// The kinds of an item.
const (
	KindComponent      = "component"
	KindThrottlePolicy = "throttle_policy"
	KindAuthClient     = "auth_client"
	KindOAuthClient    = "oauth_client" // its id is that of its component
	KindCredential     = "credential"
	KindFlow           = "flow"
	KindRole           = "role" // of the tenant's own
)

// Kinds returns the kinds in the order of a file: an item comes after those that it references.
func Kinds() []string {
	return []string{KindComponent, KindThrottlePolicy, KindAuthClient, KindOAuthClient, KindCredential, KindFlow, KindRole}
}

// Header is the first line of an export.
type Header struct {
	Kind    string    `json:"kind"` // "export"
	Format  int       `json:"format"`
	ID      string    `json:"id"`
	Tenant  string    `json:"tenant"`
	Time    time.Time `json:"time"`
	To      string    `json:"to,omitzero"` // the age recipient of the secrets; absent when they are left out
	Key     string    `json:"key"`         // the public key of the signature
	LeftOut []string  `json:"left_out,omitzero"`
}

// Item is one exported resource.
type Item struct {
	Kind    string         `json:"kind"`
	ID      string         `json:"id"`
	Facts   jsontext.Value `json:"facts"`            // a Component, a ThrottlePolicy, ...
	Sealed  string         `json:"sealed,omitzero"`  // base64 of an age file with a Sealed
	Missing []string       `json:"missing,omitzero"` // names of the secrets that are not exported

	cursor string // after this item
	fields []string
}

// End is the last line of an export.
type End struct {
	Kind      string `json:"kind"`      // "end"
	Items     int    `json:"items"`     // between header and end
	SHA256    string `json:"sha256"`    // of all bytes before this line, hex
	Signature string `json:"signature"` // of Signed of that hash: Ed25519, base64
}

// Sealed is the content of the age file of an item. It identifies the item, so that it cannot be
// moved to another one.
type Sealed struct {
	Export string         `json:"export"` // id of the export
	Kind   string         `json:"kind"`
	ID     string         `json:"id"`
	Keys   jsontext.Value `json:"keys"` // by name; of an OAuth client its client_secret
}

// Component are the facts of a component.
type Component struct {
	Shared     bool           `json:"shared,omitzero"`
	Descriptor jsontext.Value `json:"descriptor"`
}

// ThrottlePolicy are the facts of a throttle policy.
type ThrottlePolicy struct {
	Description string          `json:"description,omitzero"`
	Tokens      int64           `json:"tokens"`
	Per         events.TimeUnit `json:"per"`
}

// AuthClient are the facts of an auth client.
type AuthClient struct {
	Name       string   `json:"name"`
	Type       string   `json:"type"`
	Scope      string   `json:"scope"`
	ScopeID    string   `json:"scope_id,omitzero"`
	Components []string `json:"components"`
	ClientID   string   `json:"client_id,omitzero"`
	Fields     []string `json:"fields"`
}

// Role are the facts of a role.
type Role struct {
	Title       string   `json:"title,omitzero"`
	Permissions []string `json:"permissions"`
}

// OAuthClient are the facts of an OAuth client that no auth client manages.
type OAuthClient struct {
	ClientID string `json:"client_id"`
}

// Credential are the facts of a credential. Status, Version and the times are those of the
// exporting service; an import does not keep them.
type Credential struct {
	Component      string         `json:"component,omitzero"`
	Type           string         `json:"type,omitzero"` // free, in place of component
	Name           string         `json:"name"`
	Description    string         `json:"description,omitzero"`
	Workspace      string         `json:"workspace,omitzero"`
	VPNAgent       string         `json:"vpn_agent,omitzero"`
	ThrottlePolicy string         `json:"throttle_policy,omitzero"`
	Fields         []string       `json:"fields"`
	Hosts          []string       `json:"hosts,omitzero"`        // of a free type
	Verification   jsontext.Value `json:"verification,omitzero"` // of a free type: its dry request
	Status         events.Status  `json:"status,omitzero"`
	Version        int            `json:"version,omitzero"`
	VerifiedAt     time.Time      `json:"verified_at,omitzero"`
	CreatedAt      time.Time      `json:"created_at,omitzero"`
	UpdatedAt      time.Time      `json:"updated_at,omitzero"`
}

// Flow are the facts of a flow. A reservation is exported for information: it expires, and is not imported.
type Flow struct {
	Name          string            `json:"name,omitzero"`
	Revision      uint64            `json:"revision"`
	Active        bool              `json:"active,omitzero"`
	Steps         []events.FlowStep `json:"steps"`
	ReservedUntil time.Time         `json:"reserved_until,omitzero"`
}

// Errors of keys.
var (
	ErrRecipient = fault.New(fault.Invalid, "export_recipient_invalid",
		"The recipient must be one age public key: age1 and 58 more characters, as age-keygen prints it.")
	ErrSigningKey = fault.New(fault.Invalid, "export_key_invalid", "The key of a signature must be ed25519: and 43 more characters, as credstream export key prints it.")
)

const keyPrefix = "ed25519:"

// FormatKey returns the text form of a public key for signatures.
func FormatKey(key ed25519.PublicKey) string {
	return keyPrefix + base64.RawURLEncoding.EncodeToString(key)
}

// ParseKey parses the form of FormatKey, or returns ErrSigningKey.
func ParseKey(text string) (ed25519.PublicKey, error) {
	encoded, ok := strings.CutPrefix(text, keyPrefix)
	key, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if !ok || err != nil || len(key) != ed25519.PublicKeySize {
		return nil, ErrSigningKey
	}
	return key, nil
}

// AnySigner, in place of a key, accepts the signature of every key.
const AnySigner = "any"

// ErrSignerRequired refuses a signed file while nothing says whose signature it must have: anybody
// can sign a file with a key of their own.
var ErrSignerRequired = fault.New(fault.Invalid, "signer_required",
	"Give the public key that must have signed the file with --signed-by: credstream export key prints it at the exporting service. --signed-by any accepts every signer.")

// CheckSigner returns an error unless signedBy is AnySigner or the public key that signed the
// file: ErrSigningKey for what is no key, ErrSignerRequired for "", which names the key, and
// otherwise the error of another key that other makes of it.
func CheckSigner(signedBy, key string, other *fault.Error) error {
	switch signedBy {
	case AnySigner, key:
		return nil
	case "":
		return ErrSignerRequired.Withf("The file is signed by %s. If credstream export key prints that key where the file was made, "+
			"give it: --signed-by %s. --signed-by any accepts every key.", key, key)
	}
	if _, err := ParseKey(signedBy); err != nil {
		return err
	}
	return other.Withf("The file is signed by %s, and not by the key of --signed-by.", key)
}

// Signed returns the message that the signature of a file signs.
func Signed(sum []byte) []byte { return append([]byte("credstream/export/1\n"), sum...) }

// parseRecipient parses an age public key, or returns ErrRecipient.
func parseRecipient(text string) (age.Recipient, error) {
	if len(text) > 4096 || strings.ContainsAny(text, " \t\r\n#") {
		return nil, ErrRecipient.At("/to")
	}
	list, err := age.ParseRecipients(strings.NewReader(text))
	if err != nil || len(list) != 1 {
		return nil, ErrRecipient.At("/to")
	}
	return list[0], nil
}

// sealTo encrypts a Sealed to an age file, in base64.
func sealTo(to age.Recipient, s Sealed) (string, error) {
	clear, err := json.Marshal(s, json.Deterministic(true))
	if err != nil {
		return "", fmt.Errorf("encode the secrets of %s %s", s.Kind, s.ID) // without the encoder's words, which may quote them
	}
	var b bytes.Buffer
	w, err := age.Encrypt(&b, to)
	if err == nil {
		if _, err = w.Write(clear); err == nil {
			err = w.Close()
		}
	}
	if err != nil {
		return "", fmt.Errorf("seal the secrets of %s %s: %w", s.Kind, s.ID, err)
	}
	return base64.StdEncoding.EncodeToString(b.Bytes()), nil
}

// Errors of opening secrets.
var (
	ErrIdentity = fault.New(fault.Unprocessable, "import_identity_wrong",
		"The secrets of the file are sealed to another key. Give the identity of the recipient that the export was made for.")
	ErrSealedInvalid = fault.New(fault.Unprocessable, "import_secret_invalid",
		"The sealed secrets of an item are damaged, or belong to another item.")
)

// Open decrypts the secrets of an item of the export with this id. Its errors, ErrIdentity and
// ErrSealedInvalid, do not quote them.
func (i Item) Open(export string, identities ...age.Identity) (keys jsontext.Value, err error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(i.Sealed)
	if err != nil {
		return nil, ErrSealedInvalid
	}
	r, err := age.Decrypt(bytes.NewReader(raw), identities...)
	if err != nil {
		return nil, ErrIdentity
	}
	clear, err := io.ReadAll(r)
	if err != nil {
		return nil, ErrSealedInvalid
	}
	var s Sealed
	if json.Unmarshal(clear, &s, json.RejectUnknownMembers(true)) != nil || s.Export != export || s.Kind != i.Kind || s.ID != i.ID || s.Keys.Kind() != '{' {
		return nil, ErrSealedInvalid
	}
	return s.Keys, nil
}
