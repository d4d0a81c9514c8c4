package events_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/events"
)

// The files below testdata show what is stored. They are written once, when
// they are absent and -update is given, and never changed: a test that fails
// here asks for a new version of the event with an upcaster, not for another file.

var update = flag.Bool("update", false, "write the golden files that are missing; existing ones are for ever")

var endpoints = events.OAuthEndpoints{
	AuthURI: "https://idp.example.org/auth", TokenURI: "https://idp.example.org/token", RefreshURI: "https://idp.example.org/refresh",
	RevocationURI: "https://idp.example.org/revoke", Scopes: "read write", Lifetime: 600,
}

var meta = events.Meta{
	Commit:      "01a20150-1fcd-723e-aa39-4986ddd34403",
	Tenant:      "acme",
	Actor:       events.Actor{Kind: "key", ID: "01a20150-0000-7000-8000-000000000001"},
	Command:     "import/7",
	Request:     "c2f5d1",
	Causation:   "01a20150-0000-7000-8000-000000000002-0",
	Correlation: "01a20150-0000-7000-8000-000000000003",
	Time:        time.Date(2030, 1, 2, 3, 4, 5, 123_456_000, time.UTC),
	Via:         "http",
}

var keys = events.KeysVersion{
	Version:  2,
	SecretID: "01a20150-0000-7000-8000-000000000004",
	Fields:   []string{"apiKey", "company_domain"},
	Revision: 3,
	Hosts:    []string{"petstore.example.org", "{{company_domain}}.example.org"},
	HostMAC:  "0a1b2c",
	Verification: events.Verification{
		Status: events.Verified, Probe: "http", Outcome: "2xx", LatencyMS: 123,
	},
}

var webhook = events.WebhookSettings{
	URL: "https://hooks.example.org/credstream", Description: "to the on-call team", Types: []string{"credential.*", "flow.bound"}, Component: "petstore", Mode: events.Structured,
}

var settings = events.ConnectorSettings{
	Name: "Wiki ☂", Description: "The wiki & its files", IndexName: "search-wiki", ServiceType: "confluence", Language: "en", Native: true,
}

