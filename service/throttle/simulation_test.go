package throttle_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/go-json-experiment/json"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/events/memory"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/service/stage"
	"github.com/credstream/credstream/service/throttle"
)

var (
	simSeeds = flag.Int("seeds", 25, "number of worlds that TestSimulation tries")
	simSeed  = flag.Uint64("seed", 0, "the first of them; 0: any")
)

// The size of a simulated world.
const (
	simReplicas = 3
	simClients  = 4
	simCommands = 10 // of each client
	simPolicies = 2
	simTenant   = "acme"
	simPatience = 3 * time.Second // of a client for one answer
	simRounds   = 400             // attempts at one command, after which a client despairs
	simTrouble  = time.Minute     // how long processes are killed and cut off
)

// world is the log and the claims that several processes of the service share, and the network
// between: it loses, delays and cuts. Kernel, throttle policies, read models and projector are the
// real ones; the log is the one in memory, the claims a model. Time is virtual.
type world struct {
	t       *testing.T
	log     *memory.Store
	claims  *sharedClaims
	keyring *seal.Keyring
	dir     string
	seed    uint64
	begin   time.Time
	calm    atomic.Bool // the network is reliable again

	mu       sync.Mutex
	replicas []*replica
	started  int
	attempts int
	history  []porcupine.Operation
}

// intN chooses for somebody at this moment of virtual time: in whichever order goroutines of one
// moment run, the choices of a seed are the same.
func (w *world) intN(n int, who string) int {
	h := sha256.Sum256(fmt.Append(nil, w.seed, time.Since(w.begin), who))
	return int(binary.BigEndian.Uint64(h[:]) % uint64(n))
}

// sleep waits for a part of most.
func (w *world) sleep(most time.Duration, who string) {
	time.Sleep(time.Duration(w.intN(int(most), who)))
}

// replica is one process of the service.
type replica struct {
	w      *world
	name   string
	kernel *service.Kernel
	views  *projections.Views
	proj   *projections.Projector
	file   string
	dead   atomic.Bool
	cut    atomic.Int64 // until when it reaches nothing, in nanoseconds since 1970
	stop   context.CancelFunc
	ended  chan struct{}
}

func (w *world) start(file string) *replica {
	w.mu.Lock()
	w.started++
	name := fmt.Sprint("replica ", w.started)
	if file == "" {
		file = filepath.Join(w.dir, fmt.Sprint("views-", w.started, ".db"))
	}
	w.mu.Unlock()
	t, log := w.t, slog.New(slog.DiscardHandler)
	r := &replica{w: w, name: name, file: file, ended: make(chan struct{})}
	states := stage.Must(aggregates.NewLog(&link{w.log, r}, 100))(t)
	r.views = stage.Must(projections.OpenViews(file, projections.ViewsOptions{Readers: 1, Logger: log}))(t)
	r.proj = projections.NewProjector(&link{w.log, r}, r.views, log)
	r.kernel = stage.Must(service.New(service.Config{
		Log: states, Views: r.views, Projector: r.proj, Keyring: w.keyring, Logger: log, Claims: &claimsLink{w.claims, r},
	}))(t)
	policies := stage.Must(throttle.New(throttle.Deps{Kernel: r.kernel, Log: states, Views: r.views, Logger: log}))(t)
	r.kernel.Open(open{}, policies)
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go func() {
		defer close(r.ended)
		_ = r.proj.Run(ctx) // of a dead process it may fail
	}()
	return r
}

// die ends the process like a SIGKILL: none of its goroutines reaches anything any more.
func (r *replica) die() {
	r.dead.Store(true)
	r.close()
}

func (r *replica) close() {
	r.stop()
	<-r.ended
	r.kernel.Close()
	_ = r.views.Close() // a call of a dead process may be using them
}

// travel is one way over the network. It ends the goroutines of a dead process.
func (r *replica) travel(ctx context.Context, what string) error {
	if r.dead.Load() {
		runtime.Goexit()
	}
	delay := time.Duration(1)
	if !r.w.calm.Load() {
		delay = time.Duration(r.w.intN(int(20*time.Millisecond), r.name+what))
	}
	lost := time.Now().UnixNano() < r.cut.Load()
	if lost {
		delay = time.Second
	}
	select {
	case <-time.After(delay):
	case <-ctx.Done():
	}
	switch {
	case r.dead.Load():
		runtime.Goexit()
	case ctx.Err() != nil:
		return errors.Join(fault.ErrUnavailable, ctx.Err())
	case lost:
		return fault.ErrUnavailable
	}
	return nil
}

