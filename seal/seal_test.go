package seal_test

import (
	"bytes"
	"encoding/gob"
	stdjson "encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"reflect"
	"strconv"
	"strings"
	"testing"
	texttemplate "text/template"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/seal"
)

const canary = "canary-7f3a"

// spellings of the canary that a leak could take: text, hex, base64 at any
// offset, the decimal bytes of a slice.
func leaks(out string) []string {
	var found []string
	decimal := strings.Trim(fmt.Sprintf("%d", []byte(canary)), "[]")
	for _, s := range []string{
		canary, fmt.Sprintf("%x", canary), fmt.Sprintf("%X", canary), strconv.Quote(canary),
		decimal, strings.ReplaceAll(decimal, " ", ","), strings.ReplaceAll(decimal, " ", ", "),
		strings.ReplaceAll(fmt.Sprintf("% x", canary), " ", ", 0x"),
		// base64 of "canary-7f3a" at offsets 0, 1, 2, without what the neighbours touch
		"Y2FuYXJ5LTdm", "NhbmFyeS03ZjN", "jYW5hcnktN2Yz",
	} {
		if strings.Contains(out, s) {
			found = append(found, s)
		}
	}
	return found
}

func TestLeaksSeesALeak(t *testing.T) {
	for _, verb := range []string{"%v", "%s", "%x", "%X", "%q", "%d", "%#v"} {
		if len(leaks(fmt.Sprintf(verb, []byte(canary)))) == 0 {
			t.Errorf("the detector does not see %s", verb)
		}
	}
	for _, prefix := range []string{"", "1", "12"} {
		if b, _ := stdjson.Marshal([]byte(prefix + canary + "12")); len(leaks(string(b))) == 0 {
			t.Errorf("the detector does not see base64 behind %q: %s", prefix, b)
		}
	}
}

type exported struct {
	Name   string
	Secret seal.Secret
	Fields seal.Fields
	Ptr    *seal.Secret
	List   []seal.Secret
	Map    map[string]seal.Secret
	Any    any
}

type unexported struct {
	secret seal.Secret
	fields seal.Fields
	ptr    *seal.Secret
	list   []seal.Fields
	dict   map[string]seal.Secret
	face   any
	deep   struct{ inner *exported }
}

func specimens(t *testing.T) map[string]any {
	t.Helper()
	s := seal.NewSecret([]byte(canary))
	f, err := seal.ParseFields([]byte(`{"password":"` + canary + `"}`))
	if err != nil {
		t.Fatal(err)
	}
	e := exported{"n", s, f, &s, []seal.Secret{s}, map[string]seal.Secret{"k": s}, f}
	u := unexported{s, f, &s, []seal.Fields{f}, map[string]seal.Secret{"k": s}, s, struct{ inner *exported }{&e}}
	return map[string]any{
		"secret": s, "pointer": &s, "fields": f, "fields pointer": &f, "exported": e, "exported pointer": &e,
		"unexported": u, "unexported pointer": &u, "slice": []seal.Secret{s}, "map": map[string]any{"k": s, "f": f},
		"array": [1]seal.Fields{f}, "closure": func() seal.Secret { return s }, "error": fmt.Errorf("with %v and %w", f, errWith{s}),
		"kms": seal.KMS{URL: "file:x", Token: s},
	}
}

type errWith struct{ s seal.Secret }

func (e errWith) Error() string { return fmt.Sprintf("%+v", e.s) }

func TestNothingPrintsASecret(t *testing.T) {
	outputs := map[string]func(any) string{}
	for _, verb := range "vsqxXdobcUtTeEgGp" {
		for _, flags := range []string{"", "+", "#", " ", "# ", "010", "-20.30"} {
			format := "%" + flags + string(verb)
			outputs[format] = func(v any) string { return fmt.Sprintf(format, v) }
		}
	}
	outputs["Sprint"] = func(v any) string { return fmt.Sprint(v) }
	outputs["json v1"] = func(v any) string { b, err := stdjson.Marshal(v); return fmt.Sprint(string(b), err) }
	outputs["json v1 indent"] = func(v any) string { b, err := stdjson.MarshalIndent(v, "", " "); return fmt.Sprint(string(b), err) }
	outputs["json v2"] = func(v any) string { b, err := json.Marshal(v); return fmt.Sprint(string(b), err) }
	outputs["xml"] = func(v any) string { b, err := xml.Marshal(v); return fmt.Sprint(string(b), err) }
	outputs["gob"] = func(v any) string {
		var buf bytes.Buffer
		err := gob.NewEncoder(&buf).Encode(v)
		return fmt.Sprint(buf.String(), err)
	}
	outputs["text/template"] = func(v any) string {
		var buf bytes.Buffer
		err := texttemplate.Must(texttemplate.New("").Parse(`{{.}} {{printf "%s" .}}`)).Execute(&buf, v)
		return fmt.Sprint(buf.String(), err)
	}
	outputs["html/template"] = func(v any) string {
		var buf bytes.Buffer
		err := template.Must(template.New("").Parse(`<a title="{{.}}">{{.}}</a><script>x = {{.}}</script>`)).Execute(&buf, v)
		return fmt.Sprint(buf.String(), err)
	}
	for name, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"slog text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"slog json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		outputs[name] = func(v any) string {
			var buf bytes.Buffer
			log := slog.New(handler(&buf))
			log.Info("message", "plain", v, "group", slog.GroupValue(slog.Any("inner", v)))
			log.With("with", v).Error(fmt.Sprint(v), slog.Any("any", []any{v}))
			return buf.String()
		}
	}
	outputs["panic value"] = func(v any) (out string) {
		defer func() { out = fmt.Sprint(recover()) }()
		panic(v)
	}
	outputs["reflection"] = func(v any) string { return walk(reflect.ValueOf(v), 12) }

	for what, v := range specimens(t) {
		for how, output := range outputs {
			if found := leaks(output(v)); len(found) > 0 {
				t.Errorf("%s of %s shows %q", how, what, found)
			}
		}
	}
}

