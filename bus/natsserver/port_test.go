package natsserver_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/fault"
)

func TestOnlyKeysConnect(t *testing.T) {
	log := &bustest.LogBuffer{}
	n := bustest.StartNode(t, func(c *natsserver.NodeConfig) { c.Logger = log.Logger() })
	for _, tc := range []struct {
		name string
		opts []nats.Option
		ok   bool
	}{
		{"nothing", nil, false},
		{"user only", []nats.Option{nats.UserInfo("alice-key", "")}, false},
		{"wrong key", []nats.Option{nats.UserInfo("x", "canary-wrong-key")}, false},
		{"wrong key as the user", []nats.Option{nats.UserInfo("canary-user-key", "wrong")}, false},
		{"wrong token", []nats.Option{nats.Token("canary-wrong-token")}, false},
		{"the process's own user", []nats.Option{nats.UserInfo("service", "")}, false},
		{"the process's own user and a guess", []nats.Option{nats.UserInfo("service", "guess")}, false},
		{"a grant that names no tenant", []nats.Option{nats.UserInfo("x", "odd-key")}, false},
		{"password", []nats.Option{nats.UserInfo("x", "alice-key")}, true},
		{"password without a user", []nats.Option{nats.UserInfo("", "alice-key")}, true},
		{"token", []nats.Option{nats.Token("alice-key")}, true},
	} {
		nc, err := nats.Connect(n.ClientURL(), tc.opts...)
		if err == nil {
			nc.Close()
		}
		if (err == nil) != tc.ok || err != nil && !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	own, err := n.InProcessConn()
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(own)
	lines.Scan() // INFO
	if _, err := fmt.Fprint(own, `CONNECT {"user":"service","pass":"alice-key"}`+"\r\n"); err != nil {
		t.Fatal(err)
	}
	if lines.Scan(); lines.Text() != "-ERR 'Authorization Violation'" {
		t.Errorf("in process, with a client's key: %q %v", lines.Text(), lines.Err())
	}
	if err := own.Close(); err != nil {
		t.Error(err)
	}
	for _, secret := range []string{"canary", "alice-key"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log holds %s:\n%s", secret, log)
		}
	}
}

