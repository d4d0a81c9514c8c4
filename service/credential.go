package service

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/vault"
	"github.com/credstream/credstream/verify"
)

// ErrVerificationFailed refuses keys that the dry request found useless.
var ErrVerificationFailed = fault.New(fault.Unprocessable, "credential_verification_failed",
	"The dry request failed, so nothing was saved.")

// ErrKeysMasked refuses the mask as a value.
var ErrKeysMasked = fault.New(fault.Invalid, "keys_masked",
	"The mask ******** is not a value. Enter the value itself.")

// ErrName refuses what people cannot call a thing.
var ErrName = fault.New(fault.Invalid, "name_invalid", "A name must have 1 to 200 characters and no control characters.")

// Mask stands in answers for a secret value, and is refused as one.
const Mask = "********"

// Keys is the object of clear values in a request. It cannot be printed.
type Keys struct{ seal.Fields }

// UnmarshalJSON implements json.Unmarshaler. Its errors do not quote the input.
func (k *Keys) UnmarshalJSON(b []byte) error {
	fields, err := seal.ParseFields(b)
	k.Fields = fields
	return pointAt(err, "/keys")
}

// CreateCredential asks for a new credential.
type CreateCredential struct {
	Component  string   `json:"component"`
	Name       string   `json:"name,omitzero"`              // for people; made from the component's title when absent
	Keys       Keys     `json:"keys"`                       // a value for each field of the component's descriptor
	Workspace  string   `json:"workspace,omitzero"`         // an id of the caller's, kept as given
	VPNAgent   string   `json:"vpn_agent,omitzero"`         // an id of the caller's, kept as given: through which VPN agent a flow engine reaches the API
	For        *ForStep `json:"for,omitzero"`               // the step of a flow it is made for: the use is recorded with it
	KeysSealed string   `json:"keys_sealed,omitzero"`       // in place of keys: sealed to the service's key, as the queue takes them
	Expected   int      `json:"expected_revision,omitzero"` // refuse when the component's descriptor in force has another revision
}

// ForStep names the step of a flow that a credential is made for.
type ForStep struct {
	Flow string `json:"flow"`
	Step string `json:"step"`
}

func (s *Service) createCredential(ctx context.Context, call *Call, in CreateCredential) (Done, error) {
	if err := required("/component", in.Component); err != nil {
		return Done{}, err
	}
	if in.Workspace != "" && events.CheckID(in.Workspace) != nil {
		return Done{}, events.ErrID.At("/workspace")
	}
	if err := checkVPNAgent(in.VPNAgent); err != nil {
		return Done{}, err
	}
	forStep, err := s.checkFor(ctx, call, in)
	if err != nil {
		return Done{}, err
	}
	if in.Keys, err = s.unsealKeys(ctx, call, "credential.create", in.Component, in.Keys, in.KeysSealed); err != nil {
		return Done{}, err
	}
	d, revision, err := s.usableAt(ctx, call.Tenant, in.Component, "/component", in.Expected)
	if err != nil {
		return Done{}, err
	}
	kind, err := s.clientOf(ctx, call.Tenant, in.Component, d)
	if err != nil {
		return Done{}, err
	}
	if kind == clientMissing {
		return Done{}, ErrOAuthClientMissing.At("/component")
	}
	id := call.deriveID("credential/" + in.Component)
	if in.Name == "" {
		in.Name = defaultName(d.Title, id)
	}
	if err := checkName("/name", in.Name); err != nil {
		return Done{}, err
	}
	fields, keys, err := s.tryKeys(ctx, call.Tenant, in.Component, d, revision, in.Keys.Fields)
	if err != nil {
		return Done{}, err
	}
	return s.save(ctx, call, id, fields, func(secretID string) commands.Credential {
		keys.SecretID = secretID
		return commands.CreateCredential{
			ID: id, Component: in.Component, Name: in.Name, Workspace: in.Workspace, VPNAgent: in.VPNAgent, Keys: keys, For: forStep,
		}
	})
}

