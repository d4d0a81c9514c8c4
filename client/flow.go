package client

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/fault"
)

// FlowStep is one step of a flow.
type FlowStep struct {
	ID         string `json:"id"`                  // unique within the flow
	Name       string `json:"name,omitzero"`       // display name
	Component  string `json:"component"`           // id of the component it runs
	Credential string `json:"credential,omitzero"` // id of the credential it uses, "" for none
}

// FlowChange is the kind of a flow event.
type FlowChange string

// The changes of a flow. A started flow is active until it is stopped or deleted.
const (
	FlowCreated FlowChange = "created"
	FlowUpdated FlowChange = "updated"
	FlowStarted FlowChange = "started"
	FlowStopped FlowChange = "stopped"
	FlowDeleted FlowChange = "deleted"
)

// FlowEvent reports to the service what happened to a flow.
type FlowEvent struct {
	Change   FlowChange `json:"-"`
	ID       string     `json:"id"`
	Name     string     `json:"name,omitzero"`  // display name
	Revision uint64     `json:"revision"`       // increases with every event of the flow, including start and stop; at least 1
	Steps    []FlowStep `json:"steps,omitzero"` // required for FlowCreated and FlowUpdated; nil with others: unchanged
	EventID  string     `json:"-"`              // of the CloudEvent; random when empty
	Source   string     `json:"-"`              // of the CloudEvent; "/flow-engine" when empty
	Time     time.Time  `json:"-"`              // of the CloudEvent, not the order; now when zero
}

// Ack is the position at which a message is durable.
type Ack struct {
	Stream string `json:"stream"` // "CREDSTREAM_FLOWS", "CREDSTREAM_CMDQ", ...
	Seq    uint64 `json:"seq"`    // sequence in that stream, which is not the log
}

// FlowAck is the position at which a flow event is durable.
type FlowAck Ack

// PublishFlow publishes a flow event, and returns when it is durable.
// The read models and the in-use index reflect it some
// milliseconds later. It retries with the same event when no response arrives:
// the revision makes a repeat harmless. It returns ErrUnreachable when no
// service is running, and the service's error for an event that it cannot parse: see DeadLetterOf.
func (c *Conn) PublishFlow(ctx context.Context, e FlowEvent, opts ...CommandOption) (FlowAck, error) {
	data, err := json.Marshal(e)
	if err != nil {
		return FlowAck{}, fmt.Errorf("encode flow %s: %w", e.ID, err)
	}
	o := optionsOf(opts)
	for _, d := range []struct {
		value  *string
		absent string
	}{{&e.EventID, o.id}, {&e.Source, "/flow-engine"}} {
		if *d.value == "" {
			*d.value = d.absent
		}
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	m := nats.NewMsg("credstream.flows." + c.tenant + "." + subjectToken(e.ID))
	m.Data = data
	for _, h := range [][2]string{
		{"specversion", "1.0"},
		{"id", e.EventID},
		{"type", "flow." + string(e.Change)},
		{"source", e.Source},
		{"subject", e.ID},
		{"time", e.Time.UTC().Format(time.RFC3339Nano)},
		{"datacontenttype", "application/json"},
		{"correlationid", o.correlation},
	} {
		if h[1] != "" {
			m.Header.Set("ce-"+h[0], percentEncode(h[1]))
		}
	}
	ack, err := c.publish(ctx, m)
	return FlowAck(ack), err
}

// publish sends a message that the service stores and acknowledges in the form
// of a JetStream PubAck.
func (c *Conn) publish(ctx context.Context, m *nats.Msg) (Ack, error) {
	return try(ctx, func(ctx context.Context) (Ack, error) {
		answer, err := c.request(ctx, m)
		if err != nil {
			return Ack{}, err
		}
		return readAck(answer)
	})
}

// readAck reads a PubAck of the service. A refusal contains the problem document next to
// the error that JetStream clients read.
func readAck(answer *nats.Msg) (Ack, error) {
	var ack struct {
		Ack
		Error *struct {
			Code int `json:"code"`
		} `json:"error"`
		Problem jsontext.Value `json:"problem"`
	}
	if err := json.Unmarshal(answer.Data, &ack); err != nil {
		return Ack{}, fmt.Errorf("%w %w", ErrAnswer, err)
	}
	switch {
	case ack.Error != nil:
		return Ack{}, readProblem(ack.Error.Code, ack.Problem)
	case ack.Stream == "":
		return Ack{}, ErrAnswer
	}
	return ack.Ack, nil
}

// subjectToken encodes an id as one token of a subject: one of 1 to 64 letters,
// digits, '_' and '-' as it is, any other as '=' and its unpadded base64url.
func subjectToken(id string) string {
	plain := id != "" && len(id) <= 64
	for i := range len(id) {
		c := id[i]
		plain = plain && ('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-')
	}
	if plain {
		return id
	}
	return "=" + base64.RawURLEncoding.EncodeToString([]byte(id))
}

// percentEncode encodes an attribute's value per the CloudEvents NATS protocol
// binding: each character that is not printable ASCII, and each space, quote and
// percent sign, is percent-encoded.
func percentEncode(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c > ' ' && c < 0x7f && c != '"' && c != '%' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// BindFlow is a reservation of the credentials of a flow that is about to start.
type BindFlow struct {
	Flow  string
	Name  string // display name; may be empty
	Steps []FlowStep
	TTL   time.Duration // how long the reservation lasts unless the flow starts: 10 minutes when 0, 1 s to 24 h
}

// BindFlow reserves every credential that the steps name, or none: then the
// error has the reason (flow_cannot_bind, credential_required,
// credential_component_mismatch), and StepFaultsOf the step faults. The response
// has the Binding and its expiry. A reserved credential cannot be
// deleted; a flow.started event of the flow confirms the reservation.
func (a *API) BindFlow(ctx context.Context, in BindFlow, opts ...CommandOption) (Done, error) {
	ttl := ""
	if in.TTL != 0 {
		ttl = in.TTL.String()
	}
	var done Done
	err := a.Command(ctx, "flow.bind", struct {
		Flow  string     `json:"flow"`
		Name  string     `json:"name,omitzero"`
		Steps []FlowStep `json:"steps"`
		TTL   string     `json:"ttl,omitzero"`
	}{in.Flow, in.Name, in.Steps, ttl}, &done, opts...)
	return done, err
}

// ReportFlow reports what happened to a flow, as PublishFlow does over NATS, and returns when
// its uses are recorded. A step that cannot use what it names is an error
// (flow_use_refused, see StepFaultsOf), and everything else is recorded.
func (a *API) ReportFlow(ctx context.Context, e FlowEvent, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "flow.report", struct {
		Change FlowChange `json:"change"`
		FlowEvent
	}{e.Change, e}, &done, opts...)
	return done, err
}

// ReleaseFlow releases a reservation of a flow. Binding names the reservation;
// when it is empty, the current one is released.
func (a *API) ReleaseFlow(ctx context.Context, flow, binding string, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "flow.release", struct {
		Flow    string `json:"flow"`
		Binding string `json:"binding,omitzero"`
	}{flow, binding}, &done, opts...)
	return done, err
}

