package credential

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/service/secrets"
)

type Get struct {
	ID     string `json:"id"`
	MinSeq uint64 `json:"min_seq,omitzero"` // wait until the response reflects this log sequence

	LastUse bool `json:"last_use,omitzero"` // show when it was last used, which is read from the access log
}

// Credential is what the service shows of a credential.
type Credential struct {
	ID             string              `json:"id"`
	Component      string              `json:"component,omitzero"` // absent if the credential has a free type
	Name           string              `json:"name"`
	Workspace      string              `json:"workspace,omitzero"`
	VPNAgent       string              `json:"vpn_agent,omitzero"`
	ThrottlePolicy string              `json:"throttle_policy,omitzero"` // id of the throttle policy that limits its use
	Status         events.Status       `json:"status"`
	Version        int                 `json:"version"`
	Fields         []string            `json:"fields"`          // names of the fields that have a value, sorted
	Keys           map[string]any      `json:"keys,omitzero"`   // by field: "********", or the value where the descriptor says it is not secret; absent in lists
	Tokens         *TokenInfo          `json:"tokens,omitzero"` // of an OAuth credential; absent in lists
	Verification   events.Verification `json:"verification"`
	VerifiedAt     time.Time           `json:"verified_at,omitzero"` // absent when no dry request was made
	HostKey        string              `json:"host_key,omitzero"`    // of an SSH server, that dry requests accept: "ssh-ed25519 SHA256:..."
	CreatedAt      time.Time           `json:"created_at"`
	CreatedBy      string              `json:"created_by"` // "key:<id>"
	UpdatedAt      time.Time           `json:"updated_at"`
	Seq            uint64              `json:"seq"`                  // log sequence of the last change
	Type           string              `json:"type,omitzero"`        // the free type, instead of component
	Description    string              `json:"description,omitzero"` // free text
	Expires        time.Time           `json:"expires_at,omitzero"`  // when the keys expire, as declared, or the tokens, if they cannot be renewed; absent: never
	LastUse        *LastUse            `json:"last_use,omitzero"`    // on request
}

// LastUse is when a credential was last used, as far as the access log is kept.
type LastUse struct {
	Time    time.Time `json:"time,omitzero"`    // when its values were last given under a new lease, or revealed; absent: never
	Unknown bool      `json:"unknown,omitzero"` // the access log could not be read
}

// TokenInfo is the state of a credential's OAuth tokens.
type TokenInfo struct {
	Expires   time.Time `json:"expires,omitzero"`                // of the access token; it is renewed earlier. Absent: the token is used until it is revoked
	Refresh   time.Time `json:"refresh_token_expires,omitzero"`  // of the refresh token, as the provider last stated it or the component declares it; absent: unknown
	Extended  bool      `json:"refresh_token_extended,omitzero"` // renewals extend refresh_token_expires
	Renewable bool      `json:"renewable"`                       // they can be renewed without connecting the account again
	Problem   string    `json:"problem,omitzero"`                // why re-authorization is required, a sentence; absent when it is not
	Failures  int       `json:"failures,omitzero"`               // failed renewals in a row
	RetryAt   time.Time `json:"retry_at,omitzero"`               // next retry after a failure
	Scope     string    `json:"scope,omitzero"`                  // as the provider granted it; absent when it did not say
	Missing   []string  `json:"missing,omitzero"`                // scopes of the component that the provider did not grant
	Odd       string    `json:"odd,omitzero"`                    // what is implausible about the lifetime that the provider named, a sentence
}

// tokenInfo returns nil if the credential has no tokens. d is the descriptor of its keys.
func (s *Service) tokenInfo(ctx context.Context, tenant, id string, d commands.Descriptor) (*TokenInfo, error) {
	state, err := aggregates.Credential.Load(ctx, s.Log, aggregates.Credential.Stream(tenant, id))
	if err == nil { // a commit that is not durable yet may be lost in a power cut
		err = s.Log.Store.WaitDurable(ctx, state.Seq)
	}
	t := state.Value.Tokens
	if err != nil || t.Field == "" {
		return nil, err
	}
	info := &TokenInfo{
		Expires: t.Token.Expires, Renewable: t.Renewable, Problem: t.ReauthReason, Failures: t.Failures, RetryAt: t.RetryAt, Scope: t.Scope, Odd: t.Odd,
		Refresh: t.RefreshToken.Expires, Extended: t.RefreshToken.Renewal == events.RefreshExtended,
	}
	if d.OAuth2 != nil && t.Scope != "" {
		granted := strings.FieldsFunc(t.Scope, func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune(",;+|", r) })
		info.Missing = slices.DeleteFunc(slices.Clone(d.OAuth2.Scopes), func(scope string) bool {
			return slices.Contains(granted, scope) || scope == "offline_access" || scope == "openid" // many providers name neither
		})
	}
	return info, nil
}

