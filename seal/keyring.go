package seal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/mac"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"
	"github.com/tink-crypto/tink-go/v2/tink"
	"golang.org/x/sync/errgroup"

	"github.com/credstream/credstream/fault"
)

// Sealed is a secret under a tenant's keys: a Tink ciphertext (AES-256-GCM,
// prefixed with the id of its key). It may be stored, never in the log.
type Sealed []byte

// The errors of a Keyring and its store.
var (
	// ErrNoKeyset says that a tenant has no keys yet: Ensure makes them.
	ErrNoKeyset = fault.New(fault.NotFound, "keyset_not_found", "The tenant has no encryption keys.")
	// ErrKeysetMissing says that a tenant which has been registered has no keys: they are
	// lost. New ones would open nothing, so none are made.
	ErrKeysetMissing = fault.New(fault.Unavailable, "keyset_missing",
		"The encryption keys of a tenant are lost. Changes are refused and no secret is returned until they are restored from a backup.")
	// ErrKeysetExists is returned by a KeysetStore whose caller came second.
	ErrKeysetExists = fault.New(fault.Exists, "keyset_exists", "The encryption keys of the tenant were created or changed concurrently.")
	// ErrKeysetUnopenable says that a stored keyset is there and does not open:
	// wrong KMS key, KMS out of reach, or a damaged or foreign entry.
	ErrKeysetUnopenable = fault.New(fault.Unavailable, "keyset_unopenable", "The encryption keys of the tenant cannot be decrypted with this KMS key.")
	// ErrKeysetUnwrappable says that new keys could not be wrapped by the KMS.
	ErrKeysetUnwrappable = fault.New(fault.Unavailable, "keyset_unwrappable", "New encryption keys of the tenant cannot be wrapped with this KMS key.")
	// ErrSecretUnopenable says that sealed bytes do not open: damaged, sealed for
	// another tenant, or bound to something else.
	ErrSecretUnopenable = fault.New(fault.Internal, "secret_unopenable", "A stored secret cannot be decrypted.")
)

// KeysetStore keeps the wrapped keyset of each tenant. What it has taken is
// durable when a method returns, and so is what it returns.
type KeysetStore interface {
	// Keyset returns the tenant's wrapped keyset and its revision, or ErrNoKeyset.
	Keyset(ctx context.Context, tenant string) (wrapped []byte, revision uint64, err error)
	// CreateKeyset stores the tenant's first keyset. It returns ErrKeysetExists
	// when another writer was first.
	CreateKeyset(ctx context.Context, tenant string, wrapped []byte) error
	// UpdateKeyset replaces the keyset of this revision. It returns
	// ErrKeysetExists when another writer was first.
	UpdateKeyset(ctx context.Context, tenant string, wrapped []byte, revision uint64) error
}

// Keyring seals and opens with the keys of each tenant. Keys are unwrapped by
// the KMS once, at first use, and stay in memory. It is safe for concurrent use.
type Keyring struct {
	kms   tink.AEAD
	store KeysetStore

	mu      sync.RWMutex
	open    map[string]*keys
	loading map[string]*load
}

// keys are the ready primitives of one tenant.
type keys struct {
	aead tink.AEAD
	mac  tink.MAC
}

// load is one unwrapping under way, shared by all who wait for it.
type load struct {
	done   chan struct{}
	keys   *keys
	err    error
	gaveUp bool // the loader's own context ended: says nothing about the keyset
}

// NewKeyring returns a Keyring over the keysets in store, wrapped by kms.
func NewKeyring(kms tink.AEAD, store KeysetStore) *Keyring {
	return &Keyring{kms: kms, store: store, open: map[string]*keys{}, loading: map[string]*load{}}
}

