package service_test

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
)

// read asks for facts and lists their types, or the code of the refusal.
func (s *stage) read(who service.Principal, query, body string) (types []string) {
	s.t.Helper()
	answer, err := s.svc.Serve(s.t.Context(), service.Call{Tenant: "default", Principal: who, Via: "http"}, query, []byte(body))
	if err != nil {
		return []string{codeOf(err)}
	}
	switch page := answer.(type) {
	case service.Replay:
		for _, e := range page.Events {
			types = append(types, strings.TrimSuffix(strings.TrimPrefix(e.Type, "credstream."), ".v1"))
		}
	case service.History:
		for _, e := range page.Events {
			types = append(types, e.Type)
		}
	}
	return types
}

// Every type of event is read by its audience and by nobody else.
func TestAudiences(t *testing.T) {
	s := newStage(t)
	begin := must(s.store.End(t.Context()))(t) + 1
	var changes, all []string
	for _, typ := range events.All().Types() {
		category, _, _ := strings.Cut(typ.Name, ".")
		stream := events.StreamID{Tenant: "default", Category: category, ID: events.NewID()}
		meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "test"}, Command: events.NewID(), Time: time.Now(), Via: "system"}
		must(s.store.Append(t.Context(), stream, 0, meta, reflect.Zero(typ.GoType()).Interface()))(t)
		if typ.Audience != events.Internal {
			all = append(all, typ.Name)
			if typ.Audience == events.Changes {
				changes = append(changes, typ.Name)
			}
		}
	}
	body := fmt.Sprintf(`{"from":%d}`, begin)
	whole := fmt.Sprintf(`{"from":%d,"to":%d}`, begin, must(s.store.End(t.Context()))(t))
	for _, tc := range []struct {
		name            string
		permissions     []service.Permission
		changes, replay []string
	}{
		{"follower", []service.Permission{service.CredentialsGet}, changes, []string{"permission_denied"}},
		{"manager of keys", []service.Permission{service.CredentialsGet, service.KeysManage, service.TenantsManage}, changes, []string{"permission_denied"}},
		{"auditor", []service.Permission{service.AuditRead}, []string{"permission_denied"}, all},
		{"both", []service.Permission{service.CredentialsGet, service.AuditRead}, changes, all},
	} {
		who := service.Principal{Actor: events.Actor{Kind: "key", ID: "k"}, Home: "default", Tenants: []string{"default"}, Permissions: tc.permissions}
		if diff := cmp.Diff(tc.changes, s.read(who, "events.changes", body)); diff != "" {
			t.Errorf("changes for a %s (-want +got):\n%s", tc.name, diff)
		}
		if diff := cmp.Diff(tc.replay, s.read(who, "events.replay", whole)); diff != "" {
			t.Errorf("a replay for a %s (-want +got):\n%s", tc.name, diff)
		}
	}
}

// The history of a credential says who saw its values to who reads the audit trail alone.
func TestHistoryForAudiences(t *testing.T) {
	s := newStage(t)
	id := s.create("canary-1")
	s.admin.Permissions = append(slices.Clone(s.admin.Permissions), service.CredentialsReveal)
	s.do("default", "credential.reveal", fmt.Sprintf(`{"id":%q}`, id))
	s.do("default", "credential.rename", fmt.Sprintf(`{"id":%q,"name":"again"}`, id))
	body := fmt.Sprintf(`{"id":%q}`, id)
	if diff := cmp.Diff([]string{"credential.created", "credential.renamed"}, s.read(s.engine, "credential.history", body)); diff != "" {
		t.Errorf("for a flow engine (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"credential.created", "credential.revealed", "credential.renamed"}, s.read(s.admin, "credential.history", body)); diff != "" {
		t.Errorf("for an administrator (-want +got):\n%s", diff)
	}
}
