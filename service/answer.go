package service

import (
	"context"
	"fmt"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// Answer builds the responses to commands on one aggregate.
type Answer struct {
	category string
	fill     func(done *Done, before, after any)
	around   func(ctx context.Context, log *aggregates.Log, recs []events.Record) (before, after any, err error)
	last     func(recs []events.Record) bool
}

// AnswerOf makes the Answer of an aggregate: fill completes the Done, which has the log
// sequence and the id of the stream, from the states before and after the command.
func AnswerOf[S any, C commands.Command, E any](d aggregates.Decider[S, C, E], fill func(done *Done, before, after S)) Answer {
	return Answer{
		category: d.Category,
		fill:     func(done *Done, before, after any) { fill(done, before.(S), after.(S)) },
		around: func(ctx context.Context, log *aggregates.Log, recs []events.Record) (any, any, error) {
			before, after, err := d.Around(ctx, log, recs)
			return before, after, err
		},
	}
}

// Last sets which commits to the aggregate are the final step of a command.
func (a Answer) Last(last func(recs []events.Record) bool) Answer {
	a.last = last
	return a
}

// Answered is the response to the command that made the commit at seq, or that found
// nothing to change in the state at that time. It builds both the first
// response and the repeated one.
func (k *Kernel) Answered(stream events.StreamID, before, after any, seq uint64) Done {
	done := Done{Seq: seq, ID: stream.ID}
	if a, ok := k.answers[stream.Category]; ok {
		a.fill(&done, before, after)
	}
	return done
}

// Recorded rebuilds the response to the command that made a commit, from the stream as of
// that commit.
func (k *Kernel) Recorded(ctx context.Context, recs []events.Record) (Done, error) {
	stream := recs[0].Stream
	a, ok := k.answers[stream.Category]
	if !ok {
		return k.Answered(stream, nil, nil, recs[0].Seq), nil
	}
	before, after, err := a.around(ctx, k.cfg.Log, recs)
	if err != nil {
		return Done{}, err
	}
	return k.Answered(stream, before, after, recs[0].Seq), nil
}

// Begin records that a command is about to act outside the log. It returns the record
// of the first attempt at the command, from which an attempt after a crash continues.
// A command without a command id from its caller leaves no record.
func (k *Kernel) Begin(ctx context.Context, call *Call, c events.CommandStarted) (first events.CommandStarted, err error) {
	c.Route = call.Route
	e := call.execution
	if e == nil || e.request == "" {
		return c, nil
	}
	request := call.request
	call.request = e.request // also of a call that completes an earlier attempt
	_, after, err := Commit(ctx, k, call, aggregates.CommandRecord, call.Tenant, commands.CommandRecord(commands.StartCommand{ID: call.recordID(), Started: c}))
	if call.request = request; e.resumed != nil {
		call.request = ""
	}
	switch {
	case err != nil:
		return c, fmt.Errorf("record that a command begins: %w", err)
	case after.Value.Started == nil: // another attempt has completed it meanwhile
		return c, events.ErrUnknownOutcome
	}
	return *after.Value.Started, nil
}

// recordID is the id of the stream that records the command's outcome.
func (c *Call) recordID() string { return c.DeriveID("command") }

// summaryOf returns the recorded form of a response.
func summaryOf(route string, d Done) events.CommandCompleted {
	return events.CommandCompleted{
		Route: route, Seq: d.Seq, ID: d.ID, Version: d.Version, Status: d.Status, Revision: d.Revision, Says: d.Says, Binding: d.Binding, Until: d.Until,
	}
}

func doneOf(c events.CommandCompleted) Done {
	return Done{
		Seq: c.Seq, ID: c.ID, Version: c.Version, Status: c.Status, Revision: c.Revision, Says: c.Says, Binding: c.Binding, Until: c.Until,
	}
}

// Result is a response with more than a Done.
type Result interface {
	// Remember adds to c what a repeat needs of the response, and returns its Done; false if the
	// command has changed nothing.
	Remember(c *events.CommandCompleted) (Done, bool)
}

// summarize returns the recorded form of a route's response, without secrets; false for a dry run,
// which changes nothing.
func summarize(route string, answer any) (events.CommandCompleted, bool, error) {
	if done, ok := answer.(Done); ok {
		return summaryOf(route, done), true, nil
	}
	r, ok := answer.(Result)
	if !ok {
		return events.CommandCompleted{}, false, fmt.Errorf("service: cannot store the outcome of %s: %T", route, answer)
	}
	var c events.CommandCompleted
	done, real := r.Remember(&c)
	summary := summaryOf(route, done)
	summary.Outcome, summary.Total, summary.Expires = c.Outcome, c.Total, c.Expires
	summary.Skipped, summary.Before, summary.Next = c.Skipped, c.Before, c.Next
	return summary, real, nil
}

// recalled returns the first response of a command again, without its secrets, which only the first
// response contains. It rebuilds links where possible.
func (k *Kernel) recalled(ctx context.Context, call *Call, c events.CommandCompleted) (*Repeat, error) {
	if r := c.Refusal; r.Code != "" {
		return &Repeat{err: &fault.Error{Kind: fault.Kind(r.Kind), Code: r.Code, Msg: r.Says, Pointer: r.Pointer}}, nil
	}
	done := doneOf(c)
	r, ok := k.routes[c.Route]
	if !ok || r.recall == nil {
		return &Repeat{answer: done}, nil
	}
	answer, err := r.recall(ctx, call, done, c)
	return &Repeat{answer: answer}, err
}

// remember records the outcome of a named command if its commit does not
// describe it completely, and returns the response: that of another attempt if it was faster.
func (k *Kernel) remember(ctx context.Context, call *Call, route string, answer any) (any, error) {
	c, real, err := summarize(route, answer)
	if err != nil || !real {
		return answer, err
	}
	if e := call.execution; !e.unfinished && (e.seq != 0 || e.resumed != nil) && c == summaryOf(route, e.done) {
		return answer, nil
	}
	kept, err := k.complete(ctx, call, c)
	if err != nil {
		return nil, err
	}
	if kept == c {
		return answer, nil
	}
	r, err := k.recalled(ctx, call, kept)
	return r.outcome(err)
}

// rememberRefusal records the refusal of a command whose id is in the log.
func (k *Kernel) rememberRefusal(ctx context.Context, call *Call, route string, refusal error) error {
	f := fault.Of(refusal)
	_, err := k.complete(ctx, call, events.CommandCompleted{
		Route: route, Refusal: events.CommandRefusal{Kind: string(f.Kind), Code: f.Code, Says: f.Msg, Pointer: f.Pointer},
	})
	return err
}

// complete records the outcome of a command, unless one is recorded already, and returns
// the recorded one.
func (k *Kernel) complete(ctx context.Context, call *Call, c events.CommandCompleted) (events.CommandCompleted, error) {
	named := *call
	named.request = call.execution.request
	_, after, err := aggregates.CommandRecord.Execute(ctx, k.cfg.Log, call.Tenant,
		commands.CommandRecord(commands.CompleteCommand{ID: call.recordID(), Completed: c}), k.meta(&named), nil)
	call.execution.note(err, true)
	if err != nil {
		return c, fmt.Errorf("store the outcome of a command: %w", err)
	}
	if e := call.execution; e.seq == 0 && e.resumed == nil {
		e.seq = after.Seq
		k.completedCommands.Add(call.key(), after.Seq)
	}
	return *after.Value.Completed, nil
}

// CompleteFor records the outcome of the command whose first commit is first, which the process
// manager has completed after the original call was interrupted.
func (k *Kernel) CompleteFor(ctx context.Context, call *Call, first events.Record, route string, answer any) error {
	summary, _, err := summarize(route, answer)
	if err != nil {
		return err
	}
	call.execution = &execution{request: first.Meta.Request, seq: first.Seq, detach: func() {}}
	_, err = k.complete(ctx, call, summary)
	return err
}

// Errors of a request deadline.
var (
	ErrDeadline = fault.New(fault.Invalid, "deadline_invalid", "The deadline must be an RFC 3339 time, such as \"2031-01-31T12:00:00.5Z\".")
	ErrLate     = fault.New(fault.Unavailable, "request_late",
		"The request arrived after its deadline and was not executed. If it was sent in time, compare the clocks of the client and the service.")
)

// DeadlineHeader is the header, on NATS and HTTP, with the time at which the caller stops
// waiting for the response.
const DeadlineHeader = "X-Request-Deadline"

// ParseDeadline parses the deadline of a request; "" is none. It returns ErrDeadline.
func ParseDeadline(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return at, ErrDeadline
	}
	return at, nil
}

// late refuses to start after the caller's deadline.
func (c *Call) late(now time.Time) error {
	if begun := c.execution != nil && c.execution.seq != 0; c.Deadline.IsZero() || begun || !now.After(c.Deadline) {
		return nil
	}
	return ErrLate
}
