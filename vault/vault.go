// Package vault keeps secrets, sealed, where they can really be erased: one
// message each on a private JetStream stream. The log names them by their ids
// and never holds them.
package vault

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/jsapi"
	"github.com/credstream/credstream/seal"
)

// Stream is the name of the vault's stream; its subjects are
// "credstream.vault.<tenant>.<category>.<owner token>.<secret id>".
const Stream = "CREDSTREAM_VAULT"

const (
	prefix     = "credstream.vault"
	maxMessage = 1 << 20 // bytes, headers included: also the default of a server
)

// MaxSecret is the size in bytes of the largest clear text Put takes.
const MaxSecret = 960 << 10

// The errors of a Vault.
var (
	// ErrNoSecret is returned by Get when there is no such secret, or no more.
	ErrNoSecret = fault.New(fault.NotFound, "secret_not_found", "Secret not found in the vault.")
	// ErrExists is returned by Put when something else is stored under the ref:
	// make a new secret id.
	ErrExists = fault.New(fault.Exists, "secret_exists", "Another secret is stored under this id.")
	// ErrTooLarge refuses a secret above MaxSecret.
	ErrTooLarge = fault.New(fault.Invalid, "secret_too_large", "The secret is too large to be stored.")
	// ErrUnknownOutcome is returned by Put when even asking did not tell whether
	// the secret is stored. Use a new secret id: the collector erases this one.
	ErrUnknownOutcome = fault.New(fault.Unavailable, "secret_outcome_unknown",
		"The vault did not answer in time, so it is unknown whether the secret was stored. Try again.")
)

// Ref names one secret forever.
type Ref struct {
	Tenant   string // plain
	Category string // kind of the owner, plain: "credential"
	Owner    string // id of the owner, verbatim
	SecretID string // a UUIDv7, new for each attempt to store; plain
}

// AssociatedData binds a sealed secret to its place: what is moved to another
// tenant, owner or id does not open. Different refs have different bytes.
func (r Ref) AssociatedData() []byte {
	return events.LengthPrefixed("credstream/secret/1", r.Tenant, r.Category, r.Owner, r.SecretID)
}

// check refuses, with events.ErrID, what cannot stand in a subject.
func (r Ref) check() error {
	if !events.Plain(r.SecretID) {
		return events.ErrID
	}
	return checkOwner(r.Tenant, r.Category, r.Owner)
}

func checkOwner(tenant, category, owner string) error {
	if !events.Plain(tenant) || !events.Plain(category) {
		return events.ErrID
	}
	return events.CheckID(owner)
}

func ownerSubject(tenant, category, owner string) string {
	return prefix + "." + tenant + "." + category + "." + events.Token(owner)
}

func (r Ref) subject() string {
	return ownerSubject(r.Tenant, r.Category, r.Owner) + "." + r.SecretID
}

func parseSubject(subject string) (Ref, error) {
	rest, ok := strings.CutPrefix(subject, prefix+".")
	parts := strings.Split(rest, ".")
	if !ok || len(parts) != 4 {
		return Ref{}, fmt.Errorf("vault: %q is not the subject of a secret", subject)
	}
	owner, err := events.ParseToken(parts[2])
	if err != nil {
		return Ref{}, fmt.Errorf("vault: subject %q: %w", subject, err)
	}
	ref := Ref{Tenant: parts[0], Category: parts[1], Owner: owner, SecretID: parts[3]}
	if err := ref.check(); err != nil {
		return Ref{}, fmt.Errorf("vault: subject %q: %w", subject, err)
	}
	return ref, nil
}

