package client

import (
	"context"
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nkeys"

	"github.com/credstream/credstream/fault"
)

// ErrNotForUs is returned for sealed values that do not open: they were sealed to
// another key, or somebody changed them, or the answer, on the way.
var ErrNotForUs = fault.New(fault.Internal, "resolved_values_unopenable",
	"The sealed values cannot be opened: they are for another key or another request.")

// ResolveKey is a pair of keys (X25519). The service seals to the public half; the
// private half stays here, and nothing prints it. It is meant to live as long as
// the process: make one at the start and keep it.
type ResolveKey struct {
	public  string
	private func() hpke.PrivateKey
}

// NewResolveKey makes a pair of keys in memory.
func NewResolveKey() (ResolveKey, error) {
	private, err := hpke.DHKEM(ecdh.X25519()).GenerateKey()
	if err != nil {
		return ResolveKey{}, fmt.Errorf("make a key: %w", err)
	}
	public, err := nkeys.Encode(nkeys.PrefixByteCurve, private.PublicKey().Bytes())
	if err != nil {
		return ResolveKey{}, fmt.Errorf("write the public key: %w", err)
	}
	return ResolveKey{string(public), func() hpke.PrivateKey { return private }}, nil
}

// Public is the public half in the form of nkeys: "X" and 55 more characters.
func (k ResolveKey) Public() string { return k.public }

// ResolveOptions says what the values are needed for. It is for the record alone.
type ResolveOptions struct {
	Flow string // id of the flow
	Step string // id of the step
}

// Resolved are the values of a credential, for the time of a lease.
type Resolved struct {
	ID      string
	Lease   string
	Expires time.Time // until when the values may be kept
	Version int       // of the keys
	Hosts   []string  // the only ones the values may be sent to
	Keys    Keys      // the values; nothing prints them
}

// Names lists the fields, sorted.
func (k Keys) Names() []string {
	var names []string
	for name := range k.fields() {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Text returns the value of a field as text: a string without quotes and escapes, a
// number, true or false as it is written. Other values and unknown fields are not ok.
func (k Keys) Text(name string) (text string, ok bool) {
	v, there := k.fields()[name]
	if !there {
		return "", false
	}
	switch v.Kind() {
	case '"':
		ok = json.Unmarshal(v, &text) == nil
	case '0', 't', 'f':
		text, ok = string(v), true
	}
	return text, ok
}

// AccessToken returns the access token that an OAuth field holds; not ok where the
// field holds none.
func (k Keys) AccessToken(field string) (token string, ok bool) {
	var object struct {
		AccessToken string `json:"access_token"`
	}
	v, there := k.fields()[field]
	if !there || json.Unmarshal(v, &object) != nil {
		return "", false
	}
	return object.AccessToken, object.AccessToken != ""
}

// Reveal returns the clear values as a JSON object.
func (k Keys) Reveal() jsontext.Value { return k.reveal().Clone() }

func (k Keys) fields() map[string]jsontext.Value {
	var fields map[string]jsontext.Value
	_ = json.Unmarshal(k.reveal(), &fields) // it was an object when it came in
	return fields
}

// resolving is the question and the answer of credential.resolve.
type resolving struct {
	ID        string `json:"id"`
	Flow      string `json:"flow,omitzero"`
	Step      string `json:"step,omitzero"`
	PublicKey string `json:"public_key,omitzero"`
	Cleartext bool   `json:"cleartext,omitzero"`
}

type resolvedAnswer struct {
	Lease   string         `json:"lease"`
	Expires string         `json:"expires"` // to the letter: it is part of what the values are bound to
	Version int            `json:"version"`
	Hosts   []string       `json:"hosts"`
	Sealed  string         `json:"sealed"`
	Keys    jsontext.Value `json:"keys"`
}

// Resolve requests the values of a credential, sealed to the key, and opens them.
// Each call asks the service: see Resolver. The key that the client was made with
// needs the permission credentials.resolve.
func (a *API) Resolve(ctx context.Context, key ResolveKey, id string, opts ResolveOptions) (Resolved, error) {
	var answer resolvedAnswer
	if err := a.Query(ctx, "credential.resolve", resolving{ID: id, Flow: opts.Flow, Step: opts.Step, PublicKey: key.public}, &answer); err != nil {
		return Resolved{}, err
	}
	sealed, err := base64.RawURLEncoding.DecodeString(answer.Sealed)
	if err != nil {
		return Resolved{}, fmt.Errorf("%w %w", ErrAnswer, err)
	}
	info := strings.Join([]string{"credstream/resolved/1", a.tenant, id, answer.Lease, strconv.Itoa(answer.Version), answer.Expires}, "\n")
	text, err := hpke.Open(key.private(), hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(info), sealed)
	if err != nil {
		return Resolved{}, ErrNotForUs
	}
	var opened struct {
		Keys jsontext.Value `json:"keys"`
	}
	if json.Unmarshal(text, &opened) != nil { // its error might quote them
		return Resolved{}, ErrAnswer
	}
	answer.Keys = opened.Keys
	return answer.read(id)
}

// ResolveCleartext requests the clear values of a credential. The service refuses
// that where others could listen, and always over NATS (cleartext_refused).
func (a *API) ResolveCleartext(ctx context.Context, id string, opts ResolveOptions) (Resolved, error) {
	var answer resolvedAnswer
	if err := a.Query(ctx, "credential.resolve", resolving{ID: id, Flow: opts.Flow, Step: opts.Step, Cleartext: true}, &answer); err != nil {
		return Resolved{}, err
	}
	return answer.read(id)
}

func (r resolvedAnswer) read(id string) (Resolved, error) {
	expires, err := time.Parse(time.RFC3339, r.Expires)
	if err != nil || r.Lease == "" {
		return Resolved{}, ErrAnswer
	}
	keys, err := KeysJSON(r.Keys)
	if err != nil {
		return Resolved{}, ErrAnswer
	}
	return Resolved{ID: id, Lease: r.Lease, Expires: expires, Version: r.Version, Hosts: r.Hosts, Keys: keys}, nil
}
