package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"
)

// adminKey is the administrator's key of every benchmark site.
const adminKey = "cs_benchbenchbenchbenchbenchbenchbenchbench"

const (
	tenants    = 50
	keys       = 1000
	components = 10
	bigTenant  = "t-big" // has as many credentials as all other tenants together
	bigKeys    = 20
)

// apiKey is an issued key; it belongs to one tenant.
type apiKey struct{ key, tenant string }

// made is an acknowledged credential.
type made struct {
	tenant, id string
	n          uint64
}

// site is one installation: a data folder and its process.
type site struct {
	dir, bin string
	env      []string
	proc     *process
	lastLog  string   // last log output of the process that was stopped last
	keys     []apiKey // spread evenly over the tenants
	big      []apiKey // of bigTenant

	mu   sync.Mutex
	made []made
}

// next numbers the credentials of all sites: a number gives a credential's
// name, its secret and its command id.
var next atomic.Uint64

const secretPrefix = "sk_live_"

func appendSecret(b []byte, n uint64) []byte {
	b = append(b, secretPrefix...)
	for range 4 { // splitmix64, so that secrets do not compress
		n += 0x9e3779b97f4a7c15
		z := (n ^ n>>30) * 0xbf58476d1ce4e5b9
		b = strconv.AppendUint(b, z^z>>27, 36)
	}
	return b
}

var (
	things = [...]string{"Orders", "Invoices", "Leads", "Tickets", "Products", "Contacts", "Shipments", "Payments"}
	places = [...]string{"crm", "shop", "erp", "mail", "files", "chat", "calendar", "warehouse"}
	stages = [...]string{"prod", "test"}
)

func appendName(b []byte, n uint64) []byte {
	b = append(b, things[n%8]...)
	b = append(b, ' ')
	b = append(b, places[n/8%8]...)
	b = append(b, ' ')
	b = strconv.AppendUint(b, n, 10)
	b = append(b, ' ')
	return append(b, stages[n/64%2]...)
}

// appendCreate appends the body of credential.create.
func appendCreate(b []byte, n uint64, component string) []byte {
	b = append(b, `{"component":"`...)
	b = append(b, component...)
	b = append(b, `","name":"`...)
	b = appendName(b, n)
	b = append(b, `","keys":{"apiKey":"`...)
	b = appendSecret(b, n)
	return append(b, `"}}`...)
}

// commandID of the n-th credential; numberOf reads it back.
func commandID(n uint64) string { return "bench-" + strconv.FormatUint(n, 10) }

func numberOf(id string) uint64 {
	n, _ := strconv.ParseUint(strings.TrimPrefix(id, "bench-"), 10, 64)
	return n
}

// plain is the id of the n-th component without a dry request; probed is the one with.
func plain(n uint64) string { return "c" + strconv.FormatUint(n/3%components, 10) }

const probed = "probed"

// newSite starts the service on a new folder and creates tenants, keys and components.
func newSite(ctx context.Context, bin, dir, probe string, env ...string) (*site, error) {
	s := &site{dir: dir, bin: bin, env: env}
	if _, err := s.start(ctx); err != nil {
		return nil, err
	}
	if err := s.furnish(ctx, probe); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare the service: %w", err), s.stop())
	}
	return s, nil
}

