// Package transfer exports a tenant for another installation: everything in it, signed, with
// the secrets sealed to a recipient or left out. An import consists of the commands of the
// other features.
package transfer

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"filippo.io/age"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/sync/errgroup"

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// Deps are the dependencies of a Service.
type Deps struct {
	Kernel     *service.Kernel
	Access     Access
	Components Components
	Log        *aggregates.Log
	Views      *projections.Views
	Keyring    *seal.Keyring
	Logger     *slog.Logger
}

// Access records denials.
type Access interface {
	Denied(ctx context.Context, call *service.Call, perm permission.Permission)
}

// Components provides the descriptors of components.
type Components interface {
	Descriptor(ctx context.Context, component string, revision int) (commands.Descriptor, error)
}

// Service implements the routes of exports. It is safe for concurrent use.
type Service struct{ Deps }

// New creates a Service.
func New(deps Deps) *Service { return &Service{deps} }

// Answers returns nil: Done is the whole response.
func (s *Service) Answers() []service.Answer { return nil }

// Routes are the routes of the feature.
func (s *Service) Routes() []service.Route {
	return []service.Route{
		service.AuditedQuery("export.page", permission.CredentialsExport, s.page,
			"The next part of a signed export of the tenant. With a recipient it holds the secrets, sealed to it: that requires credentials.reveal too, and each access is audited first.").Scan(),
		service.Query("export.key", permission.CredentialsExport, s.key, "The public key that verifies the signatures of the tenant's exports."),
	}
}

// The bounds of one page.
const (
	pageItems  = 128
	pageBytes  = 256 << 10 // after which no more items are added
	sealAtOnce = 16        // items
)

// ErrCursor rejects a cursor that the service did not create.
var ErrCursor = fault.New(fault.Invalid, "export_cursor_invalid", "The cursor is not one of an export of this tenant. Start the export again.")

// Page requests the next part of an export.
type Page struct {
	To    string `json:"to,omitzero"`    // age public key to which the secrets are sealed; without it they are left out; of the first page
	After string `json:"after,omitzero"` // next of the previous page; without it an export begins
}

// Exported is a part of an export.
type Exported struct {
	Text  string `json:"text"`           // to be appended to the file as it is
	Items int    `json:"items"`          // in all pages up to this one
	Next  string `json:"next,omitzero"`  // after of the next page; absent on the last
	Total int    `json:"total,omitzero"` // credentials of the tenant; on the first page
}

// SigningKey is the public key of a tenant's signatures.
type SigningKey struct {
	Key string `json:"key"` // ed25519: and unpadded base64url
}

func (s *Service) key(ctx context.Context, call *service.Call, _ struct{}) (SigningKey, error) {
	key, err := s.Keyring.SigningKey(ctx, call.Tenant)
	return SigningKey{FormatKey(key)}, err
}

// cursor is the state of an export between two pages. The caller keeps it, with a MAC, so that
// the service signs only what it has written.
type cursor struct {
	Export string `json:"export"`
	To     string `json:"to,omitzero"`
	Kinds  []int  `json:"kinds"` // remaining parts, by index
	After  string `json:"after,omitzero"`
	Items  int    `json:"items"`
	Sum    []byte `json:"sum"` // state of the hash
}

func (s *Service) cursorMAC(ctx context.Context, tenant, text string) ([]byte, error) {
	return s.Keyring.MAC(ctx, tenant, events.LengthPrefixed("credstream/export-cursor/1", text))
}

func (s *Service) writeCursor(ctx context.Context, tenant string, c cursor) (string, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encode the cursor of an export: %w", err)
	}
	mac, err := s.cursorMAC(ctx, tenant, string(text))
	return base64.RawURLEncoding.EncodeToString(append(mac, text...)), err
}

func (s *Service) readCursor(ctx context.Context, tenant, text string) (c cursor, err error) {
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(raw) < sha256.Size {
		return c, ErrCursor.At("/after")
	}
	mac, err := s.cursorMAC(ctx, tenant, string(raw[sha256.Size:]))
	if err != nil {
		return c, err
	}
	if !hmac.Equal(mac, raw[:sha256.Size]) || json.Unmarshal(raw[sha256.Size:], &c) != nil {
		return c, ErrCursor.At("/after")
	}
	return c, nil
}

// part reads the items of one kind, without their secrets.
type part struct {
	kind string
	perm permission.Permission // without it, the part is left out
	read func(s *Service, ctx context.Context, tenant, after string) (items []Item, more bool, err error)
}

