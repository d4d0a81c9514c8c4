// Package servetls loads the certificate of the service's ports and reloads it when its files
// change.
package servetls

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/fault"
)

// Errors of the configuration.
var (
	ErrFiles = fault.New(fault.Invalid, "config_tls", "The TLS certificate and key cannot be used.")
	// ErrVersion refuses versions that are insecure or unknown.
	ErrVersion = fault.New(fault.Invalid, "config_tls_min_version", "--tls-min-version must be 1.2 or 1.3.")
)

// checkEvery is the time between two looks at the files. A pair that cannot be used is reported
// at the second look: the first may have come between the writes of its files.
const checkEvery = 2 * time.Second

// Files name what a Source loads.
type Files struct {
	Cert, Key  string // PEM; Cert holds the certificates of intermediate CAs, too
	ClientCA   string // PEM with the CAs of client certificates; "" accepts none
	MinVersion string // "1.2" or "1.3"; 1.3 when empty
}

// Source serves the newest usable certificate. It is safe for concurrent use.
type Source struct {
	files   Files
	version uint16
	log     *slog.Logger
	now     func() time.Time
	current atomic.Pointer[loaded]
	failure atomic.Pointer[error]
	metrics []prometheus.Collector
	reloads *prometheus.CounterVec

	mu      sync.Mutex        // held by check
	seen    [sha256.Size]byte // content of the files at the last look
	settled bool              // that content was loaded, or its failure was reported
}

// loaded is one content of the files.
type loaded struct {
	chain     tls.Certificate
	clientCAs *x509.CertPool // nil: no client certificates

	mu      sync.Mutex
	configs map[string]*tls.Config // by the protocols of the port: a config keeps the keys of session tickets
}

// Open loads the files. It returns ErrFiles and ErrVersion.
func Open(files Files, log *slog.Logger) (*Source, error) {
	return open(files, log, time.Now)
}

func open(files Files, log *slog.Logger, now func() time.Time) (*Source, error) {
	s := &Source{files: files, log: log, now: now, settled: true}
	switch files.MinVersion {
	case "", "1.3":
		s.version = tls.VersionTLS13
	case "1.2":
		s.version = tls.VersionTLS12
	default:
		return nil, ErrVersion
	}
	content, err := s.read()
	if err != nil {
		return nil, err
	}
	l, err := s.parse(content)
	if err != nil {
		return nil, err
	}
	s.seen = content.sum()
	s.current.Store(l)
	if info, err := os.Stat(files.Key); err == nil && info.Mode().Perm()&0o077 != 0 {
		log.Warn("other users of this machine can read the TLS key; run chmod 600 on it", "file", files.Key)
	}
	s.reloads = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "credstream_tls_reloads_total", Help: "Changes of the TLS files, by outcome: loaded, or failed, which keeps the earlier certificate.",
	}, []string{"outcome"})
	s.reloads.WithLabelValues("loaded")
	s.reloads.WithLabelValues("failed")
	s.metrics = []prometheus.Collector{s.reloads, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "credstream_tls_certificate_expires_seconds", Help: "When the certificate in use expires, as Unix time.",
	}, func() float64 { return float64(s.Expires().Unix()) })}
	return s, nil
}

// Metrics are the collectors of the source; they may be registered more than once.
func (s *Source) Metrics() []prometheus.Collector { return s.metrics }

// Expires is when the certificate in use expires.
func (s *Source) Expires() time.Time { return s.current.Load().chain.Leaf.NotAfter }

// Problem says why the newest files are not in use, or that the certificate has expired; nil if
// all is well.
func (s *Source) Problem() error {
	if err := s.failure.Load(); err != nil && *err != nil {
		return fmt.Errorf("the changed files are not used, the certificate before them still is: %w", *err)
	}
	if end := s.Expires(); s.now().After(end) {
		return fmt.Errorf("the certificate expired at %s", end.UTC().Format(time.RFC3339))
	}
	return nil
}

// ClientCAs are the CAs of client certificates; nil when none are accepted.
func (s *Source) ClientCAs() *x509.CertPool { return s.current.Load().clientCAs }

