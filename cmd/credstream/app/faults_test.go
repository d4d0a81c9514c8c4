package app

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/events"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/events/storetest"
)

var (
	faultSeed  = flag.Uint64("faultseed", 0, "seed of TestClusterFaults, which it prints; 0: any")
	nodeStops  = flag.Duration("nodestops", 0, "for how long TestOneNodeStops stops each server in turn; 0: it is skipped")
	faultCount = flag.Int("faults", 2, "faults that TestClusterFaults injects")
	allDark    = flag.Int("alldark", 1, "how often TestClusterPowerCut cuts the power of all servers")
	rolls      = flag.Int("rolls", 1, "how often TestRollingRestart restarts every server and process")
)

const (
	faultClients  = 6
	faultPatience = 1500 * time.Millisecond // of a client for one answer; less than most faults last
	faultSettle   = 2 * time.Minute         // for every command to be answered once all faults are over
	faultSlots    = 3                       // credentials in use at one time
)

// change is a command to one credential, or a look at it (route "credential.resolve").
type change struct {
	route, command string
	id             string // of the credential; "" until it is created
	value          string // the new name or key
	expected       int    // version of the keys; 0: any
	flow           string
}

func (c change) body() map[string]any {
	switch c.route {
	case "credential.create":
		return map[string]any{"component": "plain", "name": c.value, "keys": map[string]any{"apiKey": c.value}}
	case "credential.rename":
		return map[string]any{"id": c.id, "name": c.value, "expected_version": c.expected}
	case "credential.replace-keys":
		return map[string]any{"id": c.id, "keys": map[string]any{"apiKey": c.value}, "expected_version": c.expected}
	case "credential.delete":
		return map[string]any{"id": c.id}
	case "flow.bind":
		return map[string]any{"flow": c.flow, "ttl": "12h", "steps": []any{map[string]any{"id": "s", "component": "plain", "credential": c.id}}}
	}
	return map[string]any{"flow": c.flow}
}

// outcome is how a change was answered.
type outcome struct {
	code    string // of a refusal
	done    done   // of what was carried out
	version int    // resolved
	key     string
	unknown bool // nobody has answered
}

// refusals are the codes that end a command; after any other the client repeats it.
var refusals = []string{"credential_not_found", "credential_version_stale", "credential_in_use", "flow_cannot_bind"}

// credentialModel is one credential, for porcupine.
type credentialModel struct {
	exists, deleted bool
	version         int
	key             string
	held, maybe     string // flows that have reserved it; flows that gave it back, which may take a moment more
}

func (m credentialModel) step(c change, o outcome) (bool, credentialModel) {
	live := m.exists && !m.deleted
	refused := o.code != ""
	changed := func(may bool, code string) bool { // whether the answer is right
		switch {
		case !live:
			return o.code == "credential_not_found"
		case c.expected != 0 && c.expected != m.version:
			return o.code == "credential_version_stale"
		case !may:
			return o.code == code
		}
		return !refused
	}
	switch c.route {
	case "credential.create":
		ok := !m.exists && !refused && o.done.Version == 1
		return ok, credentialModel{exists: true, version: 1, key: c.value}
	case "credential.rename":
		return changed(true, "") && (refused || o.done.Version == m.version), m
	case "credential.replace-keys":
		ok := changed(true, "")
		if !refused {
			m.version, m.key = m.version+1, c.value
			ok = ok && o.done.Version == m.version
		}
		return ok, m
	case "credential.delete":
		may := m.held == ""
		if o.code == "credential_in_use" && m.maybe != "" {
			may = false
		}
		ok := changed(may, "credential_in_use")
		m.deleted = m.deleted || !refused
		return ok, m
	case "flow.bind":
		if !live {
			return o.code == "flow_cannot_bind", m
		}
		m.held, m.maybe = withFlow(m.held, c.flow), withoutFlow(m.maybe, c.flow)
		return !refused, m
	case "flow.release":
		if strings.Contains(m.held, c.flow) {
			m.held, m.maybe = withoutFlow(m.held, c.flow), withFlow(m.maybe, c.flow)
		}
		return !refused, m
	}
	if !live {
		return o.code == "credential_not_found", m
	}
	return !refused && o.version == m.version && o.key == m.key, m
}

