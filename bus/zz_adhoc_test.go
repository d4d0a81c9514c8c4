package bus_test

import (
	"fmt"
	"sort"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus"
	"github.com/credstream/credstream/events"
)

func TestAdhocRate(t *testing.T) {
	w := startWhole(t)
	w.petstore()
	w.serveIntake()
	js := must(jetstream.New(w.client(w.key)))(t)
	const n = 10000
	for i := range 500 {
		w.call("default", "component.register", fmt.Sprintf(`{"id":"c%d","descriptor":{"title":"Sheets"}}`, i))
	}
	begin := time.Now()
	var acks []jetstream.PubAckFuture
	for i := range n {
		f := fmt.Sprint("f", i)
		a := must(js.PublishMsgAsync(flowEvent(f, "flow.stopped", f, `{"id":"`+f+`","revision":1}`)))(t)
		acks = append(acks, a)
	}
	for _, a := range acks {
		select {
		case <-a.Ok():
		case err := <-a.Err():
			t.Fatal(err)
		}
	}
	t.Logf("taken in: %.0f/s", n/time.Since(begin).Seconds())
	begin = time.Now()
	w.read(bus.Flows)
	seen := 0
	w.until(func(r events.Record) bool {
		if _, is := r.Event.(events.FlowObserved); is {
			seen++
		}
		return seen == n
	})
	t.Logf("observed: %.0f/s", n/time.Since(begin).Seconds())
	// latency at 500/s
	var at = map[string]time.Time{}
	go func() {}()
	const m = 2000
	done := make(chan []time.Duration)
	sent := make(chan string, m)
	go func() {
		var d []time.Duration
		w.until(func(r events.Record) bool {
			if e, is := r.Event.(events.FlowObserved); is && e.Revision == 2 {
				<-sent
				d = append(d, time.Since(r.Meta.Time))
			}
			return len(d) == m
		})
		done <- d
	}()
	tick := time.NewTicker(2 * time.Millisecond)
	var lat []time.Duration
	for i := range m {
		<-tick.C
		f := fmt.Sprint("f", i)
		at[f] = time.Now()
		begin := time.Now()
		must(js.PublishMsgAsync(flowEvent(f, "flow.stopped", f+"b", `{"id":"`+f+`","revision":2}`)))(t)
		_ = begin
		sent <- f
	}
	lat = <-done
	sort.Slice(lat, func(i, j int) bool { return lat[i] < lat[j] })
	t.Logf("append to follow p50 %v p99 %v", lat[m/2], lat[m*99/100])
}