// parts are in the order of Kinds.
var parts = []part{
	{KindComponent, permission.ComponentsGet, (*Service).components},
	{KindThrottlePolicy, permission.ThrottlePoliciesGet, (*Service).policies},
	{KindAuthClient, permission.OAuthClientsGet, (*Service).authClients},
	{KindOAuthClient, permission.OAuthClientsGet, (*Service).oauthClients},
	{KindCredential, permission.CredentialsExport, (*Service).credentials},
	{KindFlow, permission.FlowsGet, (*Service).flows},
	{KindRole, permission.KeysManage, (*Service).roles},
}

func (s *Service) page(ctx context.Context, call *service.Call, in Page) (out Exported, err error) {
	var c cursor
	hash := sha256.New()
	var text []byte
	write := func(v any) error {
		line, err := json.Marshal(v, json.Deterministic(true))
		if err != nil {
			return fmt.Errorf("encode a line of an export: %w", err)
		}
		at := len(text)
		text = append(append(text, line...), '\n')
		_, _ = hash.Write(text[at:])
		return nil
	}
	if in.After == "" {
		if c, out.Total, err = s.begin(ctx, call, in.To, write); err != nil {
			return out, err
		}
	} else {
		if c, err = s.readCursor(ctx, call.Tenant, in.After); err != nil {
			return out, err
		}
		if err := hash.(encoding.BinaryUnmarshaler).UnmarshalBinary(c.Sum); err != nil {
			return out, fmt.Errorf("read the state of an export: %w", err)
		}
	}
	var to age.Recipient
	if c.To != "" {
		if err := s.require(ctx, call, permission.CredentialsReveal); err != nil {
			return out, err
		}
		if to, err = parseRecipient(c.To); err != nil {
			return out, err
		}
		defer admission.Idle(ctx)() // each access is admitted separately
	}
	for len(c.Kinds) > 0 && len(text) < pageBytes {
		p := parts[c.Kinds[0]]
		if err := s.require(ctx, call, p.perm); err != nil { // the permission may have been revoked since the export began
			return out, err
		}
		items, more, err := p.read(s, ctx, call.Tenant, c.After)
		if err != nil {
			return out, err
		}
		n := 0
		for chunk := range slices.Chunk(items, sealAtOnce) {
			if len(text) >= pageBytes {
				break
			}
			deleted, err := s.seal(ctx, call, to, c.Export, chunk)
			if err != nil {
				return out, err
			}
			for i, item := range chunk {
				n, c.After = n+1, item.cursor
				if deleted[i] || item.Kind == "" {
					continue
				}
				if err := write(item); err != nil {
					return out, err
				}
				c.Items++
			}
		}
		if n == len(items) && !more {
			c.Kinds, c.After = c.Kinds[1:], ""
		}
	}
	out.Items = c.Items
	if len(c.Kinds) == 0 {
		sum := hash.Sum(nil)
		signature, err := s.Keyring.Sign(ctx, call.Tenant, Signed(sum))
		if err == nil {
			err = write(End{Kind: "end", Items: c.Items, SHA256: hex.EncodeToString(sum), Signature: base64.StdEncoding.EncodeToString(signature)})
		}
		out.Text = string(text)
		return out, err
	}
	if c.Sum, err = hash.(encoding.BinaryMarshaler).MarshalBinary(); err != nil {
		return out, fmt.Errorf("keep the state of an export: %w", err)
	}
	out.Text = string(text)
	out.Next, err = s.writeCursor(ctx, call.Tenant, c)
	return out, err
}

// begin writes the header.
func (s *Service) begin(ctx context.Context, call *service.Call, to string, write func(any) error) (c cursor, total int, err error) {
	c = cursor{Export: events.NewID(), To: to}
	if to != "" {
		if _, err := parseRecipient(to); err != nil {
			return c, 0, err
		}
		if err := s.require(ctx, call, permission.CredentialsReveal); err != nil {
			return c, 0, err
		}
	}
	end, err := s.Log.Store.End(ctx) // with everything acknowledged by any process
	if err == nil {
		err = s.Kernel.AtLeast(ctx, end)
	}
	if err != nil {
		return c, 0, err
	}
	key, err := s.Keyring.SigningKey(ctx, call.Tenant)
	if err != nil {
		return c, 0, err
	}
	header := Header{
		Kind: "export", Format: Format, ID: c.Export, Tenant: call.Tenant, Time: s.Kernel.Now().UTC().Truncate(time.Second), To: to, Key: FormatKey(key),
	}
	for i, p := range parts {
		if call.Principal.May(p.perm) {
			c.Kinds = append(c.Kinds, i)
		} else {
			header.LeftOut = append(header.LeftOut, p.kind)
		}
	}
	if _, total, err = s.Views.SearchCredentials(ctx, projections.CredentialSearch{Tenant: call.Tenant}); err != nil {
		return c, 0, err
	}
	return c, total, write(header)
}

