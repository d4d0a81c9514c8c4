package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/vault"
)

// adminKey is the administrator's in every test that starts a process.
const adminKey = "cs_testtesttesttesttesttesttesttesttesttest"

// childEnv makes the test binary be the program, with these arguments (JSON).
const childEnv = "CREDSTREAM_TEST_ARGS"

// Main runs the tests, or is the process that one of them has started.
func Main(m *testing.M) {
	if args := os.Getenv(childEnv); args != "" {
		var argv []string
		if err := json.Unmarshal([]byte(args), &argv); err != nil {
			panic(err)
		}
		if n, err := strconv.ParseUint(os.Getenv(filesEnv), 10, 64); err == nil {
			if err := limitFiles(n); err != nil {
				panic(err)
			}
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		code := CommandLine(ctx, argv, os.Getenv, os.Stdin, os.Stdout, os.Stderr)
		stop()
		os.Exit(code)
	}
	if spec := os.Getenv(floodEnv); spec != "" {
		if err := runFlood(spec, os.Stdin, os.Stdout); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// process is a credstream in a process of its own, which can be killed.
type process struct {
	cmd       *exec.Cmd
	http      string // base URL
	nats      string
	out, logs *bytes.Buffer // complete once the process has ended
	readers   sync.WaitGroup
	waited    error
	once      sync.Once
}

// spawn starts the program on a data folder and returns when it is ready.
func spawn(t testing.TB, data string, more ...string) *process {
	t.Helper()
	args := append([]string{
		"serve", "--data", data, "--http", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0",
		"--admin-key", adminKey, "--allow-private-targets", "--log-level", "warn",
	}, more...)
	if url := eventStoreOf(t, data); url != "" {
		args = append(args, "--event-store", url)
	}
	argv, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{out: &bytes.Buffer{}, logs: &bytes.Buffer{}}
	p.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0])
	p.cmd.Env = append(os.Environ(), childEnv+"="+string(argv))
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = p.logs
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.kill(syscall.SIGKILL) })
	ready := make(chan []string, 1)
	p.readers.Go(func() {
		defer close(ready)
		head := make([]byte, 4096)
		for told := false; ; {
			n, err := stdout.Read(head)
			p.out.Write(head[:n])
			if lines := strings.Split(p.out.String(), "\n"); !told && len(lines) > 4 {
				told = true
				ready <- lines
			}
			if err != nil {
				return
			}
		}
	})
	lines, ok := <-ready
	if !ok {
		p.kill(syscall.SIGKILL)
		t.Fatalf("the process ended before it was ready: %v\n%s%s", p.waited, p.out, p.logs)
	}
	p.http = strings.Fields(lines[1])[1]
	p.nats = strings.Fields(lines[2])[1]
	return p
}

// kill sends a signal and waits for the end.
func (p *process) kill(sig syscall.Signal) error {
	p.once.Do(func() {
		_ = p.cmd.Process.Signal(sig) // it may have ended by itself
		p.readers.Wait()
		p.waited = p.cmd.Wait()
	})
	return p.waited
}

// api is a caller over HTTP. A refusal is an apiError.
type api struct {
	base, key, tenant string
	client            *http.Client
}

type apiError struct {
	Status  int
	Code    string `json:"code"`
	Detail  string `json:"detail"`
	Pointer string `json:"pointer"`
}

func (e *apiError) Error() string { return fmt.Sprintf("%d %s: %s", e.Status, e.Code, e.Detail) }

// command sends a command and decodes its answer.
func (a api) command(name, id string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodPost, a.base+"/v1/tenants/"+a.tenant+"/commands/"+name, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if id != "" {
		req.Header.Set("Idempotency-Key", id)
	}
	return a.do(req, out)
}

// query asks with URL parameters ("id=...&min_seq=...").
func (a api) query(name, params string, out any) error {
	req, err := http.NewRequest(http.MethodGet, a.base+"/v1/tenants/"+a.tenant+"/"+name+"?"+params, nil)
	if err != nil {
		return err
	}
	return a.do(req, out)
}

func (a api) do(req *http.Request, out any) error {
	req.Header.Set("Authorization", "Bearer "+a.key)
	client := a.client
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		e := &apiError{Status: resp.StatusCode}
		if err := json.Unmarshal(body, e); err != nil {
			return fmt.Errorf("%d with a body that is no problem: %q", resp.StatusCode, body)
		}
		return e
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(body, out)
}

// done is the answer to a command.
type done struct {
	Seq     uint64 `json:"seq"`
	ID      string `json:"id"`
	Version int    `json:"version"`
	Status  string `json:"status"`
}

// plain is a component that declares no dry request, so the load is the log's.
const plain = `{"title":"Plain","credentials":{"fields":{"apiKey":{"label":"Key","viewClass":"PasswordFieldView","required":true}}}}`

// believed is what the writers know of one credential.
type believed struct {
	name    string
	version int
	key     string
	deleted bool
}

