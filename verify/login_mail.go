package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
	"github.com/emersion/go-sasl"
	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
)

// imap signs in to a mailbox (RFC 9051, RFC 3501), opens no folder and ends the session.
func (l login) imap(ctx context.Context, conn net.Conn) Result {
	var client *imapclient.Client
	if l.implicit {
		secured, err := l.secure(ctx, conn)
		if err != nil {
			return l.insecure(ctx, err)
		}
		client = imapclient.New(secured, nil)
	} else {
		var err error
		client, err = imapclient.NewStartTLS(conn, &imapclient.Options{TLSConfig: l.tls})
		if _, is := errors.AsType[*imap.Error](err); is {
			return l.result(OutcomeTLS)
		}
		if err != nil {
			return l.failed(ctx, err)
		}
	}
	defer func() { _ = client.Close() }()
	if err := client.WaitGreeting(); err != nil {
		return l.imapFailure(ctx, err)
	}
	if client.State() != imap.ConnStateNotAuthenticated {
		return l.unasked()
	}
	var err error
	switch offered := client.Caps(); {
	case !offered.Has(imap.CapLoginDisabled):
		err = client.Login(l.username, l.password).Wait()
	case offered.Has(imap.AuthCap(sasl.Plain)):
		err = client.Authenticate(sasl.NewPlainClient("", l.username, l.password))
	default:
		return l.says(OutcomeProtocol, "The server offers no way to sign in with a user name and a password.")
	}
	if err != nil {
		return l.imapFailure(ctx, err)
	}
	_ = client.Logout().Wait()
	return l.result(OutcomeSignedIn)
}

func (l login) imapFailure(ctx context.Context, err error) Result {
	refused, is := errors.AsType[*imap.Error](err)
	switch {
	case !is:
		return l.failed(ctx, err)
	case refused.Type == imap.StatusResponseTypeBye,
		slices.Contains([]imap.ResponseCode{imap.ResponseCodeUnavailable, imap.ResponseCodeInUse, imap.ResponseCodeLimit}, refused.Code):
		return l.result(OutcomeTemporary)
	case refused.Type == imap.StatusResponseTypeNo:
		return l.result(OutcomeRejected)
	}
	return l.result(OutcomeProtocol)
}

// startTLS is an extended request of LDAP with the object identifier of StartTLS (RFC 4511, section
// 4.14), as message 1.
var startTLS = append([]byte{0x30, 0x1d, 0x02, 0x01, 0x01, 0x77, 0x18, 0x80, 0x16}, "1.3.6.1.4.1.1466.20037"...)

// ldap makes a simple bind (RFC 4511) and unbinds. It follows no referral. A bind without a password,
// which a server may accept without checking anything (RFC 4513, section 5.1.2), is refused before.
func (l login) ldap(ctx context.Context, conn net.Conn) Result {
	if !l.implicit {
		if _, err := conn.Write(startTLS); err != nil {
			return l.failed(ctx, err)
		}
		code, err := extendedResult(conn)
		switch {
		case err != nil:
			return l.failed(ctx, err)
		case code != ldap.LDAPResultSuccess:
			return l.result(OutcomeTLS)
		}
	}
	secured, err := l.secure(ctx, conn)
	if err != nil {
		return l.insecure(ctx, err)
	}
	client := ldap.NewConn(secured, true)
	client.Start()
	defer func() { _ = client.Close() }()
	err = client.Bind(l.username, l.password)
	if err == nil {
		_ = client.Unbind()
		return l.result(OutcomeSignedIn)
	}
	refused, is := errors.AsType[*ldap.Error](err)
	switch {
	case !is, ctx.Err() != nil:
		return l.failed(ctx, err)
	case refused.ResultCode == ldap.ErrorNetwork:
		return l.failed(ctx, io.EOF) // the library drops the cause
	case refused.ResultCode == ldap.LDAPResultReferral:
		return l.says(OutcomeProtocol, "The server refers to another server, to which nothing is sent. Enter the address of that one.")
	case slices.Contains([]uint16{
		ldap.LDAPResultInvalidCredentials, ldap.LDAPResultInappropriateAuthentication, ldap.LDAPResultNoSuchObject,
		ldap.LDAPResultInvalidDNSyntax, ldap.LDAPResultInsufficientAccessRights, ldap.LDAPResultUnwillingToPerform,
	}, refused.ResultCode):
		return l.result(OutcomeRejected)
	case refused.ResultCode == ldap.LDAPResultBusy, refused.ResultCode == ldap.LDAPResultUnavailable:
		return l.result(OutcomeTemporary)
	}
	return l.result(OutcomeProtocol)
}

// extendedResult reads the result code of an extended response. It reads no byte beyond it.
func extendedResult(from io.Reader) (int64, error) {
	p, err := ber.ReadPacket(from)
	if err != nil {
		return 0, fmt.Errorf("reading the response: %w", err)
	}
	if len(p.Children) < 2 || p.Children[1].ClassType != ber.ClassApplication || p.Children[1].Tag != ldap.ApplicationExtendedResponse || len(p.Children[1].Children) == 0 {
		return 0, errors.New("no extended response")
	}
	code, is := p.Children[1].Children[0].Value.(int64)
	if !is {
		return 0, errors.New("no result code")
	}
	return code, nil
}
