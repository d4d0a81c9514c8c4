package credential_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/stage"
)

// ask serves a call of the administrator and returns its answer, or the code of its refusal.
func ask[T any](s *stage.Stage, t *testing.T, name, body string, change ...func(*service.Call)) (answer T, code string) {
	t.Helper()
	call := service.Call{Tenant: "default", Principal: s.Admin, Via: "http", Confidential: true}
	for _, c := range change {
		c(&call)
	}
	got, err := s.Service.Serve(t.Context(), call, name, []byte(body))
	if err != nil {
		return answer, stage.CodeOf(err)
	}
	switch v := got.(type) {
	case T:
		return v, ""
	case *T:
		return *v, ""
	}
	t.Fatalf("%s answers %T", name, got)
	return answer, ""
}

// A free type has no descriptor: its keys are taken as they come, are secret to the last
// leaf, and are saved unverified. A name that is one of the tenant's own components is that.
func TestFreeType(t *testing.T) {
	s := stage.New(t)
	const keys = `{"user":"canary-u","query":{"token":"canary-q","list":["canary-l"],"deep":{"x":{"y":"canary-y"}}}}`
	for _, c := range []struct{ body, code string }{
		{`{"type":"file system","keys":{},"component":"plain"}`, "body_invalid"},
		{`{"type":" ","keys":{}}`, "type_invalid"},
		{`{"type":"a\u0001","keys":{}}`, "type_invalid"},
		{`{"type":"` + strings.Repeat("x", 129) + `","keys":{}}`, "type_invalid"},
		{`{"keys":{}}`, "member_missing"},
		{`{"type":"t","keys":{"a":"********"}}`, "keys_masked"},
		{`{"type":"t","keys":{"a":{"b":["********"]}}}`, "keys_masked"},
		{`{"type":"t","keys":{"a":"\u002a*******"}}`, "keys_masked"},
		{`{"type":"t","keys":{"a":{"b":"\u002a*******"}}}`, "keys_masked"},
		{`{"type":"t","keys":[]}`, "keys_malformed"},
		{`{"type":"t","keys":{},"description":"a\u0007"}`, "description_invalid"},
		{`{"type":"t","keys":{},"description":"` + strings.Repeat("x", 1001) + `"}`, "description_invalid"},
		{`{"id":"export","type":"t","keys":{}}`, "credential_id_reserved"},
		{`{"id":"a\nb","type":"t","keys":{}}`, "id_invalid"},
		{`{"type":"plain","keys":{"no such field":"x"}}`, "keys_field_unknown"}, // the tenant's own component
		{`{"type":"plain","keys":{"apiKey":"k"},"hosts":["evil.example.org"]}`, "body_invalid"},
		{`{"type":"t","keys":{"a":"x"},"hosts":["*"]}`, "component_descriptor_invalid"},
		{`{"type":"t","keys":{"a":"x"},"verification":{"http":{"url":"https://api.example.org/?k={{b}}"}}}`, "component_descriptor_invalid"},
	} {
		if _, code := ask[service.Done](s, t, "credential.create", c.body); code != c.code {
			t.Errorf("%s is refused with %q, not %q", c.body, code, c.code)
		}
	}
	done := s.Do("default", "credential.create", `{"id":"AAABcID5GBc=","type":"file system","description":"Sales HD1\ncredentials","keys":`+keys+`}`)
	other := s.Do("default", "credential.create", `{"id":"AAABcID5GBc","type":"file system","description":"Sales HD1","keys":{"user":"canary-2"}}`)
	if done.ID != "AAABcID5GBc=" || other.ID != "AAABcID5GBc" || done.Status != "unverified" {
		t.Fatalf("created %+v and %+v", done, other)
	}
	if _, code := ask[service.Done](s, t, "credential.create", `{"id":"AAABcID5GBc=","type":"x","keys":{}}`); code != "credential_exists" {
		t.Errorf("an id that is taken: %s", code)
	}
	get := func(id string) credential.Credential {
		s.CaughtUp()
		c, code := ask[credential.Credential](s, t, "credential.get", fmt.Sprintf(`{"id":%q}`, id))
		if code != "" {
			t.Fatal(code)
		}
		return c
	}
	c := get("AAABcID5GBc=")
	shown := string(stage.Must(json.Marshal(c.Keys, json.Deterministic(true)))(t))
	const mask = `"********"`
	if shown != `{"query":{"deep":{"x":{"y":`+mask+`}},"list":`+mask+`,"token":`+mask+`},"user":`+mask+`}` || c.Component != "" || c.Type != "file system" ||
		c.Description != "Sales HD1\ncredentials" || c.Status != "unverified" || !strings.HasPrefix(c.Name, "file system ") {
		t.Errorf("it shows %+v with the keys %s", c, shown)
	}
	if name := get("AAABcID5GBc").Name; name != "Sales HD1" {
		t.Errorf("its name is %q", name)
	}
	// Each change of it, and what it is for.
	s.Do("default", "credential.update", `{"id":"AAABcID5GBc=","description":"","keys":{"user":{"name":"canary-3"}}}`)
	s.Do("default", "credential.verify", `{"id":"AAABcID5GBc="}`)
	s.Do("default", "credential.revert", `{"id":"AAABcID5GBc=","version":1}`)
	if c := get("AAABcID5GBc="); c.Version != 3 || c.Description != "" || fmt.Sprint(c.Keys["user"]) != "********" || c.Keys["query"] == "********" {
		t.Errorf("after the revert it is %+v", c)
	}
	if _, code := ask[service.Done](s, t, "credential.update", `{"id":"AAABcID5GBc="}`); code != "credential_update_empty" {
		t.Errorf("an update of nothing: %s", code)
	}
	resolved, err := s.Resolve(`{"id":"AAABcID5GBc=","cleartext":true}`)
	if text := string(stage.Must(json.Marshal(resolved.Keys, json.Deterministic(true)))(t)); err != nil || len(resolved.Hosts) != 0 ||
		text != `{"query":{"token":"canary-q","list":["canary-l"],"deep":{"x":{"y":"canary-y"}}},"user":"canary-u"}` {
		t.Errorf("resolved to %s for the hosts %v: %v", text, resolved.Hosts, err)
	}
	s.Do("default", "credential.create", `{"type":"plain","keys":{"apiKey":"k"},"description":"of the component"}`)
	s.CaughtUp()
	found, code := ask[credential.Found](s, t, "credential.search", `{"type":"plain"}`)
	if code != "" || found.Total != 1 || found.Credentials[0].Component != "plain" || found.Credentials[0].Type != "" {
		t.Errorf("of the type plain there is %+v: %s", found, code)
	}
	counts, _ := ask[credential.Counts](s, t, "credential.counts", `{}`)
	if text := string(stage.Must(json.Marshal(counts, json.Deterministic(true)))(t)); text !=
		`{"total":3,"components":[{"type":"file system","total":2,"status":{"unverified":2}},{"component":"plain","total":1,"status":{"unverified":1}}]}` {
		t.Errorf("the counts are %s", text)
	}
	if logs := s.Logs.String(); strings.Contains(logs, "canary") {
		t.Errorf("the log shows a secret:\n%s", logs)
	}
}

