package verify_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2/imapserver"
	"github.com/emersion/go-imap/v2/imapserver/imapmemserver"
	"golang.org/x/crypto/ssh"

	"github.com/credstream/credstream/verify"
)

// serverIdentity is the certificate of a server at 127.0.0.1.
type serverIdentity struct {
	config  *tls.Config
	ca, key string // in PEM
}

func newServerIdentity(t *testing.T) serverIdentity {
	authority := httptest.NewTLSServer(nil)
	authority.Close()
	der, err := x509.MarshalPKCS8PrivateKey(authority.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return serverIdentity{
		config: &tls.Config{Certificates: authority.TLS.Certificates, MinVersion: tls.VersionTLS12},
		ca:     string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Certificate().Raw})),
		key:    string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	}
}

// program is a real server that a test starts.
type program struct {
	t    *testing.T
	dir  string // of the account that it runs as
	as   *syscall.SysProcAttr
	port string
}

// newProgram skips the test if a command is missing. account is who runs it where the test is root.
func newProgram(t *testing.T, account, missing string, commands ...string) program {
	t.Helper()
	for _, c := range commands {
		if lookPath(c) == "" {
			t.Skip(missing)
		}
	}
	dir, err := os.MkdirTemp("", "credstream-"+account+"-") //nolint:usetesting // t.TempDir is below folders that only root may enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := program{t: t, dir: dir, as: &syscall.SysProcAttr{}}
	if os.Getuid() == 0 {
		u, err := user.Lookup(account)
		if err != nil {
			t.Skip(missing)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
		p.as.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, p.port, _ = net.SplitHostPort(l.Addr().String())
	_ = l.Close()
	return p
}

// lookPath returns the path of a command, also of one that only its own package calls.
func lookPath(command string) string {
	if path, err := exec.LookPath(command); err == nil {
		return path
	}
	paths, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + command)
	paths = append(paths, "/usr/sbin/"+command)
	if _, err := os.Stat(paths[0]); err != nil {
		return ""
	}
	return paths[0]
}

// file writes a file of the program.
func (p program) file(name, content string) (path string) {
	path = filepath.Join(p.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		p.t.Fatal(err)
	}
	if c := p.as.Credential; c != nil {
		if err := os.Chown(path, int(c.Uid), int(c.Gid)); err != nil {
			p.t.Fatal(err)
		}
	}
	return path
}

func (p program) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(lookPath(name), args...)
	cmd.Dir, cmd.SysProcAttr = p.dir, p.as
	return cmd
}

func (p program) run(name string, args ...string) {
	p.t.Helper()
	if out, err := p.command(name, args...).CombinedOutput(); err != nil {
		p.t.Fatalf("%s: %v: %.2000s", name, err, out)
	}
}

// start starts the server and waits until it accepts connections.
func (p program) start(name string, args ...string) (address string) {
	p.t.Helper()
	var out strings.Builder
	cmd := p.command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	p.t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	address = "127.0.0.1:" + p.port
	for range 400 {
		if conn, err := net.Dial("tcp", address); err == nil {
			_ = conn.Close()
			return address
		}
		select {
		case <-ended:
			p.t.Fatalf("%s ended: %.2000s", name, out.String())
		case <-time.After(25 * time.Millisecond):
		}
	}
	p.t.Fatalf("%s does not listen", name)
	return ""
}

// attempt is one dry request and its outcome.
type attempt struct {
	change   func(*verify.Login, map[string]string)
	outcome  string
	sentence string // a part
}

