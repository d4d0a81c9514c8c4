package verify_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credstream/credstream/verify"
)

// hostile is a server that does what serve does with each connection, and keeps what it received.
type hostile struct {
	address string
	mu      sync.Mutex
	got     bytes.Buffer
}

type recorded struct {
	net.Conn
	by *hostile
}

func (r recorded) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.by.mu.Lock()
	defer r.by.mu.Unlock()
	r.by.got.Write(b[:n])
	return n, err
}

func newHostile(t *testing.T, serve func(conn net.Conn)) *hostile {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hostile{address: l.Addr().String()}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer func() { _ = conn.Close() }()
				_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
				serve(recorded{conn, h})
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); running.Wait() })
	return h
}

func (h *hostile) received() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.got.String()
}

// The messages of PostgreSQL and MySQL.
func pgMessage(kind byte, body string) string {
	n := len(body) + 4
	return string([]byte{kind, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) + body
}

func mysqlPacket(sequence byte, body string) string {
	return string([]byte{byte(len(body)), byte(len(body) >> 8), byte(len(body) >> 16), sequence}) + body
}

func mysqlGreeting(capabilities uint32) string {
	return mysqlPacket(0, "\x0a8.0.0\x00\x01\x00\x00\x00abcdefgh\x00"+string([]byte{byte(capabilities), byte(capabilities >> 8)})+
		"\x21\x02\x00"+string([]byte{byte(capabilities >> 16), byte(capabilities >> 24)})+"\x15"+strings.Repeat("\x00", 10)+"ijklmnopqrst\x00mysql_native_password\x00")
}

const mysql41, mysqlTLS, mysqlSecure, mysqlPlugin = 0x200, 0x800, 0x8000, 0x80000

// A server that answers anything at all gets no secret in clear text, makes no other connection,
// takes no longer than the time-out, and learns nothing but that it was asked.
func TestHostileServers(t *testing.T) {
	t.Parallel()
	id := newServerIdentity(t)
	say := func(text string) func(net.Conn) {
		return func(conn net.Conn) {
			_, _ = io.WriteString(conn, text)
			_, _ = io.Copy(io.Discard, conn)
		}
	}
	// after reads and writes in clear text, then serves over TLS.
	after := func(read int, text string, then func(conn net.Conn)) func(net.Conn) {
		return func(conn net.Conn) {
			if strings.HasPrefix(text, "\x00first") {
				_, _ = io.WriteString(conn, text[len("\x00first"):])
				text = ""
			}
			_, _ = io.ReadFull(conn, make([]byte, read))
			_, _ = io.WriteString(conn, text)
			secured := tls.Server(conn.(recorded).Conn, id.config)
			if secured.Handshake() == nil {
				then(secured)
			}
		}
	}
	request := func(conn net.Conn) { _, _ = conn.Read(make([]byte, 4096)) }
	scram := func(iterations int) func(net.Conn) {
		return after(8, "S", func(conn net.Conn) {
			request(conn)
			_, _ = io.WriteString(conn, pgMessage('R', "\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00"))
			b := make([]byte, 4096)
			n, _ := conn.Read(b)
			_, nonce, _ := strings.Cut(string(b[:n]), "r=")
			_, _ = io.WriteString(conn, pgMessage('R', fmt.Sprintf("\x00\x00\x00\x0br=%sx,s=YWJj,i=%d", nonce, iterations)))
			_, _ = io.Copy(io.Discard, conn)
		})
	}
	endless := func(text string) func(net.Conn) {
		return func(conn net.Conn) {
			for {
				if _, err := io.WriteString(conn, text); err != nil {
					return
				}
			}
		}
	}
	rows := map[string]struct {
		protocol string
		serve    func(net.Conn)
		outcome  string // "": anything but signed_in
	}{
		"postgres without TLS":       {verify.ProtocolPostgres, say("N"), verify.OutcomeTLS},
		"postgres, TLS that is none": {verify.ProtocolPostgres, say("S" + pgMessage('R', "\x00\x00\x00\x03")), verify.OutcomeTLS},
		"postgres, an old error":     {verify.ProtocolPostgres, say("E"), verify.OutcomeProtocol},
		"postgres, many iterations":  {verify.ProtocolPostgres, scram(9_999_999), verify.OutcomeProtocol},
		"postgres, a large message":  {verify.ProtocolPostgres, after(8, "S", say("R\x7f\xff\xff\xff")), verify.OutcomeProtocol},
		"postgres, endless notices":  {verify.ProtocolPostgres, after(8, "S", endless(pgMessage('N', "SNOTICE\x00\x00"))), ""},
		"mysql without TLS":          {verify.ProtocolMySQL, say(mysqlGreeting(mysql41 | mysqlSecure)), verify.OutcomeTLS},
		"mysql, a short greeting":    {verify.ProtocolMySQL, say(mysqlPacket(0, "\x0a")), verify.OutcomeProtocol},
		"mysql, an empty error":      {verify.ProtocolMySQL, say(mysqlPacket(0, "\xff")), verify.OutcomeProtocol},
		"mysql, TLS that is none": {verify.ProtocolMySQL, func(conn net.Conn) {
			_, _ = io.WriteString(conn, mysqlGreeting(mysql41|mysqlTLS|mysqlSecure|mysqlPlugin))
			_, _ = io.ReadFull(conn, make([]byte, 36))
			say("xxxxxxxxxx")(conn)
		}, verify.OutcomeTLS},
		"mysql asks for a file":  {verify.ProtocolMySQL, after(36, "\x00first"+mysqlGreeting(mysql41|mysqlTLS|mysqlSecure|mysqlPlugin), func(conn net.Conn) { request(conn); say(mysqlPacket(3, "\xfb/etc/passwd"))(conn) }), verify.OutcomeProtocol},
		"imap without STARTTLS":  {verify.ProtocolIMAP, say("* OK [CAPABILITY IMAP4rev1] hello\r\nT1 BAD no\r\n"), verify.OutcomeTLS},
		"imap, signed in before": {verify.ProtocolIMAP, say("* PREAUTH [CAPABILITY IMAP4rev1] hello\r\n"), ""},
		"imap, endless greeting": {verify.ProtocolIMAP, endless("* OK hello hello hello\r\n"), ""},
		"imap, a large literal":  {verify.ProtocolIMAP, say("* OK {4294967295}\r\n"), ""},
		"ldap without STARTTLS":  {verify.ProtocolLDAP, say("\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x02\x04\x00\x04\x00"), verify.OutcomeTLS},
		"ldap, deep nesting":     {verify.ProtocolLDAP, say(strings.Repeat("\x30\x80", 20_000)), ""},
		"ldap, a large message":  {verify.ProtocolLDAP, say("\x30\x84\x7f\xff\xff\xff"), ""},
		"ldap refers to another host": {verify.ProtocolLDAP, after(31, "\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00", func(conn net.Conn) {
			request(conn)
			say("\x30\x1f\x02\x01\x01\x61\x1a\x0a\x01\x0a\x04\x00\x04\x00\xa3\x11\x04\x0fldap://evil.net")(conn)
		}), verify.OutcomeProtocol},
		"ssh, endless lines":      {verify.ProtocolSSH, endless("hello\r\n"), ""},
		"ssh, an endless version": {verify.ProtocolSSH, endless("SSH-2.0-x"), ""},
	}
	for _, protocol := range []string{verify.ProtocolSMTP, verify.ProtocolIMAP, verify.ProtocolLDAP, verify.ProtocolPostgres, verify.ProtocolMySQL, verify.ProtocolSSH, verify.ProtocolSFTP} {
		for name, b := range map[string]struct {
			serve   func(net.Conn)
			outcome string
		}{
			"silence": {func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }, verify.OutcomeTimeout},
			"hang up": {func(conn net.Conn) {}, ""},
			"zeros":   {endless(strings.Repeat("\x00", 1024)), ""},
			"HTTP":    {say("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n"), ""},
			"TLS":     {func(conn net.Conn) { _ = tls.Server(conn, id.config).Handshake() }, ""},
		} {
			rows[protocol+", "+name] = struct {
				protocol string
				serve    func(net.Conn)
				outcome  string
			}{protocol, b.serve, b.outcome}
		}
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHostile(t, row.serve)
			p := verify.Login{Protocol: row.protocol, TCP: verify.TCP{Address: h.address}, Username: "ann", Password: "{{key}}"}
			if row.protocol != verify.ProtocolSSH && row.protocol != verify.ProtocolSFTP {
				p.TLSFiles = verify.TLSFiles{CA: "{{ca}}"}
			}
			cfg := development()
			cfg.Timeout = 300 * time.Millisecond
			begin := time.Now()
			r, err := run(t, cfg, verify.Probe{Login: &p, Hosts: []string{"127.0.0.1"}}, values(map[string]string{"ca": id.ca, "key": canary}))
			if err != nil || r.OK || r.Outcome == "" || r.Outcome == verify.OutcomeSignedIn || row.outcome != "" && r.Outcome != row.outcome {
				t.Errorf("%+v, %v, want %s", r, err, row.outcome)
			}
			if took := time.Since(begin); took > 3*time.Second {
				t.Errorf("it took %v", took)
			}
			if strings.Contains(h.received(), canary) {
				t.Errorf("the password was sent in clear text: %q", h.received())
			}
		})
	}
}