// A client with a good key outlives a restart of the process, however long the
// service takes until it can check keys: nobody listens until then.
func TestPortOpensWithTheAuthenticator(t *testing.T) {
	dir := t.TempDir()
	first := bustest.StartNode(t, func(c *natsserver.NodeConfig) { c.Dir = dir })
	address := first.Addr().String()
	closed := make(chan error, 1)
	nc, _ := bustest.Connect(t, first, "alice-key", nats.ReconnectWait(time.Millisecond), nats.ReconnectJitter(0, 0), nats.MaxReconnects(-1),
		nats.ClosedHandler(func(nc *nats.Conn) { closed <- nc.LastError() }))
	if err := first.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := bustest.StartNode(t, func(c *natsserver.NodeConfig) { c.Dir, c.Listen, c.Authenticate = dir, address, nil })
	if n.Addr() != nil {
		t.Errorf("listens on %s before keys can be checked", n.Addr())
	}
	select {
	case err := <-closed:
		t.Fatalf("the client gave up: %v", err)
	case <-time.After(100 * time.Millisecond): // a hundred attempts
	}
	if err := n.SetAuthenticator(bustest.Authenticate); err != nil {
		t.Fatal(err)
	}
	if n.Addr().String() != address {
		t.Errorf("listens on %s", n.Addr())
	}
	for !nc.IsConnected() {
		select {
		case err := <-closed:
			t.Fatalf("the client gave up: %v", err)
		case <-t.Context().Done():
			t.Fatal("the client is not back")
		case <-time.After(5 * time.Millisecond):
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	late := l.Addr().String()
	_ = l.Close() // it is free for the start
	other := bustest.StartNode(t, func(c *natsserver.NodeConfig) { c.Listen, c.Authenticate = late, nil })
	if l, err = net.Listen("tcp", late); err != nil {
		t.Fatal(err)
	}
	if err := other.SetAuthenticator(bustest.Authenticate); err == nil {
		t.Error("a port that was taken meanwhile is no error")
	}
	_ = l.Close() // the test is over
}

// A good key that cannot be checked just now is no wrong key: a client whose key is
// refused twice gives up.
func TestKeysThatCannotBeChecked(t *testing.T) {
	asked := make(chan struct{}, 10)
	var well atomic.Bool
	n := bustest.StartNode(t, func(c *natsserver.NodeConfig) {
		c.Authenticate = func(ctx context.Context, key string, from netip.Addr) (natsserver.Grant, error) {
			if well.Load() {
				return bustest.Authenticate(ctx, key, from)
			}
			asked <- struct{}{}
			return natsserver.Grant{}, fault.ErrUnavailable
		}
	})
	nc, err := nats.Connect(n.ClientURL(), nats.UserInfo("x", "alice-key"), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	for range 3 {
		bustest.Recv(t, asked)
	}
	well.Store(true)
	for !nc.IsConnected() {
		if nc.IsClosed() || t.Context().Err() != nil {
			t.Fatalf("the client gave up: %v", nc.LastError())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A key has a bounded number of connections, and a connection of subscriptions;
// other keys do not suffer.
func TestBoundsOfAKey(t *testing.T) {
	n := bustest.StartNode(t)
	first, refused := bustest.Connect(t, n, "alice-key")
	for range 127 {
		bustest.Connect(t, n, "alice-key")
	}
	if nc, err := nats.Connect(n.ClientURL(), nats.UserInfo("x", "alice-key")); err == nil || errors.Is(err, nats.ErrAuthorization) {
		nc.Close()
		t.Errorf("one connection more: %v", err)
	}
	bustest.Connect(t, n, "bob-key")
	for i := range 1001 {
		if _, err := first.SubscribeSync(fmt.Sprintf("_INBOX.%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := bustest.Recv(t, refused); !errors.Is(err, nats.ErrMaxSubscriptionsExceeded) {
		t.Errorf("one subscription more: %v", err)
	}
	if most := natsserver.MaxConnections(); most < 1 || most > 16384 {
		t.Errorf("a port takes %d connections", most)
	}
}

// What nobody may send, whatever the key.
var forbiddenToAll = strings.Fields(`
	credstream.log.default.credential.x    credstream.vault.default.credential.x.y  credstream.events.default.credential.x
	credstream.access.default.x            credstream.audit.default.api_key.x      credstream.in.flows.default.x            credstream.in.cmdq.default.x
	credstream.cmd.default                 credstream.nothing.default.x             $KV.CREDSTREAM_KEYS.default
	$JS.API.INFO                           $JS.API.STREAM.NAMES                     $JS.API.STREAM.LIST
	$JS.API.STREAM.INFO.CREDSTREAM_LOG     $JS.API.STREAM.INFO.CREDSTREAM_FEED      $JS.API.STREAM.CREATE.MINE
	$JS.API.STREAM.UPDATE.CREDSTREAM_LOG   $JS.API.STREAM.DELETE.CREDSTREAM_LOG     $JS.API.STREAM.PURGE.CREDSTREAM_LOG
	$JS.API.STREAM.UPDATE.CREDSTREAM_FEED  $JS.API.STREAM.DELETE.CREDSTREAM_FEED    $JS.API.STREAM.PURGE.CREDSTREAM_FEED
	$JS.API.STREAM.SNAPSHOT.CREDSTREAM_LOG $JS.API.STREAM.RESTORE.CREDSTREAM_LOG    $JS.API.STREAM.MSG.DELETE.CREDSTREAM_LOG
	$JS.API.STREAM.MSG.GET.CREDSTREAM_LOG  $JS.API.STREAM.MSG.GET.CREDSTREAM_VAULT  $JS.API.STREAM.MSG.GET.CREDSTREAM_FEED
	$JS.API.DIRECT.GET.CREDSTREAM_LOG      $JS.API.DIRECT.GET.CREDSTREAM_VAULT      $JS.API.DIRECT.GET.KV_CREDSTREAM_KEYS
	$JS.API.DIRECT.GET.CREDSTREAM_VAULT.credstream.vault.default.credential.first
	$JS.API.CONSUMER.CREATE.CREDSTREAM_FEED              $JS.API.CONSUMER.CREATE.CREDSTREAM_FEED.mine
	$JS.API.CONSUMER.CREATE.CREDSTREAM_FEED.mine.credstream.events.default.%3E
	$JS.API.CONSUMER.DURABLE.CREATE.CREDSTREAM_LOG.mine  $JS.API.CONSUMER.CREATE.CREDSTREAM_VAULT.mine
	$JS.API.CONSUMER.DELETE.CREDSTREAM_FEED.engine-default $JS.API.CONSUMER.PAUSE.CREDSTREAM_FEED.engine-default
	$JS.API.CONSUMER.NAMES.CREDSTREAM_FEED $JS.API.CONSUMER.LIST.CREDSTREAM_FEED    $JS.API.CONSUMER.MSG.NEXT.CREDSTREAM_LOG.mine
	$JS.API.CONSUMER.RESET.CREDSTREAM_FEED.engine-default $JS.API.CONSUMER.UNPIN.CREDSTREAM_FEED.engine-default
	$JS.ACK.CREDSTREAM_LOG.mine.1.1.1.1.0  $JS.FC.CREDSTREAM_FEED.x                 $JS.API.ACCOUNT.PURGE.CREDSTREAM
	$JS.API.SERVER.REMOVE                  $JS.API.META.LEADER.STEPDOWN             $JS.API.STREAM.LEADER.STEPDOWN.CREDSTREAM_LOG
	$SYS.REQ.SERVER.PING                   $SYS.REQ.USER.INFO                       $SYS.REQ.ACCOUNT.PING.CONNZ
	$SYS.REQ.ACCOUNT.CREDSTREAM.CONNZ      $SYS.ACCOUNT.CREDSTREAM.CONNECT          $SYS.REQ.SERVER.PING.JSZ
	_INBOX.somebody.else                   _R_.abcdef.ghijkl                        $NRG.x  $GR.x  _GR_.x.y`)

// What a key of tenant "default" may not send.
var forbiddenToTenant = strings.Fields(`
	credstream.cmd.other.credential.create   credstream.query.other.credentials   credstream.flows.other.x  credstream.cmdq.other.x
	credstream.cmd._system.api_key.issue
	$JS.API.CONSUMER.INFO.CREDSTREAM_FEED.engine-other      $JS.API.CONSUMER.INFO.CREDSTREAM_AUDIT.audit-other
	$JS.API.CONSUMER.MSG.NEXT.CREDSTREAM_FEED.engine-other  $JS.API.CONSUMER.MSG.NEXT.CREDSTREAM_AUDIT.audit-other
	$JS.ACK.CREDSTREAM_FEED.engine-other.1.1.1.1.0          $JS.ACK.CREDSTREAM_AUDIT.audit-other.1.1.1.1.0`)

// What nobody may subscribe to.
var hiddenFromAll = strings.Fields(`
	>  *  *.>  credstream.>  credstream.*.>  credstream.log.>  credstream.vault.>  credstream.access.>  credstream.cmd.>
	credstream.cmd.default.>  credstream.query.>  credstream.in.>  $JS.>  $JS.API.>  $JS.ACK.>  $JS.EVENT.>  $SYS.>  $KV.>  $SRV.>  _R_.>  _R_.*.*`)

func TestAttacks(t *testing.T) {
	n := bustest.StartNode(t)
	s := bustest.StartService(t, n)
	before := s.State(t)
	for _, tc := range []struct {
		key     string
		publish []string
		hidden  []string
	}{
		{"alice-key", slices.Concat(forbiddenToAll, forbiddenToTenant), append(hiddenFromAll, "credstream.events.>", "credstream.events.other.>", "credstream.events.*.>")},
		{"admin-key", forbiddenToAll, hiddenFromAll},
		{"quiet-key", slices.Concat(forbiddenToAll, forbiddenToTenant, []string{
			"$JS.API.CONSUMER.MSG.NEXT.CREDSTREAM_FEED.engine-default", "$JS.API.CONSUMER.INFO.CREDSTREAM_AUDIT.audit-default",
			"$JS.ACK.CREDSTREAM_FEED.engine-default.1.1.1.1.0",
		}), append(hiddenFromAll, "credstream.events.default.>")},
	} {
		nc, refused := bustest.Connect(t, n, tc.key)
		for _, subject := range tc.publish {
			if err := nc.PublishRequest(subject, nc.NewInbox(), []byte("{}")); err != nil {
				t.Fatal(err)
			}
			if err := bustest.Recv(t, refused); !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), subject) {
				t.Errorf("%s publishes to %s: %v", tc.key, subject, err)
			}
		}
		for _, subject := range tc.hidden {
			sub, err := nc.SubscribeSync(subject)
			if err != nil {
				t.Fatal(err)
			}
			if err := bustest.Recv(t, refused); !errors.Is(err, nats.ErrPermissionViolation) {
				t.Errorf("%s subscribes to %s: %v", tc.key, subject, err)
			}
			_ = sub.Unsubscribe() // the server never had it
		}
	}
	if diff := cmp.Diff(before, s.State(t)); diff != "" {
		t.Errorf("the streams changed:\n%s", diff)
	}
	if len(s.Calls) != 0 {
		t.Errorf("an endpoint was called: %v", <-s.Calls)
	}
}

func TestRequestsKnowTheirCaller(t *testing.T) {
	n := bustest.StartNode(t)
	s := bustest.StartService(t, n)
	for key, subject := range map[string]string{
		"alice-key": "credstream.cmd.default.credential.create",
		"bob-key":   "credstream.query.other.credentials.list",
		"admin-key": "credstream.cmd.other.credential.delete",
		"quiet-key": "credstream.query.default.credentials.list",
	} {
		nc, _ := bustest.Connect(t, n, key)
		answer, err := nc.RequestWithContext(t.Context(), subject, []byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		want := bustest.Call{Subject: subject, Caller: bustest.Grants[key].Principal, Known: true, Answerable: true}
		if got := bustest.Recv(t, s.Calls); got != want || string(answer.Data) != "done" {
			t.Errorf("%s: got %+v, answer %q", key, got, answer.Data)
		}
		if len(s.Calls) != 0 {
			t.Errorf("%s: one request arrived twice", key)
		}
	}
	nc, _ := bustest.Connect(t, n, "alice-key")
	if _, err := nc.RequestWithContext(t.Context(), "credstream.flows.default.x", nil); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("nobody listens there, but: %v", err)
	}
	own, err := n.Conn("test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := own.RequestWithContext(t.Context(), "credstream.cmd.default.x", nil); err != nil {
		t.Fatal(err)
	}
	if got := bustest.Recv(t, s.Calls); got.Known {
		t.Errorf("a request without a key has a caller: %+v", got)
	}
}

// rawClient speaks the protocol itself: what no well-behaved library would send.
type rawClient struct {
	t *testing.T
	net.Conn
	lines *bufio.Scanner
}

func dialRaw(t *testing.T, n *natsserver.Node, key string) *rawClient {
	t.Helper()
	conn, err := net.Dial("tcp", n.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := &rawClient{t: t, Conn: conn, lines: bufio.NewScanner(conn)}
	c.send(`CONNECT {"user":"x","pass":"` + key + `","headers":true,"no_responders":true,"verbose":false}` + "\r\nSUB _INBOX.> 1")
	return c
}

// send sends one operation and returns what the server had to say to it.
func (c *rawClient) send(op string) (lines []string) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c, "%s\r\nPING\r\n", op); err != nil {
		c.t.Fatal(err)
	}
	for c.lines.Scan() {
		if c.lines.Text() == "PONG" {
			return lines
		}
		lines = append(lines, c.lines.Text())
	}
	c.t.Fatalf("the server closed the connection: %q %v", lines, c.lines.Err())
	return nil
}

func (c *rawClient) hpub(subject, reply, header string) []string {
	return c.send(fmt.Sprintf("HPUB %s %s %d %d\r\n%s{}", subject, reply, len(header), len(header)+2, header))
}

// headerOf returns the header that the server puts on the requests of a key.
func headerOf(t *testing.T, n *natsserver.Node, s *bustest.Service, key, subject string) string {
	t.Helper()
	own, err := n.Conn("spy")
	if err != nil {
		t.Fatal(err)
	}
	sub, err := own.SubscribeSync(subject)
	if err != nil {
		t.Fatal(err)
	}
	if err := own.Flush(); err != nil {
		t.Fatal(err)
	}
	nc, _ := bustest.Connect(t, n, key)
	if _, err := nc.RequestWithContext(t.Context(), subject, nil); err != nil {
		t.Fatal(err)
	}
	bustest.Recv(t, s.Calls)
	m, err := sub.NextMsgWithContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := sub.Unsubscribe(); err != nil {
		t.Fatal(err)
	}
	return m.Header.Get("Nats-Request-Info")
}

func TestForgedCaller(t *testing.T) {
	n := bustest.StartNode(t)
	s := bustest.StartService(t, n)
	const subject = "credstream.cmd.default.credential.create"
	own := headerOf(t, n, s, "alice-key", subject)
	if !strings.Contains(own, `"acc":"KEY_alice_`) {
		t.Fatalf("the server's header is %s", own)
	}
	bustest.Connect(t, n, "admin-key") // whom to be taken for
	c := dialRaw(t, n, "alice-key")
	for _, forged := range []string{`{"acc":"CREDSTREAM"}`, `{"acc":"KEY_admin"}`, `{"acc":"KEY_admin_"}`, `{"acc":"$G"}`, `{"acc":""}`, `{}`, `x`, `{"user":"admin"}`} {
		info := "Nats-Request-Info: " + forged
		for _, header := range []string{
			"NATS/1.0\r\n" + info + "\r\n\r\n",
			"NATS/1.0\r\nA: b\r\n" + info + "\r\n\r\n",
			"NATS/1.0\r\n" + info + "\r\n" + info + "\r\n\r\n",
			"NATS/1.0\r\n" + strings.ToLower(info) + "\r\n\r\n",
			"NATS/1.0\r\nNats-Request-Info : " + forged + "\r\n\r\n",
			"NATS/1.0\r\n " + info + "\r\n\r\n",
			"NATS/1.0\r\nA: b\n" + info + "\r\n\r\n",
			// The Go client takes these for the end of the headers and does not see the server's own.
			"NATS/1.0\r\n" + info + "\r\n\r\nX: y\r\n\r\n",
			"NATS/1.0\r\nA: b\n" + info + "\n\nX: y\r\n\r\n",
			"NATS/1.0 200\n" + info + "\n\nX: y\r\n\r\n",
			"NATS/1.0\n\n\r\n\r\n",
		} {
			c.hpub(subject, "_INBOX.a", header)
			if got := bustest.Recv(t, s.Calls); got.Known && got.Caller != "alice" {
				t.Errorf("%q: the caller is %q", header, got.Caller)
			}
		}
	}
}

func TestCallerOfHeader(t *testing.T) {
	n := bustest.StartNode(t)
	s := bustest.StartService(t, n)
	own := headerOf(t, n, s, "alice-key", "credstream.cmd.default.x")
	for _, tc := range []struct {
		name   string
		header nats.Header
		ok     bool
	}{
		{"the server's", nats.Header{"Nats-Request-Info": {own}}, true},
		{"none", nil, false},
		{"two", nats.Header{"Nats-Request-Info": {own, own}}, false},
		{"twice the account", nats.Header{"Nats-Request-Info": {strings.Replace(own, "{", `{"acc":"x",`, 1)}}, false},
		{"the service's own account", nats.Header{"Nats-Request-Info": {`{"acc":"CREDSTREAM"}`}}, false},
		{"no account", nats.Header{"Nats-Request-Info": {`{}`}}, false},
	} {
		principal, ok := n.Caller(tc.header)
		if ok != tc.ok || ok && principal != "alice" {
			t.Errorf("%s: %q, %v", tc.name, principal, ok)
		}
	}
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if principal, ok := n.Caller(nats.Header{"Nats-Request-Info": {own}}); ok {
		t.Errorf("an account outlives its server: %q", principal)
	}
}

// An answer goes to the caller's own account only. Some replies the server
// refuses itself, with others the request is obeyed and the answer lost.
func TestForeignReplies(t *testing.T) {
	n := bustest.StartNode(t)
	s := bustest.StartService(t, n)
	before := s.State(t)
	c := dialRaw(t, n, "admin-key")
	const subject = "credstream.cmd.default.x"
	served := bustest.Call{Subject: subject, Caller: "admin", Known: true, Answerable: true}
	for _, reply := range []string{"$JS.ACK.CREDSTREAM_FEED.engine-other.1.2.1.1.0", "_R_.abcdef.ghijkl", "_GR_.x.y.z"} {
		if got := c.send("PUB " + subject + " " + reply + " 2\r\n{}"); len(got) != 1 || !strings.HasPrefix(got[0], "-ERR 'Permissions Violation") {
			t.Errorf("reply %s: %q", reply, got)
		}
	}
	for _, reply := range []string{
		"credstream.log.default.credential.x", "credstream.vault.default.credential.x.y", "credstream.events.default.credential.x",
		"credstream.access.default.x", "credstream.in.flows.default.x", "$KV.CREDSTREAM_KEYS.default",
		"$JS.API.STREAM.DELETE.CREDSTREAM_FEED", "$JS.API.STREAM.PURGE.CREDSTREAM_LOG", "$JS.API.CONSUMER.DELETE.CREDSTREAM_FEED.engine-other",
		"$JS.API.CONSUMER.MSG.NEXT.CREDSTREAM_FEED.engine-other", "$SYS.REQ.SERVER.PING", "$SRV.PING", subject,
	} {
		c.send("PUB " + subject + " " + reply + " 2\r\n{}")
		if got := bustest.Recv(t, s.Calls); got != served {
			t.Errorf("reply %s: %+v", reply, got)
		}
	}
	// Directed at another endpoint, an answer is lost or has no caller there. So is an event of the feed.
	c.send("PUB " + subject + " credstream.query.default.loop 2\r\n{}")
	const next = "$JS.API.CONSUMER.MSG.NEXT.CREDSTREAM_FEED.engine-default"
	c.send("PUB " + next + " credstream.query.default.loop 1\r\n1")
	if got := c.send("PUB " + next + " $JS.ACK.CREDSTREAM_FEED.engine-other.1.2.1.1.0 1\r\n1"); len(got) != 1 {
		t.Errorf("the consumer acknowledges for another: %q", got)
	}
	if got := c.send("PUB $JS.ACK.CREDSTREAM_FEED.engine-default.1.1.1.1.0 credstream.log.default.x 4\r\n+ACK"); len(got) != 0 {
		t.Errorf("acknowledging: %q", got)
	}
	barrier := served // once it is answered, all before it is done
	barrier.Subject = "credstream.cmd.default.barrier"
	c.send("PUB " + barrier.Subject + " _INBOX.a 2\r\n{}")
	for got := bustest.Recv(t, s.Calls); got != barrier; got = bustest.Recv(t, s.Calls) {
		if got != served && got.Known {
			t.Errorf("an answer came back as a request of %+v", got)
		}
	}
	after := s.State(t)
	for _, m := range []map[string]string{before, after} {
		delete(m, "CREDSTREAM_FEED/engine-default") // it has delivered an event to its rightful reader
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("the streams changed:\n%s", diff)
	}
}

func TestInboxesAreSeparate(t *testing.T) {
	n := bustest.StartNode(t)
	bustest.StartService(t, n)
	bob, _ := bustest.Connect(t, n, "bob-key")
	spy, err := bob.SubscribeSync("_INBOX.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := bob.Flush(); err != nil {
		t.Fatal(err)
	}
	alice, _ := bustest.Connect(t, n, "alice-key")
	if _, err := alice.RequestWithContext(t.Context(), "credstream.query.default.x", nil); err != nil {
		t.Fatal(err)
	}
	if err := bob.PublishRequest("credstream.query.other.x", "_INBOX.mine", nil); err != nil {
		t.Fatal(err)
	}
	if m, err := spy.NextMsgWithContext(t.Context()); err != nil || m.Subject != "_INBOX.mine" {
		t.Errorf("bob sees %v, %v", m, err)
	}
}

// readers are the two streams that a key may read of, and what their consumers'
// names begin with.
var readers = []struct{ stream, root, consumer string }{
	{streams.FeedStream, streams.FeedSubject, "engine-"}, {streams.AuditStream, streams.AuditSubject, "audit-"},
}

// TestConsumerRights tries every verb of every tenant's consumers, and plain
// subscriptions, with keys of one tenant and of every tenant.
func TestConsumerRights(t *testing.T) {
	n := bustest.StartNode(t)
	bustest.StartService(t, n)
	consumerRights(t, func(key, _ string, opts ...nats.Option) *nats.Conn {
		nc, err := nats.Connect(n.ClientURL(), append([]nats.Option{nats.UserInfo("x", key)}, opts...)...)
		if err != nil {
			t.Fatal(err)
		}
		return nc
	})
}

func consumerRights(t *testing.T, connect func(key, user string, opts ...nats.Option) *nats.Conn) {
	for key, g := range bustest.Grants {
		if key == "odd-key" {
			continue // does not get in
		}
		may := map[string]bool{}
		all := slices.Contains(g.Tenants, streams.AllTenants)
		var publish, subscribe []string
		for _, of := range readers {
			holds := g.Follow && of.stream == streams.FeedStream || g.Audit && of.stream == streams.AuditStream
			for _, tenant := range []string{"default", "other"} {
				// The consumer of the other kind is none of this stream, so who may use every
				// consumer of it gets no answer.
				for _, kind := range readers {
					consumer := of.stream + "." + kind.consumer + tenant
					for _, subject := range []string{"$JS.API.CONSUMER.INFO." + consumer, "$JS.API.CONSUMER.MSG.NEXT." + consumer, "$JS.ACK." + consumer + ".1.1.1.1.0"} {
						publish = append(publish, subject)
						may[subject] = holds && (all || slices.Contains(g.Tenants, tenant) && kind == of)
					}
				}
				subscribe = append(subscribe, of.root+"."+tenant+".>")
				may[of.root+"."+tenant+".>"] = holds && (all || slices.Contains(g.Tenants, tenant))
			}
			subscribe = append(subscribe, of.root+".>")
			may[of.root+".>"] = holds && all
		}
		try := func(user string, subjects []string, do func(*nats.Conn, string) error) {
			refused := make(chan error, len(subjects)+1)
			nc := connect(key, user, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
			defer nc.Close()
			const end = "nobody.may"
			for _, subject := range append(subjects, end) {
				if err := do(nc, subject); err != nil {
					t.Fatal(err)
				}
			}
			var said []string // in the order in which they were tried
			for len(said) == 0 || !strings.Contains(said[len(said)-1], end) {
				said = append(said, bustest.Recv(t, refused).Error())
			}
			for _, subject := range subjects {
				got := !slices.ContainsFunc(said, func(s string) bool { return strings.Contains(s, `"`+subject+`"`) })
				if got != may[subject] {
					t.Errorf("%s, %s: allowed %t, want %t", key, subject, got, may[subject])
				}
			}
		}
		try("x", publish, func(nc *nats.Conn, subject string) error { return nc.Publish(subject, nil) })
		try(natsserver.FeedUser, subscribe, func(nc *nats.Conn, subject string) error {
			_, err := nc.SubscribeSync(subject)
			return err
		})
	}
	// What they get: a key of every tenant reads what its kind of consumer holds, and
	// nothing answers it by the name of the other kind.
	for key, mine := range map[string]string{"engines-key": streams.FeedStream, "audits-key": streams.AuditStream} {
		nc := connect(key, "x", nats.CustomInboxPrefix(natsserver.InboxPrefix(key)))
		defer nc.Close()
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		for _, of := range readers {
			if of.stream != mine {
				continue
			}
			for _, tenant := range []string{"default", "other"} {
				consumer, err := js.Consumer(t.Context(), of.stream, of.consumer+tenant)
				if err != nil {
					t.Fatalf("%s, %s%s: %v", key, of.consumer, tenant, err)
				}
				m, err := consumer.Next()
				if err != nil || string(m.Data()) != tenant || !strings.HasPrefix(m.Subject(), of.root) {
					t.Errorf("%s, %s%s delivers %v, %v", key, of.consumer, tenant, m, err)
				}
			}
			for _, other := range readers {
				if other != of {
					if _, err := js.Consumer(t.Context(), of.stream, other.consumer+"default"); !errors.Is(err, jetstream.ErrConsumerNotFound) {
						t.Errorf("%s, the consumer %sdefault of %s: %v", key, other.consumer, of.stream, err)
					}
				}
			}
		}
	}
}

// A plain client with no code of ours follows the feed.
func TestFeed(t *testing.T) {
	n := bustest.StartNode(t)
	s := bustest.StartService(t, n)
	for key, tenant := range map[string]string{"alice-key": "default", "bob-key": "other", "admin-key": "*"} {
		nc, _ := bustest.Connect(t, n, key)
		sub, err := nc.SubscribeSync("credstream.events." + tenant + ".>")
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		for _, to := range []string{"default", "other"} {
			if _, err := s.Js.Publish(t.Context(), "credstream.events."+to+".credential.live", []byte(to)); err != nil {
				t.Fatal(err)
			}
			if tenant != "*" && tenant != to {
				continue
			}
			if m, err := sub.NextMsgWithContext(t.Context()); err != nil || string(m.Data) != to {
				t.Errorf("%s: %v, %v", key, m, err)
			}
		}
	}
	nc, refused := bustest.Connect(t, n, "alice-key")
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	for _, of := range readers {
		consumer, err := js.Consumer(t.Context(), of.stream, of.consumer+"default")
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan jetstream.Msg, 10)
		batch, err := consumer.Fetch(1)
		if err != nil {
			t.Fatal(err)
		}
		for m := range batch.Messages() {
			got <- m
		}
		running, err := consumer.Consume(func(m jetstream.Msg) { got <- m })
		if err != nil {
			t.Fatal(err)
		}
		last := of.root + ".default.credential.last"
		if _, err := s.Js.Publish(t.Context(), last, []byte("default")); err != nil {
			t.Fatal(err)
		}
		for {
			m := bustest.Recv(t, got)
			if string(m.Data()) != "default" {
				t.Errorf("%s delivers %s", of.consumer, m.Subject())
			}
			if err := m.DoubleAck(t.Context()); err != nil {
				t.Error(err)
			}
			if m.Subject() == last {
				break
			}
		}
		running.Stop()
		<-running.Closed()
	}
	for len(refused) > 0 {
		t.Error(<-refused)
	}
}

func TestDiscovery(t *testing.T) {
	n := bustest.StartNode(t)
	for range 2 {
		nc, err := n.EndpointConn()
		if err != nil {
			t.Fatal(err)
		}
		srv, err := micro.AddService(nc, micro.Config{Name: "credstream", Version: "1.0.0"})
		if err != nil {
			t.Fatal(err)
		}
		err = srv.AddEndpoint("x", micro.HandlerFunc(func(r micro.Request) {
			principal, _ := n.Caller(nats.Header(r.Headers()))
			if err := r.Respond([]byte(principal)); err != nil {
				t.Error(err)
			}
		}), micro.WithEndpointSubject("credstream.query.*.x"))
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	nc, _ := bustest.Connect(t, n, "alice-key")
	if m, err := nc.RequestWithContext(t.Context(), "credstream.query.default.x", nil); err != nil || string(m.Data) != "alice" {
		t.Fatal(m, err)
	}
	for _, verb := range []string{"PING", "INFO", "STATS", "PING.credstream"} {
		inbox, err := nc.SubscribeSync(nc.NewInbox())
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.PublishRequest("$SRV."+verb, inbox.Subject, nil); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if m, err := inbox.NextMsgWithContext(t.Context()); err != nil || !strings.Contains(string(m.Data), `"name":"credstream"`) {
				t.Errorf("%s: %v, %v", verb, m, err)
			}
		}
	}
}

// The endpoints' connection cannot write into a stream, whatever an endpoint does.
func TestEndpointConnIsClosed(t *testing.T) {
	n := bustest.StartNode(t)
	s := bustest.StartService(t, n)
	before := s.State(t)
	nc, err := n.EndpointConn()
	if err != nil {
		t.Fatal(err)
	}
	refused := make(chan error, 10)
	nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err })
	for _, subject := range []string{"credstream.log.default.x", "credstream.events.default.x", "$JS.API.STREAM.DELETE.CREDSTREAM_LOG", "$JS.ACK.CREDSTREAM_FEED.engine-default.1.1.1.1.0", "credstream.cmd.default.x"} {
		if err := nc.Publish(subject, nil); err != nil {
			t.Fatal(err)
		}
		if err := bustest.Recv(t, refused); !errors.Is(err, nats.ErrPermissionViolation) {
			t.Errorf("%s: %v", subject, err)
		}
	}
	if diff := cmp.Diff(before, s.State(t)); diff != "" {
		t.Errorf("the streams changed:\n%s", diff)
	}
}

func TestDisconnectKey(t *testing.T) {
	n := bustest.StartNode(t)
	closed := make(chan string, 10)
	var bob *nats.Conn
	for _, key := range []string{"alice-key", "alice-key", "bob-key"} {
		nc, _ := bustest.Connect(t, n, key, nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { closed <- key }))
		bob = nc
	}
	n.DisconnectKey("alice")
	for range 2 {
		if key := bustest.Recv(t, closed); key != "alice-key" {
			t.Errorf("%s was disconnected", key)
		}
	}
	if err := bob.Flush(); err != nil {
		t.Error(err)
	}
	n.DisconnectKey("nobody")
}

// What the account of a key imports, which is most of what it holds, goes with the key.
func TestAccountsOfEndedKeys(t *testing.T) {
	const keys = 300
	n := bustest.StartNode(t)
	bustest.OK(t, n.SetAuthenticator(func(_ context.Context, key string, _ netip.Addr) (natsserver.Grant, error) {
		return natsserver.Grant{Principal: key, Tenants: []string{"acme", "other"}, Follow: true, Audit: true}, nil
	}))
	use := func(key string) {
		nc := bustest.Must(nats.Connect(n.ClientURL(), nats.UserInfo("x", key)))(t)
		nc.Close()
	}
	for i := range 20 { // what is made once
		use(fmt.Sprint("first-", i))
		n.DisconnectKey(fmt.Sprint("first-", i))
	}
	before := heap()
	for i := range keys {
		use(fmt.Sprint("key-", i))
	}
	held := heap() - before
	for i := range keys {
		n.DisconnectKey(fmt.Sprint("key-", i))
	}
	if left := heap() - before; left > held*2/3 { // the server forgets no account
		t.Errorf("%d bytes a key, %d when it has ended", held/keys, left/keys)
	}
	use("key-1") // and a key that has another grant now comes again
}

// heap is how many bytes are in use.
func heap() int64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A key that is revoked while it is being checked does not get in.
func TestRevokedWhileConnecting(t *testing.T) {
	n := bustest.StartNode(t)
	var revoked bool
	err := n.SetAuthenticator(func(ctx context.Context, key string, from netip.Addr) (natsserver.Grant, error) {
		if revoked {
			return natsserver.Grant{}, bustest.ErrUnknownKey
		}
		revoked = true
		n.DisconnectKey("alice")
		return bustest.Authenticate(ctx, key, from)
	})
	if err != nil {
		t.Fatal(err)
	}
	if nc, err := nats.Connect(n.ClientURL(), nats.UserInfo("x", "alice-key")); err == nil {
		nc.Close()
		t.Error("connected with a revoked key")
	}
}

// Clear secrets travel over TLS or the loopback interface, or not at all.
func TestClearSecretsNeedTLS(t *testing.T) {
	ip := outsideAddress(t)
	certificate := httptest.NewTLSServer(nil)
	certificate.Close()
	for _, tc := range []struct {
		name    string
		address string
		tls     *tls.Config
		allowed bool
	}{
		{"loopback", "127.0.0.1", nil, true},
		{"from outside", ip, nil, false},
		{"from outside, TLS", ip, certificate.TLS, true},
	} {
		n := bustest.StartNode(t, func(c *natsserver.NodeConfig) {
			c.Listen, c.TLS, c.ClearSecretCommands = "0.0.0.0:0", tc.tls, []string{"credential.create"}
		})
		s := bustest.StartService(t, n)
		_, port, err := net.SplitHostPort(n.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		opts := []nats.Option{nats.UserInfo("x", "alice-key")}
		if tc.tls != nil {
			opts = append(opts, nats.Secure(&tls.Config{InsecureSkipVerify: true}))
		}
		refused := make(chan error, 10)
		opts = append(opts, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
		nc, err := nats.Connect(net.JoinHostPort(tc.address, port), opts...)
		if err != nil {
			t.Fatal(tc.name, err)
		}
		t.Cleanup(nc.Close)
		for _, subject := range []string{
			"credstream.cmd.default.credential.create", "credstream.cmd.default.credential.delete", "credstream.cmdq.default.credential.create",
		} {
			if err := nc.Publish(subject, nil); err != nil {
				t.Fatal(err)
			}
			if tc.allowed || subject != "credstream.cmd.default.credential.create" {
				if got := bustest.Recv(t, s.Calls); got.Subject != subject {
					t.Errorf("%s: %+v", tc.name, got)
				}
			} else if err := bustest.Recv(t, refused); !errors.Is(err, nats.ErrPermissionViolation) {
				t.Errorf("%s: %v", tc.name, err)
			}
		}
	}
}

func outsideAddress(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() && ip.IP.To4() != nil {
			return ip.IP.String()
		}
	}
	t.Skip("needs a network interface besides the loopback one")
	return ""
}

// A reader that acknowledges nothing leaves events to those it shares with.
func TestReaderThatHoldsEvents(t *testing.T) {
	n := bustest.StartNode(t)
	s := bustest.StartService(t, n)
	const held = 1000
	for i := range held + 10 {
		if _, err := s.Js.PublishAsync(fmt.Sprint("credstream.events.default.credential.", i), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	<-s.Js.PublishAsyncComplete()
	pull := func(most int) (got int) {
		nc, _ := bustest.Connect(t, n, "alice-key")
		consumer := bustest.Must(bustest.Must(jetstream.New(nc))(t).Consumer(t.Context(), streams.FeedStream, streams.EngineConsumer("default")))(t)
		batch, err := consumer.Fetch(most, jetstream.FetchMaxWait(10*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		for range batch.Messages() {
			got++
		}
		return got
	}
	if got := pull(held); got != held {
		t.Fatalf("the first reader has %d events", got)
	}
	if got := pull(5); got != 5 {
		t.Errorf("the second reader has %d events, want 5", got)
	}
}
