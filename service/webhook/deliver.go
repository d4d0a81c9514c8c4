package webhook

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/secrets"
)

const (
	// DefaultRetry is the pause after the first failed attempt at a delivery. Each further one
	// doubles it, up to retryMost.
	DefaultRetry = 5 * time.Second
	retryMost    = time.Hour
	retryFor     = 24 * time.Hour
	atOnce       = 4                      // requests of one webhook
	lookEvery    = time.Second            // for webhooks that were defined, changed or deleted
	saveEvery    = 500 * time.Millisecond // of the progress
	saveReadEach = 10 * time.Second       // of the progress where nothing was to be sent
	lookBack     = 10_000                 // commits read again when the log does not hold the last one that was read
	disabledGone = "gone"
	disabledFull = "dead_letters_full"
)

// incarnation names one webhook until it is deleted.
type incarnation struct{ tenant, id, incarnation string }

// RunDeliveries delivers the events of all webhooks until ctx ends, and returns nil. One process
// of an installation must run it. Each webhook reads the log, and waits for its receiver, by
// itself.
func (s *Service) RunDeliveries(ctx context.Context) error {
	if s.Deliveries == nil {
		return nil
	}
	type running struct {
		end  context.CancelFunc
		done chan struct{}
	}
	workers := map[incarnation]running{}
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		webhooks, err := s.Views.AllWebhooks(ctx)
		if err != nil && ctx.Err() == nil {
			s.Logger.WarnContext(ctx, "webhooks not listed; will retry", "err", err)
		}
		if err == nil {
			live, enabled := map[incarnation]bool{}, map[incarnation]bool{}
			for _, w := range webhooks {
				is := incarnation{w.Tenant, w.ID, w.Incarnation}
				live[is] = true
				if enabled[is] = w.Disabled == ""; enabled[is] {
					if _, runs := workers[is]; !runs {
						ctx, end := context.WithCancel(ctx)
						r := running{end, make(chan struct{})}
						workers[is] = r
						all.Go(func() {
							defer close(r.done)
							s.runWebhook(ctx, is, w.Defined)
						})
					}
				}
				if !w.PreviousUntil.IsZero() && !s.Kernel.Now().Before(w.PreviousUntil) {
					s.endRotation(ctx, is)
				}
			}
			for is, r := range workers {
				if !enabled[is] {
					r.end()
				}
				select {
				case <-r.done:
					delete(workers, is)
					if !live[is] {
						s.forget(ctx, is)
					}
				default:
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// forget removes the state of a webhook that was deleted, unless there is another one of its id.
func (s *Service) forget(ctx context.Context, is incarnation) {
	if _, err := s.live(ctx, is.tenant, is.id); !errors.Is(err, aggregates.ErrWebhookNotFound) {
		return
	}
	if err := s.Deliveries.Forget(ctx, is.tenant, is.id); err != nil {
		s.Logger.WarnContext(ctx, "deliveries of a deleted webhook not removed", "tenant", is.tenant, "webhook", is.id, "err", err)
	}
}

// endRotation erases the previous secret of a webhook, which no longer signs.
func (s *Service) endRotation(ctx context.Context, is incarnation) {
	state, err := s.live(ctx, is.tenant, is.id)
	if err == nil && state.Previous != "" && !s.Kernel.Now().Before(state.PreviousUntil) {
		_, err = s.execute(ctx, service.System(is.tenant, "webhooks"), commands.EndWebhookRotation{ID: is.id, SecretID: state.SecretID})
	}
	if err != nil && ctx.Err() == nil {
		s.Logger.WarnContext(ctx, "rotation of a signing secret not ended; will retry", "tenant", is.tenant, "webhook", is.id, "err", err)
	}
}

// errEnded ends a worker: its webhook was deleted, disabled or defined anew.
var errEnded = errors.New("webhook: ended")

// worker delivers the events of one webhook.
type worker struct {
	s  *Service
	is incarnation

	mu       sync.Mutex
	progress progress
	revision uint64
	dirty    bool
	readOn   time.Time       // since when the position alone has changed; zero when it has not
	busy     map[string]bool // subjects with a request in progress
	wake     chan struct{}   // holds one token when there may be something to do
	room     chan struct{}   // holds one token when there may be room for more
	refill   chan struct{}   // holds one token when a subject may have room for what it holds
}

// runWebhook delivers the events of one webhook until ctx ends or the webhook does.
func (s *Service) runWebhook(ctx context.Context, is incarnation, defined uint64) {
	log := s.Logger.With("tenant", is.tenant, "webhook", is.id)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 10*time.Second) {
		w := &worker{s: s, is: is, busy: map[string]bool{}, wake: make(chan struct{}, 1), room: make(chan struct{}, 1), refill: make(chan struct{}, 1)}
		s.running.Store(w, struct{}{})
		begun := time.Now()
		err := w.run(ctx, defined)
		s.running.Delete(w)
		if ctx.Err() != nil || errors.Is(err, errEnded) {
			return
		}
		if time.Since(begun) > 10*time.Second {
			pause = 100 * time.Millisecond
		}
		log.WarnContext(ctx, "webhook interrupted; restarting from its last position", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run delivers until an error.
func (w *worker) run(ctx context.Context, defined uint64) error {
	var err error
	if w.progress, w.revision, err = load[progress](ctx, w.s.Deliveries, w.is.tenant, w.is.id, partProgress); err != nil {
		return err
	}
	if w.progress.Incarnation != w.is.incarnation {
		w.progress = progress{Incarnation: w.is.incarnation, Read: secrets.Position{Seq: defined}}
	}
	from, err := w.from(ctx, defined)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var all sync.WaitGroup
	all.Go(func() { cancel(w.read(ctx, from)) })
	all.Go(func() { cancel(w.catchUp(ctx)) })
	fail := func(err error) { cancel(err) }
	saved := time.Now()
	for ctx.Err() == nil {
		timer := time.NewTimer(w.start(ctx, &all, fail))
		select {
		case <-ctx.Done():
		case <-w.wake:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() == nil && time.Since(saved) >= saveEvery {
			if err := w.save(ctx, saveReadEach); err != nil {
				cancel(err)
			}
			saved = time.Now()
		}
	}
	cancel(nil)
	all.Wait()
	end, done := context.WithTimeout(context.WithoutCancel(ctx), service.StopFor)
	defer done()
	return errors.Join(context.Cause(ctx), w.save(end, 0))
}

// from is the commit after which the log is read. Where the log does not hold the last commit
// that was read, it was restored: some of its end is read again.
func (w *worker) from(ctx context.Context, defined uint64) (uint64, error) {
	at := w.progress.Read
	if at.Commit == "" {
		return at.Seq, nil
	}
	recs, err := w.s.Log.Store.Commit(ctx, at.Seq)
	switch {
	case err == nil && recs[0].Meta.Commit == at.Commit:
		return at.Seq, nil
	case err != nil && !errors.Is(err, events.ErrNoSuchCommit):
		return 0, err
	}
	end, err := w.s.Log.Store.End(ctx)
	w.progress.Pending, w.progress.Behind = nil, nil // read again
	return max(defined, end-min(end, lookBack)), err
}

// read reads the log and adds the events that the webhook sends. It waits while too many are
// pending.
func (w *worker) read(ctx context.Context, from uint64) error {
	var found []delivery
	for rec, err := range w.s.Log.Store.Follow(ctx, from) {
		if err != nil {
			return err
		}
		if found, err = w.find(ctx, rec, found); err != nil {
			return err
		}
		if !rec.Last() {
			continue
		}
		if err := w.add(ctx, rec.Stream, secrets.Position{Seq: rec.Seq, Commit: rec.Meta.Commit}, found); err != nil {
			return err
		}
		found = nil
	}
	return fault.ErrUnavailable // the log ends no sooner than ctx
}

// find appends the delivery of an event, if the webhook sends it.
func (w *worker) find(ctx context.Context, rec events.Record, found []delivery) ([]delivery, error) {
	if rec.Meta.Tenant != w.is.tenant {
		return found, nil
	}
	m, ok := projections.Public(rec)
	if !ok || m.Audience != events.Changes {
		return found, nil
	}
	sends, err := w.sends(ctx, m, rec)
	if err != nil || !sends {
		return found, err
	}
	return append(found, delivery{
		Seq: rec.Seq, Index: rec.Index, ID: m.ID, Type: m.StoredName(), Subject: m.EventSubject, Since: w.s.Kernel.Now().UTC(),
	}), nil
}

// hold reports whether the subject has enough pending deliveries: then catchUp reads these later.
// The caller holds mu.
func (w *worker) hold(stream events.StreamID, seq uint64, subject string) bool {
	h, behind := w.progress.Behind[subject]
	if !behind {
		if w.pendingOf(subject) < maxSubject {
			return false
		}
		h = held{Stream: stream, After: seq - 1}
	}
	h.Last = seq
	if w.progress.Behind == nil {
		w.progress.Behind = map[string]held{}
	}
	w.progress.Behind[subject] = h
	w.dirty = true
	return true
}

func (w *worker) pendingOf(subject string) (n int) {
	for _, d := range w.progress.Pending {
		if d.Subject == subject {
			n++
		}
	}
	return n
}

// catchUp reads what subjects hold, when their earlier events are done, until ctx ends.
func (w *worker) catchUp(ctx context.Context) error {
	poke(w.refill)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.refill:
		}
		w.mu.Lock()
		due := map[string]held{}
		for subject, h := range w.progress.Behind {
			if w.pendingOf(subject) == 0 {
				due[subject] = h
			}
		}
		w.mu.Unlock()
		for subject, h := range due {
			if err := w.release(ctx, subject, h); err != nil {
				return err
			}
		}
	}
}

// release makes the next events of a subject pending.
func (w *worker) release(ctx context.Context, subject string, h held) error {
	var found, commit []delivery
	after := h.Last
	for rec, err := range w.s.Log.Store.Stream(ctx, h.Stream, h.After) {
		if err != nil {
			return err
		}
		if rec.Seq > h.Last {
			break
		}
		if commit, err = w.find(ctx, rec, commit); err != nil {
			return err
		}
		if !rec.Last() {
			continue
		}
		found, commit = append(found, commit...), nil
		if len(found) >= maxSubject {
			after = rec.Seq
			break
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.progress.Pending = append(w.progress.Pending, found...)
	now := w.progress.Behind[subject]
	if now.After = after; now.After >= now.Last {
		delete(w.progress.Behind, subject)
	} else {
		w.progress.Behind[subject] = now // read until then, or held meanwhile
	}
	w.dirty = true
	poke(w.wake)
	if len(found) == 0 {
		poke(w.refill)
	}
	return nil
}

func (w *worker) add(ctx context.Context, stream events.StreamID, at secrets.Position, found []delivery) error {
	for {
		w.mu.Lock()
		if len(found) > 0 && w.hold(stream, at.Seq, found[0].Subject) {
			found = nil
		}
		if len(found) == 0 || len(w.progress.Pending) < maxPending {
			w.progress.Read = at
			w.progress.Pending = append(w.progress.Pending, found...)
			w.dirty = w.dirty || len(found) > 0
			if w.readOn.IsZero() {
				w.readOn = time.Now()
			}
			w.mu.Unlock()
			if len(found) > 0 {
				poke(w.wake)
			}
			return nil
		}
		w.mu.Unlock()
		select {
		case <-w.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// sends reports whether the webhook, as it is now, sends an event.
func (w *worker) sends(ctx context.Context, m projections.Message, rec events.Record) (bool, error) {
	state, err := aggregates.Webhook.Load(ctx, w.s.Log, aggregates.Webhook.Stream(w.is.tenant, w.is.id))
	if err != nil {
		return false, err
	}
	settings := state.Value.Settings
	category := rec.Stream.Category
	if len(settings.Types) > 0 && !slices.ContainsFunc(settings.Types, func(t string) bool {
		return t == m.StoredName() || strings.TrimSuffix(t, "*") == category+"."
	}) {
		return false, nil
	}
	if settings.Component == "" {
		return true, nil
	}
	switch category {
	case aggregates.Component.Category, aggregates.OAuthClient.Category: // their streams are named by the component
		return rec.Stream.ID == settings.Component, nil
	case aggregates.Credential.Category:
		of, err := aggregates.Credential.Load(ctx, w.s.Log, rec.Stream)
		return of.Value.Component == settings.Component, err
	}
	return false, nil
}

// start begins the deliveries that are due, in order per subject, and returns how long to wait
// for the next one.
func (w *worker) start(ctx context.Context, all *sync.WaitGroup, fail func(error)) (wait time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	wait = saveEvery
	now := w.s.Kernel.Now()
	behind := map[string]bool{}
	for i := range w.progress.Pending {
		d := w.progress.Pending[i]
		if behind[d.Subject] {
			continue
		}
		behind[d.Subject] = true
		if w.busy[d.Subject] || len(w.busy) >= atOnce {
			continue
		}
		if left := d.Next.Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		w.busy[d.Subject] = true
		all.Go(func() {
			if err := w.deliver(ctx, d); err != nil {
				fail(err)
			}
			w.mu.Lock()
			delete(w.busy, d.Subject)
			w.mu.Unlock()
			poke(w.wake)
		})
	}
	return wait
}

// deliver makes one attempt at a delivery.
func (w *worker) deliver(ctx context.Context, d delivery) error {
	m, err := w.s.message(ctx, d)
	if err != nil {
		return err
	}
	state, err := w.s.live(ctx, w.is.tenant, w.is.id)
	switch {
	case errors.Is(err, aggregates.ErrWebhookNotFound), err == nil && (state.Incarnation != w.is.incarnation || state.Disabled != ""):
		return errEnded
	case err != nil:
		return err
	}
	a, err := w.s.send(ctx, w.is.tenant, w.is.id, state, m)
	if err != nil {
		return err
	}
	if ctx.Err() != nil && !a.delivered() {
		return ctx.Err() // it was interrupted, which is no failure of the receiver
	}
	now := w.s.Kernel.Now().UTC()
	w.s.metrics.attempt(a)
	d.attempted(a, now)
	switch {
	case a.delivered():
		d.Next = time.Time{}
		w.finish(d, true)
		return nil
	case a.status == http.StatusGone:
		w.retry(d, 0)
		return w.disable(ctx, disabledGone)
	}
	pause := min(w.s.Retry<<min(d.Attempts-1, 20), retryMost)
	pause = max(pause/2+rand.N(pause/2+1), min(a.retryAfter, retryFor)) //nolint:gosec // spreads retries
	if now.Add(pause).Sub(d.Since) < retryFor {
		w.retry(d, pause)
		return nil
	}
	full := false
	d.Next = time.Time{}
	err = w.s.changeDead(ctx, w.is.tenant, w.is.id, w.is.incarnation, func(dead []delivery) ([]delivery, bool) {
		if full = len(dead) >= maxDead; full || slices.ContainsFunc(dead, func(other delivery) bool { return other.ID == d.ID }) {
			return dead, false
		}
		return append(dead, d), true
	})
	switch {
	case err != nil:
		return err
	case full:
		w.retry(d, 0)
		return w.disable(ctx, disabledFull)
	}
	w.s.Logger.WarnContext(ctx, "event not delivered within 24 hours; it is a dead letter of the webhook", "tenant", w.is.tenant, "webhook", w.is.id, "event", d.ID, "attempts", d.Attempts)
	w.finish(d, false)
	return nil
}

func (w *worker) disable(ctx context.Context, reason string) error {
	_, err := w.s.execute(ctx, service.System(w.is.tenant, "webhooks"), commands.DisableWebhook{ID: w.is.id, Incarnation: w.is.incarnation, Reason: reason})
	if err != nil {
		return err
	}
	return errEnded
}

// finish removes a delivery that is done.
func (w *worker) finish(d delivery, delivered bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.progress.Pending = slices.DeleteFunc(w.progress.Pending, func(p delivery) bool { return p.ID == d.ID })
	if delivered {
		w.progress.Recent = append(w.progress.Recent, d)
		w.progress.Recent = slices.Clone(w.progress.Recent[max(0, len(w.progress.Recent)-maxRecent):])
	}
	w.dirty = true
	poke(w.room)
	if _, behind := w.progress.Behind[d.Subject]; behind {
		poke(w.refill)
	}
}

// retry keeps a delivery pending for another attempt.
func (w *worker) retry(d delivery, pause time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d.Next = d.At.Add(pause)
	if i := slices.IndexFunc(w.progress.Pending, func(p delivery) bool { return p.ID == d.ID }); i >= 0 {
		w.progress.Pending[i] = d
	}
	w.dirty = true
}

// save stores the progress if it has changed, or if the position alone has for a time: others
// fill the log, too, and what was read without anything to send may be read again.
func (w *worker) save(ctx context.Context, after time.Duration) error {
	w.mu.Lock()
	dirty := w.dirty || !w.readOn.IsZero() && time.Since(w.readOn) >= after
	if dirty {
		w.dirty, w.readOn = false, time.Time{}
	}
	b, err := json.Marshal(w.progress)
	w.mu.Unlock()
	if err != nil || !dirty {
		return err
	}
	revision, err := w.s.Deliveries.Store(ctx, w.is.tenant, w.is.id, partProgress, b, w.revision)
	if err != nil {
		w.mu.Lock()
		w.dirty = true
		w.mu.Unlock()
		return fmt.Errorf("progress of a webhook not saved: %w", err)
	}
	w.revision = revision
	return nil
}
