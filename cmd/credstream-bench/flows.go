package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/credstream/credstream/bus/edge"
	"github.com/credstream/credstream/bus/feed"
	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/projections"
)

// The targets of flows.
const (
	inUseRate = 500                   // flow events per second
	barInUse  = 30 * time.Millisecond // at that rate
	barLoad   = 50 * time.Millisecond // of a stream with many uses
	barStarts = 3000                  // flow events per second
	barBinds  = 2000                  // reservations that are released, per second
)

const (
	flowTenant      = "default"
	flowCredentials = 1000 // that many flows use
	flowUses        = 2    // credentials of a flow
	flowsAhead      = 32   // events that one publisher sends ahead of their acknowledgements
	bindUses        = 3    // credentials of a reservation
	flowPatience    = 30 * time.Second
)

// flowSite is a site to which plain NATS clients report flows, like a flow engine, and whose in-use
// index a plain subscription watches.
type flowSite struct {
	*site
	watch       *inUseWatch
	named       map[string]map[uint64]bool // by key of the index: the flows that name it, and whether they are active
	last        atomic.Uint64              // number of the last flow
	ackedEvents atomic.Int64               // flow events that were acknowledged
	uses        atomic.Int64               // uses that result from them
}

func openFlows(s *site) (*flowSite, error) {
	watch, err := watchInUse(s.proc.nats)
	return &flowSite{site: s, watch: watch, named: map[string]map[uint64]bool{}}, err
}

// credentials creates n credentials for flows.
func (f *flowSite) credentials(ctx context.Context, n int64) ([]made, error) {
	before := len(f.made)
	_, err := closed(ctx, clients, size{calls: n}, f.creators([]apiKey{{adminKey, flowTenant}}, "", nil))
	return f.made[before:], err
}

func flowName(n uint64) string { return "flow-" + strconv.FormatUint(n, 10) }

func inUseKey(m made) string { return feed.InUseKey(flowTenant, "credential", m.id) }

// pick selects the credentials of the n-th flow.
func pick(from []made, n uint64) []made {
	choice := rand.New(rand.NewPCG(n, 0)) //nolint:gosec // a choice, not a secret
	first := choice.IntN(len(from))
	second := (first + 1 + choice.IntN(len(from)-1)) % len(from)
	return []made{from[first], from[second]}
}

// appendSteps appends steps that use these credentials as a JSON array.
func appendSteps(b []byte, uses []made) []byte {
	b = append(b, '[')
	for i, m := range uses {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"id":"step-`...)
		b = strconv.AppendInt(b, int64(i), 10)
		b = append(b, `","component":"`...)
		b = append(b, plain(m.n)...)
		b = append(b, `","credential":"`...)
		b = append(b, m.id...)
		b = append(b, `"}`...)
	}
	return append(b, ']')
}

// flowMessage is a CloudEvent about the n-th flow, such as "flow.started".
func flowMessage(what string, n uint64, revision int, uses []made) *nats.Msg {
	id, rev := flowName(n), strconv.Itoa(revision)
	b := append(make([]byte, 0, 320), `{"id":"`...)
	b = append(b, id...)
	b = append(b, `","name":"`...)
	b = appendName(b, n)
	b = append(b, `","revision":`...)
	b = append(b, rev...)
	b = append(b, `,"steps":`...)
	b = append(appendSteps(b, uses), '}')
	return &nats.Msg{Subject: "credstream.flows." + flowTenant + "." + id, Data: b, Header: nats.Header{
		"ce-specversion": {"1.0"}, "ce-id": {id + "-" + rev}, "ce-type": {what}, "ce-source": {"/bench"}, "ce-subject": {id},
	}}
}

// engine is a flow engine's connection.
func (f *flowSite) engine() (jetstream.JetStream, func(), error) {
	nc, err := nats.Connect(f.proc.nats, nats.UserInfo("bench", adminKey))
	if err != nil {
		return nil, nil, fmt.Errorf("connect to NATS: %w", err)
	}
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(flowsAhead),
		jetstream.WithPublishAsyncTimeout(flowPatience))
	if err != nil {
		nc.Close()
		return nil, nil, fmt.Errorf("open JetStream: %w", err)
	}
	return js, nc.Close, nil
}