// StreamConfig is the configuration of the vault's stream.
func StreamConfig(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        Stream,
		Description: "sealed secrets; erased by secure delete only",
		Subjects:    []string{prefix + ".>"},
		Storage:     jetstream.FileStorage,
		Replicas:    replicas,
		AllowDirect: true,
		MaxMsgSize:  maxMessage,
		// A purge leaves the bytes on disk and takes a whole tenant at one blow:
		// single messages are deleted, securely, and nothing else.
		DenyPurge: true,
		// A secret is one message; a second stands beside it only while it is
		// sealed anew under a rotated key. More are refused, never made room for:
		// that would leave the old bytes behind. The limit also halves the server's
		// block files to 4 MB, which is what a secure delete rewrites.
		MaxMsgsPerSubject:    2,
		Discard:              jetstream.DiscardNew,
		DiscardNewPerSubject: true,
		// Sealed bytes do not compress.
		Compression: jetstream.NoCompression,
	}
}

// Vault puts, gets and erases secrets. It is safe for concurrent use.
type Vault struct {
	js   jetstream.JetStream
	keys *seal.Keyring
	sync func(context.Context) error
	api  jsapi.API

	recent *recent
	intact func() error // nil: always

	deleting func(context.Context) (done func(known bool), err error) // nil: nobody counts
}

// New returns a vault over the stream of StreamConfig.
//
// sync returns when all that was published to and deleted from the stream before
// the call is durable; nil says that the server itself syncs before it answers.
// Beware: a secure delete replaces a block file by a new one of the same name.
// A sync must therefore open the files anew, or notice the change, and sync the
// folder, too; a file kept open is no longer the one that is written to.
func New(js jetstream.JetStream, keys *seal.Keyring, sync func(context.Context) error) *Vault {
	return &Vault{js: js, keys: keys, sync: sync, api: jsapi.Of(js), recent: newRecent()}
}

// Guard has every Put, Get and Erase return intact's error while there is one: no secret
// comes, leaves or goes. Call it before the first of them.
func (v *Vault) Guard(intact func() error) { v.intact = intact }

// OnDelete has deleting called before a message is deleted, and done when that is durable or
// was given up. Its error ends the Erase. Call it before the first of them.
func (v *Vault) OnDelete(deleting func(context.Context) (done func(known bool), err error)) {
	v.deleting = deleting
}

// check refuses a ref that cannot stand in a subject, and everything while the vault is
// guarded.
func (v *Vault) check(ref Ref) error {
	if v.intact != nil {
		if err := v.intact(); err != nil {
			return err
		}
	}
	return ref.check()
}

func (v *Vault) waitDurable(ctx context.Context) error {
	if v.sync == nil {
		return nil
	}
	defer admission.IdleForDisk(ctx)()
	if err := v.sync(ctx); err != nil {
		return fmt.Errorf("syncing the vault: %w", err)
	}
	return nil
}

// The stored form, forever: header Cs-Format and a body of one byte, the
// version of the body's form, and the sealed bytes.
const (
	formatHeader = "Cs-Format"
	format       = "1"
	bodyFormat   = 1
)

func encode(sealed seal.Sealed) []byte {
	return append(append(make([]byte, 0, 1+len(sealed)), bodyFormat), sealed...)
}

// decode stops at every form it does not know.
func decode(m *jsapi.Message) (seal.Sealed, error) {
	if f := m.Header.Get(formatHeader); f != format {
		return nil, fmt.Errorf("vault: message %d: unknown format %q", m.Seq, f)
	}
	if len(m.Data) == 0 || m.Data[0] != bodyFormat {
		return nil, fmt.Errorf("vault: message %d: unknown body format", m.Seq)
	}
	return seal.Sealed(m.Data[1:]), nil
}

// Put seals s and stores it under ref. It returns when the secret is durable.
// Errors: ErrExists, ErrTooLarge, ErrUnknownOutcome, events.ErrID, those of the
// keyring.
func (v *Vault) Put(ctx context.Context, ref Ref, s seal.Secret) error {
	if err := v.check(ref); err != nil {
		return err
	}
	if s.Len() > MaxSecret {
		return ErrTooLarge
	}
	sealed, err := v.keys.Seal(ctx, ref.Tenant, s, ref.AssociatedData())
	if err != nil {
		return err
	}
	if err := v.publish(ctx, ref.subject(), encode(sealed)); err != nil {
		return fmt.Errorf("putting a secret: %w", err)
	}
	return v.waitDurable(ctx)
}

