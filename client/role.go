package client

import (
	"context"
	"iter"
	"time"
)

// Role is a role of the tenant: a named set of permissions, with which API keys can be issued.
type Role struct {
	Name        string    `json:"name"`
	Title       string    `json:"title"`
	Permissions []string  `json:"permissions"`
	Granted     bool      `json:"granted"` // an API key was issued with it: its permissions cannot change any more
	CreatedAt   time.Time `json:"created_at"`
	CreatedBy   string    `json:"created_by"` // "key:<id>"
	UpdatedAt   time.Time `json:"updated_at"`
	Seq         uint64    `json:"seq"` // log sequence of the last change
}

type roleSettings struct {
	Name        string   `json:"name"`
	Title       *string  `json:"title,omitzero"`
	Permissions []string `json:"permissions,omitzero"`
}

// DefineRole defines a role of the tenant with permissions that the client's key has
// (role_exists, role_name_granted). The title is for people and may be "".
func (a *API) DefineRole(ctx context.Context, name, title string, permissions []string, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "role.define", roleSettings{name, &title, permissions}, &done, opts...)
	return done, err
}

// ChangeRole changes the title of a role, unless it is nil, and its permissions, unless they are
// nil. Permissions change only before a key is issued with the role (role_granted).
func (a *API) ChangeRole(ctx context.Context, name string, title *string, permissions []string, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "role.change", roleSettings{name, title, permissions}, &done, opts...)
	return done, err
}

// DeleteRole deletes a role. It is refused while API keys have it (role_in_use).
func (a *API) DeleteRole(ctx context.Context, name string, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "role.delete", roleSettings{Name: name}, &done, opts...)
	return done, err
}

// Roles yields the tenant's own roles by name, without the built-in roles.
func (a *API) Roles(ctx context.Context) iter.Seq2[Role, error] {
	return a.RolesAt(ctx, 0)
}

// RolesAt is Roles, at least as fresh as the log sequence minSeq.
func (a *API) RolesAt(ctx context.Context, minSeq uint64) iter.Seq2[Role, error] {
	return listedAt(ctx, a, "role.list", minSeq, func(p idPage) []Role { return p.Roles })
}
