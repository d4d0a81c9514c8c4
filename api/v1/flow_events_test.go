package v1_test

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	v1 "github.com/credstream/credstream/api/v1"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/stage"
)

// Flow events are taken over HTTP as CloudEvents in each mode; the response says what became of
// them, and a batch is an error if one of its events is.
func TestFlowEvents(t *testing.T) {
	s := stage.New(t)
	server := httptest.NewServer(v1.Handler(v1.Config{Service: s.Service, Access: s.Service.Access, Logger: slog.New(slog.DiscardHandler)}))
	t.Cleanup(server.Close)
	s.Do("default", "component.register", `{"id":"sheets","descriptor":{"title":"Sheets"}}`)
	engine, operator := s.Key("default", `{"role":"FLOW_ENGINE"}`), s.Key("default", `{"role":"OPERATOR"}`)
	s.CaughtUp()

	const structured, batch = "application/cloudevents+json", "application/cloudevents-batch+json"
	data := func(flow, more string) string {
		return `{"id":"` + flow + `","revision":` + more + `,"color":"red","steps":[{"id":"s1","component":"sheets"}]}`
	}
	event := func(id, flow, more string) string {
		return `{"specversion":"1.0","id":"` + id + `","type":"flow.started","source":"/engine","correlationid":"corr-` + id + `","data":` + data(flow, more) + `}`
	}
	post := func(key, path, media, body string, header ...string) (int, string) {
		t.Helper()
		req := stage.Must(http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/v1/tenants/"+path, strings.NewReader(body)))(t)
		req.Header.Set("Authorization", "Bearer "+key)
		req.Header.Set("Content-Type", media)
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp := stage.Must(server.Client().Do(req))(t)
		defer func() { _ = resp.Body.Close() }()
		return resp.StatusCode, string(stage.Must(io.ReadAll(resp.Body))(t))
	}
	binary := []string{"ce-specversion", "1.0", "ce-id", "e%311", "ce-type", "flow.created", "ce-source", "/engine"}

	for _, c := range []struct {
		name, key, path, media, body string
		header                       []string
		status                       int
		says                         string // part of the response
	}{
		{"binary", engine, "default/flows/f1/events", "application/json", data("f1", "1"), binary, 200, `"id":"f1"`},
		{"structured", engine, "default/flows/f1/events", structured + "; charset=utf-8", event("e2", "f1", "9223372036854775807"), nil, 200, `"id":"f1"`},
		{"a foreign id", engine, "default/flows/f%202/events", structured, event("e3", "f 2", "1"), nil, 200, `"id":"f 2"`},
		{"batch", engine, "default/flows/f3/events", batch, "[" + event("e4", "f3", "1") + "," + event("e5", "f3", "2") + "]", nil, 200, `{"results":[{"id":"e4","seq":`},
		{"not a CloudEvent", engine, "default/flows/f1/events", "application/json", data("f1", "1"), nil, 400, "flow_event_not_cloudevent"},
		{"another flow", engine, "default/flows/f2/events", structured, event("e6", "f1", "1"), nil, 400, "flow_event_subject_mismatch"},
		{"a form", engine, "default/flows/f1/events", "text/plain", event("e6", "f1", "1"), nil, 415, "media_type"},
		{"an empty batch", engine, "default/flows/f1/events", batch, "[]", nil, 400, "flow_batch_invalid"},
		{"a batch that is none", engine, "default/flows/f1/events", batch, event("e6", "f1", "1"), nil, 400, "flow_batch_invalid"},
		{"without the permission", operator, "default/flows/f1/events", structured, event("e6", "f1", "1"), nil, 403, "permission_denied"},
		{"another tenant", engine, "ajax/flows/f1/events", structured, event("e6", "f1", "1"), nil, 404, "tenant_not_found"},
		{"without a key", "", "default/flows/f1/events", structured, event("e6", "f1", "1"), nil, 401, "unauthenticated"},
		{"another path", engine, "default/flows/a/b/events", structured, event("e6", "f1", "1"), nil, 404, "path_unknown"},
		{"from another site", engine, "default/flows/f1/events", structured, event("e6", "f1", "1"), []string{"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"}, 403, "cross"},
	} {
		if status, said := post(c.key, c.path, c.media, c.body, c.header...); status != c.status || !strings.Contains(said, c.says) {
			t.Errorf("%s: %d %s", c.name, status, said)
		}
	}

	// One of three is refused: the sender learns it, and the others are recorded, once.
	mixed := "[" + event("e7", "f4", "1") + "," + event("e8", "f5", "1") + "," + event("e9", "f4", "3") + "]"
	for range 2 {
		status, said := post(engine, "default/flows/f4/events", batch, mixed, "Idempotency-Key", "b1")
		var p struct {
			Code    string              `json:"code"`
			Details v1.FlowEventResults `json:"details"`
		}
		stage.OK(t, json.Unmarshal([]byte(said), &p))
		r := p.Details.Results
		if status != 400 || p.Code != "flow_event_subject_mismatch" || len(r) != 3 || r[0].Seq == 0 || r[1].Error == nil || r[1].ID != "e8" ||
			r[1].Error.Kind != fault.Invalid || r[2].Seq <= r[0].Seq || r[2].Error != nil {
			t.Errorf("a batch with a wrong event: %d %s", status, said)
		}
	}
	type observed struct {
		Flow, Cause, Correlation, Via string
		Revision                      uint64
	}
	var got []observed
	for rec, err := range s.Store.Follow(t.Context(), 0) {
		stage.OK(t, err)
		if e, is := rec.Event.(events.FlowObserved); is {
			got = append(got, observed{rec.Stream.ID, rec.Meta.Causation, rec.Meta.Correlation, rec.Meta.Via, e.Revision})
			if e.Revision == 3 {
				break
			}
		}
	}
	want := []observed{
		{"f1", "e11", got[0].Correlation, "http", 1},
		{"f1", "e2", "corr-e2", "http", 1<<63 - 1},
		{"f 2", "e3", "corr-e3", "http", 1},
		{"f3", "e4", "corr-e4", "http", 1},
		{"f3", "e5", "corr-e5", "http", 2},
		{"f4", "e7", "corr-e7", "http", 1},
		{"f4", "e9", "corr-e9", "http", 3},
	}
	if len(got) != len(want) {
		t.Fatalf("the log has %+v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("the log has %+v, want %+v", got[i], want[i])
		}
	}
}
