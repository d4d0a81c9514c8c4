//go:build gcpkms

package seal

import (
	"context"
	"fmt"

	"github.com/tink-crypto/tink-go-gcpkms/v2/integration/gcpkms"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// openGCP returns a key of Google Cloud KMS.
func openGCP(ctx context.Context, keyURL string) (tink.AEAD, error) {
	kms, err := gcpkms.GetAEADWithContext(ctx, keyURL)
	if err != nil {
		return nil, fmt.Errorf("opening the Google Cloud KMS key: %w", err)
	}
	return bounded{kms}, nil
}
