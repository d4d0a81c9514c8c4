package admin_test

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/service/stage"
)

// read asks for facts and lists their types, or the code of the refusal.
func read(t *testing.T, s *stage.Stage, who service.Principal, query, body string) (types []string) {
	t.Helper()
	answer, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: who, Via: "http"}, query, []byte(body))
	if err != nil {
		return []string{stage.CodeOf(err)}
	}
	switch page := answer.(type) {
	case admin.Replay:
		for _, e := range page.Events {
			types = append(types, strings.TrimSuffix(strings.TrimPrefix(e.Type, "credstream."), ".v1"))
		}
	case credential.History:
		for _, e := range page.Events {
			types = append(types, e.Type)
		}
	}
	return types
}

// Every type of event is read by its audience and by nobody else.
func TestAudiences(t *testing.T) {
	s := stage.New(t)
	begin := stage.Must(s.Store.End(t.Context()))(t) + 1
	var changes, all []string
	for _, typ := range events.All().Types() {
		category, _, _ := strings.Cut(typ.Name, ".")
		stream := events.StreamID{Tenant: "default", Category: category, ID: events.NewID()}
		meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "test"}, Command: events.NewID(), Time: time.Now(), Via: "system"}
		stage.Must(s.Store.Append(t.Context(), stream, 0, meta, reflect.Zero(typ.GoType()).Interface()))(t)
		if typ.Audience != events.Internal {
			all = append(all, typ.Name)
			if typ.Audience == events.Changes {
				changes = append(changes, typ.Name)
			}
		}
	}
	body := fmt.Sprintf(`{"from":%d}`, begin)
	whole := fmt.Sprintf(`{"from":%d,"to":%d}`, begin, stage.Must(s.Store.End(t.Context()))(t))
	for _, tc := range []struct {
		name            string
		permissions     []permission.Permission
		changes, replay []string
	}{
		{"follower", []permission.Permission{permission.CredentialsGet}, changes, []string{"permission_denied"}},
		{"manager of keys", []permission.Permission{permission.CredentialsGet, permission.KeysManage, permission.TenantsManage}, changes, []string{"permission_denied"}},
		{"auditor", []permission.Permission{permission.AuditRead}, []string{"permission_denied"}, all},
		{"both", []permission.Permission{permission.CredentialsGet, permission.AuditRead}, changes, all},
	} {
		who := service.Principal{Actor: events.Actor{Kind: "key", ID: "k"}, Home: "default", Tenants: []string{"default"}, Permissions: tc.permissions}
		if diff := cmp.Diff(tc.changes, read(t, s, who, "events.changes", body)); diff != "" {
			t.Errorf("changes for a %s (-want +got):\n%s", tc.name, diff)
		}
		if diff := cmp.Diff(tc.replay, read(t, s, who, "events.replay", whole)); diff != "" {
			t.Errorf("a replay for a %s (-want +got):\n%s", tc.name, diff)
		}
	}
}

// The history of a credential says who saw its values to who reads the audit stream alone.
func TestHistoryForAudiences(t *testing.T) {
	s := stage.New(t)
	id := s.Create("canary-1")
	s.Admin.Permissions = append(slices.Clone(s.Admin.Permissions), permission.CredentialsReveal)
	s.Do("default", "credential.reveal", fmt.Sprintf(`{"id":%q}`, id))
	s.Do("default", "credential.rename", fmt.Sprintf(`{"id":%q,"name":"again"}`, id))
	body := fmt.Sprintf(`{"id":%q}`, id)
	if diff := cmp.Diff([]string{"credential.created", "credential.renamed"}, read(t, s, s.Engine, "credential.history", body)); diff != "" {
		t.Errorf("for a flow engine (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"credential.created", "credential.revealed", "credential.renamed"}, read(t, s, s.Admin, "credential.history", body)); diff != "" {
		t.Errorf("for an administrator (-want +got):\n%s", diff)
	}
}