// withFlow and withoutFlow make sets of flows as sorted words, which compare by ==.
func withFlow(set, flow string) string {
	words := append(strings.Fields(withoutFlow(set, flow)), flow)
	slices.Sort(words)
	return strings.Join(words, " ")
}

func withoutFlow(set, flow string) string {
	return strings.Join(slices.DeleteFunc(strings.Fields(set), func(f string) bool { return f == flow }), " ")
}

// load is the clients of TestClusterFaults and what they were answered.
type load struct {
	t       *testing.T
	servers *bustest.NATS
	kms     string
	engine  string // key that may resolve
	begin   time.Time
	halt    chan struct{} // closed when no new command is sent
	giveUp  context.Context

	mu        sync.Mutex
	processes []*process
	slots     [faultSlots]string // ids of the credentials in use
	versions  map[string]int     // as somebody was last told
	history   []porcupine.Operation
	answered  time.Duration // when a command was last answered
	quiet     time.Duration // longest time without an answer to a command
	attempts  atomic.Int64
}

// process is one of the processes, which the next call may find replaced.
func (l *load) process(n int) *process {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.processes[n%len(l.processes)]
}

// client sends one command after the other, each until it is answered.
func (l *load) client(n int, rng *rand.Rand) {
	http := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4}, Timeout: faultPatience}
	defer http.CloseIdleConnections()
	nc, err := nats.Connect(l.servers.URL(""), nats.UserInfo("x", adminKey), nats.CustomInboxPrefix(natsserver.InboxPrefix(adminKey)),
		nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond), nats.PingInterval(time.Second), nats.IgnoreAuthErrorAbort())
	if err != nil {
		l.t.Error(err)
		return
	}
	defer nc.Close()
	bound := "" // the credential that the client's flow has reserved
	flow := fmt.Sprint("flow-", n)
	for i := 0; ; i++ {
		select {
		case <-l.halt:
			return
		case <-time.After(time.Duration(rng.IntN(20)) * time.Millisecond): // more history than this shows no more
		}
		slot := rng.IntN(faultSlots)
		l.mu.Lock()
		id := l.slots[slot]
		version := l.versions[id]
		l.mu.Unlock()
		c := change{command: fmt.Sprintf("c%d-%d", n, i), id: id, value: fmt.Sprintf("v%d-%d", n, i), flow: flow}
		switch pick := rng.IntN(20); {
		case id == "" || pick < 1:
			c.route, c.id = "credential.create", ""
		case pick < 5:
			c.route, c.expected = "credential.rename", version*rng.IntN(2)
		case pick < 10:
			c.route, c.expected = "credential.replace-keys", version*rng.IntN(2)
		case pick < 12:
			c.route = "credential.delete"
		case bound != "":
			c.route, c.id = "flow.release", bound
		case pick < 15:
			c.route = "flow.bind"
		default:
			c.route = "credential.resolve"
		}
		call := time.Since(l.begin)
		o, answered := l.ask(c, rng, http, nc)
		if !answered {
			continue // a look without an answer shows nothing
		}
		op := porcupine.Operation{ClientId: n, Input: c, Call: int64(call), Output: o, Return: int64(time.Since(l.begin))}
		l.mu.Lock()
		if c.route != "credential.resolve" && !o.unknown {
			l.quiet = max(l.quiet, time.Duration(op.Return)-l.answered)
			l.answered = time.Duration(op.Return)
		}
		switch {
		case o.code != "" || o.unknown:
		case c.route == "credential.create":
			c.id = o.done.ID
			l.slots[slot], l.versions[c.id] = c.id, 1
		case c.route == "credential.delete" && l.slots[slot] == id:
			l.slots[slot] = ""
		case c.route == "credential.replace-keys":
			l.versions[id] = max(l.versions[id], o.done.Version)
		case c.route == "flow.bind":
			bound = id
		case c.route == "flow.release":
			bound = ""
		}
		op.Input = c
		l.history = append(l.history, op)
		l.mu.Unlock()
	}
}

