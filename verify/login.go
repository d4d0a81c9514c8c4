package verify

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/go-ldap/ldap/v3"
	"golang.org/x/crypto/ssh"
)

// The protocols of a Login.
const (
	ProtocolSMTP     = "smtp"
	ProtocolIMAP     = "imap"
	ProtocolLDAP     = "ldap"
	ProtocolPostgres = "postgres"
	ProtocolMySQL    = "mysql"
	ProtocolSSH      = "ssh"
	ProtocolSFTP     = "sftp" // SSH, and the subsystem of that name
)

// Login signs in to a server and does nothing else there. All but SSH and SFTP require TLS with a
// trusted certificate before anything secret is sent.
type Login struct {
	Protocol string
	TCP
	TLSFiles                  // not of SSH and SFTP
	Implicit           bool   // SMTP, IMAP and LDAP: TLS from the start; else STARTTLS, which the server must offer
	Username, Password string //
	Database           string // Postgres and MySQL; "" for the server's default
	PrivateKey         string // SSH and SFTP: PEM or the form of OpenSSH, not encrypted
	HostKey            string // SSH and SFTP: the only one to accept, as in Result; "" accepts any
}

const maxDialogue = 64 << 10 // bytes that are read from a server that is not HTTP

// limited is a connection of which a limited number of bytes is read.
type limited struct {
	net.Conn
	from io.Reader
}

// Read implements io.Reader.
func (l limited) Read(b []byte) (int, error) { return l.from.Read(b) }

// login is a Login whose templates are expanded.
type login struct {
	protocol                     string
	address                      string
	username, password, database string
	implicit                     bool
	tls                          *tls.Config
	signer                       ssh.Signer // nil: none
	hostKey                      string
}

func (c *Client) prepareLogin(p *Login, hosts []string, values Values) (attempt, error) {
	address, host, err := expandAddress(p.TCP, hosts, values)
	if err != nil {
		return nil, err
	}
	l := login{protocol: p.Protocol, address: address, implicit: p.Implicit, tls: c.tlsConfig(host), hostKey: p.HostKey}
	if err := p.addTo(l.tls, values); err != nil {
		return nil, err
	}
	asName := asPassword
	if p.Protocol == ProtocolLDAP && !isOneField(p.Username) {
		asName = asDNPart
	}
	if l.username, err = expand(p.Username, values, asName); err != nil {
		return nil, err
	}
	if l.password, err = expand(p.Password, values, asPassword); err != nil {
		return nil, err
	}
	if l.database, err = expand(p.Database, values, asPassword); err != nil {
		return nil, err
	}
	if l.signer, err = privateKey(p.PrivateKey, values); err != nil {
		return nil, err
	}
	if l.username == "" || l.password == "" && l.signer == nil || len(l.username)+len(l.password)+len(l.database) > maxLine/2 {
		if p.PrivateKey != "" {
			return nil, ErrValueInvalid.Withf("The user name and either the password or the private key are required, and must be shorter than 8 KiB.")
		}
		return nil, ErrValueInvalid.Withf("The user name and the password are required, and must be shorter than 8 KiB.")
	}
	speak := map[string]func(login, context.Context, net.Conn) Result{
		ProtocolSMTP: login.smtp, ProtocolIMAP: login.imap, ProtocolLDAP: login.ldap,
		ProtocolPostgres: login.postgres, ProtocolMySQL: login.mysql, ProtocolSSH: login.ssh, ProtocolSFTP: login.ssh,
	}[p.Protocol]
	if speak == nil {
		return nil, errTemplate
	}
	return func(ctx context.Context, _ context.CancelFunc) (r Result) {
		conn, err := c.guard.dial(ctx, "tcp", address, c.guard.anyPort)
		if err != nil {
			return unreached(l.protocol, err, false)
		}
		defer func() { _ = conn.Close() }()
		defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
		// The drivers index into what a server sent; the one of MySQL without a check of its length.
		defer func() {
			if recover() != nil {
				r = l.result(OutcomeProtocol)
			}
		}()
		return speak(l, ctx, limited{conn, io.LimitReader(conn, maxDialogue)})
	}, nil
}

// isOneField reports whether a template is a {{field}} and nothing else.
func isOneField(template string) bool {
	return strings.HasPrefix(template, "{{") && strings.Index(template, "}}") == len(template)-2
}

// asDNPart escapes a value for a distinguished name (RFC 4514), so that it stays one value.
func asDNPart(field, value string) (string, error) {
	if hasControl(value) {
		return "", refuse(field, "contains a line break or another control character")
	}
	return ldap.EscapeDN(value), nil
}

// protocolNames are for the sentences of results.
var protocolNames = map[string]string{
	ProtocolSMTP: "SMTP", ProtocolIMAP: "IMAP", ProtocolLDAP: "LDAP", ProtocolPostgres: "that of PostgreSQL",
	ProtocolMySQL: "that of MySQL", ProtocolSSH: "SSH", ProtocolSFTP: "SSH",
}

// result returns the result of an outcome with its default sentence.
func (l login) result(outcome string) Result {
	r := Result{Probe: l.protocol, Outcome: outcome}
	what := "the user name and the password"
	if l.signer != nil {
		what = "the user name and the private key"
		if l.password != "" {
			what = "the user name, and the private key or the password"
		}
	}
	switch outcome {
	case OutcomeSignedIn:
		r.OK, r.Says = true, "The server accepted "+what+"."
	case OutcomeRejected:
		r.Says = "The server rejected " + what + "."
	case OutcomeTemporary:
		r.Says = "The server could not check " + what + ". Try again later."
	case OutcomeProtocol:
		r.Says = "The server's response was not " + protocolNames[l.protocol] + "."
	case OutcomeTLS:
		r.Says = "The server does not offer TLS, so no password is sent to it."
	}
	return r
}

// says returns the result of an outcome with a sentence of its own.
func (l login) says(outcome, sentence string) Result {
	r := l.result(outcome)
	r.Says = sentence
	return r
}

// unasked is the result if a server signs in anybody.
func (l login) unasked() Result {
	return l.says(OutcomeProtocol, "The server did not ask for the password or the private key, so they could not be checked.")
}

// failed classifies why a dialogue was not completed.
func (l login) failed(ctx context.Context, err error) Result {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	r := unreached(l.protocol, err, isTLS(err))
	if r.Outcome == OutcomeProtocol {
		return l.result(OutcomeProtocol)
	}
	return r
}

// insecure classifies why a TLS handshake failed.
func (l login) insecure(ctx context.Context, err error) Result {
	if ctx.Err() != nil { // which closed the connection
		err = ctx.Err()
	}
	return unreached(l.protocol, err, true)
}

// isTLS reports whether err is of a TLS handshake.
func isTLS(err error) bool {
	if _, is := errors.AsType[*tls.CertificateVerificationError](err); is {
		return true
	}
	if _, is := errors.AsType[x509.HostnameError](err); is {
		return true
	}
	_, is := errors.AsType[tls.RecordHeaderError](err)
	return is || strings.HasPrefix(err.Error(), "tls: ")
}

// secure does the TLS handshake.
func (l login) secure(ctx context.Context, conn net.Conn) (net.Conn, error) {
	secured := tls.Client(conn, l.tls)
	return secured, secured.HandshakeContext(ctx)
}
