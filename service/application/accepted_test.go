package application_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/events/memory"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service/stage"
)

// torn is a store whose callers may hang up after a commit was stored.
type torn struct {
	events.Store
	hangUp bool
}

func (s *torn) Stage(ctx context.Context, stream events.StreamID, expected uint64, meta events.Meta, evs ...events.Event) (uint64, error) {
	seq, err := s.Store.Stage(ctx, stream, expected, meta, evs...)
	if err == nil && s.hangUp {
		return 0, events.ErrUnknownOutcome
	}
	return seq, err
}

// obey executes one command the way the service does.
type obey func(ctx context.Context, log *aggregates.Log, meta events.Meta, cmd commands.Command) error

func obeying[S any, C commands.Command, E any](d aggregates.Decider[S, C, E], system bool) obey {
	return func(ctx context.Context, log *aggregates.Log, meta events.Meta, cmd commands.Command) error {
		tenant := meta.Tenant
		if system {
			tenant = events.System
		}
		_, _, err := d.Execute(ctx, log, tenant, cmd.(C), meta, nil)
		return err
	}
}

// every is each command there is, with how it is obeyed.
var every = func() (all []struct {
	cmd  commands.Command
	obey obey
},
) {
	add := func(o obey, list ...commands.Command) {
		for _, cmd := range list {
			all = append(all, struct {
				cmd  commands.Command
				obey obey
			}{cmd, o})
		}
	}
	add(obeying(aggregates.Access, false), commands.RecordDenials{}, commands.RecordConnectAborted{})
	add(obeying(aggregates.APIKey, true), commands.IssueAPIKey{}, commands.RevokeAPIKey{}, commands.WarnAPIKey{})
	add(obeying(aggregates.AuthClient, false), commands.CreateAuthClient{}, commands.ChangeAuthClient{}, commands.SettleAuthClient{},
		commands.RevealAuthClient{}, commands.DeleteAuthClient{}, commands.AbandonAuthClientSecret{})
	add(obeying(aggregates.CommandRecord, false), commands.StartCommand{}, commands.CompleteCommand{})
	add(obeying(aggregates.Component, true), commands.RegisterComponent{}, commands.UpdateComponent{}, commands.ShareComponent{}, commands.UnshareComponent{},
		commands.SetComponentEnv{}, commands.AbandonEnvSecret{}, commands.DeleteComponent{})
	add(obeying(aggregates.Connector, false), commands.PutConnector{}, commands.SetConnectorKey{}, commands.AbandonConnectorUse{}, commands.DeleteConnector{})
	add(obeying(aggregates.ConnectorSecret, false), commands.PutConnectorSecret{}, commands.RevertConnectorSecret{}, commands.RevealConnectorSecret{},
		commands.UseConnectorSecret{}, commands.ReleaseConnectorSecret{}, commands.DeleteConnectorSecret{}, commands.AbandonConnectorSecret{})
	add(obeying(aggregates.Credential, false), commands.CreateCredential{}, commands.RenameCredential{}, commands.SetVPNAgent{}, commands.SetDescription{}, commands.UpdateCredential{}, commands.AbandonPolicyUse{}, commands.ReplaceKeys{},
		commands.RevertCredential{}, commands.RecordVerification{}, commands.DeleteCredential{}, commands.AbandonSecret{}, commands.UseCredential{},
		commands.ReserveCredential{}, commands.ReleaseCredential{}, commands.RevealCredential{}, commands.StartRefresh{}, commands.CompleteRefresh{},
		commands.FailRefresh{}, commands.RequireReauthorization{}, commands.RevokeTokens{}, commands.RecordProviderRevocation{}, commands.WarnCredential{})
	add(obeying(aggregates.Flow, false), commands.ObserveFlow{}, commands.BindFlow{}, commands.ReleaseFlow{}, commands.RefuseUse{})
	add(obeying(aggregates.Installation, true), commands.AttestDurability{})
	add(obeying(aggregates.OAuthClient, false), commands.DefineOAuthClient{}, commands.ChangeOAuthClient{}, commands.DeleteOAuthClient{},
		commands.MarkOAuthClientUnusable{}, commands.RevealOAuthClient{}, commands.UseOAuthClient{}, commands.ReleaseOAuthClient{}, commands.AbandonClientSecret{}, commands.WarnOAuthClient{})
	add(obeying(aggregates.Role, false), commands.DefineRole{}, commands.ChangeRole{}, commands.GrantRole{}, commands.DeleteRole{})
	add(obeying(aggregates.Tenant, true), commands.RegisterTenant{}, commands.StartKeyRotation{}, commands.CompleteKeyRotation{}, commands.RecordRewrap{},
		commands.StartTenantErasure{}, commands.CompleteTenantErasure{})
	add(obeying(aggregates.ThrottlePolicy, false), commands.DefineThrottlePolicy{}, commands.ChangeThrottlePolicy{}, commands.UseThrottlePolicy{},
		commands.ReleaseThrottlePolicy{}, commands.DeleteThrottlePolicy{})
	add(obeying(aggregates.Webhook, false), commands.DefineWebhook{}, commands.ChangeWebhook{}, commands.RotateWebhook{}, commands.EndWebhookRotation{},
		commands.DisableWebhook{}, commands.DeleteWebhook{}, commands.AbandonWebhookSecret{})
	return all
}()

var acceptedLong = flag.Bool("accepted-long", false, "try all of rapid's runs, not 40")

