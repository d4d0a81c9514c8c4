package component

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/vault"
)

type Register struct {
	ID         string         `json:"id,omitzero"` // letters, digits, '_' and '-', up to 64; derived from the title when absent
	Descriptor jsontext.Value `json:"descriptor"`  // the component.json
}

// CheckQueueable refuses a body that must not be stored in a queue.
func (in Register) CheckQueueable() error {
	_, err := parseDescriptor(in.Descriptor)
	return err
}

func (s *Service) registerComponent(ctx context.Context, call *service.Call, in Register) (service.Done, error) {
	d, err := parseDescriptor(in.Descriptor)
	if err != nil {
		return service.Done{}, err
	}
	if in.ID == "" {
		in.ID = Slug(d.Title)
	}
	if err := events.CheckName(in.ID); err != nil {
		return service.Done{}, fault.Of(err).At("/id")
	}
	releaseOnReject, err := s.claimCase(ctx, in.ID)
	if err != nil {
		return service.Done{}, err
	}
	if err := s.checkCase(ctx, in.ID); err != nil {
		return service.Done{}, releaseOnReject(ctx, err)
	}
	done, err := s.changeComponent(ctx, call, commands.RegisterComponent{
		ID: in.ID, Owner: call.Tenant, Title: d.Title, Descriptor: string(d.Raw),
	})
	return done, releaseOnReject(ctx, err)
}

// claimCase claims all ids that differ from this one only in case, before the views are
// queried for one: the views may lag behind concurrent registrations. After a registration
// the claim is kept until it expires. releaseOnReject releases it if its argument is a
// rejection, and returns its argument.
func (s *Service) claimCase(ctx context.Context, id string) (releaseOnReject func(context.Context, error) error, err error) {
	key := sha256.Sum256(events.LengthPrefixed("credstream/component-case/1", strings.ToLower(id)))
	attempt := events.NewID()
	switch claimed, _, err := s.Kernel.Claims().Begin(ctx, key, id, attempt); {
	case err != nil:
		return nil, err
	case claimed != id:
		return func(_ context.Context, err error) error { return err }, s.differsInCase(ctx, id, claimed)
	}
	return func(ctx context.Context, err error) error {
		if err != nil && service.IsRejected(err) {
			if _, freeErr := s.Kernel.Claims().Refuse(ctx, key, attempt); freeErr != nil {
				s.Logger.DebugContext(ctx, "claim of a component id not released; it will expire", "component", id, "err", freeErr)
			}
		}
		return err
	}, nil
}

// differsInCase refuses an id that differs only in case from another one, unless it
// exists: then the component itself reports that it is taken.
func (s *Service) differsInCase(ctx context.Context, id, other string) error {
	state, err := aggregates.Component.Fresh(ctx, s.Log, aggregates.Component.Stream(events.System, id))
	if err != nil || state.Value.Exists {
		return err
	}
	return ErrComponentIDCase.Withf("An id must not differ only in case from another one: %s exists or was deleted. Choose another id.", other).At("/id")
}

// ErrComponentIDCase refuses an id that people and file systems confuse with another one.
var ErrComponentIDCase = fault.New(fault.Exists, "component_id_case",
	"Another component's id differs only in case. Choose another id.")

// checkCase refuses the id of a new component that differs only in case from one that
// exists or was deleted. Components that were registered before this rule are not affected.
func (s *Service) checkCase(ctx context.Context, id string) error {
	other, found, err := s.Views.ComponentLike(ctx, id)
	if err != nil || !found {
		return err
	}
	return s.differsInCase(ctx, id, other)
}

type Update struct {
	ID         string         `json:"id"`
	Descriptor jsontext.Value `json:"descriptor"`                 // the component.json
	Expected   int            `json:"expected_revision,omitzero"` // refuse unless this is the revision of the current descriptor
}

// CheckQueueable refuses a body that must not be stored in a queue.
func (in Update) CheckQueueable() error {
	_, err := parseDescriptor(in.Descriptor)
	return err
}