// checkFor checks the step a credential is made for, as far as the flow is known.
func (s *Service) checkFor(ctx context.Context, call *Call, in CreateCredential) (*commands.StepOfFlow, error) {
	if in.For == nil {
		return nil, nil //nolint:nilnil // for no step
	}
	if err := checkFlow("/for/flow", in.For.Flow); err != nil {
		return nil, err
	}
	if err := checkFlow("/for/step", in.For.Step); err != nil {
		return nil, err
	}
	flow, err := aggregates.Flow.Fresh(ctx, s.cfg.Log, aggregates.Flow.Stream(call.Tenant, in.For.Flow))
	if err != nil {
		return nil, err
	}
	for _, step := range flow.Value.Steps {
		if step.ID == in.For.Step && step.Component != in.Component {
			return nil, aggregates.ErrCredentialComponentMismatch.At("/for/step")
		}
	}
	return &commands.StepOfFlow{Flow: in.For.Flow, Step: in.For.Step}, nil
}

// defaultName is the component's title and the start of the credential's id.
func defaultName(title, id string) string {
	if title == "" {
		title = "Credential"
	}
	if r := []rune(title); len(r) > 180 {
		title = string(r[:180])
	}
	return title + " " + id[:8]
}

// checkName bounds what people call a thing.
func checkName(pointer, name string) error {
	// Format characters turn text around or hide in it; two of them join letters.
	control := func(r rune) bool {
		return unicode.IsControl(r) || r == 0x2028 || r == 0x2029 || unicode.Is(unicode.Cf, r) && r != 0x200c && r != 0x200d
	}
	n := utf8.RuneCountInString(name)
	if n < 1 || n > 200 || bytes.ContainsFunc([]byte(name), control) {
		return ErrName.At(pointer)
	}
	return nil
}

func pointAt(err error, pointer string) error {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return f.At(pointer)
	}
	return err
}

// ReplaceKeys asks for new keys.
type ReplaceKeys struct {
	ID         string `json:"id"`
	Keys       Keys   `json:"keys"`                       // replaces all values
	Expected   int    `json:"expected_version,omitzero"`  // refuse when the keys in force have another version
	DryRun     bool   `json:"dry_run,omitzero"`           // make the dry request and say what would change; save nothing
	KeysSealed string `json:"keys_sealed,omitzero"`       // in place of keys: sealed to the service's key, as the queue takes them
	Revision   int    `json:"expected_revision,omitzero"` // refuse when the component's descriptor in force has another revision
}

func (s *Service) replaceKeys(ctx context.Context, call *Call, in ReplaceKeys) (Done, error) {
	state, err := s.live(ctx, call.Tenant, in.ID, in.Expected)
	if err != nil {
		return Done{}, err
	}
	if in.Keys, err = s.unsealKeys(ctx, call, "credential.replace-keys", in.ID, in.Keys, in.KeysSealed); err != nil {
		return Done{}, err
	}
	d, revision, err := s.usableAt(ctx, call.Tenant, state.Component, "", in.Revision)
	if err != nil {
		return Done{}, err
	}
	fields, keys, err := s.tryKeys(ctx, call.Tenant, state.Component, d, revision, in.Keys.Fields)
	if in.DryRun {
		return s.tryReplaceKeys(ctx, call, in, state, keys.Verification, err)
	}
	if err != nil {
		return Done{}, err
	}
	return s.save(ctx, call, in.ID, fields, func(secretID string) commands.Credential {
		keys.SecretID = secretID
		return commands.ReplaceKeys{ID: in.ID, Expected: in.Expected, Keys: keys}
	})
}

// live returns the state of a credential that exists, or
// aggregates.ErrCredentialNotFound or ErrCredentialVersionStale.
func (s *Service) live(ctx context.Context, tenant, id string, expected int) (aggregates.CredentialState, error) {
	var none aggregates.CredentialState
	if err := checkCredential(id, expected); err != nil {
		return none, err
	}
	state, err := aggregates.Credential.Fresh(ctx, s.cfg.Log, aggregates.Credential.Stream(tenant, id))
	switch {
	case err != nil:
		return none, err
	case !state.Value.Live():
		return none, aggregates.ErrCredentialNotFound
	case expected != 0 && expected != state.Value.Current().Version:
		return none, aggregates.ErrCredentialVersionStale
	}
	return state.Value, nil
}

