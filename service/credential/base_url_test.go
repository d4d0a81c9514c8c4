package credential_test

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/stage"
)

// A server of a company's own, as Jira and Magento are: its URL and its CA are fields.
func TestBaseURLOfCredential(t *testing.T) {
	s := stage.New(t, stage.AllowPrivate)
	var asked []string
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		if user, password, _ := r.BasicAuth(); user != "ann" || password != "canary-key" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(server.Close)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	s.Do("default", "component.register", `{"id":"jira","descriptor":{"title":"Jira","hosts":["{{baseUrl|trim}}"],"credentials":{"fields":{
		"baseUrl":{"required":true},"username":{},"password":{"viewClass":"PasswordFieldView"},"ca":{"viewClass":"TextAreaView"}}},
		"verification":{"http":{"url":"{{baseUrl|trim}}/rest/api/2/myself","tls":{"ca":"{{ca}}"},"basic":{"username":"{{username|trim}}","password":"{{password}}"}}}}}`)
	create := func(base, password, ca string) error {
		keys := stage.Must(json.Marshal(map[string]string{"baseUrl": base, "username": " ann ", "password": password, "ca": ca}, json.Deterministic(true)))(t)
		_, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "credential.create",
			fmt.Appendf(nil, `{"component":"jira","keys":%s}`, keys))
		return err
	}
	stage.OK(t, create(server.URL+"/jira/ ", "canary-key", ca))
	stage.OK(t, create(strings.TrimPrefix(server.URL, "https://"), "canary-key", ca))
	if got := strings.Join(asked, " "); got != "/jira/rest/api/2/myself /rest/api/2/myself" {
		t.Errorf("asked for %s", got)
	}
	for name, c := range map[string]struct{ base, password, ca, code, pointer string }{
		"a wrong password":     {server.URL, "canary-other", ca, "credential_verification_failed", ""},
		"no CA":                {server.URL, "canary-key", "", "credential_verification_failed", ""},
		"a CA that is no PEM":  {server.URL, "canary-key", "canary", "verification_value_invalid", "/keys/ca"},
		"http":                 {strings.Replace(server.URL, "https:", "http:", 1), "canary-key", ca, "verification_value_invalid", "/keys/baseUrl"},
		"another host by @":    {"https://jira.example.org@127.0.0.1", "canary-key", ca, "verification_value_invalid", "/keys/baseUrl"},
		"another host by #":    {server.URL + "#jira.example.org", "canary-key", ca, "verification_value_invalid", "/keys/baseUrl"},
		"another header field": {server.URL + "\r\nX: y", "canary-key", ca, "verification_value_invalid", "/keys/baseUrl"},
	} {
		err := create(c.base, c.password, c.ca)
		if stage.CodeOf(err) != c.code || fault.Of(err).Pointer != c.pointer || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v, want %s at %s", name, err, c.code, c.pointer)
		}
	}
}

// The end of Mailchimp's keys is the data centre. New keys for the same one have the same hosts.
func TestHostsFromAPartOfAKey(t *testing.T) {
	s := stage.New(t)
	s.Do("default", "component.register", `{"id":"mailchimp","descriptor":{"title":"Mailchimp","hosts":["{{apiKey|after(\"-\")}}.api.example.org"],
		"credentials":{"fields":{"apiKey":{"viewClass":"PasswordFieldView","required":true}}}}}`)
	id := s.Do("default", "credential.create", `{"component":"mailchimp","keys":{"apiKey":"canary-one-us6"}}`).Completed().ID
	serve := func(route, body string) error {
		_, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, route, fmt.Appendf(nil, `{"id":%q,%s}`, id, body))
		return err
	}
	stage.OK(t, serve("credential.replace-keys", `"keys":{"apiKey":"canary-two-us6"}`))
	stage.OK(t, serve("credential.revert", `"version":1`))
	stage.OK(t, serve("credential.replace-keys", `"keys":{"apiKey":"canary-two-us7"}`))
	if err := serve("credential.revert", `"version":1`); stage.CodeOf(err) != "credential_hosts_changed" {
		t.Errorf("keys for another data centre were restored: %v", err)
	}
	err := serve("credential.replace-keys", `"keys":{"apiKey":"canary"}`)
	if stage.CodeOf(err) != "verification_value_invalid" || fault.Of(err).Pointer != "/keys/apiKey" || strings.Contains(err.Error(), "canary") {
		t.Errorf("a key without a data centre: %v", err)
	}
}