func (s *Service) updateComponent(ctx context.Context, call *service.Call, in Update) (service.Done, error) {
	d, err := parseDescriptor(in.Descriptor)
	if err != nil {
		return service.Done{}, err
	}
	if err := CheckRevision("/expected_revision", in.Expected, max(in.Expected, 0)); err != nil {
		return service.Done{}, err
	}
	done, err := s.changeComponent(ctx, call, commands.UpdateComponent{
		ID: in.ID, Owner: call.Tenant, Title: d.Title, Descriptor: string(d.Raw), Expected: in.Expected,
	})
	if errors.Is(err, aggregates.ErrComponentRevisionStale) {
		err = fault.Of(err).At("/expected_revision")
	}
	return done, err
}

// parseDescriptor parses a descriptor for storage.
func parseDescriptor(raw jsontext.Value) (commands.Descriptor, error) {
	if len(raw) == 0 {
		return commands.Descriptor{}, service.Required("/descriptor", "")
	}
	d, err := commands.ParseDescriptor(raw)
	if err == nil {
		err = commands.CheckNoSecrets(raw)
	}
	if f := fault.Of(err); f != nil && err != nil {
		return d, f.At("/descriptor" + f.Pointer)
	}
	return d, nil
}

// ID names one component.
type ID struct {
	ID string `json:"id"`
}

func (s *Service) shareComponent(ctx context.Context, call *service.Call, in ID) (service.Done, error) {
	return s.changeComponent(ctx, call, commands.ShareComponent{ID: in.ID, Owner: call.Tenant})
}

func (s *Service) unshareComponent(ctx context.Context, call *service.Call, in ID) (service.Done, error) {
	return s.changeComponent(ctx, call, commands.UnshareComponent{ID: in.ID, Owner: call.Tenant})
}

// ErrComponentDeleted is returned to the owner of a deleted component. It is exported for an
// edge that replaces its sentence.
var ErrComponentDeleted = aggregates.ErrComponentDeleted

// ErrRevisionStale refuses an update of a revision that is not current. It is exported for an edge
// that compares before it updates.
var ErrRevisionStale = aggregates.ErrComponentRevisionStale

type Delete struct {
	ID     string `json:"id"`
	DryRun bool   `json:"dry_run,omitzero"` // show the impact; delete nothing
}

func (s *Service) deleteComponent(ctx context.Context, call *service.Call, in Delete) (flow.Tried, error) {
	if in.DryRun {
		return s.tryDeleteComponent(ctx, call, in.ID)
	}
	done, err := s.changeComponent(ctx, call, commands.DeleteComponent{ID: in.ID, Owner: call.Tenant})
	return flow.Tried{Done: done}, err
}

// SetEnv requests values of the variables that a descriptor declares in
// envVars or env.
type SetEnv struct {
	ID       string       `json:"id"`
	Values   secrets.Keys `json:"values"`                     // strings by variable; they replace all values
	Expected int          `json:"expected_revision,omitzero"` // refuse unless this is the revision of the component's current descriptor
}

// ErrEnvUnknown rejects a variable that the descriptor does not declare.
var ErrEnvUnknown = fault.New(fault.Unprocessable, "component_env_unknown", "The component's descriptor does not declare this variable.")

func (s *Service) setComponentEnv(ctx context.Context, call *service.Call, in SetEnv) (service.Done, error) {
	d, revision, err := s.UsableAt(ctx, call.Tenant, in.ID, "/id", in.Expected)
	if err != nil {
		return service.Done{}, err
	}
	names := in.Values.Names()
	if len(names) == 0 {
		return service.Done{}, service.Required("/values", "")
	}
	for _, name := range names {
		at := "/values/" + service.EscapePointer(name)
		if !slices.Contains(d.Env, name) {
			return service.Done{}, ErrEnvUnknown.At(at)
		}
		v, text := in.Values.Text(name)
		switch {
		case !text:
			return service.Done{}, service.ErrBody.Withf("The value of a variable must be a string.").At(at)
		case string(v.Reveal()) == secrets.Mask:
			return service.Done{}, secrets.ErrKeysMasked.At(at)
		}
	}
	var done service.Done
	owner := vault.Ref{Tenant: call.Tenant, Category: aggregates.Component.Category, Owner: in.ID}
	err = s.Secrets.WithSecret(ctx, owner, in.Values.Marshal(), func(secretID string) error {
		done, err = s.changeComponent(ctx, call, commands.SetComponentEnv{ID: in.ID, Owner: call.Tenant, Names: names, SecretID: secretID, Revision: revision})
		return err
	})
	if in.Expected == 0 && errors.Is(err, aggregates.ErrComponentChanged) {
		return s.setComponentEnv(ctx, call, in) // updated concurrently: use the new descriptor
	}
	return done, err
}