// tryKeys checks keys against the descriptor and makes the dry request. It returns
// the keys as they are to be stored, and what is known of them but for the id of
// the secret.
func (s *Service) tryKeys(ctx context.Context, tenant, component string, d commands.Descriptor, revision int, keys seal.Fields) (seal.Fields, commands.NewKeys, error) {
	if err := d.CheckKeys(keys.Names()); err != nil {
		return keys, commands.NewKeys{}, err
	}
	if err := checkMask(keys); err != nil {
		return keys, commands.NewKeys{}, err
	}
	keys, tokens, err := s.takeTokens(ctx, tenant, component, d, keys)
	if err != nil {
		return keys, commands.NewKeys{}, err
	}
	result, err := s.dryRun(ctx, tenant, d, keys)
	if err != nil {
		return keys, commands.NewKeys{}, err
	}
	if result.verification.Status == events.Failed {
		return keys, commands.NewKeys{}, ErrVerificationFailed.Because("Nothing was saved: %s", result.says).
			With(map[string]string{"outcome": result.verification.Outcome})
	}
	mac, err := s.hostMAC(ctx, tenant, d, keys)
	if err != nil {
		return keys, commands.NewKeys{}, err
	}
	return keys, commands.NewKeys{
		Fields: keys.Names(), Revision: revision, Hosts: d.Hosts, HostMAC: mac, Verification: result.verification, Tokens: tokens,
	}, nil
}

// checkMask refuses the mask as a value.
func checkMask(keys seal.Fields) error {
	for _, name := range keys.Names() {
		if v, _ := keys.Get(name); bytes.Contains(v.Reveal(), []byte(`"`+Mask+`"`)) {
			return ErrKeysMasked.At("/keys/" + escapePointer(name))
		}
	}
	return nil
}

func escapePointer(name string) string {
	return string(jsontext.Pointer("").AppendToken(name))[1:]
}

// hostMAC fingerprints the values that make up a host, so that a change of them
// is noticed without the log holding them.
func (s *Service) hostMAC(ctx context.Context, tenant string, d commands.Descriptor, keys seal.Fields) (string, error) {
	parts := []string{"credstream/hosts/1"}
	for _, name := range d.HostFields() {
		v, _ := keys.Text(name)
		parts = append(parts, name, string(v.Reveal()))
	}
	if len(parts) == 1 {
		return "", nil
	}
	mac, err := s.cfg.Keyring.MAC(ctx, tenant, events.LengthPrefixed(parts...))
	if err != nil {
		return "", fmt.Errorf("mac of the hosts: %w", err)
	}
	return hex.EncodeToString(mac[:16]), nil
}

// save puts the secret into the vault and executes the command that names it.
func (s *Service) save(ctx context.Context, call *Call, id string, keys seal.Fields, cmd func(secretID string) commands.Credential) (done Done, err error) {
	owner := vault.Ref{Tenant: call.Tenant, Category: aggregates.Credential.Category, Owner: id}
	err = s.withSecret(ctx, owner, keys.Marshal(), func(secretID string) error {
		done, err = s.changeCredential(ctx, call, cmd(secretID))
		return err
	})
	return done, err
}

// withSecret puts a secret into the vault, durable, and then does what names it.
// When that is refused the secret goes again; when its outcome is not known the
// collector finds out.
func (s *Service) withSecret(ctx context.Context, ref vault.Ref, secret seal.Secret, do func(secretID string) error) error {
	for {
		ref.SecretID = events.NewID()
		begin := s.now()
		if err := s.cfg.Vault.Put(ctx, ref, secret); err != nil {
			return fmt.Errorf("put the secret of %s %s: %w", ref.Category, ref.Owner, err)
		}
		s.metrics.sealed.Observe(s.now().Sub(begin).Seconds())
		err := do(ref.SecretID)
		if err != nil && definite(err) {
			s.erase(ctx, ref)
		}
		if !errors.Is(err, aggregates.ErrSecretAbandoned) {
			return err
		}
	}
}

// definite reports whether err means that nothing was appended. Anything that
// is not plainly a refusal may hide a commit that names the secret.
func definite(err error) bool {
	if _, repeated := errors.AsType[*repeat](err); repeated {
		return true
	}
	f, ok := errors.AsType[*fault.Error](err)
	return ok && f.Kind != fault.Unavailable && f.Kind != fault.Internal
}

// changeCredential executes a command and erases what no kept version names any
// more.
func (s *Service) changeCredential(ctx context.Context, call *Call, cmd commands.Credential) (Done, error) {
	done, _, err := s.decideCredential(ctx, call, cmd)
	return done, err
}