// attempts makes each attempt with the user ann and the password, and asks that each needs its CA
// and that none goes to a private address under the default policy.
func attempts(t *testing.T, p verify.Login, ca string, rows map[string]attempt) {
	t.Helper()
	if ca != "" {
		rows["not trusted"] = attempt{func(_ *verify.Login, v map[string]string) { delete(v, "ca") }, verify.OutcomeTLS, ""}
		p.TLSFiles = verify.TLSFiles{CA: "{{ca}}"}
	}
	rows["signed in"] = attempt{func(*verify.Login, map[string]string) {}, verify.OutcomeSignedIn, "accepted"}
	rows["rejected"] = attempt{func(_ *verify.Login, v map[string]string) { v["key"] = "wrong" }, verify.OutcomeRejected, "rejected"}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			p, fields := p, map[string]string{"ca": ca, "user": "ann", "key": canary}
			p.Username, p.Password = "{{user}}", "{{key}}"
			if p.Protocol == verify.ProtocolLDAP {
				fields["user"] = "cn=ann,dc=example"
			}
			row.change(&p, fields)
			probe := verify.Probe{Login: &p, Hosts: []string{"127.0.0.1"}}
			r, err := run(t, development(), probe, values(fields))
			for range 100 { // it starts
				if err != nil || r.Outcome != verify.OutcomeTemporary {
					break
				}
				time.Sleep(50 * time.Millisecond)
				r, err = run(t, development(), probe, values(fields))
			}
			if err != nil || r.Outcome != row.outcome || r.OK != (row.outcome == verify.OutcomeSignedIn) || r.Probe != p.Protocol || !strings.Contains(r.Says, row.sentence) || r.Says == "" {
				t.Errorf("%+v, %v, want %s", r, err, row.outcome)
			}
			if r, err := run(t, verify.Config{}, probe, values(fields)); err != nil || r.Outcome != verify.OutcomeAddressDenied {
				t.Errorf("to a private address: %+v, %v", r, err)
			}
		})
	}
}

func database(name string) func(*verify.Login, map[string]string) {
	return func(p *verify.Login, _ map[string]string) { p.Database = name }
}

