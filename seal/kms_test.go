package seal_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/credstream/credstream/seal"
)

func TestKeyFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "kms.key")
	open := func(url string) error {
		_, err := seal.OpenKMS(t.Context(), seal.KMS{URL: url})
		return err
	}
	if err := open("file://" + path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error("OpenKMS made a key")
	}
	if err := seal.CreateKeyFile(path); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := seal.CreateKeyFile(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("creating it again: %v", err)
	}
	if now, _ := os.ReadFile(path); !bytes.Equal(now, good) {
		t.Error("the key was replaced")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := open("file://" + path); err != nil {
		t.Error(err)
	}
	t.Chdir(dir)
	if err := open("file:kms.key"); err != nil {
		t.Errorf("relative: %v", err)
	}

	if runtime.GOOS != "windows" {
		if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
			t.Errorf("mode %o", info.Mode().Perm())
		}
		for _, mode := range []os.FileMode{0o640, 0o604, 0o660, 0o644} {
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
			if err := open("file://" + path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
				t.Errorf("mode %o: %v", mode, err)
			}
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	key := bytes.TrimSpace(good)[len("credstream-kms-key-1 "):]
	swapped := bytes.Clone(good)
	swapped[30], swapped[31] = swapped[31], swapped[30]
	if bytes.Equal(swapped, good) {
		swapped[30] ^= 1
	}
	for name, content := range map[string][]byte{
		"empty":          {},
		"another file":   []byte("-----BEGIN PRIVATE KEY-----\n"),
		"cut short":      good[:40],
		"characters off": swapped,
		"other version":  bytes.Replace(good, []byte("key-1"), []byte("key-2"), 1),
		"large":          make([]byte, 1<<20),
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		err := open("file://" + path)
		if err == nil {
			t.Errorf("%s: opened", name)
		} else if strings.Contains(err.Error(), string(key[:16])) {
			t.Errorf("%s: the error shows the key: %v", name, err)
		}
	}
	if err := open("file://" + dir); err == nil {
		t.Error("a folder was opened as a key")
	}
}

func TestKMSURLs(t *testing.T) {
	for _, c := range []struct{ url, want string }{
		{"", "the scheme of the URL must be"},
		{"kms.key", "the scheme of the URL must be"},
		{"http://x/transit/keys/k", "the scheme of the URL must be"},
		{"file:", "file:///absolute/path"},
		{"file://host/kms.key", "file:///absolute/path"},
		{"file:///kms.key?x=1", "file:///absolute/path"},
		{"hcvault://%zz", "malformed"},
		{"hcvault:///transit/keys/k", "hcvault://host"},
		{"hcvault://vault", "hcvault://host"},
		{"hcvault://vault/transit/k", "hcvault://host"},
		{"hcvault://user:pass@vault/transit/keys/k", "hcvault://host"},
		{"hcvault://vault/transit/keys/k?tls=off", "loopback"},
		{"hcvault://10.0.0.1/transit/keys/k?tls=off", "loopback"},
		{"hcvault://127.0.0.1/transit/keys/k?tls=skip", "loopback"},
		{"hcvault://vault/transit/keys/k?token=x", "is not an option"},
		{"hcvault://vault/transit/keys/k?ca_file=/nonexistent", "ca_file"},
		{"aws-kms://arn:aws:kms:eu-west-1:1:key/k", "awskms"},
		{"gcp-kms://projects/p/locations/l/keyRings/r/cryptoKeys/k", "gcpkms"},
	} {
		_, err := seal.OpenKMS(t.Context(), seal.KMS{URL: c.url, Token: seal.NewSecret([]byte(canary))})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.url, err, c.want)
		} else if len(leaks(err.Error())) > 0 || strings.Contains(err.Error(), "pass") {
			t.Errorf("%s: the error shows a secret: %v", c.url, err)
		}
	}
	if _, err := seal.OpenKMS(t.Context(), seal.KMS{URL: "hcvault://vault/transit/keys/k"}); err == nil {
		t.Error("no token, and opened")
	}
}

// transit stands in for Vault's transit engine: the two endpoints the driver
// calls, with real AES-GCM and associated data, as its API documentation has
// them (https://developer.hashicorp.com/vault/api-docs/secret/transit). What it
// does not show is Vault itself: policies, key types, sealing.
type transit struct {
	aead  cipher.AEAD
	token string

	mu    sync.Mutex
	calls []string
}

// took returns the calls since it was last asked: path and namespace.
func (v *transit) took() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	calls := v.calls
	v.calls = nil
	return calls
}

