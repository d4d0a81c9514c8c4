// Package vault stores each encrypted secret as one message of a private JetStream stream, so
// that it can be erased. The log references secrets by id and never contains them.
package vault

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
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

// Stream is the name of the vault's stream. Its subjects are
// "credstream.vault.<tenant>.<category>.<owner token>.<secret id>".
const Stream = "CREDSTREAM_VAULT"

const (
	prefix     = "credstream.vault"
	maxMessage = 1 << 20 // bytes, with headers; also the default limit of a server
)

// MaxSecret is the maximum size of a clear text in bytes.
const MaxSecret = 960 << 10

// Errors of a Vault.
var (
	// ErrNoSecret is returned by Get if the secret does not exist or was erased.
	ErrNoSecret = fault.New(fault.NotFound, "secret_not_found", "Secret not found in the vault.")
	// ErrExists is returned by Put if another secret is stored under the ref: use a new secret
	// id.
	ErrExists = fault.New(fault.Exists, "secret_exists", "Another secret is stored under this id.")
	// ErrTooLarge refuses a secret larger than MaxSecret.
	ErrTooLarge = fault.New(fault.Invalid, "secret_too_large", "The secret is too large to be stored.")
	// ErrUnknownOutcome is returned by Put if the publish and the read after it both failed, so
	// it is unknown whether the secret is stored. Use a new secret id: the collector erases
	// this one.
	ErrUnknownOutcome = fault.New(fault.Unavailable, "secret_outcome_unknown",
		"The vault did not answer in time, so it is unknown whether the secret was stored. Try again.")
)

// Ref identifies a secret. It is never reused.
type Ref struct {
	Tenant   string // usable in a subject
	Category string // kind of the owner, usable in a subject: "credential"
	Owner    string // id of the owner, any text
	SecretID string // UUIDv7, new for each attempt to store; usable in a subject
}

// AssociatedData binds the ciphertext to the ref: a ciphertext that is copied to another
// tenant, owner or id cannot be decrypted. It is unique for each ref.
func (r Ref) AssociatedData() []byte {
	return events.LengthPrefixed("credstream/secret/1", r.Tenant, r.Category, r.Owner, r.SecretID)
}

// check returns events.ErrID for a ref that is not a valid subject.
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

// ParseSubject returns the ref of the secret that is stored on a subject.
func ParseSubject(subject string) (Ref, error) {
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

func StreamConfig(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        Stream,
		Description: "sealed secrets; erased by secure delete only",
		Subjects:    []string{prefix + ".>"},
		Storage:     jetstream.FileStorage,
		Replicas:    replicas,
		AllowDirect: true,
		MaxMsgSize:  maxMessage,
		// A purge does not overwrite the bytes and would delete a whole tenant. Only single
		// messages are deleted, with a secure delete.
		DenyPurge: true,
		// A secret is one message; a second exists only while the secret is re-encrypted under
		// a rotated key. DiscardNew refuses a third, because discarding the old one would not
		// overwrite it. The limit also halves the server's block files to 4 MB, which a secure
		// delete rewrites.
		MaxMsgsPerSubject:    2,
		Discard:              jetstream.DiscardNew,
		DiscardNewPerSubject: true,
		// Ciphertext does not compress.
		Compression: jetstream.NoCompression,
	}
}

// Vault stores, returns and erases secrets. It is safe for concurrent use.
type Vault struct {
	js   jetstream.JetStream
	keys *seal.Keyring
	sync func(context.Context) error
	api  jsapi.API

	recent *recent
	guard  func() error // may be nil

	onDelete func(context.Context) (done func(known bool), err error) // may be nil
}

// New returns a vault over the stream of StreamConfig.
//
// sync returns when all messages that were published to and deleted from the stream before the
// call are durable; nil means that the server fsyncs before it answers. A secure delete
// replaces a block file by a new one of the same name. So sync must open the files for each
// call, or detect the replacement, and must also fsync the folder: a file that was kept open is
// not the one that is written to.
func New(js jetstream.JetStream, keys *seal.Keyring, sync func(context.Context) error) *Vault {
	return &Vault{js: js, keys: keys, sync: sync, api: jsapi.Of(js), recent: newRecent()}
}