// attempts is how often something is tried while the outcome of a try is not known.
const attempts = 4

var errBusy = errors.New("vault: too many concurrent writes of this secret")

// publish stores body under subject, where nothing may stand yet.
func (v *Vault) publish(ctx context.Context, subject string, body []byte) error {
	var err error
	for range attempts {
		msg := &nats.Msg{Subject: subject, Data: body, Header: nats.Header{
			formatHeader:                        {format},
			jetstream.ExpectedLastSubjSeqHeader: {"0"},
		}}
		if err = v.publishOnce(ctx, msg); err == nil {
			return nil
		}
		if isRejected(err) {
			return err
		}
		// No answer, or one that may be the echo of our own message: only what is
		// stored tells. The ciphertext is random, so equal bytes are ours.
		ours, found, lookErr := v.isStored(ctx, subject, body)
		switch {
		case lookErr != nil:
			return fmt.Errorf("%w: %w, then %w", ErrUnknownOutcome, err, lookErr)
		case ours:
			return nil
		case found:
			return ErrExists
		case ctx.Err() != nil: // nothing there yet, but the message may still be on its way
			return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
		}
	}
	return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
}

func (v *Vault) publishOnce(ctx context.Context, msg *nats.Msg) error {
	ack, err := v.js.PublishMsg(ctx, msg)
	if err == nil && ack.Stream != Stream {
		return fmt.Errorf("vault: secret was stored in stream %s instead of the vault", ack.Stream)
	}
	return err
}

// isRejected reports whether err is the server's refusal for a reason that no
// message of ours can have caused.
func isRejected(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && !jsapi.WrongLast(err)
}

// isStored reports whether subject holds body, or anything.
func (v *Vault) isStored(ctx context.Context, subject string, body []byte) (ours, found bool, err error) {
	if ctx.Err() != nil { // time is up, and yet the caller must learn what happened
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
	}
	m, err := v.lastFromLeader(ctx, subject)
	if err != nil || m == nil {
		return false, false, err
	}
	return bytes.Equal(m.Data, body), true, nil
}

// Get opens the secret of ref. Errors: ErrNoSecret, seal.ErrSecretUnopenable,
// events.ErrID, those of the keyring.
func (v *Vault) Get(ctx context.Context, ref Ref) (seal.Secret, error) {
	if err := v.check(ref); err != nil {
		return seal.Secret{}, err
	}
	subject := ref.subject()
	sealed, mark, ok := v.recent.get(subject)
	if ok {
		return v.keys.Open(ctx, ref.Tenant, sealed, ref.AssociatedData())
	}
	// A secret is written once, so any replica that has it has the right one.
	// Only the leader can say that there is none.
	m, err := v.lastDirect(ctx, subject)
	if err == nil && m == nil {
		m, err = v.lastFromLeader(ctx, subject)
	}
	switch {
	case err != nil:
		return seal.Secret{}, fmt.Errorf("getting a secret: %w", err)
	case m == nil:
		return seal.Secret{}, ErrNoSecret
	}
	if sealed, err = decode(m); err != nil {
		return seal.Secret{}, err
	}
	v.recent.keep(subject, sealed, mark)
	return v.keys.Open(ctx, ref.Tenant, sealed, ref.AssociatedData())
}

// Has reports whether there is a secret of ref, as the stream's leader knows it.
func (v *Vault) Has(ctx context.Context, ref Ref) (bool, error) {
	if err := v.check(ref); err != nil {
		return false, err
	}
	m, err := v.lastFromLeader(ctx, ref.subject())
	if err != nil {
		return false, fmt.Errorf("looking for a secret: %w", err)
	}
	return m != nil, nil
}