// ask sends a change until it is answered, by any process and either surface.
func (l *load) ask(c change, rng *rand.Rand, http *http.Client, nc *nats.Conn) (o outcome, answered bool) {
	body, err := json.Marshal(c.body())
	if err != nil {
		l.t.Error(err)
		return o, false
	}
	for l.giveUp.Err() == nil {
		l.attempts.Add(1)
		a := api{base: l.process(rng.Int()).http, key: adminKey, tenant: "default", client: http}
		if c.route == "credential.resolve" {
			var got struct {
				Version int
				Keys    struct{ APIKey string }
			}
			err := a.as(l.engine).query(c.route, "cleartext=true&id="+c.id, &got)
			code, err := codeOf(err)
			return outcome{code: code, version: got.Version, key: got.Keys.APIKey}, err == nil && (code == "" || slices.Contains(refusals, code))
		}
		var code string
		if rng.IntN(3) > 0 {
			code, err = l.overHTTP(a, c, body, &o.done)
		} else {
			code, err = l.overNATS(nc, c, body, &o.done)
		}
		if err == nil && (code == "" || slices.Contains(refusals, code)) {
			o.code = code
			return o, true
		}
		time.Sleep(time.Duration(20+rng.IntN(80)) * time.Millisecond) // as a client would
	}
	return outcome{unknown: true}, true
}

