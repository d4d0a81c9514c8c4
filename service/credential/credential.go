package credential

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/client"
	"github.com/credstream/credstream/service/component"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/service/token"
	"github.com/credstream/credstream/vault"
	"github.com/credstream/credstream/verify"
)

// ErrVerificationFailed rejects keys for which the dry request failed.
var ErrVerificationFailed = fault.New(fault.Unprocessable, "credential_verification_failed",
	"The dry request failed, so nothing was saved.")

// Rename is the command, exported for the edges.
type Rename = commands.RenameCredential

// SetVPNAgent is the command, exported for the edges.
type SetVPNAgent = commands.SetVPNAgent

// SetDescription is the command, exported for the edges.
type SetDescription = commands.SetDescription

type Create struct {
	Component      string         `json:"component,omitzero"`         // id of the component; or give type
	Name           string         `json:"name,omitzero"`              // display name; derived from the description, or the component's title, when absent
	Keys           secrets.Keys   `json:"keys"`                       // a value for each field of the component's descriptor; a free type takes any names, nested as needed
	Workspace      string         `json:"workspace,omitzero"`         // an id of the caller, stored as given
	VPNAgent       string         `json:"vpn_agent,omitzero"`         // an id of the caller, stored as given: the VPN agent through which a flow engine reaches the API
	ThrottlePolicy string         `json:"throttle_policy,omitzero"`   // id of the throttle policy that limits its use; none when absent
	For            *ForStep       `json:"for,omitzero"`               // the step of a flow for which it is created: the use is recorded with it
	KeysSealed     string         `json:"keys_sealed,omitzero"`       // in place of keys: encrypted to the service key, as required in the queue
	Expected       int            `json:"expected_revision,omitzero"` // refuse unless this is the revision of the component's current descriptor
	ID             string         `json:"id,omitzero"`                // of a credential that another system knows: 1 to 128 bytes of UTF-8 without control characters; generated when absent
	Type           string         `json:"type,omitzero"`              // in place of component: one of the tenant's own components, else a free type, whose keys nothing describes
	Description    string         `json:"description,omitzero"`       // free text, up to 1000 characters
	Hosts          []string       `json:"hosts,omitzero"`             // of a free type: the only hosts its values may be sent to, as in a component.json
	Expires        *time.Time     `json:"expires_at,omitzero"`        // when the keys expire at the provider, for early warnings; never when absent
	Verification   jsontext.Value `json:"verification,omitzero"`      // of a free type: its dry request, as in a component.json; without it the credential is saved unverified
}

// ForStep names the step of a flow for which a credential is created.
type ForStep struct {
	Flow string `json:"flow"`
	Step string `json:"step"`
}

// ErrIDReserved refuses the id of a new credential that is a word of a surface's paths.
var ErrIDReserved = fault.New(fault.Invalid, "credential_id_reserved", "This id is reserved. Choose another one.")

// reserved ids would collide with words in the paths of Aspire's API, for the same methods.
var reserved = []string{"export", "exportAll", "getAll", "updateAll", "delete", "deleteAll", "policies"}

// check validates the form of the request.
func (in Create) check() error {
	if in.ID != "" {
		if err := commands.CheckRef("/id", in.ID); err != nil {
			return err
		}
		if slices.Contains(reserved, in.ID) {
			return ErrIDReserved.At("/id")
		}
	}
	switch {
	case in.Type == "":
		if err := service.Required("/component", in.Component); err != nil {
			return err
		}
	case in.Component != "":
		return service.ErrBody.Withf("Give either component or type.").At("/type")
	default:
		if err := commands.CheckType(in.Type); err != nil {
			return err
		}
	}
	return cmp.Or(commands.CheckRef("/workspace", in.Workspace), commands.CheckRef("/vpn_agent", in.VPNAgent), commands.CheckDescription(in.Description))
}

// resolveType replaces a type that is the id of one of the tenant's own components by that
// component. A component of another tenant must be given as component: otherwise its owner
// could choose an id that others use as a type, and would be sent their secrets.
func (s *Service) resolveType(ctx context.Context, tenant string, in *Create) error {
	if in.Type != "" {
		own, err := s.Components.Owned(ctx, tenant, in.Type)
		if err != nil {
			return err
		}
		if own {
			in.Component, in.Type = in.Type, ""
		}
	}
	if in.Type == "" && (len(in.Hosts) > 0 || len(in.Verification) > 0) {
		return service.ErrBody.Withf("The component declares the hosts and the verification of its credentials. Omit hosts and verification.").At("/verification")
	}
	return nil
}

