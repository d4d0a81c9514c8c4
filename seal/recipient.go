package seal

import (
	"context"
	"crypto/ecdh"
	"crypto/hpke"
	"fmt"

	"github.com/credstream/credstream/fault"
)

// ErrSealedUnopenable refuses a text that was encrypted to another key or for another request.
var ErrSealedUnopenable = fault.New(fault.Unprocessable, "keys_sealed_unopenable",
	"The sealed keys cannot be opened: they are for another key, tenant, command or command id.")

// Suite is the encryption of secrets that are sent to the service: HPKE in base mode (RFC
// 9180). An encrypted text is the encapsulated key, 32 bytes, and the ciphertext.
const Suite = "DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM"

// To encrypts s to a public key of Recipient. Decryption requires the same info.
func To(public, info []byte, s Secret) ([]byte, error) {
	key, err := hpke.DHKEM(ecdh.X25519()).NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("reading a service key: %w", err)
	}
	return hpke.Seal(key, hpke.HKDFSHA256(), hpke.AES256GCM(), info, s.bytes())
}

// Recipient returns the tenant's public key (X25519, 32 bytes) for secrets that callers
// encrypt. It is derived from the tenant's MAC key: all processes of an installation have the
// same one, and it is not stored.
func (k *Keyring) Recipient(ctx context.Context, tenant string) ([]byte, error) {
	key, err := k.recipient(ctx, tenant)
	if err != nil {
		return nil, err
	}
	return key.PublicKey().Bytes(), nil
}

// OpenFor decrypts a text that To encrypted to the tenant's Recipient with the same info.
// Errors: ErrSealedUnopenable, those of MAC.
func (k *Keyring) OpenFor(ctx context.Context, tenant string, info, sealed []byte) (Secret, error) {
	key, err := k.recipient(ctx, tenant)
	if err != nil {
		return Secret{}, err
	}
	text, err := hpke.Open(key, hpke.HKDFSHA256(), hpke.AES256GCM(), info, sealed)
	if err != nil {
		return Secret{}, ErrSealedUnopenable
	}
	return NewSecret(text), nil
}

func (k *Keyring) recipient(ctx context.Context, tenant string) (hpke.PrivateKey, error) {
	seed, err := k.MAC(ctx, tenant, []byte("credstream/service-key/1"))
	if err != nil {
		return nil, err
	}
	key, err := hpke.DHKEM(ecdh.X25519()).DeriveKeyPair(seed)
	if err != nil {
		return nil, fmt.Errorf("deriving the service key of tenant %s: %w", tenant, err)
	}
	return key, nil
}
