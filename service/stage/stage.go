// Package stage brings the service up for the tests of its features: on a real node, with a
// clock that a test may move. Nothing but tests may import it.
package stage

import (
	"context"
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credstream/credstream/jsapi"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/events"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/vault"
	"github.com/credstream/credstream/verify"
)

// Stage is a service on a real node, with a clock that a test may move.
type Stage struct {
	Store   *eventlog.Store
	Service *application.Application
	Access  *AccessLog
	Metrics *prometheus.Registry
	Logs    *bustest.LogBuffer
	Vault   *vault.Vault
	Live    *admin.Live
	Admin   service.Principal
	Engine  service.Principal
	Skew    atomic.Int64          // of the clock, in nanoseconds
	Writes  atomic.Pointer[error] // the error that refuses writes
	t       testing.TB
	project func(context.Context, uint64) error
}

// AccessLog is an access log that a test listens to and may have fail.
type AccessLog struct {
	credential.AccessLog
	mu     sync.Mutex
	facts  []credential.AccessFact
	Before func(credential.AccessFact) error // called first; an error is the outcome
	After  func(credential.AccessFact)       // called when the entry is durable
}

// Append implements credential.AccessLog.
func (a *AccessLog) Append(ctx context.Context, tenant string, fact credential.AccessFact) error {
	if a.Before != nil {
		if err := a.Before(fact); err != nil {
			return err
		}
	}
	if err := a.AccessLog.Append(ctx, tenant, fact); err != nil {
		return err
	}
	a.mu.Lock()
	a.facts = append(a.facts, fact)
	a.mu.Unlock()
	if a.After != nil {
		a.After(fact)
	}
	return nil
}

// Told lists the entries since the last call: kind and version.
func (a *AccessLog) Told() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []string
	for _, f := range a.facts {
		list = append(list, fmt.Sprint(f.Kind, " ", f.Version))
	}
	a.facts = nil
	return strings.Join(list, ", ")
}

// Must fails the test with an error.
func Must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// OK fails the test with an error.
func OK(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// New brings a service up, with an administrator, a flow engine of the tenant
// "default", and the component "plain". Options change its configuration.
func New(t testing.TB, options ...func(*application.Config)) *Stage {
	t.Helper()
	s := &Stage{t: t, Metrics: prometheus.NewRegistry(), Logs: &bustest.LogBuffer{}, Live: admin.NewLive()}
	log := slog.New(slog.NewJSONHandler(s.Logs, nil))
	node := Must(natsserver.StartNode(t.Context(), natsserver.NodeConfig{Dir: t.TempDir(), MinFree: 1, Logger: log}))(t)
	t.Cleanup(func() { OK(t, node.Shutdown(context.WithoutCancel(t.Context()))) })
	conn := Must(node.Conn("test"))(t)
	js := Must(jetstream.New(conn))(t)
	s.Store = Must(eventlog.Open(t.Context(), eventlog.Config{
		Conn: conn, Registry: events.All(), Logger: log, OnlyWriter: true, Sync: node.Syncer(eventlog.Stream).Wait,
	}))(t)
	t.Cleanup(s.Store.Close)
	Must(jsapi.EnsureStream(t.Context(), js, vault.StreamConfig(1)))(t)
	Must(jsapi.EnsureStream(t.Context(), js, kv.WebhookConfig(1)))(t)
	Must(kv.EnsureAccessLog(t.Context(), js, 1, kv.DefaultAccessRetention))(t)
	views := Must(projections.OpenViews(filepath.Join(t.TempDir(), "views.db"), projections.ViewsOptions{Logger: log}))(t)
	t.Cleanup(func() { OK(t, views.Close()) })
	projector := projections.NewProjector(s.Store, views, log)
	s.project = projector.Wait
	projector.OnApplied(s.Live.Applied)
	running, halt := context.WithCancel(context.WithoutCancel(t.Context()))
	var parts sync.WaitGroup
	t.Cleanup(func() { halt(); parts.Wait() })
	parts.Go(func() { _ = projector.Run(running) })
	keyFile := filepath.Join(t.TempDir(), "kms.key")
	OK(t, seal.CreateKeyFile(keyFile))
	kms := Must(seal.OpenKMS(t.Context(), seal.KMS{URL: "file://" + keyFile}))(t)
	keys := Must(js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "CREDSTREAM_KEYS", Storage: jetstream.FileStorage}))(t)
	keyring := seal.NewKeyring(kms, seal.NewKVKeysets(js, keys, nil))
	s.Access = &AccessLog{AccessLog: Must(kv.NewAccessLog(Must(node.Conn("access"))(t), node.Syncer(kv.AccessStream).Wait))(t)}
	guarded := verify.NewClient(verify.Config{Logger: log})
	s.Vault = vault.New(js, keyring, node.Syncer(vault.Stream).Wait)
	cfg := application.Config{
		Log: Must(aggregates.NewLog(s.Store, 1000))(t), Views: views, Projector: projector, Keyring: keyring,
		Vault: s.Vault, Verify: guarded, OAuth: oauth.New(guarded), SingleInstance: true,
		Metrics: s.Metrics, Logger: log, Live: s.Live, AccessLog: s.Access, Buckets: Must(kv.OpenThrottle(t.Context(), js, 1))(t),
		Deliveries:  Must(kv.OpenWebhooks(t.Context(), js, nil))(t),
		Connections: Must(kv.OpenConnections(t.Context(), js, 1))(t),
		Now:         func() time.Time { return time.Now().Add(time.Duration(s.Skew.Load())) },
		WritesAllowed: func() error {
			if err := s.Writes.Load(); err != nil {
				return *err
			}
			return nil
		},
	}
	for _, option := range options {
		option(&cfg)
	}
	s.Service = Must(application.New(cfg))(t)
	t.Cleanup(s.Service.Close)
	first := Must(s.Service.Access.Bootstrap(t.Context(), func() (seal.Secret, error) { return access.NewKey(), nil }))(t)
	s.CaughtUp()
	s.Admin = Must(s.Service.Access.Authenticate(t.Context(), string(first.Reveal()), netip.Addr{}))(t)
	s.Engine = s.Issue("default", `{"role":"FLOW_ENGINE"}`)
	s.Do("default", "component.register", `{"id":"plain","descriptor":{"title":"Plain","hosts":["api.example.org","{{region}}.example.org"],
		"credentials":{"fields":{"apiKey":{"viewClass":"PasswordFieldView"},"region":{"viewClass":"TextFieldView"}}}}}`)
	return s
}

