package seal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/core/cryptofmt"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/mac"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"
	"github.com/tink-crypto/tink-go/v2/tink"
	"golang.org/x/sync/errgroup"

	"github.com/credstream/credstream/fault"
)

// Sealed is a secret that is encrypted with a tenant's keys: a Tink ciphertext (AES-256-GCM,
// prefixed with the id of the key). Store it in the vault, never in the log.
type Sealed []byte

// Errors of a Keyring and its store.
var (
	// ErrNoKeyset means that the tenant has no keys yet: call Ensure.
	ErrNoKeyset = fault.New(fault.NotFound, "keyset_not_found", "The tenant has no encryption keys.")
	// ErrKeysetMissing means that the keys of a registered tenant are lost. New keys could not
	// decrypt anything, so none are created.
	ErrKeysetMissing = fault.New(fault.Unavailable, "keyset_missing",
		"The encryption keys of a tenant are lost. Changes are refused and no secret is returned until they are restored from a backup.")
	// ErrKeysetExists is returned by a KeysetStore if another writer was first.
	ErrKeysetExists = fault.New(fault.Exists, "keyset_exists", "The encryption keys of the tenant were created or changed concurrently.")
	// ErrKeysetUnopenable means that a stored keyset cannot be decrypted: another KMS key, a
	// KMS that cannot be reached, or a damaged or foreign entry.
	ErrKeysetUnopenable = fault.New(fault.Unavailable, "keyset_unopenable", "The encryption keys of the tenant cannot be decrypted with this KMS key.")
	// ErrKeysetUnwrappable means that the KMS could not wrap new keys.
	ErrKeysetUnwrappable = fault.New(fault.Unavailable, "keyset_unwrappable", "New encryption keys of the tenant cannot be wrapped with this KMS key.")
	// ErrSecretUnopenable means that a ciphertext cannot be decrypted: it is damaged, belongs
	// to another tenant, or has other associated data.
	ErrSecretUnopenable = fault.New(fault.Internal, "secret_unopenable", "A stored secret cannot be decrypted.")
)

// KeysetStore stores the wrapped keyset of each tenant. Everything that its methods write and
// return is durable when they return.
type KeysetStore interface {
	// Keyset returns the tenant's wrapped keyset and its revision, or ErrNoKeyset. It may
	// return an earlier revision.
	Keyset(ctx context.Context, tenant string) (wrapped []byte, revision uint64, err error)
	// NewestKeyset returns the newest revision of the tenant's wrapped keyset, or ErrNoKeyset.
	NewestKeyset(ctx context.Context, tenant string) (wrapped []byte, revision uint64, err error)
	// CreateKeyset stores the tenant's first keyset. It returns ErrKeysetExists
	// when another writer was first.
	CreateKeyset(ctx context.Context, tenant string, wrapped []byte) error
	// UpdateKeyset replaces the keyset with this revision. It returns ErrKeysetExists if
	// another writer was first.
	UpdateKeyset(ctx context.Context, tenant string, wrapped []byte, revision uint64) error
	// RemoveEarlier removes the revisions before this one.
	RemoveEarlier(ctx context.Context, tenant string, revision uint64) error
	// RemoveKeyset removes all revisions. Removing none is no error.
	RemoveKeyset(ctx context.Context, tenant string) error
}

// DefaultFreshness is the default of Keyring.Freshness.
const DefaultFreshness = 5 * time.Minute

// Keyring encrypts and decrypts with the keys of each tenant. The KMS unwraps the keys at their
// first use; then they stay in memory. It is safe for concurrent use.
type Keyring struct {
	// Freshness is how long Seal uses a cached keyset without reading the newest revision. It
	// must be the same in every process, and set before the first use.
	Freshness time.Duration
	// Previous is the previous KMS key, which decrypts the keysets that are not rewrapped yet;
	// optional. Set it before the first use.
	Previous tink.AEAD

	kms   tink.AEAD
	store KeysetStore

	mu      sync.RWMutex
	open    map[string]*keys
	loading map[string]*load
}

// keys are the primitives of one tenant.
type keys struct {
	aead     tink.AEAD
	mac      tink.MAC
	ids      []uint32 // of the encryption keys; the first one encrypts
	rotated  uint64   // the last rotation
	previous bool     // wrapped by the previous KMS key
	revision uint64
	checked  atomic.Pointer[time.Time] // when this was known to be the newest revision; nil: never
}

// holds reports whether the keyset has the key that encrypted sealed.
func (ks *keys) holds(sealed Sealed) bool { return slices.Contains(ks.ids, keyOf(sealed)) }

