package app

import (
	"bytes"
	"net"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"
)

// filesEnv limits the file descriptors of a process that a test starts.
const filesEnv = "CREDSTREAM_TEST_FILES"

// limitFiles lowers the limit of file descriptors for good.
func limitFiles(n uint64) error {
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n, Max: n})
}

// Strangers who hold more connections than the process may have descriptors stop nothing:
// both ports take a part of them, and the log is written all the while.
func TestStrangersHoldConnections(t *testing.T) {
	t.Setenv(filesEnv, "256")
	p := spawn(t, t.TempDir())
	registerPlain(t, p.http)
	a := caller(p)
	a.create(t) // by a connection that stays open
	nc, err := url.Parse(p.nats)
	must(t, err)
	web, err := url.Parse(p.http)
	must(t, err)
	refused := 0
	for range 2 {
		var held []net.Conn
		for range 200 {
			for _, host := range []string{web.Host, nc.Host} {
				c, err := net.Dial("tcp", host)
				must(t, err)
				held = append(held, c)
			}
		}
		for range 10 {
			a.create(t)
		}
		for i, c := range held {
			if i%2 == 1 && tellsOfLimit(c) {
				refused++
			}
		}
		a.create(t)
		for _, c := range held {
			must(t, c.Close())
		}
	}
	if refused == 0 {
		t.Error("the NATS port refuses nobody")
	}
	within(t, "the service is ready for new connections", func() bool { return caller(p).query("credential.list", "", nil) == nil })
	if err := p.kill(syscall.SIGTERM); err != nil {
		t.Errorf("the process ends with %v", err)
	}
	if strings.Contains(p.logs.String(), "fsync failed") {
		t.Errorf("connections are taken for a failed disk:\n%s", p.logs)
	}
}

// tellsOfLimit reports whether the NATS port has closed a connection for there being too many.
func tellsOfLimit(c net.Conn) bool {
	var said []byte
	buf := make([]byte, 4096)
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // what it says first is there already
	for {
		n, err := c.Read(buf)
		said = append(said, buf[:n]...)
		if err != nil {
			return bytes.Contains(said, []byte("maximum connections exceeded"))
		}
	}
}
