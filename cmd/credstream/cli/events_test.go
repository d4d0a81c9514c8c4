package cli_test

import (
	"context"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	natsd "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/credstream/credstream/cmd/credstream/cli"
	"github.com/credstream/credstream/service/stage"
)

// natsService starts a NATS server on the port, -1 for any, with the queries that events tail sends.
func natsService(t *testing.T, port int) (srv *natsd.Server, stop func()) {
	t.Helper()
	srv, err := natsd.NewServer(&natsd.Options{Host: "127.0.0.1", Port: port, NoLog: true, NoSigs: true})
	stage.OK(t, err)
	srv.Start()
	if !srv.ReadyForConnections(10 * time.Second) {
		t.Fatal("the NATS server does not start")
	}
	nc, err := nats.Connect(srv.ClientURL())
	stage.OK(t, err)
	svc, err := micro.AddService(nc, micro.Config{Name: "credstream", Version: "0.1.0"})
	stage.OK(t, err)
	for subject, answer := range map[string]string{
		"credstream.query.default.views.status":   `{"end":4}`,
		"credstream.query.default.events.changes": `{"events":[],"end":4}`,
	} {
		stage.OK(t, svc.AddEndpoint(subject[strings.LastIndexByte(subject, '.')+1:], micro.HandlerFunc(func(r micro.Request) { _ = r.Respond([]byte(answer)) }), micro.WithEndpointSubject(subject)))
	}
	stage.OK(t, nc.Flush())
	return srv, func() {
		nc.Close()
		srv.Shutdown()
		srv.WaitForShutdown()
	}
}

// lines sends what is written to it, line by line.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	l <- string(b)
	return len(b), nil
}

func TestTailTellsOfItsConnection(t *testing.T) {
	srv, stop := natsService(t, -1)
	port := srv.Addr().(*net.TCPAddr).Port
	said, printed := make(lines, 10), make(lines, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan int, 1)
	go func() {
		ended <- cli.Run(ctx, []string{"events", "tail", "--nats", srv.ClientURL(), "--key", cliKey}, func(string) string { return "" }, strings.NewReader(""), printed, said)
	}()
	// A loss before the first query is answered ends the verb. It prints an event only after that.
	nc, err := nats.Connect(srv.ClientURL())
	stage.OK(t, err)
	for seq := 5; len(printed) == 0; seq++ {
		if seq == 1000 {
			t.Fatal("events tail does not print")
		}
		m := nats.NewMsg("credstream.events.default.credential.created.x")
		m.Header = nats.Header{
			"ce-specversion": {"1.0"}, "ce-id": {strconv.Itoa(seq)}, "ce-type": {"credential.created"},
			"ce-time": {"2026-01-31T08:00:00Z"}, "ce-logseq": {strconv.Itoa(seq)}, "ce-logindex": {"0"},
		}
		m.Data = []byte("{}")
		stage.OK(t, nc.PublishMsg(m))
		stage.OK(t, nc.Flush())
		time.Sleep(10 * time.Millisecond)
	}
	nc.Close()
	stop()
	wants := func(want string) {
		t.Helper()
		select {
		case got := <-said:
			if got != want+"\n" {
				t.Fatalf("%q instead of %q", got, want)
			}
		case code := <-ended:
			t.Fatalf("events tail ended with %d", code)
		case <-time.After(10 * time.Second):
			t.Fatalf("nothing instead of %q", want)
		}
	}
	wants("The connection to NATS was lost. Reconnecting.")
	_, stop = natsService(t, port)
	defer stop()
	wants("Connected again. Missed events follow.")
	cancel()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Fatal("events tail does not end")
	}
}
