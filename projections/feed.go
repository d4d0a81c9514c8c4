package projections

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/events"
)

// What the subjects of the feed and of the audit trail begin with. The feed holds
// the changes, the audit trail every public event.
const (
	FeedPrefix  = "credstream.events"
	AuditPrefix = "credstream.audit"
)

// Headers that give an event's place in the feed: the pair (log sequence, index
// within the commit) rises from message to message.
const (
	HeaderLogSeq   = "ce-logseq"
	HeaderLogIndex = "ce-logindex"
)

// Message is the public form of one event: a CloudEvent 1.0 that other programs
// rely on, for ever. It holds no secret id, no MAC, no hash of a key and no
// descriptor.
type Message struct {
	Subject      string // in the feed: "credstream.events.<tenant>.<category>.<id as token>"; "" when Audience is Audit
	AuditSubject string // in the audit trail: "credstream.audit.<tenant>.<category>.<id as token>"
	Audience     events.Audience
	ID           string    // the event's id, "<commit>-<index>"
	Type         string    // "credstream.credential.created.v1"
	Source       string    // "/credstream/<tenant>"
	EventSubject string    // "credential.<id>", the id verbatim
	Time         time.Time // when it happened, UTC; not the order
	Data         []byte    // JSON of the Public... struct of its type

	// Extension attributes; those that are "" are left out.
	Tenant        string
	Actor         string // "key:<id>", "user:<id>" or "system:<id>"
	CommandID     string
	CorrelationID string
	CausationID   string
	LogSeq        uint64
	LogIndex      int
}

// Headers are the message's attributes in CloudEvents binary mode, in a fixed
// order. Names and values follow the CloudEvents NATS protocol binding: every
// attribute, the content type too, has the prefix "ce-", and what is not a
// printable ASCII character, a space, a quote or a percent sign is
// percent-encoded. (CloudEvents SDK for Go reads the names alike but does not
// decode the percent signs, which only ids made elsewhere ever need.)
func (m Message) Headers() [][2]string {
	all := [][2]string{
		{"ce-specversion", "1.0"},
		{"ce-id", m.ID},
		{"ce-type", m.Type},
		{"ce-source", m.Source},
		{"ce-subject", m.EventSubject},
		{"ce-time", m.Time.UTC().Format(time.RFC3339Nano)},
		{"ce-datacontenttype", "application/json"},
		{"ce-tenant", m.Tenant},
		{"ce-actor", m.Actor},
		{"ce-commandid", m.CommandID},
		{"ce-correlationid", m.CorrelationID},
		{"ce-causationid", m.CausationID},
		{HeaderLogSeq, strconv.FormatUint(m.LogSeq, 10)},
		{HeaderLogIndex, strconv.Itoa(m.LogIndex)},
	}
	all = slices.DeleteFunc(all, func(h [2]string) bool { return h[1] == "" }) // an attribute has a value or is not there
	for i := range all {
		all[i][1] = percentEncode(all[i][1])
	}
	return all
}

func percentEncode(s string) string {
	plain := func(c byte) bool { return c > ' ' && c < 0x7f && c != '"' && c != '%' }
	if strings.IndexFunc(s, func(r rune) bool { return r > 0x7f || !plain(byte(r)) }) < 0 {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if plain(s[i]) {
			b.WriteByte(s[i])
		} else {
			fmt.Fprintf(&b, "%%%02X", s[i])
		}
	}
	return b.String()
}

// The data of each public event. All are closed: what is not here is not told.

// PublicKeys describes the keys that a credential has from here on.
type PublicKeys struct {
	Version  int           `json:"version"`  // 1, 2, 3, ...
	Status   events.Status `json:"status"`   // what the dry request found
	Fields   []string      `json:"fields"`   // names of the fields that have a value
	Revision int           `json:"revision"` // revision of the component's descriptor in force
	Hosts    []string      `json:"hosts"`    // where the keys may be sent: patterns
}