// writers change credentials until the process is gone and remember what was
// acknowledged. A change whose answer never came may or may not have happened.
type writers struct {
	mu      sync.Mutex
	acks    map[string][]ack      // by credential, oldest first; at least one each
	maybe   map[string][]believed // what an unanswered change may have made of it
	acked   int
	n       int
	refused []string // refusals nobody can explain
	unknown int      // credentials with an unanswered change, as check found them
	lost    int      // credentials that were not as acknowledged
}

// ack is an answer that a writer received.
type ack struct {
	is  believed
	seq uint64
	at  time.Time
}

func newWriters() *writers {
	return &writers{acks: map[string][]ack{}, maybe: map[string][]believed{}}
}

// run writes with n goroutines until the server is gone.
func (w *writers) run(base string, n int) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: n}, Timeout: 20 * time.Second}
	defer client.CloseIdleConnections()
	var all sync.WaitGroup
	for range n {
		all.Go(func() { w.write(api{base, adminKey, "default", client}) })
	}
	all.Wait()
}

func (w *writers) next() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n++
	return w.n
}

func (w *writers) write(a api) {
	for {
		n := w.next()
		is := believed{name: fmt.Sprint("credential ", n), version: 1, key: fmt.Sprint("secret-", n, "-1")}
		var d done
		err := a.command("credential.create", fmt.Sprint("create-", n),
			map[string]any{"component": "plain", "name": is.name, "keys": map[string]string{"apiKey": is.key}}, &d)
		if err != nil {
			return // nothing was acknowledged, so nothing is known of it
		}
		w.learn(d, is)
		for step := n % 4; step > 0; step-- {
			was := is
			var name string
			in := map[string]any{"id": d.ID}
			switch step {
			case 3:
				name = "credential.rename"
				is.name += " renamed"
				in["name"] = is.name
			case 2:
				name = "credential.replace-keys"
				is.version++
				is.key = fmt.Sprint("secret-", n, "-", is.version)
				in["keys"] = map[string]string{"apiKey": is.key}
			case 1:
				if n%8 != 1 {
					continue
				}
				name = "credential.delete"
				is = believed{name: is.name, deleted: true}
			}
			w.doubt(d.ID, is)
			if err := a.command(name, fmt.Sprint(name, "-", n), in, &d); err != nil {
				var refused *apiError
				if errors.As(err, &refused) && refused.Status < 500 {
					w.refuse(fmt.Sprintf("%s of %+v was refused: %v", name, was, err))
				}
				return
			}
			w.learn(d, is)
		}
	}
}

func (w *writers) learn(d done, is believed) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acks[d.ID] = append(w.acks[d.ID], ack{is, d.Seq, time.Now()})
	w.acked++
	delete(w.maybe, d.ID)
}

// doubtAfter says that no answer received after the moment counts: an fsync under
// way when the power goes may report success, and a dead machine answers nobody.
func (w *writers) doubtAfter(moment time.Time) {
	for id, acks := range w.acks {
		n := len(acks)
		for n > 0 && acks[n-1].at.After(moment) {
			n--
			w.maybe[id] = append(w.maybe[id], acks[n].is)
			w.acked--
		}
		if w.acks[id] = acks[:n]; n == 0 {
			delete(w.acks, id)
			delete(w.maybe, id)
		}
	}
}

func (w *writers) refuse(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refused = append(w.refused, what)
}

func (w *writers) doubt(id string, is believed) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.maybe[id] = []believed{is}
}

// open starts the program in this process on a folder that nobody serves.
func open(t testing.TB, data string) *program {
	t.Helper()
	cfg := Config{
		Data: data, HTTP: "127.0.0.1:0", NATSListen: "127.0.0.1:0", AdminKey: adminKey, Durability: "group",
		AllowPrivateTargets: true, LogFormat: "text", LogLevel: "warn", EventStore: eventStoreOf(t, data),
	}
	p, err := start(t.Context(), cfg, testWriter{t})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	return p
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(b), "\n"))
	return len(b), nil
}

// check opens the folder and compares all that was acknowledged with what is
// there: state, secrets, views, feed.
func (w *writers) check(t *testing.T, data string) {
	t.Helper()
	for _, what := range w.refused {
		t.Error(what)
	}
	p := open(t, data)
	defer p.close()
	ctx := t.Context()
	end, err := p.store.End(ctx)
	if err != nil {
		t.Fatal(err)
	}
	lost := 0
	w.unknown += len(w.maybe)
	for id, acks := range w.acks {
		last := acks[len(acks)-1]
		if end < last.seq {
			t.Errorf("the log ends at %d; %d was acknowledged", end, last.seq)
		}
		got, err := p.held(ctx, id)
		switch {
		case err != nil:
			t.Errorf("credential %s: %v", id, err)
			lost++
			continue
		case got != last.is && !slices.Contains(w.maybe[id], got):
			t.Errorf("credential %s is %+v; acknowledged was %+v, perhaps changed to %+v", id, got, last.is, w.maybe[id])
			lost++
		}
		// From here on what is there is what was believed.
		w.acks[id] = []ack{{got, last.seq, last.at}}
		delete(w.maybe, id)
	}
	w.lost += lost
	if lost > 0 {
		t.Errorf("%d of %d acknowledged credentials are not as acknowledged", lost, len(w.acks))
	}
	p.checkViews(t, end)
	p.checkFeed(t, end)
}

