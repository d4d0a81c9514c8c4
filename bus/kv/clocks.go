package kv

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
)

// clockSubject is within the service's own account, where no key publishes.
const clockSubject = "credstream.clock"

// MaxClockOffset is the tolerated difference between the clocks of two processes. Request deadlines,
// reservations and token expiries are compared across processes.
const MaxClockOffset = 2 * time.Second

const (
	clockEvery = 10 * time.Second // between two rounds; less at the start
	clockWait  = time.Second      // for the replies of a round
)

// The reasons why it is not known that the clocks agree.
var (
	errClocksUnseen = errors.New("the clocks of the processes have not been compared yet")
	errClocksDiffer = errors.New("the clocks of two processes differ")
)

// ClocksConfig is the configuration of Clocks. Metrics and Now are optional.
type ClocksConfig struct {
	Conn    *nats.Conn // the service's own
	Process string     // id of this process
	Metrics prometheus.Registerer
	Logger  *slog.Logger
	Now     func() time.Time
}

// Clocks compares the clock of this process with those of the others.
type Clocks struct {
	cfg    ClocksConfig
	offset prometheus.Gauge

	mu  sync.Mutex
	err error
}

// NewClocks creates the comparison; Run runs it.
func NewClocks(cfg ClocksConfig) *Clocks {
	c := &Clocks{cfg: cfg, err: errClocksUnseen, offset: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "credstream_clock_offset_seconds",
		Help: "Clock offset of another process, in seconds: the largest one; negative if that clock is behind.",
	})}
	if cfg.Now == nil {
		c.cfg.Now = time.Now
	}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(c.offset)
	}
	return c
}

// Err returns nil if, in the last round, the clocks of all processes that replied agreed
// within MaxClockOffset. It is unknown which clock is wrong.
func (c *Clocks) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Run compares until ctx ends, and replies to the other processes.
func (c *Clocks) Run(ctx context.Context) error {
	sub, err := c.cfg.Conn.Subscribe(clockSubject, func(m *nats.Msg) {
		answer := nats.NewMsg(m.Reply)
		answer.Header.Set("Process", c.cfg.Process)
		answer.Data = []byte(c.cfg.Now().UTC().Format(time.RFC3339Nano))
		_ = c.cfg.Conn.PublishMsg(answer) // the next round tries again
	})
	if err != nil {
		return fmt.Errorf("subscribe to clock requests: %w", err)
	}
	defer sub.Unsubscribe() //nolint:errcheck // fails when the connection is closed already
	for pause := clockWait; ; pause = min(2*pause, clockEvery) {
		if err := c.compare(ctx); err != nil && ctx.Err() == nil {
			c.cfg.Logger.WarnContext(ctx, "clock comparison failed", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// compare makes one round.
func (c *Clocks) compare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, clockWait)
	defer cancel()
	inbox := c.cfg.Conn.NewInbox()
	answers, err := c.cfg.Conn.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	defer answers.Unsubscribe() //nolint:errcheck // fails when the connection is closed already
	requested := c.cfg.Now()
	if err := c.cfg.Conn.PublishRequest(clockSubject, inbox, nil); err != nil {
		return err
	}
	var largest time.Duration
	of, replied := "", false
	for {
		m, err := answers.NextMsgWithContext(ctx)
		if err != nil {
			break // the round has ended
		}
		replied = true // this process replies, too
		at, err := time.Parse(time.RFC3339Nano, string(m.Data))
		if err != nil || m.Header.Get("Process") == c.cfg.Process {
			continue
		}
		if by := offset(requested, at, c.cfg.Now()); by.Abs() > largest.Abs() {
			largest, of = by, m.Header.Get("Process")
		}
	}
	if !replied {
		return errClocksUnseen // the previous result stays
	}
	c.offset.Set(largest.Seconds())
	var differ error
	if largest.Abs() > MaxClockOffset {
		differ = fmt.Errorf("%w: %s and this process by %v. Synchronize the clocks with NTP; until then no reservation expires",
			errClocksDiffer, of, largest.Round(time.Second))
	}
	c.mu.Lock()
	was := c.err
	c.err = differ
	c.mu.Unlock()
	switch {
	case differ != nil && (was == nil || was == errClocksUnseen): //nolint:errorlint // it is the one itself
		c.cfg.Logger.ErrorContext(ctx, "the clocks of two processes differ", "other", of, "by", largest)
	case differ == nil && was != nil && was != errClocksUnseen: //nolint:errorlint // it is the one itself
		c.cfg.Logger.InfoContext(ctx, "the clocks agree again")
	}
	return nil
}

// offset returns the difference between the local clock and another one that showed at between
// requested and answered; 0 if they may agree.
func offset(requested, at, answered time.Time) time.Duration {
	switch {
	case at.Before(requested):
		return at.Sub(requested)
	case at.After(answered):
		return at.Sub(answered)
	}
	return 0
}