// PublicCredentialCreated is the data of credential.created.
type PublicCredentialCreated struct {
	ID         string `json:"id"`
	Component  string `json:"component"`
	Name       string `json:"name"`
	Workspace  string `json:"workspace"`
	PublicKeys `json:",inline"`
}

// PublicCredentialRenamed is the data of credential.renamed.
type PublicCredentialRenamed struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// PublicCredentialKeysReplaced is the data of credential.keys_replaced.
type PublicCredentialKeysReplaced struct {
	ID         string `json:"id"`
	PublicKeys `json:",inline"`
}

// PublicCredentialReverted is the data of credential.reverted.
type PublicCredentialReverted struct {
	ID         string `json:"id"`
	To         int    `json:"to"` // the earlier version whose keys are in force again, as a new version
	PublicKeys `json:",inline"`
}

// PublicCredentialVerified is the data of credential.verified.
type PublicCredentialVerified struct {
	ID        string        `json:"id"`
	Version   int           `json:"version"` // the version of the keys that was tried
	Status    events.Status `json:"status"`
	Probe     string        `json:"probe"`      // "http", "tcp" or "tls"
	Outcome   string        `json:"outcome"`    // "2xx", "4xx", "refused", "timeout", ...
	LatencyMS int64         `json:"latency_ms"` // milliseconds
}

// PublicCredentialDeleted is the data of credential.deleted.
type PublicCredentialDeleted struct {
	ID string `json:"id"`
}

// PublicCredentialUsed is the data of credential.used: how a flow stands to the
// credential from here on.
type PublicCredentialUsed struct {
	ID       string    `json:"id"`
	Flow     string    `json:"flow"`
	Revision uint64    `json:"revision"`       // of the flow; 0 when the flow engine has not told of it yet
	Named    bool      `json:"named"`          // a step of the flow names the credential
	Active   bool      `json:"active"`         // and the flow runs
	Steps    []string  `json:"steps"`          // ids of the steps
	Binding  string    `json:"binding"`        // id of a reservation, "" when none stands
	Until    time.Time `json:"until,omitzero"` // when the reservation ends by itself
}

// PublicCredentialReleased is the data of credential.released.
type PublicCredentialReleased struct {
	ID       string `json:"id"`
	Flow     string `json:"flow"`
	Revision uint64 `json:"revision"` // of the flow, 0 when only a reservation ended
}

// PublicFlowStep is one step of a flow.
type PublicFlowStep struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	Component  string `json:"component"`
	Credential string `json:"credential"` // "" for none
}

// PublicFlowObserved is the data of flow.observed: what the flow engine said.
type PublicFlowObserved struct {
	ID       string            `json:"id"`
	Change   events.FlowChange `json:"change"` // "created", "updated", "started", "stopped" or "deleted"
	Name     string            `json:"name"`
	Revision uint64            `json:"revision"`
	Active   bool              `json:"active"`
	Steps    []PublicFlowStep  `json:"steps"`
}

// PublicFlowBound is the data of flow.bound.
type PublicFlowBound struct {
	ID      string           `json:"id"`
	Binding string           `json:"binding"` // id of the reservation
	Name    string           `json:"name"`
	Steps   []PublicFlowStep `json:"steps"`
	Until   time.Time        `json:"until"` // when the reservation ends by itself
}

// PublicFlowReleased is the data of flow.released.
type PublicFlowReleased struct {
	ID      string `json:"id"`
	Binding string `json:"binding"`
	Reason  string `json:"reason"` // "released" or "expired"
}

// PublicFlowUseRefused is the data of flow.use_refused: a step cannot use what it names.
type PublicFlowUseRefused struct {
	Flow       string `json:"flow"`
	Revision   uint64 `json:"revision"` // of the flow
	Step       string `json:"step"`
	Component  string `json:"component"`
	Credential string `json:"credential"` // "" when the step names none and needs one
	Reason     string `json:"reason"`     // a code: "credential_not_found", ...
}

