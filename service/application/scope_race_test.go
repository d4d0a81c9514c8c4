package application_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/service/stage"
)

// overtaken is a store in which another process commits before the next commit to a stream of flows.
type overtaken struct {
	events.Store
	first atomic.Pointer[func()]
}

func (o *overtaken) Stage(ctx context.Context, stream events.StreamID, expected uint64, meta events.Meta, evs ...events.Event) (uint64, error) {
	if stream.Category == aggregates.Flow.Category {
		if first := o.first.Swap(nil); first != nil {
			(*first)()
		}
	}
	return o.Store.Stage(ctx, stream, expected, meta, evs...)
}

// A flow that comes to use a credential outside the scope while a bound key changes it is not
// changed by that key: the commit decides, not the look before it.
func TestBoundKeyLosesARace(t *testing.T) {
	var store *overtaken
	s := newScoped(t, func(c *application.Config) {
		store = &overtaken{Store: c.Log.Store}
		c.Log = stage.Must(aggregates.NewLog(store, 100))(t)
	})
	use := func(credential, component string) []events.FlowStep {
		return []events.FlowStep{{ID: "s", Component: component, Credential: credential}}
	}
	inside := fmt.Sprintf(`[{"id":"s","component":"plain","credential":%q}]`, s.inside)
	call := service.Call{Tenant: "default", Principal: s.narrow, Via: "http"}
	for what, tc := range map[string]struct {
		want   string
		change func(flow string) error
	}{
		"bind": {"key_scope_exceeded", func(id string) error {
			_, err := s.serve(s.narrow, "flow.bind", fmt.Sprintf(`{"flow":%q,"steps":%s}`, id, inside))
			return err
		}},
		"release": {"flow_not_found", func(id string) error {
			_, err := s.serve(s.narrow, "flow.release", fmt.Sprintf(`{"flow":%q}`, id))
			return err
		}},
		"report": {"key_scope_exceeded", func(id string) error {
			_, err := s.serve(s.narrow, "flow.report", fmt.Sprintf(`{"change":"started","id":%q,"revision":9,"steps":%s}`, id, inside))
			return err
		}},
		"event": {"key_scope_exceeded", func(id string) error {
			call := call
			call.CommandID = events.NewID()
			return s.Service.Flows.ObserveFlow(t.Context(), call, flow.Event{Change: events.FlowWasDeleted, ID: id, Revision: 9})
		}},
		"change": {"flow_not_found", func(id string) error {
			_, err := s.Service.Flows.ChangeFlow(t.Context(), call, "flow.updated", fmt.Appendf(nil, `{"id":%q,"steps":%s}`, id, inside))
			return err
		}},
	} {
		id := "race-" + what
		_, err := s.serve(s.narrow, "flow.report", fmt.Sprintf(`{"change":"created","id":%q,"revision":1,"steps":%s}`, id, inside))
		stage.OK(t, err)
		_, err = s.serve(s.narrow, "flow.bind", fmt.Sprintf(`{"flow":%q,"steps":%s}`, id, inside))
		stage.OK(t, err)
		other := stage.Must(aggregates.NewLog(s.Store, 10))(t) // of another process
		first := func() {
			_, _, err := aggregates.Flow.Execute(t.Context(), other, "default", commands.BindFlow{
				ID: id, Binding: "theirs", Steps: use(s.outside[0], "other"), Until: time.Now().Add(time.Hour),
			}, events.Meta{Tenant: "default", Actor: s.Admin.Actor, Command: events.NewID(), Via: "http", Time: time.Now()}, nil)
			stage.OK(t, err)
		}
		store.first.Store(&first)
		err = tc.change(id)
		if code := stage.CodeOf(err); code != tc.want || store.first.Load() != nil {
			t.Errorf("%s: %v, want %s", what, err, tc.want)
		}
		state := stage.Must(aggregates.Flow.Fresh(t.Context(), other, aggregates.Flow.Stream("default", id)))(t)
		if now := state.Value; now.Revision != 1 || now.Binding.ID != "theirs" {
			t.Errorf("%s: the flow has revision %d and the reservation %q", what, now.Revision, now.Binding.ID)
		}
	}
}

// Every refusal by the scope of a key is recorded as a denial of the key, but an attempt at what does
// not exist is not: it is no attempt at another's credential.
func TestScopeDenialsAreRecorded(t *testing.T) {
	s := newScoped(t)
	denied := func(who service.Principal) (list []string) {
		end := stage.Must(s.Store.End(t.Context()))(t)
		for seq := uint64(1); seq <= end; seq++ {
			for _, rec := range stage.Must(s.Store.Commit(t.Context(), seq))(t) {
				if e, ok := rec.Event.(events.AccessDenied); ok && e.Principal == "key:"+who.Actor.ID {
					list = append(list, fmt.Sprint(e.Tenant, " ", e.Route, " ", e.Permission, " ", e.Count))
				}
			}
		}
		return list
	}
	serve := func(route, body string) func(who service.Principal) error {
		return func(who service.Principal) error {
			_, err := s.serve(who, route, body)
			return err
		}
	}
	for what, tc := range map[string]struct {
		do         func(who service.Principal) error
		code, want string
	}{
		"one outside":      {serve("credential.get", fmt.Sprintf(`{"id":%q}`, s.outside[0])), "credential_not_found", "default credential.get credentials.get 1"},
		"one unknown":      {serve("credential.get", `{"id":"unknown"}`), "credential_not_found", ""},
		"the whole tenant": {serve("component.delete", `{"id":"plain"}`), "key_scope_tenantwide", "default component.delete components.delete 1"},
		"a new one":        {serve("credential.create", `{"component":"other","keys":{"apiKey":"k"}}`), "key_scope_exceeded", "default credential.create credentials.create 1"},
		"a new step": {
			serve("flow.bind", fmt.Sprintf(`{"flow":"new","steps":[{"id":"s","component":"other","credential":%q}]}`, s.outside[0])),
			"credential_not_found", "default flow.bind flows.edit 1",
		},
		"queued": {func(who service.Principal) error {
			_, err := s.Service.Queue(t.Context(), &service.Call{Tenant: "default", Principal: who, Via: "nats"}, "component.delete")
			return err
		}, "key_scope_tenantwide", "default component.delete components.delete 1"},
		"an item": {func(who service.Principal) error {
			call := &service.Call{Tenant: "default", Principal: who, Via: "http"}
			_, err := s.Service.Each(t.Context(), call, "component.delete", "1", []byte(`{"id":"plain"}`))
			return err
		}, "key_scope_tenantwide", "default component.delete components.delete 1"},
	} {
		who := s.Issue("default", "{"+everything+`,"components":["plain"],"workspaces":["sales"]}`)
		if err := tc.do(who); stage.CodeOf(err) != tc.code {
			t.Errorf("%s: %v, want %s", what, err, tc.code)
		}
		var want []string
		if tc.want != "" {
			want = []string{tc.want}
		}
		if diff := cmp.Diff(want, denied(who)); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
}
