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

// keyPrefix begins the names of a form's inputs that are fields of a component.
const keyPrefix = "key."

// field is one input of a form that is made from a component.json.
type field struct {
	Name, Label, Note, Placeholder, Prompt string
	View                                   string
	Required, Secret                       bool
	Options                                []option
	Value                                  string // "" of a secret, always
	Error                                  string
}

type option struct {
	Value, Label string
}

// Input is the name of the field's input.
func (f field) Input() string { return keyPrefix + f.Name }

// Kinds of input.
func (f field) OAuth() bool    { return f.View == "OAuthFieldView" || f.View == "HTTPAuthView" }
func (f field) Password() bool { return f.View == "PasswordFieldView" }
func (f field) Area() bool     { return f.View == "TextAreaView" }
func (f field) Check() bool    { return f.View == "CheckBoxView" }
func (f field) Select() bool   { return f.View == "SelectView" && len(f.Options) > 0 }

// descriptor is what a form reads of a component.json, which the service has checked.
type descriptor struct {
	Description string `json:"description"`
	Credentials struct {
		Fields fields `json:"fields"`
	} `json:"credentials"`
}

// fields keep the order of the file.
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

// members calls each for the members of an object, or passes over another value.
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

// options reads the model of a SelectView: an object of values and labels, or a list of values.
// The name of a function offers nothing here.
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

// readDescriptor reads a component.json.
func readDescriptor(raw jsontext.Value) (d descriptor, err error) {
	return d, json.Unmarshal(raw, &d)
}

// keys are the values of a form, as the service takes them. What was left empty is not there.
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

// filled returns the fields with what was typed, but for secrets, and why one was refused.
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

// shown returns the fields with the values that are no secrets.
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

// OAuth reports whether a field holds tokens that a provider gives, and whether the field can
// hold nothing else.
func (d descriptor) OAuth() bool {
	for _, f := range d.Credentials.Fields {
		if f.OAuth() {
			return true
		}
	}
	return false
}
