package v1

import (
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/fault"
)

// Errors of query parameters. They repeat neither names nor values.
var (
	ErrParameterUnknown = fault.New(fault.Invalid, "query_parameter_unknown", "Unknown parameter, or a parameter appears more than once.")
	ErrParameterInvalid = fault.New(fault.Invalid, "query_parameter_invalid", "A parameter has the wrong type.")
)

// parameter is one member of a query's input that a URL can carry.
type parameter struct {
	name     string
	field    string // Go name of the field
	required bool
	is       string // description of the type: "a number", ...
	goType   reflect.Type
	// write appends the JSON form of a value; ok is false if it has the wrong type.
	write func(b []byte, value string) (_ []byte, ok bool)
}

// parametersOf lists the members of a query's input struct.
func parametersOf(in reflect.Type) []parameter {
	var list []parameter
	for f := range in.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		typ := f.Type
		if typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		p := parameter{name: name, field: f.Name, required: !strings.Contains(options, "omitzero"), goType: typ}
		switch {
		case typ == reflect.TypeFor[time.Time]():
			p.is, p.write = "an RFC 3339 time", writeTime
		case typ.Kind() == reflect.String:
			p.is, p.write = "UTF-8 text", writeString
		case typ.Kind() == reflect.Bool:
			p.is, p.write = "true or false", writeBool
		case typ.Kind() >= reflect.Int && typ.Kind() <= reflect.Int64:
			p.is, p.write = "a whole number", writeInt
		case typ.Kind() >= reflect.Uint && typ.Kind() <= reflect.Uint64:
			p.is, p.write = "a whole number from 0", writeUint
		case typ == reflect.TypeFor[[]string]():
			p.is, p.write = "a JSON array of texts", writeTexts
		default:
			continue // cannot be sent in a URL
		}
		list = append(list, p)
	}
	return list
}

func writeString(b []byte, v string) ([]byte, bool) {
	b, err := jsontext.AppendQuote(b, v)
	return b, err == nil
}

func writeTexts(b []byte, v string) ([]byte, bool) {
	var list []string
	if json.Unmarshal([]byte(v), &list) != nil {
		return b, false
	}
	return append(b, v...), true
}

func writeTime(b []byte, v string) ([]byte, bool) {
	if _, err := time.Parse(time.RFC3339, v); err != nil {
		return b, false
	}
	return writeString(b, v)
}

func writeBool(b []byte, v string) ([]byte, bool) {
	return append(b, v...), v == "true" || v == "false"
}

func writeInt(b []byte, v string) ([]byte, bool) {
	n, err := strconv.ParseInt(v, 10, 64)
	return strconv.AppendInt(b, n, 10), err == nil
}

func writeUint(b []byte, v string) ([]byte, bool) {
	n, err := strconv.ParseUint(v, 10, 64)
	return strconv.AppendUint(b, n, 10), err == nil
}

// bodyOf converts URL parameters to the JSON body of the query.
func bodyOf(known []parameter, query string) ([]byte, error) {
	if query == "" {
		return nil, nil
	}
	var seen uint64 // bit set of known parameters
	b := append(make([]byte, 0, len(query)+16), '{')
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		name, err := unescapeParameter(name)
		i := indexOf(known, name)
		if err != nil || i < 0 || seen&(1<<i) != 0 {
			return nil, ErrParameterUnknown.Withf("Unknown parameter, or a parameter appears more than once. Supported parameters: %s.", names(known))
		}
		p := &known[i]
		if value, err = unescapeParameter(value); err != nil {
			return nil, p.invalid()
		}
		if seen != 0 {
			b = append(b, ',')
		}
		seen |= 1 << i
		b, _ = jsontext.AppendQuote(b, p.name) // the name is a constant
		b = append(b, ':')
		var ok bool
		if b, ok = p.write(b, value); !ok {
			return nil, p.invalid()
		}
	}
	return append(b, '}'), nil
}

func (p *parameter) invalid() error {
	return ErrParameterInvalid.Withf("The parameter %s must be %s.", p.name, p.is).At("/" + p.name)
}

func unescapeParameter(s string) (string, error) {
	if !strings.ContainsAny(s, "%+") {
		return s, nil
	}
	return url.QueryUnescape(s)
}

func indexOf(known []parameter, name string) int {
	for i := range known {
		if known[i].name == name {
			return i
		}
	}
	return -1
}

func names(known []parameter) string {
	if len(known) == 0 {
		return "none"
	}
	list := make([]string, len(known))
	for i, p := range known {
		list[i] = p.name
	}
	return strings.Join(list, ", ")
}
