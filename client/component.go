package client

import (
	"context"
	"iter"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// registration holds a component.json.
type registration struct {
	ID         string         `json:"id,omitzero"`
	Descriptor jsontext.Value `json:"descriptor,omitzero"`
	DryRun     bool           `json:"dry_run,omitzero"`
	Expected   int            `json:"expected_revision,omitzero"`
}

func (a *API) changeComponent(ctx context.Context, name string, in registration, opts []CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, name, in, &done, opts...)
	return done, err
}

// RegisterComponent registers a component from its component.json. An empty id is
// derived from the title (component_id_taken).
func (a *API) RegisterComponent(ctx context.Context, id string, descriptor []byte, opts ...CommandOption) (Done, error) {
	return a.changeComponent(ctx, "component.register", registration{ID: id, Descriptor: descriptor}, opts)
}

// UpdateComponent activates a new descriptor of a component, as a new revision. With ExpectRevision
// it overwrites no update that the caller has not read (component_revision_stale).
func (a *API) UpdateComponent(ctx context.Context, id string, descriptor []byte, opts ...CommandOption) (Done, error) {
	return a.changeComponent(ctx, "component.update", registration{ID: id, Descriptor: descriptor, Expected: revisionOf(opts)}, opts)
}

// ShareComponent makes a component visible to every tenant.
func (a *API) ShareComponent(ctx context.Context, id string, opts ...CommandOption) (Done, error) {
	return a.changeComponent(ctx, "component.share", registration{ID: id}, opts)
}

// UnshareComponent makes a component visible only to its owner.
func (a *API) UnshareComponent(ctx context.Context, id string, opts ...CommandOption) (Done, error) {
	return a.changeComponent(ctx, "component.unshare", registration{ID: id}, opts)
}

// DeleteComponent deletes a component. Its credentials remain.
func (a *API) DeleteComponent(ctx context.Context, id string, opts ...CommandOption) (Done, error) {
	return a.changeComponent(ctx, "component.delete", registration{ID: id}, opts)
}

// Component is what the service shows of a component.
type Component struct {
	ID          string         `json:"id"`
	Title       string         `json:"title"`
	Owner       string         `json:"owner,omitzero"` // shown only to the owner
	Shared      bool           `json:"shared"`
	Deleted     bool           `json:"deleted"`
	Revision    int            `json:"revision"`
	CreatedAt   time.Time      `json:"created_at"`
	UpdatedAt   time.Time      `json:"updated_at"`
	Credentials int            `json:"credentials"`         // number of the tenant's credentials
	Descriptor  jsontext.Value `json:"descriptor,omitzero"` // the component.json; absent in lists

	CannotConnect string `json:"cannot_connect,omitzero"` // why no account can be connected, a sentence; "" if one can, or no field requires it
}

// GetComponent returns one component with its descriptor.
func (a *API) GetComponent(ctx context.Context, id string, minSeq uint64) (Component, error) {
	var c Component
	err := a.Query(ctx, "component.get", byID{id, minSeq}, &c)
	return c, err
}

// ComponentFilter selects components.
type ComponentFilter struct {
	Limit  int    `json:"limit,omitzero"` // of one page, 1 to 200; 50 when 0
	After  string `json:"after,omitzero"` // cursor of the previous page
	MinSeq uint64 `json:"min_seq,omitzero"`
}

// ComponentList is one page.
type ComponentList struct {
	Components []Component `json:"components"`
	Next       string      `json:"next,omitzero"` // cursor of the next page; empty on the last
}

// ListComponents returns one page of the components that the tenant may use.
func (a *API) ListComponents(ctx context.Context, filter ComponentFilter) (ComponentList, error) {
	var list ComponentList
	err := a.Query(ctx, "component.list", filter, &list)
	return list, err
}

// Components yields every component that the tenant may use, page after page.
func (a *API) Components(ctx context.Context, filter ComponentFilter) iter.Seq2[Component, error] {
	return func(yield func(Component, error) bool) {
		for {
			list, err := a.ListComponents(ctx, filter)
			if err != nil {
				yield(Component{}, err)
				return
			}
			for _, c := range list.Components {
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
