// Package events defines the events that the service stores, their permanent stored form, and
// the interface of the log.
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

// Event is a struct named in the past tense. It has no maps with arbitrary keys and never
// contains a secret, not even an encrypted one.
type Event any

// Actor is who caused a change. It is an id, never a name or an address.
type Actor struct {
	Kind string `json:"kind"` // "key", "user" or "system"
	ID   string `json:"id"`
}

// Meta says who caused a commit, when, and on behalf of what.
type Meta struct {
	Commit      string    `json:"commit"` // UUIDv7, new for each attempt to append
	Tenant      string    `json:"tenant"` // tenant that the change belongs to; the stream may be under System
	Actor       Actor     `json:"actor"`
	Command     string    `json:"command"`          // id of the command, unique for (tenant, actor)
	Request     string    `json:"request,omitzero"` // HMAC of the request under the tenant's key: distinguishes a repeat from another request with the same command id
	Causation   string    `json:"causation"`        // id of the event or command before it, or ""
	Correlation string    `json:"correlation"`      // correlation id: shared by all commits that one external cause led to
	Time        time.Time `json:"time"`             // UTC, microseconds; never used for order
	Via         string    `json:"via"`              // "nats", "http", "cli" or "system"
}

// Record is one committed event.
type Record struct {
	Stream StreamID
	Seq    uint64 // log sequence of the commit, which is also the revision of its stream
	Index  int    // within the commit, from 0
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
	// ErrConflict is returned by Append if the stream has a newer commit than expected: load
	// and decide again.
	ErrConflict = fault.New(fault.Conflict, "stream_moved", "The resource was changed concurrently. Read it again and retry.")
	// ErrUnknownOutcome is returned by Append if it is unknown whether the commit was stored,
	// even after reading the log. Repeating the command resolves it.
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
	// Settle sends the same commit until it is known whether it is stored, or ctx ends. If
	// stored is false and err is nil, it never will be stored.
	Settle func(ctx context.Context) (stored bool, err error)
}

func (e *UnsettledError) Error() string { return e.Err.Error() }

// Unwrap returns an error with ErrUnknownOutcome in its chain.
func (e *UnsettledError) Unwrap() error { return e.Err }

// MaxCommit is the maximum size of a commit body, in bytes.
const MaxCommit = 960 << 10

// Store is the append-only log. Sequences begin above 0 and increase in log order; whether they have
// gaps is the store's affair, so nobody counts with them. It is safe for concurrent use.
type Store interface {
	// Append appends evs as one commit if the last sequence of stream is still expected (0: no
	// stream yet), else it returns ErrConflict. It returns once the commit is durable, with its
	// sequence. It sets meta.Commit itself.
	Append(ctx context.Context, stream StreamID, expected uint64, meta Meta, evs ...Event) (seq uint64, err error)

	// Stage is Append without the wait for durability: call WaitDurable before anything about
	// the commit leaves the process. Later commits become durable no sooner than this one.
	Stage(ctx context.Context, stream StreamID, expected uint64, meta Meta, evs ...Event) (seq uint64, err error)

	// Stream yields the records of one stream whose sequence is above after, oldest first, and
	// ends. They may not be durable yet: call WaitDurable before a response depends on them. A
	// bounded number of records is in memory, and a reader that stops early does not load the
	// rest.
	Stream(ctx context.Context, stream StreamID, after uint64) iter.Seq2[Record, error]

	// Back is Stream in the opposite order: it yields the records whose sequence is at
	// most upTo, all when it is 0, newest first, and ends.
	Back(ctx context.Context, stream StreamID, upTo uint64) iter.Seq2[Record, error]

	// Last returns the sequence of the stream's last commit, 0 if it has none. It reads from
	// the leader, so the result is never stale.
	Last(ctx context.Context, stream StreamID) (uint64, error)

	// Follow yields every durable record of the whole log whose sequence is above after, in log
	// order, and waits for more until ctx ends; then it ends without an error. Commits are
	// never split.
	Follow(ctx context.Context, after uint64) iter.Seq2[Record, error]

	// Commit yields the records of the one commit at seq, or ErrNoSuchCommit.
	Commit(ctx context.Context, seq uint64) ([]Record, error)

	// Meta returns the stream and the metadata of the commit at seq, even if this program does
	// not know its events. Errors: ErrNoSuchCommit; ErrCommitFormat, with the stream.
	Meta(ctx context.Context, seq uint64) (StreamID, Meta, error)

	// End returns the sequence of the log's last commit, 0 if it is empty.
	End(ctx context.Context) (uint64, error)

	// Before returns a sequence above which the last n commits of the log are, 0 if it has no more
	// than n. Sequences may have gaps, so a difference of two is no number of commits.
	Before(ctx context.Context, n int) (uint64, error)

	// WaitDurable waits until every commit up to seq is durable.
	WaitDurable(ctx context.Context, seq uint64) error

	// Snapshot returns the latest snapshot of stream with this fold version that agrees with
	// the log: its Commit is still at its Seq. The zero Snapshot means there is none; fold from
	// the start.
	Snapshot(ctx context.Context, stream StreamID, fold int) (Snapshot, error)

	// SaveSnapshot stores a folded state, which makes later loads faster. It stores only
	// durable states. Snapshots may be lost: the log is the source of truth.
	SaveSnapshot(ctx context.Context, stream StreamID, snap Snapshot) error
}

