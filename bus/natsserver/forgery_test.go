package natsserver_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/natsserver"
)

var forgeries = flag.Int("forgeries", 1500, "random forged requests for each kind of server")

// target is a server that an attacker sends requests to: a flow engine of another
// tenant than its victim's, who knows the names of all accounts and users.
type target struct {
	attacker *rawClient
	reply    string
	arrived  chan arrival
	victims  []string // the server's own headers about others
}

type arrival struct {
	header nats.Header
	caller string
	known  bool
}

const attacked = "credstream.cmd.other.credential.create"

// targets runs a test on both kinds of server.
func targets(t *testing.T, test func(t *testing.T, a *target)) {
	t.Run("embedded", func(t *testing.T) {
		n := bustest.StartNode(t)
		a := &target{reply: "_INBOX.a", arrived: make(chan arrival, 10)}
		a.listen(t, n, func(key string) *nats.Conn { nc, _ := bustest.Connect(t, n, key); return nc })
		a.attacker = dialRaw(t, n, "bob-key")
		test(t, a)
	})
	t.Run("external", func(t *testing.T) {
		s := bustest.Start(t)
		c := bustest.StartCluster(t, s)
		a := &target{reply: natsserver.InboxPrefix("bob-key") + ".a", arrived: make(chan arrival, 10)}
		a.listen(t, c, func(key string) *nats.Conn { nc, _ := dial(t, s, key); return nc })
		a.attacker = dialCluster(t, s, "bob-key")
		test(t, a)
	})
}