// link is the log as a process reaches it.
type link struct {
	*memory.Store
	r *replica
}

var errDead = errors.New("the process is dead")

var errLost = fmt.Errorf("the answer is lost: %w", events.ErrUnknownOutcome)

func (l *link) Stage(ctx context.Context, stream events.StreamID, expected uint64, meta events.Meta, evs ...events.Event) (uint64, error) {
	what := "stage " + stream.String() + meta.Command
	if err := l.r.travel(ctx, what); err != nil {
		return 0, err
	}
	fate := 100
	if !l.r.w.calm.Load() {
		fate = l.r.w.intN(20, l.r.name+what+"fate")
	}
	settled := func(stored bool) error {
		return &events.UnsettledError{Err: errLost, Settle: func(ctx context.Context) (bool, error) {
			return stored, l.r.travel(ctx, what)
		}}
	}
	switch fate {
	case 0: // the request is lost
		return 0, settled(false)
	case 1: // its answer is
		_, err := l.Store.Stage(ctx, stream, expected, meta, evs...)
		return 0, settled(err == nil)
	case 2: // it arrives when nobody waits for it any more
		after, arrived, stored := time.Duration(l.r.w.intN(int(20*time.Second), l.r.name+what+"late")), make(chan struct{}), false
		go func() {
			time.Sleep(after)
			_, err := l.Store.Stage(context.WithoutCancel(ctx), stream, expected, meta, evs...)
			stored = err == nil
			close(arrived)
		}()
		return 0, &events.UnsettledError{Err: errLost, Settle: func(ctx context.Context) (bool, error) {
			select {
			case <-arrived:
				return stored, l.r.travel(ctx, what)
			case <-ctx.Done():
				return false, ctx.Err()
			}
		}}
	}
	seq, err := l.Store.Stage(ctx, stream, expected, meta, evs...)
	if err == nil && l.r.travel(ctx, what) != nil {
		return 0, settled(true)
	}
	return seq, err
}

func (l *link) Append(ctx context.Context, stream events.StreamID, expected uint64, meta events.Meta, evs ...events.Event) (uint64, error) {
	return l.Stage(ctx, stream, expected, meta, evs...)
}

func (l *link) Last(ctx context.Context, stream events.StreamID) (uint64, error) {
	if err := l.r.travel(ctx, "last"); err != nil {
		return 0, err
	}
	return l.Store.Last(ctx, stream)
}

func (l *link) End(ctx context.Context) (uint64, error) {
	if err := l.r.travel(ctx, "end"); err != nil {
		return 0, err
	}
	return l.Store.End(ctx)
}

func (l *link) Commit(ctx context.Context, seq uint64) ([]events.Record, error) {
	if err := l.r.travel(ctx, "commit"); err != nil {
		return nil, err
	}
	return l.Store.Commit(ctx, seq)
}

func (l *link) WaitDurable(ctx context.Context, seq uint64) error {
	if err := l.r.travel(ctx, "waitdurable"); err != nil {
		return err
	}
	return l.Store.WaitDurable(ctx, seq)
}

func (l *link) Stream(ctx context.Context, stream events.StreamID, after uint64) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		if err := l.r.travel(ctx, "stream"); err != nil {
			yield(events.Record{}, err)
			return
		}
		l.Store.Stream(ctx, stream, after)(yield)
	}
}

// Follow survives every cut, as that of the real stores.
func (l *link) Follow(ctx context.Context, after uint64) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		for rec, err := range l.Store.Follow(ctx, after) {
			for ctx.Err() == nil && l.r.travel(ctx, "follow") != nil {
			}
			if ctx.Err() != nil || !yield(rec, err) {
				return
			}
		}
	}
}

// sharedClaims are the claims of command ids of all processes.
type sharedClaims struct {
	mu sync.Mutex
	by map[[sha256.Size]byte]*claim
}

type claim struct {
	request string
	open    map[string]bool
}

// of returns the claim of a command id; mu must be held.
func (c *sharedClaims) of(key [sha256.Size]byte) *claim {
	is := c.by[key]
	if is == nil {
		return nil
	}
	maps.DeleteFunc(is.open, func(attempt string, _ bool) bool { return service.AttemptEnded(attempt, time.Now()) })
	if len(is.open) == 0 {
		delete(c.by, key)
		return nil
	}
	return is
}

// claimsLink is how a process reaches them: any answer may be lost.
type claimsLink struct {
	all *sharedClaims
	r   *replica
}

