package edge_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/edge"
	"github.com/credstream/credstream/bus/natsserver"
)

// publisher publishes what Watermill's suite reads again.
type publisher struct {
	js     jetstream.JetStream
	closed atomic.Bool
}

func (p *publisher) Publish(topic string, messages ...*message.Message) error {
	if p.closed.Load() {
		return errors.New("closed")
	}
	for _, w := range messages {
		m := nats.NewMsg(topic)
		m.Data = w.Payload
		m.Header["ce-id"] = []string{w.UUID}
		for k, v := range w.Metadata {
			m.Header[k] = []string{v}
		}
		if _, err := p.js.PublishMsg(w.Context(), m); err != nil {
			return err
		}
	}
	return nil
}

func (p *publisher) Close() error {
	p.closed.Store(true)
	return nil
}

// workQueue is a stream for what is below "work.".
func workQueue(t *testing.T) (*natsserver.Node, jetstream.JetStream) {
	t.Helper()
	n := bustest.StartNode(t)
	js := bustest.ServiceJS(t, n)
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "WORK", Subjects: []string{"work.>"}, Retention: jetstream.WorkQueuePolicy,
	})
	if err != nil {
		t.Fatal(err)
	}
	return n, js
}

func soon(int) time.Duration { return time.Millisecond }

func subscriber(js jetstream.JetStream, lane func(*message.Message) string) *edge.Subscriber {
	return edge.NewSubscriber(edge.SubscriberConfig{
		JS: js, Stream: "WORK", Lane: lane, Pause: soon, Logger: slog.New(slog.DiscardHandler),
	})
}

// Watermill's own suite, with all messages in one lane and with each in its own.
func TestSubscriberSuite(t *testing.T) {
	for name, lane := range map[string]func(*message.Message) string{
		"one lane": nil,
		"lanes":    func(m *message.Message) string { return m.UUID },
	} {
		t.Run(name, func(t *testing.T) {
			_, js := workQueue(t)
			make := func(*testing.T) (message.Publisher, message.Subscriber) {
				return &publisher{js: js}, subscriber(js, lane)
			}
			t.Run("suite", func(t *testing.T) { // its tests are parallel: the node must outlive them
				tests.TestPubSub(t, tests.Features{
					Persistent: true, GuaranteedOrder: lane == nil, RequireSingleInstance: true, ForceShort: true,
					GenerateTopicFunc: func(c tests.TestContext) string { return "work." + string(c.TestID) },
				}, make, nil)
			})
		})
	}
}