// A flow may use a credential of a free type: the component of its step is the type.
func TestFlowOfFreeType(t *testing.T) {
	s := stage.New(t)
	id := s.Do("default", "credential.create", `{"type":"filesystem","keys":{"user":"u"}}`).ID
	bind := `{"flow":"f1","steps":[{"id":"s1","component":%q,"credential":%q}]}`
	if _, code := ask[service.Done](s, t, "flow.bind", fmt.Sprintf(bind, "other", id)); code == "" {
		t.Error("a step of another component is bound")
	}
	s.Do("default", "flow.bind", fmt.Sprintf(bind, "filesystem", id))
	if _, code := ask[service.Done](s, t, "credential.delete", fmt.Sprintf(`{"id":%q}`, id)); code != "credential_in_use" {
		t.Errorf("deleting it is refused with %q", code)
	}
}

// A component that another tenant shares does not become what a bare type means: its owner
// would be sent the secrets of everybody who uses that type.
func TestForeignComponentIsNoType(t *testing.T) {
	s := stage.New(t)
	s.Do("default", "tenant.register", `{"id":"evil"}`)
	s.Do("evil", "component.register", `{"id":"filesystem","descriptor":{"title":"Files","hosts":["evil.example.org"],
		"credentials":{"fields":{"user":{"viewClass":"TextFieldView"}}},"verification":{"http":{"url":"https://evil.example.org/?u={{user}}"}}}}`)
	s.Do("evil", "component.share", `{"id":"filesystem"}`)
	done := s.Do("default", "credential.create", `{"type":"filesystem","keys":{"user":"canary"}}`)
	s.CaughtUp()
	c, code := ask[credential.Credential](s, t, "credential.get", fmt.Sprintf(`{"id":%q}`, done.ID))
	if code != "" || c.Component != "" || c.Type != "filesystem" || c.Status != "unverified" {
		t.Errorf("it is %+v: %s", c, code)
	}
}

