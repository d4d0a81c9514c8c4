package client

import (
	"context"
	"iter"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Done is the response to a command.
type Done struct {
	Seq      uint64 `json:"seq"`               // log sequence to pass as MinSeq
	ID       string `json:"id,omitzero"`       // of the changed resource
	Version  int    `json:"version,omitzero"`  // of a credential's keys
	Status   string `json:"status,omitzero"`   // of a credential
	Revision int    `json:"revision,omitzero"` // of a component's descriptor
	Says     string `json:"says,omitzero"`     // sentence why the dry request failed

	Binding string    `json:"binding,omitzero"` // id of a flow's reservation
	Until   time.Time `json:"until,omitzero"`   // when the reservation expires
	DryRun  *Impact   `json:"dry_run,omitzero"` // what would happen; nothing was changed
}

// The statuses of a credential.
const (
	StatusVerified   = "verified"   // the dry request succeeded
	StatusFailed     = "failed"     // a later dry request failed
	StatusUnverified = "unverified" // the component has no dry request

	// The provider no longer accepts the tokens: the account must be connected again.
	StatusReauthorizationRequired = "reauthorization_required"
)

// Keys are the clear values of a credential. They are never printed or encoded; only commands
// with keys send them, and only Text, AccessToken and Reveal return them. The zero Keys is
// empty.
type Keys struct{ clear func() jsontext.Value }

// NewKeys creates keys from a value for each field.
func NewKeys(values map[string]any) (Keys, error) {
	b, err := json.Marshal(values, json.Deterministic(true)) // deterministic, so that a repeated command is identical
	if err != nil {
		return Keys{}, errKeys
	}
	return KeysJSON(b)
}

// KeysJSON creates keys from a JSON object with a value for each field. Its error does not
// quote the input.
func KeysJSON(object []byte) (Keys, error) {
	v := jsontext.Value(object).Clone()
	if !v.IsValid() || v.Kind() != '{' {
		return Keys{}, errKeys
	}
	return Keys{clear: func() jsontext.Value { return v }}, nil
}

var errKeys = ErrConfig.Withf("The keys must be one JSON object with a value for each field and no duplicate names.")

func (k Keys) reveal() jsontext.Value {
	if k.clear == nil {
		return jsontext.Value("{}")
	}
	return k.clear()
}

const hidden = "[secret]"

// String implements fmt.Stringer.
func (Keys) String() string { return hidden }

// GoString implements fmt.GoStringer.
func (Keys) GoString() string { return hidden }

// MarshalText implements encoding.TextMarshaler, so that an encoder writes no value.
func (Keys) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// CreateCredential is a new credential.
type CreateCredential struct {
	Component      string
	Name           string // derived from the component's title when empty
	Keys           Keys
	Workspace      string   // an id of the caller, stored as given; may be empty
	VPNAgent       string   // an id of the caller, stored as given: the VPN agent through which a flow engine reaches the API; may be empty
	ThrottlePolicy string   // id of the throttle policy that limits its use; may be empty
	For            *ForStep // the step of a flow for which it is created; the use is recorded with it; may be nil

	ID           string         // id of the credential in another system; generated when empty
	Type         string         // instead of Component: the id of one of the tenant's own components, or else a free type
	Description  string         // may be empty
	Hosts        []string       // of a free type: the only hosts to which the values may be sent; may be empty
	Verification jsontext.Value // of a free type: its dry request, as in a component.json; may be nil
}

// createBody is the body of credential.create.
type createBody struct {
	Component      string         `json:"component,omitzero"`
	Name           string         `json:"name,omitzero"`
	Keys           jsontext.Value `json:"keys"`
	Workspace      string         `json:"workspace,omitzero"`
	VPNAgent       string         `json:"vpn_agent,omitzero"`
	ThrottlePolicy string         `json:"throttle_policy,omitzero"`
	For            *ForStep       `json:"for,omitzero"`
	Revision       int            `json:"expected_revision,omitzero"`
	ID             string         `json:"id,omitzero"`
	Type           string         `json:"type,omitzero"`
	Description    string         `json:"description,omitzero"`
	Hosts          []string       `json:"hosts,omitzero"`
	Verification   jsontext.Value `json:"verification,omitzero"`
	Expires        time.Time      `json:"expires_at,omitzero"`
}

func (in CreateCredential) body(of commandOptions) createBody {
	return createBody{
		in.Component, in.Name, in.Keys.reveal(), in.Workspace, in.VPNAgent, in.ThrottlePolicy, in.For, of.revision,
		in.ID, in.Type, in.Description, in.Hosts, in.Verification, of.expires,
	}
}

// ForStep identifies a step of a flow.
type ForStep struct {
	Flow string `json:"flow"`
	Step string `json:"step"`
}

// CreateCredential verifies keys by a dry request and saves them. Nothing is
// saved when they fail it (credential_verification_failed).
func (a *API) CreateCredential(ctx context.Context, in CreateCredential, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "credential.create", in.body(optionsOf(opts)), &done, opts...)
	return done, err
}

