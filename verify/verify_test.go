package verify_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/verify"
)

// canary stands for a secret: no result, error or log line may hold it.
const canary = "CANARY-5f1c99e0-swordfish"

const tenant = "default"

func values(fields map[string]string) verify.Values {
	return func(field string) (seal.Secret, bool) {
		v, ok := fields[field]
		return seal.NewSecret([]byte(v)), ok
	}
}

var canaryKey = values(map[string]string{"key": canary})

// get is a GET of url with the canary in a header and in the query.
func get(url, host string) verify.Probe {
	return verify.Probe{HTTP: &verify.HTTP{URL: url, Headers: map[string]string{"X-Key": "{{key}}"}}, Hosts: []string{host}}
}

func within(p verify.Probe, hosts []string) verify.Probe {
	p.Hosts = hosts
	return p
}

// run makes a dry request and checks that the canary stays inside.
func run(t *testing.T, cfg verify.Config, p verify.Probe, values verify.Values) (verify.Result, error) {
	t.Helper()
	var log bytes.Buffer
	cfg.Logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r, err := verify.NewClient(cfg).Run(t.Context(), tenant, p, values)
	if text := fmt.Sprintf("%#v %+v %v %+v %#v %s", r, r, err, err, fault.Of(err), log.String()); strings.Contains(text, canary) || strings.Contains(text, url.QueryEscape(canary)) {
		t.Errorf("the secret came out: %s", text)
	}
	return r, err
}

func development() verify.Config { return verify.Config{AllowPrivate: true} }

