// Package events holds every fact the service stores, the form in which it is
// stored forever, and the contract of the log.
package events

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"reflect"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/credstream/credstream/fault"
)

// Event is a fact: a plain struct named in the past tense. It has no free maps
// and never holds a secret, not even a sealed one.
type Event any

// Actor is who caused a change. It is an id, never a name or an address.
type Actor struct {
	Kind string `json:"kind"` // "key", "user" or "system"
	ID   string `json:"id"`
}

// Meta says who caused a commit, when, and on behalf of what.
type Meta struct {
	Commit      string    `json:"commit"` // UUIDv7, made for each attempt to append
	Tenant      string    `json:"tenant"` // the tenant the change belongs to; the stream may stand under System
	Actor       Actor     `json:"actor"`
	Command     string    `json:"command"`          // id of the command, unique for (tenant, actor)
	Request     string    `json:"request,omitzero"` // HMAC of the request under the tenant's key: tells a repeat from a reuse
	Causation   string    `json:"causation"`        // id of the event or command before it, or ""
	Correlation string    `json:"correlation"`      // shared by all that one outside cause led to
	Time        time.Time `json:"time"`             // UTC, microseconds; never used for order
	Via         string    `json:"via"`              // "nats", "http", "cli" or "system"
}

// Record is one committed event.
type Record struct {
	Stream StreamID
	Seq    uint64 // log sequence of the commit: its place in the log and the revision of its stream
	Index  int    // place within the commit, from 0
	Of     int    // number of events in the commit
	Meta   Meta
	Event  Event
}

// ID is the event's id: "<commit>-<index>".
func (r Record) ID() string { return fmt.Sprintf("%s-%d", r.Meta.Commit, r.Index) }

// Last reports whether the record ends its commit.
func (r Record) Last() bool { return r.Index == r.Of-1 }

// The errors of a Store.
var (
	// ErrConflict is returned by Append when the stream has moved on since it was
	// loaded: load again, decide again.
	ErrConflict = fault.New(fault.Conflict, "stream_moved", "The resource was changed concurrently. Read it again and retry.")
	// ErrUnknownOutcome is returned by Append when the store could not tell whether
	// the commit was stored, even after asking. Repeating the command finds out.
	ErrUnknownOutcome = fault.New(fault.Unavailable, "outcome_unknown",
		"The log did not answer in time, so it is unknown whether the change was stored. Repeat it with the same command id.")
	// ErrTooLarge refuses a commit that does not fit into one message of the log.
	ErrTooLarge = fault.New(fault.Invalid, "commit_too_large", "The change is too large to be stored.")
	// ErrNoSuchCommit is returned by Commit for a sequence without a commit.
	ErrNoSuchCommit = fault.New(fault.NotFound, "commit_not_found", "The log has no commit at this position.")
)

// UnsettledError is an ErrUnknownOutcome of Stage or Append that can still be resolved.
type UnsettledError struct {
	Err error
	// Settle sends the same commit until the log says whether it is stored, or ctx ends.
	// When stored is false and err is nil, it never will be.
	Settle func(ctx context.Context) (stored bool, err error)
}

func (e *UnsettledError) Error() string { return e.Err.Error() }

// Unwrap returns an error with ErrUnknownOutcome in its chain.
func (e *UnsettledError) Unwrap() error { return e.Err }

// MaxCommit is the size in bytes of the largest commit body a Store takes.
const MaxCommit = 960 << 10

// Store is the append-only log. Sequences start at 1 and rise by one commit.
// Every method may be called from many goroutines.
type Store interface {
	// Append commits evs as one unit if the last sequence of stream is still
	// expected (0: no stream yet), else it returns ErrConflict. It returns the
	// commit's sequence when it is durable. It sets meta.Commit itself.
	Append(ctx context.Context, stream StreamID, expected uint64, meta Meta, evs ...Event) (seq uint64, err error)

	// Stage is Append that does not wait until the commit is durable: nobody may be
	// told of it before WaitDurable. What is decided on it and appended is durable
	// no sooner than the commit itself.
	Stage(ctx context.Context, stream StreamID, expected uint64, meta Meta, evs ...Event) (seq uint64, err error)

	// Stream yields the records of one stream whose sequence is above after,
	// oldest first, and ends. It may yield records that are not durable yet: before
	// an answer tells of them, WaitDurable. However long the stream is, a bounded
	// number of its records is in memory, and a reader who leaves early spares the rest.
	Stream(ctx context.Context, stream StreamID, after uint64) iter.Seq2[Record, error]

	// Back is Stream in the opposite order: it yields the records whose sequence is at
	// most upTo, all when it is 0, newest first, and ends.
	Back(ctx context.Context, stream StreamID, upTo uint64) iter.Seq2[Record, error]

	// Last is the sequence of the stream's last commit, 0 when it has none, read
	// from the leader: never an old answer.
	Last(ctx context.Context, stream StreamID) (uint64, error)

	// Follow yields every durable record of the whole log whose sequence is above
	// after, in log order, and waits for more until ctx ends; then it ends without
	// an error. Commits come whole.
	Follow(ctx context.Context, after uint64) iter.Seq2[Record, error]

	// Commit yields the records of the one commit at seq, or ErrNoSuchCommit.
	Commit(ctx context.Context, seq uint64) ([]Record, error)

	// Meta is the stream of the commit at seq and what the commit says of itself, also
	// where its events are not known to this program. Errors: ErrNoSuchCommit;
	// ErrCommitFormat, with the stream.
	Meta(ctx context.Context, seq uint64) (StreamID, Meta, error)

	// End is the sequence of the log's last commit, 0 when it is empty.
	End(ctx context.Context) (uint64, error)

	// WaitDurable returns when every commit up to seq is durable.
	WaitDurable(ctx context.Context, seq uint64) error

	// Snapshot returns the latest snapshot of stream with this fold version that
	// the log bears out: its Seq still holds its Commit. The zero Snapshot means
	// there is none; fold from the start.
	Snapshot(ctx context.Context, stream StreamID, fold int) (Snapshot, error)

	// SaveSnapshot keeps a folded state so that later loads are short. It stores
	// durable states only and may be lost: the log is the truth.
	SaveSnapshot(ctx context.Context, stream StreamID, snap Snapshot) error
}

