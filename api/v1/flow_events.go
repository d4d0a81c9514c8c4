package v1

import (
	"context"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/api/edge"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/flow"
)

// Flow events over HTTP are CloudEvents, as over NATS, in the HTTP protocol binding. Each is the
// command flow.report: the response says what became of it.
const (
	flowEventsPath  = "/v1/tenants/{tenant}/flows/{flow}/events"
	flowEventsRoute = "flow.report"

	structuredType = "application/cloudevents+json"
	batchType      = "application/cloudevents-batch+json"

	maxFlowEvents = 100 // of one batch
)

// ErrFlowBatch refuses the body of a batch.
var ErrFlowBatch = fault.New(fault.Invalid, "flow_batch_invalid",
	fmt.Sprintf("A batch must be a JSON array of 1 to %d CloudEvents.", maxFlowEvents))

// FlowEventResult is the outcome of one event of a batch.
type FlowEventResult struct {
	ID    string         `json:"id,omitzero"`    // of the CloudEvent; absent if it could not be read
	Seq   uint64         `json:"seq,omitzero"`   // log sequence that includes the event
	Error *fault.Problem `json:"error,omitzero"` // why it was not accepted
}

// FlowEventResults is the response to a batch, in its order, and the details of its error.
type FlowEventResults struct {
	Results []FlowEventResult `json:"results"`
}

// cutFlowEvents returns the flow in the path of its events below a tenant.
func cutFlowEvents(name string) (flow string, ok bool) {
	flow, ok = strings.CutPrefix(name, "flows/")
	if ok {
		flow, ok = strings.CutSuffix(flow, "/events")
	}
	return flow, ok && flow != "" && !strings.Contains(flow, "/")
}

// mediaType is the media type of a request; "" if it has none or several.
func mediaType(r *http.Request) string {
	if given := r.Header["Content-Type"]; len(given) == 1 {
		media, _, _ := mime.ParseMediaType(given[0])
		return media
	}
	return ""
}

// acceptsEvents accepts the data of an event in binary mode, a structured event, and a batch.
func acceptsEvents(contentType []string) bool {
	media := mediaType(&http.Request{Header: http.Header{"Content-Type": contentType}})
	return media == structuredType || media == batchType || edge.IsJSON(contentType)
}

// flowEvents serves a POST of events of one flow.
func (x *exchange) flowEvents(tenant, id string) {
	x.Pattern = flowEventsPath
	if !x.Allows("POST") {
		return
	}
	to := x.commands[flowEventsRoute]
	// Before authentication, because a browser sends credentials automatically.
	err := to.route.CheckSender(edge.CrossSite(x.R), false)
	var call service.Call
	if err == nil {
		call, err = x.Authenticate(x.cfg.Access, x.cfg.AllowCleartext)
	}
	if err == nil {
		err = x.ReadHeaders(&call)
	}
	call.Tenant = tenant
	var body []byte
	if err == nil {
		body, err = x.Receive(x.cfg.Service, &call, acceptsEvents)
	}
	if err != nil {
		x.Fail(err)
		return
	}
	if mediaType(x.R) == batchType {
		x.flowBatch(call, id, body)
		return
	}
	_, done, err := x.flowEvent(call, x.R.Header, body, id)
	if err != nil {
		x.Fail(err)
		return
	}
	x.JSON(http.StatusOK, edge.MediaJSON, done)
}

// flowEvent executes one event.
func (x *exchange) flowEvent(call service.Call, header map[string][]string, body []byte, id string) (eventID string, done service.Done, err error) {
	e, err := flow.ReadCloudEvent(header, body, id)
	if err != nil {
		return e.EventID, done, err
	}
	if call.Correlation == "" {
		call.Correlation = e.Correlation
	}
	call.Causation = e.EventID
	report, err := json.Marshal(flow.Report{Change: e.Change, ID: e.ID, Name: e.Name, Revision: e.Revision, Steps: e.Steps})
	if err != nil {
		return e.EventID, done, fmt.Errorf("encode a flow event: %w", err)
	}
	answer, err := x.cfg.Service.Serve(x.R.Context(), call, flowEventsRoute, report)
	x.SetTenant(call.Tenant, err)
	done, _ = answer.(service.Done)
	return e.EventID, done, err
}