// fresh reports whether this was the newest revision less than d ago, by the monotonic clock and
// by the wall clock: the former stops while the machine is suspended.
func (ks *keys) fresh(d time.Duration) bool {
	at := ks.checked.Load()
	if at == nil {
		return false
	}
	now := time.Now()
	wall := now.Round(0).Sub(at.Round(0))
	return now.Sub(*at) < d && wall < d && wall > -d
}

// keyOf returns the id of the key that encrypted sealed; 0 for an unknown format.
func keyOf(sealed Sealed) uint32 {
	if len(sealed) < cryptofmt.NonRawPrefixSize || sealed[0] != cryptofmt.TinkStartByte {
		return 0
	}
	return binary.BigEndian.Uint32(sealed[1:cryptofmt.NonRawPrefixSize])
}

// load is an unwrapping in flight, which all its callers share.
type load struct {
	done   chan struct{}
	keys   *keys
	err    error
	gaveUp bool // the context of the first caller ended: the keyset may be fine
}

// NewKeyring returns a Keyring over the keysets in store, which kms wraps.
func NewKeyring(kms tink.AEAD, store KeysetStore) *Keyring {
	return &Keyring{Freshness: DefaultFreshness, kms: kms, store: store, open: map[string]*keys{}, loading: map[string]*load{}}
}

// Ensure creates the tenant's keyset if there is none. Concurrent callers, also in other
// processes, get the same one. It returns when the keyset is durable and was decrypted once.
// Errors: ErrKeysetUnopenable, ErrKeysetUnwrappable, those of the store.
func (k *Keyring) Ensure(ctx context.Context, tenant string) error {
	_, err := k.keys(ctx, tenant, nil)
	if !errors.Is(err, ErrNoKeyset) {
		return err
	}
	wrapped, err := k.newKeyset(tenant)
	if err != nil {
		return err
	}
	created := k.store.CreateKeyset(ctx, tenant, wrapped)
	k.forget(tenant)
	// Read back the stored keyset: it is ours or that of the first writer, also if the outcome
	// of the create is unknown.
	if _, err = k.keys(ctx, tenant, nil); err != nil && created != nil && !errors.Is(created, ErrKeysetExists) {
		return fmt.Errorf("creating the keyset of tenant %s: %w", tenant, created)
	}
	return err
}

// Seal encrypts s for the tenant, with associated data that Open must repeat. A caller that
// stores the result must call Confirm afterwards. Errors: ErrNoKeyset, ErrKeysetUnopenable, those
// of the store.
func (k *Keyring) Seal(ctx context.Context, tenant string, s Secret, associated []byte) (Sealed, error) {
	ks, err := k.keys(ctx, tenant, func(ks *keys) bool { return ks.fresh(k.Freshness) })
	if err != nil {
		return nil, err
	}
	sealed, err := ks.aead.Encrypt(s.bytes(), associated)
	if err != nil {
		return nil, fmt.Errorf("sealing for tenant %s: %w", tenant, err)
	}
	return sealed, nil
}

// Open decrypts the result of Seal with the same tenant and associated data. Errors:
// ErrSecretUnopenable, ErrNoKeyset, ErrKeysetUnopenable, those of the store.
func (k *Keyring) Open(ctx context.Context, tenant string, sealed Sealed, associated []byte) (Secret, error) {
	return k.decrypt(ctx, tenant, sealed, associated, func(ks *keys) bool { return ks.holds(sealed) })
}

// foreignEvery is the minimum time between two reads of a keyset for OpenForeign.
const foreignEvery = time.Second

// OpenForeign is Open for a ciphertext that anyone may have made up, such as a cookie: an
// unknown key makes it read the newest keyset at most once per second and tenant.
func (k *Keyring) OpenForeign(ctx context.Context, tenant string, sealed Sealed, associated []byte) (Secret, error) {
	return k.decrypt(ctx, tenant, sealed, associated, func(ks *keys) bool { return ks.holds(sealed) || ks.fresh(foreignEvery) })
}

func (k *Keyring) decrypt(ctx context.Context, tenant string, sealed Sealed, associated []byte, suffice func(*keys) bool) (Secret, error) {
	ks, err := k.keys(ctx, tenant, suffice)
	if err != nil {
		return Secret{}, err
	}
	text, err := ks.aead.Decrypt(sealed, associated)
	if err != nil {
		return Secret{}, fmt.Errorf("opening a secret of tenant %s: %w", tenant, ErrSecretUnopenable)
	}
	return NewSecret(text), nil
}