func (l *load) overHTTP(a api, c change, body []byte, out *done) (code string, err error) {
	req, err := http.NewRequest(http.MethodPost, a.base+"/v1/tenants/default/commands/"+c.route, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", c.command)
	req.Header.Set("X-Request-Deadline", time.Now().Add(faultPatience).UTC().Format(time.RFC3339Nano))
	return codeOf(a.do(req, out))
}

func (l *load) overNATS(nc *nats.Conn, c change, body []byte, out *done) (code string, err error) {
	m := nats.NewMsg("credstream.cmd.default." + c.route)
	m.Data = body
	m.Header.Set(nats.MsgIdHdr, c.command)
	m.Header.Set("X-Request-Deadline", time.Now().Add(faultPatience).UTC().Format(time.RFC3339Nano))
	answer, err := nc.RequestMsg(m, faultPatience)
	if err != nil {
		return "", err
	}
	if answer.Header.Get("Nats-Service-Error-Code") == "" {
		return "", json.Unmarshal(answer.Data, out)
	}
	var refused apiError
	err = json.Unmarshal(answer.Data, &refused)
	return refused.Code, err
}

// inject makes one fault and ends it again.
func (l *load) inject(n int, rng *rand.Rand, js jetstream.JetStream) {
	leader := l.servers.Leader(js, eventlog.Stream)
	node := rng.IntN(3)
	if leader >= 0 && rng.IntN(2) == 0 {
		node = leader
	}
	lasts := 2*time.Second + time.Duration(rng.Int64N(int64(6*time.Second)))
	ready := func(node int) { l.servers.StartNode(node); l.servers.Ready() }
	fault := []struct {
		what       string
		begin, end func(node int)
	}{
		{"hangs", l.servers.Freeze, l.servers.Thaw},
		{"hangs", l.servers.Freeze, l.servers.Thaw},
		{"is cut off", l.servers.Cut, l.servers.Heal},
		{"is cut off", l.servers.Cut, l.servers.Heal},
		{"is killed", l.servers.Kill, ready},
		{"is stopped", l.servers.Stop, ready},
		{"is left alone; a process of the service hangs", l.pause(syscall.SIGSTOP), l.pause(syscall.SIGCONT)},
	}[rng.IntN(7)]
	l.t.Logf("fault %d: the server n%d (leader n%d) %s for %v", n, node+1, leader+1, fault.what, lasts)
	fault.begin(node)
	time.Sleep(lasts) // longer than most clients wait
	fault.end(node)
}

// pause sends a signal to one of the processes.
func (l *load) pause(sig syscall.Signal) func(int) {
	return func(n int) { _ = l.process(n).cmd.Process.Signal(sig) }
}

// Servers hang, stop and are cut off, leader or not, for longer than the clients wait,
// while every client repeats each command until it is answered. Afterwards answers,
// log, feed and vault agree, and each credential behaved as if one command had been
// carried out after the other, refusals included.
func TestClusterFaults(t *testing.T) {
	t.Parallel()
	l := newLoad(t, bustest.Nodes(3), bustest.Cuttable())
	l.run(*faultCount, func(n int, rng *rand.Rand, js jetstream.JetStream) { l.inject(n, rng, js) })
}

// The power of the disks of all servers is cut at one moment, and comes back: no server has what it
// had not synced. Nothing that was acknowledged is lost.
func TestClusterPowerCut(t *testing.T) {
	t.Parallel()
	var disks []*storetest.Disk
	l := newLoad(t, bustest.Nodes(3), bustest.Stores(func(dir string) { disks = append(disks, storetest.NewDiskAt(t, dir, 1<<30)) }))
	l.run(*allDark, func(n int, _ *rand.Rand, _ jetstream.JetStream) {
		t.Logf("power cut %d", n)
		for i := range disks {
			l.servers.Freeze(i) // none of them acknowledges anything without power
		}
		for i, d := range disks {
			d.Cut(t)
			l.servers.Kill(i)
			d.Remount(t)
		}
		for i := range disks {
			l.servers.StartNode(i)
		}
		l.servers.Ready()
	})
}

// Every server and every process of the service is restarted, one after the other, as for an
// upgrade of either.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	l := newLoad(t, bustest.Nodes(3))
	l.run(*rolls, func(int, *rand.Rand, jetstream.JetStream) {
		for i := range 3 {
			l.servers.Stop(i)
			l.servers.StartNode(i)
			l.servers.Ready()
		}
		for i := range l.processes {
			if err := l.process(i).kill(syscall.SIGTERM); err != nil {
				t.Errorf("a process that was told to stop: %v", err)
			}
			next := replica(t, l.servers, l.kms)
			l.mu.Lock()
			l.processes[i] = next
			l.mu.Unlock()
		}
	})
}

// newLoad starts servers.
func newLoad(t *testing.T, options ...bustest.Option) *load {
	t.Helper()
	return &load{
		t: t, servers: bustest.Start(t, options...), kms: kmsFile(t),
		begin: time.Now(), halt: make(chan struct{}), versions: map[string]int{},
	}
}

