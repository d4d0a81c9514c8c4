package elasticio

import (
	"bytes"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// Errors of a document.
var (
	ErrResourceType = fault.New(fault.Invalid, "resource_type_invalid", "The type of the resource is missing or is not the type of this path.")
	ErrResourceID   = fault.New(fault.Precondition, "resource_id_mismatch", "The id of the resource differs from the id in the path.")
	ErrResourceMade = fault.New(fault.Denied, "resource_id_refused", "The service generates the id of a new resource. Omit it.")
)

// document is the body of a request (JSON:API 1.1, section 5). Other members of the
// specification are ignored.
type document struct {
	Data     *input         `json:"data"`
	Meta     jsontext.Value `json:"meta"`
	Links    jsontext.Value `json:"links"`
	JSONAPI  jsontext.Value `json:"jsonapi"`
	Included jsontext.Value `json:"included"`
}

// input is the resource of a request. Attributes with the value null are treated as absent.
type input struct {
	ID            string                    `json:"id"`
	LID           string                    `json:"lid"`
	Type          string                    `json:"type"`
	Attributes    map[string]jsontext.Value `json:"attributes"`
	Relationships map[string]jsontext.Value `json:"relationships"`
	Links         jsontext.Value            `json:"links"`
	Meta          jsontext.Value            `json:"meta"`

	meta jsontext.Value // meta of the document
}

// readDocument parses a document with one resource. Its errors have the pointer, never the
// value, which may be a secret.
func readDocument(body []byte) (input, error) {
	if len(bytes.TrimSpace(body)) == 0 {
		return input{}, service.ErrMissing.Withf("The body is missing. Send a JSON:API document with data.").At("/data")
	}
	var doc document
	if err := decode(body, &doc); err != nil {
		return input{}, err
	}
	if doc.Data == nil {
		return input{}, missing("/data")
	}
	doc.Data.meta = doc.Meta
	maps.DeleteFunc(doc.Data.Attributes, func(_ string, v jsontext.Value) bool { return string(v) == "null" })
	return *doc.Data, nil
}

// decode parses exactly one JSON object without unknown or duplicate members.
func decode(body []byte, into any) error {
	return decodeWith(body, into, json.RejectUnknownMembers(true))
}

func decodeWith(body []byte, into any, how json.Options) error {
	err := json.Unmarshal(body, into, how)
	var semantic *json.SemanticError
	var syntactic *jsontext.SyntacticError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, json.ErrUnknownName) && errors.As(err, &semantic):
		return service.ErrBody.Withf("Unknown member.").At(pointer(semantic.JSONPointer))
	case errors.Is(err, jsontext.ErrDuplicateName) && errors.As(err, &syntactic):
		return service.ErrBody.Withf("The member appears more than once.").At(pointer(syntactic.JSONPointer))
	case errors.As(err, &semantic):
		return service.ErrBody.Withf("The member has the wrong type.").At(pointer(semantic.JSONPointer))
	}
	return service.ErrBody.Withf("The body must be one JSON document.")
}

// pointer formats a JSON pointer; "" if it is longer than any valid one, so that a large
// invalid document is not echoed.
func pointer(p jsontext.Pointer) string {
	if len(p) > 256 {
		return ""
	}
	return string(p)
}

func missing(at string) error {
	return service.ErrMissing.Withf("The member %s is required.", at).At(at)
}

// created validates the resource of a POST.
func (in input) created(types ...string) error {
	switch {
	case !slices.Contains(types, in.Type):
		return ErrResourceType.Withf("The type of the resource must be %s.", types[0]).At("/data/type")
	case in.ID != "":
		return ErrResourceMade.At("/data/id")
	}
	return nil
}

// changed validates the resource of a PATCH: id and type are optional, and must match the path.
func (in input) changed(id string, types ...string) error {
	switch {
	case in.Type != "" && !slices.Contains(types, in.Type):
		return ErrResourceType.Withf("The type of the resource must be %s.", types[0]).At("/data/type")
	case in.ID != "" && in.ID != id:
		return ErrResourceID.At("/data/id")
	}
	return nil
}

// Members of a document's meta: the revision of the component that the caller has reviewed, and
// the same for several components.
const (
	expectedRevision  = "/meta/expected_revision"
	expectedRevisions = "/meta/expected_revisions"
)

