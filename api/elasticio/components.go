package elasticio

import (
	"errors"
	"net/http"
	"net/url"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/component"
	"github.com/credstream/credstream/service/permission"
)

// ErrComponentGone is the 404 of this API for a deleted component.
var ErrComponentGone = fault.New(fault.NotFound, "component_gone", "The component was deleted.")

// asGone maps component.ErrComponentDeleted to ErrComponentGone.
func asGone(err error) error {
	if errors.Is(err, component.ErrComponentDeleted) {
		return ErrComponentGone
	}
	return err
}

// componentPointers maps members of the service's bodies to the document of a component.
var componentPointers = map[string]string{"/id": "/data/id", "/descriptor": "/data/attributes/descriptor"}

// Values of access: all tenants, or only the owner.
const (
	accessPrivate = "private"
	accessGlobal  = "global"
)

func componentResource(c component.Info, descriptor jsontext.Value) resource {
	access := accessPrivate
	if c.Shared {
		access = accessGlobal
	}
	r := resource{
		ID: c.ID, Type: "component",
		Links:      map[string]string{"self": "/v2/components/" + url.PathEscape(c.ID)},
		Attributes: map[string]any{"name": c.Title, "access": access},
		Meta: map[string]any{
			"revision": c.Revision, "deleted": c.Deleted, "credentials": c.Credentials, "created_at": c.CreatedAt, "updated_at": c.UpdatedAt,
		},
	}
	if descriptor != nil {
		r.Attributes["descriptor"] = descriptor
	}
	if c.NeedsClient {
		r.Meta["needs_oauth_client"] = true
	}
	if c.CannotConnect != "" {
		r.Meta["cannot_connect"] = c.CannotConnect
	}
	return r
}

// included returns the components, each once, if the request has include=component. Components
// that the caller cannot see are omitted.
func (x *exchange) included(p parameters, components []string) ([]resource, error) {
	if !p.include {
		return nil, nil
	}
	list := []resource{}
	for _, id := range slices.Compact(slices.Sorted(slices.Values(components))) {
		if id == "" { // a credential of a free type has no component
			continue
		}
		c, err := ask[component.Component](x, "component.get", component.Get{ID: id})
		switch {
		case isNotFound(err):
		case err != nil:
			return nil, err
		default:
			list = append(list, p.trim(componentResource(c.Info, c.Descriptor)))
		}
	}
	return list, nil
}

func (x *exchange) listComponents() {
	p, err := readParameters(x.R.URL.RawQuery, append(paging, fieldsOf)...)
	if err != nil {
		x.Fail(err)
		return
	}
	var total int
	components, next, err := fetchPage(p, func(after string, limit int) ([]component.Info, string, error) {
		page, err := ask[component.Page](x, "component.list", component.List{Limit: limit, After: after})
		total = page.Total
		return page.Components, page.Next, err
	})
	if err != nil {
		x.Fail(err)
		return
	}
	list := make([]resource, len(components))
	for i, c := range components {
		list[i] = p.trim(componentResource(c, nil))
	}
	x.giveList(p, list, nil, next, total)
}

func (x *exchange) getComponent() {
	p, err := readParameters(x.R.URL.RawQuery, fieldsOf)
	if err != nil {
		x.Fail(err)
		return
	}
	c, err := ask[component.Component](x, "component.get", component.Get{ID: x.item})
	if err == nil && c.Deleted {
		err = ErrComponentGone
	}
	if err != nil {
		x.Fail(err)
		return
	}
	x.giveOne(p, http.StatusOK, componentResource(c.Info, c.Descriptor), "")
}

// componentInput parses the document of a component. The attribute descriptor is its
// component.json; access is "" if absent.
func (x *exchange) componentInput() (in input, access string, err error) {
	x.pointers = componentPointers
	body, err := x.body()
	if err != nil {
		return in, "", err
	}
	if in, err = readDocument(body); err != nil {
		return in, "", err
	}
	if err := in.only("descriptor", "access"); err != nil {
		return in, "", err
	}
	if v, ok := in.Attributes["access"]; ok {
		if err := decodeText(v, &access); err != nil || access != accessGlobal && access != accessPrivate {
			return in, "", service.ErrBody.Withf("access must be global or private.").At("/data/attributes/access")
		}
	}
	return in, access, nil
}

func (x *exchange) createComponent() {
	in, access, err := x.componentInput()
	if err == nil && in.Type != "component" {
		err = ErrResourceType.Withf("The type of the resource must be component.").At("/data/type")
	}
	if err == nil && in.Attributes["descriptor"] == nil {
		err = missing("/data/attributes/descriptor")
	}
	if err != nil {
		x.Fail(err)
		return
	}
	done, err := ask[service.Done](x, "component.register", component.Register{ID: in.ID, Descriptor: in.Attributes["descriptor"]})
	if err == nil && access == accessGlobal {
		done, err = x.share(done.ID, access)
	}
	if err != nil {
		x.Fail(err)
		return
	}
	x.giveComponent(http.StatusCreated, done)
}

// share shares or unshares a component.
func (x *exchange) share(id, access string) (service.Done, error) {
	route := "component.unshare"
	if access == accessGlobal {
		route = "component.share"
	}
	if x.call.CommandID != "" {
		x.call.CommandID += "/access"
	}
	return ask[service.Done](x, route, component.ID{ID: id})
}

// giveComponent responds to a write: with the current component or, if the caller may not read
// components, with its id.
func (x *exchange) giveComponent(status int, done service.Done) {
	if !x.may(permission.ComponentsGet) {
		x.giveOne(parameters{}, status, resource{
			ID: done.ID, Type: "component", Links: map[string]string{"self": "/v2/components/" + url.PathEscape(done.ID)}, Attributes: map[string]any{},
		}, "")
		return
	}
	c, err := ask[component.Component](x, "component.get", component.Get{ID: done.ID, MinSeq: done.Seq})
	if err != nil {
		x.Fail(err)
		return
	}
	x.giveOne(parameters{}, status, componentResource(c.Info, c.Descriptor), "")
}

func (x *exchange) patchComponent() {
	in, access, err := x.componentInput()
	if err == nil {
		err = in.changed(x.item, "component")
	}
	done := service.Done{ID: x.item}
	if d := in.Attributes["descriptor"]; err == nil && d != nil {
		done, err = ask[service.Done](x, "component.update", component.Update{ID: x.item, Descriptor: d})
	}
	if err == nil && access != "" {
		done, err = x.share(x.item, access)
	}
	if err != nil {
		x.Fail(asGone(err))
		return
	}
	x.giveComponent(http.StatusOK, done)
}

func (x *exchange) deleteComponent() {
	done, err := ask[service.Done](x, "component.delete", component.Delete{ID: x.item})
	if err != nil {
		x.Fail(asGone(err))
		return
	}
	if x.may(permission.ComponentsGet) { // wait until the read models reflect the delete
		_, err = ask[component.Component](x, "component.get", component.Get{ID: x.item, MinSeq: done.Seq})
	}
	x.gone(err)
}