// Snapshot is the folded state of a stream up to and including Seq.
type Snapshot struct {
	Seq    uint64          `json:"seq"`
	Commit string          `json:"commit"` // id of the commit at Seq
	Fold   int             `json:"fold"`   // version of the fold that produced State
	State  json.RawMessage `json:"state"`
}

// Upcast rewrites a stored payload of version n as version n+1.
type Upcast func(json.RawMessage) (json.RawMessage, error)

// Audience determines who may read an event in its public form.
type Audience string

// The audiences. Readers of the audit stream may read the changes too.
const (
	// Changes are for followers of credentials, components and flows.
	Changes Audience = "changes"
	// Audit is only for the audit stream: permissions, denials, and reads of secrets.
	Audit Audience = "audit"
	// Internal events have no public form.
	Internal Audience = "internal"
)

// Type binds a Go struct to its stored name. The struct may be renamed, the stored name may
// not. The current version is the number of upcasters plus one, so that it always increases
// with a new upcaster.
type Type struct {
	Name     string // "credential.created"
	Audience Audience
	// KeepsSecrets: the event drops no secret and ends no token, so nothing outside the log has
	// to follow. KeepsValues: nor does it change the values of a credential, so values that
	// were resolved earlier stay valid.
	KeepsSecrets, KeepsValues bool
	upcasts                   []Upcast
	goType                    reflect.Type
	public                    publicForm
}

// Define defines the stored name and the audience of the events of type E. upcasts[0] converts
// version 1 to version 2. It panics if a field lacks the tag that Type.Public requires.
func Define[E Event](name string, to Audience, upcasts ...Upcast) Type {
	t := Type{Name: name, Audience: to, upcasts: upcasts, goType: reflect.TypeFor[E]()}
	return t.WithID("id")
}

// WithID returns t with another name for the member of the public form that holds the id of the
// stream, or without that member if name is "".
func (t Type) WithID(name string) Type {
	if t.Audience != Internal {
		t.public = derive(t.goType, name)
	}
	return t
}

// KeepingSecrets returns t with KeepsSecrets.
func (t Type) KeepingSecrets() Type {
	t.KeepsSecrets = true
	return t
}

// KeepingValues returns t with KeepsSecrets and KeepsValues.
func (t Type) KeepingValues() Type {
	t.KeepsValues = true
	return t.KeepingSecrets()
}

// Version is the current version, in which events are written.
func (t Type) Version() int { return 1 + len(t.upcasts) }

// GoType is the struct that holds the payload.
func (t Type) GoType() reflect.Type { return t.goType }

// Registry finds a Type by its stored name and by its Go type.
type Registry struct {
	byName map[string]Type
	byType map[reflect.Type]Type
	types  []Type
}

// NewRegistry panics if a name or a struct is defined twice, which is a programming error.
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

// All returns a registry of every event that the service stores.
func All() *Registry {
	var all []Type
	for _, types := range [][]Type{tenantTypes, apiKeyTypes, roleTypes, accessTypes, componentTypes, credentialTypes, tokenTypes, flowTypes, oauthClientTypes, authClientTypes, connectorTypes, throttlePolicyTypes, webhookTypes, installationTypes, commandRecordTypes} {
		all = append(all, types...)
	}
	return NewRegistry(all...)
}

// Types lists the registered types in the order of definition.
func (r *Registry) Types() []Type { return r.types }

// TypeOf returns the type of e; ok is false if it is not registered.
func (r *Registry) TypeOf(e Event) (t Type, ok bool) {
	t, ok = r.byType[reflect.TypeOf(e)]
	return t, ok
}

// Decode upcasts a stored payload to the current version and decodes it. An unknown name or
// version is an error.
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
