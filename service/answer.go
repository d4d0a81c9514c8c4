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

// answered is the answer to the command that made the commit at seq, or that found
// nothing to change in the state that the stream had then. It serves the first
// answer and the repeated one.
func answered(stream events.StreamID, before, after any, seq uint64) Done {
	done := Done{Seq: seq, ID: stream.ID}
	switch after := after.(type) {
	case aggregates.CredentialState:
		done.Version, done.Status = after.Current().Version, statusOf(after)
	case aggregates.OAuthClientState:
		if done.ID = after.ID; done.ID == "" {
			done.ID = before.(aggregates.OAuthClientState).ID
		}
	case aggregates.ComponentState:
		done.Revision = after.Revision
	case aggregates.FlowState:
		done.Binding, done.Until = after.Binding.ID, after.Binding.Until
		if was := before.(aggregates.FlowState).Binding.ID; done.Binding == "" { // it was released
			done.Binding = was
		}
	}
	return done
}

// answerOf makes the answer to the command that made a commit, from the stream as it
// was then.
func (s *Service) answerOf(ctx context.Context, recs []events.Record) (Done, error) {
	switch recs[0].Stream.Category {
	case aggregates.Credential.Category:
		return rebuilt(ctx, s, aggregates.Credential, recs)
	case aggregates.OAuthClient.Category:
		return rebuilt(ctx, s, aggregates.OAuthClient, recs)
	case aggregates.Component.Category:
		return rebuilt(ctx, s, aggregates.Component, recs)
	case aggregates.Flow.Category:
		return rebuilt(ctx, s, aggregates.Flow, recs)
	}
	return answered(recs[0].Stream, nil, nil, recs[0].Seq), nil
}

func rebuilt[S any, C commands.Command, E any](ctx context.Context, s *Service, d aggregates.Decider[S, C, E], recs []events.Record) (Done, error) {
	before, after, err := d.Around(ctx, s.cfg.Log, recs)
	if err != nil {
		return Done{}, err
	}
	return answered(recs[0].Stream, before, after, recs[0].Seq), nil
}

// resumable are the commands of several steps: each records its id on the first one.
// A repeat completes what broke off, unless it is recorded that it was completed.
var resumable = map[string]bool{
	"auth_client.create": true, "auth_client.change": true, "auth_client.delete": true,
	"credential.revoke": true, "flow.bind": true, "flow.release": true,
}

// begin records that a command is about to act outside the log. It returns what was
// recorded by the first attempt at the command: an attempt after a crash goes on from
// that. A command without an id of its caller's leaves no record.
func (s *Service) begin(ctx context.Context, call *Call, c events.CommandStarted) (first events.CommandStarted, err error) {
	c.Route = call.route
	e := call.execution
	if e == nil || e.request == "" {
		return c, nil
	}
	named := *call
	named.request = e.request
	_, after, err := commit(ctx, s, &named, aggregates.CommandRecord, call.Tenant, commands.CommandRecord(commands.StartCommand{ID: call.recordID(), Started: c}))
	switch {
	case err != nil:
		return c, fmt.Errorf("record that a command begins: %w", err)
	case after.Value.Started == nil: // another attempt has completed it meanwhile
		return c, events.ErrUnknownOutcome
	}
	return *after.Value.Started, nil
}

// recordID is the id of the stream that remembers how the command ended.
func (c *Call) recordID() string { return c.deriveID("command") }

// summaryOf is what is remembered of an answer.
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

// summarize is what is remembered of a route's answer: all but its secrets. It is
// false for a dry run, which changes nothing.
func summarize(route string, answer any) (events.CommandCompleted, bool, error) {
	var done Done
	var c events.CommandCompleted
	switch a := answer.(type) {
	case Done:
		done = a
	case RevokedCredential:
		done, c.Outcome = a.Done, a.Outcome
	case RevocationStarted:
		if done = a.Done; done.ID == "" {
			return c, false, nil
		}
		c.Total = a.Total
	case IssuedAPIKey:
		done, c.Expires = a.Done, a.Expires
	case RevealedCredential:
		done = a.Done
	case RevealedClient:
		done = a.Done
	case RevealedAuthClient:
		done = a.Done
	case Connected:
		done.ID, c.Expires = a.ID, a.Expires
	case QueuedChanged:
		c.Total, c.Skipped, c.Before, c.Next = a.Done, a.Skipped, a.Before, a.Next
	default:
		return c, false, fmt.Errorf("service: cannot store the outcome of %s: %T", route, answer)
	}
	summary := summaryOf(route, done)
	summary.Outcome, summary.Total, summary.Expires = c.Outcome, c.Total, c.Expires
	summary.Skipped, summary.Before, summary.Next = c.Skipped, c.Before, c.Next
	return summary, done.DryRun == nil, nil
}

