package natsserver_test

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/credstream/credstream/jsapi"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/fault"
)

// startEndpoints makes the streams and endpoints that answer everything.
func startEndpoints(t *testing.T, c *natsserver.Cluster) *bustest.Service {
	t.Helper()
	own, err := c.Conn("test")
	if err != nil {
		t.Fatal(err)
	}
	s := &bustest.Service{Calls: make(chan bustest.Call, 1000)}
	if s.Js, err = jetstream.New(own); err != nil {
		t.Fatal(err)
	}
	for _, cfg := range bustest.Streams {
		if _, err := jsapi.EnsureStream(t.Context(), s.Js, cfg); err != nil {
			t.Fatal(err)
		}
	}
	pulls := bustest.ServePulls(t, c)
	for _, tenant := range []string{"default", "other"} {
		if err := pulls.Ensure(t.Context(), tenant, true, true); err != nil {
			t.Fatal(err)
		}
		for _, stream := range []string{"log", "vault", "events", "audit"} {
			if _, err := s.Js.Publish(t.Context(), "credstream."+stream+"."+tenant+".credential.first", []byte(tenant)); err != nil {
				t.Fatal(err)
			}
		}
	}
	answerAll(t, c, s.Calls)
	return s
}

// answerAll answers every request and tells of it.
func answerAll(t *testing.T, c *natsserver.Cluster, calls chan<- bustest.Call) {
	t.Helper()
	nc, err := c.EndpointConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"credstream.cmd.>", "credstream.query.>", "credstream.cmdq.>"} {
		_, err := nc.QueueSubscribe(subject, "test", func(m *nats.Msg) {
			got := bustest.Call{Subject: m.Subject, Answerable: natsserver.IsReplySubject(m.Reply)}
			got.Caller, got.Known = c.Caller(m.Header)
			calls <- got
			if err := m.Respond([]byte("done")); err != nil && m.Reply != "" {
				t.Error(err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
}

// dial opens a plain client connection with the inbox prefix that the key has.
func dial(t *testing.T, s *bustest.NATS, key string, opts ...nats.Option) (*nats.Conn, <-chan error) {
	t.Helper()
	refused := make(chan error, 1000)
	nc, err := nats.Connect(s.URL(""), append([]nats.Option{
		nats.UserInfo("anything", key), nats.CustomInboxPrefix(natsserver.InboxPrefix(key)),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc, refused
}

func TestCalloutLetsKeysIn(t *testing.T) {
	log := &bustest.LogBuffer{}
	s := bustest.Start(t)
	bustest.StartCluster(t, s, func(c *natsserver.ClusterConfig) { c.Logger = log.Logger() })
	for _, tc := range []struct {
		name string
		opts []nats.Option
		ok   bool
	}{
		{"nothing", nil, false},
		{"user only", []nats.Option{nats.UserInfo("alice-key", "")}, false},
		{"wrong key", []nats.Option{nats.UserInfo("x", "canary-wrong-key")}, false},
		{"wrong token", []nats.Option{nats.Token("canary-wrong-token")}, false},
		{"the service's user", []nats.Option{nats.UserInfo("credstream", "")}, false},
		{"the service's user and a wrong key", []nats.Option{nats.UserInfo("credstream", "guess")}, false},
		{"the system's user and a wrong key", []nats.Option{nats.UserInfo("credstream-system", "guess")}, false},
		{"a grant that names no tenant", []nats.Option{nats.UserInfo("x", "odd-key")}, false},
		{"the service's user and a key", []nats.Option{nats.UserInfo("credstream", "alice-key")}, false},
		{"password", []nats.Option{nats.UserInfo("x", "alice-key")}, true},
		{"password without a user", []nats.Option{nats.UserInfo("", "alice-key")}, true},
		{"token", []nats.Option{nats.Token("alice-key")}, true},
		{"for the feed", []nats.Option{nats.UserInfo(natsserver.FeedUser, "alice-key")}, true},
		{"for the feed, without a grant", []nats.Option{nats.UserInfo(natsserver.FeedUser, "quiet-key")}, true},
	} {
		nc, err := nats.Connect(s.URL(""), tc.opts...)
		if err == nil {
			nc.Close()
		}
		if (err == nil) != tc.ok || err != nil && !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	// A server logs the user that is refused; what stands there is no secret of ours.
	for text, secrets := range map[string][]string{log.String(): {"canary", "alice-key"}, s.Log(): {"canary"}} {
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("a log holds %s:\n%s", secret, text)
			}
		}
	}
}

func TestClusterAttacks(t *testing.T) {
	s := bustest.Start(t)
	c := bustest.StartCluster(t, s)
	sv := startEndpoints(t, c)
	before := sv.State(t)
	everywhere := slices.Clip(slices.Concat(hiddenFromAll, []string{
		"_INBOX.>", "_INBOX_*.>", natsserver.InboxPrefix("victim-key") + ".>", "credstream.events.>", "credstream.events.other.>", "$KV.credstream-in-use.other.>", "$SYS.REQ.USER.AUTH",
	}))
	for _, tc := range []struct {
		key, user string
		publish   []string
		hidden    []string
	}{
		{"alice-key", "x", slices.Concat(forbiddenToAll, forbiddenToTenant, []string{"$SYS.REQ.USER.AUTH", natsserver.InboxPrefix("victim-key") + ".x"}), append(everywhere, "credstream.events.default.>", "$KV.credstream-in-use.default.>")},
		{"admin-key", "x", forbiddenToAll, everywhere},
		{"quiet-key", "x", slices.Concat(forbiddenToAll, forbiddenToTenant, []string{
			"$JS.API.CONSUMER.MSG.NEXT.CREDSTREAM_FEED.engine-default", "$JS.API.CONSUMER.INFO.CREDSTREAM_AUDIT.audit-default",
			"$JS.ACK.CREDSTREAM_FEED.engine-default.1.1.1.1.0",
		}), append(everywhere, "credstream.events.default.>")},
		{"alice-key", natsserver.FeedUser, slices.Concat(forbiddenToAll, []string{"credstream.cmd.default.x", "$SRV.PING"}), append(everywhere, natsserver.InboxPrefix("alice-key")+".>")},
		{"quiet-key", natsserver.FeedUser, []string{"credstream.cmd.default.x"}, append(everywhere, "credstream.events.default.>")},
	} {
		nc, refused := dial(t, s, tc.key, nats.UserInfo(tc.user, tc.key))
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
				t.Errorf("%s as %s subscribes to %s: %v", tc.key, tc.user, subject, err)
			}
			_ = sub.Unsubscribe() // the server never had it
		}
	}
	if diff := cmp.Diff(before, sv.State(t)); diff != "" {
		t.Errorf("the streams changed:\n%s", diff)
	}
	if len(sv.Calls) != 0 {
		t.Errorf("an endpoint was called: %v", <-sv.Calls)
	}
}

func TestClusterCallers(t *testing.T) {
	s := bustest.Start(t)
	c := bustest.StartCluster(t, s)
	sv := startEndpoints(t, c)
	for key, subject := range map[string]string{
		"alice-key": "credstream.cmd.default.credential.create",
		"bob-key":   "credstream.query.other.credentials.list",
		"admin-key": "credstream.cmd.other.credential.delete",
		"quiet-key": "credstream.query.default.credentials.list",
	} {
		nc, _ := dial(t, s, key)
		answer, err := nc.RequestWithContext(t.Context(), subject, []byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		want := bustest.Call{Subject: subject, Caller: bustest.Grants[key].Principal, Known: true, Answerable: true}
		if got := bustest.Recv(t, sv.Calls); got != want || string(answer.Data) != "done" {
			t.Errorf("%s: got %+v, answer %q", key, got, answer.Data)
		}
		if len(sv.Calls) != 0 {
			t.Errorf("%s: one request arrived twice", key)
		}
	}
	nc, _ := dial(t, s, "alice-key")
	if _, err := nc.RequestWithContext(t.Context(), "credstream.flows.default.x", nil); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("nobody listens there, but: %v", err)
	}
	own, err := c.Conn("test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := own.RequestWithContext(t.Context(), "credstream.cmd.default.x", nil); err != nil {
		t.Fatal(err)
	}
	if got := bustest.Recv(t, sv.Calls); got.Known {
		t.Errorf("a request without a key has a caller: %+v", got)
	}
	// Another replica knows the callers that this one has named.
	second := bustest.StartCluster(t, s)
	header := requestInfo(t, s, c, sv, "alice-key")
	if principal, ok := second.Caller(nats.Header{"Nats-Request-Info": {header}}); !ok || principal != "alice" {
		t.Errorf("another replica takes the caller for %q, %v", principal, ok)
	}
}

// requestInfo is the header that the server puts on the requests of a key.
func requestInfo(t *testing.T, s *bustest.NATS, c *natsserver.Cluster, sv *bustest.Service, key string) string {
	t.Helper()
	own, err := c.Conn("spy")
	if err != nil {
		t.Fatal(err)
	}
	const subject = "credstream.cmd.default.spied"
	sub, err := own.SubscribeSync(subject)
	if err != nil {
		t.Fatal(err)
	}
	if err := own.Flush(); err != nil {
		t.Fatal(err)
	}
	nc, _ := dial(t, s, key)
	if _, err := nc.RequestWithContext(t.Context(), subject, nil); err != nil {
		t.Fatal(err)
	}
	bustest.Recv(t, sv.Calls)
	m, err := sub.NextMsgWithContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := sub.Unsubscribe(); err != nil {
		t.Fatal(err)
	}
	return m.Header.Get("Nats-Request-Info")
}

// dialCluster speaks the protocol itself.
func dialCluster(t *testing.T, s *bustest.NATS, key string) *rawClient {
	t.Helper()
	conn, err := net.Dial("tcp", s.Host(0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := &rawClient{t: t, Conn: conn, lines: bufio.NewScanner(conn)}
	c.send(`CONNECT {"user":"x","pass":"` + key + `","headers":true,"no_responders":true,"verbose":false}` + "\r\nSUB " + natsserver.InboxPrefix(key) + ".> 1")
	return c
}

func TestClusterForgedCaller(t *testing.T) {
	s := bustest.Start(t)
	c := bustest.StartCluster(t, s)
	sv := startEndpoints(t, c)
	own := requestInfo(t, s, c, sv, "alice-key")
	if !strings.Contains(own, `"user":"alice.`) {
		t.Fatalf("the server's header is %s", own)
	}
	_, mac, _ := strings.Cut(own, `"user":"alice.`)
	mac, _, _ = strings.Cut(mac, `"`)
	dial(t, s, "admin-key") // whom to be taken for
	raw := dialCluster(t, s, "alice-key")
	for _, forged := range []string{
		`{"user":"admin"}`, `{"user":"admin."}`, `{"user":"admin.` + mac + `"}`, `{"user":"admin","user":"alice.` + mac + `"}`,
		`{"user":"credstream"}`, `{"user":""}`, `{"acc":"CREDSTREAM"}`, `{}`, `x`,
	} {
		info := "Nats-Request-Info: " + forged
		for _, header := range []string{
			"NATS/1.0\r\n" + info + "\r\n\r\n",
			"NATS/1.0\r\nA: b\r\n" + info + "\r\n\r\n",
			"NATS/1.0\r\n" + info + "\r\n" + info + "\r\n\r\n",
			"NATS/1.0\r\n" + strings.ToLower(info) + "\r\n\r\n",
			"NATS/1.0\r\nNats-Request-Info : " + forged + "\r\n\r\n",
			"NATS/1.0\r\nA: b\n" + info + "\r\n\r\n",
			// The Go client takes these for the end of the headers and does not see the server's own.
			"NATS/1.0\r\n" + info + "\r\n\r\nX: y\r\n\r\n",
			"NATS/1.0\r\nA: b\n" + info + "\n\nX: y\r\n\r\n",
			"NATS/1.0\n\n\r\n\r\n",
		} {
			raw.hpub("credstream.cmd.default.credential.create", natsserver.InboxPrefix("alice-key")+".a", header)
			if got := bustest.Recv(t, sv.Calls); got.Known && got.Caller != "alice" {
				t.Errorf("%q: the caller is %q", header, got.Caller)
			}
		}
	}
	for _, header := range []nats.Header{nil, {"Nats-Request-Info": {own, own}}, {"Nats-Request-Info": {`{}`}}, {"Nats-Request-Info": {strings.Replace(own, "alice", "bob", 1)}}} {
		if principal, ok := c.Caller(header); ok {
			t.Errorf("%v: the caller is %q", header, principal)
		}
	}
	other := bustest.StartCluster(t, bustest.Start(t)) // with another seed
	if principal, ok := other.Caller(nats.Header{"Nats-Request-Info": {own}}); ok {
		t.Errorf("a name of one installation is %q in another", principal)
	}
}

// An answer cannot be directed into a stream, another key's subscription, or an
// endpoint as if it were a request of somebody.
func TestClusterForeignReplies(t *testing.T) {
	s := bustest.Start(t)
	c := bustest.StartCluster(t, s)
	sv := startEndpoints(t, c)
	before := sv.State(t)
	alice, _ := dial(t, s, "alice-key", nats.UserInfo(natsserver.FeedUser, "alice-key"))
	feed, err := alice.SubscribeSync("credstream.events.default.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := alice.Flush(); err != nil {
		t.Fatal(err)
	}
	bob := dialCluster(t, s, "bob-key")
	const subject, next = "credstream.cmd.other.x", "$JS.API.CONSUMER.MSG.NEXT.CREDSTREAM_FEED.engine-other"
	served := bustest.Call{Subject: subject, Caller: "bob", Known: true, Answerable: true}
	for _, reply := range []string{"$JS.ACK.CREDSTREAM_FEED.engine-default.1.2.1.1.0", "_R_.abcdef.ghijkl", "_GR_.x.y.z"} {
		if got := bob.send("PUB " + subject + " " + reply + " 2\r\n{}"); len(got) != 1 || !strings.HasPrefix(got[0], "-ERR 'Permissions Violation") {
			t.Errorf("reply %s: %q", reply, got)
		}
	}
	for _, reply := range []string{
		"credstream.log.default.credential.x", "credstream.vault.default.credential.x.y", "credstream.events.default.credential.x",
		"credstream.in.flows.default.x", "$KV.CREDSTREAM_KEYS.default", "$JS.API.STREAM.DELETE.CREDSTREAM_FEED",
		"$JS.API.CONSUMER.MSG.NEXT.CREDSTREAM_FEED.engine-default", "$SYS.REQ.SERVER.PING", "$SYS.REQ.USER.AUTH", "$SRV.PING", subject,
	} {
		bob.send("PUB " + subject + " " + reply + " 2\r\n{}")
		if got := bustest.Recv(t, sv.Calls); got != served {
			t.Errorf("reply %s: %+v", reply, got)
		}
	}
	bob.send("PUB " + subject + " credstream.query.default.loop 2\r\n{}")
	bob.send("PUB " + next + " credstream.query.default.loop 1\r\n1")
	bob.send("PUB " + next + " credstream.events.default.credential.x 1\r\n1")
	barrier := served // once it is answered, all before it is done
	barrier.Subject = "credstream.cmd.other.barrier"
	bob.send("PUB " + barrier.Subject + " " + natsserver.InboxPrefix("bob-key") + ".a 2\r\n{}")
	for got := bustest.Recv(t, sv.Calls); got != barrier; got = bustest.Recv(t, sv.Calls) {
		if got != served && got.Known {
			t.Errorf("an answer came back as a request of %+v", got)
		}
	}
	after := sv.State(t)
	for _, m := range []map[string]string{before, after} {
		delete(m, "CREDSTREAM_FEED/engine-other") // it has delivered an event to its rightful reader
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("the streams changed:\n%s", diff)
	}
	if _, err := sv.Js.Publish(t.Context(), "credstream.events.default.credential.live", []byte("live")); err != nil {
		t.Fatal(err)
	}
	if m, err := feed.NextMsgWithContext(t.Context()); err != nil || string(m.Data) != "live" {
		t.Errorf("alice's subscription holds %v, %v", m, err)
	}
}

// What a key is granted is what the accounts of deploy/nats export and import.
func TestAccountsCarryWhatIsGranted(t *testing.T) {
	s := bustest.Start(t)
	c := bustest.StartCluster(t, s)
	own, err := c.Conn("test")
	if err != nil {
		t.Fatal(err)
	}
	literal := strings.NewReplacer("*", "default", ">", "a.b")
	for key, grant := range bustest.Grants {
		requests, subscriptions, err := grant.Subjects()
		if err != nil {
			continue // the one that is refused
		}
		asks, refused := dial(t, s, key)
		for _, subject := range requests {
			got := make(chan struct{}, 1)
			inside := subject
			if consumer, ok := strings.CutPrefix(subject, "$JS.API.CONSUMER.INFO."); ok { // the service answers it
				inside = "credstream.consumer.info." + consumer
			}
			sub, err := own.Subscribe(inside, func(*nats.Msg) { got <- struct{}{} })
			if err != nil {
				t.Fatal(err)
			}
			if err := own.Flush(); err != nil {
				t.Fatal(err)
			}
			if err := asks.Publish(literal.Replace(subject), nil); err != nil {
				t.Fatal(err)
			}
			bustest.Recv(t, got)
			if err := sub.Unsubscribe(); err != nil {
				t.Fatal(err)
			}
		}
		listens, refusedToo := dial(t, s, key, nats.UserInfo(natsserver.FeedUser, key))
		for _, subject := range subscriptions {
			sub, err := listens.SubscribeSync(subject)
			if err != nil {
				t.Fatal(err)
			}
			if err := listens.Flush(); err != nil {
				t.Fatal(err)
			}
			if err := own.Publish(literal.Replace(subject), nil); err != nil {
				t.Fatal(err)
			}
			if _, err := sub.NextMsgWithContext(t.Context()); err != nil {
				t.Errorf("%s hears nothing of %s: %v", key, subject, err)
			}
		}
		for len(refused)+len(refusedToo) > 0 {
			select {
			case err := <-refused:
				t.Error(err)
			case err := <-refusedToo:
				t.Error(err)
			}
		}
	}
}

// TestClusterConsumerRights is TestConsumerRights on an external server.
func TestClusterConsumerRights(t *testing.T) {
	s := bustest.Start(t)
	startEndpoints(t, bustest.StartCluster(t, s))
	consumerRights(t, func(key, user string, opts ...nats.Option) *nats.Conn {
		nc, err := nats.Connect(s.URL(""), append([]nats.Option{nats.UserInfo(user, key)}, opts...)...)
		if err != nil {
			t.Fatal(err)
		}
		return nc
	})
}

// Plain clients with no code of ours follow the feed and discover the service.
func TestClusterFeed(t *testing.T) {
	s := bustest.Start(t)
	c := bustest.StartCluster(t, s)
	sv := startEndpoints(t, c)
	for key, tenant := range map[string]string{"alice-key": "default", "bob-key": "other", "admin-key": "*"} {
		nc, _ := dial(t, s, key, nats.UserInfo(natsserver.FeedUser, key))
		sub, err := nc.SubscribeSync("credstream.events." + tenant + ".>")
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		for _, to := range []string{"default", "other"} {
			if _, err := sv.Js.Publish(t.Context(), "credstream.events."+to+".credential.live", []byte(to)); err != nil {
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
	nc, refused := dial(t, s, "alice-key")
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
		running, err := consumer.Consume(func(m jetstream.Msg) { got <- m })
		if err != nil {
			t.Fatal(err)
		}
		last := of.root + ".default.credential.last"
		if _, err := sv.Js.Publish(t.Context(), last, []byte("default")); err != nil {
			t.Fatal(err)
		}
		for more := true; more; {
			m := bustest.Recv(t, got)
			if string(m.Data()) != "default" {
				t.Errorf("%s delivers %s", of.consumer, m.Subject())
			}
			if err := m.DoubleAck(t.Context()); err != nil {
				t.Error(err)
			}
			more = m.Subject() != last
		}
		running.Stop()
		<-running.Closed()
	}
	ends, err := c.EndpointConn()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := micro.AddService(ends, micro.Config{Name: "credstream", Version: "1.0.0"}); err != nil {
		t.Fatal(err)
	}
	if err := ends.Flush(); err != nil {
		t.Fatal(err)
	}
	if m, err := nc.RequestWithContext(t.Context(), "$SRV.PING.credstream", nil); err != nil || !strings.Contains(string(m.Data), `"name":"credstream"`) {
		t.Errorf("discovery: %v, %v", m, err)
	}
	for len(refused) > 0 {
		t.Error(<-refused)
	}
}

// The endpoints' connection cannot write into a stream, whatever an endpoint does.
func TestClusterEndpointConnIsClosed(t *testing.T) {
	s := bustest.Start(t)
	c := bustest.StartCluster(t, s)
	sv := startEndpoints(t, c)
	before := sv.State(t)
	nc, err := c.EndpointConn()
	if err != nil {
		t.Fatal(err)
	}
	refused := make(chan error, 10)
	nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err })
	for _, subject := range []string{"credstream.log.default.x", "credstream.events.default.x", "$JS.API.STREAM.DELETE.CREDSTREAM_LOG", "credstream.cmd.default.x"} {
		if err := nc.Publish(subject, nil); err != nil {
			t.Fatal(err)
		}
		if err := bustest.Recv(t, refused); !errors.Is(err, nats.ErrPermissionViolation) {
			t.Errorf("%s: %v", subject, err)
		}
	}
	if diff := cmp.Diff(before, sv.State(t)); diff != "" {
		t.Errorf("the streams changed:\n%s", diff)
	}
}

func TestClusterDisconnectKey(t *testing.T) {
	s := bustest.Start(t)
	c := bustest.StartCluster(t, s)
	closed := make(chan string, 10)
	var bob *nats.Conn
	for _, as := range [][2]string{{"alice-key", "x"}, {"alice-key", natsserver.FeedUser}, {"bob-key", "alice"}} {
		bob, _ = dial(t, s, as[0], nats.UserInfo(as[1], as[0]), nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { closed <- as[0] }))
	}
	c.DisconnectKey("alice")
	for range 2 {
		if key := bustest.Recv(t, closed); key != "alice-key" {
			t.Errorf("%s was disconnected", key)
		}
	}
	if err := bob.Flush(); err != nil {
		t.Error(err)
	}
	c.DisconnectKey("nobody")
	// Without the system user there is nobody to ask, which is no error.
	bustest.StartCluster(t, s, func(c *natsserver.ClusterConfig) { c.SystemURL = "" }).DisconnectKey("bob")
	if err := bob.Flush(); err != nil {
		t.Error(err)
	}
}

// quick is a client that soon gives up, so that the test does not wait as long as
// the server does.
var quick = nats.Timeout(300e6)

func TestCalloutAway(t *testing.T) {
	s := bustest.Start(t)
	c := bustest.StartCluster(t, s)
	alice, _ := dial(t, s, "alice-key")
	if err := c.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := alice.Flush(); err != nil {
		t.Errorf("a connection ended with the process that let it in: %v", err)
	}
	if nc, err := nats.Connect(s.URL(""), nats.UserInfo("x", "alice-key"), quick); err == nil {
		nc.Close()
		t.Error("connected while nobody could judge it")
	} else if errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("a key that nobody could judge was refused for good: %v", err)
	}
	in := make(chan struct{})
	patient, err := nats.Connect(s.URL(""), nats.UserInfo("x", "alice-key"), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		nats.ReconnectWait(10e6), nats.IgnoreAuthErrorAbort(), nats.ConnectHandler(func(*nats.Conn) { close(in) }), quick)
	if err != nil {
		t.Fatal(err)
	}
	defer patient.Close()
	startEndpoints(t, bustest.StartCluster(t, s))
	bustest.Recv(t, in)
	if m, err := alice.RequestWithContext(t.Context(), "credstream.cmd.default.x", nil); err != nil || string(m.Data) != "done" {
		t.Errorf("an old connection at a new process: %v, %v", m, err)
	}
}

func TestCalloutSlow(t *testing.T) {
	s := bustest.Start(t)
	c := bustest.StartCluster(t, s)
	bob, _ := dial(t, s, "bob-key")
	asked, known := make(chan struct{}, 100), make(chan struct{})
	slow := func(ctx context.Context, key string, from netip.Addr) (natsserver.Grant, error) {
		if key != "alice-key" {
			return bustest.Authenticate(ctx, key, from)
		}
		asked <- struct{}{}
		select {
		case <-known:
			return bustest.Authenticate(ctx, key, from)
		case <-ctx.Done():
			return natsserver.Grant{}, ctx.Err()
		}
	}
	if err := c.SetAuthenticator(slow); err != nil {
		t.Fatal(err)
	}
	if nc, err := nats.Connect(s.URL(""), nats.UserInfo("x", "alice-key"), quick); err == nil {
		nc.Close()
		t.Error("connected before the key was judged")
	} else if errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("refused before the key was judged: %v", err)
	}
	bustest.Recv(t, asked)
	dial(t, s, "admin-key") // others do not wait for it
	if err := bob.Flush(); err != nil {
		t.Error(err)
	}
	close(known)
	dial(t, s, "alice-key")
	// A part that is out of reach is no judgment, either.
	away := func(context.Context, string, netip.Addr) (natsserver.Grant, error) {
		return natsserver.Grant{}, fault.ErrUnavailable
	}
	if err := c.SetAuthenticator(away); err != nil {
		t.Fatal(err)
	}
	if _, err := nats.Connect(s.URL(""), nats.UserInfo("x", "alice-key"), quick); err == nil || errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("an authenticator that is out of reach: %v", err)
	}
}

func TestCalloutEncryption(t *testing.T) {
	for _, tc := range []struct {
		name            string
		server, process bool // whether each encrypts
		ok              bool
	}{
		{"both", true, true, true},
		{"neither", false, false, true},
		{"the process alone", false, true, false},
		{"the server alone", true, false, false},
	} {
		var options []bustest.Option
		if !tc.server {
			options = append(options, bustest.ClearCallout())
		}
		s := bustest.Start(t, options...)
		log := &bustest.LogBuffer{}
		bustest.StartCluster(t, s, func(c *natsserver.ClusterConfig) {
			c.Logger, c.CalloutXKeyFile = log.Logger(), ""
			if tc.process {
				c.CalloutXKeyFile = s.XKeyFile()
			}
		})
		nc, err := nats.Connect(s.URL(""), nats.UserInfo("x", "alice-key"), quick)
		if err == nil {
			nc.Close()
		}
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
		if strings.Contains(log.String(), "alice-key") {
			t.Errorf("%s: the log holds the key:\n%s", tc.name, log)
		}
	}
}

// Without the issuer's seed a process lets nobody in; with a wrong one the servers do not.
func TestCalloutSeed(t *testing.T) {
	s := bustest.Start(t)
	bustest.StartCluster(t, s, func(c *natsserver.ClusterConfig) { c.CalloutSeedFile = "" })
	if nc, err := nats.Connect(s.URL(""), nats.UserInfo("x", "alice-key"), quick); err == nil {
		nc.Close()
		t.Error("connected, but nobody has the seed")
	}
	bustest.StartCluster(t, s, func(c *natsserver.ClusterConfig) { c.CalloutSeedFile = bustest.Start(t).SeedFile() })
	if nc, err := nats.Connect(s.URL(""), nats.UserInfo("x", "alice-key"), quick); err == nil {
		nc.Close()
		t.Error("connected by the word of another issuer")
	}
	cfg := s.Config()
	cfg.AttestSyncAlways, cfg.CalloutSeedFile = true, s.XKeyFile() // a seed of another kind
	if _, err := natsserver.Connect(t.Context(), cfg); !errors.Is(err, natsserver.ErrNATSConfig) {
		t.Errorf("a curve key as the issuer: %v", err)
	}
}

// Clear secrets travel over TLS or the loopback interface, or not at all.
func TestClusterClearSecretsNeedTLS(t *testing.T) {
	certificate := httptest.NewTLSServer(nil)
	certificate.Close()
	for _, tc := range []struct {
		host    string
		options []bustest.Option
		allowed bool
	}{
		{"127.0.0.1", nil, true},
		{outsideAddress(t), nil, false},
		{outsideAddress(t), []bustest.Option{bustest.TLS(certificate.TLS.Certificates[0])}, true},
	} {
		s := bustest.Start(t, append(tc.options, bustest.OnHost(tc.host))...)
		c := bustest.StartCluster(t, s, func(c *natsserver.ClusterConfig) { c.ClearSecretCommands = []string{"credential.create"} })
		sv := startEndpoints(t, c)
		var opts []nats.Option
		if tc.options != nil {
			opts = append(opts, nats.Secure(s.Config().TLS))
		}
		nc, refused := dial(t, s, "alice-key", opts...)
		for _, subject := range []string{
			"credstream.cmd.default.credential.create", "credstream.cmd.default.credential.delete", "credstream.cmdq.default.credential.create",
		} {
			if err := nc.Publish(subject, nil); err != nil {
				t.Fatal(err)
			}
			if tc.allowed || subject != "credstream.cmd.default.credential.create" {
				if got := bustest.Recv(t, sv.Calls); got.Subject != subject {
					t.Errorf("%s: %+v", tc.host, got)
				}
			} else if err := bustest.Recv(t, refused); !errors.Is(err, nats.ErrPermissionViolation) {
				t.Errorf("%s: %v", tc.host, err)
			}
		}
	}
}
