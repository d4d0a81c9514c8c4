package verify_test

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"github.com/credstream/credstream/verify"
)

// mailbox is the backend of a real SMTP server with one account.
type mailbox struct {
	t          *testing.T
	mechanisms []string
	refusal    error
}

func (m mailbox) NewSession(*smtp.Conn) (smtp.Session, error) { return session{m}, nil }

type session struct{ mailbox }

func (s session) AuthMechanisms() []string { return s.mechanisms }

func (s session) Auth(mechanism string) (sasl.Server, error) {
	check := func(username, password string) error {
		if s.refusal == nil && (username != "ann" || password != canary) {
			return smtp.ErrAuthFailed
		}
		return s.refusal
	}
	if mechanism == "LOGIN" {
		return &loginServer{check: check}, nil
	}
	return sasl.NewPlainServer(func(_, username, password string) error { return check(username, password) }), nil
}

func (s session) Mail(string, *smtp.MailOptions) error { s.t.Error("a mail was begun"); return nil }
func (session) Rcpt(string, *smtp.RcptOptions) error   { return nil }
func (session) Data(io.Reader) error                   { return nil }
func (session) Reset()                                 {}
func (session) Logout() error                          { return nil }

// loginServer is the server's part of LOGIN, which the library lacks.
type loginServer struct {
	check    func(username, password string) error
	step     int
	username string
}

func (l *loginServer) Next(response []byte) (challenge []byte, done bool, err error) {
	l.step++
	switch l.step {
	case 1:
		return []byte("Username:"), false, nil
	case 2:
		l.username = string(response)
		return []byte("Password:"), false, nil
	}
	return nil, true, l.check(l.username, string(response))
}

func TestSMTP(t *testing.T) {
	authority := httptest.NewTLSServer(nil)
	authority.Close()
	certificate := authority.TLS.Certificates
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Certificate().Raw}))
	start := func(t *testing.T, m mailbox, implicit, secured bool) (address string) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		m.t = t
		server := smtp.NewServer(m)
		server.Domain, server.ErrorLog = "localhost", log.New(io.Discard, "", 0)
		address = l.Addr().String()
		config := &tls.Config{Certificates: certificate, MinVersion: tls.VersionTLS12}
		if secured {
			server.TLSConfig = config
		}
		if implicit {
			l = tls.NewListener(l, config)
		}
		done := make(chan struct{})
		go func() { defer close(done); _ = server.Serve(l) }()
		t.Cleanup(func() { _ = server.Close(); <-done })
		return address
	}
	plain := mailbox{mechanisms: []string{"PLAIN"}, refusal: nil}
	refusing := mailbox{mechanisms: []string{"PLAIN", "LOGIN"}, refusal: smtp.ErrAuthFailed}
	busy := mailbox{mechanisms: []string{"PLAIN"}, refusal: &smtp.SMTPError{Code: 454, EnhancedCode: smtp.EnhancedCode{4, 7, 0}, Message: "later " + canary}}
	for name, c := range map[string]struct {
		mailbox  mailbox
		implicit bool // the server's
		secured  bool // it offers STARTTLS
		ask      bool // for TLS from the start
		ca       string
		outcome  string
	}{
		"STARTTLS":           {plain, false, true, false, ca, verify.OutcomeSignedIn},
		"TLS from the start": {plain, true, true, true, ca, verify.OutcomeSignedIn},
		"LOGIN":              {mailbox{mechanisms: []string{"LOGIN"}}, false, true, false, ca, verify.OutcomeSignedIn},
		"rejected":           {refusing, false, true, false, ca, verify.OutcomeRejected},
		"LOGIN rejected":     {mailbox{mechanisms: []string{"LOGIN"}, refusal: smtp.ErrAuthFailed}, false, true, false, ca, verify.OutcomeRejected},
		"cannot check now":   {busy, false, true, false, ca, verify.OutcomeTemporary},
		"no STARTTLS":        {plain, false, false, false, ca, verify.OutcomeTLS},
		"not trusted":        {plain, false, true, false, "", verify.OutcomeTLS},
		"not trusted, TLS":   {plain, true, true, true, "", verify.OutcomeTLS},
		"TLS where none is":  {plain, false, true, true, ca, verify.OutcomeTLS},
		"no known mechanism": {mailbox{mechanisms: []string{"XOAUTH2"}}, false, true, false, ca, verify.OutcomeProtocol},
		"plain text for TLS": {plain, false, false, true, ca, verify.OutcomeTLS},
	} {
		t.Run(name, func(t *testing.T) {
			address := start(t, c.mailbox, c.implicit, c.secured)
			p := verify.Probe{Login: &verify.Login{
				Protocol: verify.ProtocolSMTP,
				TCP:      verify.TCP{Address: address}, TLSFiles: verify.TLSFiles{CA: "{{ca}}"}, Implicit: c.ask, Username: "{{user}}", Password: "{{key}}",
			}, Hosts: []string{"127.0.0.1"}}
			vals := values(map[string]string{"ca": c.ca, "user": "ann", "key": canary})
			r, err := run(t, development(), p, vals)
			if err != nil || r.Outcome != c.outcome || r.OK != (c.outcome == verify.OutcomeSignedIn) || r.Probe != "smtp" || r.Says == "" {
				t.Errorf("%+v, %v, want %s", r, err, c.outcome)
			}
			if r, err := run(t, verify.Config{}, p, vals); err != nil || r.Outcome != verify.OutcomeAddressDenied {
				t.Errorf("to a private address: %+v, %v", r, err)
			}
		})
	}
	for name, fields := range map[string]map[string]string{
		"no password": {"user": "ann"}, "no user": {"key": canary}, "a line break": {"user": "ann\r\nRCPT TO:<x>", "key": canary}, "too long": {"user": "ann", "key": strings.Repeat("x", 9<<10)},
	} {
		_, err := run(t, development(), verify.Probe{Login: &verify.Login{Protocol: verify.ProtocolSMTP, TCP: verify.TCP{Address: "127.0.0.1:587"}, Username: "{{user}}", Password: "{{key}}"}, Hosts: []string{"127.0.0.1"}}, values(fields))
		if !errors.Is(err, verify.ErrValueInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := run(t, development(), verify.Probe{Login: &verify.Login{Protocol: verify.ProtocolSMTP, TCP: verify.TCP{Address: "127.0.0.1:587"}, Username: "{{key}}", Password: "{{key}}"}, Hosts: []string{"other.example"}}, canaryKey); !errors.Is(err, verify.ErrHostRefused) {
		t.Errorf("another host: %v", err)
	}
}