// samples has one of each fact, no field empty.
var samples = []events.Event{
	events.TenantRegistered{Name: "Acme & Söhne <GmbH>"},
	events.TenantKeysRewrapped{},
	events.TenantErasureStarted{},
	events.TenantErased{},
	events.TenantKeyRotationStarted{Rotation: 3},
	events.TenantKeyRotationCompleted{Key: "0a1b2c3d"},
	events.APIKeyIssued{SHA256: "ab12", Name: "ci", Home: "acme", Tenants: []string{"acme", "*"}, Role: "ADMINISTRATOR", Permissions: []string{"credentials.reveal"}, Addresses: []string{"192.0.2.0/24", "2001:db8::/32"}, Expires: meta.Time, Scope: events.Scope{Components: []string{"petstore"}, Workspaces: []string{"w1"}, Credentials: []string{"AAABcID5GBc="}}, Certificate: "dns:engine.example.org"},
	events.APIKeyRevoked{},
	events.APIKeyExpiring{Name: "ci", Expires: meta.Time, Days: 7},
	events.RoleDefined{Title: "Billing ☂", Permissions: []string{"credentials.get", "flows.get"}},
	events.RoleChanged{Title: "Billing", Permissions: []string{"credentials.get"}},
	events.RoleGranted{},
	events.RoleDeleted{},
	events.AccessDenied{Principal: "key:01a20150-0000-7000-8000-000000000001", Tenant: "other", Route: "credential.get", Permission: "credentials.get", Count: 12, Since: meta.Time},
	events.AccessConnectAborted{
		Principal: "key:01a20150-0000-7000-8000-000000000001", Connection: "01a20150-0000-7000-8000-000000000007", Component: "petstore",
		Credential: "AAABcID5GBc=", User: "u1", Reason: "connection_other_browser",
	},
	events.ComponentRegistered{Owner: "acme", Title: "Petstore", Descriptor: "{\n \"title\": \"Petstore\"\n}"},
	events.ComponentUpdated{Title: "Petstore 2", Descriptor: "{}", Revision: 2},
	events.ComponentShared{},
	events.ComponentUnshared{},
	events.ComponentEnvSet{Names: []string{"PIZZAVAN_KEY", "PIZZAVAN_SECRET"}, SecretID: "01a20150-0000-7000-8000-000000000005"},
	events.ComponentDeleted{},
	events.CredentialRevealed{Version: 3},
	events.OAuthClientDefined{ID: "01a20150-0000-7000-8000-000000000006", ClientID: "client", SecretID: "01a20150-0000-7000-8000-000000000007", Revision: 3, Endpoints: endpoints},
	events.OAuthClientChanged{ClientID: "client 2", SecretID: "01a20150-0000-7000-8000-000000000007", Revision: 4, Endpoints: endpoints},
	events.OAuthClientMarkedUnusable{Reason: "component_deleted"},
	events.OAuthClientExpirySet{Expires: meta.Time},
	events.OAuthClientExpiring{ID: "01a20150-0000-7000-8000-000000000006", Expires: meta.Time, Days: 30, Flows: []string{"f1"}, Total: 1},
	events.OAuthClientRevealed{SecretID: "01a20150-0000-7000-8000-000000000007"},
	events.OAuthClientDeleted{},
	events.AuthClientCreated{
		Name: "Sheets ☂", Type: "oauth2", Scope: "workspace", ScopeID: "sales", Components: forComponents, Fields: []string{"client_id", "client_secret"},
		ClientID: "client", SecretID: "01a20150-0000-7000-8000-000000000007", Revisions: []int{3},
	},
	events.AuthClientChanged{
		Name: "Sheets", Components: forComponents, Fields: []string{"client_id", "client_secret"}, ClientID: "client 2", SecretID: "01a20150-0000-7000-8000-000000000007",
		Revisions: []int{4},
	},
	events.AuthClientSettled{},
	events.AuthClientRevealed{SecretID: "01a20150-0000-7000-8000-000000000007"},
	events.AuthClientDeleted{},
	events.ConnectorCreated{Connector: settings},
	events.ConnectorChanged{Connector: settings},
	events.ConnectorAPIKeySet{APIKeyID: "key 1", SecretID: "AAABcID5GBc=", Use: "01a20150-0000-7000-8000-000000000009"},
	events.ConnectorUseAbandoned{Use: "01a20150-0000-7000-8000-000000000009"},
	events.ConnectorDeleted{},
	events.ThrottlePolicyDefined{Policy: events.ThrottleSettings{Description: "as their contract says", Tokens: 100, Per: events.PerMinute}},
	events.ThrottlePolicyChanged{Policy: events.ThrottleSettings{Description: "as it is now", Tokens: 5, Per: events.PerSecond}},
	events.ThrottlePolicyUsed{Credential: "AAABcID5GBc=", Use: "01a20150-0000-7000-8000-000000000009"},
	events.ThrottlePolicyReleased{Use: "01a20150-0000-7000-8000-000000000009"},
	events.ThrottlePolicyDeleted{},
	events.WebhookDefined{Webhook: webhook, SecretID: "01a20150-0000-7000-8000-000000000007"},
	events.WebhookChanged{Webhook: webhook},
	events.WebhookRotated{SecretID: "01a20150-0000-7000-8000-000000000008", PreviousUntil: meta.Time},
	events.WebhookRotationEnded{},
	events.WebhookDisabled{Reason: "gone"},
	events.WebhookEnabled{},
	events.WebhookDeleted{},
	events.ConnectorSecretCreated{Version: 1, SecretID: "01a20150-0000-7000-8000-000000000007"},
	events.ConnectorSecretReplaced{Version: 2, SecretID: "01a20150-0000-7000-8000-000000000008"},
	events.ConnectorSecretReverted{To: 1, Version: 3, SecretID: "01a20150-0000-7000-8000-000000000007"},
	events.ConnectorSecretRevealed{Version: 3},
	events.ConnectorSecretUsed{Connector: "my connector", Use: "01a20150-0000-7000-8000-000000000009"},
	events.ConnectorSecretReleased{Connector: "my connector", Use: "01a20150-0000-7000-8000-000000000009"},
	events.ConnectorSecretDeleted{},
	events.CredentialCreated{Component: "petstore", Name: "Pets ☂", Workspace: "w1", Keys: keys},
	events.CredentialRenamed{Name: "Pets"},
	events.CredentialVPNAgentSet{VPNAgent: "5a09"},
	events.CredentialThrottlePolicyAssigned{Policy: "crm", Use: "01a20150-0000-7000-8000-000000000009"},
	events.CredentialThrottlePolicyUseAbandoned{Use: "01a20150-0000-7000-8000-000000000009"},
	events.CredentialTyped{Version: 2, Type: "file system", Shape: `{"query":{"region":0}}`, Rules: `{"hosts":["api.example.org"]}`},
	events.CredentialDescriptionSet{Description: "The pets' account ☂"},
	events.CredentialExpirySet{Version: 2, Expires: meta.Time},
	events.CredentialHostKeySet{Version: 2, HostKey: "ssh-ed25519 SHA256:uNiVztksCsDhcc0u9e8BrLsbEAuvGWkZOX2LSEVoSjE"},
	events.CredentialExpiring{Version: 2, What: "keys", Expires: meta.Time, Days: 30, Flows: []string{"f1", "f2"}, Total: 2},
	events.CredentialAuthorized{
		Grant: 2, Version: 3, Field: "oauth", By: "connect", User: "u1", Expires: meta.Time, Lifetime: 3600, Renewable: true,
		Scope: "read write", Connection: "01a20150-0000-7000-8000-000000000006", Due: meta.Time, Odd: "It is in milliseconds.",
	},
	events.CredentialRefreshStarted{Epoch: 4, Grant: 2, SecretID: "01a20150-0000-7000-8000-000000000007", Holder: "01a20150-0000-7000-8000-000000000008", Over: 3},
	events.CredentialRefreshed{
		Epoch: 4, Grant: 2, SecretID: "01a20150-0000-7000-8000-000000000007", Expires: meta.Time, Lifetime: 3600, Rotated: true, Scope: "read", Late: true,
		Due: meta.Time, Odd: "It is in milliseconds.",
	},
	events.CredentialRefreshFailed{Epoch: 4, Grant: 2, Outcome: "revoked", Status: 400, RetryAt: meta.Time, Left: 200},
	events.CredentialReauthorizationRequired{Grant: 2, Reason: "revoked", Says: "Connect it again.", Flows: []string{"f1", "f2"}, Total: 2, RetryAt: meta.Time},
	events.CredentialRecovered{Grant: 2, Status: events.Verified},
	events.CredentialTokensRevoked{Grant: 2},
	events.CredentialRevokedAtProvider{Outcome: "revoked"},
	events.CredentialRefreshTokenExpirySet{Expires: meta.Time, Lifetime: 31536000, Renewal: events.RefreshFixed},
	events.CredentialKeysReplaced{Keys: keys},
	events.CredentialReverted{To: 1, Keys: keys},
	events.CredentialVerified{Version: 2, Verification: keys.Verification},
	events.CredentialDeleted{},
	events.SecretAbandoned{SecretID: "01a20150-0000-7000-8000-000000000005"},
	events.CredentialUsed{Flow: "orders to crm", Revision: 7, Named: true, Active: true, Steps: []string{"step_1", "step_2"}, Binding: "01a20150-0000-7000-8000-000000000006", Until: meta.Time},
	events.CredentialReleased{Flow: "orders to crm", Revision: 8},
	events.FlowObserved{Change: events.FlowWasStarted, Name: "Orders & <CRM>", Revision: 7, Active: true, Steps: steps},
	events.FlowBound{Binding: "01a20150-0000-7000-8000-000000000006", Name: "Orders", Steps: steps, Until: meta.Time},
	events.FlowReleased{Binding: "01a20150-0000-7000-8000-000000000006", Reason: events.ReleasedByExpiry},
	events.FlowUseRefused{Revision: 7, Step: "step_1", Component: "petstore", Credential: "AAABcID5GBc=", Reason: "credential_not_found"},
	events.OAuthClientUsed{Flow: "orders to crm", Revision: 7},
	events.OAuthClientReleased{Flow: "orders to crm", Revision: 8},
	events.DurabilityAttested{Replicas: 3, Why: "The servers do not say whether they sync always."},
	events.CommandStarted{Route: "credential.refresh", Epoch: 3, Before: meta.Time},
	events.CommandCompleted{
		Route: "credential.revoke", Seq: 12, ID: "AAABcID5GBc=", Version: 2, Status: events.ReauthorizationRequired, Revision: 3,
		Says: "The provider did not confirm it.", Binding: "01a20150-0000-7000-8000-000000000008", Until: meta.Time, Outcome: "transient",
		Total: 7, Skipped: 1, Before: meta.Time, Next: "MTc", Expires: meta.Time,
		Refusal: events.CommandRefusal{Kind: "precondition", Code: "oauth_client_exists", Says: "The component has an OAuth client.", Pointer: "/components/0"},
	},
}