// ClientKind is the kind of OAuth client that serves a component in a tenant.
type ClientKind string

// A client that the tenant defined takes precedence over the owner's variables.
const (
	clientNotNeeded ClientKind = ""        // the component works without one
	ClientMissing   ClientKind = "missing" // there is none: no credential can be created
	clientOfTenant  ClientKind = "defined" // the tenant's own
	clientOfOwner   ClientKind = "env"     // the variables of the component, in its owner's tenant
)

// needsClient reports whether a component requires an OAuth client: one that
// a tenant can define, or the legacy one of its variables.
func needsClient(d commands.Descriptor) bool {
	return d.WantsClient || d.ClientIDVar != "" && d.UsesOAuth && d.CannotConnect == ""
}

// ClientOf returns which OAuth client serves the component in the tenant.
func (s *Service) ClientOf(ctx context.Context, tenant, component string, d commands.Descriptor) (ClientKind, error) {
	if !needsClient(d) {
		return clientNotNeeded, nil
	}
	client, err := aggregates.OAuthClient.Fresh(ctx, s.Log, aggregates.OAuthClient.Stream(tenant, component))
	if err != nil || client.Value.ID != "" && !client.Value.Unusable {
		return clientOfTenant, err
	}
	stream := aggregates.Component.Stream(events.System, component)
	hasClientVars := func(c aggregates.ComponentState) bool {
		return c.Owner == tenant && slices.Contains(c.EnvNames, d.ClientIDVar) && slices.Contains(c.EnvNames, d.ClientSecretVar)
	}
	owner, err := aggregates.Component.Load(ctx, s.Log, stream)
	if err == nil && !hasClientVars(owner.Value) { // base a refusal on the newest state
		owner, err = aggregates.Component.Fresh(ctx, s.Log, stream)
	}
	if err != nil || !hasClientVars(owner.Value) {
		return ClientMissing, err
	}
	return clientOfOwner, nil
}

func (s *Service) changeComponent(ctx context.Context, call *service.Call, cmd commands.Component) (service.Done, error) {
	if events.CheckName(cmd.Target()) != nil {
		return service.Done{}, aggregates.ErrComponentNotFound.At("/id")
	}
	before, state, err := secrets.Change(ctx, s.Secrets, call, aggregates.Component, events.System, cmd)
	if err != nil {
		return service.Done{}, err
	}
	if _, deleted := cmd.(commands.DeleteComponent); deleted {
		// The reconciler does this too, but later.
		if err := errors.Join(s.Kernel.AtLeast(ctx, state.Seq), s.Clients.MarkClients(ctx)); err != nil {
			s.Logger.WarnContext(ctx, "OAuth clients not updated yet; the reconciler will retry", "component", cmd.Target(), "err", err)
		}
	}
	return s.Kernel.Answered(aggregates.Component.Stream(events.System, cmd.Target()), before, state.Value, state.Seq), nil
}

// Slug derives a component id from a title or a file name: lower case, words
// joined by '-', at most 64 characters; "component" when nothing is left.
func Slug(title string) string {
	var b strings.Builder
	for _, c := range strings.ToLower(title) {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
			b.WriteRune(c)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		if b.Len() == 64 {
			break
		}
	}
	if slug := strings.Trim(b.String(), "-"); slug != "" {
		return slug
	}
	return "component"
}

type descriptorKey struct {
	component string
	revision  int
}

// Usable returns a component for which the tenant may create credentials, with
// the current descriptor: ErrComponentNotFound, ErrComponentDeleted.
func (s *Service) Usable(ctx context.Context, tenant, component string) (commands.Descriptor, int, error) {
	if events.CheckName(component) != nil {
		return commands.Descriptor{}, 0, aggregates.ErrComponentNotFound
	}
	// A cached state is sufficient to allow the call: one more credential for a component that was just
	// deleted does no harm. A refusal must be based on the newest state.
	stream := aggregates.Component.Stream(events.System, component)
	state, err := aggregates.Component.Load(ctx, s.Log, stream)
	if err == nil && (!state.Value.VisibleTo(tenant) || state.Value.Deleted) {
		state, err = aggregates.Component.Fresh(ctx, s.Log, stream)
	}
	switch {
	case err != nil:
		return commands.Descriptor{}, 0, err
	case !state.Value.VisibleTo(tenant):
		return commands.Descriptor{}, 0, aggregates.ErrComponentNotFound
	case state.Value.Deleted:
		return commands.Descriptor{}, 0, aggregates.ErrComponentDeleted
	}
	d, err := s.Descriptor(ctx, component, state.Value.Revision)
	return d, state.Value.Revision, err
}