// Guard sets a check that every Put, Get and Erase runs first; its error is returned. Call it
// before the vault is used.
func (v *Vault) Guard(intact func() error) { v.guard = intact }

// OnDelete sets a hook that runs before each message is deleted. An error of the hook aborts
// Erase. Erase calls done(true) when the delete is durable, and done(false) if its outcome is
// unknown. Call OnDelete before the first Erase.
func (v *Vault) OnDelete(deleting func(context.Context) (done func(known bool), err error)) {
	v.onDelete = deleting
}

// check runs the guard and validates the ref.
func (v *Vault) check(ref Ref) error {
	if v.guard != nil {
		if err := v.guard(); err != nil {
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

// The stored format; it never changes. The body is the ciphertext after one byte, the version
// of the body; the header Cs-Format has the version of the message.
const (
	formatHeader = "Cs-Format"
	format       = "1"
	bodyFormat   = 1
)

func encode(sealed seal.Sealed) []byte {
	return append(append(make([]byte, 0, 1+len(sealed)), bodyFormat), sealed...)
}

// decode returns an error for unknown formats.
func decode(m *jsapi.Message) (seal.Sealed, error) {
	if f := m.Header.Get(formatHeader); f != format {
		return nil, fmt.Errorf("vault: message %d: unknown format %q", m.Seq, f)
	}
	if len(m.Data) == 0 || m.Data[0] != bodyFormat {
		return nil, fmt.Errorf("vault: message %d: unknown body format", m.Seq)
	}
	return seal.Sealed(m.Data[1:]), nil
}

// Put encrypts s and stores it under ref. It returns when the secret is durable. Errors:
// ErrExists, ErrTooLarge, ErrUnknownOutcome, events.ErrID, those of the keyring.
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
	err = v.publish(ctx, ref.subject(), encode(sealed))
	if errors.Is(err, ErrExists) { // an earlier attempt of the caller may have stored it with a key that was destroyed since
		if _, lost := v.read(ctx, ref, v.lastFromLeader); errors.Is(lost, seal.ErrSecretUnopenable) {
			if err = v.Erase(ctx, ref); err == nil {
				err = v.publish(ctx, ref.subject(), encode(sealed))
			}
		}
	}
	if err != nil {
		return fmt.Errorf("putting a secret: %w", err)
	}
	if err := v.waitDurable(ctx); err != nil {
		return err
	}
	if err := v.keys.Confirm(ctx, ref.Tenant, sealed); err != nil {
		return fmt.Errorf("putting a secret: %w: %w", ErrUnknownOutcome, err)
	}
	return nil
}

// eraseBatch is how many secrets of a tenant wait for one fsync.
const eraseBatch = 64

// attempts is the maximum number of attempts while the outcome of an attempt is unknown.
const attempts = 4

var errBusy = errors.New("vault: too many concurrent writes of this secret")

// publish stores body under a subject that has no message yet.
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
		// Timeout, or a sequence conflict that our own earlier attempt may have caused: read
		// back what is stored. The ciphertext is random, so equal bytes are ours.
		ours, found, lookErr := v.isStored(ctx, subject, body)
		switch {
		case lookErr != nil:
			return fmt.Errorf("%w: %w, then %w", ErrUnknownOutcome, err, lookErr)
		case ours:
			return nil
		case found:
			return ErrExists
		case ctx.Err() != nil: // nothing is stored yet, but the message may still arrive
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

// isRejected reports whether the server rejected the message for good. A sequence conflict does
// not count, since our own earlier attempt may have caused it.
func isRejected(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && !jsapi.WrongLast(err)
}

// isStored reports whether the last message on subject is body (ours), and whether there is one
// (found).
func (v *Vault) isStored(ctx context.Context, subject string, body []byte) (ours, found bool, err error) {
	if ctx.Err() != nil { // ctx is done, but the caller needs the outcome
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

// Get decrypts the secret of ref. Errors: ErrNoSecret, seal.ErrSecretUnopenable, events.ErrID,
// those of the keyring.
func (v *Vault) Get(ctx context.Context, ref Ref) (seal.Secret, error) {
	if err := v.check(ref); err != nil {
		return seal.Secret{}, err
	}
	subject := ref.subject()
	if sealed, ok := v.recent.get(subject); ok {
		s, err := v.keys.Open(ctx, ref.Tenant, sealed, ref.AssociatedData())
		if !errors.Is(err, seal.ErrSecretUnopenable) { // it may have been encrypted again since
			return s, err
		}
	}
	// A secret only changes when it is encrypted again with a new key, so every replica that has
	// it has the right one, unless its key was destroyed. Only the leader can report that there is
	// none.
	s, err := v.read(ctx, ref, v.lastDirect)
	if errors.Is(err, ErrNoSecret) || errors.Is(err, seal.ErrSecretUnopenable) {
		s, err = v.read(ctx, ref, v.lastFromLeader)
	}
	return s, err
}

// read decrypts the last message of a secret, which last reads.
func (v *Vault) read(ctx context.Context, ref Ref, last func(context.Context, string) (*jsapi.Message, error)) (seal.Secret, error) {
	subject := ref.subject()
	mark := v.recent.mark()
	m, err := last(ctx, subject)
	switch {
	case err != nil:
		return seal.Secret{}, fmt.Errorf("getting a secret: %w", err)
	case m == nil:
		return seal.Secret{}, ErrNoSecret
	}
	sealed, err := decode(m)
	if err != nil {
		return seal.Secret{}, err
	}
	s, err := v.keys.Open(ctx, ref.Tenant, sealed, ref.AssociatedData())
	if err == nil {
		v.recent.keep(subject, sealed, mark)
	}
	return s, err
}

// Has reports whether the stream's leader has a secret of ref.
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

// Erase overwrites and deletes the secret of ref. When it returns nil, no file of the stream
// contains its bytes, and that is fsynced. A secret that does not exist is not an error.
func (v *Vault) Erase(ctx context.Context, ref Ref) error {
	return v.EraseEach(ctx, ref)[0]
}

// EraseEach is Erase for several secrets, which wait for an fsync together. The errors are in the
// order of the refs.
func (v *Vault) EraseEach(ctx context.Context, refs ...Ref) []error {
	errs := make([]error, len(refs))
	erase, done := v.eraser()
	for i, ref := range refs {
		if errs[i] = v.check(ref); errs[i] == nil {
			errs[i] = v.eraseOne(ctx, ref, erase)
			defer v.recent.erase(ref.subject()) // another call may have read it meanwhile
		}
	}
	// Also if there was no message: an earlier Erase may have deleted it without an fsync.
	unsynced := v.waitDurable(ctx)
	for i := range errs {
		errs[i] = cmp.Or(errs[i], unsynced)
	}
	_ = done(errors.Join(errs...))
	return errs
}

// eraseOne erases the messages of a secret, without an fsync.
func (v *Vault) eraseOne(ctx context.Context, ref Ref, erase func(context.Context, uint64) error) error {
	var failed error
	subject := ref.subject()
	v.recent.erase(subject)
	for range attempts {
		m, err := v.lastFromLeader(ctx, subject)
		if err != nil {
			return fmt.Errorf("erasing a secret: %w", err)
		}
		if m == nil {
			return nil
		}
		// A failed delete may have succeeded (lost response), or another caller deleted the
		// message: the next read shows it.
		failed = erase(ctx, m.Seq)
	}
	return fmt.Errorf("erasing a secret: %w", cmp.Or(failed, errBusy))
}

// eraser returns erase, which overwrites and deletes one message, and done, which must be called
// once with the outcome, when the deletes are durable. done returns the outcome.
func (v *Vault) eraser() (erase func(ctx context.Context, seq uint64) error, done func(error) error) {
	var counted []func(known bool)
	erase = func(ctx context.Context, seq uint64) error {
		if v.onDelete != nil {
			done, err := v.onDelete(ctx)
			if err != nil {
				return err
			}
			counted = append(counted, done)
		}
		return v.overwrite(ctx, seq)
	}
	done = func(err error) error {
		for _, done := range counted {
			done(err == nil)
		}
		return err
	}
	return erase, done
}

// Entry describes a secret without decrypting it.
type Entry struct {
	Ref    Ref
	Seq    uint64    // sequence in the vault's stream
	Stored time.Time // server timestamp; informational only
}

// Owned lists the secrets of one owner, oldest first, as the stream's leader has them.
func (v *Vault) Owned(ctx context.Context, tenant, category, owner string) ([]Entry, error) {
	if err := checkOwner(tenant, category, owner); err != nil {
		return nil, err
	}
	entries, err := v.owned(ctx, ownerSubject(tenant, category, owner)+".*")
	if err != nil {
		return nil, fmt.Errorf("listing secrets: %w", jsapi.Fault(err))
	}
	return entries, nil
}

// EraseTenant erases all secrets of a tenant, and returns how many it found.
func (v *Vault) EraseTenant(ctx context.Context, tenant string) (found int, err error) {
	if !events.Plain(tenant) {
		return 0, events.ErrID
	}
	entries, err := v.owned(ctx, prefix+"."+tenant+".>")
	if err != nil {
		return 0, fmt.Errorf("listing secrets: %w", jsapi.Fault(err))
	}
	for group := range slices.Chunk(entries, eraseBatch) {
		refs := make([]Ref, len(group))
		for i, e := range group {
			refs[i] = e.Ref
		}
		if err := errors.Join(v.EraseEach(ctx, refs...)...); err != nil {
			return len(entries), err
		}
	}
	return len(entries), nil
}

// All yields every secret whose sequence is at least from, oldest first. Secrets that are
// stored or erased meanwhile may be missing, and a secret that is being encrypted again may be
// yielded twice. It stops after an error.
func (v *Vault) All(ctx context.Context, from uint64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		// Headers only: only the subjects are needed.
		for msg, err := range v.messages(ctx, jetstream.ConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from, HeadersOnly: true}, 1000) {
			var e Entry
			if err == nil {
				e, err = entryOf(msg)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// messages yields the messages of a consumer that exist when it is created. It fetches batches of n
// and stops after an error.
func (v *Vault) messages(ctx context.Context, cfg jetstream.ConsumerConfig, n int) iter.Seq2[jetstream.Msg, error] {
	return func(yield func(jetstream.Msg, error) bool) {
		cfg.AckPolicy, cfg.MemoryStorage, cfg.Replicas = jetstream.AckNonePolicy, true, 1
		cfg.InactiveThreshold = time.Minute // in case the delete below fails
		cons, err := v.js.CreateConsumer(ctx, Stream, cfg)
		if err != nil {
			yield(nil, fmt.Errorf("listing secrets: %w", jsapi.Fault(err)))
			return
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			_ = v.js.DeleteConsumer(ctx, Stream, cons.CachedInfo().Name)
		}()
		for pending := cons.CachedInfo().NumPending; pending > 0; {
			batch, err := cons.FetchNoWait(n)
			if err != nil {
				yield(nil, fmt.Errorf("listing secrets: %w", jsapi.Fault(err)))
				return
			}
			got := 0
			for msg := range batch.Messages() {
				var meta *jetstream.MsgMetadata
				if meta, err = msg.Metadata(); err != nil {
					err = fmt.Errorf("listing secrets: %w", jsapi.Fault(err))
				} else {
					pending = meta.NumPending
				}
				if !yield(msg, err) || err != nil {
					return
				}
				got++
			}
			if got == 0 { // the rest was erased meanwhile, or the server is slow
				var info *jetstream.ConsumerInfo
				if info, err = cons.Info(ctx); err == nil {
					pending = info.NumPending
				}
			}
			if err := errors.Join(err, batch.Error(), ctx.Err()); err != nil {
				yield(nil, fmt.Errorf("listing secrets: %w", jsapi.Fault(err)))
				return
			}
		}
	}
}

// entryOf returns the entry of a message.
func entryOf(msg jetstream.Msg) (Entry, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return Entry{}, fmt.Errorf("listing secrets: %w", jsapi.Fault(err))
	}
	ref, err := ParseSubject(msg.Subject())
	return Entry{Ref: ref, Seq: meta.Sequence.Stream, Stored: meta.Timestamp.UTC()}, err
}