// PublicOAuthClientDefined is the data of oauth_client.defined.
type PublicOAuthClientDefined struct {
	ID        string `json:"id"`        // of the client
	Component string `json:"component"` //
	ClientID  string `json:"client_id"` // as the provider gave it
}

// PublicOAuthClientChanged is the data of oauth_client.changed.
type PublicOAuthClientChanged struct {
	Component string `json:"component"`
	ClientID  string `json:"client_id"`
}

// PublicOAuthClientMarkedUnusable is the data of oauth_client.marked_unusable.
type PublicOAuthClientMarkedUnusable struct {
	Component string `json:"component"`
	Reason    string `json:"reason"` // "component_deleted"
}

// PublicOAuthClientRevealed is the data of oauth_client.revealed: its secret was
// shown to the actor.
type PublicOAuthClientRevealed struct {
	Component string `json:"component"`
}

// PublicOAuthClientDeleted is the data of oauth_client.deleted.
type PublicOAuthClientDeleted struct {
	Component string `json:"component"`
}

// PublicAuthClient is an auth client as it is from here on.
type PublicAuthClient struct {
	Name       string                      `json:"name"`
	Components []PublicAuthClientComponent `json:"components"`
	ClientID   string                      `json:"client_id"` // of type oauth2: as the provider gave it
}

// PublicAuthClientComponent is a component that an auth client is for.
type PublicAuthClientComponent struct {
	Component   string `json:"component"`
	OAuthClient string `json:"oauth_client"` // id of its OAuth client that follows the auth client; "" when none does
}

// PublicAuthClientCreated is the data of auth_client.created.
type PublicAuthClientCreated struct {
	ID               string `json:"id"`
	Type             string `json:"type"`     // "oauth2", "basic", "api_key" or "noauth"
	Scope            string `json:"scope"`    // "workspace", "contract", "tenant" or "global"
	ScopeID          string `json:"scope_id"` // of the workspace or contract
	PublicAuthClient `json:",inline"`
}

// PublicAuthClientChanged is the data of auth_client.changed.
type PublicAuthClientChanged struct {
	ID               string `json:"id"`
	PublicAuthClient `json:",inline"`
}

// PublicAuthClientSettled is the data of auth_client.settled: its OAuth clients follow it.
type PublicAuthClientSettled struct {
	ID string `json:"id"`
}

// PublicAuthClientRevealed is the data of auth_client.revealed: its credentials were
// shown to the actor.
type PublicAuthClientRevealed struct {
	ID string `json:"id"`
}

// PublicAuthClientDeleted is the data of auth_client.deleted.
type PublicAuthClientDeleted struct {
	ID string `json:"id"`
}

func publicAuthClient(name string, components []events.AuthClientComponent, clientID string) PublicAuthClient {
	k := PublicAuthClient{Name: name, Components: make([]PublicAuthClientComponent, len(components)), ClientID: clientID}
	for i, c := range components {
		k.Components[i] = PublicAuthClientComponent(c)
	}
	return k
}

// PublicCredentialRevealed is the data of credential.revealed: its values were
// shown to the actor.
type PublicCredentialRevealed struct {
	ID      string `json:"id"`
	Version int    `json:"version"` // of the keys
}

// PublicCredentialVPNAgentSet is the data of credential.vpn_agent_set.
type PublicCredentialVPNAgentSet struct {
	ID       string `json:"id"`
	VPNAgent string `json:"vpn_agent"` // "" for none
}

// PublicCredentialAuthorized is the data of credential.authorized: a field of the
// newest keys holds what an authorization server granted.
type PublicCredentialAuthorized struct {
	ID         string    `json:"id"`
	Version    int       `json:"version"`    // of the keys
	Field      string    `json:"field"`      // that holds the tokens
	By         string    `json:"by"`         // "keys" given by the caller, "connect" or "client_credentials"
	User       string    `json:"user"`       // who connected: an id of the caller's, or ""
	Expires    time.Time `json:"expires"`    // of the access token
	Scope      string    `json:"scope"`      // as the provider answered, "" when it did not say
	Connection string    `json:"connection"` // id of the connect link it came by, or ""
}