func (s *site) furnish(ctx context.Context, probe string) error {
	admin, err := dialWire(s.proc.http)
	if err != nil {
		return err
	}
	defer admin.close()
	for wait := time.Now(); ; time.Sleep(time.Millisecond) { // keys are checked against the views
		err := query(admin, adminKey, "default", "tenant.list", nil)
		if err == nil {
			break
		}
		if time.Since(wait) > 5*time.Second {
			return err
		}
	}
	names := []string{bigTenant}
	for i := range tenants {
		names = append(names, fmt.Sprintf("t%02d", i))
	}
	for _, t := range names {
		if err := command(admin, adminKey, "default", "tenant.register", map[string]any{"id": t}, nil); err != nil {
			return err
		}
	}
	field := map[string]any{"apiKey": map[string]any{"label": "Key", "viewClass": "PasswordFieldView", "required": true}}
	descriptors := map[string]any{probed: map[string]any{
		"title": "Probed", "credentials": map[string]any{"fields": field},
		"verification": map[string]any{"http": map[string]any{
			"url": "http://" + probe + "/me", "headers": map[string]any{"api-key": "{{apiKey}}"},
		}},
	}}
	for i := range components {
		descriptors[plain(uint64(i*3))] = map[string]any{"title": fmt.Sprint("Plain ", i), "credentials": map[string]any{"fields": field}}
	}
	for id, d := range descriptors {
		if err := command(admin, adminKey, "default", "component.register", map[string]any{"id": id, "descriptor": d}, nil); err != nil {
			return err
		}
		if err := command(admin, adminKey, "default", "component.share", map[string]any{"id": id}, nil); err != nil {
			return err
		}
	}
	s.keys, s.big = make([]apiKey, keys), make([]apiKey, bigKeys)
	var last atomic.Uint64
	parts, ctx := errgroup.WithContext(ctx)
	for w := range 16 {
		parts.Go(func() error {
			c, err := dialWire(s.proc.http)
			if err != nil {
				return err
			}
			defer c.close()
			for i := w; i < keys+bigKeys && ctx.Err() == nil; i += 16 {
				slot, tenant := &s.big[max(0, i-keys)], bigTenant
				if i < keys {
					slot, tenant = &s.keys[i], names[1+i%tenants]
				}
				var issued struct {
					Key string `json:"key"`
					Seq uint64 `json:"seq"`
				}
				if err := command(c, adminKey, tenant, "api_key.issue", map[string]any{"role": "ADMINISTRATOR", "name": "bench"}, &issued); err != nil {
					return err
				}
				*slot = apiKey{issued.Key, tenant}
				for old := last.Load(); issued.Seq > old && !last.CompareAndSwap(old, issued.Seq); old = last.Load() {
				}
			}
			return nil
		})
	}
	if err := parts.Wait(); err != nil {
		return err
	}
	return query(admin, adminKey, "default", "tenant.list?min_seq="+strconv.FormatUint(last.Load(), 10), nil)
}

func command(c *wire, key, tenant, name string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return answered(c, name, postRequest(nil, "/v1/tenants/"+tenant+"/commands/"+name, key, "", body), out)
}

func query(c *wire, key, tenant, what string, out any) error {
	return answered(c, what, getRequest(nil, "/v1/tenants/"+tenant+"/"+what, key), out)
}

