package seal

import (
	"context"
	"errors"
	"fmt"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"

	"github.com/credstream/credstream/fault"
)

// A rotation adds an encryption key to a tenant's keyset (Rotate), encrypts the secrets of the
// earlier keys again, and destroys those keys (Retire).
//
// Another process may encrypt with an earlier key as long as its copy of the keyset is fresh, and
// store the result even later. Confirm detects the latter. So one Freshness after Rotate, every
// secret under an earlier key is stored, or its writer has an error.

// ErrKeyRetired is returned by Confirm: its key may be destroyed, so the secret counts as not stored.
var ErrKeyRetired = fault.New(fault.Unavailable, "encryption_key_retired", "The encryption key was replaced meanwhile. Retry.")

// Confirm returns ErrKeyRetired if the key of sealed may have been destroyed meanwhile. It reads
// the store only if the cached keyset is no longer fresh.
func (k *Keyring) Confirm(ctx context.Context, tenant string, sealed Sealed) error {
	ks, err := k.keys(ctx, tenant, func(ks *keys) bool { return ks.fresh(k.Freshness) })
	switch {
	case err != nil:
		return err
	case !ks.holds(sealed):
		return ErrKeyRetired
	}
	return nil
}

// EncryptionKeys describes the encryption keys of a tenant.
type EncryptionKeys struct {
	IDs      []uint32 // the first one encrypts
	Rotation uint64   // the last rotation; 0 if there was none
	Previous bool     // they are wrapped by the previous KMS key
}

// EncryptionKeys returns the tenant's encryption keys as the store has them now.
func (k *Keyring) EncryptionKeys(ctx context.Context, tenant string) (EncryptionKeys, error) {
	ks, err := k.keys(ctx, tenant, func(*keys) bool { return false })
	if err != nil {
		return EncryptionKeys{}, err
	}
	return EncryptionKeys{ks.ids, ks.rotated, ks.previous}, nil
}

// KeyOf returns the id of the encryption key that sealed; 0 if the form is unknown.
func KeyOf(sealed Sealed) uint32 { return keyOf(sealed) }

// Rotate adds an encryption key to the tenant's keyset, which Seal uses from then on. rotation
// identifies the rotation and must grow from one to the next: a repeat changes nothing. It
// returns the id of the key when the keyset is durable. Errors: ErrNoKeyset,
// ErrKeysetUnopenable, ErrKeysetUnwrappable, those of the store.
func (k *Keyring) Rotate(ctx context.Context, tenant string, rotation uint64) (key uint32, err error) {
	ks, err := k.change(ctx, tenant, func(entry *keysetEntry, m *keyset.Manager) (bool, error) {
		if entry.Rotated >= rotation {
			return false, nil
		}
		id, err := m.Add(aead.AES256GCMKeyTemplate())
		if err == nil {
			err = m.SetPrimary(id)
		}
		entry.Format, entry.Rotated = rotatedFormat, rotation
		return true, err
	})
	if err != nil {
		return 0, err
	}
	return ks.ids[0], nil
}

// Retire destroys the encryption keys before this rotation and returns their ids. Their secrets
// cannot be decrypted afterwards: the caller must have found none in a search that began at least
// one Freshness after Rotate. If there was a later rotation, it does nothing. Errors: those of
// Rotate.
func (k *Keyring) Retire(ctx context.Context, tenant string, rotation uint64) (retired []uint32, err error) {
	_, err = k.change(ctx, tenant, func(entry *keysetEntry, m *keyset.Manager) (bool, error) {
		retired = nil
		handle, err := m.Handle()
		if err != nil || entry.Rotated != rotation {
			return false, err
		}
		for _, key := range handle.KeysetInfo().GetKeyInfo() {
			if id := key.GetKeyId(); id != handle.KeysetInfo().GetPrimaryKeyId() {
				retired = append(retired, id)
				if err := m.Delete(id); err != nil {
					return false, err
				}
			}
		}
		return len(retired) > 0, nil
	})
	return retired, err
}

// Rewrap wraps the tenant's keyset with the KMS key if only Previous opens it, and reports
// whether it did. Errors: those of Rotate.
func (k *Keyring) Rewrap(ctx context.Context, tenant string) (rewrapped bool, err error) {
	_, err = k.change(ctx, tenant, func(entry *keysetEntry, _ *keyset.Manager) (bool, error) {
		_, previousAEAD, err := k.read(tenant, entry.AEAD)
		if err != nil {
			return false, err
		}
		handle, previousMAC, err := k.read(tenant, entry.MAC)
		if rewrapped = previousAEAD || previousMAC; err != nil || !rewrapped {
			return false, err
		}
		entry.MAC, err = k.wrap(tenant, handle) // change wraps the other one
		return true, err
	})
	return rewrapped && err == nil, err
}

// Destroy removes the tenant's keyset, here and in the store: what it encrypted cannot be
// decrypted any more. A tenant without a keyset is not an error.
func (k *Keyring) Destroy(ctx context.Context, tenant string) error {
	if err := k.store.RemoveKeyset(ctx, tenant); err != nil {
		return fmt.Errorf("destroying the keyset of tenant %s: %w", tenant, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.open, tenant)
	delete(k.loading, tenant)
	return nil
}

// changes is the number of attempts while other writers are first.
const changes = 8

// change applies do to the newest keyset of the tenant and stores the result, unless do returns
// false.
func (k *Keyring) change(ctx context.Context, tenant string, do func(*keysetEntry, *keyset.Manager) (bool, error)) (*keys, error) {
	for try := 0; ; try++ {
		wrapped, revision, err := k.store.NewestKeyset(ctx, tenant)
		if err != nil {
			return nil, fmt.Errorf("reading the keyset of tenant %s: %w", tenant, err)
		}
		entry, encryption, ks, err := k.unwrap(tenant, wrapped)
		if err != nil {
			return nil, err
		}
		m := keyset.NewManagerFromHandle(encryption)
		changed, err := do(&entry, m)
		if err != nil {
			return nil, fmt.Errorf("changing the keyset of tenant %s: %w", tenant, err)
		}
		if !changed { // an earlier attempt may have got no further than this
			return ks, k.store.RemoveEarlier(ctx, tenant, revision)
		}
		handle, err := m.Handle()
		if err != nil {
			return nil, fmt.Errorf("changing the keyset of tenant %s: %w", tenant, err)
		}
		if entry.AEAD, err = k.wrap(tenant, handle); err != nil {
			return nil, err
		}
		if wrapped, err = k.encode(tenant, entry); err != nil {
			return nil, err
		}
		err = k.store.UpdateKeyset(ctx, tenant, wrapped, revision)
		if errors.Is(err, ErrKeysetExists) && try < changes {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("changing the keyset of tenant %s: %w", tenant, err)
		}
		if _, err := k.keys(ctx, tenant, func(*keys) bool { return false }); err != nil {
			return nil, err
		}
		do = func(*keysetEntry, *keyset.Manager) (bool, error) { return false, nil }
	}
}