// Ensure makes the tenant's keyset if there is none. Many callers, here and in
// other processes, end up with the same one. It returns when the keyset is
// durable and has been opened once. Errors: ErrKeysetUnopenable,
// ErrKeysetUnwrappable, those of the store.
func (k *Keyring) Ensure(ctx context.Context, tenant string) error {
	_, err := k.keys(ctx, tenant)
	if !errors.Is(err, ErrNoKeyset) {
		return err
	}
	wrapped, err := k.newKeyset(tenant)
	if err != nil {
		return err
	}
	created := k.store.CreateKeyset(ctx, tenant, wrapped)
	k.forget(tenant)
	// Ours, or that of whoever was first; and when the outcome is not known, this
	// tells. Only what the store gives back is ever used.
	if _, err = k.keys(ctx, tenant); err != nil && created != nil && !errors.Is(created, ErrKeysetExists) {
		return fmt.Errorf("creating the keyset of tenant %s: %w", tenant, created)
	}
	return err
}

// Seal seals s for the tenant, bound to associated, which Open must repeat.
// Errors: ErrNoKeyset, ErrKeysetUnopenable, those of the store.
func (k *Keyring) Seal(ctx context.Context, tenant string, s Secret, associated []byte) (Sealed, error) {
	ks, err := k.keys(ctx, tenant)
	if err != nil {
		return nil, err
	}
	sealed, err := ks.aead.Encrypt(s.bytes(), associated)
	if err != nil {
		return nil, fmt.Errorf("sealing for tenant %s: %w", tenant, err)
	}
	return sealed, nil
}

// Open opens what Seal made with the same tenant and associated. Errors:
// ErrSecretUnopenable, ErrNoKeyset, ErrKeysetUnopenable, those of the store.
func (k *Keyring) Open(ctx context.Context, tenant string, sealed Sealed, associated []byte) (Secret, error) {
	ks, err := k.keys(ctx, tenant)
	if err != nil {
		return Secret{}, err
	}
	text, err := ks.aead.Decrypt(sealed, associated)
	if err != nil {
		return Secret{}, fmt.Errorf("opening a secret of tenant %s: %w", tenant, ErrSecretUnopenable)
	}
	return NewSecret(text), nil
}

// MAC is the HMAC-SHA256 (RFC 2104) of data under the tenant's MAC key: 32
// bytes, the same for the same data. Errors: ErrNoKeyset, ErrKeysetUnopenable,
// those of the store.
func (k *Keyring) MAC(ctx context.Context, tenant string, data []byte) ([]byte, error) {
	ks, err := k.keys(ctx, tenant)
	if err != nil {
		return nil, err
	}
	sum, err := ks.mac.ComputeMAC(data)
	if err != nil {
		return nil, fmt.Errorf("computing a MAC for tenant %s: %w", tenant, err)
	}
	return sum, nil
}

// Check opens the keyset of every given tenant and returns the first failure:
// ErrKeysetUnopenable, or ErrNoKeyset, which for a tenant that has secrets means
// that its keys are lost. It never makes a keyset.
func (k *Keyring) Check(ctx context.Context, tenants []string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16) // each may be two calls to a remote KMS
	for _, tenant := range tenants {
		g.Go(func() error {
			_, err := k.keys(ctx, tenant)
			return err
		})
	}
	return g.Wait()
}

// keys returns the tenant's primitives, unwrapping its keyset at first use.
// Failures are not remembered.
func (k *Keyring) keys(ctx context.Context, tenant string) (*keys, error) {
	for {
		k.mu.RLock()
		ks := k.open[tenant]
		k.mu.RUnlock()
		if ks != nil {
			return ks, nil
		}

		k.mu.Lock()
		if ks := k.open[tenant]; ks != nil {
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
			k.finish(ctx, tenant, l)
			return l.keys, l.err
		}
		select {
		case <-l.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the keyset of tenant %s: %w", tenant, ctx.Err())
		}
		if !l.gaveUp {
			return l.keys, l.err
		}
	}
}

// forget lets the next caller read the store again: a load under way may have read it
// before what the caller knows to be there.
func (k *Keyring) forget(tenant string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.loading, tenant)
}

// finish does the work of l and tells those who wait for it.
func (k *Keyring) finish(ctx context.Context, tenant string, l *load) {
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
	l.err = errors.New("seal: unwrapping a keyset panicked") // seen only then
	l.keys, l.err = k.load(ctx, tenant)
	l.gaveUp = l.err != nil && ctx.Err() != nil
}