func (s *Service) createCredential(ctx context.Context, call *service.Call, in Create) (service.Done, error) {
	if err := in.check(); err != nil {
		return service.Done{}, err
	}
	expires, err := s.declaredExpiry(in.Expires)
	if err != nil {
		return service.Done{}, err
	}
	target := cmp.Or(in.Component, in.Type)
	if err := s.resolveType(ctx, call.Tenant, &in); err != nil {
		return service.Done{}, err
	}
	if err := s.Kernel.CheckNew(ctx, call, in.ID, in.Component, in.Workspace); err != nil {
		return service.Done{}, err
	}
	forStep, err := s.CheckFor(ctx, call, in)
	if err != nil {
		return service.Done{}, err
	}
	if in.Keys, err = s.Secrets.UnsealKeys(ctx, call, "credential.create", target, in.Keys, in.KeysSealed); err != nil {
		return service.Done{}, err
	}
	id := cmp.Or(in.ID, call.DeriveID("credential/"+target))
	d, revision, free, err := s.describe(ctx, call.Tenant, in)
	if err != nil {
		return service.Done{}, err
	}
	if in.Name == "" {
		in.Name = in.Description
		if commands.CheckName("", in.Name) != nil {
			in.Name = DefaultName(cmp.Or(d.Title, in.Type), call.DeriveID("credential/"+target))
		}
	}
	if err := service.CheckName("/name", in.Name); err != nil {
		return service.Done{}, err
	}
	fields, keys, err := s.TryKeys(ctx, call.Tenant, in.Component, d, revision, in.Keys.Fields, KnownHost{})
	if err != nil {
		return service.Done{}, err
	}
	keys.Free, keys.Expires = free, expires
	return s.saveWithPolicy(ctx, call, in.ThrottlePolicy, id, func(use commands.PolicyUse) (service.Done, error) {
		return s.Save(ctx, call, id, fields, func(secretID string) commands.Credential {
			keys.SecretID = secretID
			return commands.CreateCredential{
				ID: id, Component: in.Component, Name: in.Name, Description: in.Description, Workspace: in.Workspace, VPNAgent: in.VPNAgent,
				Keys: keys, Policy: use, For: forStep,
			}
		})
	})
}

// describe returns the descriptor of a new credential's keys: that of its component, or one
// made from the request for a free type.
func (s *Service) describe(ctx context.Context, tenant string, in Create) (d commands.Descriptor, revision int, free *commands.FreeType, err error) {
	if in.Type != "" {
		free = &commands.FreeType{Name: in.Type, Shape: secrets.Shape(in.Keys.Fields)}
		if free.Rules, err = commands.FreeRules(in.Hosts, in.Verification, in.Keys.Names()); err == nil {
			d, err = commands.FreeDescriptor(free, in.Keys.Names())
		}
		return d, 0, free, err
	}
	if d, revision, err = s.Components.UsableAt(ctx, tenant, in.Component, "/component", in.Expected); err != nil {
		return d, revision, nil, err
	}
	kind, err := s.Components.ClientOf(ctx, tenant, in.Component, d)
	if err == nil && kind == component.ClientMissing {
		err = client.Missing(d).At("/component")
	}
	return d, revision, nil, err
}

// CheckFor validates the step for which a credential is created, as far as the flow is known.
func (s *Service) CheckFor(ctx context.Context, call *service.Call, in Create) (*commands.StepOfFlow, error) {
	if in.For == nil {
		return nil, nil //nolint:nilnil // for no step
	}
	if err := flow.CheckFlow("/for/flow", in.For.Flow); err != nil {
		return nil, err
	}
	if err := flow.CheckFlow("/for/step", in.For.Step); err != nil {
		return nil, err
	}
	flow, err := aggregates.Flow.Fresh(ctx, s.Log, aggregates.Flow.Stream(call.Tenant, in.For.Flow))
	if err != nil {
		return nil, err
	}
	used := flow.Value.Credentials()
	reached, err := service.Reached(ctx, s.Kernel, call, used, func(id string) string { return id })
	switch {
	case err != nil:
		return nil, err
	case len(reached) < len(used):
		return nil, aggregates.ErrFlowBeyondScope.At("/for/flow")
	}
	for _, step := range flow.Value.Steps {
		if step.ID == in.For.Step && step.Component != cmp.Or(in.Component, in.Type) {
			return nil, aggregates.ErrCredentialComponentMismatch.At("/for/step")
		}
	}
	return &commands.StepOfFlow{Flow: in.For.Flow, Step: in.For.Step}, nil
}