// change identifies a credential and, if not 0, the expected version of its keys.
type change struct {
	ID       string         `json:"id"`
	Keys     jsontext.Value `json:"keys,omitzero"`
	Version  int            `json:"version,omitzero"`
	Expected int            `json:"expected_version,omitzero"`
	Revision int            `json:"expected_revision,omitzero"` // of the component
	DryRun   bool           `json:"dry_run,omitzero"`
	Expires  time.Time      `json:"expires_at,omitzero"`
	HostKey  string         `json:"host_key,omitzero"`
}

func (a *API) change(ctx context.Context, name string, in change, opts []CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, name, in, &done, opts...)
	return done, err
}

// ReplaceKeys verifies new keys and activates them as a new version. Here and below,
// expected is the version that the current keys must have, 0 for any
// (credential_version_stale).
func (a *API) ReplaceKeys(ctx context.Context, id string, keys Keys, expected int, opts ...CommandOption) (Done, error) {
	return a.change(ctx, "credential.replace-keys", change{
		ID: id, Keys: keys.reveal(), Expected: expected, Revision: revisionOf(opts), Expires: optionsOf(opts).expires, HostKey: optionsOf(opts).hostKey,
	}, opts)
}

// RevertCredential verifies the keys of an earlier version again and activates them
// as a new version.
func (a *API) RevertCredential(ctx context.Context, id string, version, expected int, opts ...CommandOption) (Done, error) {
	return a.change(ctx, "credential.revert", change{ID: id, Version: version, Expected: expected}, opts)
}

// CredentialUpdate is a change of a credential: nil members are unchanged.
type CredentialUpdate struct {
	Description    *string // "" removes it
	Keys           *Keys   // replaces all values; verified first
	ThrottlePolicy *string // id of a throttle policy; "" removes it
}

// updateBody is the body of credential.update.
type updateBody struct {
	ID             string         `json:"id,omitzero"`
	Description    *string        `json:"description,omitzero"`
	Keys           jsontext.Value `json:"keys,omitzero"`
	ThrottlePolicy *string        `json:"throttle_policy,omitzero"`
}

func (in CredentialUpdate) body(id string) updateBody {
	b := updateBody{ID: id, Description: in.Description, ThrottlePolicy: in.ThrottlePolicy}
	if in.Keys != nil {
		b.Keys = in.Keys.reveal()
	}
	return b
}

// UpdateCredential changes a credential in one commit.
func (a *API) UpdateCredential(ctx context.Context, id string, in CredentialUpdate, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "credential.update", in.body(id), &done, opts...)
	return done, err
}

// VerifyCredential repeats the dry request. A failed one is not an error: see the
// Status and Says of the response.
func (a *API) VerifyCredential(ctx context.Context, id string, opts ...CommandOption) (Done, error) {
	return a.change(ctx, "credential.verify", change{ID: id, HostKey: optionsOf(opts).hostKey}, opts)
}

// RefreshCredential renews the tokens of an OAuth credential now. It is refused with
// credential_not_oauth, reauthorization_required or token_refresh_failed, whose
// sentence quotes the provider's response.
func (a *API) RefreshCredential(ctx context.Context, id string, opts ...CommandOption) (Done, error) {
	return a.change(ctx, "credential.refresh", change{ID: id}, opts)
}

// DeleteCredential deletes a credential and erases its secrets. It is refused
// while an active flow uses the credential (credential_in_use; FlowsOf names the
// flows).
func (a *API) DeleteCredential(ctx context.Context, id string, expected int, opts ...CommandOption) (Done, error) {
	return a.change(ctx, "credential.delete", change{ID: id, Expected: expected}, opts)
}

// LastUse is when a credential was last used, as far as the access log is kept.
type LastUse struct {
	Time    time.Time `json:"time,omitzero"`    // when its values were last given under a new lease, or revealed; zero: never
	Unknown bool      `json:"unknown,omitzero"` // the access log could not be read
}

// TokenInfo is the state of a credential's OAuth tokens.
type TokenInfo struct {
	Expires   time.Time `json:"expires,omitzero"`                // of the access token; it is renewed earlier. Absent: it is valid until it is revoked
	Refresh   time.Time `json:"refresh_token_expires,omitzero"`  // of the refresh token, as the provider last stated it or the component declares it; zero: unknown
	Extended  bool      `json:"refresh_token_extended,omitzero"` // renewals extend Refresh
	Renewable bool      `json:"renewable"`                       // they can be renewed without connecting the account again
	Problem   string    `json:"problem,omitzero"`                // sentence why re-authorization is required
	Failures  int       `json:"failures,omitzero"`               // consecutive failed renewals
	RetryAt   time.Time `json:"retry_at,omitzero"`               // next retry after a failure
	Scope     string    `json:"scope,omitzero"`                  // as the provider stated it; "" if it did not
	Missing   []string  `json:"missing,omitzero"`                // scopes of the component that the provider did not grant
	Odd       string    `json:"odd,omitzero"`                    // a sentence about an implausible lifetime in the provider's response
}