// StepFault is the reason why a step of a flow cannot use what it names.
type StepFault struct {
	Step       string `json:"step"`
	Component  string `json:"component"`
	Credential string `json:"credential,omitzero"`
	Reason     string `json:"reason"` // "credential_not_found", "credential_component_mismatch", "credential_required", ...
}

// Flow is the last known state of a flow.
type Flow struct {
	ID        string      `json:"id"`
	Name      string      `json:"name,omitzero"`
	Revision  uint64      `json:"revision"` // 0: the flow engine has reported nothing yet
	Active    bool        `json:"active"`
	Broken    bool        `json:"broken"` // a step cannot use what it names
	Faults    []StepFault `json:"faults,omitzero"`
	Steps     []FlowStep  `json:"steps"`
	Binding   string      `json:"binding,omitzero"` // id of the current reservation
	Until     time.Time   `json:"until,omitzero"`   // when it expires
	UpdatedAt time.Time   `json:"updated_at"`
	Seq       uint64      `json:"seq"` // log sequence of the last change
}

// GetFlow returns one flow.
func (a *API) GetFlow(ctx context.Context, id string, minSeq uint64) (Flow, error) {
	var f Flow
	err := a.Query(ctx, "flow.get", byID{id, minSeq}, &f)
	return f, err
}

// FlowFilter selects flows. Its members combine by AND.
type FlowFilter struct {
	Credential string `json:"credential,omitzero"` // those that name it, use it or have it reserved
	Component  string `json:"component,omitzero"`  // those that include it
	Active     bool   `json:"active,omitzero"`     // only active ones
	Broken     bool   `json:"broken,omitzero"`     // only those with a step that cannot use what it names
	Limit      int    `json:"limit,omitzero"`      // of one page, 1 to 200; 50 when 0
	After      string `json:"after,omitzero"`      // cursor of the previous page
	MinSeq     uint64 `json:"min_seq,omitzero"`
}

// FlowList is one page.
type FlowList struct {
	Flows []Flow `json:"flows"`
	Next  string `json:"next,omitzero"` // cursor of the next page; empty on the last
}

// ListFlows returns one page of flows, by id.
func (a *API) ListFlows(ctx context.Context, filter FlowFilter) (FlowList, error) {
	var list FlowList
	err := a.Query(ctx, "flow.list", filter, &list)
	return list, err
}