var forComponents = []events.AuthClientComponent{{Component: "sheets", OAuthClient: "01a20150-0000-7000-8000-000000000006"}}

var steps = []events.FlowStep{{ID: "step_1", Name: "Pets ☂", Component: "petstore", Credential: "AAABcID5GBc="}}

// golden returns the file's content, which is got when it has just been written.
func golden(t *testing.T, name string, got []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	want, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && got != nil && *update {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
		return got
	}
	if err != nil {
		t.Fatalf("every version ever stored has its file: %v", err)
	}
	return want
}

func TestGoldenEvents(t *testing.T) {
	reg := events.All()
	sample := map[string]events.Event{}
	for _, e := range samples {
		typ, ok := reg.TypeOf(e)
		if !ok {
			t.Fatalf("%T is not registered", e)
		}
		sample[typ.Name] = e
		if field := emptyField(reflect.ValueOf(e), typ.Name); field != "" {
			t.Errorf("the sample leaves %s empty, so its file would not show it", field)
		}
	}
	known := map[string]bool{"commit.v1.json": true}
	for _, typ := range reg.Types() {
		for v := 1; v <= typ.Version(); v++ {
			name := fmt.Sprintf("%s.v%d.json", typ.Name, v)
			t.Run(name, func(t *testing.T) {
				want, ok := sample[typ.Name]
				if !ok {
					t.Fatalf("samples lack a %s", typ.Name)
				}
				var today []byte // what is written today
				if v == typ.Version() {
					var err error
					if today, err = jsonv2.Marshal(want); err != nil {
						t.Fatal(err)
					}
				}
				stored := golden(t, name, today)
				known[name] = true
				if today != nil {
					if diff := cmp.Diff(string(stored), string(today)); diff != "" {
						t.Errorf("what is stored is for ever (-file +written today):\n%s", diff)
					}
				} else { // an older version: what it means today stands beside it
					wantName := strings.Replace(name, ".json", ".want.json", 1)
					known[wantName] = true
					want = decode(t, reg, typ.Name, typ.Version(), golden(t, wantName, nil))
				}
				if diff := cmp.Diff(want, decode(t, reg, typ.Name, v, stored)); diff != "" {
					t.Errorf("read back (-want +got):\n%s", diff)
				}
			})
		}
	}
	files, err := filepath.Glob("testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !known[filepath.Base(f)] {
			t.Errorf("%s belongs to no version of a registered event: what was stored once must be read for ever", f)
		}
	}
}

