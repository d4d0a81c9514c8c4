package service

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
)

// Permission is one thing a caller may be allowed to do. The list is closed.
type Permission string

// The permissions.
const (
	ComponentsGet            Permission = "components.get"
	ComponentsCreate         Permission = "components.create"
	ComponentsEdit           Permission = "components.edit"
	ComponentsDelete         Permission = "components.delete"
	CredentialsGet           Permission = "credentials.get"
	CredentialsCreate        Permission = "credentials.create"
	CredentialsEdit          Permission = "credentials.edit"
	CredentialsDelete        Permission = "credentials.delete"
	CredentialsReveal        Permission = "credentials.reveal"
	CredentialsResolve       Permission = "credentials.resolve"
	OAuthClientsGet          Permission = "tenants.oauth_clients.get"
	OAuthClientsCreate       Permission = "tenants.oauth_clients.create"
	OAuthClientsEdit         Permission = "tenants.oauth_clients.edit"
	OAuthClientsDelete       Permission = "tenants.oauth_clients.delete"
	WorkspacesCredentialEdit Permission = "workspaces.credential.edit"
	FlowsGet                 Permission = "flows.get"
	FlowsEdit                Permission = "flows.edit"
	QueueManage              Permission = "queue.manage"
	AuditRead                Permission = "audit.read"
	TenantsManage            Permission = "tenants.manage"
	KeysManage               Permission = "keys.manage"
	ViewsManage              Permission = "views.manage"
)

// Role is a named set of permissions.
type Role string

// The roles. An OPERATOR reads what is known about credentials, never a secret;
// a FLOW_ENGINE fetches secrets, tells of flows and binds them; an AUDITOR reads history.
const (
	Administrator Role = "ADMINISTRATOR"
	Operator      Role = "OPERATOR"
	FlowEngine    Role = "FLOW_ENGINE"
	Auditor       Role = "AUDITOR"
)

// Roles says what each role may do.
var Roles = map[Role][]Permission{
	Administrator: {
		ComponentsGet, ComponentsCreate, ComponentsEdit, ComponentsDelete,
		CredentialsGet, CredentialsCreate, CredentialsEdit, CredentialsDelete,
		OAuthClientsGet, OAuthClientsCreate, OAuthClientsEdit, OAuthClientsDelete, WorkspacesCredentialEdit,
		FlowsGet, FlowsEdit, QueueManage, AuditRead, TenantsManage, KeysManage, ViewsManage,
	},
	Operator:   {ComponentsGet, CredentialsGet, FlowsGet},
	FlowEngine: {ComponentsGet, CredentialsGet, CredentialsResolve, FlowsGet, FlowsEdit},
	Auditor:    {ComponentsGet, CredentialsGet, FlowsGet, AuditRead},
}

// AllTenants in a key's tenants grants every tenant.
const AllTenants = "*"

// Principal is an authenticated caller.
type Principal struct {
	Actor   events.Actor
	Home    string   // tenant used where a surface names none
	Tenants []string // tenants it may name, or AllTenants
	Role    Role
}

// Reaches reports whether the principal may name the tenant.
func (p Principal) Reaches(tenant string) bool {
	return slices.Contains(p.Tenants, tenant) || slices.Contains(p.Tenants, AllTenants)
}

// May reports whether the principal's role holds the permission.
func (p Principal) May(perm Permission) bool { return slices.Contains(Roles[p.Role], perm) }

// The refusals of a caller.
var (
	ErrUnauthenticated = fault.New(fault.Unauthenticated, "unauthenticated",
		"A key is needed: HTTP Basic or Bearer, or the password of a NATS connection.")
	ErrKeyUnknown     = fault.New(fault.Unauthenticated, "api_key_unknown", "This key is not known here, or was revoked.")
	ErrDenied         = fault.New(fault.Denied, "permission_denied", "The key lacks the permission for this.")
	ErrTenantNotFound = fault.New(fault.NotFound, "tenant_not_found", "There is no such tenant.")
)

// keyPrefix starts every API key, so that scanners and people recognise one.
const keyPrefix = "cs_"

// NewKey makes an API key: "cs_" and 256 random bits as 52 letters and digits.
func NewKey() seal.Secret {
	return seal.NewSecret([]byte(keyPrefix + rand.Text() + rand.Text()))
}