// expected has the expected revisions in a document's meta. Other members of meta are ignored.
type expected struct {
	Revision  *int           `json:"expected_revision"`  // of the only component; nil: any revision
	Revisions map[string]int `json:"expected_revisions"` // by component
}

func (in input) expected() (e expected, err error) {
	if in.meta.Kind() != jsontext.KindBeginObject {
		return e, nil
	}
	var meta struct {
		Revision  jsontext.Value `json:"expected_revision"`
		Revisions jsontext.Value `json:"expected_revisions"`
	}
	if err := json.Unmarshal(in.meta, &meta); err != nil {
		return e, service.ErrBody.Withf("The meta of the document has a duplicate member.").At("/meta")
	}
	if meta.Revision != nil {
		if err := json.Unmarshal(meta.Revision, &e.Revision); err != nil || e.Revision != nil && *e.Revision < 1 {
			return e, service.ErrBody.Withf("The expected revision must be a positive integer.").At("/expected_revision")
		}
	}
	if meta.Revisions != nil {
		if err := json.Unmarshal(meta.Revisions, &e.Revisions); err != nil || slices.ContainsFunc(slices.Collect(maps.Values(e.Revisions)), func(n int) bool { return n < 1 }) {
			return e, service.ErrBody.Withf("The expected revisions must be positive integers by component.").At("/expected_revisions")
		}
	}
	return e, nil
}

// expect copies the expected revision of the component from the document's meta to the body.
func (in input) expect(body map[string]any) error {
	e, err := in.expected()
	if err == nil && e.Revision != nil {
		body["expected_revision"] = *e.Revision
	}
	return err
}

// only returns an error if there are attributes other than names.
func (in input) only(names ...string) error {
	for _, name := range slices.Sorted(maps.Keys(in.Attributes)) {
		if !slices.Contains(names, name) {
			at := pointer(jsontext.Pointer("/data/attributes").AppendToken(name))
			return service.ErrBody.Withf("The attribute is unknown or read-only.").At(at)
		}
	}
	return nil
}

// related returns the id of a to-one relationship; "" if it is absent or null. If typ is not
// "", the type must match.
func (in input) related(name, typ string) (string, error) {
	raw, ok := in.Relationships[name]
	if !ok {
		return "", nil
	}
	at := "/data/relationships/" + name
	var r struct {
		Data  jsontext.Value `json:"data"`
		Links jsontext.Value `json:"links"`
		Meta  jsontext.Value `json:"meta"`
	}
	var to struct {
		ID   string         `json:"id"`
		LID  string         `json:"lid"`
		Type string         `json:"type"`
		Meta jsontext.Value `json:"meta"`
	}
	if err := decode(raw, &r); err != nil {
		return "", below(err, at)
	}
	if len(r.Data) == 0 || string(r.Data) == "null" {
		return "", nil
	}
	if err := decode(r.Data, &to); err != nil {
		return "", below(err, at+"/data")
	}
	switch {
	case typ != "" && to.Type != typ:
		return "", ErrResourceType.Withf("The type of the related resource must be %s.", typ).At(at + "/data/type")
	case to.ID == "":
		return "", missing(at + "/data/id")
	}
	return to.ID, nil
}

// relatedAll returns the ids of a to-many relationship; given is false if it is absent. All
// types must be typ.
func (in input) relatedAll(name, typ string) (ids []string, given bool, err error) {
	raw, ok := in.Relationships[name]
	if !ok {
		return nil, false, nil
	}
	at := "/data/relationships/" + name
	var r struct {
		Data  jsontext.Value `json:"data"`
		Links jsontext.Value `json:"links"`
		Meta  jsontext.Value `json:"meta"`
	}
	if err := decode(raw, &r); err != nil {
		return nil, false, below(err, at)
	}
	if len(r.Data) == 0 {
		return nil, false, nil
	}
	var to []struct {
		ID   string         `json:"id"`
		LID  string         `json:"lid"`
		Type string         `json:"type"`
		Meta jsontext.Value `json:"meta"`
	}
	if err := decode(r.Data, &to); err != nil {
		return nil, true, below(err, at+"/data")
	}
	ids = []string{}
	for i, one := range to {
		at := at + "/data/" + strconv.Itoa(i)
		switch {
		case one.Type != typ:
			return nil, true, ErrResourceType.Withf("The type of the related resource must be %s.", typ).At(at + "/type")
		case one.ID == "":
			return nil, true, missing(at + "/id")
		}
		ids = append(ids, one.ID)
	}
	return ids, true, nil
}

