package projections_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/text/collate"
	"golang.org/x/text/language"
	"golang.org/x/text/unicode/norm"
	"pgregory.net/rapid"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
)

var (
	verified   = events.Verification{Status: events.Verified, Probe: "http", Outcome: "2xx", LatencyMS: 42}
	failed     = events.Verification{Status: events.Failed, Probe: "http", Outcome: "4xx", LatencyMS: 7}
	unverified = events.Verification{Status: events.Unverified}
)

func keys(version int, v events.Verification) events.KeysVersion {
	return events.KeysVersion{
		Version: version, SecretID: fmt.Sprintf("secret-%d", version), Fields: []string{"apiKey"}, Revision: 3, Hosts: []string{"*.example.com"}, HostMAC: "mac", Verification: v,
	}
}

// everything is a history with every stored fact.
func everything() []events.Record {
	system := func(category, id string) events.StreamID {
		return events.StreamID{Tenant: events.System, Category: category, ID: id}
	}
	one := func(e events.Event) []events.Event { return []events.Event{e} }
	credential := events.StreamID{Tenant: "acme", Category: "credential", ID: "c1"}
	other := events.StreamID{Tenant: "acme", Category: "credential", ID: "AAABcID5GBc= ü"}
	flow := events.StreamID{Tenant: "acme", Category: "flow", ID: "f 1"}
	bound := events.StreamID{Tenant: "acme", Category: "flow", ID: "f2"}
	client := events.StreamID{Tenant: "acme", Category: "oauth_client", ID: "petstore"}
	policy := events.StreamID{Tenant: "acme", Category: "throttle_policy", ID: "crm"}
	billing := events.StreamID{Tenant: "acme", Category: "role", ID: "BILLING"}
	wiki := events.StreamID{Tenant: "acme", Category: "connector", ID: "wiki 1"}
	secret := events.StreamID{Tenant: "acme", Category: "connector_secret", ID: "s1"}
	steps := []events.FlowStep{{ID: "s1", Name: "Get pets", Component: "petstore", Credential: "c1"}, {ID: "s2", Component: "petstore", Credential: "no such"}}
	until := time.Date(2026, 5, 6, 7, 18, 9, 0, time.UTC)
	recs := slices.Concat(
		commits(system("tenant", "acme"), 1, one(events.TenantRegistered{Name: "Acme"})),
		commits(system("api_key", "k1"), 2, one(events.APIKeyIssued{SHA256: strings.Repeat("ab", 32), Name: "first", Home: "acme", Tenants: []string{"acme", "other"}, Role: "ADMINISTRATOR"})),
		commits(system("component", "petstore"), 3, one(events.ComponentRegistered{Owner: "acme", Title: "Petstore", Descriptor: `{"title":"Petstore"}`}),
			one(events.ComponentUpdated{Title: "Pet store", Descriptor: `{}`, Revision: 2}), one(events.ComponentShared{})),
		commits(credential, 6, []events.Event{events.CredentialCreated{Component: "petstore", Name: "My Pets", Workspace: "w1", Keys: keys(1, unverified)}, events.CredentialVerified{Version: 1, Verification: failed}},
			one(events.CredentialRenamed{Name: "Our Pets"}), one(events.CredentialKeysReplaced{Keys: keys(2, verified)}), one(events.CredentialReverted{To: 1, Keys: keys(3, verified)}),
			one(events.SecretAbandoned{SecretID: "late"})),
		commits(other, 11, one(events.CredentialCreated{Component: "petstore", Name: "Gone soon", Keys: keys(1, unverified)}), one(events.CredentialDeleted{})),
		commits(system("component", "petstore"), 13, one(events.ComponentUnshared{}), one(events.ComponentDeleted{})),
		commits(system("api_key", "k1"), 15, one(events.APIKeyRevoked{})),
		commits(flow, 16, one(events.FlowObserved{Change: events.FlowWasStarted, Name: "Orders", Revision: 7, Active: true, Steps: steps})),
		commits(credential, 17, one(events.CredentialUsed{Flow: "f 1", Revision: 7, Named: true, Active: true, Steps: []string{"s1"}})),
		commits(client, 18, one(events.OAuthClientUsed{Flow: "f 1", Revision: 7})),
		commits(flow, 19, one(events.FlowUseRefused{Revision: 7, Step: "s2", Component: "petstore", Credential: "no such", Reason: "credential_not_found"}),
			one(events.FlowObserved{Change: events.FlowWasDeleted, Name: "Orders", Revision: 8, Steps: []events.FlowStep{}})),
		commits(credential, 21, one(events.CredentialReleased{Flow: "f 1", Revision: 8})),
		commits(client, 22, one(events.OAuthClientReleased{Flow: "f 1", Revision: 8})),
		commits(credential, 23, one(events.CredentialUsed{Flow: "f2", Steps: []string{"s1"}, Binding: "b1", Until: until})),
		commits(bound, 24, one(events.FlowBound{Binding: "b1", Name: "Invoices", Steps: steps[:1], Until: until}), one(events.FlowReleased{Binding: "b1", Reason: events.ReleasedByExpiry})),
		commits(credential, 26, one(events.CredentialReleased{Flow: "f2"})),
		commits(system("installation", "durability"), 27, one(events.DurabilityAttested{Replicas: 1, Why: "one replica"})),
		commits(system("component", "sheets"), 28, one(events.ComponentRegistered{Owner: "acme", Title: "Sheets", Descriptor: `{"title":"Sheets"}`}),
			one(events.ComponentEnvSet{Names: []string{"KEY", "SECRET"}, SecretID: "env-1"})),
		commits(events.StreamID{Tenant: "acme", Category: "oauth_client", ID: "sheets"}, 30,
			one(events.OAuthClientDefined{ID: "o1", ClientID: "client", SecretID: "secret-o1"}), one(events.OAuthClientChanged{ClientID: "client 2", SecretID: "secret-o2"}),
			one(events.OAuthClientRevealed{SecretID: "secret-o2"}), one(events.SecretAbandoned{SecretID: "late"}),
			one(events.OAuthClientMarkedUnusable{Reason: "component_deleted"}), one(events.OAuthClientDeleted{})),
		commits(credential, 36, one(events.CredentialRevealed{Version: 3})),
		commits(events.StreamID{Tenant: "acme", Category: "access", ID: "k1"}, 37,
			one(events.AccessDenied{Principal: "key:k1", Tenant: "other", Route: "credential.get", Permission: "credentials.get", Count: 12, Since: until})),
		commits(system("api_key", "k2"), 38, one(events.APIKeyIssued{
			SHA256: strings.Repeat("cd", 32), Name: "second", Home: "acme", Tenants: []string{"acme"},
			Permissions: []string{"credentials.get", "credentials.reveal"}, Addresses: []string{"192.0.2.0/24", "2001:db8::/32"}, Expires: until,
		})),
		commits(credential, 39, one(events.CredentialVPNAgentSet{VPNAgent: "v1"})),
		commits(credential, 40,
			[]events.Event{
				events.CredentialAuthorized{Grant: 1, Version: 3, Field: "oauth", By: "connect", User: "u1", Expires: until, Lifetime: 3600, Renewable: true, Scope: "read", Connection: "x1"},
				events.CredentialRefreshTokenExpirySet{Expires: until.AddDate(1, 0, 0), Lifetime: 31536000, Renewal: events.RefreshFixed},
			},
			one(events.CredentialRefreshStarted{Epoch: 1, Grant: 1, SecretID: "t1", Holder: "p1"}),
			one(events.CredentialRefreshFailed{Epoch: 1, Grant: 1, Outcome: "transient", Status: 503, RetryAt: until}),
			one(events.CredentialRefreshStarted{Epoch: 2, Grant: 1, SecretID: "t2", Holder: "p1"}),
			[]events.Event{
				events.CredentialRefreshFailed{Epoch: 2, Grant: 1, Outcome: "revoked", Status: 400, RetryAt: until},
				events.CredentialReauthorizationRequired{Grant: 1, Reason: "revoked", Says: "Connect it again.", Flows: []string{"f1"}, Total: 1},
			},
			[]events.Event{
				events.CredentialRefreshed{Epoch: 2, Grant: 1, SecretID: "t2", Expires: until.Add(time.Hour), Lifetime: 3600, Rotated: true, Scope: "read", Late: true},
				events.CredentialRecovered{Grant: 1, Status: events.Verified},
			},
			one(events.CredentialTokensRevoked{Grant: 1}),
			one(events.CredentialRevokedAtProvider{Outcome: "revoked"})),
		commits(events.StreamID{Tenant: "acme", Category: "access", ID: "k1"}, 48,
			one(events.AccessConnectAborted{Principal: "key:k1", Connection: "x2", Component: "petstore", Credential: "c1", User: "u1", Reason: "connection_denied"})),
		commits(events.StreamID{Tenant: "acme", Category: "auth_client", ID: "a1"}, 49,
			one(events.AuthClientCreated{
				Name: "Sheets", Type: "oauth2", Scope: "tenant", Components: []events.AuthClientComponent{{Component: "sheets", OAuthClient: "o2"}},
				Fields: []string{"client_id", "client_secret"}, ClientID: "client", SecretID: "secret-a1",
			}),
			one(events.AuthClientSettled{}), one(events.SecretAbandoned{SecretID: "late"}), one(events.AuthClientRevealed{SecretID: "secret-a1"}),
			one(events.AuthClientChanged{Name: "Sheets 2", Components: []events.AuthClientComponent{}, Fields: []string{"client_id"}, ClientID: "client 2", SecretID: "secret-a2"}),
			one(events.AuthClientDeleted{})),
		commits(events.StreamID{Tenant: "acme", Category: "command", ID: "d1"}, 55, one(events.CommandStarted{Route: "credential.refresh"}), one(events.CommandCompleted{Route: "credential.refresh", ID: "c1"})),
		commits(secret, 57, one(events.ConnectorSecretCreated{Version: 1, SecretID: "secret-s1"}), one(events.ConnectorSecretUsed{Connector: "wiki 1", Use: "u1"})),
		commits(wiki, 59, []events.Event{
			events.ConnectorCreated{Connector: events.ConnectorSettings{Name: "Wiki", IndexName: "search-wiki"}},
			events.ConnectorAPIKeySet{APIKeyID: "k", SecretID: "s1", Use: "u1"},
		}, one(events.ConnectorChanged{Connector: events.ConnectorSettings{Name: "Wiki 2", Description: "of all", IndexName: "search-wiki", ServiceType: "confluence", Language: "en", Native: true}}),
			one(events.ConnectorUseAbandoned{Use: "u0"})),
		commits(secret, 62, one(events.ConnectorSecretReplaced{Version: 2, SecretID: "secret-s2"}), one(events.ConnectorSecretReverted{To: 1, Version: 3, SecretID: "secret-s1"}),
			one(events.ConnectorSecretRevealed{Version: 3}), one(events.SecretAbandoned{SecretID: "late"})),
		commits(wiki, 66, one(events.ConnectorDeleted{})),
		commits(secret, 67, one(events.ConnectorSecretReleased{Connector: "wiki 1", Use: "u1"}), one(events.ConnectorSecretDeleted{})),
		commits(policy, 69, one(events.ThrottlePolicyDefined{Policy: events.ThrottleSettings{Description: "CRM", Tokens: 100, Per: events.PerMinute}}),
			one(events.ThrottlePolicyUsed{Credential: "c1", Use: "u1"})),
		commits(credential, 71, one(events.CredentialThrottlePolicyAssigned{Policy: "crm", Use: "u1"}), one(events.CredentialThrottlePolicyUseAbandoned{Use: "u0"})),
		commits(policy, 73, one(events.ThrottlePolicyChanged{Policy: events.ThrottleSettings{Tokens: 5, Per: events.PerSecond}})),
		commits(credential, 74, one(events.CredentialThrottlePolicyAssigned{})),
		commits(policy, 75, one(events.ThrottlePolicyReleased{Use: "u1"}), one(events.ThrottlePolicyDeleted{})),
		commits(events.StreamID{Tenant: "acme", Category: "credential", ID: "never"}, 77, one(events.CredentialThrottlePolicyUseAbandoned{Use: "u1"})),
		commits(events.StreamID{Tenant: "acme", Category: "credential", ID: "AAABcID5GBc="}, 78, []events.Event{
			events.CredentialCreated{Name: "Files", Keys: keys(1, unverified)},
			events.CredentialTyped{Version: 1, Type: "file system", Shape: `{"user":{"name":0}}`, Rules: `{"hosts":["api.example.org"]}`},
			events.CredentialDescriptionSet{Description: "Sales HD1"},
		}),
		commits(system("tenant", "acme"), 79, one(events.TenantKeyRotationStarted{Rotation: 1}), one(events.TenantKeyRotationCompleted{Key: "0a1b2c3d"}),
			one(events.TenantKeyRotationStarted{Rotation: 2}), one(events.TenantKeysRewrapped{})),
		commits(billing, 83, one(events.RoleDefined{Title: "Billing", Permissions: []string{"credentials.get", "flows.get"}}),
			one(events.RoleChanged{Title: "The billing team", Permissions: []string{"flows.get"}}), one(events.RoleGranted{}), one(events.RoleDeleted{}),
			one(events.RoleDefined{Permissions: []string{"flows.get"}})),
		commits(system("api_key", "k3"), 88, one(events.APIKeyIssued{
			SHA256: strings.Repeat("ef", 32), Home: "acme", Tenants: []string{"acme"}, Role: "acme/BILLING", Permissions: []string{"flows.get"}, Expires: until,
		})),
		commits(events.StreamID{Tenant: "acme", Category: "webhook", ID: "on-call"}, 89,
			one(events.WebhookDefined{Webhook: events.WebhookSettings{URL: "https://a.example.org", Mode: events.Structured}, SecretID: "s1"}),
			one(events.WebhookRotated{SecretID: "s2", PreviousUntil: time.Date(2031, 1, 2, 0, 0, 0, 0, time.UTC)}),
			one(events.WebhookDisabled{Reason: "gone"}),
			[]events.Event{
				events.WebhookChanged{Webhook: events.WebhookSettings{URL: "https://b.example.org", Description: "On call", Types: []string{"credential.*", "flow.bound"}, Component: "petstore", Mode: events.Binary}},
				events.WebhookRotationEnded{},
				events.WebhookEnabled{},
			},
			one(events.WebhookDeleted{})),
		commits(system("api_key", "k3"), 94, one(events.APIKeyExpiring{Expires: until, Days: 7})),
		commits(events.StreamID{Tenant: "acme", Category: "credential", ID: "AAABcID5GBc="}, 95, []events.Event{
			events.CredentialKeysReplaced{Keys: keys(2, unverified)}, events.CredentialExpirySet{Version: 2, Expires: until}, events.CredentialHostKeySet{Version: 2, HostKey: "ssh-ed25519 SHA256:x"},
		}, one(events.CredentialExpiring{Version: 2, What: "keys", Expires: until, Days: 30, Flows: []string{"f1"}, Total: 1})),
		commits(events.StreamID{Tenant: "acme", Category: "oauth_client", ID: "sheets"}, 97, []events.Event{
			events.OAuthClientDefined{ID: "o2", ClientID: "client", SecretID: "secret-o3"}, events.OAuthClientExpirySet{Expires: until},
		}, one(events.OAuthClientExpiring{ID: "o2", Expires: until, Days: 1})),
		commits(system("tenant", "old"), 99, one(events.TenantRegistered{Name: "Old"}), one(events.TenantErasureStarted{}), one(events.TenantErased{})),
	)
	for i := range recs {
		recs[i].Meta.Tenant = "acme"
	}
	return recs
}