// Flows yields every flow of the filter, page after page.
func (a *API) Flows(ctx context.Context, filter FlowFilter) iter.Seq2[Flow, error] {
	return func(yield func(Flow, error) bool) {
		for {
			list, err := a.ListFlows(ctx, filter)
			if smaller(err, &filter.Limit) {
				continue
			}
			if err != nil {
				yield(Flow{}, err)
				return
			}
			for _, f := range list.Flows {
				if !yield(f, nil) {
					return
				}
			}
			if filter.After = list.Next; list.Next == "" {
				return
			}
		}
	}
}

// WhereUsed yields the flows that name a credential, use it or have it reserved,
// active or not; it works for a deleted credential too.
func (a *API) WhereUsed(ctx context.Context, credential string) iter.Seq2[Flow, error] {
	return a.Flows(ctx, FlowFilter{Credential: credential, Limit: 200})
}

// WhereComponentUsed yields the flows that include a component.
func (a *API) WhereComponentUsed(ctx context.Context, component string) iter.Seq2[Flow, error] {
	return a.Flows(ctx, FlowFilter{Component: component, Limit: 200})
}

// Impact is the response to a dry run: what a command would do. Nothing was changed.
type Impact struct {
	Allowed      bool          `json:"allowed"`       // the command would be executed now
	Kind         fault.Kind    `json:"kind,omitzero"` // of the refusal
	Code         string        `json:"code,omitzero"` // why it would be refused
	Says         string        `json:"says"`          // the impact, or the reason for the refusal, as a sentence
	Flows        []Flow        `json:"flows"`         // that use it, up to 200
	TotalFlows   int           `json:"total_flows"`
	ActiveFlows  int           `json:"active_flows"`
	Credentials  int           `json:"credentials,omitzero"`  // of a component: those of the tenant that remain
	Verification *Verification `json:"verification,omitzero"` // result of the dry request with the new keys
}

// impact requests a dry run of a command.
func (a *API) impact(ctx context.Context, name string, in any) (Impact, error) {
	var done Done
	if err := a.Command(ctx, name, in, &done); err != nil {
		return Impact{}, err
	}
	if done.DryRun == nil { // the service is too old for dry runs
		return Impact{}, ErrAnswer
	}
	return *done.DryRun, nil
}

// DeleteCredentialDryRun returns the impact of deleting a credential.
func (a *API) DeleteCredentialDryRun(ctx context.Context, id string, expected int) (Impact, error) {
	return a.impact(ctx, "credential.delete", change{ID: id, Expected: expected, DryRun: true})
}

// ReplaceKeysDryRun makes the dry request with new keys and returns the flows that
// would get them. Nothing is saved. The only supported option is ExpectRevision.
func (a *API) ReplaceKeysDryRun(ctx context.Context, id string, keys Keys, expected int, opts ...CommandOption) (Impact, error) {
	return a.impact(ctx, "credential.replace-keys", change{ID: id, Keys: keys.reveal(), Expected: expected, Revision: revisionOf(opts), DryRun: true})
}

// DeleteComponentDryRun returns the impact of deleting a component.
func (a *API) DeleteComponentDryRun(ctx context.Context, id string) (Impact, error) {
	return a.impact(ctx, "component.delete", registration{ID: id, DryRun: true})
}

// FlowRef names one flow.
type FlowRef struct {
	ID     string `json:"id"`
	Name   string `json:"name,omitzero"`
	Active bool   `json:"active"`
}

// FlowRefs are the flows that an error names.
type FlowRefs struct {
	Total int       `json:"total"` // of the flows; the list holds up to 100
	Flows []FlowRef `json:"flows"`
}

// FlowsOf returns the flows that an error names, such as credential_in_use.
func FlowsOf(err error) (refs FlowRefs, ok bool) {
	ok = detailsOf(err, &refs) && len(refs.Flows) > 0
	return refs, ok
}

// StepFaultsOf returns the steps that an error names, such as flow_cannot_bind,
// in the order of the flow.
func StepFaultsOf(err error) (steps []StepFault, ok bool) {
	var details struct {
		Steps []StepFault `json:"steps"`
	}
	ok = detailsOf(err, &details) && len(details.Steps) > 0
	return details.Steps, ok
}

// DeadLetterOf returns the id in the dead-letter queue of a flow event that the service could not
// parse.
func DeadLetterOf(err error) (id string, ok bool) {
	var details struct {
		ID string `json:"dead_letter"`
	}
	ok = detailsOf(err, &details) && details.ID != ""
	return details.ID, ok
}

// detailsOf decodes the details of an error of the service.
func detailsOf(err error, into any) bool {
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || f.Details == nil {
		return false
	}
	raw, err := json.Marshal(f.Details)
	return err == nil && jsontext.Value(raw).Kind() == '{' && json.Unmarshal(raw, into) == nil
}
