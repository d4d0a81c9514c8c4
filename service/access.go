package service

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"
	"strings"
	"time"

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
	CredentialsExport        Permission = "credentials.export"
	WorkspacesCredentialEdit Permission = "workspaces.credential.edit"
	AuthSecretsGet           Permission = "workspaces.auth_secret.get"
	AuthSecretsCreate        Permission = "workspaces.auth_secret.create"
	AuthSecretsEdit          Permission = "workspaces.auth_secret.edit"
	AuthSecretsDelete        Permission = "workspaces.auth_secret.delete"
	AuthSecretsRefresh       Permission = "workspaces.auth_secret.refresh"
	OAuthClientsGet          Permission = "tenants.oauth_clients.get"
	OAuthClientsCreate       Permission = "tenants.oauth_clients.create"
	OAuthClientsEdit         Permission = "tenants.oauth_clients.edit"
	OAuthClientsDelete       Permission = "tenants.oauth_clients.delete"
	ThrottlePoliciesGet      Permission = "throttle_policies.get"
	ThrottlePoliciesEdit     Permission = "throttle_policies.edit"
	ConnectorsManage         Permission = "connectors.manage"
	ConnectorSecretsRead     Permission = "read_connector_secrets"
	ConnectorSecretsWrite    Permission = "write_connector_secrets"
	FlowsGet                 Permission = "flows.get"
	FlowsEdit                Permission = "flows.edit"
	QueueManage              Permission = "queue.manage"
	AuditRead                Permission = "audit.read"
	TenantsManage            Permission = "tenants.manage"
	KeysManage               Permission = "keys.manage"
	ViewsManage              Permission = "views.manage"
)

// PermissionInfo says what a permission is for.
type PermissionInfo struct {
	Permission Permission
	Allows     string // a phrase
	Everywhere bool   // concerns every tenant: it takes a caller that is granted every tenant
}

// Permissions is the closed list, in the order of the reference.
func Permissions() []PermissionInfo {
	return []PermissionInfo{
		{ComponentsGet, "read components", false},
		{ComponentsCreate, "register components", false},
		{ComponentsEdit, "change, share and set up components", false},
		{ComponentsDelete, "delete components", false},
		{CredentialsGet, "read the metadata of credentials, never their secrets", false},
		{CredentialsCreate, "create credentials", false},
		{CredentialsEdit, "rename, replace, revert and verify credentials", false},
		{CredentialsDelete, "delete credentials and revoke their tokens", false},
		{CredentialsReveal, "reveal secret values, one resource at a time, each time audited", false},
		{CredentialsResolve, "fetch the secrets of a credential for a flow", false},
		{CredentialsExport, "export credentials, with their secrets sealed or omitted", false},
		{WorkspacesCredentialEdit, "write credentials over the REST API v2", false},
		{AuthSecretsGet, "read the metadata of credentials of workspaces, never their secrets", false},
		{AuthSecretsCreate, "create credentials in workspaces", false},
		{AuthSecretsEdit, "rename and replace the credentials of workspaces", false},
		{AuthSecretsDelete, "delete the credentials of workspaces", false},
		{AuthSecretsRefresh, "renew the tokens of the credentials of workspaces", false},
		{OAuthClientsGet, "read OAuth clients", false},
		{OAuthClientsCreate, "define OAuth clients", false},
		{OAuthClientsEdit, "change OAuth clients", false},
		{OAuthClientsDelete, "delete OAuth clients", false},
		{ThrottlePoliciesGet, "read throttle policies", false},
		{ThrottlePoliciesEdit, "define, change and delete throttle policies", false},
		{ConnectorsManage, "manage connectors, but not their secrets", false},
		{ConnectorSecretsRead, "read the secrets of connectors", false},
		{ConnectorSecretsWrite, "write and delete the secrets of connectors", false},
		{FlowsGet, "read flows and what they use", false},
		{FlowsEdit, "publish flow events; bind and release flows", false},
		{QueueManage, "inspect, retry and drop dead-lettered messages", false},
		{AuditRead, "read the history of the tenant", false},
		{TenantsManage, "register and list tenants", true},
		{KeysManage, "issue, list and revoke API keys", false},
		{ViewsManage, "inspect and rebuild the read models", true},
	}
}