func TestPostgres(t *testing.T) {
	t.Parallel()
	server := newProgram(t, "postgres", "PostgreSQL is not installed, so no session of a real server is opened.", "initdb", "postgres")
	id := newServerIdentity(t)
	data := filepath.Join(server.dir, "data")
	server.run("initdb", "-D", data, "-U", "ann", "-A", "scram-sha-256", "--pwfile="+server.file("password", canary), "--no-sync", "--no-instructions")
	address := server.start("postgres", "-D", data, "-p", server.port, "-h", "127.0.0.1", "-k", server.dir, "-F",
		"-c", "ssl=on", "-c", "ssl_cert_file="+server.file("cert", id.ca), "-c", "ssl_key_file="+server.file("key", id.key))
	p := verify.Login{Protocol: verify.ProtocolPostgres, TCP: verify.TCP{Address: address}, Database: "postgres"}
	attempts(t, p, id.ca, map[string]attempt{
		"another database": {database("none"), verify.OutcomeRejected, "has no database"},
		"its default":      {database(""), verify.OutcomeRejected, "has no database"}, // ann
	})
	server.run("sed", "-i", "s/^host/hostssl/; s/scram-sha-256$/trust/", filepath.Join(data, "pg_hba.conf"))
	server.run("pg_ctl", "-D", data, "reload")
	open := verify.Probe{Login: &p, Hosts: []string{"127.0.0.1"}}
	p.Username, p.Password, p.TLSFiles = "{{user}}", "{{key}}", verify.TLSFiles{CA: "{{ca}}"}
	for range 100 {
		r, err := run(t, development(), open, values(map[string]string{"ca": id.ca, "user": "ann", "key": "wrong"}))
		if err == nil && r.Outcome == verify.OutcomeProtocol && strings.Contains(r.Says, "did not ask") {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("a server that trusts everybody checks a password")
}

func TestMySQL(t *testing.T) {
	t.Parallel()
	server := newProgram(t, "mysql", "MariaDB is not installed, so no session of a real server is opened.", "mariadb-install-db", "mariadbd")
	id := newServerIdentity(t)
	data := filepath.Join(server.dir, "data")
	server.run("mariadb-install-db", "--no-defaults", "--datadir="+data, "--skip-test-db", "--auth-root-authentication-method=normal")
	address := server.start("mariadbd", "--no-defaults", "--datadir="+data, "--bind-address=127.0.0.1", "--port="+server.port, "--socket="+server.dir+"/s",
		"--skip-name-resolve", "--innodb-flush-log-at-trx-commit=0", "--ssl-cert="+server.file("cert", id.ca), "--ssl-key="+server.file("key", id.key),
		"--init-file="+server.file("init", "CREATE DATABASE own;\nCREATE USER 'ann'@'%' IDENTIFIED BY '"+canary+"';\nGRANT ALL ON own.* TO 'ann'@'%';\nFLUSH PRIVILEGES;\n"))
	attempts(t, verify.Login{Protocol: verify.ProtocolMySQL, TCP: verify.TCP{Address: address}}, id.ca, map[string]attempt{
		"its database":     {database("own"), verify.OutcomeSignedIn, ""},
		"another database": {database("mysql"), verify.OutcomeRejected, "denies"},
	})
}

func TestLDAP(t *testing.T) {
	t.Parallel()
	server := newProgram(t, "openldap", "slapd is not installed, so nobody signs in to a real directory.", "slapd")
	id := newServerIdentity(t)
	config := server.file("conf", "include /etc/ldap/schema/core.schema\nTLSCertificateFile "+server.file("cert", id.ca)+"\nTLSCertificateKeyFile "+server.file("key", id.key)+
		"\ndatabase ldif\ndirectory "+server.dir+"\nsuffix dc=example\nrootdn \"cn=ann,dc=example\"\nrootpw "+canary+"\n")
	implicit := newProgram(t, "openldap", "", "slapd")
	address := server.start("slapd", "-f", config, "-h", "ldap://127.0.0.1:"+server.port+" ldaps://127.0.0.1:"+implicit.port, "-d", "0")
	p := verify.Login{Protocol: verify.ProtocolLDAP, TCP: verify.TCP{Address: address}}
	dn := func(outcome string, change func(*verify.Login, map[string]string)) attempt {
		return attempt{func(p *verify.Login, v map[string]string) {
			p.Username, v["user"] = "cn={{user}},dc=example", "ann"
			change(p, v)
		}, outcome, ""}
	}
	tls := func(p *verify.Login, _ map[string]string) { p.Address, p.Implicit = "127.0.0.1:"+implicit.port, true }
	attempts(t, p, id.ca, map[string]attempt{
		"TLS":                     dn(verify.OutcomeSignedIn, tls),
		"a name that adds a part": dn(verify.OutcomeRejected, func(_ *verify.Login, v map[string]string) { v["user"] = "ann,dc=example" }),
		"another password":        dn(verify.OutcomeRejected, func(_ *verify.Login, v map[string]string) { v["key"] = "wrong" }),
		"plain text where TLS is": dn(verify.OutcomeClosed, func(p *verify.Login, v map[string]string) { tls(p, v); p.Implicit = false }),
		"TLS where plain text is": dn(verify.OutcomeTLS, func(p *verify.Login, _ map[string]string) { p.Implicit = true }),
		"no name":                 {func(_ *verify.Login, v map[string]string) { v["user"] = "ann" }, verify.OutcomeRejected, ""},
	})
}

func TestIMAP(t *testing.T) {
	t.Parallel()
	id := newServerIdentity(t)
	start := func(config *tls.Config, wrap bool) string {
		mailboxes := imapmemserver.New()
		mailboxes.AddUser(imapmemserver.NewUser("ann", canary))
		server := imapserver.New(&imapserver.Options{
			NewSession: func(*imapserver.Conn) (imapserver.Session, *imapserver.GreetingData, error) {
				return mailboxes.NewSession(), nil, nil
			},
			TLSConfig: config, Logger: log.New(io.Discard, "", 0),
		})
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		if wrap {
			l = tls.NewListener(l, id.config)
		}
		done := make(chan struct{})
		go func() { defer close(done); _ = server.Serve(l) }()
		t.Cleanup(func() { _ = server.Close(); <-done })
		return address
	}
	withTLS, plain := start(id.config, true), start(nil, false)
	p := verify.Login{Protocol: verify.ProtocolIMAP, TCP: verify.TCP{Address: start(id.config, false)}}
	attempts(t, p, id.ca, map[string]attempt{
		"TLS":         {func(p *verify.Login, _ map[string]string) { p.Address, p.Implicit = withTLS, true }, verify.OutcomeSignedIn, ""},
		"no STARTTLS": {func(p *verify.Login, _ map[string]string) { p.Address = plain }, verify.OutcomeTLS, "does not offer"},
		"quotes":      {func(_ *verify.Login, v map[string]string) { v["key"] = `" {3+}` }, verify.OutcomeRejected, ""},
	})
}

// sshServer is a server of the package ssh, with the protocol but without programs.
type sshServer struct {
	config  *ssh.ServerConfig
	key     string // as in Result.HostKey
	address string
}

func newSSH(t *testing.T, address string, change func(*ssh.ServerConfig)) sshServer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s := sshServer{config: &ssh.ServerConfig{}, key: signer.PublicKey().Type() + " " + ssh.FingerprintSHA256(signer.PublicKey())}
	s.config.AddHostKey(signer)
	change(s.config)
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go s.serve(conn)
		}
	}()
	return s
}

