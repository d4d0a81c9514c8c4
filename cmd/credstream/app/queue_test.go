package app

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/events/storetest"
)

// publishers tell of flows and leave commands in the queue, each aimed at one
// target, numbered upwards, and remember which numbers were acknowledged.
type publishers struct {
	credentials []string // target of the commands, by publisher

	mu    sync.Mutex
	next  map[string]int
	acked map[string][]published // by "flow-<n>" or credential
}

type published struct {
	n  int
	at time.Time
}

// run publishes until ctx ends or the server is gone.
func (p *publishers) run(ctx context.Context, url string) error {
	nc, err := nats.Connect(url, nats.UserInfo("x", adminKey), nats.NoReconnect())
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	for i, id := range p.credentials {
		all.Go(func() {
			p.publish(ctx, fmt.Sprint("flow-", i), func(n int) *nats.Msg {
				m := nats.NewMsg(fmt.Sprint("credstream.flows.default.flow-", i))
				change := []string{"updated", "started", "stopped"}[n%3]
				for k, v := range map[string]string{"ce-specversion": "1.0", "ce-id": fmt.Sprintf("e-%d-%d", i, n), "ce-type": "flow." + change, "ce-source": "/engine"} {
					m.Header[k] = []string{v}
				}
				m.Data = fmt.Appendf(nil, `{"id":"flow-%d","revision":%d,"steps":[{"id":"s","component":"plain","credential":%q}]}`, i, n, id)
				return m
			}, js)
		})
		all.Go(func() {
			p.publish(ctx, id, func(n int) *nats.Msg {
				m := nats.NewMsg("credstream.cmdq.default.credential.rename")
				m.Header.Set(nats.MsgIdHdr, fmt.Sprintf("rename-%s-%d", id, n))
				m.Data = fmt.Appendf(nil, `{"id":%q,"name":"name %08d"}`, id, n)
				return m
			}, js)
		})
	}
	all.Wait()
	return nil
}

func (p *publishers) publish(ctx context.Context, target string, message func(n int) *nats.Msg, js jetstream.JetStream) {
	for ctx.Err() == nil {
		p.mu.Lock()
		p.next[target]++
		n := p.next[target]
		p.mu.Unlock()
		if _, err := js.PublishMsg(ctx, message(n), jetstream.WithRetryAttempts(0)); err != nil {
			return
		}
		p.mu.Lock()
		p.acked[target] = append(p.acked[target], published{n, time.Now()})
		p.mu.Unlock()
	}
}

// doubtAfter says that no acknowledgement after the moment counts.
func (p *publishers) doubtAfter(moment time.Time) {
	for target, list := range p.acked {
		for len(list) > 0 && list[len(list)-1].at.After(moment) {
			list = list[:len(list)-1]
		}
		p.acked[target] = list
	}
}

// check waits until what was acknowledged has been obeyed: each flow is known at
// its last revision at least, and each credential was given every name once, in
// their order.
func (p *publishers) check(t *testing.T, a api) (total int) {
	t.Helper()
	for i, id := range p.credentials {
		flow := fmt.Sprint("flow-", i)
		if list := p.acked[flow]; len(list) > 0 {
			total += len(list)
			last := list[len(list)-1].n
			await(t, flow, func() (bool, error) {
				var f flowShown
				err := a.query("flow.get", "id="+flow, &f)
				if c, err := codeOf(err); c == "flow_not_found" || err != nil {
					return false, err
				}
				return f.Revision >= last, nil
			})
		}
		list := p.acked[id]
		if len(list) == 0 {
			continue
		}
		total += len(list)
		last := list[len(list)-1].n
		var names []int
		await(t, "the last name of "+id, func() (bool, error) {
			names = renames(t, a, id)
			return len(names) > 0 && names[len(names)-1] >= last, nil
		})
		at := map[int]int{}
		for i, n := range names {
			at[n]++
			if i > 0 && names[i-1] >= n {
				t.Errorf("the name %d of %s was given after %d", n, id, names[i-1])
			}
		}
		for _, ack := range list {
			if at[ack.n] != 1 {
				t.Errorf("the acknowledged name %d of %s was given %d times", ack.n, id, at[ack.n])
			}
		}
	}
	var poison struct {
		Messages []json.RawMessage `json:"messages"`
	}
	must(t, a.query("queue.list", "", &poison))
	if len(poison.Messages) > 0 {
		t.Errorf("the dead-letter queue holds %s", poison.Messages)
	}
	return total
}