// serve starts a real server on loopback.
func serve(t *testing.T, h http.HandlerFunc) (url string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

var ignoreTime = cmpopts.IgnoreFields(verify.Result{}, "Latency")

func TestTheRequest(t *testing.T) {
	type seen struct {
		Method, URI, Body, Key, Auth, Type, Agent, Encoding, Referer, Cookie string
	}
	requests := make(chan seen, 1)
	base := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		h := r.Header
		requests <- seen{
			r.Method, r.RequestURI, string(body), h.Get("X-Key"), h.Get("Authorization"), h.Get("Content-Type"),
			h.Get("User-Agent"), h.Get("Accept-Encoding"), h.Get("Referer"), h.Get("Cookie"),
		}
	})
	v := values(map[string]string{"a": `x/y?z=1&"q" #ü`, "k": "k-1", "multi": "one\r\ntwo", "t": "{{k}}", "pass": "p:w"})
	hosts := []string{"127.0.0.1"}
	for name, c := range map[string]struct {
		p    verify.HTTP
		want seen
	}{
		"get": {
			verify.HTTP{URL: base + "/v1/{{a}}/me?q={{a}}&k={{k}}", Headers: map[string]string{"x-key": "Key {{k}}"}},
			seen{Method: "GET", URI: "/v1/x%2Fy%3Fz=1&%22q%22%20%23%C3%BC/me?q=x%2Fy%3Fz%3D1%26%22q%22+%23%C3%BC&k=k-1", Key: "Key k-1"},
		},
		"no path":                    {verify.HTTP{URL: base + "?k={{k}}"}, seen{Method: "GET", URI: "/?k=k-1"}},
		"head":                       {verify.HTTP{Method: "HEAD", URL: base + "/"}, seen{Method: "HEAD", URI: "/"}},
		"basic":                      {verify.HTTP{URL: base + "/", Basic: &verify.Basic{Username: "{{k}}/token", Password: "{{pass}}"}}, seen{Method: "GET", URI: "/", Auth: "Basic ay0xL3Rva2VuOnA6dw=="}},
		"values are no templates":    {verify.HTTP{URL: base + "/{{t}}?t={{t}}", Headers: map[string]string{"X-Key": "{{t}}"}}, seen{Method: "GET", URI: "/%7B%7Bk%7D%7D?t=%7B%7Bk%7D%7D", Key: "{{k}}"}},
		"absent in query and header": {verify.HTTP{URL: base + "/?k={{absent}}", Headers: map[string]string{"X-Key": "{{absent}}"}}, seen{Method: "GET", URI: "/?k="}},
		"form": {
			verify.HTTP{Method: "POST", URL: base + "/", Form: map[string]string{"a": "{{a}}", "b": "{{multi}}"}},
			seen{Method: "POST", URI: "/", Body: "a=x%2Fy%3Fz%3D1%26%22q%22+%23%C3%BC&b=one%0D%0Atwo", Type: "application/x-www-form-urlencoded"},
		},
		"json": {
			verify.HTTP{Method: "POST", URL: base + "/", JSON: []byte(`{"n": 1.50, "a": ["{{a}}", {"b": "<{{multi}}>"}], "t": "{{t}}", "z": null}`)},
			seen{Method: "POST", URI: "/", Body: `{"n":1.50,"a":["x/y?z=1&\"q\" #ü",{"b":"<one\r\ntwo>"}],"t":"{{k}}","z":null}`, Type: "application/json"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := run(t, development(), verify.Probe{HTTP: &c.p, Hosts: hosts}, v)
			if err != nil || !r.OK {
				t.Fatal(r, err)
			}
			c.want.Agent = "credstream"
			if diff := cmp.Diff(c.want, <-requests); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhatAnAnswerMeans(t *testing.T) {
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		status, _ := strconv.Atoi(strings.Trim(r.URL.Path, "/"))
		w.Header().Set("X-Key", r.Header.Get("X-Key")) // an API that echoes
		w.WriteHeader(status)
		_, _ = io.WriteString(w, r.Header.Get("X-Key"))
	})
	says := map[string]string{"401": "The key was not accepted.", "4xx": "Something is wrong.", "200": "Welcome."}
	for _, c := range []struct {
		status  int
		expect  []int
		says    map[string]string
		ok      bool
		outcome string
		part    string // of the sentence
	}{
		{200, nil, nil, true, "2xx", "accepted"},
		{204, nil, nil, true, "2xx", "accepted"},
		{200, nil, says, true, "2xx", "Welcome."},
		{204, []int{200}, nil, false, "2xx", "status 204"},
		{401, nil, nil, false, "4xx", "rejected the keys"},
		{401, nil, says, false, "4xx", "The key was not accepted."},
		{403, nil, nil, false, "4xx", "denies them access"},
		{404, nil, says, false, "4xx", "Something is wrong."},
		{404, []int{200, 404}, nil, true, "4xx", "accepted"},
		{429, nil, nil, false, "4xx", "could not be checked"},
		{500, nil, nil, false, "5xx", "error of its own"},
		{503, nil, says, false, "5xx", "error of its own"},
		{304, nil, nil, false, "redirect", "redirects"},
		{302, []int{302}, nil, true, "3xx", "accepted"},
		{299, nil, nil, true, "2xx", "accepted"},
		{999, nil, nil, false, "9xx", "status 999"},
	} {
		p := get(fmt.Sprintf("%s/%d", base, c.status), "127.0.0.1")
		p.HTTP.Expect, p.HTTP.Says = c.expect, c.says
		r, err := run(t, development(), p, canaryKey)
		if err != nil {
			t.Errorf("%d: %v", c.status, err)
			continue
		}
		if !strings.Contains(r.Says, c.part) || r.Latency <= 0 {
			t.Errorf("%d: says %q after %s", c.status, r.Says, r.Latency)
		}
		r.Says = ""
		if diff := cmp.Diff(verify.Result{OK: c.ok, Probe: "http", Outcome: c.outcome}, r, ignoreTime); diff != "" {
			t.Errorf("%d (-want +got):\n%s", c.status, diff)
		}
	}
}

// raw serves each connection with one function, for servers that misbehave.
func raw(t *testing.T, serve func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		conns.Wait()
	})
	return l.Addr().String()
}

// readHead reads until the client's request head has come.
func readHead(conn net.Conn) {
	buf, head := make([]byte, 4096), ""
	for !strings.Contains(head, "\r\n\r\n") {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		head += string(buf[:n])
	}
}

// forever writes text until the client has had enough.
func forever(conn net.Conn, text string, pause time.Duration) {
	for {
		if _, err := io.WriteString(conn, text); err != nil {
			return
		}
		time.Sleep(pause) // the drip of a slow server, not a synchronisation
	}
}

