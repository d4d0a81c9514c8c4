package seal

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"time"

	"github.com/tink-crypto/tink-go/v2/tink"
)

// kmsTimeout limits every call to a remote KMS, with its retries.
const kmsTimeout = 10 * time.Second

// KMS identifies the key that wraps the tenants' keysets.
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
	// Token is the token for Vault. The cloud drivers find their credentials in the
	// environment.
	Token Secret
}

// OpenKMS returns the AEAD of cfg. Each call to a remote KMS ends within 10 s. It creates no
// key. Except for a key file, it does not check whether the key exists: Keyring.Check does.
func OpenKMS(ctx context.Context, cfg KMS) (tink.AEAD, error) {
	scheme, _, _ := strings.Cut(cfg.URL, ":")
	switch scheme {
	case "file", "hcvault":
		u, err := url.Parse(cfg.URL)
		if err != nil {
			return nil, errors.New("opening the KMS key: its URL is malformed") // the error would quote the URL, which may contain a secret
		}
		if scheme == "file" {
			return openKeyFile(u)
		}
		return openVault(u, cfg.Token)
	case "aws-kms": // not parsed by net/url: an ARN contains colons
		return openAWS(ctx, cfg.URL)
	case "gcp-kms":
		return openGCP(ctx, cfg.URL)
	}
	return nil, errors.New("opening the KMS key: the scheme of the URL must be file, hcvault, aws-kms or gcp-kms")
}
