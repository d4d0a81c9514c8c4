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

// ErrNotForUs is returned for values that cannot be decrypted: they were encrypted to
// another key, or they or the response were changed on the way.
var ErrNotForUs = fault.New(fault.Internal, "resolved_values_unopenable",
	"The sealed values cannot be opened: they are for another key or another request.")

// ResolveKey is an X25519 key pair. The service encrypts to the public half; the
// private half stays here and is never printed. It is meant to live as long as
// the process: create one at the start and keep it.
type ResolveKey struct {
	public  string
	private func() hpke.PrivateKey
}

// NewResolveKey creates a key pair in memory.
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

// ResolveOptions are recorded in the access log and have no other effect.
type ResolveOptions struct {
	Flow string // id of the flow
	Step string // id of the step
}

// Resolved are the values of a credential, valid for the time of a lease.
type Resolved struct {
	ID             string
	Lease          string
	Expires        time.Time // end of the lease
	Version        int       // of the keys
	ThrottlePolicy string    // id of the throttle policy that limits its use, or ""
	Hosts          []string  // the only hosts to which the values may be sent
	Keys           Keys      // the values; never printed
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
// number, true or false as written. ok is false for other values and unknown fields.
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

// AccessToken returns the access token of an OAuth field; ok is false if the
// field has none.
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
	_ = json.Unmarshal(k.reveal(), &fields) // it was validated as an object before
	return fields
}

// resolving is the request and the response of credential.resolve.
type resolving struct {
	ID        string `json:"id"`
	Flow      string `json:"flow,omitzero"`
	Step      string `json:"step,omitzero"`
	PublicKey string `json:"public_key,omitzero"`
	Cleartext bool   `json:"cleartext,omitzero"`
}

type resolvedAnswer struct {
	Lease          string         `json:"lease"`
	Expires        string         `json:"expires"` // verbatim: the encryption is bound to this text
	Version        int            `json:"version"`
	ThrottlePolicy string         `json:"throttle_policy"`
	Hosts          []string       `json:"hosts"`
	Sealed         string         `json:"sealed"`
	Keys           jsontext.Value `json:"keys"`
}

// Resolve requests the values of a credential, encrypted to the key, and decrypts them.
// Each call is a request: see Resolver for a cache. The client's API key
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
// that on connections that others could read, and always over NATS (cleartext_refused).
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
	return Resolved{ID: id, Lease: r.Lease, Expires: expires, Version: r.Version, ThrottlePolicy: r.ThrottlePolicy, Hosts: r.Hosts, Keys: keys}, nil
}