// DefaultName is the component's title and the start of the credential's id.
func DefaultName(title, id string) string {
	if title == "" {
		title = "Credential"
	}
	if r := []rune(title); len(r) > 180 {
		title = string(r[:180])
	}
	return title + " " + id[:8]
}

type ReplaceKeys struct {
	ID         string       `json:"id"`
	Keys       secrets.Keys `json:"keys"`                       // replaces all values
	Expected   int          `json:"expected_version,omitzero"`  // refuse unless this is the version of the current keys
	DryRun     bool         `json:"dry_run,omitzero"`           // make the dry request and show the impact; save nothing
	KeysSealed string       `json:"keys_sealed,omitzero"`       // in place of keys: encrypted to the service key, as required in the queue
	Revision   int          `json:"expected_revision,omitzero"` // refuse unless this is the revision of the component's current descriptor
	Expires    *time.Time   `json:"expires_at,omitzero"`        // when the keys expire at the provider, for early warnings; never when absent
	HostKey    string       `json:"host_key,omitzero"`          // accept this key of an SSH server, "ssh-ed25519 SHA256:...", in place of the recorded one
}

// ErrHostKey rejects a host key that is none.
var ErrHostKey = fault.New(fault.Invalid, "host_key_invalid", "host_key must be the type of a key and its fingerprint, such as ssh-ed25519 SHA256: and 43 characters.")

var hostKeyForm = regexp.MustCompile(`^(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)) SHA256:[A-Za-z0-9+/]{43}$`)

// KnownHost is the host key of an SSH server that a dry request accepts. The zero value accepts any,
// and the credential records the one that it met.
type KnownHost struct {
	Key string
	mac string // of the values of the host that Key belongs to
	any bool   // whatever the host
}

// HostOf returns the host key that a credential recorded. It belongs to its host: keys for another one
// meet that one for the first time.
func HostOf(state aggregates.CredentialState) KnownHost {
	return KnownHost{Key: state.HostKey, mac: state.Current().HostMAC}
}

// acceptedHost returns the host key that a caller accepts, or else the recorded one. It returns
// ErrHostKey.
func acceptedHost(state aggregates.CredentialState, accept string) (KnownHost, error) {
	switch {
	case accept == "":
		return HostOf(state), nil
	case !hostKeyForm.MatchString(accept):
		return KnownHost{}, ErrHostKey.At("/host_key")
	}
	return KnownHost{Key: accept, any: true}, nil
}

// ErrExpires rejects a declared expiry that cannot be warned of.
var ErrExpires = fault.New(fault.Invalid, "credential_expires_invalid", "expires_at must be a time in the future, before the year 10000.")

// declaredExpiry is the stored form of a declared expiry; zero if none was declared.
func (s *Service) declaredExpiry(declared *time.Time) (at time.Time, err error) {
	if declared == nil {
		return at, nil
	}
	at = declared.UTC().Truncate(time.Microsecond)
	if !at.After(s.Kernel.Now()) || at.Year() > 9999 {
		return at, ErrExpires.At("/expires_at")
	}
	return at, nil
}

func (s *Service) replaceKeys(ctx context.Context, call *service.Call, in ReplaceKeys) (flow.Tried, error) {
	return s.replace(ctx, call, in, commands.CredentialSettings{})
}