// PublicCredentialRefreshed is the data of credential.refreshed: another access
// token is in force.
type PublicCredentialRefreshed struct {
	ID      string    `json:"id"`
	Expires time.Time `json:"expires"` // of the access token; year 1: it is renewed before anybody is given it
	Rotated bool      `json:"rotated"` // the provider gave another refresh token
	Scope   string    `json:"scope"`   // as the provider answered, "" when it did not say
}

// PublicCredentialRefreshFailed is the data of credential.refresh_failed.
type PublicCredentialRefreshFailed struct {
	ID      string    `json:"id"`
	Outcome string    `json:"outcome"`           // "transient", "malformed", "client_refused", "refused", "revoked", "busy" (nothing was asked) or "unknown"
	Status  int       `json:"status"`            // of the provider's HTTP answer; 0: there was none
	RetryAt time.Time `json:"retry_at,omitzero"` // no earlier attempt is made unless somebody asks for it
}

// PublicCredentialReauthorizationRequired is the data of
// credential.reauthorization_required: the tokens are of no use any more.
type PublicCredentialReauthorizationRequired struct {
	ID     string   `json:"id"`
	Reason string   `json:"reason"` // "revoked" by the provider or "revoked_here"
	Says   string   `json:"says"`   // why, in a plain sentence
	Flows  []string `json:"flows"`  // ids of flows that name the credential: the first 100
	Total  int      `json:"total"`  // how many flows name it
}

// PublicCredentialRecovered is the data of credential.recovered: the tokens work again.
type PublicCredentialRecovered struct {
	ID     string        `json:"id"`
	Status events.Status `json:"status"`
}

// PublicCredentialTokensRevoked is the data of credential.tokens_revoked: the
// tokens were given up on purpose.
type PublicCredentialTokensRevoked struct {
	ID string `json:"id"`
}

// PublicCredentialRevokedAtProvider is the data of credential.revoked_at_provider:
// what the provider answered when it was told to forget a token.
type PublicCredentialRevokedAtProvider struct {
	ID      string `json:"id"`
	Outcome string `json:"outcome"` // "revoked", or as in credential.refresh_failed
}

// PublicComponentEnvSet is the data of component.env_set.
type PublicComponentEnvSet struct {
	ID    string   `json:"id"`
	Names []string `json:"names"` // of the variables that have a value
}

// PublicOAuthClientUsed is the data of oauth_client.used: a flow includes the component.
type PublicOAuthClientUsed struct {
	ID       string `json:"id"` // of the component
	Flow     string `json:"flow"`
	Revision uint64 `json:"revision"` // of the flow
}

// PublicOAuthClientReleased is the data of oauth_client.released.
type PublicOAuthClientReleased struct {
	ID       string `json:"id"` // of the component
	Flow     string `json:"flow"`
	Revision uint64 `json:"revision"` // of the flow
}

// PublicComponentRegistered is the data of component.registered.
type PublicComponentRegistered struct {
	ID       string `json:"id"`
	Owner    string `json:"owner"`
	Title    string `json:"title"`
	Revision int    `json:"revision"` // 1
	SHA256   string `json:"sha256"`   // of the descriptor, hex
}

// PublicComponentUpdated is the data of component.updated.
type PublicComponentUpdated struct {
	ID       string `json:"id"`
	Title    string `json:"title"`
	Revision int    `json:"revision"` // 2, 3, ...
	SHA256   string `json:"sha256"`   // of the descriptor, hex
}

// PublicComponentShared is the data of component.shared.
type PublicComponentShared struct {
	ID string `json:"id"`
}

// PublicComponentUnshared is the data of component.unshared.
type PublicComponentUnshared struct {
	ID string `json:"id"`
}

