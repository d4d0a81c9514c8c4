//go:build officialclients

package elastic_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/elastic/go-elasticsearch/v9"
	"github.com/elastic/go-elasticsearch/v9/esapi"
	"github.com/elastic/go-elasticsearch/v9/typedapi/types"

	"github.com/credstream/credstream/service/stage"
)

// said is an answer of the untyped client: its status and body.
func said(t testing.TB, resp *esapi.Response, err error) string {
	t.Helper()
	stage.OK(t, err)
	defer resp.Body.Close()
	return resp.Status() + " " + strings.TrimSpace(string(stage.Must(io.ReadAll(resp.Body))(t)))
}

// Elasticsearch's official Go client, untyped.
func TestGoClient(t *testing.T) {
	s := serve(t)
	for name, cfg := range map[string]elasticsearch.Config{
		"Basic":  {Username: "elastic", Password: s.key},
		"ApiKey": {APIKey: encoded("an-id", s.key)},
		"Bearer": {ServiceToken: s.key},
	} {
		cfg.Addresses = []string{s.url}
		es := stage.Must(elasticsearch.NewClient(cfg))(t)
		wiki, secret := "wiki-"+name, "secret-"+name
		for _, step := range []struct {
			want string
			do   func() (*esapi.Response, error)
		}{
			{"200 OK {", func() (*esapi.Response, error) { return es.Info() }},
			{"200 OK", func() (*esapi.Response, error) { return es.Ping() }},
			{`201 Created {"id":"` + wiki + `","result":"created"}`, func() (*esapi.Response, error) {
				return es.ConnectorPut(es.ConnectorPut.WithConnectorID(wiki), es.ConnectorPut.WithBody(strings.NewReader(`{"name":"Wiki","is_native":true}`)))
			}},
			{`201 Created {"result":"created"}`, func() (*esapi.Response, error) {
				return es.ConnectorSecretPut(secret, strings.NewReader(`{"value":"v1"}`))
			}},
			{`200 OK {"result":"updated"}`, func() (*esapi.Response, error) {
				return es.ConnectorSecretPut(secret, strings.NewReader(`{"value":"v2"}`))
			}},
			{`200 OK {"id":"`, func() (*esapi.Response, error) { return es.ConnectorSecretPost(strings.NewReader(`{"value":"v"}`)) }},
			{`200 OK {"id":"` + secret + `","value":"v2"}`, func() (*esapi.Response, error) { return es.ConnectorSecretGet(secret) }},
			{`404 Not Found {"error":{"root_cause":[{"type":"resource_not_found_exception","reason":"No secret with id [none]"}]`, func() (*esapi.Response, error) {
				return es.ConnectorSecretGet("none")
			}},
			{`200 OK {"result":"updated"}`, func() (*esapi.Response, error) {
				return es.ConnectorUpdateAPIKeyDocumentID(strings.NewReader(`{"api_key_id":"k","api_key_secret_id":"`+secret+`"}`), wiki)
			}},
			{`200 OK {"result":"noop"}`, func() (*esapi.Response, error) {
				return es.ConnectorUpdateAPIKeyDocumentID(strings.NewReader(`{}`), wiki)
			}},
			{`400 Bad Request`, func() (*esapi.Response, error) {
				return es.ConnectorUpdateAPIKeyDocumentID(strings.NewReader(`{"api_key_id":"k"}`), "")
			}},
			{`200 OK {"api_key_id":"k","api_key_secret_id":"` + secret + `"`, func() (*esapi.Response, error) { return es.ConnectorGet(wiki) }},
			{`200 OK {"count":1,`, func() (*esapi.Response, error) { return es.ConnectorList() }},
			{`409 Conflict`, func() (*esapi.Response, error) { return es.ConnectorSecretDelete(secret) }},
			{`200 OK {"acknowledged":true}`, func() (*esapi.Response, error) { return es.ConnectorDelete(wiki) }},
			{`200 OK {"deleted":true}`, func() (*esapi.Response, error) { return es.ConnectorSecretDelete(secret) }},
		} {
			resp, err := step.do()
			if got := said(t, resp, err); !strings.HasPrefix(got, step.want) {
				t.Errorf("%s: %s, want %s", name, got, step.want)
			}
		}
	}
}

