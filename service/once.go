package service

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
)

// Resumed is the first commit of the command, made by an interrupted attempt; nil when
// there is none.
func (c *Call) Resumed() []events.Record {
	if c.execution == nil {
		return nil
	}
	return c.execution.resumed
}

// Step is the call for the nth step of its command.
func (c *Call) Step(n int) *Call {
	sub := *c
	if sub.CommandID != "" {
		sub.CommandID += "/" + strconv.Itoa(n)
	}
	sub.named, sub.request = false, "" // a repeat is detected by its effect, not by its command id
	return &sub
}

// IsRejected reports whether err means that nothing was appended. Any error that
// is not a clear refusal may hide a commit that names the secret.
func IsRejected(err error) bool {
	if _, repeated := errors.AsType[*Repeat](err); repeated {
		return true
	}
	f, ok := errors.AsType[*fault.Error](err)
	return ok && f.Kind != fault.Unavailable && f.Kind != fault.Internal
}

// Done is the response to a command. A repeat rebuilds it from the stored
// events, so it holds nothing else.
type Done struct {
	Seq      uint64        `json:"seq"`               // log sequence to pass as min_seq
	ID       string        `json:"id,omitzero"`       // of the changed resource
	Version  int           `json:"version,omitzero"`  // of a credential's keys, or of a connector secret
	Status   events.Status `json:"status,omitzero"`   // of a credential; of a connector or its secret, the effect of the command
	Revision int           `json:"revision,omitzero"` // of a component's descriptor
	Says     string        `json:"says,omitzero"`     // why the dry request failed, a sentence
	Binding  string        `json:"binding,omitzero"`  // id of a flow's reservation
	Until    time.Time     `json:"until,omitzero"`    // when the reservation expires
}

// Completed is the Done of a response that embeds it.
func (d Done) Completed() Done { return d }

// Repeat ends the execution of a command that is already in the log.
type Repeat struct {
	answer any
	err    error // in place of a response: the recorded refusal
}

// Outcome is the command's outcome: a Done, if that was its response, or the recorded
// refusal.
func (r *Repeat) Outcome() (done Done, ok bool, err error) {
	done, ok = r.answer.(Done)
	return done, ok, r.err
}

func (r *Repeat) Error() string { return "the command was already completed" }

// execution is one attempt at a command. The steps of the command share it.
type execution struct {
	detach  func()          // from the caller's context, see detachable
	acted   bool            // the command has acted outside the log, with a possibly unknown outcome
	request string          // HMAC of the request, when the caller gave the command id
	seq     uint64          // of the commit that recorded the command id; 0 while there is none
	done    Done            // the response of this commit
	resumed []events.Record // the commit of an interrupted attempt, which this one completes

	// others means that other attempts at the command may be in progress, or were: one of them may
	// have concluded that nothing is to be done, which no commit to the aggregate tells.
	others bool

	unfinished bool // the commit that recorded the command id has later steps, which determine the response

	mu        sync.Mutex
	unsettled []unsettled // appends with an unknown outcome
}

// unsettled is a commit that may be in the log, or may still arrive there.
type unsettled struct {
	*events.UnsettledError
	named bool // it records the command id
}

// note records an append whose outcome is unknown according to err.
func (e *execution) note(err error, named bool) {
	if u, ok := errors.AsType[*events.UnsettledError](err); ok && e != nil {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.unsettled = append(e.unsettled, unsettled{u, named})
	}
}

// sent are the appends with an unknown outcome.
func (e *execution) sent() []unsettled {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.unsettled)
}

