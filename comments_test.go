package credstream_test

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"

	v1 "github.com/credstream/credstream/api/v1"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/application"
)

// The OpenAPI document says of each type and member what the source says of it.
func TestReferenceInOpenAPI(t *testing.T) {
	docs := documented(t, append(serviceRooms(t), "commands", "events", "projections", "fault", "api/v1")...)
	said := map[string]map[string]string{}
	comments(docs, said, reflect.TypeFor[fault.Problem]())
	comments(docs, said, reflect.TypeFor[v1.Readiness]())
	for _, r := range application.Routes() {
		comments(docs, said, r.In)
		comments(docs, said, r.Out)
	}
	want, err := json.MarshalIndent(said, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	const file = "api/v1/comments.json"
	if *update {
		if err := os.WriteFile(file, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is out of date; update it: go test . -run TestReferenceInOpenAPI -update", file)
	}
}

// comments gathers the comments on a struct of ours and on all that it holds.
func comments(docs map[string]typeDoc, said map[string]map[string]string, typ reflect.Type) {
	switch typ.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		comments(docs, said, typ.Elem())
		return
	case reflect.Struct:
	default:
		return
	}
	if said[typ.String()] != nil || !strings.HasPrefix(typ.PkgPath(), module) {
		return
	}
	of := map[string]string{}
	said[typ.String()] = of
	d := docs[strings.TrimPrefix(typ.PkgPath(), module)+"."+typ.Name()]
	if c := sentence(strings.TrimPrefix(d.comment, typ.Name()+" is "), typ.Name()); c != "" {
		of[""] = c
	}
	for f := range typ.Fields() {
		if c := strings.Join(strings.Fields(d.fields[f.Name]), " "); c != "" {
			of[f.Name] = c
		}
		comments(docs, said, f.Type)
	}
	if len(of) == 0 {
		delete(said, typ.String())
	}
}