// Erase overwrites and deletes the secret of ref. When it returns, its bytes
// stand in no file of the stream, durably. It is no error when there is none.
func (v *Vault) Erase(ctx context.Context, ref Ref) (erased error) {
	if err := v.check(ref); err != nil {
		return err
	}
	var failed error
	subject := ref.subject()
	v.recent.erase(subject)
	defer v.recent.erase(subject) // what was read meanwhile
	for range attempts {
		m, err := v.lastFromLeader(ctx, subject)
		if err != nil {
			return fmt.Errorf("erasing a secret: %w", err)
		}
		if m == nil {
			return v.waitDurable(ctx) // also for an earlier call that got no further
		}
		// What looks like a failure may be the work of another caller, or done and
		// not heard of: the next look tells.
		if v.deleting != nil {
			done, err := v.deleting(ctx)
			if err != nil {
				return fmt.Errorf("erasing a secret: %w", err)
			}
			defer func() { done(erased == nil) }() // when it is durable
		}
		failed = v.overwrite(ctx, m.Seq)
	}
	return fmt.Errorf("erasing a secret: %w", cmp.Or(failed, errBusy))
}

// Entry is what the vault knows of a secret without opening it.
type Entry struct {
	Ref    Ref
	Seq    uint64    // sequence in the vault's stream
	Stored time.Time // when the server took it; not for decisions, only for what to look at
}

// Owned lists the secrets of one owner, oldest first, as the stream's leader
// knows them.
func (v *Vault) Owned(ctx context.Context, tenant, category, owner string) ([]Entry, error) {
	if err := checkOwner(tenant, category, owner); err != nil {
		return nil, err
	}
	entries, err := v.owned(ctx, ownerSubject(tenant, category, owner)+".*")
	if err != nil {
		return nil, fmt.Errorf("listing secrets: %w", err)
	}
	return entries, nil
}

// All yields every secret whose sequence is at least from, oldest first, and ends; those
// put or erased meanwhile may or may not be among them. After an error it ends.
func (v *Vault) All(ctx context.Context, from uint64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		// Headers alone: what is wanted is where the secrets are, not what.
		cons, err := v.js.CreateConsumer(ctx, Stream, jetstream.ConsumerConfig{
			DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from,
			AckPolicy: jetstream.AckNonePolicy, HeadersOnly: true, MemoryStorage: true, Replicas: 1,
			InactiveThreshold: time.Minute, // should the deletion below not arrive
		})
		if err != nil {
			yield(Entry{}, fmt.Errorf("listing secrets: %w", err))
			return
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			_ = v.js.DeleteConsumer(ctx, Stream, cons.CachedInfo().Name)
		}()
		for pending := cons.CachedInfo().NumPending; pending > 0; {
			batch, err := cons.FetchNoWait(1000)
			if err != nil {
				yield(Entry{}, fmt.Errorf("listing secrets: %w", err))
				return
			}
			n := 0
			for msg := range batch.Messages() {
				var entry Entry
				entry, pending, err = entryOf(msg)
				if !yield(entry, err) || err != nil {
					return
				}
				n++
			}
			if n == 0 { // what was left was erased meanwhile, or the server is slow
				var info *jetstream.ConsumerInfo
				if info, err = cons.Info(ctx); err == nil {
					pending = info.NumPending
				}
			}
			if err := errors.Join(err, batch.Error(), ctx.Err()); err != nil {
				yield(Entry{}, fmt.Errorf("listing secrets: %w", err))
				return
			}
		}
	}
}

// entryOf reads one delivery and how many are still to come.
func entryOf(msg jetstream.Msg) (e Entry, pending uint64, err error) {
	meta, err := msg.Metadata()
	if err != nil {
		return Entry{}, 0, fmt.Errorf("listing secrets: %w", err)
	}
	ref, err := parseSubject(msg.Subject())
	return Entry{Ref: ref, Seq: meta.Sequence.Stream, Stored: meta.Timestamp.UTC()}, meta.NumPending, err
}