// AllowPrivate lets the service send requests to servers on this machine.
func AllowPrivate(c *application.Config) {
	c.Verify = verify.NewClient(verify.Config{AllowPrivate: true, Logger: c.Logger})
	c.OAuth = oauth.New(c.Verify)
}

// CaughtUp waits until the views reflect the log.
func (s *Stage) CaughtUp() {
	s.t.Helper()
	OK(s.t, s.project(s.t.Context(), Must(s.Store.End(s.t.Context()))(s.t)))
}

// Do obeys a command of the administrator.
func (s *Stage) Do(tenant, command, body string) service.Done {
	s.t.Helper()
	answer := Must(s.Service.Serve(s.t.Context(), service.Call{Tenant: tenant, Principal: s.Admin, Via: "http"}, command, []byte(body)))(s.t)
	if done, ok := answer.(interface{ Completed() service.Done }); ok {
		return done.Completed()
	}
	return service.Done{}
}

// Issue creates another caller.
func (s *Stage) Issue(tenant, body string) service.Principal {
	s.t.Helper()
	return Must(s.Service.Access.Authenticate(s.t.Context(), s.Key(tenant, body), netip.Addr{}))(s.t)
}

// Key creates another caller and returns its key.
func (s *Stage) Key(tenant, body string) string {
	s.t.Helper()
	answer := Must(s.Service.Serve(s.t.Context(), service.Call{Tenant: tenant, Principal: s.Admin, Via: "http"}, "api_key.issue", []byte(body)))(s.t)
	s.CaughtUp()
	return answer.(access.IssuedAPIKey).Key
}

// Create creates a credential and returns its id.
func (s *Stage) Create(key string) string {
	s.t.Helper()
	return s.Do("default", "credential.create", fmt.Sprintf(`{"component":"plain","keys":{"apiKey":%q,"region":"eu"}}`, key)).ID
}

// Resolve resolves as the engine, over HTTP on the same machine, unless change overrides it.
func (s *Stage) Resolve(body string, change ...func(*service.Call)) (credential.Resolved, error) {
	s.t.Helper()
	call := service.Call{Tenant: "default", Principal: s.Engine, Via: "http", Confidential: true}
	for _, c := range change {
		c(&call)
	}
	answer, err := s.Service.Serve(s.t.Context(), call, "credential.resolve", []byte(body))
	resolved, _ := answer.(credential.Resolved)
	return resolved, err
}

// Recipient is a flow engine's pair of keys.
type Recipient struct {
	Public  string
	Private hpke.PrivateKey
}

// NewRecipient generates a key pair.
func NewRecipient(t testing.TB) Recipient {
	t.Helper()
	private := Must(hpke.DHKEM(ecdh.X25519()).GenerateKey())(t)
	public := Must(nkeys.Encode(nkeys.PrefixByteCurve, private.PublicKey().Bytes()))(t)
	return Recipient{string(public), private}
}

// Open decrypts an encrypted response for what info names, as another program would.
func (r Recipient) Open(sealed string, info ...string) (string, error) {
	raw, err := base64.RawURLEncoding.DecodeString(sealed)
	if err != nil {
		return "", err
	}
	text, err := hpke.Open(r.Private, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(strings.Join(info, "\n")), raw)
	return string(text), err
}

// CodeOf is the code of a refusal, "" of none.
func CodeOf(err error) string {
	if err == nil {
		return ""
	}
	return fault.Of(err).Code
}

// A sealed answer opens with the key it was sealed to and as the answer to its own

// Facts replays the access log as an auditor.
func (s *Stage) Facts(in credential.ReplayAccess) []credential.Access {
	s.t.Helper()
	body := Must(json.Marshal(in))(s.t)
	answer := Must(s.Service.Serve(s.t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "access.replay", body))(s.t)
	return answer.(credential.AccessReplay).Accesses
}
