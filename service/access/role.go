package access

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// Errors of a role.
var (
	ErrRoleName = fault.New(fault.Invalid, "role_name_invalid",
		"The name of a role must have 2 to 40 capital letters, digits and underscores, start with a letter, and not be one of ADMINISTRATOR, OPERATOR, FLOW_ENGINE and AUDITOR.")
	ErrRolePermissions = fault.New(fault.Invalid, "role_permissions_missing", "A role must have at least one permission.")
	ErrRoleInUse       = fault.New(fault.Precondition, "role_in_use", "API keys have this role. Revoke them, then delete the role.")
)

var roleName = regexp.MustCompile(`^[A-Z][A-Z0-9_]{1,39}$`)

// storedRole is the name of a tenant's own role in the events of a key. It contains the tenant, so
// it can never be the name of a built-in role, not even of a later version.
func storedRole(tenant, name string) string { return tenant + "/" + name }

// shownRole returns the name of a stored role without the tenant.
func shownRole(stored string) permission.Role {
	return permission.Role(stored[strings.LastIndexByte(stored, '/')+1:])
}

func checkRoleName(name string) error {
	if err := service.Required("/name", name); err != nil {
		return err
	}
	if _, builtIn := permission.Roles[permission.Role(name)]; builtIn || !roleName.MatchString(name) {
		return ErrRoleName.At("/name")
	}
	return nil
}

func checkTitle(title string) error {
	if title == "" {
		return nil
	}
	return service.CheckName("/title", title)
}

