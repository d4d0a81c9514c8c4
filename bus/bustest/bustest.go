// Package bustest starts the real nats-server, one or three of them, as processes
// beside a test, with the configuration of deploy/nats.
package bustest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/credstream/credstream/bus/natsserver"
)

const (
	startTime = 30 * time.Second      // timeout until all servers are ready, on a busy machine
	lookEvery = 20 * time.Millisecond // between two checks of it
	stopTime  = 5 * time.Second       // timeout of a clean stop
)

// Option changes how the servers are started.
type Option func(*NATS)

// Nodes is the number of servers: 1, which is the default, or 3 and more, which
// make a cluster.
func Nodes(n int) Option { return func(s *NATS) { s.nodes = make([]*node, n) } }

// LooseLimits removes the limits of clients from the servers' configuration.
func LooseLimits() Option { return func(s *NATS) { s.loose = true } }

// LazySync makes the servers acknowledge before they fsync.
func LazySync() Option { return func(s *NATS) { s.lazy = true } }

// ClearCallout makes the servers send their auth callout without encryption.
func ClearCallout() Option { return func(s *NATS) { s.clear = true } }

// OnHost makes the servers listen on this IP address instead of 127.0.0.1.
func OnHost(ip string) Option { return func(s *NATS) { s.host = ip } }

// Cuttable connects the servers of a cluster through proxies, so that Cut can separate them.
func Cuttable() Option { return func(s *NATS) { s.proxies = &routeProxies{} } }

// Stores calls prepare with the empty folder in which each server will keep its streams, before the
// servers start.
func Stores(prepare func(dir string)) Option { return func(s *NATS) { s.prepare = prepare } }

// TLS makes the servers require TLS of their clients, with this certificate, which
// the clients need not trust.
func TLS(certificate tls.Certificate) Option { return func(s *NATS) { s.tls = &certificate } }

// EarlierAccounts gives the servers the accounts.conf of a version that did not serve the
// consumers: clients reach JetStream directly, and the service may not subscribe to their pulls.
func EarlierAccounts() Option { return func(s *NATS) { s.earlier = true } }

// NATS is the servers of one test.
type NATS struct {
	host     string
	tls      *tls.Certificate // nil: without TLS
	t        testing.TB
	dir      string
	binary   string
	password string
	issuer   string // public keys
	xkey     string
	lazy     bool
	loose    bool // without limits of clients
	clear    bool
	earlier  bool // accounts.conf is that of an earlier version
	nodes    []*node
	proxies  *routeProxies // of the routes; nil: the servers are connected directly
	prepare  func(dir string)
}

type node struct {
	name, client, route string // addresses are host:port
	cmd                 *exec.Cmd
	ended               chan struct{}
	log                 *os.File
}

// Start starts the servers and returns when JetStream is ready. They are stopped
// at the end of the test. A test is skipped where the server cannot be built.
func Start(t testing.TB, options ...Option) *NATS {
	t.Helper()
	s := &NATS{t: t, host: "127.0.0.1", dir: t.TempDir(), binary: build(t), password: "p" + rand.Text(), nodes: make([]*node, 1)}
	for _, o := range options {
		o(s)
	}
	s.configure()
	addresses := s.addresses(2 * len(s.nodes))
	for i := range s.nodes {
		s.nodes[i] = &node{name: fmt.Sprintf("n%d", i+1), client: addresses[2*i], route: addresses[2*i+1]}
	}
	if s.prepare != nil {
		for i := range s.nodes {
			s.must(os.Mkdir(s.store(i), 0o700))
			s.prepare(s.store(i))
		}
	}
	t.Cleanup(func() {
		for i := range s.nodes {
			s.Kill(i)
		}
		if t.Failed() {
			s.showLogs()
		}
	})
	if s.proxies != nil {
		s.proxies.listen(t, s.nodes)
	}
	for i := range s.nodes {
		s.StartNode(i)
	}
	s.Ready()
	return s
}

// Dir is the folder with the stores and the log files of all servers.
func (s *NATS) Dir() string { return s.dir }

// store is the folder with the streams of one server.
func (s *NATS) store(i int) string { return filepath.Join(s.dir, s.nodes[i].name) }

