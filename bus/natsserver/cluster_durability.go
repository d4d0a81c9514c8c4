package natsserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/bus/streams"
)

// Subjects of requests to the servers, in the system account.
const (
	sysVarz  = "$SYS.REQ.SERVER.PING.VARZ"
	sysConnz = "$SYS.REQ.SERVER.PING.CONNZ"
	sysKick  = "$SYS.REQ.SERVER.%s.KICK"

	sysQuiet = 250 * time.Millisecond // after a reply, if their number is unknown
	sysTime  = 2 * time.Second        // timeout of all replies
)

// Durability is what is known about the durability of acknowledged messages.
type Durability struct {
	Replicas int      // number of replicas of each stream
	Servers  []string // the JetStream servers that were seen, by name; none without a system user
	SyncSeen bool     // each of them reports that it fsyncs before it acknowledges
	Attested bool     // the operator attests what is weak or unverified
	Why      string   // what is weak or unverified, as a sentence; "" if nothing is

	silent bool // Why means that too few servers replied
}

// Durability returns the result of the last check.
func (c *Cluster) Durability() Durability { return *c.durability.Load() }

// serverSeen is the reported state of one server.
type serverSeen struct {
	name, version string
	jetStream     bool
	syncAlways    bool
	toChange      []string // settings: a limit for clients is wider than that of the embedded server, or max_payload is too small
	size          int      // size of its JetStream cluster; 1 if it has none
}

// checkServers checks the servers at the start of the process.
func (c *Cluster) checkServers(ctx context.Context) error {
	if err := c.await(ctx); err != nil {
		return err
	}
	d, err := c.inspect(ctx)
	if err != nil {
		return err
	}
	c.durability.Store(&d)
	if c.sys == nil {
		c.log.InfoContext(ctx, "the limits of the NATS servers cannot be checked without a user of the system account")
	}
	switch {
	case d.Why == "":
	case !d.Attested:
		return weaknessError(d)
	default:
		c.log.WarnContext(ctx, "durability is attested, not verified", "why", d.Why)
	}
	return nil
}

// await waits for JetStream, which does not respond while it elects a leader.
func (c *Cluster) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, clusterStart)
	defer cancel()
	for {
		err := c.ping(ctx, c.own)
		if err == nil || errors.Is(err, ErrNoJetStream) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(clusterReconnect):
		}
	}
}

func weaknessError(d Durability) error {
	if d.silent {
		return ErrServersSilent.Withf("%s Check that the NATS servers run, and that --nats-system names a user of their system account.", d.Why)
	}
	return ErrDurabilityWeak.Withf("%s Use --attest-sync-always only if you guarantee that every NATS server fsyncs before it acknowledges.", d.Why)
}

// recheck repeats the check while the process runs. A server that does not reply, for example
// because it restarts, keeps its last result.
func (c *Cluster) recheck(ctx context.Context) error {
	d, err := c.inspect(ctx)
	switch {
	case err != nil:
		return err
	case len(d.Servers) == 0:
		return nil
	}
	c.durability.Store(&d)
	if d.Why != "" && !d.Attested {
		return weaknessError(d)
	}
	return nil
}

// inspect queries the versions and settings of the servers.
func (c *Cluster) inspect(ctx context.Context) (Durability, error) {
	d := Durability{Replicas: c.cfg.Replicas, Attested: c.cfg.AttestSyncAlways}
	if c.sys == nil {
		d.Why, _ = assessDurability(nil, d.Replicas, false)
		return d, nil
	}
	seen, err := c.servers(ctx)
	if err != nil {
		return d, err
	}
	d.SyncSeen = true
	for _, s := range seen {
		if !recent(s.version) {
			return d, ErrServerTooOld.Withf("The NATS server %s has version %s. credstream requires 2.12 or later.", s.name, s.version)
		}
		if !c.warned[s.name] && len(s.toChange) > 0 {
			c.warned[s.name] = true
			c.log.WarnContext(ctx, "settings of a NATS server differ from those of deploy/nats/node.conf; change its configuration",
				"server", s.name, "set", s.toChange)
		}
		if s.jetStream {
			d.Servers = append(d.Servers, s.name)
			d.SyncSeen = d.SyncSeen && s.syncAlways
		}
	}
	d.SyncSeen = d.SyncSeen && len(d.Servers) > 0
	slices.Sort(d.Servers)
	d.Why, d.silent = assessDurability(seen, d.Replicas, true)
	return d, nil
}