// MAC returns the HMAC-SHA256 (RFC 2104) of data under the tenant's MAC key: 32 bytes. Errors:
// ErrNoKeyset, ErrKeysetUnopenable, those of the store.
func (k *Keyring) MAC(ctx context.Context, tenant string, data []byte) ([]byte, error) {
	ks, err := k.keys(ctx, tenant, nil)
	if err != nil {
		return nil, err
	}
	sum, err := ks.mac.ComputeMAC(data)
	if err != nil {
		return nil, fmt.Errorf("computing a MAC for tenant %s: %w", tenant, err)
	}
	return sum, nil
}

// Check decrypts the keyset of each tenant and returns the first error: ErrKeysetUnopenable, or
// ErrNoKeyset, which means that the keys are lost if the tenant has secrets. It never creates a
// keyset.
func (k *Keyring) Check(ctx context.Context, tenants []string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16) // each tenant may need two calls to a remote KMS
	for _, tenant := range tenants {
		g.Go(func() error {
			_, err := k.keys(ctx, tenant, nil)
			return err
		})
	}
	return g.Wait()
}

// keys returns the tenant's primitives. It unwraps the keyset at its first use. If suffice is
// false for the cached ones, it reads the newest revision and returns that; a nil suffice accepts
// every revision. Failures are not cached.
func (k *Keyring) keys(ctx context.Context, tenant string, suffice func(*keys) bool) (*keys, error) {
	if suffice == nil {
		suffice = func(*keys) bool { return true }
	}
	for {
		k.mu.RLock()
		ks := k.open[tenant]
		k.mu.RUnlock()
		if ks != nil && suffice(ks) {
			return ks, nil
		}

		k.mu.Lock()
		if ks = k.open[tenant]; ks != nil && suffice(ks) {
			k.mu.Unlock()
			return ks, nil
		}
		l, waiting := k.loading[tenant]
		if !waiting {
			l = &load{done: make(chan struct{})}
			k.loading[tenant] = l
		}
		k.mu.Unlock()

		if !waiting {
			k.finish(ctx, tenant, l, ks)
			return l.keys, l.err
		}
		select {
		case <-l.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the keyset of tenant %s: %w", tenant, ctx.Err())
		}
		// A load that began before this call may have read an older revision.
		if !l.gaveUp && (l.err != nil || suffice(l.keys)) {
			return l.keys, l.err
		}
	}
}

// forget makes the next caller read the store again: a load in flight may have read it too
// early.
func (k *Keyring) forget(tenant string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.loading, tenant)
}

// finish completes l and wakes up its waiters.
func (k *Keyring) finish(ctx context.Context, tenant string, l *load, known *keys) {
	defer close(l.done)
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.loading[tenant] == l {
			delete(k.loading, tenant)
		}
		if l.keys != nil {
			k.open[tenant] = l.keys
		}
	}()
	l.err = errors.New("seal: unwrapping a keyset panicked") // replaced unless load panics
	l.keys, l.err = k.load(ctx, tenant, known)
	l.gaveUp = l.err != nil && ctx.Err() != nil
}

// load reads and unwraps the tenant's keyset: the newest revision if an earlier one is known.
// The KMS is only asked for a revision that is not known.
func (k *Keyring) load(ctx context.Context, tenant string, known *keys) (*keys, error) {
	read := k.store.Keyset
	if known != nil {
		read = k.store.NewestKeyset
	}
	asked := time.Now()
	wrapped, revision, err := read(ctx, tenant)
	if err != nil {
		return nil, fmt.Errorf("reading the keyset of tenant %s: %w", tenant, err)
	}
	ks := known
	if known == nil || known.revision != revision {
		_, _, ks, err = k.unwrap(tenant, wrapped)
		if err != nil {
			return nil, err
		}
		ks.revision = revision
	}
	if known != nil {
		ks.checked.Store(&asked)
	}
	return ks, nil
}

// The versions of keysetEntry: keysetFormat until the first rotation, then rotatedFormat. A
// reader refuses unknown versions.
const (
	keysetFormat  = 1
	rotatedFormat = 2
)

// keysetEntry is the stored form of a tenant's keyset, in JSON; it never changes. AEAD and MAC
// are Tink keysets in Tink's binary encrypted form.
type keysetEntry struct {
	Format int    `json:"format"`
	AEAD   []byte `json:"aead"`
	MAC    []byte `json:"mac"`
	// Rotated identifies the rotation that made the newest key, since format 2.
	Rotated uint64 `json:"rotated,omitzero"`
}

// keysetContext binds a wrapped keyset to its tenant, so that it cannot be used for another
// one.
func keysetContext(tenant string) []byte {
	var b []byte
	for _, part := range []string{"credstream/keyset/1", tenant} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
	}
	return b
}