// Host is the address of one server, host:port.
func (s *NATS) Host(i int) string { return s.nodes[i].client }

// Config is the configuration with which a process of the service connects, with every user and
// key. It requests a replica on each server.
func (s *NATS) Config() natsserver.ClusterConfig {
	cfg := natsserver.ClusterConfig{
		URL: s.URL("credstream"), EndpointURL: s.URL("credstream-endpoints"),
		SystemURL: s.URL("credstream-system"), CalloutURL: s.URL("credstream-callout"),
		CalloutSeedFile: s.SeedFile(), Replicas: len(s.nodes),
	}
	if s.tls != nil {
		cfg.TLS = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // of a test
	}
	if !s.clear {
		cfg.CalloutXKeyFile = s.XKeyFile()
	}
	return cfg
}

// URL is the URL of every server for one of the users of deploy/nats: credstream,
// credstream-endpoints, credstream-callout or credstream-system. For "" it names none.
func (s *NATS) URL(user string) string {
	if user != "" {
		user += ":" + s.password + "@"
	}
	scheme := "nats://"
	if s.tls != nil {
		scheme = "tls://"
	}
	var urls []string
	for _, n := range s.nodes {
		urls = append(urls, scheme+user+n.client)
	}
	return strings.Join(urls, ",")
}

// HostURL is the URL of one server for one of the users.
func (s *NATS) HostURL(i int, user string) string { return strings.Split(s.URL(user), ",")[i] }

// Leader is the index of the server that leads a stream; -1 if there is none.
func (s *NATS) Leader(js jetstream.JetStream, stream string) int {
	at, err := js.Stream(s.t.Context(), stream)
	if err != nil {
		return -1
	}
	if c := at.CachedInfo().Cluster; c != nil {
		return slices.IndexFunc(s.nodes, func(n *node) bool { return n.name == c.Leader })
	}
	return -1
}

// SeedFile holds the seed of the issuer of the auth callout.
func (s *NATS) SeedFile() string { return filepath.Join(s.dir, "issuer.seed") }

// XKeyFile holds the seed of the key that the auth callout is encrypted with.
func (s *NATS) XKeyFile() string { return filepath.Join(s.dir, "xkey.seed") }

// configure writes the servers' configuration and keys.
func (s *NATS) configure() {
	for _, file := range []string{"accounts.conf", "single.conf", "node.conf"} {
		text, err := os.ReadFile(filepath.Join(s.root(), "deploy", "nats", file))
		s.must(err)
		if s.loose {
			text = regexp.MustCompile(`(?m)^(max_|write_deadline|ping_).*\n`).ReplaceAll(text, nil)
		}
		if s.lazy {
			text = bytes.ReplaceAll(text, []byte("sync_interval: always"), nil)
		}
		if s.proxies != nil { // servers know each other only through the proxies
			text = bytes.ReplaceAll(text, []byte("routes: $NATS_ROUTES"), []byte("routes: $NATS_ROUTES\n  advertise: \"127.0.0.1:1\""))
		}
		if s.earlier {
			text = regexp.MustCompile(`,?\s*"credstream\.consumer\.info\.>".*\n`).ReplaceAll(text, []byte("\n"))
			text = regexp.MustCompile(`, to: "[^"]*"`).ReplaceAll(text, nil)
			text = bytes.ReplaceAll(text, []byte(`service: "credstream.consumer.info.`), []byte(`service: "$JS.API.CONSUMER.INFO.`))
			text = bytes.ReplaceAll(text, []byte(`subject: "credstream.consumer.info.`), []byte(`subject: "$JS.API.CONSUMER.INFO.`))
		}
		if s.clear {
			text = bytes.ReplaceAll(text, []byte("xkey: $NATS_CALLOUT_XKEY"), nil)
		}
		if s.tls != nil && file == "accounts.conf" {
			text = append(text, "\ntls { cert_file: \"cert.pem\", key_file: \"key.pem\" }\n"...)
		}
		s.must(os.WriteFile(filepath.Join(s.dir, file), text, 0o600))
	}
	if s.tls != nil {
		key, err := x509.MarshalPKCS8PrivateKey(s.tls.PrivateKey)
		s.must(err)
		for file, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: s.tls.Certificate[0]}, "key.pem": {Type: "PRIVATE KEY", Bytes: key}} {
			s.must(os.WriteFile(filepath.Join(s.dir, file), pem.EncodeToMemory(block), 0o600))
		}
	}
	issuer, err := nkeys.CreateAccount()
	s.must(err)
	s.issuer = s.writeSeed(issuer, s.SeedFile())
	xkey, err := nkeys.CreateCurveKeys()
	s.must(err)
	s.xkey = s.writeSeed(xkey, s.XKeyFile())
}