// held reads one credential from the log and the vault.
func (p *program) held(ctx context.Context, id string) (believed, error) {
	state, err := aggregates.Credential.Fresh(ctx, p.states, aggregates.Credential.Stream("default", id))
	switch {
	case err != nil:
		return believed{}, err
	case !state.Value.Exists:
		return believed{}, errors.New("is lost")
	}
	s := state.Value
	if s.Deleted {
		return believed{name: s.Name, deleted: true}, nil
	}
	secret, err := p.vault.Get(ctx, vault.Ref{Tenant: "default", Category: "credential", Owner: id, SecretID: s.Current().SecretID})
	if err != nil {
		return believed{}, fmt.Errorf("its secret does not open: %w", err)
	}
	var keys struct {
		APIKey string `json:"apiKey"`
	}
	if err := json.Unmarshal(secret.Reveal(), &keys); err != nil {
		return believed{}, err
	}
	return believed{name: s.Name, version: s.Current().Version, key: keys.APIKey}, nil
}

// checkViews compares the views with a rebuild from the log.
func (p *program) checkViews(t *testing.T, end uint64) {
	t.Helper()
	ctx := t.Context()
	// A projector that the servers send nothing is started again.
	within(t, "the read models are at the end of the log", func() bool { return p.proj.Wait(ctx, end) == nil })
	var now, rebuilt bytes.Buffer
	if err := p.views.Dump(ctx, &now); err != nil {
		t.Fatal(err)
	}
	fresh, err := projections.OpenViews(filepath.Join(t.TempDir(), "views.db"), projections.ViewsOptions{Logger: p.log})
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	if err := fresh.Rebuild(ctx, p.store, func(uint64, uint64) {}); err != nil {
		t.Fatal(err)
	}
	if err := fresh.Dump(ctx, &rebuilt); err != nil {
		t.Fatal(err)
	}
	if now.String() != rebuilt.String() {
		t.Errorf("the views are not what a rebuild makes (-rebuilt +views):\n%.4000s", cmp.Diff(
			strings.Split(rebuilt.String(), "\n"), strings.Split(now.String(), "\n")))
	}
}

// checkFeed lets the feed and the audit stream catch up and compares them, message by
// message, with the public form of the log.
func (p *program) checkFeed(t *testing.T, end uint64) {
	t.Helper()
	p.checkStream(t, end, streams.FeedStream, func(m projections.Message) string { return m.Subject })
	p.checkStream(t, end, streams.AuditStream, func(m projections.Message) string { return m.AuditSubject })
}

func (p *program) checkStream(t *testing.T, end uint64, name string, subject func(projections.Message) string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var want []string
	for rec, err := range p.store.Follow(ctx, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if m, public := projections.Public(rec); public && subject(m) != "" {
			want = append(want, subject(m)+" "+m.ID+" "+m.Type+" "+string(m.Data))
		}
		if rec.Seq == end && rec.Last() {
			break
		}
	}
	conn, err := p.nats.Conn("test")
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := js.OrderedConsumer(ctx, name, jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer messages.Stop()
	for i, w := range want {
		msg, err := messages.Next(jetstream.NextMaxWait(20 * time.Second))
		if err != nil {
			t.Fatalf("%s holds %d of %d events: %v; the writers in this process: feed at %d, audit stream at %d of the log, which ends at %d; not ready: %q",
				name, i, len(want), err, p.feed.Position(), p.audit.Position(), end, p.notReady())
		}
		if got := msg.Subject() + " " + msg.Headers().Get("ce-id") + " " + msg.Headers().Get("ce-type") + " " + string(msg.Data()); got != w {
			t.Fatalf("message %d of %s is\n%s\nwant\n%s", i, name, got, w)
		}
	}
	stream, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != uint64(len(want)) {
		t.Errorf("%s holds %d messages, want %d", name, n, len(want))
	}
}

// registerPlain registers the component the writers use.
func registerPlain(t testing.TB, base string) {
	t.Helper()
	a := api{base: base, key: adminKey, tenant: "default"}
	err := a.command("component.register", "", map[string]any{"id": "plain", "descriptor": json.RawMessage(plain)}, nil)
	var refused *apiError
	if err != nil && (!errors.As(err, &refused) || refused.Code != aggregates.ErrComponentIDTaken.Code) {
		t.Fatal(err)
	}
}