// UsableAt is Usable for a caller that has inspected a revision: ErrComponentChanged
// if another one is current. expected 0 accepts any. Other errors of the
// component point at pointer.
func (s *Service) UsableAt(ctx context.Context, tenant, component, pointer string, expected int) (commands.Descriptor, int, error) {
	d, revision, err := s.Usable(ctx, tenant, component)
	if err != nil || expected == 0 || revision == expected {
		return d, revision, service.PointAt(err, pointer)
	}
	// Base a refusal on the newest state.
	state, err := aggregates.Component.Fresh(ctx, s.Log, aggregates.Component.Stream(events.System, component))
	if err == nil {
		err = CheckRevision("/expected_revision", expected, state.Value.Revision)
	}
	if err != nil {
		return commands.Descriptor{}, 0, err
	}
	d, err = s.Descriptor(ctx, component, expected)
	return d, expected, err
}

// CheckRevision returns ErrComponentChanged if a caller expects another
// revision of a component than the current one. expected 0 accepts any.
func CheckRevision(pointer string, expected, revision int) error {
	switch {
	case expected < 0:
		return service.ErrBody.Withf("A revision is a number from 1.").At(pointer)
	case expected != 0 && expected != revision:
		return aggregates.ErrComponentChanged.At(pointer).With(map[string]int{"revision": revision})
	}
	return nil
}

// Owned reports whether the tenant owns the component, even if it was deleted.
func (s *Service) Owned(ctx context.Context, tenant, component string) (bool, error) {
	if events.CheckName(component) != nil {
		return false, nil
	}
	state, err := aggregates.Component.Fresh(ctx, s.Log, aggregates.Component.Stream(events.System, component))
	return state.Value.Exists && state.Value.Owner == tenant, err
}

// Descriptor returns one revision of a component's descriptor. A revision never
// changes, so it is parsed once. For component "" it returns the zero Descriptor.
func (s *Service) Descriptor(ctx context.Context, component string, revision int) (commands.Descriptor, error) {
	if component == "" {
		return commands.Descriptor{}, nil
	}
	key := descriptorKey{component, revision}
	if d, ok := s.descriptors.Get(key); ok {
		return d, nil
	}
	raw, err := s.storedDescriptor(ctx, component, revision)
	if err != nil {
		return commands.Descriptor{}, fmt.Errorf("descriptor of %s: %w", component, err)
	}
	d, err := commands.ParseDescriptor([]byte(raw))
	if err != nil {
		return d, fmt.Errorf("stored descriptor of %s, revision %d: %w", component, revision, err)
	}
	s.descriptors.Add(key, d)
	return d, nil
}

// storedDescriptor reads one revision of a descriptor. The views have the sequence of its
// commit. If they lag behind, it searches the component's stream backwards.
func (s *Service) storedDescriptor(ctx context.Context, component string, revision int) (string, error) {
	stream := aggregates.Component.Stream(events.System, component)
	seq, position, err := s.Views.Revision(ctx, component, revision)
	if err != nil { // the log has it anyway
		s.Logger.WarnContext(ctx, "revision of a component not found in the read models; reading the log", "component", component, "revision", revision, "err", err)
	}
	if seq != 0 {
		recs, err := s.Log.Store.Commit(ctx, seq)
		if err != nil {
			return "", err
		}
		for _, rec := range recs {
			if raw, found := descriptorIn(rec, revision); found && rec.Stream == stream {
				return raw, nil
			}
		}
	}
	for rec, err := range s.Log.Store.Back(ctx, stream, 0) {
		if err != nil {
			return "", err
		}
		if rec.Seq <= position && seq == 0 {
			break
		}
		if raw, found := descriptorIn(rec, revision); found {
			return raw, nil
		}
	}
	return "", fmt.Errorf("there is no revision %d", revision)
}