// PublicComponentDeleted is the data of component.deleted.
type PublicComponentDeleted struct {
	ID string `json:"id"`
}

// PublicTenantRegistered is the data of tenant.registered.
type PublicTenantRegistered struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// PublicAPIKeyIssued is the data of api_key.issued.
type PublicAPIKeyIssued struct {
	ID      string   `json:"id"`
	Name    string   `json:"name"`
	Home    string   `json:"home"`    // tenant used where a surface names none
	Tenants []string `json:"tenants"` // tenants it may name; "*" is every tenant
	Role    string   `json:"role"`

	Permissions []string  `json:"permissions,omitzero"` // held by name, besides those of the role; absent when there are none
	Expires     time.Time `json:"expires,omitzero"`     // absent: never
}

// PublicAccessDenied is the data of access.denied.
type PublicAccessDenied struct {
	Principal  string    `json:"principal"`  // "key:<id>" or "user:<id>"
	Tenant     string    `json:"tenant"`     // the tenant it named; "" when that is no tenant's name, or when they were several
	Route      string    `json:"route"`      // the command or query
	Permission string    `json:"permission"` // that the route takes
	Count      int       `json:"count"`      // refusals that this tells of
	Since      time.Time `json:"since"`      // the first of them
}

// PublicAccessConnectAborted is the data of access.connect_aborted.
type PublicAccessConnectAborted struct {
	Principal  string `json:"principal"`  // who had started: "key:<id>" or "user:<id>"
	Connection string `json:"connection"` // id of the connect link
	Component  string `json:"component"`  //
	Credential string `json:"credential"` // that was to be connected again; "" for a new one
	User       string `json:"user"`       // for whom it was started: an id of the caller's, or ""
	Reason     string `json:"reason"`     // the code of what ended it
}

// PublicAPIKeyRevoked is the data of api_key.revoked.
type PublicAPIKeyRevoked struct {
	ID string `json:"id"`
}

// PublicType ties the type of a public event to the struct of its data.
type PublicType struct {
	Name     string          // "credstream.credential.created.v1"; "" when the fact is not public
	Stored   reflect.Type    // the fact it is made from
	Data     reflect.Type    // the struct of its data; nil when the fact is not public
	Audience events.Audience // as the fact declares it
	form     func(id string, e events.Event) any
}

// publish makes version 1 of a public type. Another version is another type,
// told beside the first for as long as somebody reads that.
func publish[E events.Event, P any](name string, form func(id string, e E) P) PublicType {
	return PublicType{
		Name: "credstream." + name + ".v1", Stored: reflect.TypeFor[E](), Data: reflect.TypeFor[P](),
		form: func(id string, e events.Event) any { return form(id, e.(E)) }, // found by this type
	}
}

// keepPrivate says of a fact that the world does not hear of it.
func keepPrivate[E events.Event]() PublicType { return PublicType{Stored: reflect.TypeFor[E]()} }

// PublicTypes lists every stored fact with its public form; the feed and the
// reference are made from it.
func PublicTypes() []PublicType {
	types := publicTypes()
	audiences := map[reflect.Type]events.Audience{}
	for _, t := range events.All().Types() {
		audiences[t.GoType()] = t.Audience
	}
	for i := range types {
		types[i].Audience = audiences[types[i].Stored]
	}
	return types
}