func answered(c *wire, what string, request []byte, out any) error {
	status, body, err := c.do(request)
	if err == nil && status != 200 {
		err = fmt.Errorf("%d %.300s", status, body)
	}
	if err == nil && out != nil {
		err = json.Unmarshal(body, out)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// creators returns clients that create credentials over HTTP, each call with the next key. answered,
// unless nil, is called with each response.
func (s *site) creators(of []apiKey, component string, answered func(n uint64)) func(i int) (caller, error) {
	return s.creating(200, of, func(tenant string) string { return "/v1/tenants/" + tenant + "/commands/credential.create" },
		func(b []byte, n uint64) []byte { return appendCreate(b, n, cmp.Or(component, plain(n))) }, answered)
}

// creating is creators for an API with another status, path and body.
func (s *site) creating(
	want int, of []apiKey, target func(tenant string) string, appendBody func(b []byte, n uint64) []byte, answered func(n uint64),
) func(i int) (caller, error) {
	return func(int) (caller, error) {
		c, err := dialWire(s.proc.http)
		if err != nil {
			return caller{}, err
		}
		var body, request []byte
		mine := make([]made, 0, 1024)
		return caller{
			call: func() error {
				n := next.Add(1)
				k := of[n%uint64(len(of))]
				body = appendBody(body[:0], n)
				request = postRequest(request[:0], target(k.tenant), k.key, commandID(n), body)
				status, answer, err := c.do(request)
				if answered != nil {
					answered(n)
				}
				id, ok := idOf(answer)
				if err != nil || status != want || !ok {
					return fmt.Errorf("create: %d %.300s: %w", status, answer, err)
				}
				mine = append(mine, made{k.tenant, id, n})
				return nil
			},
			close: func() {
				c.close()
				s.remember(mine)
			},
		}, nil
	}
}

// overHTTP returns clients, each with its own connection. open returns the call of the i-th.
func overHTTP(addr string, open func(i int, c *wire) (call func() error)) func(int) (caller, error) {
	return func(i int) (caller, error) {
		c, err := dialWire(addr)
		if err != nil {
			return caller{}, err
		}
		return caller{call: open(i, c), close: c.close}, nil
	}
}

// natsCreators returns clients that create credentials over NATS. A connection belongs to a key, so
// each client has its own key.
func (s *site) natsCreators(i int) (caller, error) {
	k := s.keys[(i*7+3)%len(s.keys)]
	nc, err := nats.Connect(s.proc.nats, nats.UserInfo("bench", k.key))
	if err != nil {
		return caller{}, fmt.Errorf("connect to NATS: %w", err)
	}
	var body []byte
	var mine []made
	return caller{
		call: func() error {
			n := next.Add(1)
			body = appendCreate(body[:0], n, plain(n))
			answer, err := nc.RequestMsg(&nats.Msg{
				Subject: "credstream.cmd." + k.tenant + ".credential.create",
				Header:  nats.Header{nats.MsgIdHdr: []string{commandID(n)}}, Data: body,
			}, 30*time.Second)
			if err != nil {
				return fmt.Errorf("create: %w", err)
			}
			id, ok := idOf(answer.Data)
			if !ok || answer.Header.Get("Nats-Service-Error") != "" {
				return fmt.Errorf("create: %.300s", answer.Data)
			}
			mine = append(mine, made{k.tenant, id, n})
			return nil
		},
		close: func() {
			nc.Close()
			s.remember(mine)
		},
	}, nil
}

// idOf finds the id in a command's response.
func idOf(answer []byte) (string, bool) { return memberOf(answer, `"id":"`) }

// memberOf finds the text after the first `"name":"`, up to the next quote.
func memberOf(answer []byte, name string) (string, bool) {
	_, rest, found := bytes.Cut(answer, []byte(name))
	text, _, ended := bytes.Cut(rest, []byte{'"'})
	return string(text), found && ended && len(text) > 0
}

func (s *site) remember(mine []made) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made = append(s.made, mine...)
}

// getters returns clients that read one credential after another at random,
// each call with one of the keys of its tenant.
func (s *site) getters(i int) (caller, error) {
	byTenant := map[string][]apiKey{}
	for _, k := range append(s.keys, s.big...) {
		byTenant[k.tenant] = append(byTenant[k.tenant], k)
	}
	var request []byte
	return overHTTP(s.proc.http, func(_ int, c *wire) func() error {
		return func() error {
			m := s.made[rand.IntN(len(s.made))] //nolint:gosec // a choice, not a secret
			of := byTenant[m.tenant]
			k := of[rand.IntN(len(of))] //nolint:gosec // a choice, not a secret
			request = getRequest(request[:0], "/v1/tenants/"+m.tenant+"/credential.get?id="+m.id, k.key)
			return c.expect(200, "get", request)
		}
	})(i)
}

// acknowledged writes the list that a reopen child checks.
func (s *site) acknowledged(file string) error {
	var b bytes.Buffer
	for _, m := range s.made {
		fmt.Fprintln(&b, m.tenant, m.n, m.id)
	}
	return os.WriteFile(file, b.Bytes(), 0o600)
}

// process is a running credstream.
type process struct {
	cmd        *exec.Cmd
	http, nats string // address, URL
	logs       bytes.Buffer
	ended      chan struct{}
}

// start starts the service on the site's folder and returns the time until it was ready.
func (s *site) start(ctx context.Context) (time.Duration, error) {
	p := &process{ended: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, s.bin, "serve", "--data", s.dir, "--http", "127.0.0.1:0",
		"--nats-listen", "127.0.0.1:0", "--admin-key", adminKey, "--allow-private-targets", "--log-level", "warn")
	p.cmd.Env = append(os.Environ(), s.env...)
	p.cmd.Stderr = &p.logs
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return 0, fmt.Errorf("start the service: %w", err)
	}
	began := time.Now()
	if err := p.cmd.Start(); err != nil {
		return 0, fmt.Errorf("start the service: %w", err)
	}
	lines := bufio.NewReader(out)
	var head []string
	for len(head) < 3 {
		line, err := lines.ReadString('\n')
		if err != nil {
			_ = p.cmd.Wait()
			return 0, fmt.Errorf("the service ended before it was ready: %.2000s", p.logs.String())
		}
		head = append(head, strings.TrimSpace(line))
	}
	took := time.Since(began)
	go func() { // ends with the process; stop and kill wait for it
		defer close(p.ended)
		_, _ = io.Copy(io.Discard, lines)
		_ = p.cmd.Wait()
	}()
	p.http = strings.TrimPrefix(strings.Fields(head[1])[1], "http://")
	p.nats = strings.Fields(head[2])[1]
	s.proc = p
	return took, nil
}