// load reads and unwraps the tenant's keyset.
func (k *Keyring) load(ctx context.Context, tenant string) (*keys, error) {
	wrapped, _, err := k.store.Keyset(ctx, tenant)
	if err != nil {
		return nil, fmt.Errorf("reading the keyset of tenant %s: %w", tenant, err)
	}
	return k.unwrap(tenant, wrapped)
}

// keysetFormat is the version of a keysetEntry's form. A reader stops at one it
// does not know.
const keysetFormat = 1

// keysetEntry is the stored form of a tenant's keyset, in JSON, forever. AEAD
// and MAC are Tink keysets in Tink's binary encrypted form.
type keysetEntry struct {
	Format int    `json:"format"`
	AEAD   []byte `json:"aead"`
	MAC    []byte `json:"mac"`
}

// keysetContext binds a wrapped keyset to its tenant, so that it does not open
// in another one's place.
func keysetContext(tenant string) []byte {
	var b []byte
	for _, part := range []string{"credstream/keyset/1", tenant} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
	}
	return b
}

// newKeyset makes and wraps new keys, and proves that they can be opened again
// with the tenant's name and with no other.
func (k *Keyring) newKeyset(tenant string) ([]byte, error) {
	macTemplate := mac.HMACSHA256Tag256KeyTemplate()
	macTemplate.OutputPrefixType = tinkpb.OutputPrefixType_RAW // the bare 32 bytes

	entry := keysetEntry{Format: keysetFormat}
	for _, part := range []struct {
		template *tinkpb.KeyTemplate
		wrapped  *[]byte
	}{{aead.AES256GCMKeyTemplate(), &entry.AEAD}, {macTemplate, &entry.MAC}} {
		handle, err := keyset.NewHandle(part.template)
		if err != nil {
			return nil, fmt.Errorf("making a keyset for tenant %s: %w", tenant, err)
		}
		var buf bytes.Buffer
		if err := handle.WriteWithAssociatedData(keyset.NewBinaryWriter(&buf), k.kms, keysetContext(tenant)); err != nil {
			return nil, fmt.Errorf("wrapping a keyset for tenant %s: %w: %w", tenant, ErrKeysetUnwrappable, err)
		}
		*part.wrapped = buf.Bytes()
	}
	if _, err := readKeyset(entry.AEAD, k.kms, keysetContext(tenant+"?")); err == nil {
		return nil, fmt.Errorf("wrapping a keyset for tenant %s: %w: the KMS key ignores associated data", tenant, ErrKeysetUnwrappable)
	}
	wrapped, err := json.Marshal(entry)
	if err != nil {
		return nil, fmt.Errorf("encoding the keyset of tenant %s: %w", tenant, err)
	}
	if _, err := k.unwrap(tenant, wrapped); err != nil {
		return nil, err
	}
	return wrapped, nil
}

// unwrap reads a stored entry. Every failure is ErrKeysetUnopenable, with the
// cause for the operator.
func (k *Keyring) unwrap(tenant string, wrapped []byte) (*keys, error) {
	unopenable := func(cause error) error {
		return fmt.Errorf("opening the keyset of tenant %s: %w: %w", tenant, ErrKeysetUnopenable, cause)
	}
	var entry keysetEntry
	if err := json.Unmarshal(wrapped, &entry, json.RejectUnknownMembers(true)); err != nil {
		return nil, unopenable(err)
	}
	if entry.Format != keysetFormat {
		return nil, unopenable(fmt.Errorf("unknown format %d", entry.Format))
	}
	aeadHandle, err := readKeyset(entry.AEAD, k.kms, keysetContext(tenant))
	if err != nil {
		return nil, unopenable(err)
	}
	macHandle, err := readKeyset(entry.MAC, k.kms, keysetContext(tenant))
	if err != nil {
		return nil, unopenable(err)
	}
	ks := &keys{}
	if ks.aead, err = aead.New(aeadHandle); err != nil {
		return nil, unopenable(err)
	}
	if ks.mac, err = mac.New(macHandle); err != nil {
		return nil, unopenable(err)
	}
	return ks, nil
}

func readKeyset(wrapped []byte, kms tink.AEAD, associated []byte) (*keyset.Handle, error) {
	return keyset.ReadWithAssociatedData(keyset.NewBinaryReader(bytes.NewReader(wrapped)), kms, associated)
}