// listen starts an endpoint, and finds out what the server says of others.
func (a *target) listen(t *testing.T, server interface {
	Conn(name string) (*nats.Conn, error)
	EndpointConn() (*nats.Conn, error)
	Caller(h nats.Header) (string, bool)
}, connect func(key string) *nats.Conn,
) {
	spy, err := server.Conn("spy")
	if err != nil {
		t.Fatal(err)
	}
	seen, err := spy.SubscribeSync("credstream.cmd.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := spy.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"admin-key", "alice-key"} {
		nc := connect(key)
		if err := nc.Publish("credstream.cmd.default.x", nil); err != nil {
			t.Fatal(err)
		}
		m, err := seen.NextMsgWithContext(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		info := m.Header.Get("Nats-Request-Info")
		if who, ok := server.Caller(m.Header); !ok || who != bustest.Grants[key].Principal {
			t.Fatalf("the server's word about %s is %s", key, info)
		}
		a.victims = append(a.victims, info)
	}
	nc, err := server.EndpointConn()
	if err != nil {
		t.Fatal(err)
	}
	_, err = nc.Subscribe(attacked, func(m *nats.Msg) {
		got := arrival{header: m.Header}
		got.caller, got.known = server.Caller(m.Header)
		a.arrived <- got
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
}

// send sends headers and returns what arrived of them. It fails the test when the
// request is taken for another's.
func (a *target) send(t *testing.T, block string) arrival {
	t.Helper()
	a.attacker.hpub(attacked, a.reply, block)
	got := bustest.Recv(t, a.arrived)
	if got.known && got.caller != "bob" {
		t.Fatalf("%q: the caller is %q", block, got.caller)
	}
	return got
}

// Each header that is read, in each form in which the server and the library could
// disagree: it is dropped, or it is the sender's.
func TestHeadersAreReadInOneWay(t *testing.T) {
	const begin, end = "NATS/1.0\r\n", "\r\n\r\n"
	targets(t, func(t *testing.T, a *target) {
		for _, value := range a.victims {
			for _, name := range []string{"Nats-Request-Info", "Nats-Msg-Id", "X-Correlation-Id", "ce-id", "ce-type", "Content-Type", "Nats-Expected-Last-Sequence"} {
				own := name != "Nats-Request-Info"
				h := name + ": " + value
				for _, good := range []string{
					begin + h + end,
					begin + "A: b\r\n" + h + end,
					begin + name + ":" + value + end,
					begin + "A: b\r\n" + h + "\r\nC: d" + end,
				} {
					if got := a.send(t, good); !got.known || own && got.header.Get(name) != value {
						t.Errorf("%q: dropped, or the header is lost: %+v", good, got)
					}
				}
				bad := []string{
					begin + "A: b\n" + h + end, begin + "A: b\r" + h + end, begin + "A: b\n\r" + h + end,
					begin + h + "\r\n\r\nA: b" + end, begin + "A: b\n" + h + "\n\nC: d" + end,
					"NATS/1.0 200\n" + h + "\n\nA: b" + end, "NATS/1.0\n" + h + "\n\nA: b" + end, "NATS/1.0\n\n\r\n\r\n",
					begin + " " + h + end, begin + "\t" + h + end, begin + "A: b\r\n " + h + end, begin + h + "\r\n \tx" + end,
					begin + name + " : " + value + end, begin + name + "\t: " + value + end, begin + ": x\r\n" + h + "\n\n" + end,
					begin + name + end, begin + name + "\x00: " + value + end,
				}
				if own {
					bad = append(
						bad,
						begin+h+"\n"+end, begin+h+"\n\n"+end, begin+h+"\r"+end, begin+h+"\x00"+end, // the server removes such a line of its own header
						begin+h+"\r\n"+h+end, begin+h+"\r\n"+strings.ToLower(h)+end, begin+strings.ToUpper(name)+": 1\r\n"+h+end,
						begin+h+"\r\nA: b\r\n"+name+":"+end,
					)
				} else {
					bad = append(bad, begin+strings.ToLower(name)+": "+value+end, begin+"A: "+h+end)
				}
				for _, block := range bad {
					if got := a.send(t, block); got.known {
						t.Errorf("%q: the caller is %q", block, got.caller)
					} else if _, counted := got.header["Cs-Malformed-Headers"]; !counted || len(got.header) != 1 {
						t.Errorf("%q: not counted as malformed: %+v", block, got.header)
					}
				}
				// Without its end the server's own header becomes a part of this one.
				for _, block := range []string{begin + h, begin + h + "\r\n", begin + h + "xx", begin + "A: b" + h, begin, "NATS/1.0", "x"} {
					a.send(t, block)
				}
			}
		}
	})
}

// Random headers made of what such attacks are made of.
func TestForgedHeadersAtRandom(t *testing.T) {
	seed := rand.Uint64()
	targets(t, func(t *testing.T, a *target) {
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		pick := func(from ...string) string { return from[random.IntN(len(from))] }
		for range *forgeries {
			var b strings.Builder
			b.WriteString(pick("NATS/1.0", "NATS/1.0", "NATS/1.0", "NATS/1.0 503", "NATS/1.0 200 x", "nats/1.0", "NATS/1.0 "))
			for range 1 + random.IntN(6) {
				b.WriteString(pick("\r\n", "\r\n", "\r\n", "\n", "\r", "\n\r", "\r\r\n", "\n\n", "\r\n\r\n", "\r\n ", "\x00\r\n", "\u0085", "\u2028"))
				name := pick("Nats-Request-Info", "Nats-Request-Info", "Nats-Request-Info", "nats-request-info", "NATS-REQUEST-INFO", "Nats-Request-Infos", "Nats-Msg-Id", "A", "", "Cs-Malformed-Headers")
				switch random.IntN(12) {
				case 0:
					name = pick(" ", "\t", "\v", "\u00a0", "\x00") + name
				case 1:
					name += pick(" ", "\t", "\x00", "\u200b")
				case 2:
					name += name
				case 3:
					name += "\r\n" + name
				}
				b.WriteString(name + pick(":", ": ", ": ", ": ", ":\t", " : ", "", ":\n ", "::"))
				value := pick(slices.Concat(a.victims, a.victims, []string{"x", "", `{"acc":"CREDSTREAM"}`, "Nats-Request-Info: " + a.victims[0]})...)
				switch random.IntN(10) {
				case 0:
					value = strings.TrimSuffix(value, "}") + `,"x":"`
				case 1:
					value += pick("\n", "\r", " ", "}")
				}
				b.WriteString(value)
			}
			block := b.String() + pick("\r\n\r\n", "\r\n\r\n", "\r\n\r\n", "\n\n", "\n\r\n", "\r\n", "", "xx", "\r\n\r\n\r\n", "\n\n\r\nX: y\r\n\r\n")
			if random.IntN(20) == 0 { // and a byte that is anywhere
				at := random.IntN(len(block))
				block = block[:at] + fmt.Sprintf("%c", rune(random.IntN(256))) + block[at:]
			}
			a.send(t, block)
		}
	})
}