// replace replaces the keys of a credential and changes its settings in the same commit.
func (s *Service) replace(ctx context.Context, call *service.Call, in ReplaceKeys, settings commands.CredentialSettings) (flow.Tried, error) {
	expires, err := s.declaredExpiry(in.Expires)
	if err != nil {
		return flow.Tried{}, err
	}
	state, err := s.Secrets.Live(ctx, call.Tenant, in.ID, in.Expected)
	if err != nil {
		return flow.Tried{}, err
	}
	if in.Keys, err = s.Secrets.UnsealKeys(ctx, call, "credential.replace-keys", in.ID, in.Keys, in.KeysSealed); err != nil {
		return flow.Tried{}, err
	}
	var d commands.Descriptor
	revision, free := 0, state.Free(state.Current().Version)
	if free != nil {
		free.Shape = secrets.Shape(in.Keys.Fields)
		d, err = commands.FreeDescriptor(free, in.Keys.Names())
	} else {
		d, revision, err = s.Components.UsableAt(ctx, call.Tenant, state.Component, "", in.Revision)
	}
	if err != nil {
		return flow.Tried{}, err
	}
	host, err := acceptedHost(state, in.HostKey)
	if err != nil {
		return flow.Tried{}, err
	}
	fields, keys, err := s.TryKeys(ctx, call.Tenant, state.Component, d, revision, in.Keys.Fields, host)
	if in.DryRun {
		return s.tryReplaceKeys(ctx, call, in, state, keys.Verification, err)
	}
	if err != nil {
		return flow.Tried{}, err
	}
	keys.Free, keys.Expires = free, expires
	done, err := s.Save(ctx, call, in.ID, fields, func(secretID string) commands.Credential {
		keys.SecretID = secretID
		return commands.ReplaceKeys{ID: in.ID, Expected: in.Expected, Keys: keys, CredentialSettings: settings}
	})
	return flow.Tried{Done: done}, err
}

// descriptorOf returns the descriptor under which a version of the keys was entered.
func (s *Service) descriptorOf(ctx context.Context, state aggregates.CredentialState, v events.KeysVersion) (commands.Descriptor, error) {
	if state.Type != "" {
		return commands.FreeDescriptor(state.Free(v.Version), v.Fields)
	}
	return s.Components.Descriptor(ctx, state.Component, v.Revision)
}

// TryKeys validates keys against the descriptor and makes the dry request. It returns the keys
// to store and their NewKeys, without the id of the secret. For a free type, component is "".
func (s *Service) TryKeys(ctx context.Context, tenant, component string, d commands.Descriptor, revision int, keys seal.Fields, known KnownHost) (seal.Fields, commands.NewKeys, error) {
	if component != "" {
		if err := d.CheckKeys(keys.Names()); err != nil {
			return keys, commands.NewKeys{}, err
		}
	}
	if err := secrets.CheckMask(keys); err != nil {
		return keys, commands.NewKeys{}, err
	}
	keys, tokens, err := s.Tokens.ExtractTokens(ctx, tenant, component, d, keys)
	if err != nil {
		return keys, commands.NewKeys{}, err
	}
	mac, err := s.hostMAC(ctx, tenant, d, keys)
	if err != nil {
		return keys, commands.NewKeys{}, err
	}
	if !known.any && known.mac != mac {
		known = KnownHost{}
	}
	result, err := s.dryRun(ctx, tenant, d, keys, known)
	if err != nil {
		return keys, commands.NewKeys{}, err
	}
	if result.verification.Status == events.Failed {
		return keys, commands.NewKeys{}, ErrVerificationFailed.Withf("Nothing was saved: %s", result.says).
			With(map[string]string{"outcome": result.verification.Outcome})
	}
	return keys, commands.NewKeys{
		Fields: keys.Names(), Revision: revision, Hosts: d.Hosts, HostMAC: mac, Verification: result.verification, HostKey: result.hostKey, Tokens: tokens,
	}, nil
}

// hostMAC is a MAC of the values that are part of a host. It detects a change of
// them without storing them in the log.
func (s *Service) hostMAC(ctx context.Context, tenant string, d commands.Descriptor, keys seal.Fields) (string, error) {
	parts := []string{"credstream/hosts/1"}
	for _, template := range d.HostTemplates() {
		value, err := verify.Fill(template, token.ProbeValues(d, keys))
		if err != nil {
			return "", err
		}
		parts = append(parts, strings.Trim(template, "{}"), value)
	}
	if len(parts) == 1 {
		return "", nil
	}
	mac, err := s.Keyring.MAC(ctx, tenant, events.LengthPrefixed(parts...))
	if err != nil {
		return "", fmt.Errorf("mac of the hosts: %w", err)
	}
	return hex.EncodeToString(mac[:16]), nil
}

// Save stores the secret in the vault and executes the command that references it.
func (s *Service) Save(ctx context.Context, call *service.Call, id string, keys seal.Fields, cmd func(secretID string) commands.Credential) (done service.Done, err error) {
	owner := vault.Ref{Tenant: call.Tenant, Category: aggregates.Credential.Category, Owner: id}
	err = s.Secrets.WithSecret(ctx, owner, keys.Marshal(), func(secretID string) error {
		done, err = s.Secrets.ChangeCredential(ctx, call, cmd(secretID))
		return err
	})
	return done, err
}