var moment = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// fill gives a value random members, from so few that they meet again and again.
func fill(t *rapid.T, name string, v reflect.Value) {
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(rapid.SampledFrom([]time.Time{{}, moment, moment.Add(time.Hour)}).Draw(t, name)))
		return
	case events.Status:
		v.Set(reflect.ValueOf(rapid.SampledFrom([]events.Status{events.Verified, events.Failed, events.Unverified}).Draw(t, name)))
		return
	case events.FlowChange:
		v.Set(reflect.ValueOf(rapid.SampledFrom([]events.FlowChange{events.FlowWasStarted, events.FlowWasStopped, events.FlowWasDeleted}).Draw(t, name)))
		return
	}
	switch v.Kind() {
	case reflect.String:
		from := []string{"", "x", "y"}
		switch name {
		case "ID", "Component", "Flow", "Owner", "SecretID", "Binding", "OAuthClient", "ClientID", "Principal", "Starter":
			from = []string{"a", "b"}
		case "Scope":
			from = []string{projections.ScopeWorkspace, projections.ScopeTenant, projections.ScopeGlobal}
		case "SHA256":
			from = []string{"aa", "bb"}
		case "Descriptor":
			from = []string{`{"title":"x"}`, `{"title":"y"}`}
		}
		v.SetString(rapid.SampledFrom(from).Draw(t, name))
	case reflect.Int, reflect.Int64:
		v.SetInt(rapid.Int64Range(0, 3).Draw(t, name))
	case reflect.Uint64:
		v.SetUint(rapid.Uint64Range(0, 4).Draw(t, name))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, name))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), rapid.IntRange(0, 2).Draw(t, name), 2))
		for i := range v.Len() {
			fill(t, name, v.Index(i))
		}
	case reflect.Pointer:
		if rapid.Bool().Draw(t, name) {
			v.Set(reflect.New(v.Type().Elem()))
			fill(t, name, v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Type().Field(i).Name, v.Field(i))
		}
	default:
		t.Fatalf("%s: a %s cannot be made up", name, v.Type())
	}
}

// Whatever the aggregates let into the log, the views accept: random commands, under
// command ids that are used again for whatever target, by callers who hang up, with
// restarts in between.
func TestViewsAcceptWhatAggregatesDecide(t *testing.T) {
	names := regexp.MustCompile(`(?m)^func \((?:c )?(\w+)\) (?:access|apiKey|authClient|commandRecord|component|connector|connectorSecret|credential|flow|installation|oauthClient|role|tenant|throttlePolicy|webhook)\(\)`)
	all := ""
	stage.OK(t, filepath.WalkDir("../../commands", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		source, err := os.ReadFile(path)
		all += string(source)
		return err
	}))
	known := names.FindAllString(all, -1)
	if len(known) != len(every) || len(known) < 40 {
		t.Fatalf("there are %d commands, %d are tried", len(known), len(every))
	}
	dir, tried := t.TempDir(), map[string]bool{}
	log := slog.New(slog.DiscardHandler)
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		if run++; run > 40 && !*acceptedLong {
			return
		}
		path := filepath.Join(dir, fmt.Sprint(run))
		store := &torn{Store: memory.New(events.All())}
		states, err := aggregates.NewLog(store, 100)
		if err != nil {
			t.Fatal(err)
		}
		live, err := projections.OpenViews(path, projections.ViewsOptions{Logger: log, Readers: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = live.Close() }()
		applied := uint64(0)
		follow := func(into *projections.Views, after uint64) uint64 {
			end, _ := store.End(context.Background())
			var batch []events.Record
			for seq := after + 1; seq <= end; seq++ {
				recs, err := store.Commit(context.Background(), seq)
				if err != nil {
					t.Fatal(err)
				}
				batch = append(batch, recs...)
			}
			if err := into.Apply(context.Background(), batch); err != nil {
				t.Fatalf("the views refuse what was decided: %v", err)
			}
			return end
		}
		for range rapid.IntRange(1, 60).Draw(t, "commands") {
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0: // a restart
				if states, err = aggregates.NewLog(store, 100); err != nil {
					t.Fatal(err)
				}
			case 1:
				applied = follow(live, applied)
			}
			one := rapid.SampledFrom(every).Draw(t, "command")
			cmd := reflect.New(reflect.TypeOf(one.cmd)).Elem()
			fill(t, "", cmd)
			meta := events.Meta{
				Tenant: rapid.SampledFrom([]string{"acme", "other"}).Draw(t, "tenant"), Actor: events.Actor{Kind: "key", ID: "k"},
				Command: rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, "id"), Request: "r", Time: moment, Via: "http",
			}
			store.hangUp = rapid.IntRange(0, 5).Draw(t, "hang up") == 0
			err := one.obey(context.Background(), states, meta, cmd.Interface().(commands.Command))
			if err == nil || errors.Is(err, events.ErrUnknownOutcome) {
				tried[cmd.Type().Name()] = true
			}
		}
		follow(live, applied)
		// At once, as at a first start, and in the way of a rebuild: the same rows.
		fresh, err := projections.OpenViews(path+".fresh", projections.ViewsOptions{Logger: log, Readers: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = fresh.Close() }()
		if err := fresh.Rebuild(context.Background(), store, nil); err != nil {
			t.Fatalf("the views cannot be built from what was decided: %v", err)
		}
		var one, other bytes.Buffer
		if err := errors.Join(live.Dump(context.Background(), &one), fresh.Dump(context.Background(), &other)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(one.String(), other.String()); diff != "" {
			t.Fatalf("views that followed and views that were rebuilt differ (-followed +rebuilt):\n%s", diff)
		}
	})
	var never []string
	for _, one := range every {
		if name := reflect.TypeOf(one.cmd).Name(); !tried[name] {
			never = append(never, name)
		}
	}
	if slices.Sort(never); len(never) > 0 && !t.Failed() {
		t.Logf("refused in every run: %v", never)
	}
}
