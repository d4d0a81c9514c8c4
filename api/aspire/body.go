package aspire

import (
	"bytes"
	"errors"
	"io"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/api/edge"
	"github.com/credstream/credstream/service"
)

// maxBody is the maximum size of a request body in bytes.
const maxBody = 16 << 20

func (x *exchange) body() ([]byte, error) {
	body, err := x.ReceiveUpTo(x.cfg.Service, &x.call, maxBody, edge.IsJSON)
	if err == nil && len(body) == 0 {
		err = service.ErrBody.Withf("The body is missing.")
	}
	return body, err
}

// oneOrSeveral parses a body that is an object, or an array of at least one.
func (x *exchange) oneOrSeveral() (list []jsontext.Value, many bool, err error) {
	body, err := x.body()
	if err != nil {
		return nil, false, err
	}
	if jsontext.Value(body).Kind() != '[' {
		return []jsontext.Value{body}, false, nil
	}
	if list, err = elements(body); err == nil && len(list) == 0 {
		err = service.ErrBody.Withf("The list is empty.")
	}
	return list, true, err
}

// byID parses a body that is an object of objects by id, or one object with an id.
func (x *exchange) byID() (list map[string]jsontext.Value, many bool, err error) {
	body, err := x.body()
	if err == nil {
		list, err = members(body)
	}
	switch {
	case err != nil:
		return nil, false, err
	case len(list) == 0:
		return nil, false, service.ErrBody.Withf("The body must be an object of objects by id, or one object with its id.")
	case list["id"].Kind() == '"':
		_ = json.Unmarshal(list["id"], &x.item) // a string: its kind was checked
		return map[string]jsontext.Value{x.item: body}, false, nil
	}
	return list, true, nil
}

// elements returns the elements of an array. It stops after maxItems.
func elements(body []byte) (list []jsontext.Value, err error) {
	in := jsontext.NewDecoder(bytes.NewReader(body))
	if _, err := in.ReadToken(); err != nil {
		return nil, service.ErrBody
	}
	for in.PeekKind() != ']' {
		v, err := in.ReadValue()
		if err != nil {
			return nil, service.ErrBody
		}
		if len(list) == maxItems {
			return nil, errTooMany
		}
		list = append(list, v.Clone())
	}
	return list, ends(in)
}

// ends reads the end of the array or object, after which the body ends.
func ends(in *jsontext.Decoder) error {
	if _, err := in.ReadToken(); err != nil {
		return service.ErrBody
	}
	if _, err := in.ReadToken(); !errors.Is(err, io.EOF) {
		return service.ErrBody.Withf("There is more after the end of the body.")
	}
	return nil
}

// members returns the members of an object. It stops after maxItems.
func members(body []byte) (map[string]jsontext.Value, error) {
	in := jsontext.NewDecoder(bytes.NewReader(body))
	if token, err := in.ReadToken(); err != nil || token.Kind() != '{' {
		return nil, service.ErrBody
	}
	list := map[string]jsontext.Value{}
	for in.PeekKind() != '}' {
		name, err := in.ReadToken()
		if err != nil {
			return nil, service.ErrBody
		}
		key := name.String()
		v, err := in.ReadValue()
		if err != nil {
			return nil, service.ErrBody
		}
		if len(list) == maxItems {
			return nil, errTooMany
		}
		list[key] = v.Clone()
	}
	return list, ends(in)
}

// ids is an array of ids in JSON, or a single id.
type ids []string

// UnmarshalJSON implements json.Unmarshaler.
func (l *ids) UnmarshalJSON(b []byte) error {
	if b[0] == '"' {
		var one string
		err := json.Unmarshal(b, &one)
		*l = ids{one}
		return err //nolint:wrapcheck // of the decoder
	}
	var list []string
	if err := json.Unmarshal(b, &list); err != nil {
		return err //nolint:wrapcheck // of the decoder
	}
	*l = append(ids{}, list...)
	return nil
}

// listed parses a body of ids.
func (x *exchange) listed() (ids, error) {
	body, err := x.body()
	if err != nil {
		return nil, err
	}
	var in struct {
		IDs ids `json:"ids"`
	}
	if err := service.Decode(body, &in); err != nil {
		return nil, err
	}
	if len(in.IDs) == 0 {
		return nil, service.ErrMissing.Withf("The member ids is required.").At("/ids")
	}
	return in.IDs, nil
}