// ErrNothingToChange refuses an update that changes nothing.
var ErrNothingToChange = fault.New(fault.Invalid, "credential_update_empty", "Give at least one of description, keys and throttle_policy.")

// Update changes the description, the keys or the throttle policy of a credential, or several
// of them in one commit. Absent members are unchanged.
type Update struct {
	ID             string        `json:"id"`
	Description    *string       `json:"description,omitzero"`      // free text, up to 1000 characters; none when ""
	Keys           *secrets.Keys `json:"keys,omitzero"`             // replaces all values, verified before
	ThrottlePolicy *string       `json:"throttle_policy,omitzero"`  // id of the policy; none when ""
	Expected       int           `json:"expected_version,omitzero"` // with keys: refuse unless this is the version of the current keys
}

func (s *Service) updateCredential(ctx context.Context, call *service.Call, in Update) (service.Done, error) {
	if in.Description != nil {
		if err := commands.CheckDescription(*in.Description); err != nil {
			return service.Done{}, err
		}
	}
	if in.Description == nil && in.Keys == nil && in.ThrottlePolicy == nil {
		return service.Done{}, ErrNothingToChange
	}
	if err := service.CheckTarget(in.ID, in.Expected); err != nil {
		return service.Done{}, err
	}
	update := func(settings commands.CredentialSettings) (service.Done, error) {
		if in.Keys != nil {
			tried, err := s.replace(ctx, call, ReplaceKeys{ID: in.ID, Keys: *in.Keys, Expected: in.Expected}, settings)
			return tried.Done, err
		}
		return s.Secrets.ChangeCredential(ctx, call, commands.UpdateCredential{ID: in.ID, CredentialSettings: settings})
	}
	settings := commands.CredentialSettings{Description: in.Description}
	if in.ThrottlePolicy == nil {
		return update(settings)
	}
	return s.withPolicy(ctx, call, in.ID, *in.ThrottlePolicy, func(use commands.PolicyUse) (service.Done, error) {
		settings.Policy = &use
		return update(settings)
	})
}

type Revert struct {
	ID       string `json:"id"`
	Version  int    `json:"version"`                   // the version to revert to
	Expected int    `json:"expected_version,omitzero"` // refuse unless this is the version of the current keys
}

func (s *Service) revertCredential(ctx context.Context, call *service.Call, in Revert) (service.Done, error) {
	if in.Version < 1 {
		return service.Done{}, service.ErrMissing.Withf("The version to revert to is required.").At("/version")
	}
	state, err := s.Secrets.Live(ctx, call.Tenant, in.ID, in.Expected)
	if err != nil {
		return service.Done{}, err
	}
	to, kept := state.Version(in.Version)
	now := state.Current()
	switch {
	case !kept:
		return service.Done{}, aggregates.ErrCredentialVersionNotFound.At("/version")
	case to.Version == now.Version: // nothing to change: these keys are sent nowhere
		done, err := s.Secrets.ChangeCredential(ctx, call, commands.RevertCredential{ID: in.ID, Expected: now.Version, To: in.Version})
		if in.Expected == 0 && errors.Is(err, aggregates.ErrCredentialVersionStale) {
			return s.revertCredential(ctx, call, in) // other keys were activated meanwhile
		}
		return done, err
	case state.Tokens.Field != "": // before the dry request, which could use up a refresh token
		return service.Done{}, aggregates.ErrRevertOAuth
	case to.HostMAC != now.HostMAC || !slices.Equal(to.Hosts, now.Hosts): // the aggregate decides again
		return service.Done{}, aggregates.ErrCredentialHostsChanged
	}
	if state.Type == "" {
		if _, _, err := s.Components.Usable(ctx, call.Tenant, state.Component); err != nil {
			return service.Done{}, err
		}
	}
	// Use the descriptor of that version: its hosts, its probe and its masked
	// fields. Later changes by the component's owner apply only to keys
	// that were entered after them.
	d, err := s.descriptorOf(ctx, state, to)
	if err != nil {
		return service.Done{}, err
	}
	fields, err := s.Secrets.Open(ctx, call.Tenant, in.ID, to)
	if err != nil {
		return service.Done{}, err
	}
	_, keys, err := s.TryKeys(ctx, call.Tenant, state.Component, d, to.Revision, fields, HostOf(state))
	if err != nil {
		return service.Done{}, err
	}
	keys.SecretID = to.SecretID
	return s.Secrets.ChangeCredential(ctx, call, commands.RevertCredential{ID: in.ID, Expected: in.Expected, To: in.Version, Keys: keys})
}

