package jetstream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
)

// Times that bound one exchange with the server.
const (
	answerTimeout   = 2 * time.Second      // for one response; then it is assumed to be lost
	exchangeTimeout = 10 * time.Second     // for a whole exchange, unless the caller's deadline is earlier
	minBackOff      = 5 * time.Millisecond // before the first retry; doubles each time
	maxBackOff      = 250 * time.Millisecond
)

var (
	errNoAnswer     = errors.New("no response in time")
	errNoResponders = errors.New("no responders: JetStream or the stream does not exist")
)

// mux multiplexes the responses of many requests in flight on one subscription.
type mux struct {
	nc     *nats.Conn
	prefix string // of the inbox, with its final dot
	sub    *nats.Subscription
	lost   chan nats.Status // signals a lost connection, which loses every response in flight
	done   sync.WaitGroup

	mu   sync.Mutex
	last uint64
	wait map[uint64]chan *nats.Msg
}

func newMux(nc *nats.Conn) (*mux, error) {
	m := &mux{nc: nc, prefix: nc.NewInbox() + ".", wait: map[uint64]chan *nats.Msg{}}
	sub, err := nc.Subscribe(m.prefix+"*", m.receive)
	if err != nil {
		return nil, err
	}
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return nil, err
	}
	m.sub, m.lost = sub, nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	m.done.Go(func() {
		for range m.lost {
			m.failAll()
		}
	})
	return m, nil
}

func (m *mux) close() {
	_ = m.sub.Unsubscribe() // fails only where it is moot: connection or subscription closed
	m.nc.RemoveStatusListener(m.lost)
	m.done.Wait()
	m.failAll()
}

// failAll reports to every caller that its response is lost.
func (m *mux) failAll() {
	m.mu.Lock()
	calls := m.wait
	m.wait = map[uint64]chan *nats.Msg{}
	m.mu.Unlock()
	for _, answer := range calls {
		close(answer)
	}
}

func (m *mux) receive(msg *nats.Msg) {
	token, err := strconv.ParseUint(msg.Subject[len(m.prefix):], 36, 64)
	if err != nil {
		return
	}
	m.mu.Lock()
	answer, ok := m.wait[token]
	delete(m.wait, token)
	m.mu.Unlock()
	if ok {
		answer <- msg // buffered, and only the first response gets here
	}
}

// call is a request in flight.
type call struct {
	m      *mux
	token  uint64
	answer chan *nats.Msg
}

// send sends a request. On an error nothing was sent. Every call must be awaited.
func (m *mux) send(req *nats.Msg) (call, error) {
	c := call{m: m, answer: make(chan *nats.Msg, 1)}
	m.mu.Lock()
	m.last++
	c.token = m.last
	m.wait[c.token] = c.answer
	m.mu.Unlock()
	out := nats.Msg{Subject: req.Subject, Header: req.Header, Data: req.Data, Reply: m.prefix + strconv.FormatUint(c.token, 36)}
	if err := m.nc.PublishMsg(&out); err != nil {
		c.forget()
		return call{}, err
	}
	return c, nil
}

func (c call) forget() {
	c.m.mu.Lock()
	delete(c.m.wait, c.token)
	c.m.mu.Unlock()
}

// await returns the response. errNoResponders means that nobody received the request,
// errNoAnswer that its outcome is unknown.
func (c call) await(ctx context.Context) (*nats.Msg, error) {
	t := time.NewTimer(answerTimeout)
	defer t.Stop()
	select {
	case msg, ok := <-c.answer:
		if !ok {
			return nil, errNoAnswer
		}
		if len(msg.Data) == 0 && msg.Header.Get("Status") == "503" {
			return nil, errNoResponders
		}
		return msg, nil
	case <-t.C:
		c.forget()
		return nil, errNoAnswer
	case <-ctx.Done():
		c.forget()
		return nil, ctx.Err()
	}
}

// request sends an idempotent request, and repeats it until there is a response.
func (m *mux) request(ctx context.Context, req *nats.Msg) (*nats.Msg, error) {
	c, err := m.send(req)
	return m.answer(ctx, req, c, err)
}

// answer awaits the response to req, which is in flight as c unless err is set, and repeats req
// until there is one.
func (m *mux) answer(ctx context.Context, req *nats.Msg, c call, err error) (*nats.Msg, error) {
	for p := newPacer(); ; {
		var msg *nats.Msg
		if err == nil {
			msg, err = c.await(ctx)
		}
		if err == nil {
			return msg, nil
		}
		if errors.Is(err, nats.ErrConnectionClosed) || !p.pause(ctx) {
			return nil, err
		}
		c, err = m.send(req)
	}
}

// api sends a request of the JetStream API and decodes the response into out, which embeds
// apiAnswer. It retries while the servers elect a leader.
func (m *mux) api(ctx context.Context, subject string, question any, out interface{ answer() *apiAnswer }) error {
	var body []byte
	if question != nil {
		var err error
		if body, err = jsonv2.Marshal(question); err != nil {
			return fmt.Errorf("requesting %s: %w", subject, err)
		}
	}
	bounded, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	for p := newPacer(); ; {
		msg, err := m.request(bounded, &nats.Msg{Subject: subject, Data: body})
		if err != nil {
			return unavailable("requesting "+subject, err)
		}
		out.answer().Error = nil
		if err := jsonv2.Unmarshal(msg.Data, out); err != nil {
			return fmt.Errorf("reading the response of %s: %w", subject, err)
		}
		if e := out.answer().Error; e == nil || e.Code != codeUnavailable || !p.pause(bounded) {
			return nil
		}
	}
}

// codeUnavailable is the status of a temporary error.
const codeUnavailable = 503

// apiAnswer is the common part of every response of the JetStream API.
type apiAnswer struct {
	Error *natsjs.APIError `json:"error"`
}

func (a *apiAnswer) answer() *apiAnswer { return a }

// pacer backs off between attempts, until exchangeTimeout or the end of the caller's context.
type pacer struct {
	start time.Time
	next  time.Duration
}

func newPacer() pacer { return pacer{start: time.Now(), next: minBackOff} }

// pause waits before the next attempt; it returns false if there must be none.
func (p *pacer) pause(ctx context.Context) bool {
	if time.Since(p.start)+p.next > exchangeTimeout || ctx.Err() != nil {
		return false
	}
	t := time.NewTimer(p.next)
	defer t.Stop()
	p.next = min(2*p.next, maxBackOff)
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