func publicTypes() []PublicType {
	return []PublicType{
		publish("tenant.registered", func(id string, e events.TenantRegistered) PublicTenantRegistered {
			return PublicTenantRegistered{ID: id, Name: e.Name}
		}),
		publish("api_key.issued", func(id string, e events.APIKeyIssued) PublicAPIKeyIssued {
			p := PublicAPIKeyIssued{ID: id, Name: e.Name, Home: e.Home, Tenants: e.Tenants, Role: e.Role, Expires: e.Expires}
			if len(e.Permissions) > 0 {
				p.Permissions = e.Permissions
			}
			return p
		}),
		publish("api_key.revoked", func(id string, _ events.APIKeyRevoked) PublicAPIKeyRevoked {
			return PublicAPIKeyRevoked{ID: id}
		}),
		publish("access.denied", func(_ string, e events.AccessDenied) PublicAccessDenied { return PublicAccessDenied(e) }),
		publish("access.connect_aborted", func(_ string, e events.AccessConnectAborted) PublicAccessConnectAborted {
			return PublicAccessConnectAborted(e)
		}),
		publish("component.registered", func(id string, e events.ComponentRegistered) PublicComponentRegistered {
			return PublicComponentRegistered{ID: id, Owner: e.Owner, Title: e.Title, Revision: 1, SHA256: hexSHA256(e.Descriptor)}
		}),
		publish("component.updated", func(id string, e events.ComponentUpdated) PublicComponentUpdated {
			return PublicComponentUpdated{ID: id, Title: e.Title, Revision: e.Revision, SHA256: hexSHA256(e.Descriptor)}
		}),
		publish("component.shared", func(id string, _ events.ComponentShared) PublicComponentShared {
			return PublicComponentShared{ID: id}
		}),
		publish("component.unshared", func(id string, _ events.ComponentUnshared) PublicComponentUnshared {
			return PublicComponentUnshared{ID: id}
		}),
		publish("component.deleted", func(id string, _ events.ComponentDeleted) PublicComponentDeleted {
			return PublicComponentDeleted{ID: id}
		}),
		publish("credential.created", func(id string, e events.CredentialCreated) PublicCredentialCreated {
			return PublicCredentialCreated{ID: id, Component: e.Component, Name: e.Name, Workspace: e.Workspace, PublicKeys: publicKeys(e.Keys)}
		}),
		publish("credential.renamed", func(id string, e events.CredentialRenamed) PublicCredentialRenamed {
			return PublicCredentialRenamed{ID: id, Name: e.Name}
		}),
		publish("credential.keys_replaced", func(id string, e events.CredentialKeysReplaced) PublicCredentialKeysReplaced {
			return PublicCredentialKeysReplaced{ID: id, PublicKeys: publicKeys(e.Keys)}
		}),
		publish("credential.reverted", func(id string, e events.CredentialReverted) PublicCredentialReverted {
			return PublicCredentialReverted{ID: id, To: e.To, PublicKeys: publicKeys(e.Keys)}
		}),
		publish("credential.verified", func(id string, e events.CredentialVerified) PublicCredentialVerified {
			v := e.Verification
			return PublicCredentialVerified{ID: id, Version: e.Version, Status: v.Status, Probe: v.Probe, Outcome: v.Outcome, LatencyMS: v.LatencyMS}
		}),
		publish("credential.deleted", func(id string, _ events.CredentialDeleted) PublicCredentialDeleted {
			return PublicCredentialDeleted{ID: id}
		}),
		publish("credential.used", func(id string, e events.CredentialUsed) PublicCredentialUsed {
			return PublicCredentialUsed{
				ID: id, Flow: e.Flow, Revision: e.Revision, Named: e.Named, Active: e.Active, Steps: e.Steps, Binding: e.Binding, Until: e.Until,
			}
		}),
		publish("credential.released", func(id string, e events.CredentialReleased) PublicCredentialReleased {
			return PublicCredentialReleased{ID: id, Flow: e.Flow, Revision: e.Revision}
		}),
		keepPrivate[events.SecretAbandoned](),
		publish("flow.observed", func(id string, e events.FlowObserved) PublicFlowObserved {
			return PublicFlowObserved{ID: id, Change: e.Change, Name: e.Name, Revision: e.Revision, Active: e.Active, Steps: publicSteps(e.Steps)}
		}),
		publish("flow.bound", func(id string, e events.FlowBound) PublicFlowBound {
			return PublicFlowBound{ID: id, Binding: e.Binding, Name: e.Name, Steps: publicSteps(e.Steps), Until: e.Until}
		}),
		publish("flow.released", func(id string, e events.FlowReleased) PublicFlowReleased {
			return PublicFlowReleased{ID: id, Binding: e.Binding, Reason: e.Reason}
		}),
		publish("flow.use_refused", func(id string, e events.FlowUseRefused) PublicFlowUseRefused {
			return PublicFlowUseRefused{Flow: id, Revision: e.Revision, Step: e.Step, Component: e.Component, Credential: e.Credential, Reason: e.Reason}
		}),
		publish("component.env_set", func(id string, e events.ComponentEnvSet) PublicComponentEnvSet {
			return PublicComponentEnvSet{ID: id, Names: e.Names}
		}),
		publish("credential.revealed", func(id string, e events.CredentialRevealed) PublicCredentialRevealed {
			return PublicCredentialRevealed{ID: id, Version: e.Version}
		}),
		publish("oauth_client.defined", func(id string, e events.OAuthClientDefined) PublicOAuthClientDefined {
			return PublicOAuthClientDefined{ID: e.ID, Component: id, ClientID: e.ClientID}
		}),
		publish("oauth_client.changed", func(id string, e events.OAuthClientChanged) PublicOAuthClientChanged {
			return PublicOAuthClientChanged{Component: id, ClientID: e.ClientID}
		}),
		publish("oauth_client.marked_unusable", func(id string, e events.OAuthClientMarkedUnusable) PublicOAuthClientMarkedUnusable {
			return PublicOAuthClientMarkedUnusable{Component: id, Reason: e.Reason}
		}),
		publish("oauth_client.revealed", func(id string, _ events.OAuthClientRevealed) PublicOAuthClientRevealed {
			return PublicOAuthClientRevealed{Component: id}
		}),
		publish("oauth_client.deleted", func(id string, _ events.OAuthClientDeleted) PublicOAuthClientDeleted {
			return PublicOAuthClientDeleted{Component: id}
		}),
		publish("oauth_client.used", func(id string, e events.OAuthClientUsed) PublicOAuthClientUsed {
			return PublicOAuthClientUsed{ID: id, Flow: e.Flow, Revision: e.Revision}
		}),
		publish("oauth_client.released", func(id string, e events.OAuthClientReleased) PublicOAuthClientReleased {
			return PublicOAuthClientReleased{ID: id, Flow: e.Flow, Revision: e.Revision}
		}),
		publish("auth_client.created", func(id string, e events.AuthClientCreated) PublicAuthClientCreated {
			return PublicAuthClientCreated{ID: id, Type: e.Type, Scope: e.Scope, ScopeID: e.ScopeID, PublicAuthClient: publicAuthClient(e.Name, e.Components, e.ClientID)}
		}),
		publish("auth_client.changed", func(id string, e events.AuthClientChanged) PublicAuthClientChanged {
			return PublicAuthClientChanged{ID: id, PublicAuthClient: publicAuthClient(e.Name, e.Components, e.ClientID)}
		}),
		publish("auth_client.settled", func(id string, _ events.AuthClientSettled) PublicAuthClientSettled {
			return PublicAuthClientSettled{ID: id}
		}),
		publish("auth_client.revealed", func(id string, _ events.AuthClientRevealed) PublicAuthClientRevealed {
			return PublicAuthClientRevealed{ID: id}
		}),
		publish("auth_client.deleted", func(id string, _ events.AuthClientDeleted) PublicAuthClientDeleted {
			return PublicAuthClientDeleted{ID: id}
		}),
		keepPrivate[events.DurabilityAttested](),
		keepPrivate[events.CommandCompleted](),
		publish("credential.authorized", func(id string, e events.CredentialAuthorized) PublicCredentialAuthorized {
			return PublicCredentialAuthorized{
				ID: id, Version: e.Version, Field: e.Field, By: e.By, User: e.User, Expires: e.Expires, Scope: e.Scope, Connection: e.Connection,
			}
		}),
		keepPrivate[events.CredentialRefreshStarted](),
		publish("credential.refreshed", func(id string, e events.CredentialRefreshed) PublicCredentialRefreshed {
			return PublicCredentialRefreshed{ID: id, Expires: e.Expires, Rotated: e.Rotated, Scope: e.Scope}
		}),
		publish("credential.refresh_failed", func(id string, e events.CredentialRefreshFailed) PublicCredentialRefreshFailed {
			return PublicCredentialRefreshFailed{ID: id, Outcome: e.Outcome, Status: e.Status, RetryAt: e.RetryAt}
		}),
		publish("credential.reauthorization_required", func(id string, e events.CredentialReauthorizationRequired) PublicCredentialReauthorizationRequired {
			return PublicCredentialReauthorizationRequired{ID: id, Reason: e.Reason, Says: e.Says, Flows: e.Flows, Total: e.Total}
		}),
		publish("credential.recovered", func(id string, e events.CredentialRecovered) PublicCredentialRecovered {
			return PublicCredentialRecovered{ID: id, Status: e.Status}
		}),
		publish("credential.tokens_revoked", func(id string, _ events.CredentialTokensRevoked) PublicCredentialTokensRevoked {
			return PublicCredentialTokensRevoked{ID: id}
		}),
		publish("credential.revoked_at_provider", func(id string, e events.CredentialRevokedAtProvider) PublicCredentialRevokedAtProvider {
			return PublicCredentialRevokedAtProvider{ID: id, Outcome: e.Outcome}
		}),
		publish("credential.vpn_agent_set", func(id string, e events.CredentialVPNAgentSet) PublicCredentialVPNAgentSet {
			return PublicCredentialVPNAgentSet{ID: id, VPNAgent: e.VPNAgent}
		}),
	}
}

