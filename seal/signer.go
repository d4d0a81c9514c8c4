package seal

import (
	"context"
	"crypto/ed25519"
)

// SigningKey is the tenant's public key for what the service signs. Like Recipient, it is
// derived from the tenant's MAC key: every process of an installation has the same one, and
// a backup of the keysets and the KMS key holds it.
func (k *Keyring) SigningKey(ctx context.Context, tenant string) (ed25519.PublicKey, error) {
	key, err := k.signer(ctx, tenant)
	if err != nil {
		return nil, err
	}
	return key.Public().(ed25519.PublicKey), nil
}

// Sign signs a message with the tenant's signing key (Ed25519).
func (k *Keyring) Sign(ctx context.Context, tenant string, message []byte) (signature []byte, err error) {
	key, err := k.signer(ctx, tenant)
	if err != nil {
		return nil, err
	}
	return ed25519.Sign(key, message), nil
}

func (k *Keyring) signer(ctx context.Context, tenant string) (ed25519.PrivateKey, error) {
	seed, err := k.MAC(ctx, tenant, []byte("credstream/signing-key/1"))
	if err != nil {
		return nil, err
	}
	return ed25519.NewKeyFromSeed(seed), nil
}