func TestServersThatMisbehave(t *testing.T) {
	var bomb bytes.Buffer
	zip := gzip.NewWriter(&bomb)
	if _, err := io.CopyN(zip, zeros{}, 4<<20); err != nil {
		t.Fatal(err)
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	const ok = "HTTP/1.1 200 OK\r\n"
	for name, c := range map[string]struct {
		serve   func(net.Conn)
		ok      bool
		outcome string
	}{
		"says nothing":     {func(c net.Conn) { readHead(c); _, _ = io.Copy(io.Discard, c) }, false, verify.OutcomeTimeout},
		"drips its header": {func(c net.Conn) { readHead(c); _, _ = io.WriteString(c, ok+"X: "); forever(c, "a", time.Millisecond) }, false, verify.OutcomeTimeout},
		"endless header": {func(c net.Conn) {
			readHead(c)
			_, _ = io.WriteString(c, ok)
			forever(c, "X: aaaaaaaaaaaaaaaaaaaaaa\r\n", 0)
		}, false, verify.OutcomeTooLarge},
		"one long header line": {func(c net.Conn) {
			readHead(c)
			_, _ = io.WriteString(c, ok+"X: ")
			forever(c, strings.Repeat("a", 4096), 0)
		}, false, verify.OutcomeTooLarge},
		"closes at once":         {func(c net.Conn) { readHead(c) }, false, verify.OutcomeClosed},
		"speaks no HTTP":         {func(c net.Conn) { readHead(c); _, _ = io.WriteString(c, "SSH-2.0-OpenSSH_9.9\r\n") }, false, verify.OutcomeProtocol},
		"echoes into the status": {func(c net.Conn) { readHead(c); _, _ = io.WriteString(c, "HTTP/1.1 "+canary+"\r\n\r\n") }, false, verify.OutcomeProtocol},
		"drips its body":         {func(c net.Conn) { readHead(c); _, _ = io.WriteString(c, ok+"\r\n"); forever(c, "a", time.Millisecond) }, true, "2xx"},
		"endless body": {func(c net.Conn) {
			readHead(c)
			_, _ = io.WriteString(c, ok+"\r\n")
			forever(c, strings.Repeat("a", 64<<10), 0)
		}, true, "2xx"},
		"half a body": {func(c net.Conn) { readHead(c); _, _ = io.WriteString(c, ok+"Content-Length: 10\r\n\r\nab") }, true, "2xx"},
		"gzip bomb": {func(c net.Conn) {
			readHead(c)
			_, _ = fmt.Fprintf(c, ok+"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", bomb.Len(), bomb.Bytes())
		}, true, "2xx"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := development()
			if c.outcome == verify.OutcomeTimeout {
				cfg.Timeout = 50 * time.Millisecond
			}
			r, err := run(t, cfg, get("http://"+raw(t, c.serve)+"/?k={{key}}", "127.0.0.1"), canaryKey)
			if err != nil || r.OK != c.ok || r.Outcome != c.outcome {
				t.Errorf("got %+v, %v; want %v %s", r, err, c.ok, c.outcome)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	for _, p := range []verify.Probe{
		get("http://"+address+"/?k={{key}}", "127.0.0.1"),
		get("https://"+address+"/?k={{key}}", "127.0.0.1"),
		{TCP: &verify.TCP{Address: address}, Hosts: []string{"127.0.0.1"}},
		{TLS: &verify.TLS{TCP: verify.TCP{Address: address}}, Hosts: []string{"127.0.0.1"}},
	} {
		if r, err := run(t, development(), p, canaryKey); err != nil || r.OK || r.Outcome != verify.OutcomeRefused {
			t.Errorf("got %+v, %v", r, err)
		}
	}
}

func TestTLS(t *testing.T) {
	server := func(configure func(*httptest.Server)) *httptest.Server {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		configure(s)
		s.StartTLS()
		t.Cleanup(s.Close)
		return s
	}
	trusted := server(func(*httptest.Server) {})
	h2 := server(func(s *httptest.Server) { s.EnableHTTP2 = true })
	old := server(func(s *httptest.Server) {
		s.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	})
	plain := serve(t, func(http.ResponseWriter, *http.Request) {})
	roots := x509.NewCertPool()
	roots.AddCert(trusted.Certificate())

	for name, c := range map[string]struct {
		url     string
		roots   *x509.CertPool
		outcome string
	}{
		"trusted":       {trusted.URL, roots, "2xx"},
		"http/2":        {h2.URL, roots, "2xx"},
		"self-signed":   {trusted.URL, nil, verify.OutcomeTLS},
		"TLS 1.1":       {old.URL, roots, verify.OutcomeTLS},
		"wrong name":    {strings.Replace(trusted.URL, "127.0.0.1", "localhost", 1), roots, verify.OutcomeTLS},
		"no TLS at all": {strings.Replace(plain, "http:", "https:", 1), roots, verify.OutcomeTLS},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := development()
			cfg.RootCAs = c.roots
			host, _, _ := strings.Cut(strings.TrimPrefix(c.url, "https://"), ":")
			r, err := run(t, cfg, get(c.url+"/?k={{key}}", host), canaryKey)
			if err != nil || r.Outcome != c.outcome || r.OK != (c.outcome == "2xx") {
				t.Errorf("https: %+v, %v, want %s", r, err, c.outcome)
			}
			outcome := c.outcome
			if outcome == "2xx" {
				outcome = verify.OutcomeConnected
			}
			r, err = run(t, cfg, verify.Probe{TLS: &verify.TLS{TCP: verify.TCP{Address: strings.TrimPrefix(c.url, "https://")}}, Hosts: []string{host}}, canaryKey)
			if err != nil || r.Outcome != outcome || r.Probe != "tls" {
				t.Errorf("tls: %+v, %v, want %s", r, err, outcome)
			}
		})
	}
}

func TestAddressProbes(t *testing.T) {
	address := raw(t, func(net.Conn) {})
	_, port, _ := net.SplitHostPort(address)
	n, _ := strconv.Atoi(port)
	hosts := []string{"{{host}}"}
	p := verify.Probe{TCP: &verify.TCP{Address: "{{host}}:{{port}}", DefaultPort: n}, Hosts: hosts}
	for name, c := range map[string]struct {
		p      verify.Probe
		values map[string]string
		want   error
	}{
		"port given":      {p, map[string]string{"host": "127.0.0.1", "port": port}, nil},
		"port by default": {p, map[string]string{"host": "127.0.0.1"}, nil},
		"port a word":     {p, map[string]string{"host": "127.0.0.1", "port": canary}, verify.ErrValueInvalid},
		"port 0":          {p, map[string]string{"host": "127.0.0.1", "port": "0"}, verify.ErrValueInvalid},
		"port 65536":      {p, map[string]string{"host": "127.0.0.1", "port": "65536"}, verify.ErrValueInvalid},
		"host missing":    {p, map[string]string{"port": port}, verify.ErrValueInvalid},
		"host with port":  {p, map[string]string{"host": "127.0.0.1:1", "port": port}, verify.ErrValueInvalid},
		"no port at all":  {verify.Probe{TCP: &verify.TCP{Address: "{{host}}:{{port}}"}, Hosts: hosts}, map[string]string{"host": "127.0.0.1"}, verify.ErrValueInvalid},
		"other host":      {verify.Probe{TCP: p.TCP, Hosts: []string{"db.example.com"}}, map[string]string{"host": "127.0.0.1"}, verify.ErrHostRefused},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := run(t, development(), c.p, values(c.values))
			if !errors.Is(err, c.want) || r.OK != (c.want == nil) {
				t.Errorf("%+v, %v; want %v", r, err, c.want)
			}
		})
	}
}