func (s *Service) getCredential(ctx context.Context, call *service.Call, in Get) (Credential, error) {
	if err := service.CheckTarget(in.ID, 0); err != nil {
		return Credential{}, err
	}
	if err := s.Kernel.AtLeast(ctx, in.MinSeq); err != nil {
		return Credential{}, err
	}
	c, found, err := s.Views.Credential(ctx, call.Tenant, in.ID)
	switch {
	case err != nil:
		return Credential{}, err
	case !found:
		return Credential{}, aggregates.ErrCredentialNotFound
	}
	shown := credentialInfo(c)
	if in.LastUse {
		one := []Credential{shown}
		s.addLastUses(ctx, call.Tenant, one)
		shown = one[0]
	}
	d, err := s.Components.Descriptor(ctx, c.Component, c.Revision)
	if err != nil {
		return Credential{}, err
	}
	if shown.Keys, err = s.maskedKeys(ctx, c, d); err != nil || !d.UsesOAuth {
		return shown, err
	}
	shown.Tokens, err = s.tokenInfo(ctx, c.Tenant, c.ID, d)
	return shown, err
}

func credentialInfo(c projections.Credential) Credential {
	_, expires := c.Expiry()
	return Credential{
		Expires: expires,
		ID:      c.ID, Component: c.Component, Type: c.Type, Name: c.Name, Description: c.Description, Workspace: c.Workspace, VPNAgent: c.VPNAgent,
		ThrottlePolicy: c.ThrottlePolicy, Status: c.Status, Version: c.Version,
		Fields: c.Fields, Verification: c.Verification, VerifiedAt: c.VerifiedAt, HostKey: c.HostKey, CreatedAt: c.CreatedAt,
		CreatedBy: c.CreatedBy.Kind + ":" + c.CreatedBy.ID, UpdatedAt: c.UpdatedAt, Seq: c.Seq,
	}
}

// maskedKeys shows a value only if the descriptor that was current when the version
// was written marks it as not secret.
func (s *Service) maskedKeys(ctx context.Context, c projections.Credential, d commands.Descriptor) (map[string]any, error) {
	keys := secrets.Masked(c.Fields, c.Shape)
	var open []string
	for _, name := range c.Fields {
		if f, ok := d.Field(name); ok && !f.Secret {
			open = append(open, name)
		}
	}
	if len(open) == 0 || c.SecretID == "" {
		return keys, nil
	}
	values, err := s.Secrets.Open(ctx, c.Tenant, c.ID, events.KeysVersion{Version: c.Version, SecretID: c.SecretID})
	if err != nil {
		return nil, err
	}
	for _, name := range open {
		if v, ok := values.Get(name); ok {
			keys[name] = jsontext.Value(v.Reveal())
		}
	}
	return keys, nil
}

// List requests credentials. Filters combine by AND.
type List struct {
	Component      string        `json:"component,omitzero"`
	Workspace      string        `json:"workspace,omitzero"`       // the id with which they were created
	ThrottlePolicy string        `json:"throttle_policy,omitzero"` // id of the throttle policy that they have
	Status         events.Status `json:"status,omitzero"`          // verified, failed, unverified or reauthorization_required
	NameContains   string        `json:"name_contains,omitzero"`   // case-insensitive
	Sort           string        `json:"sort,omitzero"`            // name, -name, created, -created, or, without name_contains, name,-created or -name,created; name when absent
	Limit          int           `json:"limit,omitzero"`           // 1 to 200; 50 when absent
	After          string        `json:"after,omitzero"`           // cursor of the previous page, with the same filter and sort
	MinSeq         uint64        `json:"min_seq,omitzero"`         // wait until the response reflects this log sequence
	LastUse        bool          `json:"last_use,omitzero"`        // show when each was last used, which is read from the access log
}

