package events

import (
	"strings"
	"time"
)

// Credential is the set of events about one credential, stream
// "credential.<id>" within its tenant.
//
//sumtype:decl
type Credential interface{ credential() }

// Status says what the last dry request found.
type Status string

// The statuses of a credential.
const (
	Verified   Status = "verified"   // the component's probe succeeded
	Failed     Status = "failed"     // a later probe failed
	Unverified Status = "unverified" // the component declares no probe
)

// Statuses are all that a credential can have.
func Statuses() []Status {
	return []Status{Verified, Failed, Unverified, ReauthorizationRequired}
}

// StatusChoice names every status, for a sentence: "verified, failed, ... or ...".
func StatusChoice() string {
	var names []string
	for _, s := range Statuses() {
		names = append(names, string(s))
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

// Verification is the evidence of one dry request, never what the API answered.
type Verification struct {
	Status    Status `json:"status" feed:"status"`
	Probe     string `json:"probe" feed:"probe"`           // "http", "tcp", "tls", or "" if there is no dry request
	Outcome   string `json:"outcome" feed:"outcome"`       // class of the outcome: "2xx", "4xx", "refused", "timeout", ...
	LatencyMS int64  `json:"latency_ms" feed:"latency_ms"` // milliseconds until the outcome was known
}

// KeysVersion describes one version of a credential's keys. The values live in
// the vault alone, under SecretID.
type KeysVersion struct {
	Version      int          `json:"version"`   // 1, 2, 3, ...
	SecretID     string       `json:"secret_id"` // where the vault keeps the sealed values
	Fields       []string     `json:"fields"`    // names of the fields that have a value, sorted
	Revision     int          `json:"revision"`  // revision of the component's current descriptor
	Hosts        []string     `json:"hosts"`     // where these keys may be sent: patterns, from the descriptor
	HostMAC      string       `json:"host_mac"`  // MAC over the values that make up a host, under the tenant's MAC key
	Verification Verification `json:"verification"`
}

// PublicKeys is what others see of a KeysVersion.
type PublicKeys struct {
	Version  int      `json:"version"` // 1, 2, 3, ...
	Status   Status   `json:"status"`  // what the dry request found
	Fields   []string `json:"fields"`
	Revision int      `json:"revision"`
	Hosts    []string `json:"hosts"`
}

// Public hides where the values are and what they are.
func (k KeysVersion) Public() any {
	return PublicKeys{Version: k.Version, Status: k.Verification.Status, Fields: k.Fields, Revision: k.Revision, Hosts: k.Hosts}
}

// CredentialCreated records: A credential was verified and saved.
type CredentialCreated struct {
	Component string      `json:"component" feed:"component"`
	Name      string      `json:"name" feed:"name"`
	Workspace string      `json:"workspace" feed:"workspace"` // id given by the caller, or ""
	Keys      KeysVersion `json:"keys" feed:",embed"`
}

// CredentialRenamed records: The credential was renamed.
type CredentialRenamed struct {
	Name string `json:"name" feed:"name"`
}

// CredentialVPNAgentSet records: The VPN agent through which a flow engine reaches the credential's
// API was set or cleared. The service only stores its id.
type CredentialVPNAgentSet struct {
	VPNAgent string `json:"vpn_agent" feed:"vpn_agent"` // id given by the caller, "" for none
}

// CredentialThrottlePolicyAssigned says which throttle policy limits the use of the
// credential from here on.
type CredentialThrottlePolicyAssigned struct {
	Policy string `json:"policy" feed:"policy"` // id, "" for none
	Use    string `json:"use" feed:"-"`         // which of the uses that the policy records this is; "" without a policy
}

// CredentialThrottlePolicyUseAbandoned cancels a recorded use of a throttle policy that the
// credential never took up, because the policy is being deleted.
type CredentialThrottlePolicyUseAbandoned struct {
	Use string `json:"use" feed:"-"`
}

// CredentialTyped says that the keys of a version belong to a free type: a name that its
// caller gave, with no component behind it. It stands in the commit that put the version in
// force. What a component's descriptor says of other keys, it says of these.
type CredentialTyped struct {
	Version int    `json:"version" feed:"version"` // of the keys
	Type    string `json:"type" feed:"type"`       // of the credential; it never changes
	Shape   string `json:"shape" feed:"-"`         // names of nested keys as JSON, with 0 instead of each value; "" if there are none
	Rules   string `json:"rules" feed:"-"`         // hosts and verification in the form of a component.json; "" for neither
}

// CredentialDescriptionSet says what people are told of the credential from here on.
type CredentialDescriptionSet struct {
	Description string `json:"description" feed:"description"` // "" for none
}

// CredentialKeysReplaced records: New keys were verified and activated.
type CredentialKeysReplaced struct {
	Keys KeysVersion `json:"keys" feed:",embed"`
}

// CredentialReverted records: The keys of an earlier version were verified again and activated as a
// new version, which names the same secret.
type CredentialReverted struct {
	To   int         `json:"to" feed:"to"` // the earlier version
	Keys KeysVersion `json:"keys" feed:",embed"`
}

// CredentialVerified records: The outcome, success or failure, of a dry request on demand.
type CredentialVerified struct {
	Version      int          `json:"version" feed:"version"` // the version of the keys that was tried
	Verification Verification `json:"verification" feed:",embed"`
}

// CredentialDeleted records: The credential was deleted; its secrets are erased from the vault.
type CredentialDeleted struct{}

// CredentialUsed records: The new use of the credential by a flow: a step names it, it is reserved
// for the flow, or both. The credential cannot be deleted while the flow is active or has a
// reservation.
type CredentialUsed struct {
	Flow     string    `json:"flow" feed:"flow"`
	Revision uint64    `json:"revision" feed:"revision"`             // of the flow; 0 when the flow engine has not told of it yet
	Named    bool      `json:"named" feed:"named"`                   // a step of the flow names the credential
	Active   bool      `json:"active" feed:"active"`                 // and the flow runs
	Steps    []string  `json:"steps" feed:"steps"`                   // ids of the steps that what led to this fact was about, sorted; none when something ended
	Binding  string    `json:"binding" feed:"binding"`               // id of the reservation; "" if there is none
	Until    time.Time `json:"until,omitzero" feed:"until,omitzero"` // when the reservation ends by itself
}

// CredentialReleased records: A flow no longer uses the credential.
type CredentialReleased struct {
	Flow     string `json:"flow" feed:"flow"`
	Revision uint64 `json:"revision" feed:"revision"` // of the flow that no longer names it, 0 when only a reservation ended
}

// CredentialRevealed records: The values of one version are about to be revealed to a person: the
// event is durable before the response.
type CredentialRevealed struct {
	Version int `json:"version" feed:"version"`
}

// SecretAbandoned records: A secret that no event names yet is excluded from use: the collector
// erases it, and a late writer must store its secret again.
type SecretAbandoned struct {
	SecretID string `json:"secret_id"`
}

// CredentialUse is the set of events about a flow's use of a credential.
//
//sumtype:decl
type CredentialUse interface {
	Credential
	credentialUse()
}

func (CredentialUsed) credentialUse()     {}
func (CredentialReleased) credentialUse() {}

func (CredentialCreated) credential()                    {}
func (CredentialRenamed) credential()                    {}
func (CredentialVPNAgentSet) credential()                {}
func (CredentialThrottlePolicyAssigned) credential()     {}
func (CredentialThrottlePolicyUseAbandoned) credential() {}
func (CredentialKeysReplaced) credential()               {}
func (CredentialReverted) credential()                   {}
func (CredentialVerified) credential()                   {}
func (CredentialDeleted) credential()                    {}
func (CredentialUsed) credential()                       {}
func (CredentialReleased) credential()                   {}
func (CredentialRevealed) credential()                   {}
func (SecretAbandoned) credential()                      {}
func (CredentialTyped) credential()                      {}
func (CredentialDescriptionSet) credential()             {}

var credentialTypes = []Type{
	Define[CredentialCreated]("credential.created", Changes).KeepingSecrets(),
	Define[CredentialRenamed]("credential.renamed", Changes).KeepingValues(),
	Define[CredentialKeysReplaced]("credential.keys_replaced", Changes),
	Define[CredentialReverted]("credential.reverted", Changes),
	Define[CredentialVerified]("credential.verified", Changes).KeepingValues(),
	Define[CredentialDeleted]("credential.deleted", Changes),
	Define[CredentialUsed]("credential.used", Changes).KeepingValues(),
	Define[CredentialReleased]("credential.released", Changes).KeepingValues(),
	Define[CredentialRevealed]("credential.revealed", Audit).KeepingValues(),
	Define[SecretAbandoned]("secret.abandoned", Internal).KeepingSecrets(),
	Define[CredentialVPNAgentSet]("credential.vpn_agent_set", Changes).KeepingValues(),
	// Not KeepingValues: what clients keep of a resolved credential names its policy.
	Define[CredentialThrottlePolicyAssigned]("credential.throttle_policy_assigned", Changes).KeepingSecrets(),
	Define[CredentialThrottlePolicyUseAbandoned]("credential.throttle_policy_use_abandoned", Internal).KeepingSecrets(),
	Define[CredentialTyped]("credential.typed", Changes).KeepingSecrets(),
	Define[CredentialDescriptionSet]("credential.description_set", Changes).KeepingValues(),
}