// stored checks that the service could parse an event: it is not in the dead-letter queue.
func stored(ack *jetstream.PubAck) error {
	if ack.Stream != edge.FlowsStream {
		return fmt.Errorf("a flow event went into %s", ack.Stream)
	}
	return nil
}

// note records what the index must show once the flow is settled.
func (f *flowSite) note(n uint64, active bool, uses []made) {
	f.ackedEvents.Add(1)
	f.uses.Add(int64(len(uses)))
	for _, m := range uses {
		key := inUseKey(m)
		if f.named[key] == nil {
			f.named[key] = map[uint64]bool{}
		}
		f.named[key][n] = active
	}
}

// reportRates is the result of reporting many flows.
type reportRates struct {
	events, uses float64       // per second, until the index shows the last
	acknowledged float64       // events per second, until all are durable
	cpu          time.Duration // of the service for one event
}

func (t reportRates) details(n int64) string {
	return fmt.Sprintf("%s uses/s; %s events, acknowledged at %s", thousands(int64(t.uses)), thousands(n), perSecond(t.acknowledged))
}

// reportFlows publishes one event about each of the flows first to first+n-1, with 64 publishers that do
// not wait for each acknowledgement, and waits until the index reflects all of them.
func (f *flowSite) reportFlows(ctx context.Context, what string, revision int, first uint64, n int64, uses func(n uint64) []made) (t reportRates, err error) {
	active := what == "flow.started"
	messages := make(chan *nats.Msg, n)
	all := 0
	for i := range uint64(n) {
		u := uses(first + i)
		messages <- flowMessage(what, first+i, revision, u)
		f.note(first+i, active, u)
		all += len(u)
	}
	close(messages)
	before, err := f.cpu()
	if err != nil {
		return t, err
	}
	began := time.Now()
	publishers, going := errgroup.WithContext(ctx)
	for range clients {
		publishers.Go(func() error { return f.publishAll(going, messages) })
	}
	if err := publishers.Wait(); err != nil {
		return t, fmt.Errorf("report flows: %w", err)
	}
	acked := time.Since(began)
	if err := f.settled(ctx); err != nil {
		return t, err
	}
	took := time.Since(began).Seconds()
	after, err := f.cpu()
	return reportRates{
		events: float64(n) / took, uses: float64(all) / took, acknowledged: float64(n) / acked.Seconds(),
		cpu: (after - before) / time.Duration(n),
	}, err
}