type Verify struct {
	ID      string `json:"id"`
	HostKey string `json:"host_key,omitzero"` // accept this key of an SSH server, "ssh-ed25519 SHA256:...", in place of the recorded one
}

func (s *Service) verifyCredential(ctx context.Context, call *service.Call, in Verify) (service.Done, error) {
	if err := service.CheckTarget(in.ID, 0); err != nil {
		return service.Done{}, err
	}
	live, err := s.Tokens.TokenGoodFor(ctx, call, in.ID, 0)
	if err != nil {
		return service.Done{}, err
	}
	state := live.Value
	now := state.Current()
	host, err := acceptedHost(state, in.HostKey)
	if err != nil {
		return service.Done{}, err
	}
	// Use the probe and hosts of the recorded revision: a later descriptor applies
	// only to versions of the keys that were verified against it.
	d, err := s.descriptorOf(ctx, state, now)
	if err != nil {
		return service.Done{}, err
	}
	fields, err := s.Tokens.ActiveKeys(ctx, call.Tenant, in.ID, state)
	if err != nil {
		return service.Done{}, err
	}
	result, err := s.dryRun(ctx, call.Tenant, d, fields, host)
	if err != nil {
		return service.Done{}, err
	}
	done, err := s.Secrets.ChangeCredential(ctx, call, commands.RecordVerification{
		ID: in.ID, Version: now.Version, Verification: result.verification, HostKey: result.hostKey,
	})
	if result.verification.Status == events.Failed {
		done.Says = result.says
	}
	return done, err
}

type Reveal struct {
	ID string `json:"id"`
}

type Revealed struct {
	service.Done
	Keys map[string]any `json:"keys"` // the clear values, by field
}

// revealCredential returns the values of one credential to a person. The audit event is
// committed first, and then an entry in the access log, which thus has everybody who got values.
func (s *Service) revealCredential(ctx context.Context, call *service.Call, in Reveal) (Revealed, error) {
	state, err := s.Secrets.Live(ctx, call.Tenant, in.ID, 0)
	if err != nil {
		return Revealed{}, err
	}
	fields, err := s.Tokens.ActiveKeys(ctx, call.Tenant, in.ID, state)
	if err != nil {
		return Revealed{}, err
	}
	done, err := s.Secrets.ChangeCredential(ctx, call, commands.RevealCredential{ID: in.ID, Version: state.Current().Version})
	if err != nil {
		return Revealed{}, err
	}
	if s.AccessLog == nil {
		return Revealed{}, ErrAccessLog
	}
	if err := s.AccessLog.Append(ctx, call.Tenant, AccessFact{
		Credential: in.ID, Version: state.Current().Version, Grant: grantOf(state), Actor: call.Principal.Actor,
		Via: call.Via, Cleartext: true, Time: s.Kernel.Now().UTC().Truncate(time.Microsecond), Kind: AccessRevealed,
	}); err != nil {
		return Revealed{}, fmt.Errorf("%w: credential %s: %w", ErrAccessLog, in.ID, err)
	}
	shown := Revealed{done, map[string]any{}}
	for _, name := range fields.Names() {
		if v, ok := fields.Get(name); ok {
			shown.Keys[name] = jsontext.Value(v.Reveal())
		}
	}
	return shown, nil
}

type Delete struct {
	ID       string `json:"id"`
	Expected int    `json:"expected_version,omitzero"` // refuse unless this is the version of the current keys
	DryRun   bool   `json:"dry_run,omitzero"`          // show the impact; delete nothing
}