// run starts three processes of the service and the clients, injects n faults, and checks what became
// of every command.
func (l *load) run(n int, inject func(n int, rng *rand.Rand, js jetstream.JetStream)) {
	t, servers, kms := l.t, l.servers, l.kms
	seed := *faultSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("repeat it with -faultseed %d", seed)
	p := join(t, servers, kms) // answers over NATS alone
	l.processes = []*process{replica(t, servers, kms), replica(t, servers, kms)}
	registerPlain(t, l.processes[0].http)
	l.engine = caller(l.processes[0]).engine(t)
	var giveUp context.CancelFunc
	l.giveUp, giveUp = context.WithCancel(t.Context())
	defer giveUp()
	nc, err := nats.Connect(servers.URL("credstream"), nats.MaxReconnects(-1), nats.PingInterval(time.Second))
	must(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(time.Second))
	must(t, err)
	var clients sync.WaitGroup
	for n := range faultClients {
		clients.Go(func() { l.client(n, rand.New(rand.NewPCG(seed, uint64(n+1)))) })
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	l.mu.Lock()
	l.answered = time.Since(l.begin)
	l.mu.Unlock()
	for i := range n {
		time.Sleep(time.Duration(500+rng.IntN(1500)) * time.Millisecond) // the moment is meant to be any
		inject(i+1, rng, js)
	}
	time.Sleep(time.Second)
	close(l.halt)
	settle := time.AfterFunc(faultSettle, giveUp)
	clients.Wait()
	if !settle.Stop() {
		t.Errorf("a command has no answer %v after the last fault", faultSettle)
	}
	t.Logf("%d commands and looks, %d attempts", len(l.history), l.attempts.Load())
	counts := l.check(p)
	counts.faults, counts.quiet = n, l.quiet
	counts.report(t)
	l.checkRepeats()
	for _, r := range l.processes { // nothing moves any more
		_ = r.kill(syscall.SIGTERM)
	}
	end := logEnd(t, p)
	p.checkViews(t, end)
	p.checkFeed(t, end)
}

// check compares the answers with the log and the vault, and each credential's
// history with its model.
func (l *load) check(p *program) (counts tally) {
	t := l.t
	t.Helper()
	stored := map[string][]events.Record{} // first records of the commits, by command id
	end := logEnd(t, p)
	for rec, err := range p.store.Follow(t.Context(), 0) {
		must(t, err)
		if rec.Index == 0 && rec.Meta.Command != "" {
			stored[rec.Meta.Command] = append(stored[rec.Meta.Command], rec)
		}
		if rec.Seq == end && rec.Last() {
			break
		}
	}
	names, keys := map[string]string{}, map[string]string{}
	last := map[string]uint64{} // by credential: the commit its name or key is of
	var refused int
	history := map[string][]porcupine.Operation{} // by credential
	for _, op := range l.history {
		c, o := op.Input.(change), op.Output.(outcome)
		commits := stored[c.command]
		own := c.route != "credential.resolve" && !strings.HasPrefix(c.route, "flow.")
		switch {
		case o.unknown:
			counts.unknown++
			t.Errorf("%+v was never answered; the log has %d commits of it", c, len(commits))
			continue
		case o.code != "":
			refused++
			if len(commits) != 0 {
				t.Errorf("%+v was refused (%s) and carried out: commit %d", c, o.code, commits[0].Seq)
			}
		case own && len(commits) == 0:
			counts.lost++
			t.Errorf("%+v was answered %+v, and is not in the log", c, o.done)
		case own && len(commits) > 1:
			counts.duplicates++
			t.Errorf("%+v was answered %+v; the log has %d commits of it: %+v", c, o.done, len(commits), commits)
		case own && (commits[0].Seq != o.done.Seq || commits[0].Stream.ID != o.done.ID):
			t.Errorf("%+v was answered %+v; the log has %d commits of it: %+v", c, o.done, len(commits), commits)
		}
		history[c.id] = append(history[c.id], op)
		if !own || o.code != "" {
			continue
		}
		counts.acked++
		if c.route == "credential.create" || c.route == "credential.rename" {
			if at := c.id + " name"; o.done.Seq > last[at] {
				last[at], names[c.id] = o.done.Seq, c.value
			}
		}
		if c.route == "credential.create" || c.route == "credential.replace-keys" {
			if at := c.id + " key"; o.done.Seq > last[at] {
				last[at], keys[c.id] = o.done.Seq, c.value
			}
		}
		if c.route == "credential.delete" {
			last[c.id+" deleted"] = o.done.Seq
		}
	}
	for id := range names {
		want := believed{name: names[id], version: l.versions[id], key: keys[id]}
		if last[id+" deleted"] != 0 {
			want = believed{name: names[id], deleted: true}
		}
		if got, err := p.held(t.Context(), id); err != nil || got != want {
			t.Errorf("credential %s is %+v, %v; acknowledged was %+v", id, got, err, want)
		}
	}
	if len(names) == 0 {
		t.Error("nothing was created: the test shows nothing")
	}
	t.Logf("%d credentials, %d refusals", len(names), refused)
	for id, its := range history {
		if porcupine.CheckOperationsTimeout(model, its, time.Minute) == porcupine.Ok {
			continue
		}
		t.Errorf("credential %s is not as if one command had been carried out after the other:", id)
		for _, op := range its {
			t.Logf("%v to %v: client %d: %+v: %+v", time.Duration(op.Call), time.Duration(op.Return), op.ClientId, op.Input, op.Output)
		}
	}
	return counts
}

// model is credentialModel for porcupine.
var model = porcupine.Model{
	Init: func() any { return credentialModel{} },
	Step: func(state, in, out any) (bool, any) {
		return state.(credentialModel).step(in.(change), out.(outcome))
	},
}

// checkRepeats sends what was carried out once more: each is answered as before.
func (l *load) checkRepeats() {
	l.t.Helper()
	a := caller(l.processes[0])
	for _, op := range l.history {
		c, o := op.Input.(change), op.Output.(outcome)
		if o.code != "" || o.unknown || c.route == "credential.resolve" {
			continue
		}
		sent := c
		if c.route == "credential.create" {
			sent.id = ""
		}
		body, err := json.Marshal(sent.body())
		must(l.t, err)
		var again done
		await(l.t, "the answer to "+c.command, func() (bool, error) {
			code, err := l.overHTTP(a, sent, body, &again)
			if err == nil && slices.Contains(refusals, code) {
				return false, fmt.Errorf("refused: %s", code)
			}
			return err == nil && code == "", nil
		})
		if again != o.done {
			l.t.Errorf("%+v was answered %+v, and again %+v", c, o.done, again)
		}
	}
}

// Each server hangs in turn: writes go on within ten seconds.
func TestOneNodeStops(t *testing.T) {
	if *nodeStops == 0 {
		t.Skip("a measurement: -nodestops 30s")
	}
	servers := bustest.Start(t, bustest.Nodes(3))
	kms := kmsFile(t)
	processes := []*process{replica(t, servers, kms), replica(t, servers, kms), replica(t, servers, kms)}
	registerPlain(t, processes[0].http)
	nc, err := nats.Connect(servers.URL("credstream"), nats.MaxReconnects(-1), nats.PingInterval(time.Second))
	must(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	must(t, err)
	var mu sync.Mutex
	last, most := time.Now(), time.Duration(0) // the last write, and the longest time without one
	wrote := func() {
		mu.Lock()
		defer mu.Unlock()
		most = max(most, time.Since(last))
		last = time.Now()
	}
	longest := func() time.Duration { // since it was asked for last
		wrote()
		mu.Lock()
		defer mu.Unlock()
		was := most
		most = 0
		return was
	}
	running, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for n := range 6 {
		http := &http.Client{Timeout: 2 * time.Second}
		writers.Go(func() {
			for i := 0; running.Err() == nil; i++ {
				a := api{base: processes[i%3].http, key: adminKey, tenant: "default", client: http}
				in := map[string]any{"component": "plain", "name": fmt.Sprint(n, "-", i), "keys": map[string]any{"apiKey": "k"}}
				if a.command("credential.create", fmt.Sprint("w", n, "-", i), in, nil) == nil {
					wrote()
				}
			}
		})
	}
	time.Sleep(3 * time.Second)
	for node := range 3 {
		leader := servers.Leader(js, eventlog.Stream)
		longest()
		servers.Freeze(node)
		time.Sleep(*nodeStops)
		hung := longest()
		servers.Thaw(node)
		time.Sleep(10 * time.Second)
		after := longest()
		t.Logf("n%d hangs for %v, the log's leader is n%d: no write for %v, and when it goes on for %v", node+1, *nodeStops, leader+1, hung, after)
		if max(hung, after) > 10*time.Second {
			t.Error("one server that hangs stops writes for more than ten seconds")
		}
	}
	stop()
	writers.Wait()
}