// rolePermissions checks the permissions of a role that the caller defines, and returns them
// sorted, without repetitions.
func rolePermissions(caller service.Principal, given []permission.Permission) ([]string, error) {
	if len(given) == 0 {
		return nil, ErrRolePermissions.At("/permissions")
	}
	names := make([]string, len(given))
	for i, perm := range given {
		if err := checkGrant(caller, perm, fmt.Sprintf("/permissions/%d", i)); err != nil {
			return nil, err
		}
		names[i] = string(perm)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// checkGrant returns an error for an unknown permission and for one that the caller cannot grant.
func checkGrant(caller service.Principal, perm permission.Permission, at string) error {
	if _, known := permission.Known[perm]; !known {
		return ErrPermission.Withf("Unknown permission %.60q. Use one of docs/permissions.md, such as credentials.get.", perm).At(at)
	}
	if !caller.MayGrant(perm) {
		return ErrKeyRights.Withf("You cannot grant %s: your key lacks it.", perm).At(at)
	}
	return nil
}

// checkRoleRights returns ErrKeyRights if the role has a permission that the caller cannot grant.
func checkRoleRights(caller service.Principal, name string, permissions []string) error {
	for _, perm := range permissions {
		if !caller.MayGrant(permission.Permission(perm)) {
			return ErrKeyRights.Withf("The role %s includes the permission %s, which your key lacks.", name, perm)
		}
	}
	return nil
}

// role reads the newest state of a role that exists, or returns ErrRoleNotFound.
func (s *Service) role(ctx context.Context, tenant, name string) (aggregates.RoleState, error) {
	if !roleName.MatchString(name) {
		return aggregates.RoleState{}, aggregates.ErrRoleNotFound
	}
	state, err := aggregates.Role.Fresh(ctx, s.Log, aggregates.Role.Stream(tenant, name))
	if err == nil && !state.Value.Live {
		err = aggregates.ErrRoleNotFound
	}
	return state.Value, err
}

func (s *Service) executeRole(ctx context.Context, call *service.Call, cmd commands.Role) (service.Done, error) {
	_, after, err := service.Execute(ctx, s.Kernel, call, aggregates.Role, call.Tenant, cmd)
	return service.Done{Seq: after.Seq, ID: cmd.Target()}, err
}

// DefineRole requests a new role of the tenant.
type DefineRole struct {
	Name        string                  `json:"name"`           // 2 to 40 capital letters, digits and underscores
	Title       string                  `json:"title,omitzero"` // display name
	Permissions []permission.Permission `json:"permissions"`    // at least one; the caller must have each
}

func (s *Service) defineRole(ctx context.Context, call *service.Call, in DefineRole) (service.Done, error) {
	if err := checkRoleName(in.Name); err != nil {
		return service.Done{}, err
	}
	if err := checkTitle(in.Title); err != nil {
		return service.Done{}, err
	}
	permissions, err := rolePermissions(call.Principal, in.Permissions)
	if err != nil {
		return service.Done{}, err
	}
	return s.executeRole(ctx, call, commands.DefineRole{Name: in.Name, Title: in.Title, Permissions: permissions})
}

// ChangeRole requests a new title or new permissions of a role. Absent members are unchanged.
type ChangeRole struct {
	Name        string                  `json:"name"`
	Title       *string                 `json:"title,omitzero"`       // display name
	Permissions []permission.Permission `json:"permissions,omitzero"` // replace the current ones; refused after a key was issued with the role
}

func (s *Service) changeRole(ctx context.Context, call *service.Call, in ChangeRole) (service.Done, error) {
	role, err := s.role(ctx, call.Tenant, in.Name)
	if err == nil {
		err = checkRoleRights(call.Principal, in.Name, role.Permissions)
	}
	if err == nil && in.Title != nil {
		err = checkTitle(*in.Title)
	}
	cmd := commands.ChangeRole{Name: in.Name, Title: in.Title}
	if err == nil && in.Permissions != nil {
		cmd.Permissions, err = rolePermissions(call.Principal, in.Permissions)
	}
	if err != nil {
		return service.Done{}, err
	}
	return s.executeRole(ctx, call, cmd)
}

// RoleRef names a role.
type RoleRef struct {
	Name string `json:"name"`
}

// RoleKeys are the details of the refusal to delete a role.
type RoleKeys struct {
	Keys []string `json:"keys"` // ids of the first keys that have the role
}

// maxRoleKeys is the maximum number of keys in RoleKeys.
const maxRoleKeys = 10

func (s *Service) deleteRole(ctx context.Context, call *service.Call, in RoleRef) (service.Done, error) {
	role, err := s.role(ctx, call.Tenant, in.Name)
	if err == nil {
		err = checkRoleRights(call.Principal, in.Name, role.Permissions)
	}
	if err == nil && role.Granted {
		err = s.checkRoleUnused(ctx, call.Tenant, in.Name)
	}
	if err != nil {
		return service.Done{}, err
	}
	return s.executeRole(ctx, call, commands.DeleteRole(in))
}

// checkRoleUnused returns ErrRoleInUse, with the ids of keys that have the role. It does not see a
// key that is being issued concurrently: that key keeps the permissions of the deleted role.
func (s *Service) checkRoleUnused(ctx context.Context, tenant, name string) error {
	end, err := s.Log.Store.End(ctx)
	if err != nil {
		return err
	}
	if err := s.Kernel.AtLeast(ctx, end); err != nil {
		return err
	}
	keys, err := s.Views.KeysOfRole(ctx, tenant, storedRole(tenant, name), s.Kernel.Now(), maxRoleKeys+1)
	if err != nil || len(keys) == 0 {
		return err
	}
	named, more := keys, ""
	if len(keys) > maxRoleKeys {
		named, more = keys[:maxRoleKeys], " and more"
	}
	return ErrRoleInUse.Withf("API keys have the role %s: %s%s. Revoke them, then delete the role.", name, strings.Join(named, ", "), more).With(RoleKeys{named})
}

// ListRoles requests the tenant's own roles.
type ListRoles struct {
	Limit  int    `json:"limit,omitzero"`   // 1 to 200; 50 when absent
	After  string `json:"after,omitzero"`   // cursor: next of the previous page
	MinSeq uint64 `json:"min_seq,omitzero"` // wait until the response reflects this log sequence
}

type RoleList struct {
	Roles []RoleInfo `json:"roles"`         // by name, without the built-in ones
	Next  string     `json:"next,omitzero"` // cursor of the next page; absent on the last
}

// RoleInfo is one role of the tenant.
type RoleInfo struct {
	Name        string                  `json:"name"`
	Title       string                  `json:"title"`
	Permissions []permission.Permission `json:"permissions"`
	Granted     bool                    `json:"granted"` // an API key was issued with it, so its permissions cannot be changed
	CreatedAt   time.Time               `json:"created_at"`
	CreatedBy   string                  `json:"created_by"` // "key:<id>"
	UpdatedAt   time.Time               `json:"updated_at"`
	Seq         uint64                  `json:"seq"` // log sequence of the last change
}

func (s *Service) listRoles(ctx context.Context, call *service.Call, in ListRoles) (RoleList, error) {
	limit, err := service.PageSize(in.Limit)
	if err != nil {
		return RoleList{}, err
	}
	if err := s.Kernel.AtLeast(ctx, in.MinSeq); err != nil {
		return RoleList{}, err
	}
	page, next, err := s.Views.Roles(ctx, call.Tenant, in.After, limit)
	list := RoleList{Roles: make([]RoleInfo, len(page)), Next: next}
	for i, r := range page {
		list.Roles[i] = roleInfo(r)
	}
	return list, err
}

func roleInfo(r projections.Role) RoleInfo {
	info := RoleInfo{
		Name: r.Name, Title: r.Title, Permissions: make([]permission.Permission, len(r.Permissions)), Granted: r.Granted,
		CreatedAt: r.CreatedAt, CreatedBy: r.CreatedBy, UpdatedAt: r.UpdatedAt, Seq: r.Seq,
	}
	for i, perm := range r.Permissions {
		info.Permissions[i] = permission.Permission(perm)
	}
	return info
}

// granted is the role of a key that is being issued.
type granted struct {
	stored      string // in the events of the key
	permissions []permission.Permission
	own         bool // of the tenant itself: the key holds its permissions by name
}

// roleOf finds the role that a new key is to have, built in or of the tenant. Errors: ErrRole.
func (s *Service) roleOf(ctx context.Context, call *service.Call, name permission.Role) (granted, error) {
	builtIn, found := permission.Roles[name]
	if found || name == "" {
		return granted{stored: string(name), permissions: builtIn}, nil
	}
	role, err := s.role(ctx, call.Tenant, string(name))
	if err != nil {
		return granted{}, roleUnknown(err)
	}
	own := granted{stored: storedRole(call.Tenant, string(name)), own: true}
	for _, perm := range role.Permissions {
		own.permissions = append(own.permissions, permission.Permission(perm))
	}
	return own, nil
}

// grantRole records, in the stream of a tenant's own role, that a key is about to be issued with
// it. From then on the permissions of the role cannot be changed, so the key and its role always
// have the same permissions.
func (s *Service) grantRole(ctx context.Context, call *service.Call, in IssueAPIKey, role granted) error {
	if !role.own {
		return nil
	}
	cmd := commands.GrantRole{Name: string(in.Role)}
	for _, perm := range role.permissions {
		cmd.Permissions = append(cmd.Permissions, string(perm))
	}
	_, _, err := service.Execute(ctx, s.Kernel, call.Step(0), aggregates.Role, call.Tenant, commands.Role(cmd))
	return roleUnknown(err)
}

func roleUnknown(err error) error {
	if errors.Is(err, aggregates.ErrRoleNotFound) {
		return ErrRole.At("/role")
	}
	return err
}