// permissions finds what the closed list says of a permission. It never changes.
var permissions = func() map[Permission]PermissionInfo {
	m := map[Permission]PermissionInfo{}
	for _, p := range Permissions() {
		m[p.Permission] = p
	}
	return m
}()

// Role is a named set of permissions.
type Role string

// The roles. An OPERATOR reads what is known about credentials, and exports it,
// but never sees a secret; a FLOW_ENGINE fetches secrets, tells of flows and binds
// them; an AUDITOR reads history.
const (
	Administrator Role = "ADMINISTRATOR"
	Operator      Role = "OPERATOR"
	FlowEngine    Role = "FLOW_ENGINE"
	Auditor       Role = "AUDITOR"
)

// Roles says what each role may do. No role lets a person see a secret:
// credentials.reveal and read_connector_secrets are granted by name.
var Roles = map[Role][]Permission{
	Administrator: {
		ComponentsGet, ComponentsCreate, ComponentsEdit, ComponentsDelete,
		CredentialsGet, CredentialsCreate, CredentialsEdit, CredentialsDelete, CredentialsExport, WorkspacesCredentialEdit,
		AuthSecretsGet, AuthSecretsCreate, AuthSecretsEdit, AuthSecretsDelete, AuthSecretsRefresh,
		OAuthClientsGet, OAuthClientsCreate, OAuthClientsEdit, OAuthClientsDelete,
		ThrottlePoliciesGet, ThrottlePoliciesEdit, ConnectorsManage, ConnectorSecretsWrite,
		FlowsGet, FlowsEdit, QueueManage, AuditRead, TenantsManage, KeysManage, ViewsManage,
	},
	Operator:   {ComponentsGet, CredentialsGet, CredentialsExport, AuthSecretsGet, OAuthClientsGet, ThrottlePoliciesGet, FlowsGet},
	FlowEngine: {ComponentsGet, CredentialsGet, CredentialsResolve, FlowsGet, FlowsEdit},
	Auditor:    {ComponentsGet, CredentialsGet, FlowsGet, AuditRead},
}

// AllTenants in a key's tenants grants every tenant.
const AllTenants = "*"

// Principal is an authenticated caller.
type Principal struct {
	Actor       events.Actor
	Home        string         // tenant used where a surface names none
	Tenants     []string       // tenants it may name, or AllTenants
	Role        Role           // "" when it has permissions by name alone
	Permissions []Permission   // held by name, besides those of the role
	Addresses   []netip.Prefix // networks that its key may be used from; none: from everywhere
	Expires     time.Time      // when its key ends by itself; zero: never
}

// Reaches reports whether the principal may name the tenant.
func (p Principal) Reaches(tenant string) bool {
	return slices.Contains(p.Tenants, tenant) || slices.Contains(p.Tenants, AllTenants)
}

// May reports whether the principal holds the permission, by its role or by name.
func (p Principal) May(perm Permission) bool {
	return slices.Contains(p.Permissions, perm) || slices.Contains(Roles[p.Role], perm)
}

// mayGrant reports whether the principal may issue a key with the permission:
// one it holds or, of an ADMINISTRATOR, any.
func (p Principal) mayGrant(perm Permission) bool { return p.Role == Administrator || p.May(perm) }

// expired reports whether the principal's key has ended by itself.
func (p Principal) expired(now time.Time) bool { return !p.Expires.IsZero() && !now.Before(p.Expires) }

// usableFrom reports whether the principal's key may be used from the address.
// One that is not known is in no network.
func (p Principal) usableFrom(from netip.Addr) bool {
	from = from.Unmap().WithZone("")
	return len(p.Addresses) == 0 || slices.ContainsFunc(p.Addresses, func(n netip.Prefix) bool { return n.Contains(from) })
}

// The refusals of a caller.
var (
	ErrUnauthenticated = fault.New(fault.Unauthenticated, "unauthenticated",
		"An API key is required: send it by HTTP Basic or Bearer, or as the password of the NATS connection.")
	// ErrKeyUnknown says one thing of every key that is not good, so that it tells
	// nothing to who guesses.
	ErrKeyUnknown = fault.New(fault.Unauthenticated, "api_key_unknown",
		"The API key is unknown, revoked or expired, or it may not be used from this address.")
	ErrKeyMalformed = fault.New(fault.Unauthenticated, "api_key_malformed",
		"Not a valid API key: mistyped, truncated, or for another service.")
	ErrDenied         = fault.New(fault.Denied, "permission_denied", "The key lacks the required permission.")
	ErrTenantNotFound = fault.New(fault.NotFound, "tenant_not_found", "Tenant not found.")
)