// flowBatch executes the events of a batch one after the other. If some are not accepted the
// response is an error, so that no sender takes the batch for done: that of the first event, or of
// the first that may succeed when it is sent again. The other events are recorded; a repeat of the
// batch does not record them twice.
func (x *exchange) flowBatch(call service.Call, id string, body []byte) {
	var batch []jsontext.Value
	if json.Unmarshal(body, &batch) != nil || len(batch) == 0 || len(batch) > maxFlowEvents {
		x.Fail(ErrFlowBatch)
		return
	}
	ctx, cancel := context.WithTimeout(x.R.Context(), service.MaxCall) // of all events; the rest of a slow batch is refused
	defer cancel()
	x.R = x.R.WithContext(ctx)
	results := FlowEventResults{Results: make([]FlowEventResult, len(batch))}
	var first *fault.Error
	refused, command := 0, call.CommandID
	for i, one := range batch {
		if command != "" {
			call.CommandID = command + "/" + strconv.Itoa(i+1)
		}
		var eventID string
		var done service.Done
		who, err := edge.Identify(x.cfg.Access, x.R)                   // the key may have been revoked meanwhile
		if err != nil && fault.Of(err).Kind == fault.Unauthenticated { // the rest would count as attempts with a wrong key
			x.Fail(err)
			return
		}
		if err == nil {
			call.Principal = who
			eventID, done, err = x.flowEvent(call, http.Header{"Content-Type": {structuredType}}, one, id)
		}
		result := FlowEventResult{ID: eventID, Seq: done.Seq}
		if err != nil {
			f := fault.Of(err)
			if f.Kind == fault.Internal {
				x.Warn("a flow event of a batch failed", err)
			}
			problem := f.Problem()
			result.Error, refused = &problem, refused+1
			if first == nil || !temporary(first) && temporary(f) {
				first = f
			}
		}
		results.Results[i] = result
	}
	if first != nil {
		x.Fail(first.Withf("%d of %d events were not accepted. %s", refused, len(batch), first.Msg).With(results))
		return
	}
	x.JSON(http.StatusOK, edge.MediaJSON, results)
}

// temporary reports whether the same request may succeed later.
func temporary(f *fault.Error) bool {
	return f.Kind == fault.Throttled || f.Kind == fault.Unavailable || f.Kind == fault.Conflict || f.Kind == fault.Internal
}

// describeFlowEvents adds the path to the OpenAPI document. op is the operation of flow.report.
func describeFlowEvents(op huma.Operation, done, results *huma.Schema) *huma.PathItem {
	op.OperationID = "flow.events"
	op.Summary = "Report flow events as CloudEvents: one in binary or structured mode, or a batch."
	op.Parameters = append([]*huma.Param{text("flow", "path", true, "The flow's id.", "orders")}, op.Parameters...)
	for _, h := range [][2]string{{"specversion", "1.0"}, {"id", "orders-8"}, {"type", "flow.stopped"}, {"source", "/my-engine"}} {
		op.Parameters = append(op.Parameters, text("ce-"+h[0], "header", false, "The attribute of an event in binary mode.", h[1]))
	}
	const data = `{"id":"orders","revision":8}`
	const one = `{"specversion":"1.0","id":"orders-8","type":"flow.stopped","source":"/my-engine","data":` + data + `}`
	object := &huma.MediaType{Example: jsontext.Value(data), Schema: &huma.Schema{Type: huma.TypeObject, Description: "The data of an event in binary mode; its attributes are in ce- headers."}}
	event := &huma.MediaType{Example: jsontext.Value(one), Schema: &huma.Schema{Type: huma.TypeObject, Description: "A CloudEvent in structured mode."}}
	batch := &huma.MediaType{Example: jsontext.Value("[" + one + "]"), Schema: &huma.Schema{Type: huma.TypeArray, Items: &huma.Schema{Type: huma.TypeObject}, Description: "CloudEvents, each executed by itself."}}
	op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{edge.MediaJSON: object, structuredType: event, batchType: batch}}
	op.Responses = map[string]*huma.Response{
		strconv.Itoa(http.StatusOK): {
			Description: "Done: the answer of flow.report, or to a batch that of each event.",
			Content:     map[string]*huma.MediaType{edge.MediaJSON: {Schema: &huma.Schema{AnyOf: []*huma.Schema{done, results}}}},
		},
		"default": {Ref: "#/components/responses/problem"},
	}
	return &huma.PathItem{Post: &op}
}
