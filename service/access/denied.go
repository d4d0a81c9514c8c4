package access

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// A denial is an event in the home tenant of the denied caller. The first one is
// recorded at once; further ones of the same caller and route within a minute
// are counted, and recorded together at its end. So neither a bug in a
// loop nor an attack fills the log.
const (
	deniedTime    = time.Minute
	deniedRate    = 20              // commits per second
	deniedBurst   = 100             // commits at once
	deniedCallers = 1000            // callers with denials that are not recorded yet
	DeniedAppend  = 5 * time.Second // timeout of one commit
	deniedStop    = 2 * time.Second // timeout for the remaining ones when the process stops
	deniedCheck   = time.Second     // interval of checks for due denials
)

// denials collects denials until they are recorded. It holds at most deniedCallers
// callers, and for each at most one entry per route.
type denials struct {
	outcome *prometheus.CounterVec
	commits *rate.Limiter

	mu sync.Mutex
	by map[denialKey]map[string]*deniedWindow // by caller and route
}

// denialKey identifies a denied caller.
type denialKey struct {
	home  string
	actor events.Actor
}

// deniedWindow counts the denials of a minute that are not recorded yet.
type deniedWindow struct {
	commands.Denial
	end time.Time // when the count is due
}

func newDenials(reg prometheus.Registerer) *denials {
	d := &denials{
		commits: rate.NewLimiter(deniedRate, deniedBurst), by: map[denialKey]map[string]*deniedWindow{},
		outcome: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "credstream_denials_total",
			Help: "Denied calls: recorded at once, counted until the end of the minute, or lost because too many callers were denied or the log could not be written.",
		}, []string{"outcome"}),
	}
	service.FromZero(d.outcome, "recorded", "counted", "lost")
	if reg != nil {
		reg.MustRegister(d.outcome)
	}
	return d
}

// note counts a denial. It returns true if the caller must record the denial at once, because it
// is the first of a minute; such a denial is not counted.
func (d *denials) note(who denialKey, one commands.Denial) (record bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	routes := d.by[who]
	if routes == nil {
		if len(d.by) >= deniedCallers {
			d.outcome.WithLabelValues("lost").Inc()
			return false
		}
		routes = map[string]*deniedWindow{}
		d.by[who] = routes
	}
	w := routes[one.Route]
	if w == nil || w.Count == 0 && !one.Since.Before(w.end) {
		w = &deniedWindow{Denial: one, end: one.Since.Add(deniedTime)}
		routes[one.Route] = w
		if d.commits.AllowN(one.Since, 1) {
			w.Count = 0
			d.outcome.WithLabelValues("recorded").Inc()
			return true
		}
	} else {
		w.add(one)
	}
	d.outcome.WithLabelValues("counted").Inc()
	return false
}

// add counts another refusal of the caller on the route.
func (w *deniedWindow) add(one commands.Denial) {
	switch {
	case w.Count == 0:
		w.Since, w.Tenant = one.Since, one.Tenant
	case w.Tenant != one.Tenant:
		w.Tenant = ""
	}
	w.Count += one.Count
}

// due removes and returns the denials to record now, or all of them, by caller. Denials that
// exceed the rate of commits remain.
func (d *denials) due(now time.Time, all bool) map[denialKey][]commands.Denial {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := map[denialKey][]commands.Denial{}
	for who, routes := range d.by {
		ripe := 0
		for route, w := range routes {
			switch ended := !now.Before(w.end); {
			case w.Count == 0 && ended:
				delete(routes, route)
			case w.Count > 0 && (ended || all):
				ripe++
			}
		}
		if ripe > 0 && (all || d.commits.AllowN(now, 1)) {
			for _, w := range routes {
				if w.Count > 0 && (all || !now.Before(w.end)) {
					list[who] = append(list[who], w.Denial)
					w.Count, w.end = 0, now.Add(deniedTime)
				}
			}
		}
		if len(routes) == 0 {
			delete(d.by, who)
		}
	}
	return list
}

// restore puts back denials that could not be recorded.
func (d *denials) restore(who denialKey, list []commands.Denial) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, one := range list {
		if w := d.by[who][one.Route]; w != nil {
			w.add(one)
		} else {
			d.outcome.WithLabelValues("lost").Add(float64(one.Count))
		}
	}
}

// Denied records a denied call. If it is the first one in a minute, Denied returns when the event
// is durable. A failure is logged and not reported to the caller.
func (s *Service) Denied(ctx context.Context, call *service.Call, perm permission.Permission) {
	if call.CrossSite { // the browser sent it for a page of another origin
		return
	}
	who := denialKey{call.Principal.Home, call.Principal.Actor}
	one := commands.Denial{
		Principal: who.actor.Kind + ":" + who.actor.ID, Route: call.Route, Permission: string(perm), Count: 1, Since: s.Kernel.Now().UTC().Truncate(time.Microsecond),
	}
	if events.CheckName(call.Tenant) == nil {
		one.Tenant = call.Tenant
	}
	if events.CheckName(who.home) == nil && s.denials.note(who, one) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), DeniedAppend)
		defer cancel()
		s.recordDenials(ctx, who, call.Via, []commands.Denial{one})
	}
}

func (s *Service) recordDenials(ctx context.Context, who denialKey, via string, list []commands.Denial) {
	err := func() error {
		if err := s.Kernel.WritesAllowed(); err != nil {
			return err
		}
		exists, err := s.TenantExists(ctx, who.home)
		if err != nil || !exists { // the home tenant comes from a token, which may contain any tenant
			return err
		}
		call := &service.Call{Tenant: who.home, Principal: service.Principal{Actor: who.actor}, Via: via, CommandID: events.NewID()}
		_, _, err = service.Execute(ctx, s.Kernel, call, aggregates.Access, who.home,
			commands.Access(commands.RecordDenials{Principal: who.actor.ID, Denials: list}))
		return err
	}()
	if err != nil {
		s.denials.restore(who, list)
		s.Logger.ErrorContext(ctx, "denied calls not recorded; will retry", "principal", who.actor.ID, "err", err)
	}
}

// RunDenials records the counted denials at the end of each minute. When ctx ends, it records the
// remaining ones and returns nil.
func (s *Service) RunDenials(ctx context.Context) error {
	tick := time.NewTicker(deniedCheck)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			for who, list := range s.denials.due(s.Kernel.Now(), false) {
				s.recordDenials(ctx, who, "system", list)
			}
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), deniedStop)
			defer cancel()
			for who, list := range s.denials.due(s.Kernel.Now(), true) {
				s.recordDenials(last, who, "system", list)
			}
			return nil
		}
	}
}