// recalled answers a command again as it was answered first. The secrets that an
// answer held are shown once; a link that the service can make again is made again.
func (s *Service) recalled(ctx context.Context, call *Call, c events.CommandCompleted) (*repeat, error) {
	if r := c.Refusal; r.Code != "" {
		return &repeat{err: &fault.Error{Kind: fault.Kind(r.Kind), Code: r.Code, Msg: r.Says, Pointer: r.Pointer}}, nil
	}
	done := doneOf(c)
	switch c.Route {
	case "credential.revoke":
		return &repeat{answer: RevokedCredential{Done: done, Outcome: c.Outcome}}, nil
	case "oauth.revoke":
		return &repeat{answer: RevocationStarted{Done: done, Total: c.Total}}, nil
	case "api_key.issue":
		return &repeat{answer: IssuedAPIKey{Done: done, Expires: c.Expires}}, nil
	case "queue.retry-all", "queue.drop-all":
		return &repeat{answer: QueuedChanged{Done: c.Total, Skipped: c.Skipped, Before: c.Before, Next: c.Next}}, nil
	case "oauth.connect":
		link, _, err := s.link(ctx, call, c.ID, c.Expires)
		return &repeat{answer: link}, err
	}
	return &repeat{answer: done}, nil
}

// remember records how a named command ended where the commit that it made does not
// say it whole, and returns the answer: that of another attempt when this was faster.
func (s *Service) remember(ctx context.Context, call *Call, route string, answer any) (any, error) {
	c, real, err := summarize(route, answer)
	if err != nil || !real {
		return answer, err
	}
	if e := call.execution; !e.unfinished && (e.seq != 0 || e.resumed != nil) && c == summaryOf(route, e.done) {
		return answer, nil
	}
	kept, err := s.complete(ctx, call, c)
	if err != nil {
		return nil, err
	}
	if kept == c {
		return answer, nil
	}
	r, err := s.recalled(ctx, call, kept)
	return r.outcome(err)
}

// rememberRefusal records that a command was refused whose id stands in the log.
func (s *Service) rememberRefusal(ctx context.Context, call *Call, route string, refusal error) error {
	f := fault.Of(refusal)
	_, err := s.complete(ctx, call, events.CommandCompleted{
		Route: route, Refusal: events.CommandRefusal{Kind: string(f.Kind), Code: f.Code, Says: f.Msg, Pointer: f.Pointer},
	})
	return err
}

// complete records how a command ended, unless that is recorded already, and returns
// what is.
func (s *Service) complete(ctx context.Context, call *Call, c events.CommandCompleted) (events.CommandCompleted, error) {
	named := *call
	named.request = call.execution.request
	_, after, err := aggregates.CommandRecord.Execute(ctx, s.cfg.Log, call.Tenant,
		commands.CommandRecord(commands.CompleteCommand{ID: call.recordID(), Completed: c}), s.meta(&named), nil)
	call.execution.note(err, true)
	if err != nil {
		return c, fmt.Errorf("store the outcome of a command: %w", err)
	}
	if e := call.execution; e.seq == 0 && e.resumed == nil {
		e.seq = after.Seq
		s.completedCommands.Add(call.key(), after.Seq)
	}
	return *after.Value.Completed, nil
}

// The refusals of a deadline.
var (
	ErrDeadline = fault.New(fault.Invalid, "deadline_invalid", "The deadline must be an RFC 3339 time, such as \"2031-01-31T12:00:00.5Z\".")
	ErrLate     = fault.New(fault.Unavailable, "request_late",
		"The request arrived after its deadline and was not executed. If it was sent in time, compare the clocks of the client and the service.")
)

// DeadlineHeader is the header, on NATS and HTTP, that says when the caller stops
// waiting for the answer.
const DeadlineHeader = "X-Request-Deadline"

// ParseDeadline reads the deadline of a request; "" is none. Errors: ErrDeadline.
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

// late refuses to begin what the caller does not wait for any more.
func (c *Call) late(now time.Time) error {
	if begun := c.execution != nil && c.execution.seq != 0; c.Deadline.IsZero() || begun || !now.After(c.Deadline) {
		return nil
	}
	return ErrLate
}
