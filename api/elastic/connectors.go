package elastic

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/connector"
)

// The version of Elasticsearch that clients see.
const (
	version    = "9.2.0"
	compatWire = "8.19.0"
)

// info is the response to GET /, which clients send first.
func (x *exchange) info() {
	x.give(http.StatusOK, map[string]any{
		"name": "credstream", "cluster_name": "credstream", "cluster_uuid": "_na_", "tagline": "You Know, for Search",
		"version": map[string]any{
			"number": version, "build_flavor": "default", "build_type": "unknown", "build_hash": "unknown", "build_date": "2026-01-01T00:00:00Z",
			"build_snapshot": false, "lucene_version": "10.3.0", "minimum_wire_compatibility_version": compatWire, "minimum_index_compatibility_version": "8.0.0",
		},
	})
}

// filter is the empty document filter that every connector shows.
var filter = map[string]any{
	"advanced_snippet": map[string]any{"created_at": nil, "updated_at": nil, "value": map[string]any{}},
	"rules":            []any{},
	"validation":       map[string]any{"errors": []any{}, "state": "valid"},
}

var disabledSchedule = map[string]any{"enabled": false, "interval": "0 0 0 * * ?"}

// document is a connector in Elasticsearch's format. Members that are not stored have the
// values of a new connector.
func document(c connector.Connector) map[string]any {
	return map[string]any{
		"id": c.ID, "name": orNull(c.Name), "description": orNull(c.Description), "index_name": orNull(c.IndexName), "service_type": orNull(c.ServiceType),
		"language": orNull(c.Language), "is_native": c.Native, "api_key_id": orNull(c.APIKeyID), "api_key_secret_id": orNull(c.SecretID),
		"status": "created", "sync_now": false, "deleted": false, "error": nil, "configuration": map[string]any{}, "custom_scheduling": map[string]any{},
		"filtering":  []any{map[string]any{"active": filter, "draft": filter, "domain": "DEFAULT"}},
		"scheduling": map[string]any{"access_control": disabledSchedule, "full": disabledSchedule, "incremental": disabledSchedule},
	}
}

func orNull(text string) any {
	if text == "" {
		return nil
	}
	return text
}

var listParameters = []string{"from", "size", "index_name", "connector_name", "service_type", "include_deleted"}

// The limits of a list, as in Elasticsearch.
const (
	defaultSize = 100
	maxWindow   = 10_000
	pageSize    = 200
)

func (x *exchange) listConnectors() {
	query := x.R.URL.Query()
	number := func(name string, value int) (int, error) {
		if !query.Has(name) {
			return value, nil
		}
		n, err := strconv.Atoi(query.Get(name))
		if err != nil || n < 0 || n > maxWindow {
			return 0, ErrParameter.Withf("The parameter [%s] must be a number from 0 to %d.", name, maxWindow)
		}
		return n, nil
	}
	from, err := number("from", 0)
	if err != nil {
		x.Fail(err)
		return
	}
	size, err := number("size", defaultSize)
	if err != nil {
		x.Fail(err)
		return
	}
	in := connector.ListConnectors{Name: query.Get("connector_name"), IndexName: query.Get("index_name"), ServiceType: query.Get("service_type"), Limit: pageSize}
	for _, name := range listParameters[2:] {
		if strings.Contains(query.Get(name), ",") {
			x.Fail(ErrParameter.Withf("The parameter [%s] accepts a single value.", name))
			return
		}
	}
	results := []any{}
	for seen := 0; ; {
		page, err := ask[connector.List](x, "connector.list", in)
		if err != nil {
			x.Fail(err)
			return
		}
		for _, c := range page.Connectors {
			if seen >= from && len(results) < size {
				results = append(results, document(c))
			}
			seen++
		}
		if in.After = page.Next; in.After == "" || len(results) >= size {
			x.give(http.StatusOK, map[string]any{"count": page.Total, "results": results})
			return
		}
	}
}

func (x *exchange) getConnector() {
	c, err := ask[connector.Connector](x, "connector.get", connector.Ref{ID: x.item})
	if err != nil {
		x.Fail(err)
		return
	}
	x.give(http.StatusOK, document(c))
}

func (x *exchange) postConnector() { x.put("") }

func (x *exchange) putConnector() { x.put(x.item) }

// put creates or replaces a connector. If id is "", it creates one with a new id.
func (x *exchange) put(id string) {
	in, err := x.members(true, "name", "description", "index_name", "service_type", "language", "is_native", "api_key_id", "api_key_secret_id")
	if err != nil {
		x.Fail(err)
		return
	}
	if id != "" {
		in["id"] = text(id)
	}
	done, err := ask[service.Done](x, "connector.put", in)
	if err != nil {
		x.Fail(err)
		return
	}
	if done.Status == connector.Created {
		x.give(http.StatusCreated, map[string]any{"result": connector.Created, "id": done.ID})
		return
	}
	x.give(http.StatusOK, map[string]any{"result": connector.Updated, "id": done.ID})
}

func (x *exchange) setAPIKey() {
	in, err := x.members(false, "api_key_id", "api_key_secret_id")
	if err != nil {
		x.Fail(err)
		return
	}
	in["id"] = text(x.item)
	done, err := ask[service.Done](x, "connector.set-api-key", in)
	if err != nil {
		x.Fail(err)
		return
	}
	x.give(http.StatusOK, map[string]any{"result": done.Status})
}

func (x *exchange) deleteConnector() {
	if _, err := ask[service.Done](x, "connector.delete", connector.Delete{ID: x.item}); err != nil {
		x.Fail(err)
		return
	}
	x.give(http.StatusOK, map[string]bool{"acknowledged": true})
}

// text encodes a string as JSON.
func text(s string) jsontext.Value {
	b, _ := json.Marshal(s) // valid UTF-8: checked with the path
	return b
}