// Many at once: what is refused stops none of the others, each id counts once, and a repeat
// with the same command id, also of a call that broke off, doubles nothing.
func TestMany(t *testing.T) {
	s := stage.New(t)
	named := func(c *service.Call) { c.CommandID = "batch-1" }
	const batch = `{"credentials":[{"type":"t","keys":{"a":"1"},"description":"one"},{"type":"t"},{"id":"x","type":"t","keys":{}},{"id":"x","type":"t","keys":{}},7]}`
	var ids []string
	for range 2 {
		many, code := ask[credential.Many](s, t, "credential.create-many", batch, named)
		if code != "" || many.Failed != 2 || len(many.Results) != 5 {
			t.Fatalf("%+v: %s", many, code)
		}
		if r := many.Results; r[0].Error != nil || r[2].Error != nil || r[2].ID != "x" || r[3].Error.Code != "item_repeated" || r[4].Error.Code != "body_invalid" {
			t.Errorf("%+v", many.Results)
		}
		ids = append(ids, many.Results[0].ID)
	}
	s.CaughtUp()
	if found, _ := ask[credential.Found](s, t, "credential.search", `{"type":"t","limit":1}`); ids[0] != ids[1] || found.Total != 3 || len(found.Credentials) != 1 {
		t.Errorf("the repeat made %v, and there are %d", ids, found.Total)
	}
	if _, code := ask[credential.Many](s, t, "credential.create-many", `{"credentials":[`+strings.Repeat("{},", 1000)+`{}]}`); code != "too_many_items" {
		t.Errorf("1001 items: %s", code)
	}
	many, code := ask[credential.Many](s, t, "credential.update-many", `{"updates":[{"id":"x","description":"two"},{"id":"none","description":"d"},{"id":"x","description":"three"}]}`)
	if code != "" || many.Failed != 2 || many.Results[1].Error.Status != 404 || many.Results[2].Error.Code != "item_repeated" {
		t.Errorf("%+v: %s", many, code)
	}
	many, code = ask[credential.Many](s, t, "credential.update-many", `{"filter":{"type":"t","description":"TW"},"update":{"keys":{"b":"2"}}}`)
	if code != "" || many.Failed != 0 || len(many.Results) != 1 || many.Results[0].ID != "x" || many.Results[0].Version != 2 || many.Next != "" {
		t.Errorf("%+v: %s", many, code)
	}
	for _, refused := range []string{`{}`, `{"ids":["x"],"filter":{}}`} {
		if _, code := ask[credential.Many](s, t, "credential.delete-many", refused); code != "items_or_filter" {
			t.Errorf("%s: %s", refused, code)
		}
	}
	again := func(c *service.Call) { c.CommandID = "batch-2" }
	for range 2 {
		many, code = ask[credential.Many](s, t, "credential.delete-many", `{"ids":["x","none","x"]}`, again)
		if code != "" || many.Failed != 2 || many.Results[0].Error != nil || many.Results[1].Error.Status != 404 {
			t.Errorf("%+v: %s", many, code)
		}
	}
}

// An export holds no secret, not even sealed: what is missing is listed.
func TestExport(t *testing.T) {
	s := stage.New(t)
	s.Do("default", "credential.create", `{"id":"a=","type":"t","description":"d","keys":{"token":"canary","x":{"y":"canary"}}}`)
	s.CaughtUp()
	out, code := ask[credential.Exported](s, t, "credential.export", `{"ids":["a=","none"]}`)
	text := string(stage.Must(json.Marshal(out))(t))
	if code != "" || text != `{"credentials":[{"id":"a=","type":"t","name":"d","description":"d"}],"missing":[{"credential":"a=","properties":["token","x"],`+
		`"says":"Secrets are not exported in clear. Enter them again after the import."}],"total":1}` {
		t.Errorf("%s: %s", text, code)
	}
	engine := func(c *service.Call) { c.Principal = s.Engine }
	if _, code := ask[credential.Exported](s, t, "credential.export", `{}`, engine); code != service.ErrDenied.Code {
		t.Errorf("an engine exports: %q", code)
	}
}