// CheckKeyShape refuses, with ErrKeyUnknown, what cannot be a key: not "cs_" and
// 32 to 128 letters and digits.
func CheckKeyShape(key string) error {
	rest, ok := strings.CutPrefix(key, keyPrefix)
	if !ok || len(rest) < 32 || len(rest) > 128 {
		return ErrKeyUnknown
	}
	for i := range len(rest) {
		c := rest[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return ErrKeyUnknown
		}
	}
	return nil
}

// hashKey is how a key is known: hex SHA-256. The key's 256 random bits need no
// slower hash.
func hashKey(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

// knownKey is remembered until the views hear of a change to any key.
type knownKey struct {
	principal Principal
	changes   uint64 // Views.KeyChanges before the key was looked up
}

// Authenticate returns the principal of an API key, or ErrUnauthenticated when
// it is empty, or ErrKeyUnknown.
func (s *Service) Authenticate(ctx context.Context, key string) (Principal, error) {
	if key == "" {
		return Principal{}, ErrUnauthenticated
	}
	if err := CheckKeyShape(key); err != nil {
		return Principal{}, err
	}
	return s.principal(ctx, sha256.Sum256([]byte(key)))
}

// principal finds a key by its hash: a lookup by hash tells a guesser nothing
// by its timing.
func (s *Service) principal(ctx context.Context, sum [sha256.Size]byte) (Principal, error) {
	changes := s.cfg.Views.KeyChanges()
	if k, ok := s.keys.Get(sum); ok && k.changes == changes {
		return k.principal, nil
	}
	k, found, err := s.cfg.Views.APIKey(ctx, hex.EncodeToString(sum[:]))
	switch {
	case err != nil:
		return Principal{}, err
	case !found || k.Revoked:
		s.keys.Remove(sum)
		return Principal{}, ErrKeyUnknown
	}
	p := Principal{
		Actor: events.Actor{Kind: "key", ID: k.ID}, Home: k.Home, Tenants: k.Tenants, Role: Role(k.Role),
	}
	s.keys.Add(sum, knownKey{p, changes})
	return p, nil
}

// Principal returns the principal of a key that an edge has checked already and
// knows by its id, or ErrKeyUnknown when it was revoked since.
func (s *Service) Principal(ctx context.Context, id string) (Principal, error) {
	changes := s.cfg.Views.KeyChanges()
	if k, ok := s.keyIDs.Get(id); ok && k.changes == changes {
		return k.principal, nil
	}
	state, err := aggregates.APIKey.Fresh(ctx, s.cfg.Log, aggregates.APIKey.Stream(events.System, id))
	switch {
	case err != nil:
		return Principal{}, err
	case !state.Value.Exists || state.Value.Revoked:
		s.keyIDs.Remove(id)
		return Principal{}, ErrKeyUnknown
	}
	p := Principal{
		Actor: events.Actor{Kind: "key", ID: id}, Home: state.Value.Home,
		Tenants: state.Value.Tenants, Role: Role(state.Value.Role),
	}
	s.keyIDs.Add(id, knownKey{p, changes})
	return p, nil
}

// authorize is the one place where a call is let through: the tenant is one the
// caller may name and that exists, and the role holds the permission. Of a
// tenant that is not the caller's it says what it says of an unknown one.
func (s *Service) authorize(ctx context.Context, call *Call, perm Permission) error {
	if call.Principal.Actor.ID == "" {
		return ErrUnauthenticated
	}
	if events.CheckName(call.Tenant) != nil || !call.Principal.Reaches(call.Tenant) {
		return ErrTenantNotFound
	}
	exists, err := s.tenantExists(ctx, call.Tenant)
	switch {
	case err != nil:
		return err
	case !exists:
		return ErrTenantNotFound
	case !call.Principal.May(perm):
		return ErrDenied.Because("The key lacks the permission %s.", perm)
	case installationWide[perm] && !slices.Contains(call.Principal.Tenants, AllTenants):
		return ErrDenied.Because("The permission %s concerns every tenant: it takes a key that is granted every tenant.", perm)
	}
	return nil
}

// installationWide are the permissions that no key of single tenants has,
// whatever its role.
var installationWide = map[Permission]bool{TenantsManage: true, ViewsManage: true}
