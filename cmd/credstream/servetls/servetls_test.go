package servetls_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credstream/credstream/cmd/credstream/servetls"
)

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// dev creates the files of a CA of its own.
func dev(t *testing.T) (servetls.Files, string) {
	t.Helper()
	files, ca, err := servetls.Dev(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return files, ca
}

func roots(t *testing.T, file string) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(must(os.ReadFile(file))(t)) {
		t.Fatal("no certificate")
	}
	return pool
}

// A connection that is open keeps working across a change of the files, a new one sees the new
// certificate, and a pair that cannot be used is reported and does not replace the one before it.
func TestReload(t *testing.T) {
	t.Parallel()
	one, caOne := dev(t)
	two, caTwo := dev(t)
	source := must(servetls.Open(one, slog.New(slog.DiscardHandler)))(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- source.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	l := must(tls.Listen("tcp", "127.0.0.1:0", source.Config()))(t)
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c) }()
		}
	}()
	dial := func(ca string) (*tls.Conn, error) {
		return tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: roots(t, ca), ServerName: "localhost"})
	}
	open := must(dial(caOne))(t)
	defer open.Close()
	if _, err := dial(caTwo); !isUnknownCA(err) {
		t.Errorf("a client that trusts another CA: %v", err)
	}
	eventually := func(what string, done func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: never", what)
			}
		}
	}
	for _, broken := range []string{"certificate of another key", "not PEM", "missing"} {
		switch broken {
		case "certificate of another key":
			put(t, two.Cert, one.Cert)
		case "not PEM":
			if err := os.WriteFile(one.Cert, []byte("nothing"), 0o600); err != nil {
				t.Fatal(err)
			}
		case "missing":
			if err := os.Remove(one.Cert); err != nil {
				t.Fatal(err)
			}
		}
		eventually(broken+" is reported", func() bool { return source.Problem() != nil })
		must(dial(caOne))(t).Close()
	}
	put(t, two.Cert, one.Cert)
	put(t, two.Key, one.Key)
	eventually("the new pair is used", func() bool {
		c, err := dial(caTwo)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	if err := source.Problem(); err != nil {
		t.Errorf("a pair that is used: %v", err)
	}
	if _, err := open.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(open, make([]byte, 4)); err != nil {
		t.Errorf("the connection from before the change: %v", err)
	}
}

func isUnknownCA(err error) bool {
	var unknown x509.UnknownAuthorityError
	return errors.As(err, &unknown)
}

func put(t *testing.T, from, to string) {
	t.Helper()
	if err := os.WriteFile(to, must(os.ReadFile(from))(t), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestVersions(t *testing.T) {
	t.Parallel()
	for lowest, refused := range map[string][]uint16{
		"":    {tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12},
		"1.2": {tls.VersionTLS10, tls.VersionTLS11},
	} {
		files, ca := dev(t)
		files.MinVersion = lowest
		source := must(servetls.Open(files, slog.New(slog.DiscardHandler)))(t)
		for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
			here, there := net.Pipe()
			go func() { _ = tls.Server(there, source.Config()).Handshake() }()
			client := tls.Client(here, &tls.Config{RootCAs: roots(t, ca), ServerName: "localhost", MinVersion: version, MaxVersion: version})
			err := client.Handshake()
			want := true
			for _, r := range refused {
				want = want && version != r
			}
			if (err == nil) != want {
				t.Errorf("at least %q: %s: %v", lowest, tls.VersionName(version), err)
			}
			_, _ = here.Close(), there.Close()
		}
	}
	files, _ := dev(t)
	files.MinVersion = "1.1"
	if _, err := servetls.Open(files, slog.New(slog.DiscardHandler)); !errors.Is(err, servetls.ErrVersion) {
		t.Errorf("1.1: %v", err)
	}
}

func TestBadFiles(t *testing.T) {
	t.Parallel()
	good, ca := dev(t)
	other, _ := dev(t)
	empty := filepath.Join(t.TempDir(), "empty")
	put(t, os.DevNull, empty)
	for name, c := range map[string]struct {
		files servetls.Files
		says  string
	}{
		"no certificate":     {servetls.Files{Cert: "/nowhere", Key: good.Key}, "--tls-cert cannot be read"},
		"no key":             {servetls.Files{Cert: good.Cert, Key: "/nowhere"}, "--tls-key cannot be read"},
		"key of another one": {servetls.Files{Cert: good.Cert, Key: other.Key}, "not a certificate and its key"},
		"empty client CA":    {servetls.Files{Cert: good.Cert, Key: good.Key, ClientCA: empty}, "contains no certificate"},
		"key as client CA":   {servetls.Files{Cert: good.Cert, Key: good.Key, ClientCA: good.Key}, "contains no certificate"},
		"all is well":        {servetls.Files{Cert: good.Cert, Key: good.Key, ClientCA: ca}, ""},
	} {
		_, err := servetls.Open(c.files, slog.New(slog.DiscardHandler))
		if c.says == "" && err == nil {
			continue
		}
		if !errors.Is(err, servetls.ErrFiles) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The files are for their owner alone, the CA stays, and a certificate is made again when it
// lacks a host.
func TestDev(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files, ca, err := servetls.Dev(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	entries := must(os.ReadDir(dir))(t)
	if len(entries) != 4 {
		t.Errorf("the folder holds %v", entries)
	}
	for _, e := range entries {
		if mode := must(e.Info())(t).Mode().Perm(); mode != 0o600 {
			t.Errorf("%s has mode %o", e.Name(), mode)
		}
	}
	authority, cert := must(os.ReadFile(ca))(t), must(os.ReadFile(files.Cert))(t)
	for _, c := range []struct {
		hosts   []string
		changes bool
	}{{nil, false}, {[]string{"192.0.2.1", "credstream"}, true}, {[]string{"192.0.2.1"}, false}} {
		if _, _, err := servetls.Dev(dir, c.hosts); err != nil {
			t.Fatal(err)
		}
		now := must(os.ReadFile(files.Cert))(t)
		if changed := string(now) != string(cert); changed != c.changes {
			t.Errorf("with hosts %q: changed: %t", c.hosts, changed)
		}
		cert = now
		if string(must(os.ReadFile(ca))(t)) != string(authority) {
			t.Error("the CA has changed")
		}
	}
	for _, host := range []string{"localhost", "127.0.0.1", "::1", "192.0.2.1", "credstream"} {
		pair := must(tls.LoadX509KeyPair(files.Cert, files.Key))(t)
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots(t, ca), DNSName: host}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
}
