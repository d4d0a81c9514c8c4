package credstream_test

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"go/parser"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/projections"
)

// A snapshot and a file of views are read by the version that wrote them, so whatever
// changes their form raises that version: testdata/shapes.txt has the form of each
// version. -update writes it anew, but no other form of the same version.
func TestShapesHaveVersions(t *testing.T) {
	const file = "testdata/shapes.txt"
	b, err := os.ReadFile(file)
	if err != nil && !*update {
		t.Fatal(err)
	}
	before := map[string][]string{}
	for row := range strings.Lines(string(b)) {
		if f := strings.Fields(row); len(f) == 3 {
			before[f[0]] = f[1:]
		}
	}
	rows := []string{
		folded(aggregates.Access), folded(aggregates.APIKey), folded(aggregates.AuthClient), folded(aggregates.CommandRecord),
		folded(aggregates.Component), folded(aggregates.Connector), folded(aggregates.ConnectorSecret), folded(aggregates.Credential),
		folded(aggregates.Flow), folded(aggregates.Installation), folded(aggregates.OAuthClient), folded(aggregates.Role), folded(aggregates.Tenant), folded(aggregates.ThrottlePolicy), folded(aggregates.Webhook), views(t),
	}
	deciders := 0
	for path := range sources(t, parser.PackageClauseOnly) {
		if filepath.Dir(path) == "aggregates" {
			src, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			deciders += strings.Count(string(src), " = Decider[")
		}
	}
	if len(rows) != deciders+1 {
		t.Errorf("%d aggregates of %d are looked at", len(rows)-1, deciders)
	}
	for _, row := range rows {
		f := strings.Fields(row)
		was := before[f[0]]
		switch {
		case was == nil, was[0] != f[1]:
			if !*update {
				t.Errorf("%s has another version: make docs", f[0])
			}
		case was[1] != f[2]:
			t.Fatalf("the stored form of %s has changed: raise its version (Fold, or viewsVersion) above %s, then make docs", f[0], f[1])
		}
	}
	if *update {
		if err := os.WriteFile(file, []byte(strings.Join(rows, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func folded[S any, C commands.Command, E any](d aggregates.Decider[S, C, E]) string {
	return fmt.Sprintf("%s %d %s", d.Category, d.Fold, digest(shape(reflect.TypeFor[S](), nil)))
}

var (
	createStatement = regexp.MustCompile(`CREATE [A-Z ]+[^;]*;`)
	versionOfViews  = regexp.MustCompile(`const viewsVersion = (\d+)`)
)

// views is the row of the views: their tables, and what a row holds of a credential.
func views(t *testing.T) string {
	form, version := shape(reflect.TypeFor[projections.Credential](), nil), 0
	files, err := filepath.Glob("projections/*.go") // sorted
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		form += strings.Join(createStatement.FindAllString(string(src), -1), "\n")
		if m := versionOfViews.FindSubmatch(src); m != nil {
			version, _ = strconv.Atoi(string(m[1]))
		}
	}
	if version == 0 || !strings.Contains(form, "CREATE TABLE credentials") {
		t.Fatal("the version or the tables of the views are not found")
	}
	return fmt.Sprintf("views %d %s", version, digest(form))
}

func digest(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s)))[:16] }

// shape writes a type as JSON sees it: the stored names, options and types of all its members.
func shape(typ reflect.Type, within []reflect.Type) string {
	switch typ.Kind() {
	case reflect.Pointer, reflect.Slice:
		return typ.Kind().String() + " " + shape(typ.Elem(), within)
	case reflect.Map:
		return "map " + typ.Key().String() + " " + shape(typ.Elem(), within)
	case reflect.Struct:
	default:
		return typ.Kind().String()
	}
	if typ == reflect.TypeFor[aggregates.Uses]() { // writes itself: what flows do with it
		typ = reflect.TypeFor[aggregates.Use]()
	}
	if typ == reflect.TypeFor[aggregates.PolicyUses]() {
		typ = reflect.TypeFor[map[string]string]()
	}
	if slices.Contains(within, typ) || !strings.HasPrefix(typ.PkgPath(), module) {
		return typ.String()
	}
	var b strings.Builder
	b.WriteString("{")
	for f := range typ.Fields() {
		if f.IsExported() {
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			fmt.Fprintf(&b, "%s %q %s;", cmp.Or(name, f.Name), options, shape(f.Type, append(within, typ)))
		}
	}
	return b.String() + "}"
}