func publicSteps(steps []events.FlowStep) []PublicFlowStep {
	public := make([]PublicFlowStep, len(steps))
	for i, s := range steps {
		public[i] = PublicFlowStep(s)
	}
	return public
}

func publicKeys(k events.KeysVersion) PublicKeys {
	return PublicKeys{Version: k.Version, Status: k.Verification.Status, Fields: k.Fields, Revision: k.Revision, Hosts: k.Hosts}
}

// publicForms finds a public type by the struct of its fact. It never changes.
var publicForms = func() map[reflect.Type]PublicType {
	m := map[reflect.Type]PublicType{}
	for _, t := range PublicTypes() {
		m[t.Stored] = t
	}
	return m
}()

// Public is the message that the world sees of a record; ok is false for a fact
// that is not public. It is a pure function: the feed can be written again from
// the log at any time.
func Public(r events.Record) (m Message, ok bool) {
	t := publicForms[reflect.TypeOf(r.Event)]
	if t.form == nil {
		return Message{}, false
	}
	data, err := jsonv2.Marshal(t.form(r.Stream.ID, r.Event), jsontext.AllowInvalidUTF8(true))
	if err != nil {
		panic(fmt.Sprintf("projections: %s cannot be written as JSON: %v", t.Name, err)) // plain structs always can
	}
	tenant := r.Meta.Tenant
	stream := events.StreamID{Tenant: tenant, Category: r.Stream.Category, ID: r.Stream.ID}
	m = Message{
		AuditSubject: stream.Subject(AuditPrefix), Audience: t.Audience,
		ID: r.ID(), Type: t.Name, Source: "/credstream/" + tenant, EventSubject: r.Stream.String(), Time: r.Meta.Time.UTC(), Data: data,
		Tenant: tenant, Actor: r.Meta.Actor.Kind + ":" + r.Meta.Actor.ID, CommandID: r.Meta.Command,
		CorrelationID: r.Meta.Correlation, CausationID: r.Meta.Causation, LogSeq: r.Seq, LogIndex: r.Index,
	}
	if t.Audience == events.Changes {
		m.Subject = stream.Subject(FeedPrefix)
	}
	return m, true
}