// descriptorIn returns the descriptor in a record, and whether it is that of the revision.
func descriptorIn(rec events.Record, revision int) (raw string, found bool) {
	switch e := rec.Event.(type) {
	case events.ComponentRegistered:
		return e.Descriptor, revision == 1
	case events.ComponentUpdated:
		return e.Descriptor, revision == e.Revision
	}
	return "", false
}

type Get struct {
	ID     string `json:"id"`
	MinSeq uint64 `json:"min_seq,omitzero"` // wait until the response reflects this log sequence
}

// Info is the form of a component in lists.
type Info struct {
	ID          string     `json:"id"`
	Title       string     `json:"title"`
	Owner       string     `json:"owner,omitzero"` // shown only to the owner
	Shared      bool       `json:"shared"`
	Deleted     bool       `json:"deleted"`
	Revision    int        `json:"revision"`
	CreatedAt   time.Time  `json:"created_at"`
	UpdatedAt   time.Time  `json:"updated_at"`
	Credentials int        `json:"credentials"`                 // the tenant's own
	OAuthClient ClientKind `json:"oauth_client,omitzero"`       // defined, env or missing; absent when the component needs none
	NeedsClient bool       `json:"needs_oauth_client,omitzero"` // shown only to callers who may define one: the component is invisible to others

	CannotConnect string `json:"cannot_connect,omitzero"` // why no account can be connected, a sentence; absent if accounts can be connected, or need not be
}

type Component struct {
	Info
	Descriptor jsontext.Value `json:"descriptor"`
}

func (s *Service) getComponent(ctx context.Context, call *service.Call, in Get) (Component, error) {
	if err := s.Kernel.AtLeast(ctx, in.MinSeq); err != nil {
		return Component{}, err
	}
	c, found, err := s.Views.Component(ctx, in.ID)
	switch {
	case err != nil:
		return Component{}, err
	case !found || c.Owner != call.Tenant && !c.Shared:
		return Component{}, aggregates.ErrComponentNotFound
	}
	d, err := s.Descriptor(ctx, c.ID, c.Revision)
	if err != nil {
		return Component{}, err
	}
	kind, visible, err := s.visibility(ctx, call, c, &d)
	if err != nil || !visible {
		return Component{}, errors.Join(err, aggregates.ErrComponentNotFound)
	}
	counts, err := s.Views.CredentialCounts(ctx, call.Tenant, projections.CredentialFilter{Component: c.ID, Scope: call.Principal.Scope})
	if err != nil {
		return Component{}, err
	}
	return Component{componentInfo(c, call.Tenant, perComponent(counts), kind, d), d.Raw}, nil
}

// List requests the components that a tenant may use: its own and the shared ones.
type List struct {
	Limit  int    `json:"limit,omitzero"`   // 1 to 200; 50 when absent
	After  string `json:"after,omitzero"`   // cursor of the previous page
	MinSeq uint64 `json:"min_seq,omitzero"` // wait until the response reflects this log sequence
}

type Page struct {
	Components []Info `json:"components"`
	Next       string `json:"next,omitzero"` // cursor of the next page; absent on the last
	Total      int    `json:"total"`         // of all pages
}

func (s *Service) listComponents(ctx context.Context, call *service.Call, in List) (Page, error) {
	limit, err := service.PageSize(in.Limit)
	if err != nil {
		return Page{}, err
	}
	if err := s.Kernel.AtLeast(ctx, in.MinSeq); err != nil {
		return Page{}, err
	}
	counts, err := s.Views.CredentialCounts(ctx, call.Tenant, projections.CredentialFilter{Scope: call.Principal.Scope})
	if err != nil {
		return Page{}, err
	}
	n := perComponent(counts)
	list := Page{Components: []Info{}, Next: in.After}
	if list.Total, err = s.componentTotal(ctx, call); err != nil {
		return list, err
	}
	for { // until the page is full: invisible components leave no gap
		var page []projections.Component
		page, list.Next, err = s.Views.Components(ctx, call.Tenant, list.Next, limit-len(list.Components))
		if err != nil {
			return list, err
		}
		for _, c := range page {
			d, err := s.Descriptor(ctx, c.ID, c.Revision)
			if err != nil {
				return list, err
			}
			kind, visible, err := s.visibility(ctx, call, c, &d)
			if err != nil {
				return list, err
			}
			if visible {
				list.Components = append(list.Components, componentInfo(c, call.Tenant, n, kind, d))
			}
		}
		if list.Next == "" || len(list.Components) == limit {
			return list, nil
		}
	}
}