func newTransit(t *testing.T, token string) *transit {
	t.Helper()
	block, err := aes.NewCipher(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	return &transit{aead: aead, token: token}
}

func (v *transit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	v.calls = append(v.calls, r.URL.Path+" "+r.Header.Get("X-Vault-Namespace"))
	v.mu.Unlock()
	refuse := func(status int, why string) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": []string{why}})
	}
	var req struct {
		Plaintext  []byte `json:"plaintext"`
		Ciphertext string `json:"ciphertext"`
		Associated []byte `json:"associated_data"`
	}
	switch {
	case r.Header.Get("X-Vault-Token") != v.token:
		refuse(http.StatusForbidden, "permission denied")
		return
	case r.Method != http.MethodPut && r.Method != http.MethodPost:
		refuse(http.StatusMethodNotAllowed, "unsupported operation")
		return
	}
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		refuse(http.StatusBadRequest, "malformed")
		return
	}
	data := map[string]any{}
	switch r.URL.Path {
	case "/v1/transit/encrypt/tenants":
		data["ciphertext"] = "vault:v1:" + base64.StdEncoding.EncodeToString(v.aead.Seal(nil, nil, req.Plaintext, req.Associated))
	case "/v1/transit/decrypt/tenants":
		raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(req.Ciphertext, "vault:v1:"))
		if err != nil {
			refuse(http.StatusBadRequest, "invalid ciphertext")
			return
		}
		text, err := v.aead.Open(nil, nil, raw, req.Associated)
		if err != nil {
			refuse(http.StatusBadRequest, "cipher: message authentication failed")
			return
		}
		data["plaintext"] = text
	default:
		refuse(http.StatusNotFound, "no handler")
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"data": data})
}

func TestVaultTransit(t *testing.T) {
	const token = "hvs." + canary
	// What the client library would pick up from the environment must not count.
	t.Setenv("VAULT_TOKEN", "another")
	t.Setenv("VAULT_NAMESPACE", "another")
	t.Setenv("VAULT_ADDR", "http://192.0.2.1")

	fake := newTransit(t, token)
	tlsServer := httptest.NewUnstartedServer(fake)
	tlsServer.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshake that must fail
	tlsServer.StartTLS()
	t.Cleanup(tlsServer.Close)
	plainServer := httptest.NewServer(fake)
	t.Cleanup(plainServer.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tlsServer.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	address := func(server *httptest.Server, query string) string {
		u, err := url.Parse(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		return "hcvault://" + u.Host + "/transit/keys/tenants" + query
	}
	for _, c := range []struct{ name, url, namespace string }{
		{"TLS", address(tlsServer, "?ca_file="+url.QueryEscape(ca)), ""},
		{"plain on loopback", address(plainServer, "?tls=off"), ""},
		{"namespace", address(plainServer, "?tls=off&namespace=team"), "team"},
	} {
		fake.took()
		kms, err := seal.OpenKMS(t.Context(), seal.KMS{URL: c.url, Token: seal.NewSecret([]byte(token))})
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		store := newMemStore()
		ensure(t, seal.NewKeyring(kms, store), "acme", "evil")
		calls := fake.took()
		if len(calls) == 0 {
			t.Errorf("%s: no call arrived", c.name)
		}
		for _, call := range calls {
			if !strings.HasSuffix(call, " "+c.namespace) {
				t.Errorf("%s: call %q", c.name, call)
			}
		}
		cold := seal.NewKeyring(kms, store)
		if err := cold.Check(t.Context(), []string{"acme", "evil"}); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		rewrap(t, keyFile(t), kms)
		store.swap("acme", "evil")
		if err := seal.NewKeyring(kms, store).Check(t.Context(), []string{"acme"}); !errors.Is(err, seal.ErrKeysetUnopenable) {
			t.Errorf("%s: swapped keysets: %v", c.name, err)
		}
	}

	// A certificate that nobody vouches for, a wrong token.
	store := newMemStore()
	for name, kms := range map[string]seal.KMS{
		"unknown certificate": {URL: address(tlsServer, ""), Token: seal.NewSecret([]byte(token))},
		"wrong token":         {URL: address(plainServer, "?tls=off"), Token: seal.NewSecret([]byte("wrong-" + canary))},
	} {
		aead, err := seal.OpenKMS(t.Context(), kms)
		if err != nil {
			t.Fatal(err)
		}
		err = seal.NewKeyring(aead, store).Ensure(t.Context(), "acme")
		if !errors.Is(err, seal.ErrKeysetUnwrappable) {
			t.Errorf("%s: %v", name, err)
		} else if len(leaks(err.Error())) > 0 {
			t.Errorf("%s: the error shows the token: %v", name, err)
		}
	}
}

// The driver follows no redirect: the token is for Vault alone.
func TestVaultRedirectIsNotFollowed(t *testing.T) {
	reached := false
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	t.Cleanup(elsewhere.Close)
	vault := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	t.Cleanup(vault.Close)
	u, err := url.Parse(vault.URL)
	if err != nil {
		t.Fatal(err)
	}
	kms, err := seal.OpenKMS(t.Context(), seal.KMS{
		URL: "hcvault://" + u.Host + "/transit/keys/tenants?tls=off", Token: seal.NewSecret([]byte("t")),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kms.Encrypt([]byte("x"), nil); err == nil || reached {
		t.Errorf("err %v, reached %v", err, reached)
	}
}