// The form of a key that the service makes: "cs_", 256 random bits as 52 letters
// and digits of base32, and 6 more that are a checksum of what is before them.
// Programs that look for lost keys find "cs_" and can tell a key from a look-alike.
const (
	keyPrefix   = "cs_"
	keyAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" // base32 (RFC 4648), as rand.Text has it
	keyRandom   = 52
	keyCheck    = 6
)

// NewKey makes an API key.
func NewKey() seal.Secret {
	key := keyPrefix + rand.Text() + rand.Text()
	return seal.NewSecret([]byte(key + keyChecksum(key)))
}

// keyChecksum is the CRC-32 (IEEE) of the text, its lower 30 bits as base32.
func keyChecksum(text string) string {
	sum := crc32.ChecksumIEEE([]byte(text))
	check := make([]byte, keyCheck)
	for i := range check {
		check[keyCheck-1-i] = keyAlphabet[sum&31]
		sum >>= 5
	}
	return string(check)
}

// CheckKeyShape refuses, with ErrKeyMalformed, what cannot be a key: not "cs_" and
// 32 to 128 letters and digits, or of the length of the keys made here without
// their checksum. Other lengths are of keys that were given.
func CheckKeyShape(key string) error {
	rest, ok := strings.CutPrefix(key, keyPrefix)
	if !ok || len(rest) < 32 || len(rest) > 128 {
		return ErrKeyMalformed
	}
	for i := range len(rest) {
		c := rest[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return ErrKeyMalformed
		}
	}
	if body := len(keyPrefix) + keyRandom; len(rest) == keyRandom+keyCheck && keyChecksum(key[:body]) != key[body:] {
		return ErrKeyMalformed
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

// LastUse remembers when keys were used last, to the minute. It is not derived
// from the log and may be lost.
type LastUse interface {
	// Note says that the key was used. It is called for every request and does not wait.
	Note(id string, at time.Time)
	// LastUsed tells when keys were used last, by their ids.
	LastUsed(ctx context.Context) (map[string]time.Time, error)
}

// Authenticate returns the principal of an API key that is used from the
// address; the zero address is one that is not known. It returns
// ErrUnauthenticated when the key is empty, ErrKeyMalformed, or ErrKeyUnknown, and
// ErrWrongKeys in their place when too many came from the address.
func (s *Service) Authenticate(ctx context.Context, key string, from netip.Addr) (Principal, error) {
	p, err := s.authenticate(ctx, key, from)
	return p, s.wrongKeys.refuse(from, s.believed(err))
}

func (s *Service) authenticate(ctx context.Context, key string, from netip.Addr) (Principal, error) {
	if key == "" {
		return Principal{}, ErrUnauthenticated
	}
	if err := CheckKeyShape(key); err != nil {
		return Principal{}, err
	}
	p, err := s.principal(ctx, sha256.Sum256([]byte(key)))
	if err != nil {
		return Principal{}, err
	}
	if p.expired(s.now()) || !p.usableFrom(from) {
		return Principal{}, ErrKeyUnknown
	}
	s.noteUse(p)
	return p, nil
}

func (s *Service) noteUse(p Principal) {
	if s.cfg.LastUse != nil {
		s.cfg.LastUse.Note(p.Actor.ID, s.now())
	}
}

// principal finds a key by its hash: a lookup by hash tells a guesser nothing
// by its timing.
func (s *Service) principal(ctx context.Context, sum [sha256.Size]byte) (Principal, error) {
	changes, followed := s.cfg.Views.KeyChanges(), s.cfg.Projector.Err() == nil
	if k, ok := s.keys.Get(sum); ok && k.changes == changes && followed {
		return k.principal, nil
	}
	at, hash := s.cfg.Views.Position(), hex.EncodeToString(sum[:])
	k, found, err := s.cfg.Views.APIKey(ctx, hash)
	switch {
	case err != nil:
		return Principal{}, err
	case !found && !followed: // it may have been issued after where the views stand still
		end, err := s.cfg.Log.Store.End(ctx)
		if err != nil {
			return Principal{}, err
		}
		id, err := s.beyondViews.key(ctx, s, hash, at, end)
		if err != nil {
			return Principal{}, err
		}
		return s.freshPrincipal(ctx, id)
	case !found || k.Revoked:
		s.keys.Remove(sum)
		return Principal{}, ErrKeyUnknown
	case !followed: // the views stand still and would never hear of its end
		return s.freshPrincipal(ctx, k.ID)
	}
	p, err := principalOf(k.ID, aggregates.APIKeyState{
		Home: k.Home, Tenants: k.Tenants, Role: k.Role, Permissions: k.Permissions, Addresses: k.Addresses, Expires: k.Expires,
	})
	if err != nil {
		return Principal{}, err
	}
	s.keys.Add(sum, knownKey{p, changes})
	return p, nil
}

// Principal returns the principal of a key that an edge has checked already and
// knows by its id, or ErrKeyUnknown when it was revoked or has expired since. The
// edge has looked at its address.
func (s *Service) Principal(ctx context.Context, id string) (Principal, error) {
	changes, followed := s.cfg.Views.KeyChanges(), s.cfg.Projector.Err() == nil
	k, ok := s.keyIDs.Get(id)
	if !ok || k.changes != changes || !followed {
		p, err := s.freshPrincipal(ctx, id)
		if err != nil {
			s.keyIDs.Remove(id)
			return Principal{}, err
		}
		k = knownKey{p, changes}
		s.keyIDs.Add(id, k)
	}
	if k.principal.expired(s.now()) {
		return Principal{}, ErrKeyUnknown
	}
	s.noteUse(k.principal)
	return k.principal, nil
}

// freshPrincipal asks the log for a key.
func (s *Service) freshPrincipal(ctx context.Context, id string) (Principal, error) {
	state, err := aggregates.APIKey.Fresh(ctx, s.cfg.Log, aggregates.APIKey.Stream(events.System, id))
	switch {
	case err != nil:
		return Principal{}, err
	case !state.Value.Exists || state.Value.Revoked:
		return Principal{}, s.believed(ErrKeyUnknown)
	}
	return principalOf(id, state.Value)
}

func principalOf(id string, k aggregates.APIKeyState) (Principal, error) {
	p := Principal{
		Actor: events.Actor{Kind: "key", ID: id}, Home: k.Home, Tenants: k.Tenants, Role: Role(k.Role), Expires: k.Expires,
	}
	for _, perm := range k.Permissions {
		p.Permissions = append(p.Permissions, Permission(perm))
	}
	for _, network := range k.Addresses {
		n, err := netip.ParsePrefix(network)
		if err != nil {
			return Principal{}, fmt.Errorf("network of key %s: %w", id, err)
		}
		p.Addresses = append(p.Addresses, n)
	}
	return p, nil
}

// authorize is the one place where a call is let through: the tenant is one the
// caller may name and that exists, and the caller holds the permission. Of a
// tenant that is not the caller's it says what it says of an unknown one. A
// refusal is recorded.
func (s *Service) authorize(ctx context.Context, call *Call, perm Permission) error {
	if call.Principal.Actor.ID == "" {
		return ErrUnauthenticated
	}
	if events.CheckName(call.Tenant) != nil || !call.Principal.Reaches(call.Tenant) {
		s.denied(ctx, call, perm)
		return ErrTenantNotFound
	}
	exists, err := s.TenantExists(ctx, call.Tenant)
	switch {
	case err != nil:
		return err
	case !exists:
		return ErrTenantNotFound
	case !call.Principal.May(perm):
		return s.deny(ctx, call, perm)
	case permissions[perm].Everywhere && !slices.Contains(call.Principal.Tenants, AllTenants):
		s.denied(ctx, call, perm)
		return ErrDenied.Because("The permission %s affects every tenant. Use a key that is granted every tenant (*).", perm)
	}
	return nil
}

// deny refuses a call for want of the permission, and records that. It is for
// what takes more than the permission of its route.
func (s *Service) deny(ctx context.Context, call *Call, perm Permission) error {
	s.denied(ctx, call, perm)
	return ErrDenied.Because("The key lacks the permission %s.", perm)
}

// Require refuses a call whose caller may not use its tenant or lacks a permission
// that a surface asks for beyond that of the route, and records the refusal. The
// route's own is for Serve to ask.
func (s *Service) Require(ctx context.Context, call Call, route string, perm Permission) error {
	call.route = route
	return s.authorize(ctx, &call, perm)
}
