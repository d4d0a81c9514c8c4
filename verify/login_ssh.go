package verify

import (
	"context"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

// hostKeyAlgorithms are those of the host keys that are accepted, by the type of the key.
var hostKeyAlgorithms = []struct {
	keyType    string
	algorithms []string
}{
	{ssh.KeyAlgoED25519, []string{ssh.KeyAlgoED25519}},
	{ssh.KeyAlgoECDSA256, []string{ssh.KeyAlgoECDSA256}},
	{ssh.KeyAlgoECDSA384, []string{ssh.KeyAlgoECDSA384}},
	{ssh.KeyAlgoECDSA521, []string{ssh.KeyAlgoECDSA521}},
	{ssh.KeyAlgoRSA, []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}},
}

// ssh signs in to an SSH server (RFC 4252) and runs nothing there; for SFTP it opens that subsystem.
func (l login) ssh(ctx context.Context, conn net.Conn) Result {
	var offered string
	asked, more := false, false
	password := func() (string, error) { asked = true; return l.password, nil }
	config := &ssh.ClientConfig{
		User: l.username, ClientVersion: "SSH-2.0-credstream",
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			if offered = hostKey(key); l.hostKey != "" && offered != l.hostKey {
				return errHostKey
			}
			return nil
		},
	}
	if l.signer != nil {
		config.Auth = append(config.Auth, ssh.PublicKeysCallback(func() ([]ssh.Signer, error) {
			asked = true
			return []ssh.Signer{l.signer}, nil
		}))
	}
	if l.password != "" {
		config.Auth = append(config.Auth, ssh.PasswordCallback(password), ssh.KeyboardInteractive(
			func(_, _ string, questions []string, echos []bool) ([]string, error) {
				answers := make([]string, len(questions))
				for i, echo := range echos {
					if echo { // no question for a password
						more = true
						return nil, errors.New("another question than for a password")
					}
					answers[i], _ = password()
				}
				return answers, nil
			}))
	}
	// The type of the known key comes first: a server that adds another key still shows this one.
	known, _, _ := strings.Cut(l.hostKey, " ")
	for _, a := range hostKeyAlgorithms {
		if a.keyType == known {
			config.HostKeyAlgorithms = slices.Concat(a.algorithms, config.HostKeyAlgorithms)
		} else {
			config.HostKeyAlgorithms = append(config.HostKeyAlgorithms, a.algorithms...)
		}
	}
	r := l.overSSH(ctx, conn, config, &asked)
	if more && r.Outcome == OutcomeProtocol {
		r = l.says(OutcomeRejected, "The server asks for more than a password, such as a second factor.")
	}
	if r.HostKey = offered; l.hostKey != "" && offered != "" && offered != l.hostKey {
		r.Outcome = OutcomeHostKey
		r.Says = fmt.Sprintf("The server has another host key than before (%s), so nothing was sent to it. If its operator confirms the new key, accept it with host_key.", offered)
	}
	return r
}

var errHostKey = errors.New("another host key")

// hostKey is the type of a key and its fingerprint, as OpenSSH shows it.
func hostKey(key ssh.PublicKey) string { return key.Type() + " " + ssh.FingerprintSHA256(key) }

func (l login) overSSH(ctx context.Context, conn net.Conn, config *ssh.ClientConfig, asked *bool) Result {
	c, channels, requests, err := ssh.NewClientConn(conn, l.address, config)
	switch {
	case err != nil && ctx.Err() == nil && strings.Contains(err.Error(), "unable to authenticate"): // package ssh exports no error for it
		return l.result(OutcomeRejected)
	case err != nil:
		return l.failed(ctx, err)
	}
	client := ssh.NewClient(c, channels, requests)
	defer func() { _ = client.Close() }()
	if !*asked {
		return l.unasked()
	}
	if l.protocol == ProtocolSFTP {
		session, err := client.NewSession()
		if err == nil {
			err = session.RequestSubsystem("sftp")
		}
		if err != nil && ctx.Err() == nil {
			return l.says(OutcomeRejected, "The server accepted the user name, but does not allow SFTP.")
		}
		if err != nil {
			return l.failed(ctx, err)
		}
	}
	return l.result(OutcomeSignedIn)
}

// maxKeyFile is larger than an RSA key of 8192 bits, in bytes after decoding.
const maxKeyFile = 8 << 10

// privateKey parses the private key in a field; nil if it has no value. Encrypted keys are refused:
// the file says how often its passphrase is hashed, and could occupy a processor for hours.
func privateKey(template string, values Values) (ssh.Signer, error) {
	text, field, err := file(template, values)
	if err != nil || len(text) == 0 {
		return nil, err
	}
	block, _ := pem.Decode(text)
	switch {
	case block == nil || !slices.Contains([]string{"OPENSSH PRIVATE KEY", "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"}, block.Type):
		return nil, refuse(field, "is not a private key in PEM or in the form of OpenSSH, not encrypted")
	case len(block.Bytes) > maxKeyFile || OversizedKey(block.Bytes) || block.Type == "OPENSSH PRIVATE KEY" && oversizedOpenSSH(block.Bytes):
		return nil, refuse(field, "is an RSA key of more than 8192 bits")
	}
	signer, err := ssh.ParsePrivateKey(pem.EncodeToMemory(&pem.Block{Type: block.Type, Headers: block.Headers, Bytes: block.Bytes}))
	if err != nil {
		return nil, refuse(field, "is not a private key in PEM or in the form of OpenSSH, not encrypted")
	}
	return signer, nil
}

// oversizedOpenSSH reports whether a file of OpenSSH (PROTOCOL.key) has a number that is larger than
// those of an RSA key of 8192 bits: package ssh computes with them before it compares them. A file
// that it cannot read is refused by package ssh too.
func oversizedOpenSSH(der []byte) bool {
	const magic = "openssh-key-v1\x00"
	if !strings.HasPrefix(string(der), magic) {
		return false
	}
	rest := der[len(magic):]
	next := func() (field []byte) {
		if len(rest) < 4 || uint64(binary.BigEndian.Uint32(rest)) > uint64(len(rest)-4) {
			rest = nil
			return nil
		}
		n := binary.BigEndian.Uint32(rest)
		field, rest = rest[4:4+n], rest[4+n:]
		return field
	}
	next() // cipher
	next() // key derivation
	next() // its options
	if len(rest) < 4 {
		return false
	}
	rest = rest[4:] // how many keys
	next()          // the public key
	if rest = next(); len(rest) < 8 {
		return false
	}
	rest = rest[8:] // two equal numbers
	if string(next()) != ssh.KeyAlgoRSA {
		return false
	}
	for len(rest) > 0 {
		if new(big.Int).SetBytes(next()).BitLen() > maxRSA {
			return true
		}
	}
	return false
}