type Page struct {
	Credentials []Credential `json:"credentials"`
	Next        string       `json:"next,omitzero"` // cursor of the next page; absent on the last
}

// ErrStatus rejects a filter by an unknown status.
var ErrStatus = fault.New(fault.Invalid, "status_invalid", "The status must be verified, failed, unverified or reauthorization_required.")

// checkStatus rejects a filter by an unknown status; "" is no filter.
func checkStatus(status events.Status) error {
	if status != "" && !slices.Contains(events.Statuses(), status) {
		return ErrStatus.At("/status")
	}
	return nil
}

func (s *Service) listCredentials(ctx context.Context, call *service.Call, in List) (Page, error) {
	limit, err := service.PageSize(in.Limit)
	if err != nil {
		return Page{}, err
	}
	if in.Sort == "" {
		in.Sort = "name"
	}
	sort, desc := strings.CutPrefix(in.Sort, "-")
	turn := in.Sort == "name,-created" || in.Sort == "-name,created" // equal names are sorted by age in the opposite direction
	if turn {
		sort = "name"
	}
	switch {
	case sort != "name" && sort != "created":
		return Page{}, projections.ErrSortInvalid.Withf("The sort order must be name, -name, created, -created, name,-created or -name,created.").At("/sort")
	case turn && in.NameContains != "":
		return Page{}, projections.ErrSortInvalid.Withf("With name_contains, sort by either name or created, not both.").At("/sort")
	}
	if err := checkStatus(in.Status); err != nil {
		return Page{}, err
	}
	if err := s.Kernel.AtLeast(ctx, in.MinSeq); err != nil {
		return Page{}, err
	}
	page, next, err := s.Views.Credentials(ctx, projections.CredentialFilter{
		Tenant: call.Tenant, Component: in.Component, Workspace: in.Workspace, ThrottlePolicy: in.ThrottlePolicy, Status: in.Status, NameContains: in.NameContains, Scope: call.Principal.Scope,
		Sort: sort, Desc: desc, Turn: turn, Limit: limit, After: in.After,
	})
	if err != nil {
		return Page{}, err
	}
	list := Page{Credentials: make([]Credential, len(page)), Next: next}
	for i, c := range page {
		list.Credentials[i] = credentialInfo(c)
	}
	if in.LastUse && len(page) > 0 {
		s.addLastUses(ctx, call.Tenant, list.Credentials)
	}
	return list, nil
}

type Count struct {
	Component string        `json:"component,omitzero"` // only those of this component
	Workspace string        `json:"workspace,omitzero"` // only those created with this id
	Status    events.Status `json:"status,omitzero"`    // only these: verified, failed, unverified or reauthorization_required
	MinSeq    uint64        `json:"min_seq,omitzero"`   // wait until the response reflects this log sequence
}

type Counts struct {
	Total  int              `json:"total"`
	Counts []ComponentCount `json:"components"`
}

// ComponentCount is the number of a tenant's credentials of one component or free type.
type ComponentCount struct {
	Component string                `json:"component,omitzero"` // absent if the credential has a free type
	Type      string                `json:"type,omitzero"`      // the free type, instead of component
	Total     int                   `json:"total"`
	Status    map[events.Status]int `json:"status"`
}

func (s *Service) countCredentials(ctx context.Context, call *service.Call, in Count) (Counts, error) {
	if err := checkStatus(in.Status); err != nil {
		return Counts{}, err
	}
	if err := s.Kernel.AtLeast(ctx, in.MinSeq); err != nil {
		return Counts{}, err
	}
	rows, err := s.Views.CredentialCounts(ctx, call.Tenant, projections.CredentialFilter{Component: in.Component, Workspace: in.Workspace, Status: in.Status, Scope: call.Principal.Scope})
	if err != nil {
		return Counts{}, err
	}
	counts := Counts{Counts: []ComponentCount{}}
	for _, r := range rows { // ordered by component
		if n := len(counts.Counts); n == 0 || counts.Counts[n-1].Component != r.Component || counts.Counts[n-1].Type != r.Type {
			counts.Counts = append(counts.Counts, ComponentCount{Component: r.Component, Type: r.Type, Status: map[events.Status]int{}})
		}
		c := &counts.Counts[len(counts.Counts)-1]
		c.Status[r.Status] += r.N
		c.Total += r.N
		counts.Total += r.N
	}
	return counts, nil
}

