package commands

import (
	"cmp"
	"time"

	"github.com/credstream/credstream/events"
)

// Credential is the set of commands on one credential.
//
//sumtype:decl
type Credential interface {
	Command
	credential()
}

// NewKeys describes verified keys whose values are already in the vault. The aggregate assigns
// their version number.
type NewKeys struct {
	SecretID     string
	Fields       []string
	Revision     int
	Hosts        []string
	HostMAC      string
	Verification events.Verification
	HostKey      string    // of the SSH server that the dry request met; "" for none
	Tokens       *Tokens   // the tokens in a field of the keys; nil for none
	Free         *FreeType // nil: a component describes the keys
	Expires      time.Time // as declared by the caller; zero: never
}

// FreeType describes keys without a component.
type FreeType struct {
	Name  string
	Shape string // as in events.CredentialTyped
	Rules string
}

// CreateCredential saves a credential whose keys were verified.
type CreateCredential struct {
	ID, Component, Name, Workspace string // no component if Keys have a free type
	Description                    string // "" for none
	VPNAgent                       string // "" for none
	Keys                           NewKeys
	Policy                         PolicyUse   // the initial throttle policy
	For                            *StepOfFlow // the step that will use it; nil for none
}

// PolicyUse is a throttle policy, "" for none, and the id of the use that the policy records.
type PolicyUse struct{ Policy, Use string }

// AbandonPolicyUse cancels a use of a throttle policy, unless the credential already has it.
type AbandonPolicyUse struct{ ID, Use string }

// StepOfFlow names one step.
type StepOfFlow struct{ Flow, Step string }

// RenameCredential requests another name.
type RenameCredential struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Expected int    `json:"expected_version,omitzero"` // refuse unless this is the version of the current keys
}

// Check returns the errors of CheckName and CheckTarget.
func (c RenameCredential) Check() error {
	return cmp.Or(CheckName("/name", c.Name), CheckTarget(c.ID, c.Expected))
}

// SetVPNAgent requests another VPN agent.
type SetVPNAgent struct {
	ID       string `json:"id"`
	VPNAgent string `json:"vpn_agent,omitzero"` // an id that the caller assigns, stored as given; absent: none
}

// Check returns the errors of CheckTarget and CheckRef.
func (c SetVPNAgent) Check() error {
	return cmp.Or(CheckTarget(c.ID, 0), CheckRef("/vpn_agent", c.VPNAgent))
}

// SetDescription requests another description.
type SetDescription struct {
	ID          string `json:"id"`
	Description string `json:"description,omitzero"` // for people: up to 1000 characters; absent: none
}

// Check returns the errors of CheckTarget and CheckDescription.
func (c SetDescription) Check() error {
	return cmp.Or(CheckTarget(c.ID, 0), CheckDescription(c.Description))
}

// UpdateCredential changes the settings that are not nil.
type UpdateCredential struct {
	ID string
	CredentialSettings
}

// CredentialSettings are changes besides the keys; nil: unchanged.
type CredentialSettings struct {
	Description *string
	Policy      *PolicyUse // without a use if the credential has the policy already
}

// ReplaceKeys activates new, verified keys.
type ReplaceKeys struct {
	ID       string
	Expected int
	Keys     NewKeys
	CredentialSettings
}

// RevertCredential makes the keys of version To, which were verified again, the newest version.
type RevertCredential struct {
	ID       string
	Expected int
	To       int
	Keys     NewKeys // SecretID names the same secret as version To
}

// RecordVerification records the outcome of a dry request with the keys of Version.
type RecordVerification struct {
	ID           string
	Version      int
	Verification events.Verification
	HostKey      string // that the dry request accepted; "" for none
}

// DeleteCredential deletes the credential.
type DeleteCredential struct {
	ID       string
	Expected int
}

// AbandonSecret forbids references to a secret that no event references, so that it can be
// erased.
type AbandonSecret struct{ ID, SecretID string }

// UseCredential records that steps of a flow name the credential, as the flow engine reported.
type UseCredential struct {
	ID, Flow string
	Revision uint64 // of the flow, at least 1
	Active   bool
	Steps    []events.FlowStep // those that name it
}

// ReserveCredential reserves the credential for a flow that is about to start.
type ReserveCredential struct {
	ID, Flow, Binding string
	Steps             []events.FlowStep // those that name it
	Until             time.Time
}

// ReleaseCredential ends the use by a flow, a reservation, or both.
type ReleaseCredential struct {
	ID, Flow string
	Revision uint64 // the flow of this revision does not name it; 0: only the reservation ends
	Binding  string // the reservation that ends; "": none
}

// RevealCredential records that the values of a version are about to be shown.
type RevealCredential struct {
	ID      string
	Version int
}

// WarnCredential records that the credential expires soon.
type WarnCredential struct {
	ID      string
	Expires time.Time // of what expires first; another expiry needs no warning now
	Days    int       // the threshold, at least 1
}

// Target implements Command.
func (c CreateCredential) Target() string   { return c.ID }
func (c RenameCredential) Target() string   { return c.ID }
func (c SetVPNAgent) Target() string        { return c.ID }
func (c UpdateCredential) Target() string   { return c.ID }
func (c AbandonPolicyUse) Target() string   { return c.ID }
func (c ReplaceKeys) Target() string        { return c.ID }
func (c RevertCredential) Target() string   { return c.ID }
func (c RecordVerification) Target() string { return c.ID }
func (c DeleteCredential) Target() string   { return c.ID }
func (c AbandonSecret) Target() string      { return c.ID }
func (c UseCredential) Target() string      { return c.ID }
func (c ReserveCredential) Target() string  { return c.ID }
func (c ReleaseCredential) Target() string  { return c.ID }
func (c RevealCredential) Target() string   { return c.ID }

func (CreateCredential) credential()    {}
func (RenameCredential) credential()    {}
func (SetVPNAgent) credential()         {}
func (UpdateCredential) credential()    {}
func (AbandonPolicyUse) credential()    {}
func (ReplaceKeys) credential()         {}
func (RevertCredential) credential()    {}
func (RecordVerification) credential()  {}
func (DeleteCredential) credential()    {}
func (AbandonSecret) credential()       {}
func (UseCredential) credential()       {}
func (ReserveCredential) credential()   {}
func (ReleaseCredential) credential()   {}
func (RevealCredential) credential()    {}
func (c SetDescription) Target() string { return c.ID }

func (c WarnCredential) Target() string { return c.ID }

func (SetDescription) credential() {}
func (WarnCredential) credential() {}