// assignCommandID sets the command id of the call: the caller's, or a random one. The
// request of a caller's id is recorded as an HMAC under the tenant's key,
// because a plain hash could be guessed.
func (k *Kernel) assignCommandID(ctx context.Context, call *Call, route string, body []byte) error {
	if call.CommandID == "" {
		call.CommandID = events.NewID()
		return nil
	}
	if len(call.CommandID) > maxID || !printable(call.CommandID) {
		return ErrCommandID
	}
	canonical := jsontext.Value(append([]byte(nil), body...))
	// Keep numbers as written: they may exceed a float64.
	if err := canonical.Canonicalize(jsontext.CanonicalizeRawInts(false), jsontext.CanonicalizeRawFloats(false)); err != nil {
		return ErrBody.Withf("The body must be one JSON document.")
	}
	mac, err := k.cfg.Keyring.MAC(ctx, call.Tenant, events.LengthPrefixed("credstream/request/1", route, string(canonical)))
	if err != nil {
		return fmt.Errorf("mac of the request: %w", err)
	}
	call.named, call.request = true, hex.EncodeToString(mac[:16])
	return nil
}

// commandKey is the scope within which a command id is unique.
type commandKey struct{ tenant, kind, actor, command string }

func (c *Call) key() commandKey {
	return commandKey{c.Tenant, c.Principal.Actor.Kind, c.Principal.Actor.ID, c.CommandID}
}

// Unfinished means that the commit that recorded the command id has later steps, which
// determine the response.
func (c *Call) Unfinished() {
	if c.execution != nil {
		c.execution.unfinished = true
	}
}

// Named reports whether the caller gave the command id.
func (c *Call) Named() bool { return c.named }

// DeriveID derives the id of a new resource from the command. A repeat derives the same id.
func (c *Call) DeriveID(what string) string {
	return events.DeriveID(c.Tenant, c.Principal.Actor, c.CommandID, what)
}

// Detach makes the command independent of its caller, before its
// first effect outside the log. Time limits still apply.
func (c *Call) Detach() {
	if c.execution != nil {
		c.execution.acted = true
		c.execution.detach()
	}
}

// detachable is the context of one command. It ends with the caller's context until detach
// is called, and in any case after maxCall.
func detachable(caller context.Context) (ctx context.Context, detach, end func()) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(caller), MaxCall)
	stop := context.AfterFunc(caller, cancel)
	return ctx, func() { stop() }, func() { stop(); cancel() }
}

// Claims are the attempts at named commands in progress or with unknown outcome, shared
// by all processes of one log. A claim expires some time after its
// last attempt, but not before ClaimTime. An attempt that AttemptEnded counts no longer, however often
// the command is repeated.
type Claims interface {
	// Begin registers an attempt at the command with this key and returns the request
	// that the command id is claimed for: this one, or another one with an
	// attempt that was not refused. In the latter case nothing was registered. others reports
	// whether there are, or were lately, other attempts with this request.
	Begin(ctx context.Context, key [sha256.Size]byte, request, attempt string) (claimed string, others bool, err error)
	// Others reports whether attempts other than this one may still be executed.
	Others(ctx context.Context, key [sha256.Size]byte, attempt string) (bool, error)
	// Refuse records that an attempt was refused. others reports whether another one may
	// still be executed; if none may, the command id is free for any request.
	Refuse(ctx context.Context, key [sha256.Size]byte, attempt string) (others bool, err error)
	// Complete records that an attempt has succeeded, which is in the log.
	Complete(key [sha256.Size]byte, attempt string)
}

// ClaimTime is the minimum lifetime of a claim: longer work has
// ended by its own time limits.
const ClaimTime = 10 * time.Minute

// attemptTime is the age at which nothing of an attempt can be in flight: it has ended by its own
// time limit, and what it left unsettled too. The clocks of the processes may differ by some seconds.
const attemptTime = ClaimTime + 2*MaxCall

// AttemptEnded reports whether an attempt began so long before now that nothing of it can still be
// stored, even if its process died before it could say so.
func AttemptEnded(attempt string, now time.Time) bool {
	begun := events.IDTime(attempt)
	return !begun.IsZero() && now.Sub(begun) > attemptTime
}

// localClaims are the claims of a process that serves its log alone. It serializes the attempts of one
// command id (serialize), so only attempts with an unknown outcome are
// kept.
type localClaims struct {
	mu sync.Mutex
	by map[[sha256.Size]byte]*localClaim
}

