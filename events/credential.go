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

// Status is the result of the last dry request, or of the last renewal of tokens.
type Status string

// The statuses of a credential.
const (
	Verified   Status = "verified"   // the component's probe succeeded
	Failed     Status = "failed"     // a later probe failed
	Unverified Status = "unverified" // the component declares no probe
)

// Statuses are all statuses of a credential.
func Statuses() []Status {
	return []Status{Verified, Failed, Unverified, ReauthorizationRequired}
}

// StatusChoice lists every status in words: "verified, failed, ... or ...".
func StatusChoice() string {
	var names []string
	for _, s := range Statuses() {
		names = append(names, string(s))
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

// Verification is the result of one dry request, without the API's response.
type Verification struct {
	Status    Status `json:"status" feed:"status"`
	Probe     string `json:"probe" feed:"probe"`           // "http", "tcp", "tls", "smtp", "imap", "ldap", "postgres", "mysql", "ssh", "sftp", or "" if there is no dry request
	Outcome   string `json:"outcome" feed:"outcome"`       // class of the outcome: "2xx", "4xx", "refused", "timeout", ...
	LatencyMS int64  `json:"latency_ms" feed:"latency_ms"` // milliseconds until the outcome was known
}

// KeysVersion describes one version of a credential's keys. The values are only in the vault,
// under SecretID.
type KeysVersion struct {
	Version      int          `json:"version"`   // 1, 2, 3, ...
	SecretID     string       `json:"secret_id"` // where the vault keeps the encrypted values
	Fields       []string     `json:"fields"`    // names of the fields that have a value, sorted
	Revision     int          `json:"revision"`  // revision of the component's current descriptor
	Hosts        []string     `json:"hosts"`     // where these keys may be sent: patterns, from the descriptor
	HostMAC      string       `json:"host_mac"`  // MAC over the values that make up a host, under the tenant's MAC key
	Verification Verification `json:"verification"`
}

// PublicKeys is the public form of a KeysVersion.
type PublicKeys struct {
	Version  int      `json:"version"` // 1, 2, 3, ...
	Status   Status   `json:"status"`  // result of the dry request
	Fields   []string `json:"fields"`
	Revision int      `json:"revision"`
	Hosts    []string `json:"hosts"`
}

// Public omits the secret id, the fields and the hosts.
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

// CredentialThrottlePolicyAssigned records: A throttle policy was assigned to the credential, or
// removed.
type CredentialThrottlePolicyAssigned struct {
	Policy string `json:"policy" feed:"policy"` // id, "" for none
	Use    string `json:"use" feed:"-"`         // id of this use in the policy's stream; "" without a policy
}

// CredentialThrottlePolicyUseAbandoned records: A use of a throttle policy that the credential
// never took up was cancelled, because the policy is being deleted.
type CredentialThrottlePolicyUseAbandoned struct {
	Use string `json:"use" feed:"-"`
}

// CredentialTyped records: The keys of a version have a free type, a name that the caller gave
// instead of a component. The event is in the same commit as the keys. It contains what a
// component's descriptor declares for other keys.
type CredentialTyped struct {
	Version int    `json:"version" feed:"version"` // of the keys
	Type    string `json:"type" feed:"type"`       // of the credential; it never changes
	Shape   string `json:"shape" feed:"-"`         // names of nested keys as JSON, with 0 instead of each value; "" if there are none
	Rules   string `json:"rules" feed:"-"`         // hosts and verification in the form of a component.json; "" for neither
}

// CredentialDescriptionSet records: The description of the credential was changed.
type CredentialDescriptionSet struct {
	Description string `json:"description" feed:"description"` // "" for none
}

// CredentialExpirySet records: The keys of a version have a declared expiry. The event is in the
// same commit as the keys. Keys without it have none.
type CredentialExpirySet struct {
	Version int       `json:"version" feed:"version"` // of the keys
	Expires time.Time `json:"expires" feed:"expires"`
}

// CredentialHostKeySet records: Dry requests with the keys of a version accept this key of an SSH
// server. The event is in the same commit as the keys, or as the dry request that accepted it.
type CredentialHostKeySet struct {
	Version int    `json:"version" feed:"version"`   // of the keys
	HostKey string `json:"host_key" feed:"host_key"` // "ssh-ed25519 SHA256:..."
}

// CredentialExpiring records: The credential stops working soon unless somebody acts. There is one
// event per warning threshold and expiry.
type CredentialExpiring struct {
	Version int       `json:"version" feed:"version"` // of the keys
	What    string    `json:"what" feed:"what"`       // what expires: "keys", which declare it, "access_token", which cannot be renewed, or "refresh_token", which renewals do not extend
	Expires time.Time `json:"expires" feed:"expires"`
	Days    int       `json:"days" feed:"days"`   // the threshold: it expires in at most this many days
	Flows   []string  `json:"flows" feed:"flows"` // ids of flows that name the credential, sorted: the first 100
	Total   int       `json:"total" feed:"total"` // how many flows name it
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
	Revision uint64    `json:"revision" feed:"revision"`             // of the flow; 0 if the flow engine has not reported it yet
	Named    bool      `json:"named" feed:"named"`                   // a step of the flow names the credential
	Active   bool      `json:"active" feed:"active"`                 // a step names it and the flow is active
	Steps    []string  `json:"steps" feed:"steps"`                   // ids of the steps in the flow event, reservation or command that caused this event, sorted; none if a use ended
	Binding  string    `json:"binding" feed:"binding"`               // id of the reservation; "" if there is none
	Until    time.Time `json:"until,omitzero" feed:"until,omitzero"` // expiry of the reservation
}

// CredentialReleased records: A flow no longer uses the credential.
type CredentialReleased struct {
	Flow     string `json:"flow" feed:"flow"`
	Revision uint64 `json:"revision" feed:"revision"` // of the flow that no longer names it; 0 if only a reservation ended
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
func (CredentialExpirySet) credential()                  {}
func (CredentialHostKeySet) credential()                 {}
func (CredentialExpiring) credential()                   {}

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
	// Not KeepingValues: resolved values that clients cache include the policy.
	Define[CredentialThrottlePolicyAssigned]("credential.throttle_policy_assigned", Changes).KeepingSecrets(),
	Define[CredentialThrottlePolicyUseAbandoned]("credential.throttle_policy_use_abandoned", Internal).KeepingSecrets(),
	Define[CredentialTyped]("credential.typed", Changes).KeepingSecrets(),
	Define[CredentialDescriptionSet]("credential.description_set", Changes).KeepingValues(),
	Define[CredentialExpirySet]("credential.expiry_set", Changes).KeepingValues(),
	Define[CredentialHostKeySet]("credential.host_key_set", Changes).KeepingValues(),
	Define[CredentialExpiring]("credential.expiring", Changes).KeepingValues(),
}
