package natsserver

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/service"
)

// A client writes the headers of its request, and the server appends one that
// names the sender: Nats-Request-Info. The Go client parses headers more leniently
// than the server writes them: a bare LF ends a line, and an empty line ends the
// headers, whatever follows. So a client could hide the server's header behind one
// of its own. The parsed headers do not show that,
// so the connection that receives requests checks the raw headers.

// MalformedHeader replaces the headers of a malformed request, which then has
// no caller, and is dropped and counted. Its value is the server's statement about the
// sender, which is needed where the server processes the request itself: the
// server appends its header to the client's headers, so the last one is authentic. A
// client cannot forge it: headers that name it are malformed.
const MalformedHeader = "Cs-Malformed-Headers"

// malformed returns the header block that replaces malformed headers.
func malformed(block []byte) []byte {
	var sender []byte
	if at := bytes.LastIndex(block, []byte(server.ClientInfoHdr+": ")); at >= 0 {
		line, ok := bytes.CutSuffix(block[at:], []byte("\r\n\r\n"))
		if ok && !bytes.ContainsAny(line, "\r\n\x00") {
			sender = line[len(server.ClientInfoHdr+": "):]
		}
	}
	return fmt.Appendf(nil, "NATS/1.0\r\n%s: %s\r\n\r\n", MalformedHeader, sender)
}

const (
	guardBuffer     = 32 << 10
	maxProtocolLine = 1 << 20  // bytes of a protocol line; an INFO names every server
	maxDelivery     = 64 << 20 // bytes of a message: the maximum that a server can be configured to accept
)

var (
	errProtocol = errors.New("bus: unexpected response from the NATS server")
	requestInfo = []byte(strings.ToLower(server.ClientInfoHdr))
	marker      = []byte(strings.ToLower(MalformedHeader))
)

// wellFormed reports whether headers have only one interpretation: each line is a
// name of visible ASCII, a colon and a value, and ends with CR LF; the empty line
// is the last one; no header that the service reads is there twice, in any
// case. The name of the server's own header appears at most once, even
// within a value: the server adds it to each request from another
// account, and removes only its own spelling, so a single one is authentic.
func wellFormed(block []byte) bool {
	if lower := bytes.ToLower(block); bytes.Count(lower, requestInfo) > 1 || bytes.Contains(lower, marker) {
		return false
	}
	block, ok := bytes.CutSuffix(block, []byte("\r\n\r\n"))
	if !ok || !bytes.HasPrefix(block, []byte("NATS/1.0")) {
		return false
	}
	var seen map[string]bool
	for i, line := range bytes.Split(block, []byte("\r\n")) {
		if bytes.ContainsAny(line, "\r\n\x00") {
			return false
		}
		if i == 0 {
			continue // the version and a status
		}
		name, _, ok := bytes.Cut(line, []byte(":"))
		if !ok || len(name) == 0 || bytes.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return false
		}
		if lower := strings.ToLower(string(name)); readByService(lower) {
			if seen[lower] {
				return false
			}
			if seen == nil {
				seen = map[string]bool{}
			}
			seen[lower] = true
		}
	}
	return true
}

// readByService reports whether the service or JetStream reads a header, by its
// name in lower case.
func readByService(name string) bool {
	return strings.HasPrefix(name, "nats-") || strings.HasPrefix(name, "ce-") || strings.HasPrefix(name, "cs-") ||
		name == "x-correlation-id" || name == "content-type"
}

// headerGuard is a connection to a NATS server that checks the headers of each
// message before the client library reads them.
type headerGuard struct {
	net.Conn
	in   *bufio.Reader
	out  []byte // the next bytes to return
	rest int    // remaining bytes of a message without headers
}

func guardHeaders(conn net.Conn) *headerGuard {
	return &headerGuard{Conn: conn, in: bufio.NewReaderSize(conn, guardBuffer)}
}

// Read reads from the server, one operation of the protocol at a time.
func (g *headerGuard) Read(p []byte) (int, error) {
	if len(g.out) == 0 && g.rest > 0 {
		n, err := g.in.Read(p[:min(len(p), g.rest)])
		g.rest -= n
		return n, err //nolint:wrapcheck // the library distinguishes io.EOF and timeouts
	}
	for len(g.out) == 0 {
		if err := g.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, g.out)
	g.out = g.out[n:]
	return n, nil
}