// assessDurability returns what is weak, or "", and whether the reason is that too few servers
// replied. A majority of a stream's replicas acknowledges a write, so it is sufficient to
// verify a majority of them: the service can start while one of three is down.
func assessDurability(seen []serverSeen, replicas int, queried bool) (why string, silent bool) {
	var lazy []string
	have, size := 0, 0
	for _, s := range seen {
		if !s.jetStream {
			continue
		}
		have++
		size = max(size, s.size)
		if !s.syncAlways {
			lazy = append(lazy, s.name)
		}
	}
	slices.Sort(lazy)
	switch {
	case !queried:
		return "Without a user of the NATS system account, credstream cannot check whether the servers fsync before they acknowledge (sync_interval: always).", false
	case have == 0:
		return "No JetStream server answered the system account, so credstream cannot check whether they fsync before they acknowledge.", true
	case len(lazy) > 0:
		return "These NATS servers acknowledge before they fsync (sync_interval is not \"always\"): " + strings.Join(lazy, ", ") + ".", false
	case 2*have <= size:
		return fmt.Sprintf("Only %d of %d JetStream servers answered the system account.", have, size), true
	case replicas == 1:
		return "Each stream would have one replica: if its server loses data, the data is lost.", false
	}
	return "", false
}

// servers queries every server about itself.
func (c *Cluster) servers(ctx context.Context) ([]serverSeen, error) {
	var seen []serverSeen
	have, size := 0, 0
	err := c.request(ctx, sysVarz, nil, func(a sysAnswer) (bool, error) {
		var v struct {
			serverLimits
			JetStream struct {
				Config *struct {
					SyncAlways bool `json:"sync_always"`
				} `json:"config"`
				Meta *struct {
					Size int `json:"cluster_size"`
				} `json:"meta"`
			} `json:"jetstream"`
		}
		if err := json.Unmarshal(a.Data, &v); err != nil {
			return false, fmt.Errorf("reading the state of the NATS server %s: %w", a.Server.Name, err)
		}
		s := serverSeen{name: a.Server.Name, version: a.Server.Version, size: 1, toChange: v.toChange()}
		if cfg := v.JetStream.Config; cfg != nil {
			s.jetStream, s.syncAlways = true, cfg.SyncAlways
			if meta := v.JetStream.Meta; meta != nil {
				s.size = meta.Size
			}
			have++
			size = max(size, s.size)
		}
		seen = append(seen, s)
		return have > 0 && have >= size, nil
	})
	return seen, err
}

// serverLimits are the limits of a server for its clients.
type serverLimits struct {
	Connections   int   `json:"max_connections"`
	Subscriptions int   `json:"max_subscriptions"` // of a connection
	Pending       int64 `json:"max_pending"`
	Payload       int   `json:"max_payload"`
	WriteDeadline int64 `json:"write_deadline"` // in nanoseconds
	PingInterval  int64 `json:"ping_interval"`  // in nanoseconds
	PingMax       int64 `json:"ping_max"`
}

// toChange returns the settings to change, in the syntax of a configuration.
func (l serverLimits) toChange() (set []string) {
	for _, s := range []struct {
		loose bool
		want  string
	}{
		{l.Connections <= 0 || l.Connections > connectionLimit, fmt.Sprintf("max_connections: %d", connectionLimit)},
		{l.Subscriptions <= 0 || l.Subscriptions > maxSubscriptions, fmt.Sprintf("max_subscriptions: %d", maxSubscriptions)},
		{l.Pending <= 0 || l.Pending > maxPending, fmt.Sprintf("max_pending: %dMB", maxPending>>20)},
		{l.Payload < streams.MaxPayload, fmt.Sprintf("max_payload: %dMB", streams.MaxPayload>>20)},
		{l.WriteDeadline <= 0 || l.WriteDeadline > int64(stalled), fmt.Sprintf("write_deadline: %q", stalled.String())},
		{l.PingInterval*(l.PingMax+1) > int64(silent), `ping_interval: "2s"`},
	} {
		if s.loose {
			set = append(set, s.want)
		}
	}
	return set
}

// sysAnswer is the reply of a server to a request to the system account.
type sysAnswer struct {
	Server struct {
		ID      string `json:"id"`
		Name    string `json:"name"`
		Version string `json:"ver"`
	} `json:"server"`
	Data jsontext.Value `json:"data"`
}

// request sends a request to every server and calls each with the replies until it
// returns last, or no more arrive.
func (c *Cluster) request(ctx context.Context, subject string, body []byte, each func(sysAnswer) (last bool, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, sysTime)
	defer cancel()
	inbox, err := c.sys.SubscribeSync(c.sys.NewInbox())
	if err != nil {
		return fmt.Errorf("querying the NATS servers: %w", err)
	}
	defer func() { _ = inbox.Unsubscribe() }() // fails when the connection is closed already
	if err := c.sys.PublishRequest(subject, inbox.Subject, body); err != nil {
		return fmt.Errorf("querying the NATS servers: %w", err)
	}
	wait := ctx
	for {
		m, err := inbox.NextMsgWithContext(wait)
		switch {
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrNoResponders):
			return nil
		case err != nil:
			return fmt.Errorf("querying the NATS servers: %w", err)
		}
		var a sysAnswer
		if err := json.Unmarshal(m.Data, &a); err != nil {
			return fmt.Errorf("reading the response of a NATS server: %w", err)
		}
		if last, err := each(a); last || err != nil {
			return err
		}
		quiet, stop := context.WithTimeout(ctx, sysQuiet)
		defer stop() // in a loop, but only a few times
		wait = quiet
	}
}
