//go:build awskms || gcpkms

package seal

import (
	"context"

	"github.com/tink-crypto/tink-go/v2/tink"
)

// bounded limits every call of a driver to kmsTimeout.
type bounded struct{ kms tink.AEADWithContext }

func (b bounded) Encrypt(plaintext, associatedData []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), kmsTimeout)
	defer cancel()
	return b.kms.EncryptWithContext(ctx, plaintext, associatedData)
}

func (b bounded) Decrypt(ciphertext, associatedData []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), kmsTimeout)
	defer cancel()
	return b.kms.DecryptWithContext(ctx, ciphertext, associatedData)
}