func (c *claimsLink) Begin(ctx context.Context, key [sha256.Size]byte, request, attempt string) (claimed string, others bool, err error) {
	if err := c.r.travel(ctx, fmt.Sprintf("begin %x", key[:4])); err != nil {
		return "", false, err
	}
	c.all.mu.Lock()
	is := c.all.of(key)
	if is == nil {
		is = &claim{request, map[string]bool{}}
		c.all.by[key] = is
	}
	claimed = is.request
	if claimed == request {
		others = len(is.open) > 0
		is.open[attempt] = true
	}
	c.all.mu.Unlock()
	return claimed, others, c.r.travel(ctx, fmt.Sprintf("begin %x", key[:4]))
}

func (c *claimsLink) Others(ctx context.Context, key [sha256.Size]byte, attempt string) (others bool, err error) {
	if err := c.r.travel(ctx, fmt.Sprintf("others %x", key[:4])); err != nil {
		return false, err
	}
	c.all.mu.Lock()
	if is := c.all.of(key); is != nil {
		others = len(is.open) > 1 || len(is.open) == 1 && !is.open[attempt]
	}
	c.all.mu.Unlock()
	return others, c.r.travel(ctx, fmt.Sprintf("others %x", key[:4]))
}

func (c *claimsLink) Refuse(ctx context.Context, key [sha256.Size]byte, attempt string) (others bool, err error) {
	if err := c.r.travel(ctx, fmt.Sprintf("refuse %x", key[:4])); err != nil {
		return false, err
	}
	c.all.mu.Lock()
	if is := c.all.of(key); is != nil {
		delete(is.open, attempt)
		if others = len(is.open) > 0; !others {
			delete(c.all.by, key)
		}
	}
	c.all.mu.Unlock()
	return others, c.r.travel(ctx, fmt.Sprintf("refuse %x", key[:4]))
}

// Complete does nothing, as that of package kv.
func (c *claimsLink) Complete([sha256.Size]byte, string) {}

// open admits everybody.
type open struct{}

func (open) Admit(context.Context, *service.Call, permission.Permission, service.Kind) error {
	return nil
}
func (open) Charge(context.Context, *service.Call, service.Kind) error    { return nil }
func (open) CheckCurrent(context.Context, service.Principal) error        { return nil }
func (open) Denied(context.Context, *service.Call, permission.Permission) {}
func (open) Knows(string) bool                                            { return true }

// simChange is a command of a client, and simAnswer what became of it.
type simChange struct {
	route, command, policy string
	tokens                 int
}

type simAnswer struct {
	code string // of a refusal
	seq  uint64
}

func (c simChange) body() []byte {
	in := map[string]any{"id": c.policy}
	switch c.route {
	case "throttle_policy.define":
		in["tokens"], in["per"] = c.tokens, "minute"
	case "throttle_policy.change":
		in["tokens"] = c.tokens
	}
	b, err := json.Marshal(in)
	if err != nil {
		panic(err)
	}
	return b
}

// ask sends a command once. Without an answer, anything may have become of it.
func (w *world) ask(c simChange) (a simAnswer, answered bool, err error) {
	w.mu.Lock()
	r := w.replicas[w.intN(len(w.replicas), c.command)]
	w.attempts++
	w.mu.Unlock()
	type result struct {
		done any
		err  error
	}
	results := make(chan result, 1)
	ctx, cancel := context.WithTimeout(context.Background(), simPatience)
	defer cancel() // the client hangs up
	go func() {
		done, err := r.kernel.Serve(ctx, service.Call{
			Tenant: simTenant, Via: "http", CommandID: c.command,
			Principal: service.Principal{Actor: events.Actor{Kind: "key", ID: "k"}, Tenants: []string{simTenant}, Role: permission.Administrator},
		}, c.route, c.body())
		results <- result{done, err}
	}()
	select {
	case got := <-results:
		switch f := (*fault.Error)(nil); {
		case r.dead.Load():
			return a, false, errDead
		case got.err == nil:
			return simAnswer{seq: got.done.(service.Done).Seq}, true, nil
		case errors.As(got.err, &f) && slices.Contains([]string{"throttle_policy_exists", "throttle_policy_not_found"}, f.Code):
			return simAnswer{code: f.Code}, true, nil
		case errors.As(got.err, &f) && f.Code == service.ErrCommandIDReused.Code:
			w.t.Errorf("%+v: %v", c, got.err)
		}
		return a, false, got.err
	case <-ctx.Done():
		return a, false, ctx.Err()
	}
}