// Verification is the result of the last dry request.
type Verification struct {
	Status    string `json:"status"`
	Probe     string `json:"probe"`      // "http", "tcp", "tls", "smtp", "imap", "ldap", "postgres", "mysql", "ssh", "sftp", or "" if there is no dry request
	Outcome   string `json:"outcome"`    // "2xx", "4xx", "refused", "timeout", ...
	LatencyMS int64  `json:"latency_ms"` // milliseconds
}

// byID requests one resource by its id, at least as fresh as the log sequence MinSeq.
type byID struct {
	ID     string `json:"id"`
	MinSeq uint64 `json:"min_seq,omitzero"`
}

// GetCredential returns one credential. Here and below, minSeq makes the response
// reflect that log sequence; 0 does not wait.
func (a *API) GetCredential(ctx context.Context, id string, minSeq uint64) (Credential, error) {
	var c Credential
	err := a.Query(ctx, "credential.get", byID{id, minSeq}, &c)
	return c, err
}

// CredentialFilter selects credentials. Its members combine by AND.
type CredentialFilter struct {
	Component      string `json:"component,omitzero"`
	ThrottlePolicy string `json:"throttle_policy,omitzero"` // id of a throttle policy
	Status         string `json:"status,omitzero"`
	NameContains   string `json:"name_contains,omitzero"` // case-insensitive
	Sort           string `json:"sort,omitzero"`          // name, -name, created or -created; name when empty
	Limit          int    `json:"limit,omitzero"`         // of one page, 1 to 200; 50 when 0
	After          string `json:"after,omitzero"`         // cursor of the previous page
	MinSeq         uint64 `json:"min_seq,omitzero"`
	LastUse        bool   `json:"last_use,omitzero"` // show when each was last used
}

// CredentialList is one page.
type CredentialList struct {
	Credentials []Credential `json:"credentials"`
	Next        string       `json:"next,omitzero"` // cursor of the next page; empty on the last
}

// ListCredentials returns one page of credentials.
func (a *API) ListCredentials(ctx context.Context, filter CredentialFilter) (CredentialList, error) {
	var list CredentialList
	err := a.Query(ctx, "credential.list", filter, &list)
	return list, err
}

// Credentials yields every credential of the filter, page after page.
func (a *API) Credentials(ctx context.Context, filter CredentialFilter) iter.Seq2[Credential, error] {
	return func(yield func(Credential, error) bool) {
		for {
			list, err := a.ListCredentials(ctx, filter)
			if err != nil {
				yield(Credential{}, err)
				return
			}
			for _, c := range list.Credentials {
				if !yield(c, nil) {
					return
				}
			}
			if filter.After = list.Next; list.Next == "" {
				return
			}
		}
	}
}

// CredentialCounts is the number of credentials by component and status.
type CredentialCounts struct {
	Total      int              `json:"total"`
	Components []ComponentCount `json:"components"`
}

// ComponentCount is the number of credentials of one component.
type ComponentCount struct {
	Component string         `json:"component"` // "" for a free type
	Type      string         `json:"type"`      // free type, instead of a component
	Total     int            `json:"total"`
	Status    map[string]int `json:"status"`
}

// CountCredentials returns the number of credentials by component and status.
func (a *API) CountCredentials(ctx context.Context, minSeq uint64) (CredentialCounts, error) {
	var counts CredentialCounts
	err := a.Query(ctx, "credential.counts", struct {
		MinSeq uint64 `json:"min_seq,omitzero"`
	}{minSeq}, &counts)
	return counts, err
}

// HistoryEntry is one event of a credential.
type HistoryEntry struct {
	Seq     uint64         `json:"seq"`
	Type    string         `json:"type"` // "credential.created"
	Time    time.Time      `json:"time"`
	Actor   string         `json:"actor"` // "key:<id>"
	Via     string         `json:"via"`
	Command string         `json:"command"`
	Version int            `json:"version,omitzero"` // of the keys, after the event
	Data    jsontext.Value `json:"data"`
}

// CredentialHistory returns the history of one credential, oldest first, including
// a deleted one.
func (a *API) CredentialHistory(ctx context.Context, id string) (history []HistoryEntry, err error) {
	for after := uint64(0); ; {
		var page struct {
			Events []HistoryEntry `json:"events"`
			Next   uint64         `json:"next"`
		}
		ask := struct {
			ID    string `json:"id"`
			After uint64 `json:"after,omitzero"`
		}{id, after}
		if err := a.Query(ctx, "credential.history", ask, &page); err != nil {
			return nil, err
		}
		history = append(history, page.Events...)
		if after = page.Next; after == 0 {
			return history, nil
		}
	}
}
