package edge

import (
	"bytes"
	"context"
	"net/url"
	"slices"
	"strings"

	cenats "github.com/cloudevents/sdk-go/protocol/nats_jetstream/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	flows "github.com/credstream/credstream/service/flow"
)

// ErrFlowEventForm rejects a flow event that is not a CloudEvent, or has an unusable id.
var ErrFlowEventForm = fault.New(fault.Invalid, "flow_event_not_cloudevent",
	"The message must be a CloudEvent 1.0, in binary or structured mode, with an id of at most 128 printable ASCII characters.")

// flowEvent is the stored part of a CloudEvent about a flow.
type flowEvent struct {
	flows.Event
	id          string // ce-id
	name        string // ce-type
	correlation string
}

// readFlowEvent decodes a CloudEvent that was published to the subject of a flow,
// named by its token. With an error it still returns the id
// and type if they can be displayed.
func readFlowEvent(m *nats.Msg, token string) (f flowEvent, err error) {
	e, err := readCloudEvent(m)
	if err != nil {
		return f, err
	}
	f.name = safeName(e.Type())
	if !printable(e.ID()) {
		return f, ErrFlowEventForm
	}
	f.id = e.ID()
	if f.correlation = m.Header.Get("X-Correlation-Id"); f.correlation == "" {
		f.correlation, _ = e.Extensions()["correlationid"].(string)
	}
	if !printable(f.correlation) { // it only helps to find related events: no reason to reject the event
		f.correlation = ""
	}
	flow, err := events.ParseToken(token)
	if err != nil {
		return f, flows.ErrFlowEventSubject.Withf("The subject does not end in a valid flow id.")
	}
	f.Event, err = flows.ParseFlowEvent(e.Type(), e.Subject(), flow, e.Data())
	return f, redactPointer(err)
}

// redactPointer removes foreign names from an error: an unknown member
// may have any name.
func redactPointer(err error) error {
	if err == nil {
		return nil
	}
	f := fault.Of(err)
	for part := range strings.SplitSeq(strings.TrimPrefix(f.Pointer, "/"), "/") {
		if !slices.Contains(flowMembers, part) && strings.Trim(part, "0123456789") != "" {
			return flows.ErrFlowEventData
		}
	}
	return f
}

var flowMembers = []string{"", "id", "name", "revision", "steps", "component", "credential"}

// readCloudEvent reads a CloudEvent in binary or structured mode.
func readCloudEvent(m *nats.Msg) (e *event.Event, err error) {
	defer func() { // the third-party decoder parses foreign input
		if recover() != nil {
			e, err = nil, ErrFlowEventForm
		}
	}()
	e, err = binding.ToEvent(context.Background(), cenats.NewMessage(plainBinding(m)))
	if err != nil || e.SpecVersion() != event.CloudEventsVersionV1 || e.Validate() != nil {
		return nil, ErrFlowEventForm
	}
	return e, nil
}

// plainBinding converts a message to the form that the SDK reads. The NATS binding of
// CloudEvents 1.0 (sections 3.1 and 3.2) takes names in any case, percent-encodes
// the values, and tells the mode by the content type; the SDK does none of it.
func plainBinding(m *nats.Msg) *nats.Msg {
	plain := nats.NewMsg(m.Subject)
	plain.Data = bytes.Clone(m.Data)
	for name, values := range m.Header {
		lower := strings.ToLower(name)
		attribute, isAttribute := strings.CutPrefix(lower, "ce-")
		switch {
		case len(values) == 0:
		case lower == "content-type":
			plain.Header[lower] = values[:1]
		case isAttribute && slices.Contains(attributes, attribute):
			value := values[0]
			if decoded, err := url.PathUnescape(value); err == nil {
				value = decoded
			}
			plain.Header[lower] = []string{value}
		}
	}
	content := strings.ToLower(plain.Header.Get("content-type"))
	switch {
	case strings.HasPrefix(content, "application/cloudevents"):
		plain.Header = nil // structured mode: the body has everything
	case content != "":
		plain.Header.Del("ce-datacontenttype")
	}
	return plain
}

// attributes are the ones that are read; others are ignored.
var attributes = []string{"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "correlationid"}