// GetHistory requests the history of one credential, including a deleted one.
type GetHistory struct {
	ID    string `json:"id"`
	After uint64 `json:"after,omitzero"` // log sequence: only later events
	Limit int    `json:"limit,omitzero"` // 1 to 1000; 200 when absent
}

// History is a page of a credential's history, oldest first.
type History struct {
	Events []HistoryEntry `json:"events"`
	Next   uint64         `json:"next,omitzero"` // after of the next page; absent on the last
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
	Data    jsontext.Value `json:"data"`             // the event in its public form
}

func (s *Service) credentialHistory(ctx context.Context, call *service.Call, in GetHistory) (History, error) {
	if err := service.CheckTarget(in.ID, 0); err != nil {
		return History{}, err
	}
	if in.Limit == 0 {
		in.Limit = 200
	}
	if in.Limit < 0 || in.Limit > 1000 {
		return History{}, service.ErrLimit.Withf("A page holds 1 to 1000 events.").At("/limit")
	}
	h := History{Events: []HistoryEntry{}}
	stream := aggregates.Credential.Stream(call.Tenant, in.ID)
	now, err := aggregates.Credential.Fresh(ctx, s.Log, stream)
	switch {
	case err != nil:
		return h, err
	case !now.Value.Exists:
		return h, aggregates.ErrCredentialNotFound
	}
	version, err := s.versionAt(ctx, stream, in.After, now.Value)
	if err != nil {
		return h, err
	}
	for rec, err := range s.Log.Store.Stream(ctx, stream, in.After) {
		if err != nil {
			return h, fmt.Errorf("history of %s: %w", in.ID, err)
		}
		m, public := projections.Public(rec)
		if !public || m.Audience == events.Audit && !call.Principal.May(permission.AuditRead) {
			continue // none of these changes the version
		}
		if n := len(h.Events); n >= in.Limit && rec.Index == 0 {
			h.Next = h.Events[n-1].Seq
			s.pageEnds.Add(pageEnd{stream, h.Next}, version)
			break
		}
		if v, changed := versionAfter(rec.Event); changed {
			version = v
		}
		h.Events = append(h.Events, HistoryEntry{
			Seq: rec.Seq, Type: m.StoredName(), Time: rec.Meta.Time, Actor: rec.Meta.Actor.Kind + ":" + rec.Meta.Actor.ID,
			Via: rec.Meta.Via, Command: rec.Meta.Command, Version: version, Data: jsontext.Value(m.Data),
		})
	}
	if len(h.Events) == 0 {
		return h, nil
	}
	return h, s.Log.Store.WaitDurable(ctx, h.Events[len(h.Events)-1].Seq)
}

// pageEnd is the end of a page of a credential's history.
type pageEnd struct {
	stream events.StreamID
	seq    uint64
}

// versionAt is the version of the keys after the commits of a credential's
// stream up to seq; now is the current state.
func (s *Service) versionAt(ctx context.Context, stream events.StreamID, seq uint64, now aggregates.CredentialState) (int, error) {
	switch {
	case seq == 0:
		return 0, nil
	case now.Current().Version == 1:
		return 1, nil
	}
	if v, known := s.pageEnds.Get(pageEnd{stream, seq}); known {
		return v, nil
	}
	for rec, err := range s.Log.Store.Back(ctx, stream, seq) {
		if err != nil {
			return 0, fmt.Errorf("history of %s: %w", stream.ID, err)
		}
		if v, changed := versionAfter(rec.Event); changed {
			return v, nil
		}
	}
	return 0, nil
}

// versionAfter is the version of a credential's keys after an event that changes it.
func versionAfter(e events.Event) (version int, changed bool) {
	switch e := e.(type) {
	case events.CredentialCreated:
		return e.Keys.Version, true
	case events.CredentialKeysReplaced:
		return e.Keys.Version, true
	case events.CredentialReverted:
		return e.Keys.Version, true
	case events.CredentialDeleted:
		return 0, true
	}
	return 0, false
}