// renames are the numbers in the names that a credential was given, oldest first.
func renames(t testing.TB, a api, id string) (numbers []int) {
	t.Helper()
	for after := uint64(0); ; {
		var h struct {
			Events []struct {
				Type string `json:"type"`
				Data struct {
					Name string `json:"name"`
				} `json:"data"`
			} `json:"events"`
			Next uint64 `json:"next"`
		}
		must(t, a.query("credential.history", fmt.Sprintf("id=%s&limit=1000&after=%d", id, after), &h))
		for _, e := range h.Events {
			var n int
			if e.Type == "credential.renamed" {
				if _, err := fmt.Sscanf(e.Data.Name, "name %d", &n); err != nil {
					t.Fatalf("%q: %v", e.Data.Name, err)
				}
				numbers = append(numbers, n)
			}
		}
		if h.Next == 0 {
			return numbers
		}
		after = h.Next
	}
}

func newPublishers(t testing.TB, a api, n int) *publishers {
	t.Helper()
	registerPlain(t, a.base)
	p := &publishers{next: map[string]int{}, acked: map[string][]published{}}
	for range n {
		p.credentials = append(p.credentials, a.create(t))
	}
	return p
}

// The power is cut, or the process killed, while flow events and queued commands
// come in: what was acknowledged is obeyed afterwards, once, in order.
func TestQueuesOutlive(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		n    int
	}{{"kills", *killCount}, {"power cuts", 3}} {
		t.Run(c.name, func(t *testing.T) {
			data := t.TempDir()
			end := func(p *process) time.Time {
				now := time.Now()
				_ = p.kill(syscall.SIGKILL)
				return now.Add(time.Hour) // the kernel keeps what a killed process has written
			}
			if c.name == "power cuts" {
				disk := storetest.NewDisk(t, 2<<30)
				data = filepath.Join(disk.Dir, "data")
				end = func(p *process) time.Time {
					cut := disk.Cut(t)
					_ = p.kill(syscall.SIGKILL)
					disk.Remount(t)
					return cut
				}
			}
			p := spawn(t, data)
			load := newPublishers(t, caller(p), 6)
			total := 0
			for range c.n {
				ctx, stop := context.WithCancel(t.Context())
				gone := make(chan error, 1)
				go func() { gone <- load.run(ctx, p.nats) }()
				time.Sleep(time.Duration(200+rand.IntN(800)) * time.Millisecond) // the moment is meant to be any
				moment := end(p)
				stop()
				must(t, <-gone)
				load.doubtAfter(moment)
				p = spawn(t, data)
				total = load.check(t, caller(p))
			}
			_ = p.kill(syscall.SIGTERM)
			t.Logf("%d times, %d acknowledged messages, none lost", c.n, total)
			if total == 0 {
				t.Error("nothing was acknowledged: the test shows nothing")
			}
		})
	}
}

// A process that dies while it reserves leaves nothing that outlives the
// reservation's time.
func TestBindingsOfADeadProcess(t *testing.T) {
	data := t.TempDir()
	p := spawn(t, data)
	registerPlain(t, p.http)
	a := caller(p)
	var credentials []string
	for range 12 {
		credentials = append(credentials, a.create(t))
	}
	var binders sync.WaitGroup
	for i := range 8 {
		binders.Go(func() {
			for n := 0; ; n++ {
				var steps []flowStep
				for s, c := range rand.Perm(len(credentials))[:5] {
					steps = append(steps, flowStep{fmt.Sprint("s", s), "plain", credentials[c]})
				}
				err := a.command("flow.bind", "", map[string]any{"flow": fmt.Sprintf("flow-%d-%d", i, n), "steps": steps, "ttl": "1s"}, nil)
				if err != nil {
					return
				}
			}
		})
	}
	time.Sleep(time.Duration(200+rand.IntN(300)) * time.Millisecond) // the moment is meant to be any
	_ = p.kill(syscall.SIGKILL)
	binders.Wait()
	a = caller(spawn(t, data))
	for _, id := range credentials {
		await(t, "the end of the reservations of "+id, func() (bool, error) {
			c, err := codeOf(a.command("credential.delete", "", map[string]any{"id": id}, nil))
			return c == "", err
		})
	}
}
