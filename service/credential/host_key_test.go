package credential_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/stage"
)

// The first server that accepts the keys is the one that the credential goes to: the same host with
// another key gets no password until somebody accepts that key.
func TestHostKeyIsPinned(t *testing.T) {
	s := stage.New(t, stage.AllowPrivate)
	var asked atomic.Int32
	newKey := func() (ssh.Signer, string) {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		stage.OK(t, err)
		signer := stage.Must(ssh.NewSignerFromKey(private))(t)
		return signer, "ssh-ed25519 " + ssh.FingerprintSHA256(signer.PublicKey())
	}
	var current atomic.Pointer[ssh.ServerConfig]
	use := func(signer ssh.Signer) {
		config := &ssh.ServerConfig{PasswordCallback: func(_ ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			asked.Add(1)
			if string(password) != "canary-key" {
				return nil, errors.New("no")
			}
			return nil, nil
		}}
		config.AddHostKey(signer)
		current.Store(config)
	}
	l := stage.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				if c, _, _, err := ssh.NewServerConn(conn, current.Load()); err == nil {
					_ = c.Wait()
				}
			}()
		}
	}()
	first, firstKey := newKey()
	second, secondKey := newKey()
	use(first)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	s.Do("default", "component.register", fmt.Sprintf(`{"id":"server","descriptor":{"title":"T","hosts":["{{host}}"],"credentials":{"fields":{"host":{},"key":{}}},
		"verification":{"ssh":{"address":"{{host}}:%s","username":"ann","password":"{{key}}"}}}}`, port))
	serve := func(command, body string) error {
		_, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, command, []byte(body))
		return err
	}
	expect := func(step, status, outcome, key string, passwords int32) {
		t.Helper()
		s.CaughtUp()
		shown := stage.Must(s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "credential.get", []byte(`{"id":"c"}`)))(t).(credential.Credential)
		if v := shown.Verification; string(v.Status) != status || v.Outcome != outcome || shown.HostKey != key {
			t.Errorf("%s: %+v, %s, want %s, %s, %s", step, v, shown.HostKey, status, outcome, key)
		}
		if n := asked.Swap(0); n != passwords {
			t.Errorf("%s: the server was sent %d passwords, want %d", step, n, passwords)
		}
	}
	stage.OK(t, serve("credential.create", `{"id":"c","component":"server","keys":{"host":"127.0.0.1","key":"canary-key"}}`))
	expect("created", "verified", "signed_in", firstKey, 1)
	use(second)
	stage.OK(t, serve("credential.verify", `{"id":"c"}`))
	expect("another server", "failed", "host_key", firstKey, 0)
	if err := serve("credential.replace-keys", `{"id":"c","keys":{"host":"127.0.0.1","key":"canary-key"}}`); stage.CodeOf(err) != "credential_verification_failed" || !strings.Contains(err.Error(), secondKey) {
		t.Errorf("new keys for another server: %v", err)
	}
	stage.OK(t, serve("credential.verify", `{"id":"c"}`))
	expect("a failed attempt accepts nothing", "failed", "host_key", firstKey, 0)
	for _, wrong := range []string{"SHA256:x", "ssh-dss " + firstKey[12:], firstKey + "\n"} {
		if err := serve("credential.verify", fmt.Sprintf(`{"id":"c","host_key":%q}`, wrong)); stage.CodeOf(err) != "host_key_invalid" {
			t.Errorf("%q: %v", wrong, err)
		}
	}
	stage.OK(t, serve("credential.verify", fmt.Sprintf(`{"id":"c","host_key":%q}`, secondKey)))
	expect("accepted", "verified", "signed_in", secondKey, 1)
	stage.OK(t, serve("credential.verify", `{"id":"c"}`))
	expect("remembered", "verified", "signed_in", secondKey, 1)
	use(first)
	stage.OK(t, serve("credential.replace-keys", fmt.Sprintf(`{"id":"c","keys":{"host":"127.0.0.1","key":"canary-key"},"host_key":%q}`, firstKey)))
	expect("accepted with new keys", "verified", "signed_in", firstKey, 1)
	use(second)
	stage.OK(t, serve("credential.replace-keys", `{"id":"c","keys":{"host":"localhost","key":"canary-key"}}`))
	expect("another host is met for the first time", "verified", "signed_in", secondKey, 1)
	if err := serve("credential.revert", `{"id":"c","to_version":1}`); err == nil {
		t.Error("a revert leads to another host")
	}
}