type localClaim struct {
	request string
	open    map[string]struct{}
	last    time.Time
}

// maxLocalClaims is the number of claims above which expired ones are removed.
const maxLocalClaims = 4096

func (c *localClaims) Begin(_ context.Context, key [sha256.Size]byte, request, attempt string) (claimed string, others bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.by) > maxLocalClaims {
		for k, claim := range c.by {
			if time.Since(claim.last) > ClaimTime {
				delete(c.by, k)
			}
		}
	}
	claim := c.by[key]
	switch {
	case claim == nil || time.Since(claim.last) > ClaimTime:
		claim = &localClaim{request: request, open: map[string]struct{}{}}
		c.by[key] = claim
	case claim.request != request:
		return claim.request, false, nil
	}
	maps.DeleteFunc(claim.open, func(other string, _ struct{}) bool { return AttemptEnded(other, time.Now()) })
	others = len(claim.open) > 0
	claim.open[attempt], claim.last = struct{}{}, time.Now()
	return request, others, nil
}

func (c *localClaims) Others(_ context.Context, key [sha256.Size]byte, attempt string) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	claim := c.by[key]
	if claim == nil {
		return false, nil
	}
	n := len(claim.open)
	if _, ours := claim.open[attempt]; ours {
		n--
	}
	return n > 0, nil
}

func (c *localClaims) Refuse(_ context.Context, key [sha256.Size]byte, attempt string) (others bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	claim := c.by[key]
	if claim == nil {
		return false, nil
	}
	delete(claim.open, attempt)
	if len(claim.open) == 0 {
		delete(c.by, key)
	}
	return len(claim.open) > 0, nil
}

func (c *localClaims) Complete(key [sha256.Size]byte, _ string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.by, key)
}

// execute executes one command, and repeats the first response for a repeated one.
func (k *Kernel) execute(caller context.Context, call *Call, route *Route, body []byte) (any, error) {
	ctx, detach, end := detachable(caller)
	defer end()
	call.execution = &execution{detach: detach, request: call.request}
	if !call.named {
		return route.serve(ctx, call, body)
	}
	release, err := k.serialize(ctx, call)
	if err != nil {
		return nil, err
	}
	defer release()
	call.dedupPosition = k.cfg.Views.Position()
	if r, err := k.repeated(ctx, call, 0); err != nil || r != nil {
		return r.outcome(err)
	}
	id := call.key()
	key := sha256.Sum256(events.LengthPrefixed("credstream/claim/1", id.tenant, id.kind, id.actor, id.command))
	attempt := events.NewID()
	request := call.execution.request // also of a call that completes an earlier attempt and is no longer named
	claimed, others, err := k.cfg.Claims.Begin(ctx, key, request, attempt)
	if err != nil {
		k.settleAttempt(call, key, attempt)
		return nil, err
	}
	if claimed != request {
		return nil, ErrCommandIDReused
	}
	call.execution.others = others
	answer, err := k.attempt(ctx, call, route, body, key, attempt)
	if err != nil && !IsRejected(err) {
		k.settleAttempt(call, key, attempt)
	}
	return answer, err
}

// attempt executes a named command that is claimed.
func (k *Kernel) attempt(ctx context.Context, call *Call, route *Route, body []byte, key [sha256.Size]byte, attempt string) (any, error) {
	answer, err := k.executeNamed(ctx, call, route, body)
	if r, ok := errors.AsType[*Repeat](err); ok { // an identical call won the race to the log
		k.cfg.Claims.Complete(key, attempt)
		return r.outcome(nil)
	}
	if err != nil && !IsRejected(err) {
		return nil, err
	}
	if call.execution.recorded() {
		if err != nil { // what the log has of it was undone
			if err := k.rememberRefusal(ctx, call, route.Name, err); err != nil {
				return nil, err
			}
		}
		k.cfg.Claims.Complete(key, attempt)
		return answer, err
	}
	return k.conclude(ctx, call, route, body, key, attempt, answer, err)
}

