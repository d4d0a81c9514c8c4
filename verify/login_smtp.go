package verify

import (
	"context"
	"errors"
	"io"
	"net"
	"net/smtp"
	"net/textproto"
	"slices"
	"strings"
)

// smtp speaks SMTP (RFC 5321) with STARTTLS (RFC 3207) and AUTH (RFC 4954). It sends no mail.
func (l login) smtp(ctx context.Context, conn net.Conn) Result {
	if l.implicit {
		secured, err := l.secure(ctx, conn)
		if err != nil {
			return l.insecure(ctx, err)
		}
		conn = secured
	}
	client, err := smtp.NewClient(conn, l.tls.ServerName)
	if err == nil {
		err = client.Hello("localhost")
	}
	if err != nil {
		return l.failed(ctx, err)
	}
	if !l.implicit {
		if offered, _ := client.Extension("STARTTLS"); !offered {
			return l.result(OutcomeTLS)
		}
		switch err := client.StartTLS(l.tls); {
		case err != nil && isReply(err):
			return l.failed(ctx, err)
		case err != nil:
			return l.insecure(ctx, err)
		}
	}
	_, mechanisms := client.Extension("AUTH")
	var auth smtp.Auth
	switch offered := strings.Fields(strings.ToUpper(mechanisms)); {
	case slices.Contains(offered, "PLAIN"):
		auth = smtp.PlainAuth("", l.username, l.password, l.tls.ServerName)
	case slices.Contains(offered, "LOGIN"):
		auth = &loginAuth{answers: []string{l.username, l.password}}
	default:
		return l.says(OutcomeProtocol, "The server offers no way to sign in with a user name and a password.")
	}
	err = client.Auth(auth)
	var reply *textproto.Error
	switch {
	case err == nil:
		_ = client.Quit()
		return l.result(OutcomeSignedIn)
	case errors.As(err, &reply) && reply.Code/100 == 4:
		return l.result(OutcomeTemporary)
	case errors.As(err, &reply):
		return l.result(OutcomeRejected)
	}
	return l.failed(ctx, err)
}

func isReply(err error) bool {
	_, is := errors.AsType[*textproto.Error](err)
	return is
}

// loginAuth is the mechanism LOGIN, which some servers offer in place of PLAIN.
type loginAuth struct{ answers []string }

// Start implements smtp.Auth.
func (*loginAuth) Start(server *smtp.ServerInfo) (proto string, toServer []byte, err error) {
	if !server.TLS {
		return "", nil, errTemplate // a bug: TLS comes first
	}
	return "LOGIN", nil, nil
}

// Next implements smtp.Auth.
func (a *loginAuth) Next(_ []byte, more bool) ([]byte, error) {
	if !more {
		return nil, nil
	}
	if len(a.answers) == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	answer := a.answers[0]
	a.answers = a.answers[1:]
	return []byte(answer), nil
}