// decideCredential is changeCredential that also tells on which state the
// command was decided.
func (s *Service) decideCredential(ctx context.Context, call *Call, cmd commands.Credential) (Done, aggregates.CredentialState, error) {
	before, after, err := change(ctx, s, call, aggregates.Credential, call.Tenant, cmd)
	if err != nil {
		return Done{}, before, err
	}
	return credentialDone(call.Tenant, cmd.Target(), before, after), before, nil
}

// eraseAll removes secrets from the vault now. An error means that some are left.
func (s *Service) eraseAll(ctx context.Context, refs []vault.Ref) error {
	var errs []error
	for _, ref := range refs {
		errs = append(errs, s.cfg.Vault.Erase(ctx, ref))
	}
	err := errors.Join(errs...)
	if err != nil {
		s.secretsLeft.Store(true)
		s.cfg.Logger.WarnContext(ctx, "secret not erased; process manager will retry", "tenant", refs[0].Tenant, "owner", refs[0].Owner, "err", err)
	}
	return err
}

func credentialDone(tenant, id string, before aggregates.CredentialState, after aggregates.State[aggregates.CredentialState]) Done {
	return answered(aggregates.Credential.Stream(tenant, id), before, after.Value, after.Seq)
}

func statusOf(s aggregates.CredentialState) events.Status {
	if !s.Live() {
		return ""
	}
	return s.Status
}

// erase removes a secret that no event names from the vault now; what it cannot erase
// the collector erases later.
func (s *Service) erase(ctx context.Context, ref vault.Ref) {
	if err := s.cfg.Vault.Erase(ctx, ref); err != nil {
		s.secretsLeft.Store(true)
		s.cfg.Logger.WarnContext(ctx, "secret not erased; collector will retry", "tenant", ref.Tenant, "owner", ref.Owner, "err", err)
	}
}

// open reads the clear values of one version.
func (s *Service) open(ctx context.Context, tenant, id string, v events.KeysVersion) (seal.Fields, error) {
	if v.SecretID == "" { // its tokens were revoked, and the keys they came in are erased
		return seal.Fields{}, aggregates.ErrReauthorizationRequired.Because("%s", aggregates.RevokedHere)
	}
	secret, err := s.cfg.Vault.Get(ctx, credentialRef(tenant, id, v.SecretID))
	if errors.Is(err, vault.ErrNoSecret) {
		return seal.Fields{}, s.letGo(ctx, tenant, id, v.SecretID)
	}
	if err != nil {
		return seal.Fields{}, fmt.Errorf("open the secret of %s version %d: %w", id, v.Version, err)
	}
	return seal.ParseFields(secret.Reveal())
}

// letGo says why a secret is not in the vault: it was let go since the caller
// looked, or it is lost, which nobody outside can mend.
func (s *Service) letGo(ctx context.Context, tenant, id, secretID string) error {
	if state, err := s.live(ctx, tenant, id, 0); err != nil || !state.Names(secretID) {
		return errors.Join(err, aggregates.ErrCredentialVersionStale)
	}
	return fmt.Errorf("the vault has no secret of %s", id)
}

// RenameCredential asks for another name.
type RenameCredential struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Expected int    `json:"expected_version,omitzero"` // refuse when the keys in force have another version
}

func (s *Service) renameCredential(ctx context.Context, call *Call, in RenameCredential) (Done, error) {
	if err := checkName("/name", in.Name); err != nil {
		return Done{}, err
	}
	if err := checkCredential(in.ID, in.Expected); err != nil {
		return Done{}, err
	}
	return s.changeCredential(ctx, call, commands.RenameCredential(in))
}

// SetVPNAgent asks for another VPN agent.
type SetVPNAgent struct {
	ID       string `json:"id"`
	VPNAgent string `json:"vpn_agent,omitzero"` // an id of the caller's, kept as given; none when absent
}

func (s *Service) setVPNAgent(ctx context.Context, call *Call, in SetVPNAgent) (Done, error) {
	if err := checkCredential(in.ID, 0); err != nil {
		return Done{}, err
	}
	if err := checkVPNAgent(in.VPNAgent); err != nil {
		return Done{}, err
	}
	return s.changeCredential(ctx, call, commands.SetVPNAgent(in))
}

func checkVPNAgent(id string) error {
	if id != "" && events.CheckID(id) != nil {
		return events.ErrID.At("/vpn_agent")
	}
	return nil
}