// Snapshot is the folded state of a stream up to and including Seq.
type Snapshot struct {
	Seq    uint64          `json:"seq"`
	Commit string          `json:"commit"` // id of the commit at Seq
	Fold   int             `json:"fold"`   // version of the fold that made State
	State  json.RawMessage `json:"state"`
}

// Upcast rewrites a stored payload of version n as version n+1.
type Upcast func(json.RawMessage) (json.RawMessage, error)

// Audience is who may read a fact in its public form.
type Audience string

// The audiences. Who reads the audit trail reads the changes too.
const (
	// Changes are for who follows credentials, components and flows.
	Changes Audience = "changes"
	// Audit is for the audit trail alone: who may do what, who was refused, who saw a secret.
	Audit Audience = "audit"
	// Internal are for nobody: they have no public form.
	Internal Audience = "internal"
)

// Type ties a Go struct to its stored name. The struct may be renamed, the name
// may not. The current version is one more than the number of upcasters, so
// nobody can forget to raise it.
type Type struct {
	Name     string // "credential.created"
	Audience Audience
	// KeepsSecrets: the fact drops no secret and ends no token, so it owes nothing outside
	// the log. KeepsValues: nor does it change the values of a credential, so whoever was
	// given them may keep them.
	KeepsSecrets, KeepsValues bool
	upcasts                   []Upcast
	goType                    reflect.Type
	public                    publicForm
}

// Define names the facts of type E and says who may read them. upcasts[0] makes
// version 2 of version 1. It panics when a field does not say whether it is public,
// as Type.Public wants it.
func Define[E Event](name string, to Audience, upcasts ...Upcast) Type {
	t := Type{Name: name, Audience: to, upcasts: upcasts, goType: reflect.TypeFor[E]()}
	return t.WithID("id")
}

// WithID is t with another name for the member of the public form that holds the id
// of the stream; without one when name is "".
func (t Type) WithID(name string) Type {
	if t.Audience != Internal {
		t.public = derive(t.goType, name)
	}
	return t
}

// KeepingSecrets is t, which keeps secrets.
func (t Type) KeepingSecrets() Type {
	t.KeepsSecrets = true
	return t
}

// KeepingValues is t, which keeps secrets and the values of the credential.
func (t Type) KeepingValues() Type {
	t.KeepsValues = true
	return t.KeepingSecrets()
}

// Version is the version written today.
func (t Type) Version() int { return 1 + len(t.upcasts) }

// GoType is the struct that holds the payload.
func (t Type) GoType() reflect.Type { return t.goType }

// Registry finds a Type by its stored name and by its Go type.
type Registry struct {
	byName map[string]Type
	byType map[reflect.Type]Type
	types  []Type
}

// NewRegistry panics when a name or a struct is defined twice: a fault of the program.
func NewRegistry(types ...Type) *Registry {
	r := &Registry{byName: map[string]Type{}, byType: map[reflect.Type]Type{}, types: types}
	for _, t := range types {
		if _, dup := r.byName[t.Name]; dup {
			panic("events: defined twice: " + t.Name)
		}
		if other, dup := r.byType[t.goType]; dup {
			panic(fmt.Sprintf("events: %s and %s share %s", t.Name, other.Name, t.goType))
		}
		r.byName[t.Name], r.byType[t.goType] = t, t
	}
	return r
}

// All returns a registry of every fact the service stores.
func All() *Registry {
	var all []Type
	for _, types := range [][]Type{tenantTypes, apiKeyTypes, accessTypes, componentTypes, credentialTypes, tokenTypes, flowTypes, oauthClientTypes, authClientTypes, connectorTypes, throttlePolicyTypes, installationTypes, commandRecordTypes} {
		all = append(all, types...)
	}
	return NewRegistry(all...)
}

// Types lists what is registered, in the order of definition.
func (r *Registry) Types() []Type { return r.types }

// TypeOf returns the type of e; ok is false when it is not registered.
func (r *Registry) TypeOf(e Event) (t Type, ok bool) {
	t, ok = r.byType[reflect.TypeOf(e)]
	return t, ok
}

// Decode returns today's struct of a stored payload, one upcast at a time. A
// name or version that is not known here is an error, never skipped.
func (r *Registry) Decode(name string, version int, data json.RawMessage) (Event, error) {
	t, ok := r.byName[name]
	if !ok || version < 1 || version > t.Version() {
		return nil, fmt.Errorf("events: %s: unknown version %d", name, version)
	}
	var err error
	for i, up := range t.upcasts[version-1:] {
		if data, err = up(data); err != nil {
			return nil, fmt.Errorf("events: %s version %d to %d: %w", name, version+i, version+i+1, err)
		}
	}
	v := reflect.New(t.goType)
	if err := jsonv2.Unmarshal(data, v.Interface(), jsonv2.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("events: %s version %d: %w", name, version, err)
	}
	return v.Elem().Interface(), nil
}
