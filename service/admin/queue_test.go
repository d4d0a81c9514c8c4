package admin_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/secrets"
)

// What of a command's input is a secret is told by its type, wherever it stands:
// the queue looks at the members themselves, so none stands deeper.
func TestClearMembersStandOnTop(t *testing.T) {
	var deeper func(reflect.Type) bool
	seen := map[reflect.Type]bool{}
	deeper = func(in reflect.Type) bool {
		for in.Kind() == reflect.Pointer || in.Kind() == reflect.Slice || in.Kind() == reflect.Map {
			in = in.Elem()
		}
		if in == reflect.TypeFor[secrets.Keys]() || in == reflect.TypeFor[secrets.Secret]() {
			return true
		}
		if in.Kind() != reflect.Struct || seen[in] {
			return false
		}
		seen[in] = true
		for f := range in.Fields() {
			if deeper(f.Type) {
				return true
			}
		}
		return false
	}
	found := 0
	for _, r := range application.Routes() {
		top := admin.ClearMembers(r.In)
		isTop := func(f reflect.StructField) bool {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			return slices.Contains(top, name)
		}
		found += len(top)
		for f := range r.In.Fields() {
			if !isTop(f) && deeper(f.Type) {
				t.Errorf("%s: a secret is below the member %s", r.Name, f.Name)
			}
		}
		if len(top) > 0 && !r.Secrets {
			t.Errorf("%s takes %v and is not told to hold secrets", r.Name, top)
		}
	}
	if found < 10 {
		t.Errorf("%d members hold secrets", found)
	}
}