// newKeyset creates and wraps new keys. It verifies that they can be decrypted with the
// tenant's name and with no other.
func (k *Keyring) newKeyset(tenant string) ([]byte, error) {
	macTemplate := mac.HMACSHA256Tag256KeyTemplate()
	macTemplate.OutputPrefixType = tinkpb.OutputPrefixType_RAW // 32 bytes without a prefix

	entry := keysetEntry{Format: keysetFormat}
	for _, part := range []struct {
		template *tinkpb.KeyTemplate
		wrapped  *[]byte
	}{{aead.AES256GCMKeyTemplate(), &entry.AEAD}, {macTemplate, &entry.MAC}} {
		handle, err := keyset.NewHandle(part.template)
		if err != nil {
			return nil, fmt.Errorf("making a keyset for tenant %s: %w", tenant, err)
		}
		if *part.wrapped, err = k.wrap(tenant, handle); err != nil {
			return nil, err
		}
	}
	return k.encode(tenant, entry)
}

func (k *Keyring) wrap(tenant string, handle *keyset.Handle) ([]byte, error) {
	var buf bytes.Buffer
	if err := handle.WriteWithAssociatedData(keyset.NewBinaryWriter(&buf), k.kms, keysetContext(tenant)); err != nil {
		return nil, fmt.Errorf("wrapping a keyset for tenant %s: %w: %w", tenant, ErrKeysetUnwrappable, err)
	}
	return buf.Bytes(), nil
}

// encode is the stored form of an entry, which has been proved to open for the tenant and for
// no other.
func (k *Keyring) encode(tenant string, entry keysetEntry) ([]byte, error) {
	if _, err := readKeyset(entry.AEAD, k.kms, keysetContext(tenant+"?")); err == nil {
		return nil, fmt.Errorf("wrapping a keyset for tenant %s: %w: the KMS key ignores associated data", tenant, ErrKeysetUnwrappable)
	}
	wrapped, err := json.Marshal(entry)
	if err != nil {
		return nil, fmt.Errorf("encoding the keyset of tenant %s: %w", tenant, err)
	}
	if _, _, _, err := k.unwrap(tenant, wrapped); err != nil {
		return nil, err
	}
	return wrapped, nil
}

// unwrap reads a stored entry and its encryption keys. Every failure is ErrKeysetUnopenable,
// with the cause for the operator.
func (k *Keyring) unwrap(tenant string, wrapped []byte) (entry keysetEntry, encryption *keyset.Handle, ks *keys, err error) {
	unopenable := func(cause error) (keysetEntry, *keyset.Handle, *keys, error) {
		return keysetEntry{}, nil, nil, fmt.Errorf("opening the keyset of tenant %s: %w: %w", tenant, ErrKeysetUnopenable, cause)
	}
	if err := json.Unmarshal(wrapped, &entry, json.RejectUnknownMembers(true)); err != nil {
		return unopenable(err)
	}
	if entry.Format != keysetFormat && entry.Format != rotatedFormat {
		return unopenable(fmt.Errorf("unknown format %d", entry.Format))
	}
	encryption, previous, err := k.read(tenant, entry.AEAD)
	if err != nil {
		return unopenable(err)
	}
	macHandle, _, err := k.read(tenant, entry.MAC)
	if err != nil {
		return unopenable(err)
	}
	info := encryption.KeysetInfo()
	ks = &keys{rotated: entry.Rotated, previous: previous, ids: []uint32{info.GetPrimaryKeyId()}}
	for _, key := range info.GetKeyInfo() {
		if id := key.GetKeyId(); id != ks.ids[0] {
			ks.ids = append(ks.ids, id)
		}
	}
	if ks.aead, err = aead.New(encryption); err != nil {
		return unopenable(err)
	}
	if ks.mac, err = mac.New(macHandle); err != nil {
		return unopenable(err)
	}
	return entry, encryption, ks, nil
}

// read opens a wrapped keyset, and reports whether only the previous KMS key does.
func (k *Keyring) read(tenant string, wrapped []byte) (handle *keyset.Handle, previous bool, err error) {
	handle, err = readKeyset(wrapped, k.kms, keysetContext(tenant))
	if err == nil || k.Previous == nil {
		return handle, false, err
	}
	handle, previousErr := readKeyset(wrapped, k.Previous, keysetContext(tenant))
	if previousErr != nil {
		return nil, false, errors.Join(err, previousErr)
	}
	return handle, true, nil
}

func readKeyset(wrapped []byte, kms tink.AEAD, associated []byte) (*keyset.Handle, error) {
	return keyset.ReadWithAssociatedData(keyset.NewBinaryReader(bytes.NewReader(wrapped)), kms, associated)
}