func TestValuesThatAreRefused(t *testing.T) {
	base := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("a request came") })
	hosts := []string{"127.0.0.1", "{{sub}}.example.com"}
	header := &verify.HTTP{URL: base, Headers: map[string]string{"X-Key": "Bearer {{v}}"}}
	path := &verify.HTTP{URL: base + "/a/{{v}}/b"}
	query := &verify.HTTP{URL: base + "/?k={{v}}"}
	user := &verify.HTTP{URL: base, Basic: &verify.Basic{Username: "{{v}}", Password: "x"}}
	pass := &verify.HTTP{URL: base, Basic: &verify.Basic{Username: "x", Password: "{{v}}"}}
	host := &verify.HTTP{URL: "https://{{v}}.example.com/"}
	form := &verify.HTTP{Method: "POST", URL: base, Form: map[string]string{"k": "{{v}}"}}
	json := &verify.HTTP{Method: "POST", URL: base, JSON: []byte(`{"k":"{{v}}"}`)}
	for i, c := range []struct {
		p     *verify.HTTP
		value string
	}{
		{header, canary + "\r\nHost: evil"},
		{header, canary + "\n"},
		{header, canary + "\r"},
		{header, canary + "\x00"},
		{header, canary + "\x7f"},
		{header, canary + "\u0085"},
		{header, " " + canary},
		{header, canary + " "},
		{header, strings.Repeat(canary, 1000)},
		{path, ""},
		{path, "."},
		{path, ".."},
		{path, "../" + canary},
		{path, canary + "/../x"},
		{path, `..\` + canary},
		{path, canary + "\n"},
		{query, canary + "\n"},
		{query, canary + "\x00"},
		{query, strings.Repeat(canary, 1000)},
		{user, canary + ":x"},
		{user, canary + "\n"},
		{pass, canary + "\n"},
		{pass, strings.Repeat(canary, 1000)},
		{form, strings.Repeat(canary, 4000)},
		{json, strings.Repeat(canary, 4000)},
		{json, canary + "\xff"},
		{host, ""},
		{host, "evil.net/" + canary},
		{host, "evil.net#"},
		{host, "evil.net?"},
		{host, "evil.net:443"},
		{host, "evil.net\\"},
		{host, "me@evil.net"},
		{host, "https://" + canary},
		{host, "a b"},
		{host, "a\n"},
		{host, "ａ"},
		{host, "a_b"},
		{host, "."},
		{host, ".a"},
		{host, "a..b"},
		{host, "-a"},
		{host, "a-"},
		{host, "%61"},
		{host, "[::1]"},
		{host, "{{sub}}"},
		{host, strings.Repeat("a", 250)},
	} {
		r, err := run(t, development(), verify.Probe{HTTP: c.p, Hosts: hosts}, values(map[string]string{"v": c.value}))
		if !errors.Is(err, verify.ErrValueInvalid) || r != (verify.Result{}) {
			t.Errorf("%d: %q gave %+v, %v", i, c.value, r, err)
		}
		if e := fault.Of(err); e.Pointer != "/keys/v" && len(c.value) < 1000 && !strings.HasSuffix(c.value, "\xff") {
			t.Errorf("%d: points at %q: %s", i, e.Pointer, e.Msg)
		}
	}
}

func TestHostsBindTheValues(t *testing.T) {
	base := serve(t, func(http.ResponseWriter, *http.Request) {})
	for _, c := range []struct {
		url   string
		hosts []string
		want  error
	}{
		{base, []string{"example.com", "127.0.0.1"}, nil},
		{base, []string{"{{ip}}"}, nil},
		{base, nil, verify.ErrHostRefused},
		{base, []string{"example.com"}, verify.ErrHostRefused},
		{base, []string{"127.0.0.1.example.com"}, verify.ErrHostRefused},
		{base, []string{"{{absent}}"}, verify.ErrHostRefused},
		{base, []string{"{{bad}}"}, verify.ErrHostRefused},
		{"https://{{ip}}/", []string{"example.com"}, verify.ErrHostRefused},
		{"https://allowed.example@127.0.0.1/", []string{"allowed.example"}, verify.ErrHostRefused},
		{"https://127.1/", []string{"127.1"}, verify.ErrHostRefused},
	} {
		r, err := run(t, development(), within(get(c.url, ""), c.hosts), values(map[string]string{"ip": "127.0.0.1", "bad": "127.0.0.1/", "key": canary}))
		if !errors.Is(err, c.want) || r.OK != (c.want == nil) {
			t.Errorf("%s within %q: %+v, %v", c.url, c.hosts, r, err)
		}
	}
}

func TestCancellationIsNoResult(t *testing.T) {
	arrived := make(chan struct{})
	address := raw(t, func(c net.Conn) { close(arrived); _, _ = io.Copy(io.Discard, c) })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { // ends with the request
		<-arrived
		cancel()
	}()
	r, err := verify.NewClient(development()).Run(ctx, tenant, get("http://"+address+"/?k={{key}}", "127.0.0.1"), canaryKey)
	if !errors.Is(err, context.Canceled) || r != (verify.Result{}) || strings.Contains(err.Error(), canary) {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestOneTenantCannotTakeAll: a tenant's slow targets use up its own places only.
func TestOneTenantCannotTakeAll(t *testing.T) {
	arrived, release := make(chan struct{}, 8), make(chan struct{})
	base := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			arrived <- struct{}{}
			<-release
		}
	})
	cfg := development()
	cfg.Concurrency = 2
	c := verify.NewClient(cfg)
	var busy sync.WaitGroup
	for range 2 {
		busy.Go(func() {
			if r, err := c.Run(t.Context(), "one", get(base+"/slow", "127.0.0.1"), canaryKey); err != nil || !r.OK {
				t.Errorf("slow: %+v, %v", r, err)
			}
		})
	}
	<-arrived
	<-arrived
	if r, err := c.Run(t.Context(), "two", get(base+"/", "127.0.0.1"), canaryKey); err != nil || !r.OK {
		t.Errorf("the other tenant: %+v, %v", r, err)
	}
	waits, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Run(waits, "one", get(base+"/", "127.0.0.1"), canaryKey); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a third request of the tenant: %v", err)
	}
	close(release)
	busy.Wait()
	if r, err := c.Run(t.Context(), "one", get(base+"/", "127.0.0.1"), canaryKey); err != nil || !r.OK {
		t.Errorf("afterwards: %+v, %v", r, err)
	}
}

func BenchmarkHTTPProbe(b *testing.B) {
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	b.Cleanup(s.Close)
	c := verify.NewClient(development())
	p := get(s.URL+"/?k={{key}}", "127.0.0.1")
	for b.Loop() {
		if r, err := c.Run(b.Context(), tenant, p, canaryKey); err != nil || !r.OK {
			b.Fatal(r, err)
		}
	}
}