func (s *Service) require(ctx context.Context, call *service.Call, perm permission.Permission) error {
	if call.Principal.May(perm) {
		return nil
	}
	s.Access.Denied(ctx, call, perm)
	return service.ErrDenied.Withf("The key lacks the permission %s.", perm)
}

// seal encrypts the secrets of items, or lists them as missing. deleted marks the items that
// were deleted after the views were read.
func (s *Service) seal(ctx context.Context, call *service.Call, to age.Recipient, export string, items []Item) (deleted []bool, err error) {
	deleted = make([]bool, len(items))
	var group errgroup.Group
	for i := range items {
		item := &items[i]
		if len(item.fields) == 0 {
			continue
		}
		route := item.Kind + ".reveal"
		if to == nil || item.Kind == KindComponent {
			item.Missing = item.fields
			continue
		}
		group.Go(func() error {
			member := "id"
			if item.Kind == KindOAuthClient {
				member = "component"
			}
			body, err := json.Marshal(map[string]string{member: item.ID})
			if err != nil {
				return fmt.Errorf("ask for the secrets of %s %s: %w", item.Kind, item.ID, err)
			}
			answer, err := s.Kernel.Each(ctx, call, route, item.ID, body)
			switch f := fault.Of(err); {
			case err == nil:
			case f.Code == item.Kind+"_not_found":
				deleted[i] = true
				return nil
			case f.Kind == fault.Denied && item.Kind == KindAuthClient, f.Kind == fault.Precondition, f.Kind == fault.NotFound:
				item.Missing = item.fields // a global auth client, or its secrets were erased
				return nil
			default:
				return err
			}
			keys, err := revealed(answer)
			if err == nil {
				item.Sealed, err = sealTo(to, Sealed{Export: export, Kind: item.Kind, ID: item.ID, Keys: keys})
			}
			return err
		})
	}
	return deleted, group.Wait()
}

// revealed extracts the values from the response to a reveal.
func revealed(answer any) (jsontext.Value, error) {
	clear, err := json.Marshal(answer, json.Deterministic(true))
	var values struct {
		Keys         jsontext.Value `json:"keys"`
		Credentials  jsontext.Value `json:"credentials"`
		ClientSecret jsontext.Value `json:"client_secret"`
	}
	if err == nil {
		err = json.Unmarshal(clear, &values)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the values of %T", answer) // without the decoder's words, which may quote them
	case values.Keys != nil:
		return values.Keys, nil
	case values.Credentials != nil:
		return values.Credentials, nil
	}
	return jsontext.Value(`{"client_secret":` + string(values.ClientSecret) + `}`), nil
}

// itemOf creates an item from its facts and the names of its secrets.
func itemOf(kind, id, cursor string, facts any, fields []string) (Item, error) {
	raw, err := json.Marshal(facts, json.Deterministic(true))
	if err != nil {
		return Item{}, fmt.Errorf("encode %s %s: %w", kind, id, err)
	}
	return Item{Kind: kind, ID: id, Facts: raw, cursor: cursor, fields: fields}, nil
}

// listed converts a page to items. An item without a kind is skipped.
func listed[T any](page []T, next string, err error, item func(T) (Item, error)) ([]Item, bool, error) {
	if err != nil {
		return nil, false, err
	}
	items := make([]Item, len(page))
	for i := range page {
		if items[i], err = item(page[i]); err != nil {
			return nil, false, err
		}
	}
	return items, next != "", nil
}

func (s *Service) components(ctx context.Context, tenant, after string) ([]Item, bool, error) {
	page, next, err := s.Views.Components(ctx, tenant, after, pageItems)
	return listed(page, next, err, func(c projections.Component) (Item, error) {
		if c.Owner != tenant {
			return Item{cursor: c.ID}, nil
		}
		d, err := s.Components.Descriptor(ctx, c.ID, c.Revision)
		if err != nil {
			return Item{}, err
		}
		var env []string
		if c.Env {
			env = d.Env
		}
		return itemOf(KindComponent, c.ID, c.ID, Component{Shared: c.Shared, Descriptor: d.Raw}, env)
	})
}

func (s *Service) policies(ctx context.Context, tenant, after string) ([]Item, bool, error) {
	page, next, _, err := s.Views.ThrottlePolicies(ctx, tenant, after, pageItems)
	return listed(page, next, err, func(p projections.ThrottlePolicy) (Item, error) {
		return itemOf(KindThrottlePolicy, p.ID, p.ID, ThrottlePolicy{Description: p.Settings.Description, Tokens: p.Settings.Tokens, Per: p.Settings.Per}, nil)
	})
}

