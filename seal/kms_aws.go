//go:build awskms

package seal

import (
	"context"
	"fmt"
	"strings"

	"github.com/tink-crypto/tink-go-awskms/v3/integration/awskms"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// openAWS returns a key of AWS KMS. It sends the associated data as encryption context.
func openAWS(ctx context.Context, keyURL string) (tink.AEAD, error) {
	kms, err := awskms.NewAEADWithContext(ctx, strings.TrimPrefix(keyURL, "aws-kms://"))
	if err != nil {
		return nil, fmt.Errorf("opening the AWS KMS key: %w", err)
	}
	return bounded{kms}, nil
}