func TestEveryStoredFactIsInTheHistory(t *testing.T) {
	seen := map[reflect.Type]bool{}
	for _, r := range everything() {
		seen[reflect.TypeOf(r.Event)] = true
	}
	for _, typ := range events.All().Types() {
		if !seen[typ.GoType()] {
			t.Errorf("everything() lacks %s: add it, with what the views and the feed make of it", typ.Name)
		}
	}
}

func TestReads(t *testing.T) {
	recs := everything()
	at := func(seq int) time.Time {
		return recs[slices.IndexFunc(recs, func(r events.Record) bool { return r.Seq == uint64(seq) })].Meta.Time
	}
	v := open(t, filepath.Join(t.TempDir(), "views.db"))
	ctx := t.Context()
	upTo := func(seq uint64) {
		t.Helper()
		n := slices.IndexFunc(recs, func(r events.Record) bool { return r.Seq > seq })
		if n < 0 {
			n = len(recs)
		}
		if err := v.Apply(ctx, recs[:n]); err != nil { // what is applied already is passed over
			t.Fatal(err)
		}
		if v.Position() != seq {
			t.Fatalf("position %d, want %d", v.Position(), seq)
		}
	}
	same := func(what string, got, want any) {
		t.Helper()
		if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	upTo(6)
	c, _, err := v.Credential(ctx, "acme", "c1")
	same("a new credential", c, projections.Credential{
		ID: "c1", Tenant: "acme", Component: "petstore", Name: "My Pets", Workspace: "w1", Status: events.Failed, Version: 1, Fields: []string{"apiKey"}, Revision: 3,
		Hosts: []string{"*.example.com"}, SecretID: "secret-1", Verification: failed, VerifiedAt: at(6), CreatedAt: at(6), UpdatedAt: at(6), CreatedSeq: 6, Seq: 6,
		CreatedBy: events.Actor{Kind: "key", ID: "k1"},
	})
	same("no error", err, nil)
	upTo(11)
	c, _, _ = v.Credential(ctx, "acme", "c1")
	same("a credential with a past", c, projections.Credential{
		ID: "c1", Tenant: "acme", Component: "petstore", Name: "Our Pets", Workspace: "w1", Status: events.Verified, Version: 3, Fields: []string{"apiKey"}, Revision: 3,
		Hosts: []string{"*.example.com"}, SecretID: "secret-3", Verification: verified, VerifiedAt: at(9), CreatedAt: at(6), UpdatedAt: at(9), CreatedSeq: 6, Seq: 10,
		CreatedBy: events.Actor{Kind: "key", ID: "k1"},
	})
	counts, _ := v.CredentialCounts(ctx, "acme", projections.CredentialFilter{})
	same("counts", counts, []projections.Count{{Component: "petstore", Status: events.Unverified, N: 1}, {Component: "petstore", Status: events.Verified, N: 1}})
	counts, _ = v.CredentialCounts(ctx, "acme", projections.CredentialFilter{Workspace: "w1"})
	same("counts of a workspace", counts, []projections.Count{{Component: "petstore", Status: events.Verified, N: 1}})
	counts, _ = v.CredentialCounts(ctx, "acme", projections.CredentialFilter{Status: events.Verified})
	same("counts of a status", counts, []projections.Count{{Component: "petstore", Status: events.Verified, N: 1}})
	shared, _, _ := v.Components(ctx, "other", "", 0)
	component := projections.Component{ID: "petstore", Owner: "acme", Title: "Pet store", Shared: true, Revision: 2, SHA256: "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a", CreatedAt: at(3), UpdatedAt: at(5), Seq: 5}
	same("a shared component", shared, []projections.Component{component})
	upTo(12)
	_, found, _ := v.Credential(ctx, "acme", "AAABcID5GBc= ü")
	same("a deleted credential is found", found, false)
	_, found, _ = v.Credential(ctx, "other", "c1")
	same("another tenant finds it", found, false)
	counts, _ = v.CredentialCounts(ctx, "acme", projections.CredentialFilter{})
	same("counts after a delete", counts, []projections.Count{{Component: "petstore", Status: events.Verified, N: 1}})
	upTo(13)
	shared, _, _ = v.Components(ctx, "other", "", 0)
	same("components of another tenant after unsharing", shared, []projections.Component(nil))
	owned, _, _ := v.Components(ctx, "acme", "", 0)
	component.Shared, component.UpdatedAt, component.Seq = false, at(13), 13
	same("components of the owner after unsharing", owned, []projections.Component{component})
	key, _, _ := v.APIKey(ctx, strings.Repeat("ab", 32))
	want := projections.APIKey{ID: "k1", Name: "first", Home: "acme", Tenants: []string{"acme", "other"}, Role: "ADMINISTRATOR", CreatedAt: at(2), Seq: 2}
	same("a key", key, want)
	upTo(15)
	owned, _, _ = v.Components(ctx, "acme", "", 0)
	same("components after deleting", owned, []projections.Component(nil))
	component.Deleted, component.UpdatedAt, component.Seq = true, at(14), 14
	deleted, found, _ := v.Component(ctx, "petstore")
	same("a deleted component is found", found, true)
	same("a deleted component", deleted, component)
	want.Revoked, want.Seq = true, 15
	all, _, _ := v.APIKeys(ctx, "acme", events.Scope{}, "", 0)
	same("a revoked key", all, []projections.APIKey{want})
	tenants, _ := v.Tenants(ctx)
	same("tenants", tenants, []projections.Tenant{{ID: "acme", Name: "Acme", CreatedAt: at(1), Seq: 1}})
	upTo(19)
	flow, _, _ := v.Flow(ctx, "acme", "f 1")
	same("a flow", flow, projections.Flow{
		Tenant: "acme", ID: "f 1", Name: "Orders", Revision: 7, Active: true, UpdatedAt: at(19), Seq: 19,
		Steps:  []events.FlowStep{{ID: "s1", Name: "Get pets", Component: "petstore", Credential: "c1"}, {ID: "s2", Component: "petstore", Credential: "no such"}},
		Faults: []projections.FlowFault{{Step: "s2", Component: "petstore", Credential: "no such", Reason: "credential_not_found"}},
	})
	c, _, _ = v.Credential(ctx, "acme", "c1")
	same("the revision of a used credential's stream, and its last change", []any{c.Seq, c.UpdatedAt}, []any{uint64(17), at(9)})
	upTo(24)
	flow, _, _ = v.Flow(ctx, "acme", "f2")
	same("a flow that is only bound", flow, projections.Flow{
		Tenant: "acme", ID: "f2", Name: "Invoices", Binding: "b1", Until: time.Date(2026, 5, 6, 7, 18, 9, 0, time.UTC), UpdatedAt: at(24), Seq: 24,
		Steps: []events.FlowStep{{ID: "s1", Name: "Get pets", Component: "petstore", Credential: "c1"}},
	})
	upTo(38)
	second, _, _ := v.APIKey(ctx, strings.Repeat("cd", 32))
	same("a bounded key", second, projections.APIKey{
		ID: "k2", Name: "second", Home: "acme", Tenants: []string{"acme"}, Permissions: []string{"credentials.get", "credentials.reveal"},
		Addresses: []string{"192.0.2.0/24", "2001:db8::/32"}, Expires: time.Date(2026, 5, 6, 7, 18, 9, 0, time.UTC), CreatedAt: at(38), Seq: 38,
	})
	upTo(39)
	c, _, _ = v.Credential(ctx, "acme", "c1")
	same("a VPN agent, and the change", []any{c.VPNAgent, c.Seq, c.UpdatedAt}, []any{"v1", uint64(39), at(39)})
	due := func(at time.Time) bool {
		names, err := v.DueTokens(ctx, at, []string{"other"}, 10)
		if err != nil {
			t.Fatal(err)
		}
		return slices.Equal(names, []projections.CredentialName{{Tenant: "acme", ID: "c1"}})
	}
	end := time.Date(2026, 5, 6, 7, 18, 9, 0, time.UTC)
	first := projections.TokenDue("c1", end, time.Time{}, time.Hour)
	if first.Before(end.Add(-30*time.Minute)) || first.After(end.Add(-15*time.Minute)) {
		t.Errorf("tokens that end at %v are due at %v", end, first)
	}
	for _, step := range []struct {
		seq  int
		due  time.Time // zero: never
		want events.Status
	}{
		{40, first, events.Verified},
		{41, at(41).Add(45 * time.Second), events.Verified},
		{42, end, events.Verified},
		{43, at(43).Add(45 * time.Second), events.Verified},
		{44, time.Time{}, events.ReauthorizationRequired},
		{45, projections.RenewedDue("c1", end.Add(time.Hour), time.Time{}, time.Hour), events.Verified},
		{46, time.Time{}, events.Verified},
		{47, time.Time{}, events.Verified},
	} {
		upTo(uint64(step.seq))
		c, _, _ := v.Credential(ctx, "acme", "c1")
		same(fmt.Sprintf("the status at %d", step.seq), c.Status, step.want)
		held := step.seq < 46 // broken ones are held, too
		for component, holds := range map[string]bool{"": held, "petstore": held, "sheets": false} {
			ids, err := v.TokenHolders(ctx, "acme", component, "", 10)
			same(fmt.Sprintf("who holds tokens of %q at %d", component, step.seq), []any{slices.Equal(ids, []string{"c1"}), len(ids) == 0, err}, []any{holds, !holds, nil})
		}
		n, err := v.TokenHolderCount(ctx, "acme")
		same(fmt.Sprintf("how many hold tokens at %d", step.seq), []any{n == 1, err}, []any{held, nil})
		if step.due.IsZero() {
			same(fmt.Sprintf("due after %d", step.seq), due(end.Add(1000*time.Hour)), false)
			continue
		}
		same(fmt.Sprintf("due before its time at %d", step.seq), due(step.due.Add(-time.Second)), false)
		same(fmt.Sprintf("due at %d", step.seq), due(step.due.Add(time.Millisecond)), true)
	}
	upTo(60)
	settings := events.ConnectorSettings{Name: "Wiki 2", Description: "of all", IndexName: "search-wiki", ServiceType: "confluence", Language: "en", Native: true}
	connectors := func(f projections.ConnectorFilter) (list []projections.Connector) {
		f.Tenant = cmp.Or(f.Tenant, "acme")
		list, next, total, err := v.Connectors(ctx, f)
		same("the page of connectors, its end and its total", []any{next, total, err}, []any{"", len(list), nil})
		return list
	}
	wiki := projections.Connector{
		Tenant: "acme", ID: "wiki 1", Settings: settings, APIKeyID: "k", SecretID: "s1", CreatedAt: at(59), UpdatedAt: at(60), CreatedBy: "key:k1", Seq: 60,
	}
	for _, f := range []projections.ConnectorFilter{{}, {ID: "wiki 1"}, {Name: "Wiki 2"}, {IndexName: "search-wiki"}, {ServiceType: "confluence"}, {Secret: "s1"}} {
		same(fmt.Sprintf("connectors by %+v", f), connectors(f), []projections.Connector{wiki})
	}
	for _, f := range []projections.ConnectorFilter{{Tenant: "other"}, {ID: "wiki"}, {Name: "Wiki"}, {IndexName: "x"}, {ServiceType: "x"}, {Secret: "s"}, {After: "wiki 1"}} {
		if list, _, _, err := v.Connectors(ctx, projections.ConnectorFilter{Tenant: cmp.Or(f.Tenant, "acme"), ID: f.ID, Name: f.Name, IndexName: f.IndexName, ServiceType: f.ServiceType, Secret: f.Secret, After: f.After}); len(list) > 0 || err != nil {
			t.Errorf("connectors by %+v: %v %v", f, list, err)
		}
	}
	upTo(65)
	secrets, next, total, err := v.ConnectorSecrets(ctx, "acme", "", "", 0)
	same("connector secrets", []any{secrets, next, total, err}, []any{[]projections.ConnectorSecret{
		{Tenant: "acme", ID: "s1", Version: 3, First: 1, CreatedAt: at(57), UpdatedAt: at(63), CreatedBy: "key:k1", Seq: 63},
	}, "", 1, nil})
	upTo(68)
	secrets, _, total, err = v.ConnectorSecrets(ctx, "acme", "s1", "", 0)
	same("connectors and secrets that were deleted", []any{len(connectors(projections.ConnectorFilter{})), len(secrets), total, err}, []any{0, 0, 0, nil})
	limited := func(policy string) int {
		list, _, err := v.Credentials(ctx, projections.CredentialFilter{Tenant: "acme", ThrottlePolicy: policy})
		same("credentials of the policy "+policy, err, nil)
		return len(list)
	}
	upTo(72)
	c, _, _ = v.Credential(ctx, "acme", "c1")
	same("the policy of a credential, and how many have it or another", []any{c.ThrottlePolicy, c.UpdatedAt, limited("crm"), limited("other")}, []any{"crm", at(71), 1, 0})
	upTo(74)
	p, exists, err := v.ThrottlePolicy(ctx, "acme", "crm")
	crm := projections.ThrottlePolicy{
		ID: "crm", Settings: events.ThrottleSettings{Tokens: 5, Per: events.PerSecond}, CreatedAt: at(69), UpdatedAt: at(73), CreatedBy: "key:k1", Seq: 73,
	}
	same("a throttle policy", []any{p, exists, err, limited("crm")}, []any{crm, true, nil, 0})
	policies, next, total, err := v.ThrottlePolicies(ctx, "acme", "", 0)
	same("the throttle policies", []any{policies, next, total, err}, []any{[]projections.ThrottlePolicy{crm}, "", 1, nil})
	_, exists, err = v.ThrottlePolicy(ctx, "other", "crm")
	same("another tenant's policy", []any{exists, err}, []any{false, nil})
	upTo(77)
	_, exists, err = v.ThrottlePolicy(ctx, "acme", "crm")
	same("a policy that was deleted", []any{exists, err}, []any{false, nil})
	upTo(78)
	files, found, err := v.Credential(ctx, "acme", "AAABcID5GBc=")
	same("a credential of a free type", []any{files.Component, files.Type, files.Shape, files.Description, files.Version, found, err},
		[]any{"", "file system", `{"user":{"name":0}}`, "Sales HD1", 1, true, nil})
	rotating := func() []projections.Tenant { all, _ := v.RotatingTenants(ctx); return all }
	same("no key is rotated", rotating(), []projections.Tenant(nil))
	upTo(79)
	same("a key is rotated", rotating(), []projections.Tenant{{ID: "acme", Name: "Acme", CreatedAt: at(1), Seq: 79, Rotation: 1}})
	upTo(80)
	same("the key was rotated", rotating(), []projections.Tenant(nil))
	upTo(81)
	upTo(82)
	same("it is rotated again", rotating()[0].Rotation, uint64(2))
	roles := func(tenant string) []projections.Role {
		list, next, err := v.Roles(ctx, tenant, "", 0)
		same("the end of the roles", []any{next, err}, []any{"", nil})
		return list
	}
	role := projections.Role{Name: "BILLING", Title: "Billing", Permissions: []string{"credentials.get", "flows.get"}, CreatedAt: at(83), UpdatedAt: at(83), CreatedBy: "key:k1", Seq: 83}
	upTo(83)
	same("a role", []any{roles("acme"), len(roles("other"))}, []any{[]projections.Role{role}, 0})
	role.Title, role.Permissions, role.Granted, role.UpdatedAt, role.Seq = "The billing team", []string{"flows.get"}, true, at(84), 84
	upTo(85)
	same("a role that was changed and granted", roles("acme"), []projections.Role{role})
	upTo(86)
	same("a role that was deleted", len(roles("acme")), 0)
	role.Title, role.CreatedAt, role.UpdatedAt, role.Seq = "", at(87), at(87), 87
	upTo(88)
	same("a role that was defined again", roles("acme"), []projections.Role{role})
	for _, of := range []struct {
		home, role string
		at         time.Time
		want       []string
	}{
		{"acme", "acme/BILLING", at(88), []string{"k3"}},
		{"other", "acme/BILLING", at(88), nil},
		{"acme", "BILLING", at(88), nil},
		{"acme", "acme/BILLING", time.Date(2026, 5, 6, 7, 18, 9, 0, time.UTC), nil},
		{"acme", "ADMINISTRATOR", at(88), nil}, // revoked
	} {
		keys, err := v.KeysOfRole(ctx, of.home, of.role, of.at, 2)
		same(fmt.Sprintf("keys of %s, %s at %v", of.home, of.role, of.at), []any{keys, err}, []any{of.want, nil})
	}
	upTo(91)
	hook, exists, err := v.Webhook(ctx, "acme", "on-call")
	defined := projections.Webhook{
		Tenant: "acme", ID: "on-call", Settings: events.WebhookSettings{URL: "https://a.example.org", Types: []string{}, Mode: events.Structured}, Incarnation: "s1", Disabled: "gone",
		PreviousUntil: time.Date(2031, 1, 2, 0, 0, 0, 0, time.UTC), Defined: 89, CreatedAt: at(89), UpdatedAt: at(91), CreatedBy: "key:k1", Seq: 91,
	}
	same("a webhook", []any{hook, exists, err}, []any{defined, true, nil})
	_, exists, err = v.Webhook(ctx, "other", "on-call")
	same("another tenant's webhook", []any{exists, err}, []any{false, nil})
	upTo(92)
	defined.Settings = events.WebhookSettings{URL: "https://b.example.org", Description: "On call", Types: []string{"credential.*", "flow.bound"}, Component: "petstore", Mode: events.Binary}
	defined.Disabled, defined.PreviousUntil, defined.Seq, defined.UpdatedAt = "", time.Time{}, 92, at(92)
	hooks, next, total, err := v.Webhooks(ctx, "acme", "", 0)
	same("the webhooks", []any{hooks, next, total, err}, []any{[]projections.Webhook{defined}, "", 1, nil})
	hooks, err = v.AllWebhooks(ctx)
	same("the webhooks of all tenants", []any{hooks, err}, []any{[]projections.Webhook{defined}, nil})
	upTo(93)
	_, exists, err = v.Webhook(ctx, "acme", "on-call")
	same("a webhook that was deleted", []any{exists, err}, []any{false, nil})
	until := time.Date(2026, 5, 6, 7, 18, 9, 0, time.UTC)
	expiring := func(scope events.Scope, kinds ...string) (names []string) {
		page, next, err := v.Expiries(ctx, "acme", kinds, scope, until.Add(-time.Hour), until, "", 0)
		same("the end of the expiries", []any{next, err}, []any{"", nil})
		for _, x := range page {
			names = append(names, fmt.Sprint(x.Kind, " ", x.ID, " ", x.Name, " ", x.Warned, " ", x.Expires.Equal(until)))
		}
		return names
	}
	every := []string{"api_key", "credential", "oauth_client"}
	same("before a warning", expiring(events.Scope{}, every...), []string{"api_key k2 second 0 true", "api_key k3  0 true"})
	upTo(98)
	same("what expires", expiring(events.Scope{}, every...),
		[]string{"api_key k2 second 0 true", "api_key k3  7 true", "credential AAABcID5GBc= Files 30 true", "oauth_client sheets  1 true"})
	same("of one kind", expiring(events.Scope{}, "oauth_client"), []string{"oauth_client sheets  1 true"})
	same("of a scope", expiring(events.Scope{Credentials: []string{"AAABcID5GBc="}}, "credential"), []string{"credential AAABcID5GBc= Files 30 true"})
	same("of another scope", len(expiring(events.Scope{Credentials: []string{"c1"}}, "credential")), 0)
	unwarned := func(days int) (ids []string) {
		list, err := v.UnwarnedExpiries(ctx, until.Add(-time.Hour), until, days, projections.Expiry{}, 10)
		same("error", err, nil)
		for _, x := range list {
			ids = append(ids, x.ID)
		}
		return ids
	}
	same("warned of 1 day", unwarned(1), []string{"k2", "k3", "AAABcID5GBc="})
	same("warned of 7 days", unwarned(7), []string{"k2", "AAABcID5GBc="})
	same("warned of 30 days", unwarned(30), []string{"k2"})
	late, err := v.UnwarnedExpiries(ctx, until, until.Add(time.Hour), 1, projections.Expiry{}, 10)
	same("what expires later", []any{len(late), err}, []any{0, nil})
	for _, id := range []string{"f 1", "f2", "f3"} {
		_, found, err := v.Flow(ctx, "acme", id)
		same("a flow that is gone is found", []any{found, err}, []any{false, nil})
	}
	var erasures []string
	for seq := uint64(99); seq <= 101; seq++ {
		upTo(seq)
		erasing, err := v.ErasingTenants(ctx)
		same("error", err, nil)
		old, _, err := v.Tenant(ctx, "old")
		same("error", err, nil)
		erasures = append(erasures, fmt.Sprint(old.Erasure, len(erasing), v.Erasures() > 0))
	}
	same("a tenant is erased", erasures, []string{" 0 false", "erasing 1 true", "erased 0 true"})
	for _, r := range recs {
		seq, found, err := v.Command(ctx, r.Meta.Tenant, r.Meta.Actor, r.Meta.Command)
		if seq != r.Seq || !found || err != nil {
			t.Errorf("command %q answered by %d, %t, %v, want %d", r.Meta.Command, seq, found, err, r.Seq)
		}
	}
	if _, found, _ := v.Command(ctx, "acme", events.Actor{Kind: "user", ID: "k1"}, recs[0].Meta.Command); found {
		t.Error("another actor's command id is found")
	}
}

func TestComponentsPage(t *testing.T) {
	var recs []events.Record
	var want []string
	for i := range 25 {
		id, owner := fmt.Sprintf("c%02d", i), []string{"acme", "other"}[i%2]
		evs := []events.Event{events.ComponentRegistered{Owner: owner, Title: id}}
		if i%3 == 0 {
			evs = append(evs, events.ComponentShared{})
		}
		if i%7 == 0 {
			evs = append(evs, events.ComponentDeleted{})
		}
		if i%7 != 0 && (i%2 == 0 || i%3 == 0) {
			want = append(want, id)
		}
		recs = append(recs, commits(events.StreamID{Tenant: events.System, Category: "component", ID: id}, uint64(i+1), evs)...)
	}
	v := open(t, filepath.Join(t.TempDir(), "views.db"))
	if err := v.Apply(t.Context(), recs); err != nil {
		t.Fatal(err)
	}
	var got []string
	for after, pages := "", 0; pages == 0 || after != ""; pages++ {
		page, next, err := v.Components(t.Context(), "acme", after, 4)
		if err != nil || len(page) > 4 {
			t.Fatal(len(page), err)
		}
		for _, c := range page {
			got = append(got, c.ID)
		}
		after = next
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if n, err := v.ComponentCount(t.Context(), "acme"); n != len(want) || err != nil {
		t.Errorf("%d components are counted, %v; want %d", n, err, len(want))
	}
}

// A naive fold, to compare with.
type naive map[string]projections.Credential

func (n naive) apply(r events.Record) {
	id := r.Stream.Tenant + "/" + r.Stream.ID
	c, live := n[id]
	keys := func(k events.KeysVersion) {
		c.Version, c.Fields, c.Revision, c.Hosts, c.SecretID, c.Status, c.Verification = k.Version, k.Fields, k.Revision, k.Hosts, k.SecretID, k.Verification.Status, k.Verification
		c.VerifiedAt = time.Time{}
		if k.Verification.Status != events.Unverified {
			c.VerifiedAt = r.Meta.Time
		}
	}
	switch e := r.Event.(type) {
	case events.CredentialCreated:
		c = projections.Credential{ID: r.Stream.ID, Tenant: r.Stream.Tenant, Component: e.Component, Name: e.Name, Workspace: e.Workspace, CreatedAt: r.Meta.Time, CreatedSeq: r.Seq, CreatedBy: r.Meta.Actor}
		keys(e.Keys)
	case events.CredentialRenamed:
		c.Name = e.Name
	case events.CredentialKeysReplaced:
		keys(e.Keys)
	case events.CredentialReverted:
		keys(e.Keys)
	case events.CredentialVerified:
		if e.Version == c.Version {
			c.Status, c.Verification, c.VerifiedAt = e.Verification.Status, e.Verification, r.Meta.Time
		}
	case events.CredentialDeleted:
		delete(n, id)
		return
	case events.SecretAbandoned:
		if live {
			c.Seq = r.Seq
			n[id] = c
		}
		return
	}
	c.Seq, c.UpdatedAt = r.Seq, r.Meta.Time
	n[id] = c
}

func folded(s string) string {
	return strings.ReplaceAll(norm.NFC.String(strings.ToLower(norm.NFC.String(s))), "\x00", "\uFFFD")
}

// byName compares names as lists sort them.
func byName(a, b string) int {
	return cmp.Or(collate.New(language.Und, collate.IgnoreCase).CompareString(folded(a), folded(b)), cmp.Compare(folded(a), folded(b)))
}

func (n naive) list(f projections.CredentialFilter) (all []projections.Credential) {
	for _, c := range n {
		if c.Tenant == f.Tenant && (f.Component == "" || f.Component == c.Component) &&
			(f.Workspace == "" || f.Workspace == c.Workspace) && (f.Status == "" || f.Status == c.Status) &&
			strings.Contains(folded(c.Name), folded(f.NameContains)) {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b projections.Credential) int {
		order := cmp.Compare(a.CreatedSeq, b.CreatedSeq)
		if f.Turn {
			order = -order
		}
		if f.Sort == "name" {
			order = cmp.Or(byName(a.Name, b.Name), order)
		}
		if f.Desc {
			order = -order
		}
		return order
	})
	return all
}

// history draws a random history of credentials that the rules allow.
func history(t *rapid.T) []events.Record {
	var recs []events.Record
	versions := map[events.StreamID]int{}
	var live, gone []events.StreamID
	verification := rapid.SampledFrom([]events.Verification{verified, failed, unverified})
	name := rapid.OneOf(rapid.SampledFrom([]string{"Orders", "orders", "ORDERS eu", "Billing", "", "äÖü", "a\u0308öü", "Äh", "z", "%_\"'", "a b", "abc", "ABCD", "\x00x", "日本語テスト", "K\u212A"}), rapid.StringMatching(`[a-cA-C "%]{0,6}`))
	n := rapid.IntRange(1, 40).Draw(t, "commits")
	for i := range n {
		seq := uint64(i*3 + 2) // sequences have gaps
		var stream events.StreamID
		var evs []events.Event
		if len(live) == 0 || rapid.IntRange(0, 2).Draw(t, "kind") == 0 {
			stream = events.StreamID{Tenant: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "tenant"), Category: "credential", ID: fmt.Sprintf("id-%d=", i)}
			if rapid.IntRange(0, 9).Draw(t, "abandoned first") == 0 {
				recs = append(recs, commits(stream, seq-1, []events.Event{events.SecretAbandoned{SecretID: "s"}})...)
			}
			versions[stream] = 1
			live = append(live, stream)
			evs = append(evs, events.CredentialCreated{
				Component: rapid.SampledFrom([]string{"x", "y"}).Draw(t, "component"), Workspace: rapid.SampledFrom([]string{"", "w1", "w2"}).Draw(t, "workspace"),
				Name: name.Draw(t, "name"), Keys: keys(1, verification.Draw(t, "verification")),
			})
		} else {
			k := rapid.IntRange(0, len(live)-1).Draw(t, "which")
			stream = live[k]
			for range rapid.IntRange(1, 2).Draw(t, "events") {
				switch rapid.IntRange(0, 5).Draw(t, "what") {
				case 0, 1:
					evs = append(evs, events.CredentialRenamed{Name: name.Draw(t, "name")})
				case 2:
					versions[stream]++
					evs = append(evs, events.CredentialKeysReplaced{Keys: keys(versions[stream], verification.Draw(t, "verification"))})
				case 3:
					versions[stream]++
					evs = append(evs, events.CredentialReverted{To: 1, Keys: keys(versions[stream], verified)})
				case 4:
					evs = append(evs, events.CredentialVerified{Version: max(1, versions[stream]-rapid.IntRange(0, 1).Draw(t, "old")), Verification: rapid.SampledFrom([]events.Verification{verified, failed}).Draw(t, "outcome")})
				case 5:
					evs = append(evs, events.SecretAbandoned{SecretID: "s"})
				}
			}
			if rapid.IntRange(0, 5).Draw(t, "delete") == 0 {
				evs = append(evs, events.CredentialDeleted{})
				live, gone = slices.Delete(live, k, k+1), append(gone, stream)
			}
		}
		recs = append(recs, commits(stream, seq, evs)...)
	}
	if len(gone) > 0 { // a collector comes late
		recs = append(recs, commits(gone[0], uint64(n*3+2), []events.Event{events.SecretAbandoned{SecretID: "s"}})...)
	}
	for i := range recs {
		recs[i].Meta.Command = fmt.Sprintf("cmd-%d", recs[i].Seq/6) // some twice
	}
	return recs
}

func dump(t interface {
	Fatal(args ...any)
	Helper()
}, v *projections.Views,
) string {
	t.Helper()
	var b bytes.Buffer
	if err := v.Dump(context.Background(), &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// The views that followed a history in any batches equal a rebuild and a naive
// fold, through every filter, sort and page size, with the ways of searching
// that large tables take too.
func TestViewsEqualAFoldOfTheLog(t *testing.T) {
	dir := t.TempDir()
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		recs := history(t)
		v, err := projections.OpenViews(filepath.Join(dir, fmt.Sprint(runs)), projections.ViewsOptions{Readers: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		want := naive{}
		for rest := recs; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "batch")
			for !rest[n-1].Last() {
				n++
			}
			if err := v.Apply(t.Context(), rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		for _, r := range recs {
			want.apply(r)
			if r.Last() {
				first := slices.IndexFunc(recs, func(o events.Record) bool {
					return o.Meta.Command == r.Meta.Command && o.Meta.Tenant == r.Meta.Tenant
				})
				if seq, found, err := v.Command(t.Context(), r.Meta.Tenant, r.Meta.Actor, r.Meta.Command); seq != recs[first].Seq || !found || err != nil {
					t.Fatalf("command %s: %d %t %v, want %d", r.Meta.Command, seq, found, err, recs[first].Seq)
				}
			}
		}
		for _, c := range want {
			got, found, err := v.Credential(t.Context(), c.Tenant, c.ID)
			if diff := gocmp.Diff(c, got, cmpopts.EquateEmpty()); diff != "" || !found || err != nil {
				t.Fatal(found, err, diff)
			}
		}
		v.SetBounds(rapid.SampledFrom([]int{1, 3, 1000}).Draw(t, "walk"), rapid.SampledFrom([]int{0, 2, 1000}).Draw(t, "candidates"))
		term := rapid.OneOf(rapid.SampledFrom([]string{"", "order", "RDE", "s", "bc", "abc", "öÜ", "%", "\"", "本語テ", "kk", "\x00"}), rapid.StringMatching(`[a-c "]{1,4}`)).Draw(t, "term")
		for range 6 {
			f := projections.CredentialFilter{
				Tenant: "a", Component: rapid.SampledFrom([]string{"", "x"}).Draw(t, "component"), Workspace: rapid.SampledFrom([]string{"", "w1"}).Draw(t, "of workspace"), Status: rapid.SampledFrom([]events.Status{"", "", events.Verified, events.Failed}).Draw(t, "status"),
				NameContains: term, Sort: rapid.SampledFrom([]string{"name", "created"}).Draw(t, "sort"), Desc: rapid.Bool().Draw(t, "desc"), Limit: rapid.IntRange(1, 9).Draw(t, "limit"),
			}
			f.Turn = f.Sort == "name" && term == "" && rapid.Bool().Draw(t, "turn")
			var got []projections.Credential
			for pages := 0; pages == 0 || f.After != ""; pages++ {
				page, next, err := v.Credentials(t.Context(), f)
				if err != nil || len(page) > f.Limit || pages > len(recs)+1 {
					t.Fatalf("page %d of %d: %v", pages, len(page), err)
				}
				got, f.After = append(got, page...), next
			}
			wanted := want.list(f)
			if diff := gocmp.Diff(wanted, got, cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("%+v: %s", f, diff)
			}
			if term != "" {
				continue
			}
			counts, err := v.CredentialCounts(t.Context(), "a", f)
			n := 0
			for _, c := range counts {
				n += c.N
			}
			if n != len(wanted) || err != nil {
				t.Fatalf("%+v: counts %v, %v, want %d in all", f, counts, err, len(wanted))
			}
		}
		before := dump(t, v)
		if err := v.Rebuild(t.Context(), newJournal(recs...), nil); err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(before, dump(t, v)); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestListsNeverScan(t *testing.T) {
	v := open(t, filepath.Join(t.TempDir(), "views.db"))
	plans, err := v.OtherPlans()
	if err != nil {
		t.Fatal(err)
	}
	for _, component := range []string{"", "x"} {
		for _, status := range []events.Status{"", events.Verified} {
			for _, sort := range []string{"name", "created"} {
				for _, desc := range []bool{false, true} {
					for _, term := range []string{"", "ab", "abc"} {
						for _, by := range [][2]string{{"", ""}, {"w", ""}, {"", "p"}, {"w", "p"}} {
							workspace, policy := by[0], by[1]
							more, err := v.Plans(projections.CredentialFilter{
								Tenant: "a", Component: component, Workspace: workspace, ThrottlePolicy: policy, Status: status, Sort: sort, Desc: desc, NameContains: term,
							})
							if err != nil {
								t.Fatal(err)
							}
							plans = append(plans, more...)
							if sort == "name" && term == "" {
								more, err = v.Plans(projections.CredentialFilter{
									Tenant: "a", Component: component, Workspace: workspace, ThrottlePolicy: policy, Status: status, Desc: desc, Turn: true,
								})
								if err != nil {
									t.Fatal(err)
								}
								plans = append(plans, more...)
							}
						}
					}
				}
			}
		}
	}
	for _, p := range slices.Compact(slices.Sorted(slices.Values(plans))) {
		t.Log(p)
		switch {
		case strings.HasPrefix(p, "SCAN names VIRTUAL TABLE INDEX 0:M"), strings.HasPrefix(p, "SCAN (subquery"): // a search by trigram, and its bounded result
		case strings.Contains(p, "SCAN"), strings.Contains(p, "TEMP B-TREE"), strings.HasPrefix(p, "SEARCH uses") && strings.HasSuffix(p, "(tenant=?)"):
			t.Error("a query scans or sorts:", p)
		}
	}
}

func TestCursorsAreBound(t *testing.T) {
	v := open(t, filepath.Join(t.TempDir(), "views.db"))
	recs := created(200)
	for i := range recs {
		e := recs[i].Event.(events.CredentialCreated) //nolint:forcetypeassert // created makes no other
		e.Component = "component-1"
		recs[i].Event = e
	}
	if err := v.Apply(t.Context(), recs); err != nil {
		t.Fatal(err)
	}
	f := projections.CredentialFilter{Tenant: "tenant-01", Component: "component-1", Status: events.Verified, Limit: 1}
	_, cursor, err := v.Credentials(t.Context(), f)
	if err != nil || cursor == "" {
		t.Fatal(cursor, err)
	}
	other := func(change func(*projections.CredentialFilter)) projections.CredentialFilter {
		g := f
		g.After = cursor
		change(&g)
		return g
	}
	for name, c := range map[string]struct {
		f    projections.CredentialFilter
		want error
	}{
		"own":              {other(func(*projections.CredentialFilter) {}), nil},
		"another size":     {other(func(g *projections.CredentialFilter) { g.Limit = 7 }), nil},
		"default sort":     {other(func(g *projections.CredentialFilter) { g.Sort = "name" }), nil},
		"another tenant":   {other(func(g *projections.CredentialFilter) { g.Tenant = "tenant-02" }), projections.ErrCursorInvalid},
		"no component":     {other(func(g *projections.CredentialFilter) { g.Component = "" }), projections.ErrCursorInvalid},
		"another status":   {other(func(g *projections.CredentialFilter) { g.Status = events.Failed }), projections.ErrCursorInvalid},
		"a term":           {other(func(g *projections.CredentialFilter) { g.NameContains = "a" }), projections.ErrCursorInvalid},
		"another sort":     {other(func(g *projections.CredentialFilter) { g.Sort = "created" }), projections.ErrCursorInvalid},
		"other direction":  {other(func(g *projections.CredentialFilter) { g.Desc = true }), projections.ErrCursorInvalid},
		"turned":           {other(func(g *projections.CredentialFilter) { g.Turn = true }), projections.ErrCursorInvalid},
		"turned by age":    {projections.CredentialFilter{Tenant: "tenant-01", Sort: "created", Turn: true}, projections.ErrSortInvalid},
		"a turned search":  {projections.CredentialFilter{Tenant: "tenant-01", NameContains: "a", Turn: true}, projections.ErrSortInvalid},
		"cut":              {other(func(g *projections.CredentialFilter) { g.After = cursor[:8] }), projections.ErrCursorInvalid},
		"changed":          {other(func(g *projections.CredentialFilter) { g.After = cursor[:len(cursor)-4] + "AAAA" }), projections.ErrCursorInvalid},
		"nonsense":         {other(func(g *projections.CredentialFilter) { g.After = "%%%" }), projections.ErrCursorInvalid},
		"no such sort":     {projections.CredentialFilter{Tenant: "tenant-01", Sort: "id; DROP TABLE credentials"}, projections.ErrSortInvalid},
		"a sort of column": {projections.CredentialFilter{Tenant: "tenant-01", Sort: "component_name"}, projections.ErrSortInvalid},
	} {
		if _, _, err := v.Credentials(t.Context(), c.f); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestWhatIsNotFitIsDropped(t *testing.T) {
	recs := created(300)
	whole := func(*testing.T, string) {}
	edit := func(change func([]byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			t.Helper()
			b, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, change(b), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	crash := func(next func(*testing.T, string)) func(*testing.T, string) { // without the mark of a clean end
		return func(t *testing.T, path string) {
			t.Helper()
			if err := os.Remove(path + ".clean"); err != nil {
				t.Fatal(err)
			}
			next(t, path)
		}
	}
	garbage := func(at func(size int) int, n int) func(*testing.T, string) {
		return edit(func(b []byte) []byte {
			for i := range n {
				b[at(len(b))+i] ^= 0xa5
			}
			return b
		})
	}
	middle := func(size int) int { return size / 2 / 4096 * 4096 }
	options := projections.ViewsOptions{Log: "log-1", Logger: quiet()}
	for name, c := range map[string]struct {
		damage func(*testing.T, string)
		opts   projections.ViewsOptions
		kept   bool
	}{
		"untouched":                        {whole, options, true},
		"after a crash":                    {crash(whole), options, true},
		"one bit":                          {garbage(func(size int) int { return size - 100 }, 1), options, false},
		"garbage in a page":                {garbage(middle, 500), options, false},
		"garbage in a page, after a crash": {crash(garbage(middle, 500)), options, false},
		"garbage at the head":              {crash(garbage(func(int) int { return 0 }, 100)), options, false},
		"cut":                              {crash(edit(func(b []byte) []byte { return b[:len(b)/2] })), options, false},
		"empty":                            {crash(edit(func([]byte) []byte { return nil })), options, false},
		"no database":                      {crash(edit(func([]byte) []byte { return []byte("hello, world") })), options, false},
		"another version":                  {crash(edit(func(b []byte) []byte { b[63]++; return b })), options, false},
		"another log":                      {whole, projections.ViewsOptions{Log: "log-2", Logger: quiet()}, false},
		"missing":                          {func(t *testing.T, path string) { t.Helper(); _ = os.Remove(path) }, options, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a folder?", "views#%20.db")
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			v, err := projections.OpenViews(path, options)
			if err == nil {
				err = errors.Join(v.Apply(t.Context(), recs), v.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
			c.damage(t, path)
			if v, err = projections.OpenViews(path, c.opts); err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			if got, want := v.Position(), uint64(300); (got == want) != c.kept || got != 0 && !c.kept {
				t.Errorf("position %d, kept should be %t", got, c.kept)
			}
			if err := v.Apply(t.Context(), recs); err != nil { // whatever it was, it works now
				t.Error(err)
			}
			if _, found, err := v.Credential(t.Context(), recs[9].Stream.Tenant, recs[9].Stream.ID); !found || err != nil {
				t.Error(found, err)
			}
		})
	}
}

func TestDamageFoundByAQueryDropsTheFileAtTheNextStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "views.db")
	reopen := func() *projections.Views {
		v, err := projections.OpenViews(path, projections.ViewsOptions{Logger: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	v := reopen()
	if err := errors.Join(v.Apply(t.Context(), created(300)), v.Close()); err != nil {
		t.Fatal(err)
	}
	v = reopen()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, 200_000), 4096)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := v.Credentials(t.Context(), projections.CredentialFilter{Tenant: "tenant-01"}); err == nil {
		t.Error("read a list from garbage")
	}
	_ = v.Close() // as well as it can
	v = reopen()
	if v.Position() != 0 {
		t.Errorf("position %d: the damaged file is trusted", v.Position())
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
}

func TestViewsAreComparedWithTheLog(t *testing.T) {
	recs := everything()
	for name, c := range map[string]struct {
		log      *journal
		borneOut bool
	}{
		"the same log":                  {newJournal(recs...), true},
		"a longer log":                  {newJournal(append(slices.Clone(recs), commits(someTenant, 60, []events.Event{events.TenantRegistered{}})...)...), true},
		"a log cut short":               {newJournal(recs[:5]...), false},
		"an empty log":                  {newJournal(), false},
		"a log with a hole at the end":  {newJournal(append(slices.Clone(recs[:5]), commits(someTenant, 60, []events.Event{events.TenantRegistered{}})...)...), false},
		"a log with another commit now": {newJournal(renamedCommits(recs)...), false},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := projections.OpenViews(filepath.Join(t.TempDir(), "views.db"), projections.ViewsOptions{Logger: quiet()})
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			if err := v.Apply(t.Context(), recs); err != nil {
				t.Fatal(err)
			}
			if err := v.Check(c.log.commitAt); errors.Is(err, projections.ErrViewsAhead) != !c.borneOut || err != nil && c.borneOut {
				t.Error(err)
			}
			if tenants, err := v.Tenants(t.Context()); v.Position() == 0 || len(tenants) == 0 || err != nil { // they are the proof
				t.Errorf("position %d with %d tenants, %v", v.Position(), len(tenants), err)
			}
		})
	}
}

func renamedCommits(recs []events.Record) []events.Record {
	recs = slices.Clone(recs)
	for i := range recs {
		recs[i].Meta.Commit += "-other"
	}
	return recs
}

// A rebuild on a live service: readers and the projector go on, nothing is lost.
func TestRebuildWhileInUse(t *testing.T) {
	recs := created(1200)
	log := newJournal(recs[:600]...)
	v := open(t, filepath.Join(t.TempDir(), "views.db"))
	p := projections.NewProjector(log, v, quiet())
	run(t, p)
	if err := p.Wait(t.Context(), 600); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var users sync.WaitGroup
	users.Go(func() { // a writer
		for i := 600; i < len(recs); i += 50 {
			log.write(recs[i : i+50]...)
		}
	})
	for k := range 2 { // readers
		users.Go(func() {
			for i := k; ; i = (i + 7) % 600 {
				select {
				case <-stop:
					return
				default:
				}
				r := recs[i]
				if _, found, err := v.Credential(t.Context(), r.Stream.Tenant, r.Stream.ID); !found || err != nil {
					t.Errorf("reading what has long been there: %t, %v", found, err)
					return
				}
			}
		})
	}
	var last uint64
	for range 2 {
		err := v.Rebuild(t.Context(), log, func(done, end uint64) {
			if done > end {
				t.Errorf("progress %d of %d", done, end)
			}
			last = done
		})
		if err != nil {
			t.Fatal(err)
		}
		if last < 600 || v.Position() < 600 {
			t.Errorf("progress ended at %d, position %d", last, v.Position())
		}
	}
	if err := p.Wait(t.Context(), 1200); err != nil {
		t.Fatal(err)
	}
	close(stop)
	users.Wait()
	fresh := open(t, filepath.Join(t.TempDir(), "fresh.db"))
	if err := fresh.Apply(t.Context(), recs); err != nil {
		t.Fatal(err)
	}
	if dump(t, fresh) != dump(t, v) {
		t.Error("the rebuilt views differ from fresh ones")
	}
}

func TestARebuildThatFailsChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "views.db")
	v := open(t, path)
	if err := v.Apply(t.Context(), everything()); err != nil {
		t.Fatal(err)
	}
	before := dump(t, v)
	broken := &journal{recs: everything()[:9], grown: make(chan struct{}), fail: errors.New("broken")}
	broken.recs = append(broken.recs, commits(someTenant, 99, []events.Event{struct{}{}})...)
	if err := v.Rebuild(t.Context(), broken, nil); err == nil {
		t.Error("rebuilt from a log that cannot be applied")
	}
	if diff := gocmp.Diff(before, dump(t, v)); diff != "" {
		t.Error(diff)
	}
	if left, _ := filepath.Glob(path + ".new*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestClosedViews(t *testing.T) {
	v, err := projections.OpenViews(filepath.Join(t.TempDir(), "views.db"), projections.ViewsOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(v.Close(), v.Close()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := v.Tenant(t.Context(), "x"); !errors.Is(err, projections.ErrViewsClosed) {
		t.Errorf("reading: %v", err)
	}
	if err := v.Apply(t.Context(), everything()); !errors.Is(err, projections.ErrViewsClosed) {
		t.Errorf("writing: %v", err)
	}
	if err := v.Rebuild(t.Context(), newJournal(everything()...), nil); !errors.Is(err, projections.ErrViewsClosed) {
		t.Errorf("rebuilding: %v", err)
	}
}

func TestABatchHoldsWholeCommits(t *testing.T) {
	recs := everything()
	at := slices.IndexFunc(recs, func(r events.Record) bool { return r.Of > 1 })
	for name, batch := range map[string][]events.Record{
		"a commit cut off":     recs[:at+1],
		"a commit begun late":  recs[at+1:],
		"commits out of order": {recs[1], recs[0]},
		"a record twice":       {recs[0], recs[0]},
	} {
		v := open(t, filepath.Join(t.TempDir(), "views.db"))
		if err := v.Apply(t.Context(), batch); err == nil || v.Position() != 0 {
			t.Errorf("%s: %v, position %d", name, err, v.Position())
		}
	}
}

func TestNoSecretIDOutsideItsColumn(t *testing.T) {
	// The views keep the id of a secret for the service, never the MAC or a
	// descriptor; a key is known by its hash alone.
	v := open(t, filepath.Join(t.TempDir(), "views.db"))
	if err := v.Apply(t.Context(), everything()); err != nil {
		t.Fatal(err)
	}
	text := dump(t, v)
	for _, word := range []string{`"mac"`, "title\\\":", hex.EncodeToString([]byte("mac"))} {
		if strings.Contains(text, word) {
			t.Errorf("the views hold %q", word)
		}
	}
}
