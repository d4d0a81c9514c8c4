package aggregates

import (
	"slices"
	"time"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// Errors of a credential.
var (
	ErrCredentialNotFound     = fault.New(fault.NotFound, "credential_not_found", "Credential not found.")
	ErrCredentialExists       = fault.New(fault.Exists, "credential_exists", "A credential with this id already exists.")
	ErrCredentialVersionStale = fault.New(fault.Precondition, "credential_version_stale",
		"The credential's keys have changed since you read them. Read the credential again and repeat.")
	ErrCredentialVersionNotFound = fault.New(fault.NotFound, "credential_version_not_found",
		"The credential has no such version, or the version is too old to revert to.")
	ErrCredentialHostsChanged = fault.New(fault.Precondition, "credential_hosts_changed",
		"That version was entered for other hosts than the current ones. Enter its keys again instead.")
	// ErrCredentialInUse protects the credential of a running flow. Its detail names the flows.
	ErrCredentialInUse = fault.New(fault.Precondition, "credential_in_use",
		"The credential is in use by an active flow. Stop or delete the flow first, or give it another credential.")
	// ErrCredentialComponentMismatch rejects a step that names a credential of another component.
	ErrCredentialComponentMismatch = fault.New(fault.Unprocessable, "credential_component_mismatch",
		"The step's component is not the component of its credential.")
	// ErrSecretAbandoned tells a writer that its secret was collected before its
	// commit arrived: it must store the secret again. Callers never see it.
	ErrSecretAbandoned = fault.New(fault.Conflict, "secret_abandoned", "The secret was collected before it was used.")
)

// KeptVersions is the number of newest versions whose secrets are kept for
// a revert.
const KeptVersions = 10

// Credential is the aggregate of one credential.
var Credential = Decider[CredentialState, commands.Credential, events.Credential]{
	Category: "credential", Fold: 9, Decide: CredentialState.decide, Evolve: CredentialState.evolve,
	New:    func(c commands.Credential) bool { _, is := c.(commands.CreateCredential); return is },
	Weight: func(s CredentialState) int { return s.Uses.Len() },
}

// CredentialState is the state of a credential.
type CredentialState struct {
	Exists    bool
	Deleted   bool
	Component string // "" of a free type
	Name      string
	Workspace string
	VPNAgent  string
	Status    events.Status
	Versions  []events.KeysVersion // the newest KeptVersions, oldest first
	Abandoned []string             // secret ids that no event may name from now on
	Uses      Uses                 // by flows
	Tokens    Tokens               // of an OAuth authorization server

	ThrottlePolicy string   // id, or ""
	PolicyUse      string   // which one of the uses that the policy records
	AbandonedUses  []string // uses of policies that no event may name any more

	Type        string                   // free; "" where there is a component
	Typed       []events.CredentialTyped // of the Versions, of a free type
	Description string

	Expiries []events.CredentialExpirySet // of the Versions that declare one
	Warned   Warning

	HostKey string // of an SSH server, that the dry requests of the current version accept; "" before the first
}

// Live reports whether the credential exists and is not deleted.
func (s CredentialState) Live() bool { return s.Exists && !s.Deleted }

// HoldsTokens reports whether a live credential has tokens that can be resolved or
// renewed.
func (s CredentialState) HoldsTokens() bool {
	return s.Live() && s.IsOAuth() && !s.Tokens.RevokedLocally && s.Current().SecretID != ""
}

// Terminal reports whether no further event can name a secret.
func (s CredentialState) Terminal() bool { return s.Deleted }

// Current is the current version; the zero value when there is none.
func (s CredentialState) Current() events.KeysVersion {
	if len(s.Versions) == 0 {
		return events.KeysVersion{}
	}
	return s.Versions[len(s.Versions)-1]
}

// Version finds a version that is still kept.
func (s CredentialState) Version(n int) (events.KeysVersion, bool) {
	for _, v := range s.Versions {
		if v.Version == n {
			return v, true
		}
	}
	return events.KeysVersion{}, false
}

// Serves reports whether the credential is for the component of a step, which may be the
// name of a free type.
func (s CredentialState) Serves(component string) bool {
	return component != "" && (component == s.Component || component == s.Type)
}

// Free describes the keys of a version of a free type.
func (s CredentialState) Free(version int) *commands.FreeType {
	for _, t := range s.Typed {
		if t.Version == version {
			return &commands.FreeType{Name: t.Type, Shape: t.Shape, Rules: t.Rules}
		}
	}
	return nil
}

// References reports whether a kept version of a live credential, or its tokens, use the secret.
func (s CredentialState) References(secretID string) bool {
	return s.Live() && (s.Tokens.referencesToken(secretID) ||
		slices.ContainsFunc(s.Versions, func(v events.KeysVersion) bool { return v.SecretID == secretID }))
}

// Secrets are the ids of all secrets that the credential has, or may get by a renewal.
func (s CredentialState) Secrets() []string {
	return append(s.Tokens.TokenSecrets(), s.versionSecrets()...)
}

// StoredSecrets are the ids of the secrets that were durable before an event named them.
func (s CredentialState) StoredSecrets() []string {
	return append(s.versionSecrets(), s.Tokens.Token.SecretID)
}

func (s CredentialState) versionSecrets() (ids []string) {
	for _, v := range s.Versions {
		ids = append(ids, v.SecretID)
	}
	return ids
}

func (s CredentialState) decide(cmd commands.Credential) ([]events.Credential, error) {
	switch c := cmd.(type) {
	case commands.CreateCredential:
		return s.create(c)
	case commands.RenameCredential:
		return s.rename(c)
	case commands.SetVPNAgent:
		return s.setVPNAgent(c)
	case commands.UpdateCredential:
		if err := s.mayChange(0); err != nil {
			return nil, err
		}
		return s.set(c.CredentialSettings)
	case commands.AbandonPolicyUse:
		return s.abandonPolicyUse(c), nil
	case commands.SetDescription:
		if err := s.mayChange(0); err != nil {
			return nil, err
		}
		return s.described(c.Description), nil
	case commands.ReplaceKeys:
		return s.replaceKeys(c)
	case commands.RevertCredential:
		return s.revert(c)
	case commands.RecordVerification:
		return s.recordVerification(c)
	case commands.DeleteCredential:
		return s.delete(c)
	case commands.AbandonSecret:
		return s.abandon(c)
	case commands.UseCredential:
		return s.use(c)
	case commands.ReserveCredential:
		return s.reserve(c)
	case commands.ReleaseCredential:
		return s.release(c), nil
	case commands.RevealCredential:
		if err := s.mayChange(c.Version); err != nil {
			return nil, err
		}
		return []events.Credential{events.CredentialRevealed{Version: c.Version}}, nil
	case commands.StartRefresh:
		return s.startRefresh(c)
	case commands.CompleteRefresh:
		return s.completeRefresh(c)
	case commands.FailRefresh:
		return s.failRefresh(c)
	case commands.RequireReauthorization:
		return s.requireReauthorization(c)
	case commands.RevokeTokens:
		return s.revokeTokens(c)
	case commands.WarnCredential:
		return s.warn(c), nil
	case commands.RecordProviderRevocation:
		if !s.Exists {
			return nil, ErrCredentialNotFound
		}
		return []events.Credential{events.CredentialRevokedAtProvider{Outcome: c.Outcome}}, nil
	}
	return nil, unknownCommand(cmd)
}

func (s CredentialState) create(c commands.CreateCredential) ([]events.Credential, error) {
	switch {
	case s.Exists:
		return nil, ErrCredentialExists
	case slices.Contains(s.Abandoned, c.Keys.SecretID):
		return nil, ErrSecretAbandoned
	}
	keys := s.next(c.Keys)
	facts := slices.Concat([]events.Credential{events.CredentialCreated{
		Component: c.Component, Name: c.Name, Workspace: c.Workspace, Keys: keys,
	}}, typed(keys, c.Keys.Free), expires(keys, c.Keys.Expires), hostKey(keys.Version, c.Keys.HostKey), s.authorized(keys, c.Keys.Tokens), s.described(c.Description))
	if c.VPNAgent != "" {
		facts = append(facts, events.CredentialVPNAgentSet{VPNAgent: c.VPNAgent})
	}
	if c.Policy.Policy != "" {
		assigned, err := s.assigned(c.Policy)
		if err != nil {
			return nil, err
		}
		facts = append(facts, assigned)
	}
	if c.For != nil {
		facts = append(facts, events.CredentialUsed{Flow: c.For.Flow, Named: true, Steps: []string{c.For.Step}})
	}
	return facts, nil
}

func (s CredentialState) rename(c commands.RenameCredential) ([]events.Credential, error) {
	if err := s.mayChange(c.Expected); err != nil || s.Name == c.Name {
		return nil, err
	}
	return []events.Credential{events.CredentialRenamed{Name: c.Name}}, nil
}

func (s CredentialState) setVPNAgent(c commands.SetVPNAgent) ([]events.Credential, error) {
	if err := s.mayChange(0); err != nil || s.VPNAgent == c.VPNAgent {
		return nil, err
	}
	return []events.Credential{events.CredentialVPNAgentSet{VPNAgent: c.VPNAgent}}, nil
}

func (s CredentialState) replaceKeys(c commands.ReplaceKeys) ([]events.Credential, error) {
	if err := s.mayChange(c.Expected); err != nil {
		return nil, err
	}
	if slices.Contains(s.Abandoned, c.Keys.SecretID) {
		return nil, ErrSecretAbandoned
	}
	keys := s.next(c.Keys)
	facts := slices.Concat([]events.Credential{events.CredentialKeysReplaced{Keys: keys}}, typed(keys, c.Keys.Free), expires(keys, c.Keys.Expires), hostKey(keys.Version, c.Keys.HostKey), s.authorized(keys, c.Keys.Tokens))
	settings, err := s.set(c.CredentialSettings)
	return append(facts, settings...), err
}

// set decides about what can change beside the keys.
func (s CredentialState) set(c commands.CredentialSettings) (facts []events.Credential, err error) {
	if c.Description != nil {
		facts = s.described(*c.Description)
	}
	if c.Policy != nil && c.Policy.Policy != s.ThrottlePolicy {
		assigned, err := s.assigned(*c.Policy)
		if err != nil {
			return nil, err
		}
		facts = append(facts, assigned)
	}
	return facts, nil
}

// typed describes new keys of a free type.
func typed(k events.KeysVersion, free *commands.FreeType) []events.Credential {
	if free == nil {
		return nil
	}
	return []events.Credential{events.CredentialTyped{Version: k.Version, Type: free.Name, Shape: free.Shape, Rules: free.Rules}}
}

func (s CredentialState) described(as string) []events.Credential {
	if s.Description == as {
		return nil
	}
	return []events.Credential{events.CredentialDescriptionSet{Description: as}}
}

func (s CredentialState) revert(c commands.RevertCredential) ([]events.Credential, error) {
	now := s.Current()
	if err := s.mayChange(c.Expected); err != nil || c.To == now.Version {
		return nil, err
	}
	if s.Tokens.Field != "" {
		return nil, ErrRevertOAuth
	}
	to, kept := s.Version(c.To)
	switch {
	case !kept || to.SecretID != c.Keys.SecretID:
		return nil, ErrCredentialVersionNotFound
	case to.HostMAC != now.HostMAC || !slices.Equal(to.Hosts, now.Hosts) || !slices.Equal(to.Hosts, c.Keys.Hosts):
		return nil, ErrCredentialHostsChanged
	}
	keys := s.next(c.Keys)
	return slices.Concat([]events.Credential{events.CredentialReverted{To: c.To, Keys: keys}}, typed(keys, s.Free(c.To)), expires(keys, s.declaredExpiry(c.To)), hostKey(keys.Version, c.Keys.HostKey)), nil
}

func (s CredentialState) recordVerification(c commands.RecordVerification) ([]events.Credential, error) {
	if err := s.mayChange(c.Version); err != nil {
		return nil, err
	}
	facts := []events.Credential{events.CredentialVerified{Version: c.Version, Verification: c.Verification}}
	if c.HostKey != s.HostKey {
		facts = append(facts, hostKey(c.Version, c.HostKey)...)
	}
	return facts, nil
}

// hostKey describes the host key that the dry requests of a version accept.
func hostKey(version int, key string) []events.Credential {
	if key == "" {
		return nil
	}
	return []events.Credential{events.CredentialHostKeySet{Version: version, HostKey: key}}
}

func (s CredentialState) delete(c commands.DeleteCredential) ([]events.Credential, error) {
	if err := s.mayChange(c.Expected); err != nil {
		return nil, err
	}
	if s.Uses.Blocked() {
		return nil, ErrCredentialInUse
	}
	return []events.Credential{events.CredentialDeleted{}}, nil
}

// use records what the flow engine reported, unless a newer revision is known.
func (s CredentialState) use(c commands.UseCredential) ([]events.Credential, error) {
	steps, err := s.serves(c.Steps)
	if err != nil {
		return nil, err
	}
	now, _ := s.Uses.Of(c.Flow)
	next := Use{Revision: c.Revision, Named: true, Active: c.Active, Binding: now.Binding, Until: now.Until}
	if c.Active {
		next.Binding, next.Until = "", 0 // the start confirms the reservation
	}
	if now.Revision > c.Revision || next == now {
		return nil, nil
	}
	return used(c.Flow, next, steps), nil
}

// reserve reserves the credential for a flow, in addition to its known use.
func (s CredentialState) reserve(c commands.ReserveCredential) ([]events.Credential, error) {
	steps, err := s.serves(c.Steps)
	if err != nil {
		return nil, err
	}
	next, _ := s.Uses.Of(c.Flow)
	if next.Binding == c.Binding && next.Until >= c.Until.UnixMicro() { // a repeat may ask for a longer time
		return nil, nil
	}
	next.Binding, next.Until = c.Binding, c.Until.UnixMicro()
	return used(c.Flow, next, steps), nil
}

func used(flow string, u Use, steps []string) []events.Credential {
	e := events.CredentialUsed{Flow: flow, Revision: u.Revision, Named: u.Named, Active: u.Active, Steps: steps, Binding: u.Binding}
	if u.Until != 0 {
		e.Until = time.UnixMicro(u.Until).UTC()
	}
	return []events.Credential{e}
}

// serves returns the sorted ids of the steps that the credential can serve: those
// of its component.
func (s CredentialState) serves(steps []events.FlowStep) ([]string, error) {
	if !s.Live() {
		return nil, ErrCredentialNotFound
	}
	ids := []string{}
	for _, step := range steps {
		if s.Serves(step.Component) {
			ids = append(ids, step.ID)
		}
	}
	if len(ids) == 0 {
		return nil, ErrCredentialComponentMismatch
	}
	slices.Sort(ids)
	return ids, nil
}

// release ends what the command names, and keeps the rest: a reservation survives a change
// of the flow, and the use by a running flow survives its reservation.
func (s CredentialState) release(c commands.ReleaseCredential) []events.Credential {
	now, uses := s.Uses.Of(c.Flow)
	if !uses {
		return nil
	}
	next := now
	if c.Revision > 0 && now.Revision <= c.Revision {
		next.Revision, next.Named, next.Active = 0, false, false
	}
	if c.Binding != "" && now.Binding == c.Binding {
		next.Binding, next.Until = "", 0
	}
	switch {
	case next == now:
		return nil
	case !next.Named && next.Binding == "":
		return []events.Credential{events.CredentialReleased{Flow: c.Flow, Revision: c.Revision}}
	}
	return used(c.Flow, next, []string{})
}

// abandon excludes a secret from use, also before the credential exists.
func (s CredentialState) abandon(c commands.AbandonSecret) ([]events.Credential, error) {
	if s.References(c.SecretID) || slices.Contains(s.Abandoned, c.SecretID) {
		return nil, nil
	}
	return []events.Credential{events.SecretAbandoned{SecretID: c.SecretID}}, nil
}

// mayChange refuses a change of a credential that does not exist, and one whose expected
// version of the keys (0: any) is not the current one.
func (s CredentialState) mayChange(expected int) error {
	switch {
	case !s.Live():
		return ErrCredentialNotFound
	case expected != 0 && expected != s.Current().Version:
		return ErrCredentialVersionStale
	}
	return nil
}

// next is the next version, with these keys.
func (s CredentialState) next(k commands.NewKeys) events.KeysVersion {
	return events.KeysVersion{
		Version: s.Current().Version + 1, SecretID: k.SecretID, Fields: k.Fields, Revision: k.Revision,
		Hosts: k.Hosts, HostMAC: k.HostMAC, Verification: k.Verification,
	}
}

func (s CredentialState) evolve(e events.Credential) CredentialState {
	switch e := e.(type) {
	case events.CredentialCreated:
		s.Exists, s.Component, s.Name, s.Workspace = true, e.Component, e.Name, e.Workspace
		return s.with(e.Keys)
	case events.CredentialRenamed:
		s.Name = e.Name
	case events.CredentialVPNAgentSet:
		s.VPNAgent = e.VPNAgent
	case events.CredentialThrottlePolicyAssigned:
		s.ThrottlePolicy, s.PolicyUse = e.Policy, e.Use
	case events.CredentialThrottlePolicyUseAbandoned:
		s.AbandonedUses = append(slices.Clip(s.AbandonedUses), e.Use)
	case events.CredentialTyped:
		s.Type = e.Type
		kept := s.Typed
		if len(kept) == KeptVersions {
			kept = kept[1:]
		}
		s.Typed = append(slices.Clip(kept), e)
	case events.CredentialDescriptionSet:
		s.Description = e.Description
	case events.CredentialExpirySet:
		kept := s.Expiries
		if len(kept) == KeptVersions {
			kept = kept[1:]
		}
		s.Expiries = append(slices.Clip(kept), e)
	case events.CredentialHostKeySet:
		if e.Version == s.Current().Version {
			s.HostKey = e.HostKey
		}
	case events.CredentialExpiring:
		s.Warned = Warning{Expires: e.Expires, Days: e.Days}
	case events.CredentialKeysReplaced:
		return s.with(e.Keys)
	case events.CredentialReverted:
		return s.with(e.Keys)
	case events.CredentialVerified:
		switch {
		case e.Version != s.Current().Version:
		case s.Tokens.ReauthReason != "": // takes precedence
			s.Tokens.StatusBefore = e.Verification.Status
		default:
			s.Status = e.Verification.Status
		}
	case events.CredentialDeleted:
		s.Deleted, s.Versions, s.Typed, s.Uses, s.Tokens = true, nil, nil, Uses{}, Tokens{}
		s.ThrottlePolicy, s.PolicyUse, s.Expiries, s.Warned = "", "", nil, Warning{}
	case events.CredentialUse:
		s.Uses = s.Uses.evolve(e)
	case events.CredentialToken:
		return s.evolveTokens(e)
	case events.CredentialRevealed:
	case events.SecretAbandoned:
		s.Abandoned = append(slices.Clip(s.Abandoned), e.SecretID)
	}
	return s
}

// with activates a new version and drops the oldest one.
func (s CredentialState) with(v events.KeysVersion) CredentialState {
	kept := s.Versions
	if len(kept) == KeptVersions {
		kept = kept[1:]
	}
	s.Versions = append(slices.Clip(kept), v)
	s.HostKey = ""
	s.Status = v.Verification.Status
	was := s.Tokens
	s.Tokens = Tokens{Grant: was.Grant, Epoch: was.Epoch}
	if was.Field != "" { // the grant of the earlier keys is no longer used
		s.Tokens.Grant++
	}
	return s
}