// stop shuts the service down gracefully.
func (s *site) stop() error {
	if s.proc == nil {
		return nil
	}
	p := s.proc
	s.proc = nil
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
		return fmt.Errorf("the service did not stop: %.2000s", p.logs.String())
	}
	s.lastLog = p.logs.String()
	return nil
}

// kill simulates a crash.
func (s *site) kill() {
	_ = s.proc.cmd.Process.Kill()
	<-s.proc.ended
	s.proc = nil
}

// cpu returns the CPU time of the service so far.
func (s *site) cpu() (time.Duration, error) { return cpuOf(s.proc.cmd.Process.Pid) }

// cpuOf returns the CPU time of a process so far, with that of its ended children.
func cpuOf(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, fmt.Errorf("read the CPU time of a process: %w", err)
	}
	words := statWords(stat)
	if len(words) < 15 {
		return 0, errStat
	}
	return ticks(words[11:15])
}

var errStat = errors.New("read the CPU time of a process: the form of /proc/PID/stat is not known")

// statWords splits /proc/PID/stat after the name of the process, which may contain any character:
// the second word is the parent, 11 to 14 are the CPU times.
func statWords(stat []byte) []string {
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.Fields(rest)
}

// ticks adds CPU times of /proc/PID/stat.
func ticks(words []string) (sum time.Duration, err error) {
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux that Go runs on
	for _, w := range words {
		n, err := strconv.Atoi(w)
		if err != nil {
			return 0, errStat
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

// counted is closed with the CPU time of the service per call.
func (s *site) counted(ctx context.Context, n int, of size, open func(int) (caller, error)) (load, error) {
	return counted(ctx, n, of, open, s.cpu)
}

// counted is closed with the CPU time per call of the processes that cpu reads.
func counted(ctx context.Context, n int, of size, open func(int) (caller, error), cpu func() (time.Duration, error)) (load, error) {
	before, err := cpu()
	if err != nil {
		return load{}, err
	}
	l, err := closed(ctx, n, of, open)
	if err != nil {
		return l, err
	}
	after, err := cpu()
	if l.all > 0 {
		l.cpu = (after - before) / time.Duration(l.all)
	}
	return l, err
}

// memory is the memory use of a process in bytes, from /proc.
type memory struct{ anon, file, shmem int64 }

func (m memory) total() int64 { return m.anon + m.file + m.shmem }

func (s *site) memory() (memory, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(s.proc.cmd.Process.Pid), "status"))
	if err != nil {
		return memory{}, fmt.Errorf("read the memory of the service: %w", err)
	}
	var m memory
	for line := range strings.Lines(string(b)) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		kb, _ := strconv.ParseInt(words[1], 10, 64)
		switch words[0] {
		case "RssAnon:":
			m.anon = kb << 10
		case "RssFile:":
			m.file = kb << 10
		case "RssShmem:":
			m.shmem = kb << 10
		}
	}
	return m, nil
}