// publish stores n messages, in turn for each lane: "a 0", "b 0", "a 1"...
func publish(t *testing.T, js jetstream.JetStream, n int, lanes ...string) {
	t.Helper()
	for i := range n {
		for _, lane := range lanes {
			if _, err := js.Publish(t.Context(), "work."+lane, fmt.Append(nil, lane, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func bySubject(m *message.Message) string { return m.Metadata["nats-subject"] }

// A message that fails again and again holds what is behind it in its lane, and
// nothing else; once it succeeds the rest follows in its order.
func TestSubscriberLanes(t *testing.T) {
	_, js := workQueue(t)
	const n = 300 // more than are handed out at one time
	publish(t, js, n, "bad", "good")
	sub := subscriber(js, bySubject)
	defer sub.Close()
	messages, err := sub.Subscribe(t.Context(), "work.>")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	nacks := 0
	take := func(heal bool) {
		m := <-messages
		lane := strings.TrimPrefix(bySubject(m), "work.")
		if lane == "bad" && !heal {
			nacks++
			if want := fmt.Sprint(nacks); string(m.Payload) != "bad0" || m.Metadata["nats-delivered"] != want || m.Metadata["nats-seq"] != "1" {
				t.Fatalf("handed out %s, delivery %s, sequence %s; want the first of its lane, delivery %s", m.Payload,
					m.Metadata["nats-delivered"], m.Metadata["nats-seq"], want)
			}
			m.Nack()
			return
		}
		got[lane] = append(got[lane], string(m.Payload))
		m.Ack()
	}
	for len(got["good"]) < n {
		take(false)
	}
	for len(got["bad"]) < n {
		take(true)
	}
	for lane, list := range got {
		for i, s := range list {
			if s != fmt.Sprint(lane, i) {
				t.Fatalf("place %d of lane %s holds %s", i, lane, s)
			}
		}
	}
	if nacks == 0 {
		t.Error("the first message was never nacked")
	}
}

// Many lanes that fail for a long time do not stop the others.
func TestSubscriberManyFailingLanes(t *testing.T) {
	_, js := workQueue(t)
	var lanes []string
	for i := range 400 { // more than have a place
		lanes = append(lanes, fmt.Sprint("bad", i))
	}
	publish(t, js, 1, lanes...)
	publish(t, js, 3, "good")
	sub := subscriber(js, bySubject)
	defer sub.Close()
	messages, err := sub.Subscribe(t.Context(), "work.>")
	if err != nil {
		t.Fatal(err)
	}
	for good := 0; good < 3; {
		m := <-messages
		if bySubject(m) == "work.good" {
			good++
			m.Ack()
			continue
		}
		m.Metadata["retry-after"] = "1h"
		m.Nack()
	}
}

// Whoever subscribes next gets all that was not acknowledged, in its order,
// though the one before was in the middle of a lane and of its retries.
func TestSubscriberTakeover(t *testing.T) {
	_, js := workQueue(t)
	const n = 50
	publish(t, js, n, "a", "b")
	acked := map[string][]string{}
	for life := range 4 {
		sub := subscriber(js, bySubject)
		messages, err := sub.Subscribe(t.Context(), "work.>")
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < 40 || life == 3; i++ {
			if len(acked["work.a"]) >= n && len(acked["work.b"]) >= n {
				break
			}
			m := <-messages
			if i%3 == 0 {
				m.Nack()
				continue
			}
			list := acked[bySubject(m)]
			if !slices.Contains(list, string(m.Payload)) { // an acknowledgement may be lost with its subscriber
				acked[bySubject(m)] = append(list, string(m.Payload))
			}
			m.Ack()
		}
		if err := sub.Close(); err != nil {
			t.Fatal(err)
		}
		if _, open := <-messages; open {
			t.Error("a message comes after the end")
		}
	}
	want := map[string][]string{}
	for _, lane := range []string{"a", "b"} {
		for i := range n {
			want["work."+lane] = append(want["work."+lane], fmt.Sprint(lane, i))
		}
	}
	if d := cmp.Diff(want, acked); d != "" {
		t.Error("in another order (-want +got)", d)
	}
}

// The subscription outlives a restart of the server, and the order with it.
func TestSubscriberServerRestart(t *testing.T) {
	n, js := workQueue(t)
	const count = 200
	publish(t, js, count, "a", "b")
	sub := subscriber(js, bySubject)
	defer sub.Close()
	messages, err := sub.Subscribe(t.Context(), "work.>")
	if err != nil {
		t.Fatal(err)
	}
	var restarted sync.WaitGroup
	last := map[string]int{"a": -1, "b": -1}
	for i := 0; last["a"] < count-1 || last["b"] < count-1; i++ {
		if i == 100 {
			restarted.Go(func() {
				if err := n.Restart(context.Background()); err != nil {
					t.Error(err)
				}
			})
		}
		m := <-messages
		lane := strings.TrimPrefix(bySubject(m), "work.")
		var place int
		if _, err := fmt.Sscanf(strings.TrimPrefix(string(m.Payload), lane), "%d", &place); err != nil {
			t.Fatal(err)
		}
		if place > last[lane]+1 {
			t.Fatalf("lane %s: %d came after %d", lane, place, last[lane])
		}
		last[lane] = max(place, last[lane])
		if i%7 == 0 {
			last[lane] = place - 1 // it is to come again before the next
			m.Nack()
		} else {
			m.Ack()
		}
	}
	restarted.Wait()
}

// A header that stands twice, and one that is named like our own metadata.
func TestSubscriberForeignHeaders(t *testing.T) {
	_, js := workQueue(t)
	m := nats.NewMsg("work.a")
	m.Header = nats.Header{"x": {"first", "second"}, "nats-seq": {"99"}, "nats-subject": {"work.b"}, "retry-after": {"1h"}}
	if _, err := js.PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	sub := subscriber(js, nil)
	defer sub.Close()
	messages, err := sub.Subscribe(t.Context(), "work.>")
	if err != nil {
		t.Fatal(err)
	}
	got := <-messages
	want := message.Metadata{"x": "first", "nats-seq": "1", "nats-subject": "work.a", "nats-delivered": "1"}
	if d := cmp.Diff(want, got.Metadata); d != "" {
		t.Error(d)
	}
	got.Ack()
}