func (s sshServer) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	_, channels, requests, err := ssh.NewServerConn(conn, s.config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for c := range channels {
		channel, requests, err := c.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = channel.Close() }()
			for r := range requests {
				_ = r.Reply(r.Type == "subsystem" && strings.HasSuffix(string(r.Payload), "sftp"), nil)
			}
		}()
	}
}

func passwords(c *ssh.ServerConfig) {
	c.PasswordCallback = func(c ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
		if c.User() != "ann" || string(password) != canary {
			return nil, errors.New("no")
		}
		return nil, nil
	}
}

func TestSSH(t *testing.T) {
	t.Parallel()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	encrypted, err := ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(canary))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	keys := newSSH(t, "127.0.0.1:0", func(c *ssh.ServerConfig) {
		c.PublicKeyCallback = func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if string(key.Marshal()) != string(signer.PublicKey().Marshal()) {
				return nil, errors.New("no")
			}
			return nil, nil
		}
	})
	questions := newSSH(t, "127.0.0.1:0", func(c *ssh.ServerConfig) {
		c.KeyboardInteractiveCallback = func(_ ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			if a, err := ask("", "", []string{"Password:"}, []bool{false}); err != nil || a[0] != canary {
				return nil, errors.New("no")
			}
			return nil, nil
		}
	})
	shows := newSSH(t, "127.0.0.1:0", func(c *ssh.ServerConfig) {
		c.KeyboardInteractiveCallback = func(_ ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			if a, err := ask("", "", []string{"What do you see?"}, []bool{true}); err == nil {
				t.Errorf("%q was answered to a question whose answer is shown", a)
			}
			return nil, errors.New("no")
		}
	})
	anybody := newSSH(t, "127.0.0.1:0", func(c *ssh.ServerConfig) { c.NoClientAuth = true })
	server := newSSH(t, "127.0.0.1:0", passwords)
	at := func(s sshServer) func(*verify.Login, map[string]string) {
		return func(p *verify.Login, _ map[string]string) { p.Address = s.address }
	}
	withKey := func(p *verify.Login, v map[string]string) {
		p.Address, p.Password, p.PrivateKey = keys.address, "", "{{pem}}"
		v["pem"] = string(pem.EncodeToMemory(block))
	}
	p := verify.Login{Protocol: verify.ProtocolSFTP, TCP: verify.TCP{Address: server.address}}
	attempts(t, p, "", map[string]attempt{
		"ssh":             {func(p *verify.Login, _ map[string]string) { p.Protocol = verify.ProtocolSSH }, verify.OutcomeSignedIn, ""},
		"questions":       {at(questions), verify.OutcomeSignedIn, ""},
		"shown questions": {at(shows), verify.OutcomeRejected, ""},
		"anybody":         {at(anybody), verify.OutcomeProtocol, "did not ask"},
		"a private key":   {withKey, verify.OutcomeSignedIn, "private key"},
		"the known key":   {func(p *verify.Login, _ map[string]string) { p.HostKey = server.key }, verify.OutcomeSignedIn, ""},
		"another key":     {func(p *verify.Login, _ map[string]string) { p.HostKey = keys.key }, verify.OutcomeHostKey, server.key},
		"another type":    {func(p *verify.Login, _ map[string]string) { p.HostKey = "ssh-rsa SHA256:x" }, verify.OutcomeHostKey, server.key},
		"a key of another": {func(p *verify.Login, v map[string]string) {
			withKey(p, v)
			p.Address = server.address
		}, verify.OutcomeRejected, ""},
	})
	if r, err := run(t, development(), verify.Probe{Login: &verify.Login{Protocol: verify.ProtocolSSH, TCP: p.TCP, Username: "ann", Password: "{{key}}"}, Hosts: []string{"127.0.0.1"}}, canaryKey); err != nil || r.HostKey != server.key {
		t.Errorf("%+v, %v, want the host key %s", r, err, server.key)
	}
	for name, file := range map[string]string{"encrypted": string(pem.EncodeToMemory(encrypted)), "none": canary, "public": "ssh-ed25519 AAAA", "empty": ""} {
		_, err := run(t, development(), verify.Probe{Login: &verify.Login{Protocol: verify.ProtocolSSH, TCP: p.TCP, Username: "ann", PrivateKey: "{{pem}}"}, Hosts: []string{"127.0.0.1"}}, values(map[string]string{"pem": file}))
		if !errors.Is(err, verify.ErrValueInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