// publishAll publishes messages over one connection and returns when all are acknowledged.
func (f *flowSite) publishAll(ctx context.Context, messages <-chan *nats.Msg) error {
	js, end, err := f.engine()
	if err != nil {
		return err
	}
	defer end()
	var acks []jetstream.PubAckFuture
	for m := range messages {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		ack, err := js.PublishMsgAsync(m, jetstream.WithStallWait(flowPatience))
		if err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		acks = append(acks, ack)
	}
	for _, a := range acks {
		select {
		case ack := <-a.Ok():
			if err := stored(ack); err != nil {
				return err
			}
		case err := <-a.Err():
			return fmt.Errorf("publish: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// settled waits until the index shows the expected number of uses, and checks that each of its
// values names the expected flows.
func (f *flowSite) settled(ctx context.Context) error {
	total, active := 0, 0
	for _, flows := range f.named {
		total += len(flows)
		for _, runs := range flows {
			if runs {
				active++
			}
		}
	}
	if err := f.watch.reach(ctx, total, active); err != nil {
		return err
	}
	for key, want := range f.named {
		v, err := f.watch.value(key)
		if err != nil {
			return err
		}
		if !shows(v, want) {
			return fmt.Errorf("the index is wrong: %s has %d flows, %d active; %d name it", key, v.Total, v.Active, len(want))
		}
	}
	return nil
}

// shows reports whether a value counts and lists the expected flows.
func shows(v projections.InUse, want map[uint64]bool) bool {
	active := 0
	for _, runs := range want {
		if runs {
			active++
		}
	}
	right := v.Total == len(want) && v.Active == active && (v.Truncated || len(v.Flows) == len(want))
	for _, flow := range v.Flows {
		n, err := strconv.ParseUint(strings.TrimPrefix(flow.ID, "flow-"), 10, 64)
		runs, named := want[n]
		right = right && err == nil && named && runs == flow.Active
	}
	return right
}

// inUseWatch records the values of credentials that a plain subscription to the bucket received.
type inUseWatch struct {
	nc      *nats.Conn
	changed chan struct{} // holds one after every value

	mu            sync.Mutex
	last          map[string]inUseSeen // by key
	total, active int                  // over all keys
	awaited       map[string]map[string]*awaitedFlow
	err           error
}

type inUseSeen struct {
	projections.InUse // without the flows
	body              []byte
}

// awaitedFlow waits until the values of some keys show a flow as active.
type awaitedFlow struct {
	left int
	seen chan struct{}
}

func newInUseWatch(nc *nats.Conn) *inUseWatch {
	return &inUseWatch{
		nc: nc, changed: make(chan struct{}, 1), last: map[string]inUseSeen{}, awaited: map[string]map[string]*awaitedFlow{},
	}
}

func watchInUse(url string) (*inUseWatch, error) {
	nc, err := nats.Connect(url, nats.UserInfo("bench", adminKey), nats.NoReconnect())
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	w := newInUseWatch(nc)
	sub, err := nc.Subscribe(streams.InUseSubject+"."+flowTenant+".credential.>", w.take)
	if err == nil {
		err = sub.SetPendingLimits(-1, -1)
	}
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("watch the in-use index: %w", err)
	}
	return w, nil
}

var errNoFlows = errors.New("it lists no flows behind its counts")

// take records one value. It decodes the flows only if a caller waits for one of them, because the
// cost of decoding must not affect the measurement.
func (w *inUseWatch) take(m *nats.Msg) {
	key := strings.TrimPrefix(m.Subject, streams.InUseSubject+".")
	v := inUseSeen{body: m.Data}
	head, _, found := bytes.Cut(m.Data, []byte(`,"flows":`))
	err := json.Unmarshal(append(bytes.Clone(head), '}'), &v.InUse)
	if !found {
		err = cmp.Or(err, errNoFlows)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.last[key]
	switch {
	case err != nil:
		w.err = cmp.Or(w.err, fmt.Errorf("read the value of %s: %w", key, err))
	case v.Seq < was.Seq:
		w.err = cmp.Or(w.err, fmt.Errorf("%s went back from %d to %d", key, was.Seq, v.Seq))
	}
	w.last[key] = v
	w.total += v.Total - was.Total
	w.active += v.Active - was.Active
	if awaited := w.awaited[key]; len(awaited) > 0 {
		var whole projections.InUse
		if err := json.Unmarshal(m.Data, &whole); err != nil {
			w.err = cmp.Or(w.err, fmt.Errorf("read the value of %s: %w", key, err))
		}
		for _, flow := range whole.Flows {
			a := awaited[flow.ID]
			if a == nil || !flow.Active {
				continue
			}
			delete(awaited, flow.ID)
			if a.left--; a.left == 0 {
				close(a.seen)
			}
		}
	}
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// await returns a channel that is closed once each of the keys shows the flow as active.
func (w *inUseWatch) await(flow string, keys []string) <-chan struct{} {
	a := &awaitedFlow{left: len(keys), seen: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, key := range keys {
		if w.awaited[key] == nil {
			w.awaited[key] = map[string]*awaitedFlow{}
		}
		w.awaited[key][flow] = a
	}
	return a.seen
}

// reach waits until the values reach these totals of flows and active flows. It fails if no value
// arrives for a while.
func (w *inUseWatch) reach(ctx context.Context, total, active int) error {
	for {
		w.mu.Lock()
		t, a, err := w.total, w.active, w.err
		w.mu.Unlock()
		if err != nil || t == total && a == active {
			return err
		}
		silence := time.NewTimer(flowPatience)
		select {
		case <-w.changed:
			silence.Stop()
		case <-ctx.Done():
			silence.Stop()
			return ctx.Err()
		case <-silence.C:
			return fmt.Errorf("the index stands still at %d uses, %d active, and must show %d, %d", t, a, total, active)
		}
	}
}

// value returns the last value of a key.
func (w *inUseWatch) value(key string) (v projections.InUse, err error) {
	w.mu.Lock()
	seen, ok := w.last[key]
	w.mu.Unlock()
	if !ok {
		return v, fmt.Errorf("the index has no %s", key)
	}
	if err := json.Unmarshal(seen.body, &v); err != nil {
		return v, fmt.Errorf("read the value of %s: %w", key, err)
	}
	return v, nil
}

// flows measures the service as flow engines use it.
func (b *bench) flows(ctx context.Context, s *site) error {
	r := b.report
	total := thousands(b.flowCount)
	f, err := openFlows(s)
	if err != nil {
		return err
	}
	defer f.watch.nc.Close()
	many, err := f.credentials(ctx, flowCredentials)
	if err != nil {
		return err
	}
	var rate float64
	if b.wants("flows") {
		if rate, err = b.flowRates(ctx, f, many); err != nil {
			return err
		}
	}
	if b.wants("in-use") {
		if err := b.inUse(ctx, f, many, rate); err != nil {
			return fmt.Errorf("in-use: %w", err)
		}
	}
	if b.wants("bind") {
		if err := b.bind(ctx, f); err != nil {
			return fmt.Errorf("bind: %w", err)
		}
	}
	if !b.wants("flows", "refusal", "uses") {
		return nil
	}
	few, err := f.credentials(ctx, 2)
	if err != nil {
		return err
	}
	one, other := few[0], few[1]
	first := f.last.Add(uint64(b.flowCount)) - uint64(b.flowCount) + 1
	t, err := f.reportFlows(ctx, "flow.started", 1, first, b.flowCount, func(uint64) []made { return few[:1] })
	if err != nil {
		return err
	}
	if b.wants("flows") {
		r.add("starts of "+total+" flows that use one credential", perSecond(t.events), t.details(b.flowCount))
		b.cost(t.cpu)
	}
	if b.wants("refusal") {
		if _, err := f.reportFlows(ctx, "flow.started", 1, f.last.Add(1), 1, func(uint64) []made { return few[1:] }); err != nil {
			return err
		}
		if err := b.refusals(ctx, f, other, one); err != nil {
			return fmt.Errorf("refusal: %w", err)
		}
	}
	if err := b.reopen(ctx, s); err != nil {
		return err
	}
	return b.recorded(ctx, f, one)
}

// flowRates measures the rates of flow events, and returns that of new flows.
func (b *bench) flowRates(ctx context.Context, f *flowSite, many []made) (float64, error) {
	first := f.last.Add(uint64(b.flowCount)) - uint64(b.flowCount) + 1
	uses := func(n uint64) []made { return pick(many, n) }
	started, err := f.reportFlows(ctx, "flow.started", 1, first, b.flowCount, uses)
	if err != nil {
		return 0, err
	}
	what := fmt.Sprintf("start events of new flows (%d of %s credentials each), until the in-use index has the last", flowUses, thousands(flowCredentials))
	b.report.target(what, perSecond(started.events), started.details(b.flowCount), perSecond(barStarts), started.events >= barStarts)
	b.cost(started.cpu)
	stopped, err := f.reportFlows(ctx, "flow.stopped", 2, first, b.flowCount, uses)
	if err != nil {
		return 0, err
	}
	b.report.add("stops of the same flows", perSecond(stopped.events), stopped.details(b.flowCount))
	b.cost(stopped.cpu)
	return started.events, nil
}

// inUse measures the time from a flow's start until the index shows both its credentials as used.
func (b *bench) inUse(ctx context.Context, f *flowSite, many []made, most float64) error {
	var mu sync.Mutex
	var acked []time.Duration // from the acknowledgement until the index shows it
	opener := func(int) (caller, error) {
		js, end, err := f.engine()
		if err != nil {
			return caller{}, err
		}
		return caller{close: end, call: func() error {
			n := f.last.Add(1)
			uses := pick(many, n)
			m := flowMessage("flow.started", n, 1, uses)
			seen := f.watch.await(flowName(n), []string{inUseKey(uses[0]), inUseKey(uses[1])})
			ack, err := js.PublishMsg(ctx, m)
			if err != nil {
				return fmt.Errorf("publish: %w", err)
			}
			at := time.Now()
			if err := stored(ack); err != nil {
				return err
			}
			select {
			case <-seen:
			case <-time.After(flowPatience):
				return fmt.Errorf("the index does not show %s", flowName(n))
			case <-ctx.Done():
				return ctx.Err()
			}
			mu.Lock()
			defer mu.Unlock()
			acked = append(acked, time.Since(at))
			f.note(n, true, uses)
			return nil
		}}, nil
	}
	row := func(what string, bar time.Duration, measure func() (load, error)) error {
		acked = nil
		l, err := measure()
		if err == nil {
			err = f.settled(ctx)
		}
		if err != nil {
			return err
		}
		details := fmt.Sprintf("%s of %s events; after the acknowledgement %s", perSecond(l.rate), thousands(int64(l.n)),
			latencies(summed([][]time.Duration{acked}, b.time)))
		if bar == 0 {
			b.report.add(what, latencies(l), details)
		} else {
			b.report.target(what, latencies(l), details, "p99 "+ms(bar), l.quantile(.99) <= bar)
		}
		return nil
	}
	const what = "from a flow's start to the in-use index, "
	if err := row(what+"one at a time", 0, func() (load, error) { return closed(ctx, 1, b.measured(), opener) }); err != nil {
		return err
	}
	paceAt := func(rate float64) func() (load, error) {
		return func() (load, error) { return paced(ctx, clients, rate, b.time, opener) }
	}
	if err := row(fmt.Sprintf("%sat %d/s", what, inUseRate), barInUse, paceAt(inUseRate)); err != nil || most == 0 {
		return err
	}
	return row(what+"at half load", 0, paceAt(most/2))
}

// bind measures reservations that are released at once.
func (b *bench) bind(ctx context.Context, f *flowSite) error {
	own, err := f.credentials(ctx, clients*bindUses)
	if err != nil {
		return err
	}
	opener := overHTTP(f.proc.http, func(i int, c *wire) func() error {
		flow := "bound-" + strconv.Itoa(i)
		steps := appendSteps(nil, own[i*bindUses:(i+1)*bindUses])
		bind := []byte(`{"flow":"` + flow + `","steps":` + string(steps) + `}`)
		release := []byte(`{"flow":"` + flow + `"}`)
		var request []byte
		return func() error {
			var binding, released struct{ Binding string }
			request = postRequest(request[:0], "/v1/tenants/"+flowTenant+"/commands/flow.bind", adminKey, commandID(next.Add(1)), bind)
			if err := answered(c, "flow.bind", request, &binding); err != nil {
				return err
			}
			request = postRequest(request[:0], "/v1/tenants/"+flowTenant+"/commands/flow.release", adminKey, commandID(next.Add(1)), release)
			if err := answered(c, "flow.release", request, &released); err != nil {
				return err
			}
			if binding.Binding == "" || released.Binding != binding.Binding {
				return fmt.Errorf("bound %q, released %q", binding.Binding, released.Binding)
			}
			return nil
		}
	})
	for _, n := range []int{1, clients} {
		l, err := closed(ctx, n, b.measured(), opener)
		if err != nil {
			return err
		}
		what := fmt.Sprintf("bind and release of %d credentials, %s", bindUses, countClients(n))
		if n < clients {
			b.report.add(what, perSecond(l.rate), latencies(l))
			continue
		}
		b.report.target(what, perSecond(l.rate), latencies(l), perSecond(barBinds), l.rate >= barBinds)
	}
	c, err := dialWire(f.proc.http)
	if err != nil {
		return err
	}
	defer c.close()
	var st viewsStatus // its end includes the events of the releases on each credential
	if err := query(c, adminKey, flowTenant, "views.status", &st); err != nil {
		return err
	}
	for _, m := range own {
		var list struct{ Flows []struct{ ID string } }
		what := "flow.list?credential=" + m.id + "&min_seq=" + strconv.FormatUint(st.End, 10)
		if err := query(c, adminKey, flowTenant, what, &list); err != nil {
			return err
		}
		if len(list.Flows) > 0 {
			return fmt.Errorf("%s is used by %v after every release", m.id, list.Flows)
		}
	}
	return nil
}

func countClients(n int) string {
	if n == 1 {
		return "1 client"
	}
	return fmt.Sprint(n, " clients")
}

// refusals measures the refused delete of a credential that one flow uses, or many.
func (b *bench) refusals(ctx context.Context, f *flowSite, one, many made) error {
	refuse := func(m made, flows int) (load, error) {
		return closed(ctx, 1, b.measured(), overHTTP(f.proc.http, func(_ int, c *wire) func() error {
			body := []byte(`{"id":"` + m.id + `"}`)
			var request []byte
			return func() error {
				request = postRequest(request[:0], "/v1/tenants/"+flowTenant+"/commands/credential.delete", adminKey, commandID(next.Add(1)), body)
				status, answer, err := c.do(request)
				if err != nil {
					return err
				}
				return refused(status, answer, flows)
			}
		}))
	}
	hello, err := b.helloWorld(ctx, 1)
	if err != nil {
		return err
	}
	few, err := refuse(one, 1)
	if err != nil {
		return err
	}
	all, err := refuse(many, int(b.flowCount))
	if err != nil {
		return err
	}
	ratio := func(a, b load) string {
		return fmt.Sprintf("%.1f times", float64(a.quantile(.5))/float64(b.quantile(.5)))
	}
	b.report.add("hello-world, 1 client", latencies(hello), "")
	b.report.add("delete refused, used by 1 active flow, 1 client", latencies(few), ratio(few, hello)+" hello-world")
	b.report.add("delete refused, used by "+thousands(b.flowCount)+" active flows, 1 client", latencies(all),
		ratio(all, hello)+" hello-world, "+ratio(all, few)+" that with 1 flow")
	return nil
}

// refused checks that a delete was refused because of this number of flows.
func refused(status int, answer []byte, flows int) error {
	var problem struct {
		Code    string
		Details struct{ Total int }
	}
	if err := json.Unmarshal(answer, &problem); err != nil {
		return fmt.Errorf("delete: %d %.300s: %w", status, answer, err)
	}
	if status != 409 || problem.Code != "credential_in_use" || problem.Details.Total != flows {
		return fmt.Errorf("delete: %d %.300s: want the refusal that names %d flows", status, answer, flows)
	}
	return nil
}

var errRecorded = errors.New("the log does not contain the reported flow events")

// recorded has a new process count the flow events in the log, and load the credential that most
// flows use.
func (b *bench) recorded(ctx context.Context, f *flowSite, one made) error {
	var out usesLoaded
	if err := askChild(ctx, &out, "uses", f.dir, flowTenant, one.id); err != nil {
		return err
	}
	if out.Events != f.ackedEvents.Load() || out.Used != f.uses.Load() || int64(out.Flows) != b.flowCount {
		return fmt.Errorf("%w: %d of %d events, %d of %d uses, %d of %d flows on one credential", errRecorded,
			out.Events, f.ackedEvents.Load(), out.Used, f.uses.Load(), out.Flows, b.flowCount)
	}
	b.report.target("flow events in the log, each once", thousands(out.Events), thousands(out.Used)+" uses", "all", true)
	if !b.wants("uses") {
		return nil
	}
	b.report.target("uncached load of a credential with "+thousands(b.flowCount)+" uses", ms(out.Load),
		fmt.Sprintf("first load %s; without a snapshot %s", ms(out.First), ms(out.Folded)), ms(barLoad), max(out.Load, out.First) < barLoad)
	b.report.add("applying one use event to a state with "+thousands(b.flowCount)+" uses", fmt.Sprintf("%.2f µs", out.Fold*1e6), fmt.Sprintf("with 10 uses %.2f µs", out.FoldFew*1e6))
	return nil
}