// walk prints all that reflection can reach, as a dumper would.
func walk(v reflect.Value, depth int) string {
	if depth == 0 || !v.IsValid() {
		return ""
	}
	var b strings.Builder
	switch v.Kind() {
	case reflect.Struct:
		for _, field := range v.Fields() {
			b.WriteString(walk(field, depth-1))
		}
	case reflect.Pointer, reflect.Interface:
		b.WriteString(walk(v.Elem(), depth-1))
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			b.WriteString(walk(v.Index(i), depth-1) + " ")
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			b.WriteString(walk(k, depth-1) + walk(v.MapIndex(k), depth-1))
		}
	case reflect.String:
		b.WriteString(v.String())
	case reflect.Uint8:
		b.WriteString(strconv.FormatUint(v.Uint(), 10))
	}
	return b.String()
}

func TestHiddenIsShown(t *testing.T) {
	s := seal.NewSecret([]byte(canary))
	f, err := seal.ParseFields([]byte(`{"a":1}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{s, &s, f, &f, seal.Secret{}, seal.Fields{}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			if got := fmt.Sprintf(verb, v); got != "[secret]" {
				t.Errorf("%s of %T = %q", verb, v, got)
			}
		}
		v1, err1 := stdjson.Marshal(v)
		v2, err2 := json.Marshal(v)
		if err := errors.Join(err1, err2); err != nil || string(v1) != `"[secret]"` || string(v2) != `"[secret]"` {
			t.Errorf("JSON of %T = %s, %s, %v", v, v1, v2, err)
		}
	}
}

func TestSecretsAreNotDecoded(t *testing.T) {
	for name, decode := range map[string]func(any) error{
		"json v1": func(v any) error { return stdjson.Unmarshal([]byte(`"[secret]"`), v) },
		"json v2": func(v any) error { return json.Unmarshal([]byte(`"[secret]"`), v) },
		"object":  func(v any) error { return json.Unmarshal([]byte(`{}`), v) },
		"xml":     func(v any) error { return xml.Unmarshal([]byte(`<a>[secret]</a>`), v) },
	} {
		if err := decode(new(seal.Secret)); err == nil {
			t.Errorf("%s decoded a Secret", name)
		}
		if err := decode(new(seal.Fields)); err == nil {
			t.Errorf("%s decoded Fields", name)
		}
	}
}

func TestSecret(t *testing.T) {
	s := seal.NewSecret([]byte("abc"))
	s.Reveal()[0] = 'X'
	if got := string(s.Reveal()); got != "abc" {
		t.Errorf("a change to what Reveal returned reached the secret: %q", got)
	}
	if s.Len() != 3 || s.IsZero() || !(seal.Secret{}).IsZero() || !seal.NewSecret(nil).IsZero() {
		t.Error("Len or IsZero is wrong")
	}
	if !s.Equal(seal.NewSecret([]byte("abc"))) || s.Equal(seal.NewSecret([]byte("abd"))) || s.Equal(seal.Secret{}) {
		t.Error("Equal is wrong")
	}
}

func FuzzParseFields(f *testing.F) {
	f.Add([]byte(`{"a":{"b":[1,"x"]},"c":"\n"}`))
	f.Add([]byte(`{"a":1,"a":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		fields, err := seal.ParseFields(b)
		if err != nil {
			return
		}
		again, err := seal.ParseFields(fields.Marshal().Reveal())
		if err != nil {
			t.Fatalf("its own form is refused: %v", err)
		}
		if !again.Marshal().Equal(fields.Marshal()) {
			t.Error("its own form is not stable")
		}
	})
}