// Config is the configuration of a listener that negotiates these application protocols. Each
// connection uses the newest usable files; those that are open keep theirs.
func (s *Source) Config(protocols ...string) *tls.Config {
	cfg := s.current.Load().config(s.version, protocols).Clone()
	cfg.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return s.current.Load().config(s.version, protocols), nil
	}
	return cfg
}

func (l *loaded) config(version uint16, protocols []string) *tls.Config {
	l.mu.Lock()
	defer l.mu.Unlock()
	name := fmt.Sprint(protocols)
	cfg := l.configs[name]
	if cfg == nil {
		cfg = &tls.Config{MinVersion: version, Certificates: []tls.Certificate{l.chain}, NextProtos: protocols}
		if l.clientCAs != nil {
			cfg.ClientAuth, cfg.ClientCAs = tls.VerifyClientCertIfGiven, l.clientCAs
			cfg.SessionTicketsDisabled = true // a resumed session would bring a certificate that is not verified again
		}
		l.configs[name] = cfg
	}
	return cfg
}

// Run looks for changed files until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.check()
		}
	}
}

// check loads the files if they have changed.
func (s *Source) check() {
	s.mu.Lock()
	defer s.mu.Unlock()
	content, err := s.read()
	sum := content.sum()
	again := sum == s.seen
	if again && s.settled && (err == nil || s.failure.Load() != nil) {
		return
	}
	s.seen, s.settled = sum, false
	var l *loaded
	if err == nil {
		l, err = s.parse(content)
	}
	switch {
	case err == nil:
		s.current.Store(l)
		s.failure.Store(nil)
		s.settled = true
		s.reloads.WithLabelValues("loaded").Inc()
		s.log.Info("TLS certificate loaded", "expires", s.Expires())
	case again:
		s.failure.Store(&err)
		s.settled = true
		s.reloads.WithLabelValues("failed").Inc()
		s.log.Error("TLS files have changed but cannot be used; the certificate before them is still used", "err", err)
	}
}

// content is what the files hold; a file that cannot be read is empty.
type content struct{ cert, key, clientCA []byte }

func (c content) sum() [sha256.Size]byte {
	return sha256.Sum256(bytes.Join([][]byte{c.cert, c.key, c.clientCA}, []byte{0}))
}

func (s *Source) read() (c content, err error) {
	for _, f := range []struct {
		flag, path string
		to         *[]byte
	}{{"--tls-cert", s.files.Cert, &c.cert}, {"--tls-key", s.files.Key, &c.key}, {"--tls-client-ca", s.files.ClientCA, &c.clientCA}} {
		if f.path == "" && f.to == &c.clientCA {
			continue
		}
		var failed error
		if *f.to, failed = os.ReadFile(f.path); failed != nil {
			err = errors.Join(err, ErrFiles.Withf("The file of %s cannot be read: %v.", f.flag, failed))
		}
	}
	return c, err
}

func (s *Source) parse(c content) (*loaded, error) {
	chain, err := tls.X509KeyPair(c.cert, c.key)
	if err != nil { // says which part is wrong, and quotes none of it
		return nil, ErrFiles.Withf("The files %s and %s are not a certificate and its key: %v.", s.files.Cert, s.files.Key, err)
	}
	if chain.Leaf == nil {
		if chain.Leaf, err = x509.ParseCertificate(chain.Certificate[0]); err != nil {
			return nil, ErrFiles.Withf("The certificate in %s cannot be read: %v.", s.files.Cert, err)
		}
	}
	if s.now().After(chain.Leaf.NotAfter) {
		return nil, ErrFiles.Withf("The certificate in %s expired at %s.", s.files.Cert, chain.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	l := &loaded{chain: chain, configs: map[string]*tls.Config{}}
	if s.files.ClientCA != "" {
		l.clientCAs = x509.NewCertPool()
		if !l.clientCAs.AppendCertsFromPEM(c.clientCA) {
			return nil, ErrFiles.Withf("The file %s of --tls-client-ca contains no certificate in PEM form.", s.files.ClientCA)
		}
	}
	return l, nil
}