// recorded reports whether the log has the command id.
func (e *execution) recorded() bool { return e.seq != 0 || e.resumed != nil }

// executeNamed executes a named command and, if it has appended something, records its outcome. It
// also completes an earlier attempt that it only detects when it is about to append.
func (k *Kernel) executeNamed(ctx context.Context, call *Call, route *Route, body []byte) (any, error) {
	resumed := call.execution.resumed != nil
	answer, err := route.serve(ctx, call, body)
	if !resumed && call.execution.resumed != nil && errors.Is(err, events.ErrUnknownOutcome) {
		answer, err = route.serve(ctx, call, body)
	}
	if err != nil || !call.execution.recorded() {
		return answer, err
	}
	if e := call.execution; e.others && e.seq != 0 {
		if r, err := k.recordedBefore(ctx, call, e.seq); err != nil || r != nil {
			return r.outcome(err)
		}
	}
	return k.remember(ctx, call, route.Name, answer)
}

// conclude returns the outcome of a named command that has appended nothing, because it was refused or
// because nothing was left to do, but only if no other attempt at the command was executed or may
// still be. It checks the log to its end; the claim tells of other attempts.
func (k *Kernel) conclude(ctx context.Context, call *Call, route *Route, body []byte, key [sha256.Size]byte, attempt string,
	answer any, refusal error,
) (any, error) {
	if refusal == nil {
		if _, changes, err := summarize(route.Name, answer); err != nil || !changes { // of a dry run nothing can be executed
			k.cfg.Claims.Complete(key, attempt)
			return answer, err
		}
	}
	end, err := k.cfg.Log.Store.End(ctx)
	if err != nil {
		return nil, err
	}
	if r, err := k.repeated(ctx, call, end); err != nil || r != nil {
		if err == nil {
			k.cfg.Claims.Complete(key, attempt)
		}
		return r.outcome(err)
	}
	if call.execution.resumed != nil { // an attempt was interrupted in another process, and the views did not have it yet
		return k.attempt(ctx, call, route, body, key, attempt)
	}
	if refusal != nil {
		others, err := k.cfg.Claims.Refuse(ctx, key, attempt)
		if err != nil || others {
			return nil, errors.Join(events.ErrUnknownOutcome, err)
		}
		return nil, refusal
	}
	// The claim stays: whoever begins now looks for the record. What has acted outside the log was
	// carried out, and is not undone by another attempt.
	if !call.execution.acted {
		others, err := k.cfg.Claims.Others(ctx, key, attempt)
		if err != nil || others {
			return nil, errors.Join(events.ErrUnknownOutcome, err)
		}
	}
	if answer, err = k.remember(ctx, call, route.Name, answer); err != nil {
		return nil, err
	}
	if r, err := k.recordedBefore(ctx, call, call.execution.seq); err != nil || r != nil {
		return r.outcome(err)
	}
	k.cfg.Claims.Complete(key, attempt)
	return answer, nil
}

// recordedBefore returns the outcome of a commit before seq that has the command id, nil if there is
// none: of two attempts, of which one changed something and the other found nothing to do, the first
// in the log is the outcome, for every repeat.
func (k *Kernel) recordedBefore(ctx context.Context, call *Call, seq uint64) (*Repeat, error) {
	first, found, err := k.firstCommit(ctx, call, seq)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", events.ErrUnknownOutcome, err)
	}
	if !found || first >= seq {
		return nil, nil //nolint:nilnil // it is the first
	}
	k.completedCommands.Add(call.key(), first)
	return k.recordedAt(ctx, call, first)
}

// maxSettling bounds the attempts that are settled concurrently; the claim of any
// other one stays until it expires.
const maxSettling = 4096

// settling are the attempts that are being settled.
type settling struct {
	mu    sync.Mutex
	n     int
	group sync.WaitGroup
	ctx   context.Context // ends some time after Close
	end   context.CancelFunc
}

func (s *settling) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n--
}

