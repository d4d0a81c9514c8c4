package web

import (
	"bytes"
	"net/url"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// keyPrefix is the prefix of the names of inputs for a component's fields.
const keyPrefix = "key."

// field is an input that is generated from a component.json.
type field struct {
	Name, Label, Note, Placeholder, Prompt string
	View                                   string
	Required, Secret                       bool
	Options                                []option
	Value                                  string // always "" for a secret
	Error                                  string
}

type option struct {
	Value, Label string
}

// Input returns the name of the input.
func (f field) Input() string { return keyPrefix + f.Name }

// Kinds of input.
func (f field) OAuth() bool    { return f.View == "OAuthFieldView" || f.View == "HTTPAuthView" }
func (f field) Password() bool { return f.View == "PasswordFieldView" }
func (f field) Area() bool     { return f.View == "TextAreaView" }
func (f field) Check() bool    { return f.View == "CheckBoxView" }
func (f field) Select() bool   { return f.View == "SelectView" && len(f.Options) > 0 }

// descriptor is the part of a component.json that a form needs. The service has validated it.
type descriptor struct {
	Description string `json:"description"`
	Credentials struct {
		Fields fields `json:"fields"`
	} `json:"credentials"`
}

// fields are in the order of the file.
type fields []field

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (l *fields) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	return members(dec, func(name string) error {
		var in struct {
			Label, Note, Placeholder, Prompt, ViewClass string
			Required                                    bool
			Secret                                      *bool
			Model                                       jsontext.Value
		}
		if err := json.UnmarshalDecode(dec, &in, json.MatchCaseInsensitiveNames(true)); err != nil {
			return err
		}
		f := field{
			Name: name, Label: in.Label, Note: in.Note, Placeholder: in.Placeholder, Prompt: in.Prompt, View: in.ViewClass,
			Required: in.Required, Secret: in.Secret == nil || *in.Secret, Options: options(in.Model),
		}
		if f.Label == "" {
			f.Label = name
		}
		*l = append(*l, f)
		return nil
	})
}

// members calls each for the members of an object, and skips any other value.
func members(dec *jsontext.Decoder, each func(name string) error) error {
	if dec.PeekKind() != '{' {
		return dec.SkipValue()
	}
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return err
		}
		if err := each(name.String()); err != nil {
			return err
		}
	}
	_, err := dec.ReadToken()
	return err
}

// options parses the model of a SelectView: an object of labels by value, or a list of values. It
// returns nothing for a model that is the name of a function.
func options(model jsontext.Value) (list []option) {
	var values []string
	if model.Kind() == '[' && json.Unmarshal(model, &values) == nil {
		for _, v := range values {
			list = append(list, option{v, v})
		}
		return list
	}
	if model.Kind() != '{' {
		return nil
	}
	dec := jsontext.NewDecoder(bytes.NewReader(model))
	err := members(dec, func(value string) error {
		label, err := dec.ReadValue()
		if err != nil {
			return err
		}
		o := option{value, value}
		if label.Kind() == '"' {
			_ = json.Unmarshal(label, &o.Label)
		}
		list = append(list, o)
		return nil
	})
	if err != nil {
		return nil
	}
	return list
}

// readDescriptor parses a component.json.
func readDescriptor(raw jsontext.Value) (d descriptor, err error) {
	return d, json.Unmarshal(raw, &d)
}

// keys returns the values of a form as the service expects them, without empty ones.
func (d descriptor) keys(form url.Values) map[string]any {
	keys := map[string]any{}
	for _, f := range d.Credentials.Fields {
		given := form.Get(f.Input())
		switch {
		case f.Check() && (given != "" || f.Required):
			keys[f.Name] = given != ""
		case given != "":
			// A browser writes line ends as CR LF (HTML Living Standard, section 4.10.22).
			keys[f.Name] = strings.ReplaceAll(given, "\r\n", "\n")
		}
	}
	return keys
}

// filled returns the fields with the submitted values, except secrets, and the error of one.
func (d descriptor) filled(form url.Values, err error) fields {
	f := fault.Of(err)
	list := make(fields, len(d.Credentials.Fields))
	for i, field := range d.Credentials.Fields {
		if !field.Password() && !field.Secret || field.Check() || field.Select() {
			field.Value = form.Get(field.Input())
		}
		if f != nil && f.Pointer == "/keys/"+service.EscapePointer(field.Name) {
			field.Error = f.Msg
		}
		list[i] = field
	}
	return list
}

// shown returns the fields with the values that are not secret.
func (d descriptor) shown(values map[string]any, mask string) fields {
	list := make(fields, len(d.Credentials.Fields))
	for i, field := range d.Credentials.Fields {
		switch v := values[field.Name].(type) {
		case string:
			if v != mask {
				field.Value = v
			}
		case jsontext.Value:
			field.Value = textOf(v)
		}
		list[i] = field
	}
	return list
}

// OAuth reports whether a field holds a provider's tokens.
func (d descriptor) OAuth() bool {
	for _, f := range d.Credentials.Fields {
		if f.OAuth() {
			return true
		}
	}
	return false
}