// insist sends a command until it is answered.
func (w *world) insist(c simChange) (a simAnswer, answered bool) {
	var last error
	for range simRounds {
		if a, answered, last = w.ask(c); answered {
			return a, true
		}
		w.sleep(10*time.Second, c.command)
	}
	w.t.Errorf("%+v is never answered: %v", c, last)
	return a, false
}

func (w *world) client(n int) {
	me := fmt.Sprint("client ", n)
	for i := range simCommands {
		w.sleep(2*time.Second, me)
		c := simChange{
			route:   []string{"throttle_policy.define", "throttle_policy.change", "throttle_policy.change", "throttle_policy.delete"}[w.intN(4, me)],
			command: fmt.Sprintf("c%d-%d", n, i), policy: fmt.Sprint("p", w.intN(simPolicies, me+"policy")), tokens: 1 + w.intN(3, me+"tokens"),
		}
		call := time.Now()
		a, answered := w.insist(c)
		if !answered {
			return
		}
		w.mu.Lock()
		w.history = append(w.history, porcupine.Operation{ClientId: n, Input: c, Call: call.UnixNano(), Output: a, Return: time.Now().UnixNano()})
		w.mu.Unlock()
	}
}

// disturb kills and cuts off processes for a while, or until done is closed.
func (w *world) disturb(done <-chan struct{}) {
	for begun := time.Now(); time.Since(begun) < simTrouble; {
		select {
		case <-done:
			return
		case <-time.After(time.Duration(w.intN(int(4*time.Second), "disturb"))):
		}
		i := w.intN(simReplicas, "disturb")
		w.mu.Lock()
		r := w.replicas[i]
		w.mu.Unlock()
		if w.intN(2, "disturb how") == 0 {
			r.cut.Store(time.Now().Add(time.Duration(w.intN(int(15*time.Second), "disturb"))).UnixNano())
			continue
		}
		r.die()
		file := ""
		if w.intN(2, "disturb disk") == 0 { // its disk is still there
			file = r.file
		}
		next := w.start(file)
		w.mu.Lock()
		w.replicas[i] = next
		w.mu.Unlock()
	}
}

// policyModel is a policy for porcupine: its tokens, 0 while there is none.
var policyModel = porcupine.Model{
	Init: func() any { return 0 },
	Step: func(state, in, out any) (bool, any) {
		tokens, c, a := state.(int), in.(simChange), out.(simAnswer)
		switch {
		case c.route == "look":
			return c.tokens == tokens, tokens
		case c.route == "throttle_policy.define" && tokens != 0:
			return a.code == "throttle_policy_exists", tokens
		case c.route != "throttle_policy.define" && tokens == 0:
			return a.code == "throttle_policy_not_found", tokens
		case c.route == "throttle_policy.delete":
			return a.code == "", 0
		}
		return a.code == "", c.tokens
	},
}

// check compares the answers with the log, and each policy's history with the model.
func (w *world) check() {
	t := w.t
	stored := map[string][]events.Record{} // by command id
	recorded := map[string]uint64{}        // the first record of its outcome
	end := stage.Must(w.log.End(t.Context()))(t)
	for seq := uint64(1); seq <= end; seq++ {
		recs := stage.Must(w.log.Commit(t.Context(), seq))(t)
		if recs[0].Stream.Category == aggregates.ThrottlePolicy.Category {
			stored[recs[0].Meta.Command] = append(stored[recs[0].Meta.Command], recs[0])
		} else if recorded[recs[0].Meta.Command] == 0 {
			recorded[recs[0].Meta.Command] = seq
		}
	}
	histories := map[string][]porcupine.Operation{}
	for _, op := range w.history {
		c, a := op.Input.(simChange), op.Output.(simAnswer)
		histories[c.policy] = append(histories[c.policy], op)
		commits := stored[c.command]
		noop := c.route == "throttle_policy.change" && a.code == "" && len(commits) == 0
		switch {
		case a.code != "" && len(commits) != 0:
			t.Errorf("%+v was refused (%s) and carried out: commit %d", c, a.code, commits[0].Seq)
		case a.code == "" && !noop && len(commits) != 1:
			t.Errorf("%+v was answered %+v; the log has %d commits of it", c, a, len(commits))
		case a.code == "" && !noop && commits[0].Seq != a.seq && (recorded[c.command] == 0 || recorded[c.command] > commits[0].Seq):
			t.Errorf("%+v was answered %+v; its commit is %d", c, a, commits[0].Seq)
		}
	}
	for policy := range histories {
		now := stage.Must(aggregates.ThrottlePolicy.Fresh(t.Context(), stage.Must(aggregates.NewLog(w.log, 10))(t), aggregates.ThrottlePolicy.Stream(simTenant, policy)))(t)
		histories[policy] = append(histories[policy], porcupine.Operation{
			ClientId: simClients, Input: simChange{route: "look", tokens: int(now.Value.Settings.Tokens)}, Output: simAnswer{},
			Call: time.Now().UnixNano(), Return: time.Now().UnixNano(),
		})
	}
	for policy, its := range histories {
		if porcupine.CheckOperationsTimeout(policyModel, its, 0) != porcupine.Ok {
			t.Errorf("policy %s is not as if one command had been carried out after the other:", policy)
			for _, op := range its {
				t.Logf("%v to %v: client %d: %+v: %+v", time.Duration(op.Call%1e12), time.Duration(op.Return%1e12), op.ClientId, op.Input, op.Output)
			}
		}
	}
	var first []projections.ThrottlePolicy
	for i, r := range w.replicas {
		stage.OK(t, r.proj.Wait(t.Context(), end))
		rows, _, _, err := r.views.ThrottlePolicies(t.Context(), simTenant, "", 100)
		stage.OK(t, err)
		if i == 0 {
			first = rows
		} else if !reflect.DeepEqual(rows, first) {
			t.Errorf("replica %d shows %+v, replica 0 %+v", i, rows, first)
		}
	}
	for _, op := range w.history {
		c, a := op.Input.(simChange), op.Output.(simAnswer)
		if again, answered := w.insist(c); answered && a.code == "" && again != a {
			t.Errorf("%+v was answered %+v, and again %+v", c, a, again)
		}
	}
}