// writeSeed writes the seed into a file and returns the public key.
func (s *NATS) writeSeed(pair nkeys.KeyPair, file string) string {
	seed, err := pair.Seed()
	s.must(err)
	s.must(os.WriteFile(file, append(seed, '\n'), 0o600))
	public, err := pair.PublicKey()
	s.must(err)
	return public
}

// StartNode starts one server with its previous data and address.
func (s *NATS) StartNode(i int) {
	s.t.Helper()
	n := s.nodes[i]
	file := "single.conf"
	var routes []string
	if len(s.nodes) > 1 {
		file = "node.conf"
		for j, other := range s.nodes {
			address := other.route
			if s.proxies != nil && i != j {
				address = s.proxies.address(i, j)
			}
			routes = append(routes, fmt.Sprintf("%q", "nats://route:"+s.password+"@"+address))
		}
	}
	var err error
	n.log, err = os.OpenFile(filepath.Join(s.dir, n.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	s.must(err)
	n.cmd = exec.Command(s.binary, "-c", filepath.Join(s.dir, file)) //nolint:noctx // ends by Kill
	n.cmd.Dir, n.cmd.Stdout, n.cmd.Stderr = s.dir, n.log, n.log
	n.cmd.Env = append(os.Environ(),
		"NATS_NAME="+n.name, "NATS_LISTEN="+quote(n.client), "NATS_STORE="+quote(s.store(i)),
		"NATS_CLUSTER_LISTEN="+quote(n.route), "NATS_ROUTES=["+strings.Join(routes, ",")+"]",
		"NATS_CALLOUT_ISSUER="+s.issuer, "NATS_CALLOUT_XKEY="+s.xkey)
	for _, of := range []string{"SERVICE", "ENDPOINTS", "CALLOUT", "SYSTEM", "ROUTE"} {
		n.cmd.Env = append(n.cmd.Env, "NATS_"+of+"_PASSWORD="+s.password)
	}
	s.must(n.cmd.Start())
	n.ended = make(chan struct{})
	go func() { // ends with the process, which Kill waits for
		defer close(n.ended)
		_ = n.cmd.Wait() // it is killed
	}()
}

func quote(s string) string { return `"` + s + `"` }

// Kill ends one server like a crash.
func (s *NATS) Kill(i int) { s.end(i, syscall.SIGKILL) }

// Stop stops one server cleanly.
func (s *NATS) Stop(i int) { s.end(i, syscall.SIGTERM) }

// Freeze suspends one server until Thaw: what it is sent meanwhile arrives then. It returns when
// every thread of the server has stopped.
func (s *NATS) Freeze(i int) {
	s.t.Helper()
	s.signal(i, syscall.SIGSTOP)
	for pid := s.nodes[i].cmd.Process.Pid; !stopped(pid) && s.t.Context().Err() == nil; {
		time.Sleep(time.Millisecond)
	}
}

// stopped reports whether all threads of a process are suspended. Where threads are not visible,
// it returns true.
func stopped(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, file := range threads {
		stat, err := os.ReadFile(file)
		_, state, ok := strings.Cut(string(stat), ") ")
		if err == nil && ok && !strings.HasPrefix(state, "T") {
			return false
		}
	}
	return true
}

// Thaw resumes a frozen server.
func (s *NATS) Thaw(i int) { s.signal(i, syscall.SIGCONT) }

func (s *NATS) signal(i int, sig syscall.Signal) {
	s.t.Helper()
	if err := s.nodes[i].cmd.Process.Signal(sig); err != nil {
		s.t.Error(err)
	}
}

func (s *NATS) end(i int, sig syscall.Signal) {
	n := s.nodes[i]
	if n == nil || n.cmd == nil || n.ended == nil {
		return
	}
	_ = n.cmd.Process.Signal(sig) // fails when it has ended
	select {
	case <-n.ended:
	case <-time.After(stopTime):
		_ = n.cmd.Process.Kill() // fails when it has ended
		<-n.ended
	}
	n.cmd, n.ended = nil, nil
	_ = n.log.Close() // written by the server alone
}

// Ready waits until the service could create a stream on every started server.
func (s *NATS) Ready() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	for i, n := range s.nodes {
		if n.cmd == nil {
			continue
		}
		for {
			err := s.ready(ctx, n)
			if err == nil {
				break
			}
			select {
			case <-n.ended:
				s.showLogs()
				s.t.Fatalf("nats-server %d has ended", i+1)
			case <-ctx.Done():
				s.showLogs()
				s.t.Fatalf("nats-server %d is not ready: %v", i+1, err)
			case <-time.After(lookEvery):
			}
		}
	}
}

var errAlone = errors.New("the servers have not found each other")

func (s *NATS) ready(ctx context.Context, n *node) error {
	nc, err := nats.Connect("nats://"+n.client, nats.UserInfo("credstream", s.password), func(o *nats.Options) error {
		o.TLSConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // used where the server wants TLS
		return nil
	})
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	running := 0
	for _, n := range s.nodes {
		if n.cmd != nil {
			running++
		}
	}
	if len(nc.Servers()) < running { // a server lists the others to its clients
		return errAlone
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err = js.AccountInfo(ctx) // answered once the cluster has a leader
	return err
}

// addresses returns ports that were free a moment ago.
func (s *NATS) addresses(n int) (addresses []string) {
	for range n {
		l, err := net.Listen("tcp", net.JoinHostPort(s.host, "0")) //nolint:noctx // closed at once
		s.must(err)
		defer func() { _ = l.Close() }() // after the last one, so that they differ
		addresses = append(addresses, l.Addr().String())
	}
	return addresses
}

// Log returns the log of the servers.
func (s *NATS) Log() string {
	s.t.Helper()
	var all strings.Builder
	for _, n := range s.nodes {
		text, err := os.ReadFile(filepath.Join(s.dir, n.name+".log"))
		if err != nil {
			s.t.Error(err)
		}
		fmt.Fprintf(&all, "%s at %s:\n%s", n.name, n.client, text)
	}
	return all.String()
}

func (s *NATS) showLogs() {
	for line := range strings.SplitSeq(s.Log(), "\n") {
		if !strings.Contains(line, "[INF]") && !strings.Contains(line, " Violation ") {
			s.t.Log(line)
		}
	}
}

func (s *NATS) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *NATS) root() string {
	s.t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output() //nolint:noctx // takes a moment
	s.must(err)
	return strings.TrimSpace(string(out))
}

// building makes the tests of one process share one build.
var building sync.Mutex

// build builds the server of the version that this module embeds, once for all tests of this
// user.
func build(t testing.TB) string {
	t.Helper()
	building.Lock()
	defer building.Unlock()
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "credstream-test")
	binary := filepath.Join(dir, "nats-server-"+server.VERSION)
	if _, err := os.Stat(binary); err == nil {
		return binary
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	fresh := filepath.Join(t.TempDir(), "nats-server")
	out, err := exec.Command("go", "build", "-o", fresh, "github.com/nats-io/nats-server/v2").CombinedOutput() //nolint:noctx // ends by itself
	if err != nil {
		t.Skipf("needs nats-server as a program, which could not be built: %v\n%s", err, out)
	}
	// Rename it into place: tests of other packages may build it at the same time.
	mine := binary + "." + rand.Text()
	text, err := os.ReadFile(fresh)
	if err == nil {
		err = os.WriteFile(mine, text, 0o700) //nolint:gosec // a program has its x bit
	}
	if err == nil {
		err = os.Rename(mine, binary)
	}
	if err != nil {
		t.Fatal(err)
	}
	return binary
}
