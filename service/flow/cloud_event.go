package flow

import (
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"
	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/fault"
)

// ErrFlowEventForm rejects a flow event that is not a CloudEvent, or has an unusable id.
var ErrFlowEventForm = fault.New(fault.Invalid, "flow_event_not_cloudevent",
	"The message must be a CloudEvent 1.0, in binary or structured mode, with an id of at most 128 printable ASCII characters.")

// CloudEvent is a flow event with the attributes of its CloudEvent that are kept.
type CloudEvent struct {
	Event
	EventID     string // "" if it cannot be displayed
	EventType   string // as received
	Correlation string
}

// ReadCloudEvent decodes a CloudEvent about a flow, in binary or structured mode, from the headers
// and the body of a message or request. With an error it still returns the id and type that could
// be read. It returns ErrFlowEventForm, and the errors of ParseFlowEvent.
func ReadCloudEvent(header map[string][]string, body []byte, flow string) (c CloudEvent, err error) {
	e, err := readCloudEvent(header, body)
	if err != nil {
		return c, err
	}
	c.EventType = e.Type()
	if !PrintableID(e.ID()) {
		return c, ErrFlowEventForm
	}
	c.EventID = e.ID()
	if given := header["X-Correlation-Id"]; len(given) > 0 {
		c.Correlation = given[0]
	}
	if c.Correlation == "" {
		c.Correlation, _ = e.Extensions()["correlationid"].(string)
	}
	if !PrintableID(c.Correlation) { // it only helps to find related events: no reason to reject the event
		c.Correlation = ""
	}
	c.Event, err = ParseFlowEvent(e.Type(), e.Subject(), flow, e.Data())
	return c, redactPointer(err)
}

// PrintableID reports whether an id is 1 to 128 printable ASCII characters, which
// a header can hold unchanged.
func PrintableID(id string) bool {
	for i := range len(id) {
		if id[i] < 0x21 || id[i] > 0x7e {
			return false
		}
	}
	return len(id) > 0 && len(id) <= 128
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
			return ErrFlowEventData
		}
	}
	return f
}

var flowMembers = []string{"", "id", "name", "revision", "steps", "component", "credential"}

// readCloudEvent reads a CloudEvent in binary or structured mode. The NATS and HTTP bindings of
// CloudEvents 1.0 (sections 3.1 and 3.2) take names in any case, percent-encode the values, and
// tell the mode by the content type, which the decoders of the SDK do not. Without a version in
// its headers a message is in structured mode.
func readCloudEvent(header map[string][]string, body []byte) (e *event.Event, err error) {
	defer func() { // the third-party decoder parses foreign input
		if recover() != nil {
			e, err = nil, ErrFlowEventForm
		}
	}()
	given, content := map[string]string{}, ""
	for name, values := range header {
		lower := strings.ToLower(name)
		attribute, isAttribute := strings.CutPrefix(lower, "ce-")
		switch {
		case len(values) == 0:
		case lower == "content-type":
			content = strings.ToLower(values[0])
		case isAttribute:
			given[attribute] = values[0]
			if decoded, err := url.PathUnescape(values[0]); err == nil {
				given[attribute] = decoded
			}
		}
	}
	e = &event.Event{}
	if given["specversion"] == "" || strings.HasPrefix(content, structuredType) {
		err = e.UnmarshalJSON(readMembers(body))
	} else {
		*e, err = binaryEvent(given, body)
	}
	if err != nil || e.SpecVersion() != event.CloudEventsVersionV1 || e.Validate() != nil {
		return nil, ErrFlowEventForm
	}
	return e, nil
}

// binaryEvent builds the event of a message in binary mode. Its validation reports attributes
// that are missing or invalid.
func binaryEvent(given map[string]string, body []byte) (event.Event, error) {
	if given["specversion"] != event.CloudEventsVersionV1 {
		return event.Event{}, ErrFlowEventForm
	}
	e := event.New(event.CloudEventsVersionV1)
	e.SetID(given["id"])
	e.SetSource(given["source"])
	e.SetType(given["type"])
	if given["subject"] != "" {
		e.SetSubject(given["subject"])
	}
	if given["correlationid"] != "" {
		e.SetExtension("correlationid", given["correlationid"])
	}
	if given["time"] != "" {
		at, err := types.ParseTime(given["time"])
		if err != nil {
			return event.Event{}, ErrFlowEventForm
		}
		e.SetTime(at)
	}
	e.DataEncoded = body
	return e, nil
}

// structuredType begins the content types of CloudEvents that are not in binary mode.
const structuredType = "application/cloudevents"

// readMembers reduces a structured event to the members that are read, as binary mode does with
// headers: the SDK refuses the names of some that are not, such as one with a dash.
func readMembers(structured []byte) []byte {
	var e map[string]jsontext.Value
	if jsonv2.Unmarshal(structured, &e) != nil {
		return structured // the SDK refuses it
	}
	maps.DeleteFunc(e, func(name string, _ jsontext.Value) bool {
		return name != "data" && name != "data_base64" && !slices.Contains(attributes, name)
	})
	read, err := jsonv2.Marshal(e)
	if err != nil {
		return structured
	}
	return read
}

// attributes are the ones that are read; others are ignored.
var attributes = []string{"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "correlationid"}