func decode(t *testing.T, reg *events.Registry, name string, version int, data []byte) events.Event {
	t.Helper()
	e, err := reg.Decode(name, version, data)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

var moment = reflect.TypeFor[time.Time]()

// emptyField is the path of a field that has its zero value, or "".
func emptyField(v reflect.Value, path string) string {
	if v.Kind() == reflect.Struct && v.Type() != moment {
		for i := range v.NumField() {
			if p := emptyField(v.Field(i), path+"."+v.Type().Field(i).Name); p != "" {
				return p
			}
		}
		return ""
	}
	if v.IsZero() {
		return path
	}
	return ""
}

// closed reports the first part of a type that would let anything into the log.
func closed(typ reflect.Type, path string) error {
	switch typ.Kind() {
	case reflect.Map, reflect.Interface, reflect.Pointer, reflect.Func, reflect.Chan:
		return fmt.Errorf("%s is a %s", path, typ.Kind())
	case reflect.Slice:
		if typ.Elem().Kind() == reflect.Uint8 {
			return fmt.Errorf("%s is bytes: no place for a secret", path)
		}
		return closed(typ.Elem(), path+"[]")
	case reflect.Struct:
		if typ == moment {
			return nil
		}
		for f := range typ.Fields() {
			name, ok := f.Tag.Lookup("json")
			if f.Type == moment {
				name = strings.TrimSuffix(name, ",omitzero") // a time that may be none
			}
			if !ok || strings.ContainsAny(name, ",-") {
				return fmt.Errorf("%s.%s has JSON tag %q: a plain name is asked for", path, f.Name, name)
			}
			if err := closed(f.Type, path+"."+f.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// Facts are closed structs: no free maps, no any.
func TestEventsAreClosed(t *testing.T) {
	for _, typ := range events.All().Types() {
		if err := closed(typ.GoType(), typ.Name); err != nil {
			t.Error(err)
		}
	}
}

func TestGoldenCommit(t *testing.T) {
	reg := events.All()
	facts := []events.Event{
		events.CredentialCreated{Component: "petstore", Name: "Pets ☂", Workspace: "w1", Keys: keys},
		events.CredentialRenamed{Name: "Pets & <Hunde>"},
		events.CredentialDeleted{},
	}
	body, err := reg.EncodeCommit(meta, facts)
	if err != nil {
		t.Fatal(err)
	}
	stored := golden(t, "commit.v1.json", body)
	if diff := cmp.Diff(string(stored), string(body)); diff != "" {
		t.Errorf("a commit's form is for ever (-file +written today):\n%s", diff)
	}
	stream := events.StreamID{Tenant: "acme", Category: "credential", ID: "AAABcID5GBc="}
	recs, err := reg.DecodeCommit(stream, 7, stored)
	if err != nil {
		t.Fatal(err)
	}
	var want []events.Record
	for i, e := range facts {
		want = append(want, events.Record{Stream: stream, Seq: 7, Index: i, Of: len(facts), Meta: meta, Event: e})
	}
	if diff := cmp.Diff(want, recs); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	if id := recs[1].ID(); id != meta.Commit+"-1" {
		t.Errorf("the second event's id is %s", id)
	}
	if recs[1].Last() || !recs[len(recs)-1].Last() {
		t.Error("Last is wrong")
	}
}

func TestEncodeCommit(t *testing.T) {
	type stranger struct{}
	reg := events.All()
	for name, c := range map[string]struct {
		evs []events.Event
		err error // nil: any
	}{
		"no events":      {nil, nil},
		"not registered": {[]events.Event{stranger{}}, nil},
		"not UTF-8":      {[]events.Event{events.CredentialRenamed{Name: "\xff"}}, nil},
		"too large":      {[]events.Event{events.CredentialRenamed{Name: strings.Repeat("x", events.MaxCommit)}}, events.ErrTooLarge},
	} {
		if _, err := reg.EncodeCommit(meta, c.evs); err == nil || c.err != nil && !errors.Is(err, c.err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	here := meta
	here.Time = meta.Time.Add(789).In(time.FixedZone("", -3600))
	a, err := reg.EncodeCommit(meta, samples)
	if err != nil {
		t.Fatal(err)
	}
	b, err := reg.EncodeCommit(here, samples)
	if err != nil {
		t.Fatal(err)
	}
	if string(a) != string(b) {
		t.Error("the same moment is written in two ways")
	}
}

func TestDecodeCommitRefuses(t *testing.T) {
	reg := events.All()
	stream := events.StreamID{Tenant: "acme", Category: "credential", ID: "a"}
	good := `{"meta":{"commit":"c","tenant":"acme","actor":{"kind":"key","id":"k"},"command":"x","causation":"","correlation":"","time":"2030-01-02T03:04:05Z","via":"cli"},` +
		`"events":[{"type":"credential.renamed","v":1,"data":{"name":"n"}}]}`
	if _, err := reg.DecodeCommit(stream, 1, []byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ old, new string }{
		"an unknown event":   {"credential.renamed", "credential.exploded"},
		"a later version":    {`"v":1`, `"v":2`},
		"version 0":          {`"v":1`, `"v":0`},
		"no version":         {`"v":1,`, ``},
		"no data":            {`,"data":{"name":"n"}`, ``},
		"a wrong type":       {`"name":"n"`, `"name":1`},
		"a name twice":       {`"name":"n"`, `"name":"n","name":"m"`},
		"not UTF-8":          {`"name":"n"`, "\"name\":\"\xff\""},
		"no events":          {`{"type":"credential.renamed","v":1,"data":{"name":"n"}}`, ``},
		"no commit id":       {`"commit":"c"`, `"commit":""`},
		"no tenant":          {`"tenant":"acme"`, `"tenant":""`},
		"another tenant":     {`"tenant":"acme"`, `"tenant":"other"`},
		"no time":            {`"2030-01-02T03:04:05Z"`, `"soon"`},
		"a second document":  {`]}`, `]}{}`},
		"half a document":    {`]}`, ``},
		"another kind of it": {`{"meta"`, `[{"meta"`},
	} {
		body := strings.Replace(good, c.old, c.new, 1)
		if body == good {
			t.Fatalf("%s changes nothing", name)
		}
		if recs, err := reg.DecodeCommit(stream, 1, []byte(body)); err == nil {
			t.Errorf("%s was read as %+v", name, recs)
		}
	}
	other := stream
	other.Tenant = events.System
	if _, err := reg.DecodeCommit(other, 1, []byte(good)); err != nil {
		t.Errorf("a tenant's commit under %s: %v", events.System, err)
	}
}

func TestUpcast(t *testing.T) {
	type renamed struct {
		Names []string `json:"names"`
	}
	rename := func(from, to string) events.Upcast {
		return func(data json.RawMessage) (json.RawMessage, error) {
			if !strings.Contains(string(data), from) {
				return nil, errors.New("not as version said")
			}
			return json.RawMessage(strings.Replace(string(data), from, to, 1)), nil
		}
	}
	reg := events.NewRegistry(events.Define[renamed]("thing.renamed", events.Internal, rename(`"nom":"a"`, `"name":"a"`), rename(`"name":"a"`, `"names":["a"]`)))
	for v, stored := range map[int]string{1: `{"nom":"a"}`, 2: `{"name":"a"}`, 3: `{"names":["a"]}`} {
		got, err := reg.Decode("thing.renamed", v, json.RawMessage(stored))
		if err != nil {
			t.Errorf("version %d: %v", v, err)
		}
		if diff := cmp.Diff(events.Event(renamed{Names: []string{"a"}}), got); diff != "" {
			t.Errorf("version %d (-want +got):\n%s", v, diff)
		}
	}
	for v, stored := range map[int]string{0: `{}`, 1: `{}`, 4: `{}`, -1: `{}`} {
		if e, err := reg.Decode("thing.renamed", v, json.RawMessage(stored)); err == nil {
			t.Errorf("version %d was read as %v", v, e)
		}
	}
	if typ, ok := reg.TypeOf(renamed{}); !ok || typ.Version() != 3 {
		t.Errorf("type %+v, %v", typ, ok)
	}
}

// One command id makes one thing for each caller and target, and another tenant's
// or another kind of caller's makes another.
func TestDeriveID(t *testing.T) {
	key, user := events.Actor{Kind: "key", ID: "42"}, events.Actor{Kind: "user", ID: "42"}
	seen := map[string]bool{}
	for _, tenant := range []string{"acme", "other"} {
		for _, actor := range []events.Actor{key, user, {Kind: "key", ID: "43"}} {
			for _, command := range []string{"1", "2"} {
				for _, what := range []string{"credential/a", "credential/b", "api_key"} {
					id := events.DeriveID(tenant, actor, command, what)
					if seen[id] || id != events.DeriveID(tenant, actor, command, what) || !events.Plain(id) {
						t.Errorf("%s %v %s %s makes %s", tenant, actor, command, what, id)
					}
					seen[id] = true
				}
			}
		}
	}
}