// deleteCredential is refused while an active flow uses the credential: the uses are part of
// the credential's own stream, and the append checks them. The tokens are revoked at the
// provider; the response reports a failure if it is known in time.
func (s *Service) deleteCredential(ctx context.Context, call *service.Call, in Delete) (flow.Tried, error) {
	if err := service.CheckTarget(in.ID, in.Expected); err != nil {
		return flow.Tried{}, err
	}
	if in.DryRun {
		return s.tryDelete(ctx, call, in)
	}
	cmd := commands.DeleteCredential{ID: in.ID, Expected: in.Expected}
	done, state, err := s.Grants.EndCredential(ctx, call, cmd)
	if errors.Is(err, aggregates.ErrCredentialInUse) {
		expired, lapse := s.Flows.ExpireHolders(ctx, call, in.ID, state)
		switch {
		case lapse != nil:
			return flow.Tried{}, lapse
		case expired:
			done, state, err = s.Grants.EndCredential(ctx, call, cmd)
		}
	}
	if errors.Is(err, aggregates.ErrCredentialInUse) {
		return flow.Tried{}, s.Flows.InUse(ctx, call, state)
	}
	if err == nil {
		s.releasePolicy(ctx, call, state)
	}
	return flow.Tried{Done: done}, err
}

// outcome is the result of a dry request.
type outcome struct {
	verification events.Verification
	says         string // why it failed, in a plain sentence
	hostKey      string // of the SSH server that accepted the keys
}

// dryRun makes the dry request of the descriptor with the values. Without one, the credential
// stays unverified.
func (s *Service) dryRun(ctx context.Context, tenant string, d commands.Descriptor, keys seal.Fields, host KnownHost) (outcome, error) {
	if d.Verification == nil {
		return outcome{verification: events.Verification{Status: events.Unverified}}, nil
	}
	result, err := s.Verify.Run(ctx, tenant, probe(d, host), token.ProbeValues(d, keys))
	if err != nil {
		return outcome{}, err
	}
	s.verified.WithLabelValues(result.Probe, result.Outcome).Inc()
	v := events.Verification{
		Status: events.Verified, Probe: result.Probe, Outcome: result.Outcome, LatencyMS: result.Latency.Milliseconds(),
	}
	if !result.OK {
		v.Status = events.Failed
	}
	if !result.OK {
		result.HostKey = "" // nothing was accepted
	}
	return outcome{v, result.Says, result.HostKey}, nil
}

// probe converts the descriptor's dry request to a verify.Probe.
func probe(d commands.Descriptor, host KnownHost) verify.Probe {
	p := verify.Probe{Hosts: d.Hosts}
	switch v := d.Verification; {
	case v.HTTP != nil:
		p.HTTP = &verify.HTTP{
			Method: v.HTTP.Method, URL: v.HTTP.URL, AllowHTTP: v.HTTP.AllowHTTP, Headers: v.HTTP.Headers, Form: v.HTTP.Form, JSON: v.HTTP.JSON,
			Expect: v.HTTP.Expect.Status, Says: v.HTTP.Says,
		}
		for _, check := range v.HTTP.Expect.JSON {
			p.HTTP.Checks = append(p.HTTP.Checks, verify.Check{Condition: token.Condition(check.Condition), Says: check.Says})
		}
		for _, check := range v.HTTP.Expect.Text {
			p.HTTP.Checks = append(p.HTTP.Checks, verify.Check{Contains: check.Contains, Says: check.Says})
		}
		if files := v.HTTP.TLS; files != nil {
			p.HTTP.TLS = (*verify.TLSFiles)(files)
		}
		if b := v.HTTP.Basic; b != nil {
			p.HTTP.Basic = &verify.Basic{Username: b.Username, Password: b.Password}
		}
	case v.TCP != nil:
		p.TCP = new(verify.TCP(*v.TCP))
	case v.TLS != nil:
		p.TLS = &verify.TLS{TCP: verify.TCP(v.TLS.TCPProbe), TLSFiles: verify.TLSFiles(v.TLS.TLSFiles)}
	}
	if protocol, l := d.Verification.Login(); l != nil {
		p.Login = &verify.Login{
			Protocol: protocol, TCP: verify.TCP(l.TCPProbe), TLSFiles: verify.TLSFiles(l.TLSFiles), Implicit: l.Security == "tls",
			Username: l.Username, Password: l.Password, Database: l.Database, PrivateKey: l.PrivateKey, HostKey: host.Key,
		}
	}
	return p
}

// CheckVPNAgent returns events.ErrID at /vpn_agent for an invalid id of
// a VPN agent. It is for edges that send several commands.
func CheckVPNAgent(id string) error { return commands.CheckRef("/vpn_agent", id) }

// CheckName returns ErrName at /name for an invalid name of a
// credential. It is for edges that send several commands.
func CheckName(name string) error { return service.CheckName("/name", name) }