// next reads the next operation. Messages with headers are read completely.
func (g *headerGuard) next() error {
	line, err := readLine(g.in)
	if err != nil {
		return err
	}
	g.out = line
	fields := bytes.Fields(line)
	if len(fields) == 0 {
		return nil
	}
	switch string(fields[0]) {
	case "MSG":
		size, err := sizeOf(fields, 4)
		g.rest = size + len("\r\n")
		return err
	case "HMSG":
	default:
		return nil
	}
	size, err := sizeOf(fields, 5)
	if err != nil {
		return err
	}
	headers, err := strconv.Atoi(string(fields[len(fields)-2]))
	if err != nil || headers < 0 || headers > size {
		return errProtocol
	}
	body := make([]byte, size+len("\r\n"))
	if _, err := io.ReadFull(g.in, body); err != nil {
		return err //nolint:wrapcheck // see Read
	}
	if wellFormed(body[:headers]) {
		g.out = append(g.out, body...)
		return nil
	}
	marked := malformed(body[:headers])
	fields[len(fields)-2] = strconv.AppendInt(nil, int64(len(marked)), 10)
	fields[len(fields)-1] = strconv.AppendInt(nil, int64(size-headers+len(marked)), 10)
	g.out = slices.Concat(bytes.Join(fields, []byte(" ")), []byte("\r\n"), marked, body[headers:])
	return nil
}

// sizeOf reads the size of a message, the last field of at least this many.
func sizeOf(fields [][]byte, atLeast int) (int, error) {
	if len(fields) < atLeast {
		return 0, errProtocol
	}
	size, err := strconv.Atoi(string(fields[len(fields)-1]))
	if err != nil || size < 0 || size > maxDelivery {
		return 0, errProtocol
	}
	return size, nil
}

// readLine reads a line of the protocol including its end. The caller owns the result.
func readLine(r *bufio.Reader) (line []byte, err error) {
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err //nolint:wrapcheck // see Read
		case len(line) > maxProtocolLine:
			return nil, errProtocol
		}
	}
}

// guardedServer connects to the embedded server and checks headers.
type guardedServer struct{ n *Node }

func (s guardedServer) InProcessConn() (net.Conn, error) {
	conn, err := s.n.InProcessConn()
	if err != nil {
		return nil, err
	}
	return guardHeaders(conn), nil
}

// guardedDialer connects to an external server and checks headers. It also does the TLS
// handshake: the check has to read clear text, and the library has no hook
// above its own TLS.
type guardedDialer struct {
	tls     *tls.Config // nil trusts the system's roots
	secure  bool        // a URL requires TLS
	hosts   []string    // of the URLs
	exposed *atomic.Bool
}

// SkipTLSHandshake tells the library that Dial has done the handshake.
func (d *guardedDialer) SkipTLSHandshake() bool { return true }

// Dial connects, with TLS if the server or a URL requires it.
func (d *guardedDialer) Dial(network, address string) (_ net.Conn, err error) {
	conn, err := (&net.Dialer{Timeout: nats.DefaultTimeout}).DialContext(context.Background(), network, address)
	if err != nil {
		return nil, err //nolint:wrapcheck // the library wraps it
	}
	defer func() {
		if err != nil {
			_ = conn.Close() // the connection is unusable
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(nats.DefaultTimeout)); err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", address, err)
	}
	g := guardHeaders(conn)
	if g.out, err = readLine(g.in); err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", address, err)
	}
	text, ok := bytes.CutPrefix(g.out, []byte("INFO "))
	var info struct {
		Required  bool `json:"tls_required"`
		Available bool `json:"tls_available"`
	}
	if !ok || json.Unmarshal(text, &info) != nil {
		return nil, errProtocol
	}
	switch {
	case info.Required || info.Available && d.secure:
		cfg := &tls.Config{MinVersion: tls.VersionTLS12}
		if d.tls != nil {
			cfg = d.tls.Clone()
		}
		if cfg.ServerName == "" {
			cfg.ServerName = d.serverName(address)
		}
		secured := tls.Client(conn, cfg)
		if err := secured.Handshake(); err != nil { //nolint:noctx // the connection has a deadline
			return nil, fmt.Errorf("%w: %w", nats.ErrTLS, err)
		}
		g.Conn, g.in = secured, bufio.NewReaderSize(secured, guardBuffer)
	case !service.Confidential(false, addressOf(conn.RemoteAddr())):
		d.exposed.Store(true)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", address, err)
	}
	return g, nil
}

// serverName is the name that the certificate of a server must have. Servers that were discovered
// through others are known only by their address; as in the library, their certificate must have
// the name of a URL.
func (d *guardedDialer) serverName(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	if net.ParseIP(host) == nil || slices.Contains(d.hosts, host) {
		return host
	}
	for _, h := range d.hosts {
		if net.ParseIP(h) == nil {
			return h
		}
	}
	return host
}
