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

// document is what a request says (JSON:API 1.1, section 5). Members that the
// specification defines and that mean nothing here are passed over.
type document struct {
	Data     *input         `json:"data"`
	Meta     jsontext.Value `json:"meta"`
	Links    jsontext.Value `json:"links"`
	JSONAPI  jsontext.Value `json:"jsonapi"`
	Included jsontext.Value `json:"included"`
}

// input is the resource of a request. Attributes that are null are absent.
type input struct {
	ID            string                    `json:"id"`
	LID           string                    `json:"lid"`
	Type          string                    `json:"type"`
	Attributes    map[string]jsontext.Value `json:"attributes"`
	Relationships map[string]jsontext.Value `json:"relationships"`
	Links         jsontext.Value            `json:"links"`
	Meta          jsontext.Value            `json:"meta"`

	meta jsontext.Value // of the document
}

// readDocument reads a document with one resource. Errors name the place, never
// the value, which may be a secret.
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

// decode reads exactly one JSON object without unknown or repeated members.
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

// pointer is a place in an answer, "" when it is longer than any of ours: a
// caller's mistake of a mebibyte is not sent back.
func pointer(p jsontext.Pointer) string {
	if len(p) > 256 {
		return ""
	}
	return string(p)
}

func missing(at string) error {
	return service.ErrMissing.Withf("The member %s is required.", at).At(at)
}

// created checks the resource of a POST.
func (in input) created(types ...string) error {
	switch {
	case !slices.Contains(types, in.Type):
		return ErrResourceType.Withf("The type of the resource must be %s.", types[0]).At("/data/type")
	case in.ID != "":
		return ErrResourceMade.At("/data/id")
	}
	return nil
}

// changed checks the resource of a PATCH: what it says of itself is what the path
// says. It may leave out both.
func (in input) changed(id string, types ...string) error {
	switch {
	case in.Type != "" && !slices.Contains(types, in.Type):
		return ErrResourceType.Withf("The type of the resource must be %s.", types[0]).At("/data/type")
	case in.ID != "" && in.ID != id:
		return ErrResourceID.At("/data/id")
	}
	return nil
}

// expectedRevision is where a document says which revision of the component its sender
// has looked at; expectedRevisions, where one of several components says it of each.
const (
	expectedRevision  = "/meta/expected_revision"
	expectedRevisions = "/meta/expected_revisions"
)

// expected is what the document's meta expects of components; whatever else is in meta is
// passed over.
type expected struct {
	Revision  *int           `json:"expected_revision"`  // of the one component; nil: any
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
		return e, service.ErrBody.Withf("The meta of the document has a member twice.").At("/meta")
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

// expect adds to the body of a command the revision of the component that the document's
// meta expects, if it does.
func (in input) expect(body map[string]any) error {
	e, err := in.expected()
	if err == nil && e.Revision != nil {
		body["expected_revision"] = *e.Revision
	}
	return err
}

// only refuses attributes other than those named.
func (in input) only(names ...string) error {
	for _, name := range slices.Sorted(maps.Keys(in.Attributes)) {
		if !slices.Contains(names, name) {
			at := pointer(jsontext.Pointer("/data/attributes").AppendToken(name))
			return service.ErrBody.Withf("The attribute is unknown or read-only.").At(at)
		}
	}
	return nil
}

// related is the id that a to-one relationship names, "" when it is absent or
// null. typ, when not "", is the type that it must have.
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

// relatedAll are the ids that a to-many relationship names; given reports whether it
// is there. typ is the type that each must have.
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

// unlinks reports whether a to-one relationship, whose form was looked at, is said
// to lead nowhere from here on: its data is null.
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

// resource is a resource of an answer. What the vendor has no attribute for is in meta.
type resource struct {
	ID            string                  `json:"id"`
	Type          string                  `json:"type"`
	Links         map[string]string       `json:"links,omitzero"`
	Attributes    map[string]any          `json:"attributes"`
	Relationships map[string]relationship `json:"relationships,omitzero"`
	Meta          map[string]any          `json:"meta,omitzero"`
}

// relationship leads to one other resource, or to several.
type relationship struct {
	Data  any               `json:"data"` // an identifier, or a list of them
	Links map[string]string `json:"links,omitzero"`
}

type identifier struct {
	ID   string `json:"id"`
	Type string `json:"type"`
}

// to makes a relationship to a resource of the collection.
func to(collection, typ, id string) relationship {
	return relationship{Data: identifier{id, typ}, Links: map[string]string{"self": "/v2/" + collection + "/" + url.PathEscape(id)}}
}

// toAll makes a relationship to several resources, without a link.
func toAll(typ string, ids []string) relationship {
	list := make([]identifier, len(ids))
	for i, id := range ids {
		list[i] = identifier{id, typ}
	}
	return relationship{Data: list}
}

// answer is the document of an answer.
type answer struct {
	Data     any               `json:"data"`
	Included []resource        `json:"included,omitzero"`
	Links    map[string]string `json:"links,omitzero"`
	Meta     map[string]any    `json:"meta"`
}

// errorObject is one error (JSON:API 1.1, section 11).
type errorObject struct {
	ID     string         `json:"id,omitzero"` // of the request: leads the operator to the cause
	Status string         `json:"status"`
	Code   string         `json:"code"`
	Title  string         `json:"title"`
	Detail string         `json:"detail"`
	Source *errorSource   `json:"source,omitzero"`
	Meta   jsontext.Value `json:"meta,omitzero"` // more for programs: the flows that hold a credential, say
}

// errorSource is the input at fault.
type errorSource struct {
	Pointer   string `json:"pointer,omitzero"`   // in the document (RFC 6901)
	Parameter string `json:"parameter,omitzero"` // of the URL
}

// Problem answers with an error object.
func (x *exchange) Problem(p fault.Problem) {
	e := errorObject{
		ID: x.ID, Status: strconv.Itoa(p.Status), Code: p.Code, Title: p.Title, Detail: p.Detail, Meta: jsontext.Value(p.Details),
	}
	if name, ok := strings.CutPrefix(p.Pointer, parameterPrefix); ok {
		e.Source = &errorSource{Parameter: name}
	} else if at := x.place(p.Pointer); at != "" {
		e.Source = &errorSource{Pointer: at}
	}
	x.JSON(p.Status, x.media, map[string][]errorObject{"errors": {e}})
}

// place is where in the document of the request a member of the service's body
// stands, "" when it is not from there.
func (x *exchange) place(at string) string {
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

// give answers with a document.
func (x *exchange) give(status int, doc answer) {
	if doc.Meta == nil {
		doc.Meta = map[string]any{}
	}
	x.JSON(status, x.media, doc)
}

// noteBehind logs that the views could not be waited for after a write. The write
// was done all the same.
func (x *exchange) noteBehind(err error) {
	if err != nil && !hidden(err) {
		x.Warn("read models are behind a write", err)
	}
}

// gone answers a delete that was done; err is what was found when looking for the
// thing again.
func (x *exchange) gone(err error) {
	x.noteBehind(err)
	x.End(http.StatusNoContent)
}