// settleAttempt resolves, in the background, an attempt that ended without a result: its
// appends are stored or never will be. If they failed, the claim is
// refused, so that a repeat may be refused. An attempt that has acted outside the log keeps its
// claim until it expires.
func (k *Kernel) settleAttempt(call *Call, key [sha256.Size]byte, attempt string) {
	e := call.execution
	if e.acted || e.seq != 0 || e.resumed != nil {
		return
	}
	k.settling.mu.Lock()
	defer k.settling.mu.Unlock()
	if k.settling.n == maxSettling || k.background.Err() != nil {
		return
	}
	k.settling.n++
	k.settling.group.Go(func() {
		defer k.settling.leave()
		ctx, cancel := context.WithTimeout(k.settling.ctx, ClaimTime)
		defer cancel()
		for _, u := range e.sent() {
			stored, err := u.Settle(ctx)
			if err != nil || stored && u.named {
				return // unknown, or stored in the log
			}
		}
		for {
			if _, err := k.cfg.Claims.Refuse(ctx, key, attempt); err == nil {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
		}
	})
}

// outcome is the result for the caller of a repeated command; err takes precedence.
func (r *Repeat) outcome(err error) (any, error) {
	switch {
	case err != nil:
		return nil, err
	case r.err != nil:
		return nil, r.err
	}
	return r.answer, nil
}

// serialize waits until no other call with the same command id is in progress in this
// process; release admits the next one. Two requests that share an id but not a
// target would otherwise not conflict.
func (k *Kernel) serialize(ctx context.Context, call *Call) (release func(), err error) {
	key, mine := call.key(), make(chan struct{})
	for {
		other, taken := k.inFlight.LoadOrStore(key, mine)
		if !taken {
			return func() { k.inFlight.Delete(key); close(mine) }, nil
		}
		resume := admission.Idle(ctx)
		select {
		case <-other.(chan struct{}):
			resume()
		case <-ctx.Done():
			resume()
			return nil, ctx.Err()
		}
	}
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x21 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

// repeated finds the response to a named command that is already in the log, else nil.
// The views know every command up to their position; it waits for them to reach
// upTo. A command of several steps that was interrupted between them has no response yet: the
// call must complete it.
func (k *Kernel) repeated(ctx context.Context, call *Call, upTo uint64) (*Repeat, error) {
	if !call.named {
		return nil, nil //nolint:nilnil // no command id from the caller
	}
	seq, found := k.completedCommands.Get(call.key()) // which the views may not have yet
	if !found {
		var err error
		if seq, found, err = k.firstCommit(ctx, call, upTo); err != nil || !found {
			return nil, err
		}
	}
	return k.recordedAt(ctx, call, seq)
}

// firstCommit finds the first commit in the log, up to upTo, that has the command id of the call.
func (k *Kernel) firstCommit(ctx context.Context, call *Call, upTo uint64) (seq uint64, found bool, err error) {
	standing := false // the views have stopped and must be repaired
	if err := k.cfg.Projector.Wait(ctx, upTo); errors.Is(err, projections.ErrViewsBehind) {
		standing = true
	} else if err != nil {
		return 0, false, err
	}
	at := k.cfg.Views.Position() // it may advance
	seq, found, err = k.cfg.Views.Command(ctx, call.Tenant, call.Principal.Actor, call.CommandID)
	if err == nil && !found && standing {
		seq, found, err = k.beyondViews.command(ctx, k, call.key(), at, upTo)
	}
	return seq, found, err
}

// recordedAt is the outcome of the command whose id the commit at seq has.
func (k *Kernel) recordedAt(ctx context.Context, call *Call, seq uint64) (*Repeat, error) {
	recs, err := k.cfg.Log.Store.Commit(ctx, seq)
	if err == nil {
		err = k.cfg.Log.Store.WaitDurable(ctx, seq)
	}
	if err != nil {
		return nil, fmt.Errorf("commit of a repeated command: %w", err)
	}
	if recs[0].Meta.Request != call.request {
		return nil, ErrCommandIDReused
	}
	record, err := aggregates.CommandRecord.Fresh(ctx, k.cfg.Log, aggregates.CommandRecord.Stream(call.Tenant, call.recordID()))
	if err != nil {
		return nil, err
	}
	if c := record.Value.Completed; c != nil && !foundNothing(*c, recs[0]) {
		return k.recalled(ctx, call, *c)
	}
	done, err := k.Recorded(ctx, recs)
	if err != nil {
		return nil, err
	}
	last := k.answers[recs[0].Stream.Category].last // an earlier version has recorded the id there
	ended := last != nil && last(recs)
	if e := call.execution; record.Value.Started != nil || k.routes[call.Route].resumable && !ended {
		if e.seq == 0 {
			e.resumed, e.done, call.named, call.request = recs, done, false, ""
		}
		return nil, nil //nolint:nilnil // must be completed
	}
	return k.recalled(ctx, call, summaryOf(call.Route, done))
}

// foundNothing reports whether the recorded outcome is that of another attempt, which found nothing to
// do before the commit that was the first to have the command id.
func foundNothing(c events.CommandCompleted, first events.Record) bool {
	return first.Stream.Category != aggregates.CommandRecord.Category && c.Refusal.Code == "" && c.Seq != 0 && c.Seq < first.Seq
}

// Execute executes one command on one aggregate. It returns the state before
// the command and the state after it.
func Execute[S any, C commands.Command, E any](ctx context.Context, k *Kernel, call *Call,
	d aggregates.Decider[S, C, E], tenant string, cmd C,
) (before S, after aggregates.State[S], err error) {
	was, after, err := Commit(ctx, k, call, d, tenant, cmd)
	return was.Value, after, err
}

// Commit is the one way to the log. It returns both states, which have the same
// Seq when nothing was appended.
func Commit[S any, C commands.Command, E any](ctx context.Context, k *Kernel, call *Call,
	d aggregates.Decider[S, C, E], tenant string, cmd C,
) (was, after aggregates.State[S], err error) {
	begin := k.Now()
	if err := call.late(begin); err != nil {
		return was, after, err
	}
	if call.execution != nil {
		call.execution.detach()
	}
	was, after, err = d.Execute(ctx, k.cfg.Log, tenant, cmd, k.meta(call), func(ctx context.Context, seq uint64) error {
		if !call.named || seq <= call.dedupPosition && !call.execution.others || call.execution.seq != 0 { // an unnamed call may have several executions
			return nil // or an earlier check covered it
		}
		if call.execution.others {
			end, err := k.cfg.Log.Store.End(ctx)
			if err != nil {
				return err
			}
			seq = end
		}
		r, err := k.repeated(ctx, call, seq)
		switch {
		case err != nil:
			return err
		case r != nil:
			return r
		case !call.named: // another attempt has begun it: executeNamed starts over
			return events.ErrUnknownOutcome
		}
		call.dedupPosition = seq
		return nil
	})
	call.execution.note(err, call.named)
	if after.Seq > was.Seq { // stored, though perhaps not known to be durable
		k.metrics.appended.Observe(k.Now().Sub(begin).Seconds())
		if call.named && call.execution.seq == 0 {
			call.execution.seq, call.execution.done = after.Seq, k.Answered(d.Stream(tenant, cmd.Target()), was.Value, after.Value, after.Seq)
			k.completedCommands.Add(call.key(), after.Seq)
		}
	}
	return was, after, err
}

// correlation is the correlation id of the call's commits.
func (c *Call) correlation() string {
	if c.Correlation == "" {
		return c.CommandID
	}
	return c.Correlation
}

// Apart is the call for work that continues after its response. It has the same
// correlation id.
func (c *Call) Apart() *Call {
	one := *c
	one.Correlation = c.correlation()
	one.named, one.request, one.execution = false, "", nil
	return &one
}

// Within is the part of a bulk call that concerns one credential.
func (c *Call) Within(id string) *Call {
	one := *c
	one.CommandID += "/" + id
	one.named, one.request, one.execution = false, "", nil
	return &one
}
