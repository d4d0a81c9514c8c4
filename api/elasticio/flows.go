package elasticio

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/service/permission"
)

// flowPointers maps members of a flow event to the document of a flow.
var flowPointers = map[string]string{"/id": "/data/id", "/name": "/data/attributes/name", "/steps": "/data/attributes/graph/nodes"}

// node is a step of a flow: the stored members.
type node struct {
	ID         string `json:"id"`
	Name       string `json:"name,omitzero"`
	Component  string `json:"component_id"`
	Credential string `json:"credentials_id,omitzero"`
}

func flowResource(f flow.Flow) resource {
	status := "inactive"
	if f.Active {
		status = "active"
	}
	nodes := make([]node, len(f.Steps))
	for i, s := range f.Steps {
		nodes[i] = node(s)
	}
	return resource{
		ID: f.ID, Type: "flow",
		Links:      map[string]string{"self": "/v2/flows/" + url.PathEscape(f.ID)},
		Attributes: map[string]any{"name": f.Name, "status": status, "graph": map[string]any{"nodes": nodes}},
		Meta:       map[string]any{"revision": f.Revision},
	}
}

func (x *exchange) getFlow() {
	if _, err := readParameters(x.R.URL.RawQuery); err != nil {
		x.Fail(err)
		return
	}
	f, err := ask[flow.Flow](x, "flow.get", flow.Get{ID: x.item})
	if err != nil {
		x.Fail(err)
		return
	}
	x.giveOne(parameters{}, http.StatusOK, flowResource(f), "")
}

// createFlow creates a flow in the vendor's format. Only the components and credentials of its
// nodes are read.
func (x *exchange) createFlow() {
	x.pointers = flowPointers
	body, err := x.body()
	var in input
	if err == nil {
		in, err = readDocument(body)
	}
	if err == nil && in.Type != "flow" {
		err = ErrResourceType.Withf("The type of the resource must be flow.").At("/data/type")
	}
	var data []byte
	if err == nil {
		data, err = flowData(in)
	}
	if err != nil {
		x.Fail(err)
		return
	}
	x.change("flow.created", data, http.StatusCreated)
}

// flowData converts the document to the data of a flow event.
func flowData(in input) ([]byte, error) {
	var graph struct {
		Nodes []node `json:"nodes"`
	}
	const at = "/data/attributes/graph"
	raw, ok := in.Attributes["graph"]
	if !ok {
		return nil, missing(at)
	}
	if err := decodeWith(raw, &graph, json.RejectUnknownMembers(false)); err != nil {
		return nil, below(err, at)
	}
	type step struct {
		ID         string `json:"id"`
		Name       string `json:"name"`
		Component  string `json:"component"`
		Credential string `json:"credential"`
	}
	event := struct {
		ID    string `json:"id"`
		Name  string `json:"name,omitzero"`
		Steps []step `json:"steps"`
	}{ID: in.ID, Steps: []step{}}
	if event.ID == "" {
		event.ID = strings.ToLower(rand.Text())
	}
	if v, ok := in.Attributes["name"]; ok {
		if err := decodeText(v, &event.Name); err != nil {
			return nil, service.ErrBody.Withf("The attribute must be a string.").At("/data/attributes/name")
		}
	}
	for _, n := range graph.Nodes {
		event.Steps = append(event.Steps, step(n))
	}
	data, err := json.Marshal(event)
	if err != nil {
		return nil, fmt.Errorf("write a flow event: %w", err)
	}
	return data, nil
}

func (x *exchange) startFlow()  { x.changeItem("flow.started", http.StatusOK) }
func (x *exchange) stopFlow()   { x.changeItem("flow.stopped", http.StatusOK) }
func (x *exchange) deleteFlow() { x.changeItem("flow.deleted", http.StatusNoContent) }

// changeItem applies a flow event to the flow in the path. A body is ignored.
func (x *exchange) changeItem(ceType string, status int) {
	data, err := json.Marshal(map[string]string{"id": x.item})
	if err != nil {
		x.Fail(fmt.Errorf("write a flow event: %w", err))
		return
	}
	x.change(ceType, data, status)
}

func (x *exchange) change(ceType string, data []byte, status int) {
	f, err := x.cfg.Flows.ChangeFlow(x.R.Context(), x.call, ceType, data)
	x.SetTenant(x.call.Tenant, err)
	switch {
	case err != nil:
		x.Fail(repointToNode(err))
		return
	case x.may(permission.FlowsGet): // wait until the read models reflect the change
		_, err = ask[flow.Flow](x, "flow.get", flow.Get{ID: f.ID, MinSeq: f.Seq})
	}
	x.noteBehind(err)
	if status == http.StatusNoContent {
		x.gone(nil)
		return
	}
	x.giveOne(parameters{}, status, flowResource(f), "")
}

// repointToNode maps an error's pointer from a flow step to the node's member.
func repointToNode(err error) error {
	f, ok := errors.AsType[*fault.Error](err)
	if !ok {
		return err
	}
	if at, ok := strings.CutSuffix(f.Pointer, "/component"); ok {
		return f.At(at + "/component_id")
	}
	if at, ok := strings.CutSuffix(f.Pointer, "/credential"); ok {
		return f.At(at + "/credentials_id")
	}
	return err
}

// isNotFound reports whether err is a not-found error.
func isNotFound(err error) bool { return err != nil && fault.Of(err).Kind == fault.NotFound }
