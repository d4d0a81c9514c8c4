package v1_test

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	v1 "github.com/credstream/credstream/api/v1"
	"github.com/credstream/credstream/service"
)

// The bounds of the server that people start, each of which a test below shows
// with a shorter time.
func TestServerBounds(t *testing.T) {
	s := v1.Server("", http.NotFoundHandler())
	for name, d := range map[string]time.Duration{
		"ReadHeaderTimeout": s.ReadHeaderTimeout, "ReadTimeout": s.ReadTimeout, "WriteTimeout": s.WriteTimeout, "IdleTimeout": s.IdleTimeout,
	} {
		if d <= 0 || d > 2*time.Minute {
			t.Errorf("%s is %s", name, d)
		}
	}
	if s.ReadHeaderTimeout > 10*time.Second || s.MaxHeaderBytes <= 0 || s.MaxHeaderBytes > 64<<10 {
		t.Errorf("headers: %s, %d bytes", s.ReadHeaderTimeout, s.MaxHeaderBytes)
	}
}

// dial starts the edge with short times and opens a raw connection to it. What
// waits for the server fails after ten seconds.
func dial(t *testing.T, change func(*http.Server)) net.Conn {
	t.Helper()
	server := v1.Server("", v1.Handler(v1.Config{Service: &fake{}, Access: &fake{}}))
	server.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	change(server)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(l)
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		_ = server.Close()
		<-ended
	})
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

const head = "POST " + create + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + key + "\r\nContent-Type: application/json\r\n"

const short = 50 * time.Millisecond

func shortHeaders(s *http.Server) { s.ReadHeaderTimeout = short }
func shortRead(s *http.Server)    { s.ReadTimeout = short }
func shortIdle(s *http.Server)    { s.IdleTimeout = short }
func asItIs(*http.Server)         {}

// A client that is slow, or never ends, loses its connection. After what it
// sends, drip goes on for ever, a byte at a time.
func TestSlowAndEndless(t *testing.T) {
	large := strings.Repeat("x", 64<<10)
	chunk := "8000\r\n" + strings.Repeat(" ", 0x8000) + "\r\n"
	for _, c := range []struct {
		name   string
		server func(*http.Server)
		send   string
		drip   string
		want   string // in the answer; "" when there need be none
	}{
		{"silence", shortHeaders, "", "", ""},
		{"headers that stop", shortHeaders, "GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: b", "", ""},
		{"headers that drip", shortHeaders, "GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: b", "c", ""},
		{"header lines that drip", shortHeaders, "GET /healthz HTTP/1.1\r\nHost: x\r\n", "A: b\r\n", ""},
		{"body that stops", shortRead, head + "Content-Length: 1000\r\n\r\n{", "", "body_incomplete"},
		{"body that drips", shortRead, head + "Content-Length: 1000000\r\n\r\n{", " ", "body_incomplete"},
		{"chunks that stop", shortRead, head + "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", "", "body_incomplete"},
		{"chunks that drip", shortRead, head + "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", "1\r\n \r\n", "body_incomplete"},
		{"one large header", asItIs, "GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: " + large, "", "431 "},
		{"many headers", asItIs, "GET /healthz HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 11<<10), "", "431 "},
		{"large path", asItIs, "GET /" + large, "", "431 "},
		{"body that is said to be large", asItIs, head + "Content-Length: 1048577\r\n\r\n{", "", "body_too_large"},
		{"endless chunks", asItIs, head + "Transfer-Encoding: chunked\r\n\r\n" + chunk, chunk, "body_too_large"},
		{"no request after the first", shortIdle, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "", "200 OK"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := dial(t, c.server)
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				_, err := io.WriteString(conn, c.send)
				for err == nil && c.drip != "" {
					time.Sleep(time.Millisecond) // a slow client; nothing waits for it
					_, err = io.WriteString(conn, c.drip)
				}
			}()
			answer, err := io.ReadAll(conn)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("the connection is held open; the answer so far: %s", answer)
			}
			if !strings.Contains(string(answer), c.want) {
				t.Errorf("answered %q, want %q", answer, c.want)
			}
			_ = conn.Close()
			<-sent
		})
	}
}

// Without a good key nothing of a body is kept: the refusal comes before it.
func TestNoKeyNoBody(t *testing.T) {
	conn := dial(t, asItIs)
	if _, err := io.WriteString(conn, "POST "+create+" HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != 401 {
		t.Fatalf("answered %v with error %v before the body", resp, err)
	}
	_ = resp.Body.Close()
}

// The largest body is taken and one byte more is not, with and without a length.
func TestLargestBody(t *testing.T) {
	for _, c := range []struct {
		size   int
		length bool
		status int
	}{
		{service.MaxBody, true, 200},
		{service.MaxBody, false, 200},
		{service.MaxBody + 1, true, 413},
		{service.MaxBody + 1, false, 413},
	} {
		e := newEdge(t)
		var body io.Reader = strings.NewReader("{}" + strings.Repeat(" ", c.size-2))
		if !c.length {
			body = io.MultiReader(body)
		}
		if resp, got := e.do(t, request{"POST", create, body, nil}); resp.StatusCode != c.status {
			t.Errorf("%d bytes, length said %v: %d %s", c.size, c.length, resp.StatusCode, got)
		}
	}
}