// unlinks reports whether the data of a to-one relationship is null. Its format was validated
// before.
func (in input) unlinks(name string) bool {
	var r struct {
		Data jsontext.Value `json:"data"`
	}
	return json.Unmarshal(in.Relationships[name], &r) == nil && string(r.Data) == "null"
}

func below(err error, at string) error {
	f := fault.Of(err)
	return f.At(at + f.Pointer)
}

// resource is a resource of a response. Data without an attribute in the vendor's schema is in
// meta.
type resource struct {
	ID            string                  `json:"id"`
	Type          string                  `json:"type"`
	Links         map[string]string       `json:"links,omitzero"`
	Attributes    map[string]any          `json:"attributes"`
	Relationships map[string]relationship `json:"relationships,omitzero"`
	Meta          map[string]any          `json:"meta,omitzero"`
}

// relationship references one resource, or several.
type relationship struct {
	Data  any               `json:"data"` // an identifier, or a list of them
	Links map[string]string `json:"links,omitzero"`
}

type identifier struct {
	ID   string `json:"id"`
	Type string `json:"type"`
}

// to returns a relationship to a resource of the collection.
func to(collection, typ, id string) relationship {
	return relationship{Data: identifier{id, typ}, Links: map[string]string{"self": "/v2/" + collection + "/" + url.PathEscape(id)}}
}

// toAll returns a relationship to several resources, without a link.
func toAll(typ string, ids []string) relationship {
	list := make([]identifier, len(ids))
	for i, id := range ids {
		list[i] = identifier{id, typ}
	}
	return relationship{Data: list}
}

// answer is the document of a response.
type answer struct {
	Data     any               `json:"data"`
	Included []resource        `json:"included,omitzero"`
	Links    map[string]string `json:"links,omitzero"`
	Meta     map[string]any    `json:"meta"`
}

// errorObject is one error (JSON:API 1.1, section 11).
type errorObject struct {
	ID     string         `json:"id,omitzero"` // request id, with which an operator finds the request in the log
	Status string         `json:"status"`
	Code   string         `json:"code"`
	Title  string         `json:"title"`
	Detail string         `json:"detail"`
	Source *errorSource   `json:"source,omitzero"`
	Meta   jsontext.Value `json:"meta,omitzero"` // structured details, such as the flows that use a credential
}

// errorSource is the invalid input.
type errorSource struct {
	Pointer   string `json:"pointer,omitzero"`   // to the member of the document (RFC 6901)
	Parameter string `json:"parameter,omitzero"` // name of the URL parameter
}

// Problem writes an error object.
func (x *exchange) Problem(p fault.Problem) {
	e := errorObject{
		ID: x.ID, Status: strconv.Itoa(p.Status), Code: p.Code, Title: p.Title, Detail: p.Detail, Meta: jsontext.Value(p.Details),
	}
	if name, ok := strings.CutPrefix(p.Pointer, parameterPrefix); ok {
		e.Source = &errorSource{Parameter: name}
	} else if at := x.documentPointer(p.Pointer); at != "" {
		e.Source = &errorSource{Pointer: at}
	}
	x.JSON(p.Status, x.media, map[string][]errorObject{"errors": {e}})
}

// documentPointer maps a pointer into the service's body to one into the request's document; "" if
// the document has no such member.
func (x *exchange) documentPointer(at string) string {
	if strings.HasPrefix(at, "/data") {
		return at
	}
	for member, place := range x.pointers {
		if at == member || strings.HasPrefix(at, member+"/") {
			return place + strings.TrimPrefix(at, member)
		}
	}
	return ""
}

func (x *exchange) give(status int, doc answer) {
	if doc.Meta == nil {
		doc.Meta = map[string]any{}
	}
	x.JSON(status, x.media, doc)
}

// noteBehind logs that the read models did not catch up with a write in time. The write
// succeeded.
func (x *exchange) noteBehind(err error) {
	if err != nil && !isNotFound(err) {
		x.Warn("read models are behind a write", err)
	}
}

// gone responds to a successful delete. err is the result of the read after it.
func (x *exchange) gone(err error) {
	x.noteBehind(err)
	x.End(http.StatusNoContent)
}