// componentTotal is the number of components that the caller may see, according to the views.
func (s *Service) componentTotal(ctx context.Context, call *service.Call) (int, error) {
	total, err := s.Views.ComponentCount(ctx, call.Tenant)
	if err != nil || call.Principal.May(permission.OAuthClientsCreate) {
		return total, err
	}
	hasClient := map[string]bool{}
	for after, more := "", true; more; more = after != "" {
		var page []projections.OAuthClient
		if page, after, err = s.Views.OAuthClients(ctx, call.Tenant, after, scanPageSize); err != nil {
			return 0, err
		}
		for _, k := range page {
			hasClient[k.Component] = !k.Unusable
		}
	}
	for after, more := "", true; more; more = after != "" {
		var page []projections.Component
		if page, after, err = s.Views.Components(ctx, call.Tenant, after, scanPageSize); err != nil {
			return 0, err
		}
		for _, c := range page {
			if c.Owner == call.Tenant || hasClient[c.ID] {
				continue
			}
			switch wants, err := s.wantsClient(ctx, c.ID, c.Revision); {
			case err != nil:
				return 0, err
			case wants:
				total--
			}
		}
	}
	return total, nil
}

// scanPageSize is the page size when all of a view is read.
const scanPageSize = 1000

// wantsClient caches needsClient by revision, for more components than the cache of
// descriptors holds.
func (s *Service) wantsClient(ctx context.Context, component string, revision int) (bool, error) {
	key := descriptorKey{component, revision}
	if wants, ok := s.wants.Get(key); ok {
		return wants, nil
	}
	d, err := s.Descriptor(ctx, component, revision)
	if err == nil {
		s.wants.Add(key, needsClient(d))
	}
	return needsClient(d), err
}

// visibility returns the kind of the component's OAuth client, and whether the caller may see
// the component. One of another tenant that requires an OAuth client is visible if the tenant
// has a client, and to callers who may define one. d gets the endpoints that the tenant's OAuth
// client supplies.
func (s *Service) visibility(ctx context.Context, call *service.Call, c projections.Component, d *commands.Descriptor) (ClientKind, bool, error) {
	kind, err := s.ClientOf(ctx, call.Tenant, c.ID, *d)
	if err == nil && d.AcceptsEndpoints() {
		*d, err = s.Effective(ctx, call.Tenant, c.ID, *d)
	}
	return kind, c.Owner == call.Tenant || kind != ClientMissing || call.Principal.May(permission.OAuthClientsCreate), err
}

// Effective returns d with the endpoints that the tenant's OAuth client supplies, if the
// component.json has none that are usable.
func (s *Service) Effective(ctx context.Context, tenant, component string, d commands.Descriptor) (commands.Descriptor, error) {
	if !d.AcceptsEndpoints() {
		return d, nil
	}
	state, err := aggregates.OAuthClient.Fresh(ctx, s.Log, aggregates.OAuthClient.Stream(tenant, component))
	if err != nil || state.Value.ID == "" {
		return d, err
	}
	return d.WithEndpoints(state.Value.Endpoints)
}

func componentInfo(c projections.Component, tenant string, credentials map[string]int, kind ClientKind, d commands.Descriptor) Info {
	info := Info{
		ID: c.ID, Title: c.Title, Shared: c.Shared, Deleted: c.Deleted, Revision: c.Revision,
		CreatedAt: c.CreatedAt, UpdatedAt: c.UpdatedAt, Credentials: credentials[c.ID],
		OAuthClient: kind, NeedsClient: kind == ClientMissing, CannotConnect: d.CannotConnect,
	}
	if c.Owner == tenant {
		info.Owner = c.Owner
	}
	return info
}

func perComponent(counts []projections.Count) map[string]int {
	n := map[string]int{}
	for _, c := range counts {
		n[c.Component] += c.N
	}
	return n
}
