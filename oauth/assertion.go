package oauth

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/verify"
)

// GrantJWT is the grant type of an assertion (RFC 7523, section 2.1).
const GrantJWT = "urn:ietf:params:oauth:grant-type:jwt-bearer"

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// ErrSigningKey means that the private key of a credential cannot sign assertions.
var ErrSigningKey = fault.New(fault.Unprocessable, "oauth_signing_key_invalid",
	"The private key cannot sign the request: it must be a private key in PEM (PKCS #8, PKCS #1 or SEC 1), not encrypted, of the type that the component's signing.alg requires.")

// JWT signs the assertions of a credential.
type JWT struct {
	Alg      string            // "RS256", ...
	Key      seal.Secret       // private key in PEM
	KeyID    string            // "" for none
	Claims   map[string]string // aud is the token endpoint if absent
	Lifetime time.Duration     // 0: 5 min
}

// sign returns an assertion with these claims in addition to the service's own; others take
// precedence. Errors: ErrSigningKey.
func (j *JWT) sign(audience string, others map[string]string, now time.Time) (string, error) {
	key, err := privateKey(j.Key)
	if err != nil {
		return "", err
	}
	options := (&jose.SignerOptions{}).WithType("JWT")
	if j.KeyID != "" {
		options = options.WithHeader(jose.HeaderKey("kid"), j.KeyID)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(j.Alg), Key: key}, options)
	if err != nil {
		return "", ErrSigningKey
	}
	claims := map[string]any{"aud": audience}
	for _, given := range []map[string]string{j.Claims, others} {
		for name, value := range given {
			claims[name] = value
		}
	}
	lifetime := j.Lifetime
	if lifetime == 0 {
		lifetime = 5 * time.Minute
	}
	claims["iat"], claims["exp"], claims["jti"] = now.Unix(), now.Add(lifetime).Unix(), rand.Text()
	text, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil { // it may quote the key
		return "", ErrSigningKey
	}
	return text, nil
}

// privateKey parses a private key. Line breaks may have become "\n", as in a key file of Google.
func privateKey(secret seal.Secret) (crypto.Signer, error) {
	text := strings.ReplaceAll(string(secret.Reveal()), `\n`, "\n")
	block, _ := pem.Decode([]byte(text))
	if block == nil || verify.OversizedKey(block.Bytes) {
		return nil, ErrSigningKey
	}
	var key any
	err := errors.New("unknown type")
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	}
	signer, ok := key.(crypto.Signer)
	if err != nil || !ok {
		return nil, ErrSigningKey
	}
	return signer, nil
}

// authenticate adds the client's own parameters to a token request. basic means that its id and
// secret have to be sent in a header instead.
func (p Provider) authenticate(c Client, audience string, form map[string][]string) (basic bool, err error) {
	switch {
	case p.PrivateKeyJWT && p.JWT != nil:
		assertion, err := p.JWT.sign(audience, map[string]string{"iss": c.ID, "sub": c.ID, "aud": audience}, time.Now())
		if err != nil {
			return false, fmt.Errorf("signing: %w", err)
		}
		form["client_id"], form["client_assertion_type"], form["client_assertion"] = []string{c.ID}, []string{assertionType}, []string{assertion}
	case p.Basic && !p.Public && !c.Secret.IsZero():
		return true, nil
	default:
		if c.ID != "" {
			form["client_id"] = []string{c.ID}
		}
		if !p.Public && !c.Secret.IsZero() {
			form["client_secret"] = []string{string(c.Secret.Reveal())}
		}
	}
	return false, nil
}
