package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/events"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/vault"
)

// childArg as first argument makes the program a child of the benchmark: yardsticks and checkers
// run in separate processes.
const childArg = "child"

// runChild is the child's main: args are its kind and parameters.
func runChild(ctx context.Context, args []string, stdout io.Writer) error {
	switch kind, args := args[0], args[1:]; kind {
	case "hello":
		return serveChild(ctx, stdout, func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = []string{"text/plain"}
			_, _ = io.WriteString(w, "hello, world\n")
		})
	case "probe": // the API for dry requests
		return serveChild(ctx, stdout, func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasPrefix(r.Header.Get("Api-Key"), secretPrefix) {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			_, _ = io.WriteString(w, `{"ok":true}`)
		})
	case "publish":
		return publishChild(ctx, stdout, args)
	case "reopen":
		return reopenChild(ctx, stdout, args)
	case "uses":
		return usesChild(ctx, stdout, args)
	case "authorize":
		return authorizeChild(ctx, stdout, args)
	case "accesses":
		return accessesChild(ctx, stdout, args)
	case "nats":
		return natsChild(ctx, stdout, args)
	case "by-hand":
		return byHandChild(ctx, stdout, args)
	default:
		return fmt.Errorf("unknown kind of child %q", kind)
	}
}

// serveChild answers HTTP until its standard input or ctx ends. It prints its address.
func serveChild(ctx context.Context, stdout io.Writer, h http.HandlerFunc) error {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // lives as long as the process
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	fmt.Fprintln(stdout, l.Addr())
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// published is the outcome of a publish child.
type published struct {
	Rate     float64
	P50, P99 time.Duration
}

// publishChild measures raw JetStream publishing: one embedded server, a stream
// with file storage, publishers that each wait for the acknowledgement of 400
// bytes. args: folder, "always" or "never" (fsync before the acknowledgement),
// "pipe" or "tcp", publishers, time.
func publishChild(ctx context.Context, stdout io.Writer, args []string) error {
	dir, always, pipe := args[0], args[1] == "always", args[2] == "pipe"
	n, err := strconv.Atoi(args[3])
	if err != nil {
		return fmt.Errorf("publishers: %w", err)
	}
	d, err := time.ParseDuration(args[4])
	if err != nil {
		return fmt.Errorf("time: %w", err)
	}
	srv, err := server.NewServer(&server.Options{
		ServerName: "bench", JetStream: true, StoreDir: dir, SyncAlways: always, NoLog: true, NoSigs: true,
		Host: "127.0.0.1", Port: server.RANDOM_PORT,
	})
	if err != nil {
		return fmt.Errorf("make the server: %w", err)
	}
	srv.Start()
	defer func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	}()
	if !srv.ReadyForConnections(10 * time.Second) {
		return errors.New("the server does not start")
	}
	var options []nats.Option
	if pipe {
		options = append(options, nats.InProcessServer(srv))
	}
	nc, err := nats.Connect(srv.ClientURL(), options...)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("open JetStream: %w", err)
	}
	_, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: "BENCH", Subjects: []string{"bench.>"}, Storage: jetstream.FileStorage})
	if err != nil {
		return fmt.Errorf("create the stream: %w", err)
	}
	body := make([]byte, messageSize)
	var next atomic.Uint64
	l, err := closed(ctx, n, size{warm: d / 4, time: d}, func(int) (caller, error) {
		return caller{call: func() error {
			_, err := js.Publish(ctx, "bench."+strconv.FormatUint(next.Add(1), 10), body)
			return err
		}}, nil
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(published{l.rate, l.quantile(.5), l.quantile(.99)})
}

// reopened is the outcome of a reopen child.
type reopened struct {
	Start    time.Duration // until the log was readable
	Events   int           // of the log
	Replay   float64       // messages per second of an ordered consumer that only counts
	Opened   int           // secrets that were decrypted and are correct
	Checked  int           // acknowledged credentials that were looked up
	Problems []string      // the first few
	Failed   int
}

// reopenChild opens a data folder without a running service, reads the log, and decrypts the secret
// of every acknowledged credential. args: folder, file of the acknowledged credentials, with a line
// "<tenant> <n> <id>" for each.
func reopenChild(ctx context.Context, stdout io.Writer, args []string) error {
	began := time.Now()
	store, conn, stop, err := openStore(ctx, args[0])
	if err != nil {
		return err
	}
	defer stop()
	end, err := store.End(ctx)
	if err != nil {
		return err
	}
	out := reopened{Start: time.Since(began)}
	js, err := jetstream.New(conn)
	if err != nil {
		return fmt.Errorf("open JetStream: %w", err)
	}
	var rates []float64
	for range 3 {
		rate, err := rawReplay(ctx, js, end)
		if err != nil {
			return err
		}
		rates = append(rates, rate)
	}
	out.Replay = median(rates)
	secrets, err := openVault(ctx, args[0], js, conn)
	if err != nil {
		return err
	}
	logged := map[string]events.CredentialCreated{} // by tenant and id
	for rec, err := range store.Follow(ctx, 0) {
		if err != nil {
			return err
		}
		out.Events++
		if e, ok := rec.Event.(events.CredentialCreated); ok {
			logged[rec.Meta.Tenant+" "+rec.Stream.ID] = e
		}
		if rec.Seq == end && rec.Last() {
			break
		}
	}
	if err := out.check(ctx, args[1], logged, secrets); err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(out)
}

// openStore opens the log in a data folder without a running service, for reading.
func openStore(ctx context.Context, dir string) (store *eventlog.Store, conn *nats.Conn, stop func(), err error) {
	node, err := natsserver.StartNode(ctx, natsserver.NodeConfig{Dir: dir})
	if err != nil {
		return nil, nil, nil, err
	}
	end := func() { _ = node.Shutdown(context.WithoutCancel(ctx)) }
	if conn, err = node.Conn("reopen"); err == nil {
		store, err = eventlog.Open(ctx, eventlog.Config{Conn: conn, Registry: events.All()})
	}
	if err != nil {
		end()
		return nil, nil, nil, err
	}
	return store, conn, func() { store.Close(); end() }, nil
}

// usesLoaded is the outcome of a uses child.
type usesLoaded struct {
	Events      int64         // of flows in the log
	Used        int64         // uses by them
	Flows       int           // that use the credential
	First, Load time.Duration // of its stream with an empty state cache: the first load, and the median
	Folded      time.Duration // the same without a snapshot
	Fold        float64       // seconds to fold one more event
	FoldFew     float64       // the same for a credential with ten flows
}

// usesChild opens a data folder without a running service, counts the flow events in the log, and
// loads a credential that many flows use. args: folder, tenant, id.
func usesChild(ctx context.Context, stdout io.Writer, args []string) error {
	store, _, stop, err := openStore(ctx, args[0])
	if err != nil {
		return err
	}
	defer stop()
	stream := aggregates.Credential.Stream(args[1], args[2])
	var out usesLoaded
	load := func(store events.Store) (aggregates.CredentialState, time.Duration, error) {
		cache, err := aggregates.NewLog(store, 1)
		if err != nil {
			return aggregates.CredentialState{}, 0, err
		}
		began := time.Now()
		state, err := aggregates.Credential.Load(ctx, cache, stream)
		return state.Value, time.Since(began), err
	}
	state, first, err := load(store)
	if err != nil {
		return err
	}
	if !state.Uses.Blocked() {
		return errors.New("no flow holds the credential")
	}
	_, out.Flows = state.Uses.Blockers(1)
	out.First = first
	times := func(n int, store events.Store) (time.Duration, error) {
		var took []time.Duration
		for range n {
			again, d, err := load(store)
			if err != nil {
				return 0, err
			}
			if !again.Uses.Equal(state.Uses) {
				return 0, errors.New("another load gives other uses")
			}
			took = append(took, d)
		}
		return summed([][]time.Duration{took}, time.Second).quantile(.5), nil
	}
	if out.Load, err = times(51, store); err != nil {
		return err
	}
	if out.Folded, err = times(3, noSnapshots{store}); err != nil {
		return err
	}
	end, err := store.End(ctx)
	if err != nil {
		return err
	}
	for rec, err := range store.Follow(ctx, 0) {
		if err != nil {
			return err
		}
		switch e := rec.Event.(type) {
		case events.FlowObserved:
			out.Events++
		case events.CredentialUsed:
			if e.Named {
				out.Used++
			}
		}
		if rec.Seq == end && rec.Last() {
			break
		}
	}
	few := aggregates.CredentialState{}
	for i := range uint64(10) {
		few = aggregates.Credential.Evolve(few, usedBy(flowName(i), 1))
	}
	out.Fold, out.FoldFew = foldTime(state), foldTime(few)
	return json.NewEncoder(stdout).Encode(out)
}

// noSnapshots is a store without snapshots.
type noSnapshots struct{ events.Store }

func (noSnapshots) Snapshot(context.Context, events.StreamID, int) (events.Snapshot, error) {
	return events.Snapshot{}, nil
}

func usedBy(flow string, revision uint64) events.CredentialUsed {
	return events.CredentialUsed{Flow: flow, Revision: revision, Named: true, Active: true}
}

// foldTime is the time in seconds of folding one more use by a flow that uses it already.
func foldTime(state aggregates.CredentialState) float64 {
	const folds = 100_000
	flows, _ := state.Uses.Blockers(state.Uses.Len())
	began := time.Now()
	for i := range folds {
		state = aggregates.Credential.Evolve(state, usedBy(flows[i%len(flows)], uint64(i+2)))
	}
	return time.Since(began).Seconds() / folds
}

func rawReplay(ctx context.Context, js jetstream.JetStream, end uint64) (float64, error) {
	consumer, err := js.OrderedConsumer(ctx, eventlog.Stream, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy})
	if err != nil {
		return 0, fmt.Errorf("make a consumer: %w", err)
	}
	began := time.Now()
	seen, done := uint64(0), make(chan struct{})
	reading, err := consumer.Consume(func(jetstream.Msg) {
		if seen++; seen == end {
			close(done)
		}
	}, jetstream.PullMaxMessages(5000))
	if err != nil {
		return 0, fmt.Errorf("consume: %w", err)
	}
	defer reading.Stop()
	select {
	case <-done:
		return float64(end) / time.Since(began).Seconds(), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func openVault(ctx context.Context, dir string, js jetstream.JetStream, conn *nats.Conn) (*vault.Vault, error) {
	path, err := filepath.Abs(filepath.Join(dir, "kms.key"))
	if err != nil {
		return nil, fmt.Errorf("find the key file: %w", err)
	}
	kms, err := seal.OpenKMS(ctx, seal.KMS{URL: "file://" + path})
	if err != nil {
		return nil, err
	}
	kv, err := js.KeyValue(ctx, "CREDSTREAM_KEYS")
	if err != nil {
		return nil, fmt.Errorf("open the keysets: %w", err)
	}
	return vault.New(js, seal.NewKeyring(kms, seal.NewKVKeysets(js, kv, nil)), nil), nil
}

func (r *reopened) check(ctx context.Context, file string, logged map[string]events.CredentialCreated, secrets *vault.Vault) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("open the list of the acknowledged: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	var mu sync.Mutex
	parts, ctx := errgroup.WithContext(ctx)
	parts.SetLimit(32)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		words := strings.Fields(lines.Text())
		parts.Go(func() error {
			problem := checkOne(ctx, words, logged, secrets)
			mu.Lock()
			defer mu.Unlock()
			r.Checked++
			if problem == "" {
				r.Opened++
				return nil
			}
			if r.Failed++; len(r.Problems) < 5 {
				r.Problems = append(r.Problems, strings.Join(words, " ")+": "+problem)
			}
			return nil
		})
	}
	return parts.Wait()
}

func checkOne(ctx context.Context, words []string, logged map[string]events.CredentialCreated, secrets *vault.Vault) string {
	if len(words) != 3 {
		return "not a line of three words"
	}
	n, err := strconv.ParseUint(words[1], 10, 64)
	if err != nil {
		return err.Error()
	}
	e, ok := logged[words[0]+" "+words[2]]
	switch {
	case !ok:
		return "not in the log"
	case e.Name != string(appendName(nil, n)):
		return "has another name"
	}
	secret, err := secrets.Get(ctx, vault.Ref{Tenant: words[0], Category: "credential", Owner: words[2], SecretID: e.Keys.SecretID})
	if err != nil {
		return err.Error()
	}
	if want := `{"apiKey":"` + string(appendSecret(nil, n)) + `"}`; string(secret.Reveal()) != want {
		return "its secret is another one"
	}
	return ""
}

// child is a running child process.
type child struct {
	cmd  *exec.Cmd
	line string // the first line of its output
}

// spawnChild starts a child that serves, and returns once it has printed its address.
func spawnChild(ctx context.Context, args ...string) (*child, error) {
	cmd := childCommand(ctx, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	return &child{cmd, strings.TrimSpace(line)}, nil
}

func (c *child) stop() {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	_ = c.cmd.Wait()
}

// askChild runs a child to its end and decodes its output.
func askChild(ctx context.Context, out any, args ...string) error {
	b, err := childCommand(ctx, args...).Output()
	if err != nil {
		return fmt.Errorf("child %s: %w", args[0], err)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("child %s: %w", args[0], err)
	}
	return nil
}

func childCommand(ctx context.Context, args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	cmd := exec.CommandContext(ctx, self, append([]string{childArg}, args...)...) //nolint:gosec // itself
	cmd.Stderr = os.Stderr
	return cmd
}

// fsyncs counts appends of one message with an fsync after each.
func fsyncs(dir string, d time.Duration) (load, error) {
	f, err := os.CreateTemp(dir, "fsync")
	if err != nil {
		return load{}, fmt.Errorf("make a file: %w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // in a temporary folder
	defer f.Close()           //nolint:errcheck // thrown away
	body := make([]byte, messageSize)
	return closed(context.Background(), 1, size{time: d}, func(int) (caller, error) {
		return caller{call: func() error {
			if _, err := f.Write(body); err != nil {
				return fmt.Errorf("append: %w", err)
			}
			return f.Sync()
		}}, nil
	})
}

// messageSize is the size of the yardsticks' messages: about that of a stored command.
const messageSize = 400

// busy returns the load average of the last minute. Read before a run, it shows the load by other
// programs.
func busy() string {
	b, err := os.ReadFile("/proc/loadavg")
	if words := strings.Fields(string(b)); err == nil && len(words) > 0 {
		return words[0]
	}
	return "unknown"
}

func machine() string {
	model := runtime.GOARCH
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d cores (%s), %s, %s", runtime.NumCPU(), model, runtime.GOOS, runtime.Version())
}
