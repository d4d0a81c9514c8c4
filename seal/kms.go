package seal

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"time"

	"github.com/tink-crypto/tink-go/v2/tink"
)

// kmsTimeout bounds every call to a remote KMS, retries included.
const kmsTimeout = 10 * time.Second

// KMS says which key wraps the tenants' keysets.
type KMS struct {
	// URL is one of
	//	file:///absolute/path, file:relative/path   a key file made by CreateKeyFile
	//	hcvault://host[:port]/<mount>/keys/<name>   Vault or OpenBao transit
	//	aws-kms://arn:aws:kms:...                   in a build with the tag awskms
	//	gcp-kms://projects/.../cryptoKeys/<name>    in a build with the tag gcpkms
	// A transit key must be of an AEAD type (aes256-gcm96, say) and not derived.
	// Its URL may carry ?namespace=<name>, ?ca_file=<PEM file> and, for loopback
	// addresses only, ?tls=off.
	URL string
	// Token is Vault's. The cloud drivers find their credentials themselves.
	Token Secret
}

// OpenKMS returns the AEAD that cfg names. Every call of a remote one ends
// within 10 s. It makes no key and, but for a key file, does not yet look
// whether the key is there: Keyring.Check does.
func OpenKMS(ctx context.Context, cfg KMS) (tink.AEAD, error) {
	scheme, _, _ := strings.Cut(cfg.URL, ":")
	switch scheme {
	case "file", "hcvault":
		u, err := url.Parse(cfg.URL)
		if err != nil {
			return nil, errors.New("opening the KMS key: its URL is malformed") // and may hold what must not be shown
		}
		if scheme == "file" {
			return openKeyFile(u)
		}
		return openVault(u, cfg.Token)
	case "aws-kms": // not for net/url: an ARN has colons
		return openAWS(ctx, cfg.URL)
	case "gcp-kms":
		return openGCP(ctx, cfg.URL)
	}
	return nil, errors.New("opening the KMS key: the scheme of the URL must be file, hcvault, aws-kms or gcp-kms")
}
