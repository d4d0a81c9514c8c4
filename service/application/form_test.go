package application_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/stage"
)

// Callers fill in what is theirs: each member of a request says its name in JSON, since
// JSON would else find it by its name in Go. A request that is a command has no member
// that JSON cannot name, since only the service could have put it in.
func TestMembersOfRequests(t *testing.T) {
	var look func(typ reflect.Type, path string, command bool) []string
	look = func(typ reflect.Type, path string, command bool) (wrong []string) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice:
			return look(typ.Elem(), path, command)
		case reflect.Struct:
		default:
			return nil
		}
		if !strings.HasPrefix(typ.PkgPath(), "github.com/credstream/credstream/") {
			return nil
		}
		for f := range typ.Fields() {
			at := path + "." + f.Name
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			switch {
			case !f.IsExported(), f.Anonymous && name == "":
			case name == "" || command && name == "-":
				wrong = append(wrong, at)
			}
			wrong = append(wrong, look(f.Type, at, command)...)
		}
		return wrong
	}
	commands := 0
	for _, r := range application.Routes() {
		command := strings.HasSuffix(r.In.PkgPath(), "/commands")
		if command {
			commands++
		}
		if wrong := look(r.In, r.In.String(), command); wrong != nil {
			t.Errorf("%s takes what is not a caller's, or does not say its name: %v", r.Name, wrong)
		}
	}
	if commands < 2 {
		t.Errorf("found %d requests that are commands: the test no longer sees them", commands)
	}
}

// What is not a member is refused, by the name in Go too, and so is a command whose form
// its Check refuses; none of it reaches the log.
func TestCheckedBeforeExecuted(t *testing.T) {
	s := stage.New(t)
	id := s.Create("canary-1")
	s.CaughtUp()
	end := stage.Must(s.Store.End(t.Context()))(t)
	for body, code := range map[string]string{
		`{"id":%q,"name":"n","SecretID":"x"}`:        "body_invalid",
		`{"id":%q,"name":"n","Expected":1}`:          "body_invalid",
		`{"ID":%q,"name":"n"}`:                       "body_invalid",
		`{"id":%q,"name":"n","expected_version":-1}`: "body_invalid",
		`{"id":%q,"name":"n","expected_version":7}`:  "credential_version_stale",
		`{"id":%q,"name":""}`:                        "name_invalid",
		`{"id":"","name":"%.0s"}`:                    "name_invalid",
		`{"id":"","name":"n%.0s"}`:                   "member_missing",
	} {
		call := service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}
		if _, err := s.Service.Serve(t.Context(), call, "credential.rename", fmt.Appendf(nil, body, id)); stage.CodeOf(err) != code {
			t.Errorf("%s: %v, want %s", body, err, code)
		}
	}
	if now := stage.Must(s.Store.End(t.Context()))(t); now != end {
		t.Errorf("the log has %d commits more", now-end)
	}
}