// Elasticsearch's official Go client, typed.
func TestTypedGoClient(t *testing.T) {
	s := serve(t)
	es := stage.Must(elasticsearch.NewTypedClient(elasticsearch.Config{Addresses: []string{s.url}, APIKey: encoded("an-id", s.key)}))(t)
	ctx := t.Context()
	if got := stage.Must(es.Info().Do(ctx))(t); got.Version.Int != "9.2.0" {
		t.Errorf("the version is %q", got.Version.Int)
	}
	result := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	refused := func(what string, err error, status int) {
		t.Helper()
		if e, ok := errors.AsType[*types.ElasticsearchError](err); !ok || e.Status != status || e.ErrorCause.Reason == nil {
			t.Errorf("%s: %v, want status %d", what, err, status)
		}
	}
	put := stage.Must(es.Connector.Put().ConnectorId("wiki").Name("Wiki").IndexName("search-wiki").IsNative(true).Do(ctx))(t)
	result("put", put.Result.String(), "created")
	posted := stage.Must(es.Connector.Post().Name("Other").Do(ctx))(t)
	result("post", posted.Result.String(), "created")
	made := stage.Must(es.Connector.SecretPost().Value(encoded("k1", "canary")).Do(ctx))(t)
	result("secret put", stage.Must(es.Connector.SecretPut("s1").Value("v").Do(ctx))(t).Result.String(), "created")
	result("secret get", stage.Must(es.Connector.SecretGet(made.Id).Do(ctx))(t).Value, encoded("k1", "canary"))
	for _, step := range []struct {
		id, key, secret, want string
	}{
		{"wiki", "k1", "", "updated"},      // the id alone
		{"wiki", "", made.Id, "updated"},   // the secret alone
		{"wiki", "k1", made.Id, "noop"},    // both, as they are
		{"wiki", "", "", "noop"},           // neither
		{posted.Id, "k2", "s1", "updated"}, // both
		{posted.Id, "k1", made.Id, "updated"},
	} {
		update := es.Connector.UpdateApiKeyId(step.id)
		if step.key != "" {
			update.ApiKeyId(step.key)
		}
		if step.secret != "" {
			update.ApiKeySecretId(step.secret)
		}
		if step.key == "" && step.secret == "" {
			update.Raw(strings.NewReader("{}"))
		}
		result("update "+step.key+" "+step.secret, stage.Must(update.Do(ctx))(t).Result.String(), step.want)
	}
	got := stage.Must(es.Connector.Get("wiki").Do(ctx))(t)
	if *got.Id != "wiki" || *got.Name != "Wiki" || *got.ApiKeyId != "k1" || *got.ApiKeySecretId != made.Id || !got.IsNative || got.Status.String() != "created" {
		t.Errorf("get answers %+v", got)
	}
	if list := stage.Must(es.Connector.List().Size(1).Do(ctx))(t); list.Count != 2 || len(list.Results) != 1 {
		t.Errorf("list answers %+v", list)
	}
	_, err := es.Connector.UpdateApiKeyId("none").ApiKeyId("k").Do(ctx)
	refused("an unknown connector", err, 404)
	_, err = es.Connector.UpdateApiKeyId("wiki").ApiKeyId("k9").Do(ctx)
	refused("the id of another key", err, 400)
	_, err = es.Connector.UpdateApiKeyId("wiki").Raw(strings.NewReader(`{"api_key_id":{"a":"b"}}`)).Do(ctx)
	refused("an object in place of a string", err, 400)
	_, err = es.Connector.SecretGet("none").Do(ctx)
	refused("a missing secret", err, 404)
	_, err = es.Connector.SecretDelete(made.Id).Do(ctx)
	refused("a secret in use", err, 409)
	if deleted := stage.Must(es.Connector.SecretDelete("s1").Do(ctx))(t); !deleted.Deleted {
		t.Error("a secret that nothing points to is not deleted")
	}
	if gone := stage.Must(es.Connector.Delete("wiki").Do(ctx))(t); !gone.Acknowledged {
		t.Error("the connector is not deleted")
	}
	wrong := stage.Must(elasticsearch.NewTypedClient(elasticsearch.Config{Addresses: []string{s.url}, Username: "elastic", Password: "wrong"}))(t)
	_, err = wrong.Connector.Get("wiki").Do(ctx)
	refused("a wrong password", err, 401)
	narrow := stage.Must(elasticsearch.NewTypedClient(elasticsearch.Config{Addresses: []string{s.url}, Username: "elastic", Password: s.Key("default", `{"permissions":["connectors.manage"]}`)}))(t)
	_, err = narrow.Connector.SecretGet(made.Id).Do(ctx)
	refused("without read_connector_secrets", err, 403)
}