func checkCredential(id string, expected int) error {
	if err := required("/id", id); err != nil {
		return err
	}
	if err := events.CheckID(id); err != nil {
		return fault.Of(err).At("/id")
	}
	if expected < 0 {
		return ErrBody.Because("A version is a number from 1.").At("/expected_version")
	}
	return nil
}

// RevertCredential asks for the keys of an earlier version.
type RevertCredential struct {
	ID       string `json:"id"`
	Version  int    `json:"version"`                   // the version to go back to
	Expected int    `json:"expected_version,omitzero"` // refuse when the keys in force have another version
}

func (s *Service) revertCredential(ctx context.Context, call *Call, in RevertCredential) (Done, error) {
	if in.Version < 1 {
		return Done{}, ErrMissing.Because("The version to revert to is required.").At("/version")
	}
	state, err := s.live(ctx, call.Tenant, in.ID, in.Expected)
	if err != nil {
		return Done{}, err
	}
	to, kept := state.Version(in.Version)
	now := state.Current()
	switch {
	case !kept:
		return Done{}, aggregates.ErrCredentialVersionNotFound.At("/version")
	case to.Version == now.Version: // already so: these keys go nowhere
		done, err := s.changeCredential(ctx, call, commands.RevertCredential{ID: in.ID, Expected: now.Version, To: in.Version})
		if in.Expected == 0 && errors.Is(err, aggregates.ErrCredentialVersionStale) {
			return s.revertCredential(ctx, call, in) // no longer so: somebody put other keys in force
		}
		return done, err
	case to.HostMAC != now.HostMAC || !slices.Equal(to.Hosts, now.Hosts): // the aggregate decides again
		return Done{}, aggregates.ErrCredentialHostsChanged
	}
	if _, _, err := s.usable(ctx, call.Tenant, state.Component); err != nil {
		return Done{}, err
	}
	// The descriptor of that version's time: its hosts, its probe and what it
	// keeps masked. What the component's owner changed since reaches only keys
	// that were entered since.
	d, err := s.descriptor(ctx, state.Component, to.Revision)
	if err != nil {
		return Done{}, err
	}
	fields, err := s.open(ctx, call.Tenant, in.ID, to)
	if err != nil {
		return Done{}, err
	}
	_, keys, err := s.tryKeys(ctx, call.Tenant, state.Component, d, to.Revision, fields)
	if err != nil {
		return Done{}, err
	}
	keys.SecretID = to.SecretID
	return s.changeCredential(ctx, call, commands.RevertCredential{ID: in.ID, Expected: in.Expected, To: in.Version, Keys: keys})
}

// VerifyCredential asks for the dry request with the keys in force.
type VerifyCredential struct {
	ID string `json:"id"`
}

func (s *Service) verifyCredential(ctx context.Context, call *Call, in VerifyCredential) (Done, error) {
	if err := checkCredential(in.ID, 0); err != nil {
		return Done{}, err
	}
	live, err := s.tokenGoodFor(ctx, call, in.ID, 0)
	if err != nil {
		return Done{}, err
	}
	state := live.Value
	now := state.Current()
	// The probe and hosts of the recorded revision: a later descriptor reaches
	// these keys only with a version verified against it.
	d, err := s.descriptor(ctx, state.Component, now.Revision)
	if err != nil {
		return Done{}, err
	}
	fields, err := s.inForce(ctx, call.Tenant, in.ID, state)
	if err != nil {
		return Done{}, err
	}
	result, err := s.dryRun(ctx, call.Tenant, d, fields)
	if err != nil {
		return Done{}, err
	}
	done, err := s.changeCredential(ctx, call, commands.RecordVerification{
		ID: in.ID, Version: now.Version, Verification: result.verification,
	})
	if result.verification.Status == events.Failed {
		done.Says = result.says
	}
	return done, err
}

// RevealCredential asks for the clear values of a credential.
type RevealCredential struct {
	ID string `json:"id"`
}

// RevealedCredential answers RevealCredential.
type RevealedCredential struct {
	Done
	Keys map[string]any `json:"keys"` // the clear values, by field
}