// memKeysets are the keysets of all processes.
type memKeysets struct {
	seal.KeysetStore // what no test here needs
	wrapped          []byte
}

func (m *memKeysets) Keyset(context.Context, string) ([]byte, uint64, error) {
	if m.wrapped == nil {
		return nil, 0, seal.ErrNoKeyset
	}
	return m.wrapped, 0, nil
}

func (m *memKeysets) NewestKeyset(ctx context.Context, tenant string) ([]byte, uint64, error) {
	return m.Keyset(ctx, tenant)
}

func (m *memKeysets) CreateKeyset(_ context.Context, _ string, wrapped []byte) error {
	m.wrapped = wrapped
	return nil
}

// Three processes serve one log, over a network that loses requests and answers, delivers them late
// and cuts processes off, while processes are killed and started: each command is carried out once or
// refused, whoever was asked and however often, and each policy behaves as if one command had been
// carried out after the other. It is tried in many worlds, each with the choices of its seed.
func TestSimulation(t *testing.T) {
	kms := keyFile(t)
	keysets := &memKeysets{}
	stage.OK(t, seal.NewKeyring(kms, keysets).Ensure(t.Context(), simTenant))
	seed := *simSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	for n := range *simSeeds {
		simulate(t, time.Duration(n)*worldTime, seed+uint64(n), kms, keysets)
		if t.Failed() {
			t.Fatalf("repeat it with -seed %d -seeds 1", seed+uint64(n))
		}
	}
}

// worldTime is longer than a world lasts.
const worldTime = 24 * time.Hour

func simulate(t *testing.T, after time.Duration, seed uint64, kms tink.AEAD, keysets *memKeysets) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(after) // ids hold their time and never go back, so no world is before another one
		w := &world{
			t: t, log: memory.New(events.All()), claims: &sharedClaims{by: map[[sha256.Size]byte]*claim{}}, dir: dir,
			keyring: seal.NewKeyring(kms, keysets), seed: seed, begin: time.Now(),
		}
		for range simReplicas {
			w.replicas = append(w.replicas, w.start(""))
		}
		done := make(chan struct{})
		var clients, troubles sync.WaitGroup
		troubles.Go(func() { w.disturb(done) })
		for n := range simClients {
			clients.Go(func() { w.client(n) })
		}
		clients.Wait()
		close(done)
		troubles.Wait()
		w.calm.Store(true)
		time.Sleep(service.ClaimTime) // what is under way arrives
		w.check()
		for _, r := range w.replicas {
			r.close()
		}
		t.Logf("seed %d: %d commands, %d attempts, %d kills, %d commits, %v of virtual time", seed, len(w.history), w.attempts,
			w.started-simReplicas, stage.Must(w.log.End(t.Context()))(t), time.Since(w.begin))
	})
}

// keyFile makes a KMS key.
func keyFile(t *testing.T) tink.AEAD {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kms.key")
	stage.OK(t, seal.CreateKeyFile(path))
	return stage.Must(seal.OpenKMS(t.Context(), seal.KMS{URL: "file://" + path}))(t)
}
