//go:build !gcpkms

package seal

import (
	"context"
	"errors"

	"github.com/tink-crypto/tink-go/v2/tink"
)

func openGCP(context.Context, string) (tink.AEAD, error) {
	return nil, errors.New("opening the KMS key: gcp-kms is not part of this program: build it with the tag gcpkms")
}