// revealCredential shows the values of one credential to a person. The fact is
// durable before it does.
func (s *Service) revealCredential(ctx context.Context, call *Call, in RevealCredential) (RevealedCredential, error) {
	state, err := s.live(ctx, call.Tenant, in.ID, 0)
	if err != nil {
		return RevealedCredential{}, err
	}
	fields, err := s.inForce(ctx, call.Tenant, in.ID, state)
	if err != nil {
		return RevealedCredential{}, err
	}
	done, err := s.changeCredential(ctx, call, commands.RevealCredential{ID: in.ID, Version: state.Current().Version})
	if err != nil {
		return RevealedCredential{}, err
	}
	shown := RevealedCredential{done, map[string]any{}}
	for _, name := range fields.Names() {
		if v, ok := fields.Get(name); ok {
			shown.Keys[name] = jsontext.Value(v.Reveal())
		}
	}
	return shown, nil
}

// DeleteCredential asks for a credential's end.
type DeleteCredential struct {
	ID       string `json:"id"`
	Expected int    `json:"expected_version,omitzero"` // refuse when the keys in force have another version
	DryRun   bool   `json:"dry_run,omitzero"`          // say what would break; delete nothing
}

// deleteCredential is refused while a flow holds the credential: what the
// credential's own stream says of its use decides, in the same append. The provider
// of its tokens is told that they are over; the answer says if that did not work,
// where it is known soon.
func (s *Service) deleteCredential(ctx context.Context, call *Call, in DeleteCredential) (Done, error) {
	if err := checkCredential(in.ID, in.Expected); err != nil {
		return Done{}, err
	}
	if in.DryRun {
		return s.tryDelete(ctx, call, in)
	}
	cmd := commands.DeleteCredential{ID: in.ID, Expected: in.Expected}
	done, state, err := s.endCredential(ctx, call, cmd)
	if errors.Is(err, aggregates.ErrCredentialInUse) {
		expired, lapse := s.expireHolders(ctx, call, in.ID, state)
		switch {
		case lapse != nil:
			return Done{}, lapse
		case expired:
			done, state, err = s.endCredential(ctx, call, cmd)
		}
	}
	if errors.Is(err, aggregates.ErrCredentialInUse) {
		return Done{}, s.inUse(ctx, call, state)
	}
	return done, err
}

// outcome is what a dry request found.
type outcome struct {
	verification events.Verification
	says         string // why it failed, in a plain sentence
}

// dryRun makes the descriptor's probe with the values. A component that
// declares none leaves its credentials unverified.
func (s *Service) dryRun(ctx context.Context, tenant string, d commands.Descriptor, keys seal.Fields) (outcome, error) {
	if d.Verification == nil {
		return outcome{verification: events.Verification{Status: events.Unverified}}, nil
	}
	result, err := s.cfg.Verify.Run(ctx, tenant, probe(d), probeValues(d, keys))
	if err != nil {
		return outcome{}, err
	}
	s.metrics.verified.WithLabelValues(result.Probe, result.Outcome).Inc()
	v := events.Verification{
		Status: events.Verified, Probe: result.Probe, Outcome: result.Outcome, LatencyMS: result.Latency.Milliseconds(),
	}
	if !result.OK {
		v.Status = events.Failed
	}
	return outcome{v, result.Says}, nil
}

// probe writes the descriptor's dry request in the words of verify.
func probe(d commands.Descriptor) verify.Probe {
	p := verify.Probe{Hosts: d.Hosts}
	switch v := d.Verification; {
	case v.HTTP != nil:
		p.HTTP = &verify.HTTP{
			Method: v.HTTP.Method, URL: v.HTTP.URL, Headers: v.HTTP.Headers, Form: v.HTTP.Form, JSON: v.HTTP.JSON,
			Expect: v.HTTP.Expect.Status, Says: v.HTTP.Says,
		}
		if b := v.HTTP.Basic; b != nil {
			p.HTTP.Basic = &verify.Basic{Username: b.Username, Password: b.Password}
		}
	case v.TCP != nil:
		p.TCP = &verify.TCP{Address: v.TCP.Address, DefaultPort: v.TCP.DefaultPort}
	case v.TLS != nil:
		p.TLS = &verify.TLS{Address: v.TLS.Address, DefaultPort: v.TLS.DefaultPort}
	}
	return p
}

// CheckVPNAgent refuses, with events.ErrID at /vpn_agent, what cannot be the id of
// a VPN agent: for an edge that has more than one command to send.
func CheckVPNAgent(id string) error { return checkVPNAgent(id) }

// CheckName refuses, with ErrName at /name, what cannot be the name of a
// credential: for an edge that has more than one command to send.
func CheckName(name string) error { return checkName("/name", name) }