// authClients are paged in the order of their creation, by a cursor for the whole page only.
func (s *Service) authClients(ctx context.Context, tenant, after string) ([]Item, bool, error) {
	page, next, _, err := s.Views.AuthClients(ctx, projections.AuthClientFilter{Tenant: tenant, Limit: sealAtOnce, After: after})
	return listed(page, next, err, func(k projections.AuthClient) (Item, error) {
		if k.Tenant != tenant {
			return Item{cursor: next}, nil
		}
		components := make([]string, len(k.Components))
		for i, c := range k.Components {
			components[i] = c.Component
		}
		return itemOf(KindAuthClient, k.ID, next, AuthClient{
			Name: k.Name, Type: k.Type, Scope: k.Scope, ScopeID: k.ScopeID, Components: components, ClientID: k.ClientID, Fields: k.Fields,
		}, k.Fields)
	})
}

func (s *Service) oauthClients(ctx context.Context, tenant, after string) ([]Item, bool, error) {
	page, next, err := s.Views.OAuthClients(ctx, tenant, after, pageItems)
	return listed(page, next, err, func(k projections.OAuthClient) (Item, error) {
		_, follows, err := s.Views.AuthClientFollowed(ctx, tenant, k.Component)
		if err != nil || follows || k.Unusable { // the import of the auth client defines it, or it is unusable
			return Item{cursor: k.Component}, err
		}
		return itemOf(KindOAuthClient, k.Component, k.Component, OAuthClient{ClientID: k.ClientID}, []string{"client_secret"})
	})
}

func (s *Service) credentials(ctx context.Context, tenant, after string) ([]Item, bool, error) {
	page, _, err := s.Views.SearchCredentials(ctx, projections.CredentialSearch{Tenant: tenant, After: after, Limit: pageItems + 1})
	next := ""
	if len(page) > pageItems {
		page, next = page[:pageItems], page[pageItems-1].ID
	}
	return listed(page, next, err, func(c projections.Credential) (Item, error) {
		facts := Credential{
			Component: c.Component, Type: c.Type, Name: c.Name, Description: c.Description, Workspace: c.Workspace, VPNAgent: c.VPNAgent,
			ThrottlePolicy: c.ThrottlePolicy, Fields: c.Fields, Status: c.Status, Version: c.Version,
			VerifiedAt: c.VerifiedAt, CreatedAt: c.CreatedAt, UpdatedAt: c.UpdatedAt,
		}
		if c.Type != "" {
			if err := s.freeRules(ctx, c, &facts); err != nil {
				return Item{}, err
			}
		}
		return itemOf(KindCredential, c.ID, c.ID, facts, c.Fields)
	})
}

func (s *Service) roles(ctx context.Context, tenant, after string) ([]Item, bool, error) {
	page, next, err := s.Views.Roles(ctx, tenant, after, pageItems)
	return listed(page, next, err, func(r projections.Role) (Item, error) {
		return itemOf(KindRole, r.Name, r.Name, Role{Title: r.Title, Permissions: r.Permissions}, nil)
	})
}

// freeRules adds the hosts and the dry request of a free type.
func (s *Service) freeRules(ctx context.Context, c projections.Credential, facts *Credential) error {
	state, err := aggregates.Credential.Load(ctx, s.Log, aggregates.Credential.Stream(c.Tenant, c.ID))
	if err != nil {
		return err
	}
	free := state.Value.Free(state.Value.Current().Version)
	if free == nil || free.Rules == "" {
		return nil
	}
	var rules struct {
		Hosts        []string       `json:"hosts"`
		Verification jsontext.Value `json:"verification"`
	}
	if err := json.Unmarshal([]byte(free.Rules), &rules); err != nil {
		return fmt.Errorf("read the rules of credential %s: %w", c.ID, err)
	}
	facts.Hosts, facts.Verification = rules.Hosts, rules.Verification
	return nil
}

func (s *Service) flows(ctx context.Context, tenant, after string) ([]Item, bool, error) {
	page, next, err := s.Views.Flows(ctx, projections.FlowFilter{Tenant: tenant, Limit: pageItems, After: after})
	return listed(page, next, err, func(f projections.Flow) (Item, error) {
		if f.Revision == 0 || f.Deleted { // the flow engine has not reported it
			return Item{cursor: f.ID}, nil
		}
		return itemOf(KindFlow, f.ID, f.ID, Flow{Name: f.Name, Revision: f.Revision, Active: f.Active, Steps: f.Steps, ReservedUntil: f.Until}, nil)
	})
}
