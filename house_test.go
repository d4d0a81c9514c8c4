// Package credstream_test keeps the rules of the house: who may import whom,
// and that every error code is said once.
package credstream_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/credstream/credstream/"

// imports lists, for each room, the rooms it may import. A folder below a room
// may import what the room may, and the room. cmd may import anything, but for the
// command line.
var imports = map[string][]string{
	"fault":       {},
	"admission":   {"fault"},
	"jsapi":       {"fault"},
	"seal":        {"fault", "jsapi"},
	"events":      {"fault", "admission", "jsapi"},
	"commands":    {"fault", "events"},                               // commands speak of versions and verifications in the events' words
	"vault":       {"fault", "admission", "jsapi", "seal", "events"}, // events for the one encoding of ids
	"verify":      {"fault", "admission", "seal"},                    //
	"aggregates":  {"fault", "events", "commands"},
	"projections": {"fault", "admission", "events"},
	"oauth":       {"fault", "admission", "seal", "verify"},
	"service":     {"fault", "admission", "seal", "events", "commands", "vault", "verify", "oauth", "aggregates", "projections"},
	"bus":         {"fault", "admission", "jsapi", "events", "projections", "service"},
	"api":         {"fault", "service"},
	"client":      {"fault"},
}

// features lists, for the kernel and each room of the service, the bus and the API, the
// rooms beside it that it may import: those below it, for their types. What a feature has
// another one do goes through an interface that it declares itself. The surfaces of the API
// share their skeleton and know nothing of each other.
var features = map[string][]string{
	"service":             {"permission"}, // the kernel knows no feature
	"service/permission":  {},
	"service/secrets":     {"", "permission"}, // "" is the kernel
	"service/access":      {"", "permission"},
	"service/flow":        {"", "permission"},
	"service/throttle":    {"", "permission"},
	"service/webhook":     {"", "permission", "secrets"},
	"service/expiry":      {"", "permission"},
	"service/encryption":  {"", "permission"},
	"service/erasure":     {"", "permission", "admin"},
	"service/component":   {"", "permission", "secrets", "flow"},
	"service/client":      {"", "permission", "secrets", "flow", "component"},
	"service/token":       {"", "permission", "secrets", "client"},
	"service/credential":  {"", "permission", "secrets", "flow", "component", "client", "token"},
	"service/connect":     {"", "permission", "secrets", "client", "token", "credential"},
	"service/connector":   {"", "permission", "secrets"},
	"service/admin":       {"", "permission", "secrets"},
	"service/transfer":    {"", "permission"},
	"service/backup":      {"", "permission", "secrets", "transfer"},
	"bus/streams":         {}, // names of streams and subjects
	"bus/storage":         {}, // files of the embedded server
	"bus/natsserver":      {"streams", "storage"},
	"bus/kv":              {"streams"},
	"bus/feed":            {"streams"},
	"bus/edge":            {"streams", "natsserver"},
	"service/application": {"", "secrets", "access", "flow", "component", "client", "token", "throttle", "webhook", "expiry", "encryption", "erasure", "credential", "connect", "connector", "transfer", "backup", "admin"},
	"api/edge":            {},
	"api/v1":              {"edge"},
	"api/elasticio":       {"edge"},
	"api/elastic":         {"edge"},
	"api/aspire":          {"edge"},
	"api/connect":         {"edge"},
	"api/web":             {"edge"},

	"cmd/credstream":          {"settings", "demo", "app", "cli"},
	"cmd/credstream/importer": {},
	"cmd/credstream/settings": {},
	"cmd/credstream/demo":     {},
	"cmd/credstream/servetls": {},
	"cmd/credstream/app":      {"settings", "servetls"},
	"cmd/credstream/cli":      {"settings", "demo", "app", "importer"},
}

// ofCommandLine lists what the command line may import beside the rooms of cmd: it calls the
// service as everybody else does, through the client, and knows some of its errors.
var ofCommandLine = []string{"fault", "client", "commands", "events", "seal", "service"}

// support is what tests alone may import.
var support = []string{"service/stage", "bus/bustest", "oauth/oauthtest", "events/storetest", "events/eventstoredb/esdbtest", "aggregates/aggregatetest"}

// A feature knows as little of another one as five methods. What it needs of others stands
// in its service.go.
func TestSmallInterfaces(t *testing.T) {
	found := 0
	for file, f := range sources(t, parser.SkipObjectResolution) {
		room := path.Dir(filepath.ToSlash(file))
		if _, feature := features[room]; !feature || path.Base(filepath.ToSlash(file)) != "service.go" {
			continue
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				if i, ok := spec.Type.(*ast.InterfaceType); ok {
					found++
					if i.Methods.NumFields() > 5 {
						t.Errorf("%s: %s has %d methods, more than 5", file, spec.Name.Name, i.Methods.NumFields())
					}
				}
			}
			return true
		})
	}
	if found < 15 {
		t.Errorf("found only %d interfaces: the test no longer sees them", found)
	}
}

func TestImports(t *testing.T) {
	for file, f := range sources(t, parser.ImportsOnly) {
		room, _, nested := strings.Cut(filepath.ToSlash(file), "/")
		own := path.Dir(filepath.ToSlash(file))
		if !nested || own == "cmd/credstream-bench" {
			continue
		}
		may, known := imports[room]
		switch {
		case own == "cmd/credstream/app":
			may, known = slices.Collect(maps.Keys(imports)), true
		case room == "cmd":
			may, known = ofCommandLine, true
		}
		if !known {
			t.Errorf("%s stands in no room of the house", file)
			continue
		}
		if slices.Contains(support, own) {
			continue
		}
		mine, feature := features[own]
		if slices.Contains([]string{"service", "api", "bus", "cmd"}, room) && !feature {
			t.Errorf("%s stands in no room of the %s", file, room)
		}
		for _, spec := range f.Imports {
			name, _ := strconv.Unquote(spec.Path.Value)
			whole, ours := strings.CutPrefix(name, module)
			to, below, _ := strings.Cut(whole, "/")
			switch {
			case !ours:
				continue
			case slices.Contains(support, whole):
				t.Errorf("%s: %s is for tests alone", file, whole)
				continue
			case feature && to == room:
				if !slices.Contains(mine, strings.TrimPrefix(below, "credstream/")) {
					t.Errorf("%s: %s must not import %s", file, own, whole)
				}
				continue
			case to == room && own != room:
				continue
			}
			if !slices.Contains(may, to) {
				t.Errorf("%s: %s must not import %s", file, room, to)
			}
		}
	}
}

var recordForm = regexp.MustCompile(`^# (\d{4}): [^\n]+\n\n\| \| \|\n\|---\|---\|\n\| Status \| (proposed|accepted|superseded by \d{4}) \|\n\| Date \| \d{4}-\d\d-\d\d \|\n`)

// Every decision has its number, its status and its date.
func TestDecisionRecords(t *testing.T) {
	files, err := filepath.Glob("docs/adr/*.md")
	if err != nil || len(files) == 0 {
		t.Fatal("no decisions found", err)
	}
	for i, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		head := recordForm.FindSubmatch(b)
		if head == nil {
			t.Errorf("%s does not begin with its title and table", file)
			continue
		}
		if want := fmt.Sprintf("%04d", i+1); string(head[1]) != want || !strings.HasPrefix(filepath.Base(file), want+"-") {
			t.Errorf("%s is decision %s, want %s", file, head[1], want)
		}
	}
}

var codeForm = regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)

// A code tells a caller which rule refused, so no two rules share one.
func TestErrorCodesAreUnique(t *testing.T) {
	seen := map[string]string{}
	for file, f := range sources(t, parser.SkipObjectResolution) {
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 3 || !callsNew(call.Fun, file) {
				return true
			}
			lit, ok := call.Args[1].(*ast.BasicLit)
			if !ok {
				t.Errorf("%s: the code of an error is not a literal", file)
				return true
			}
			code, _ := strconv.Unquote(lit.Value)
			if !codeForm.MatchString(code) {
				t.Errorf("%s: the code %q is not lower case words joined by '_'", file, code)
			}
			if other, dup := seen[code]; dup {
				t.Errorf("%s: the code %q stands in %s too", file, code, other)
			}
			seen[code] = file
			return true
		})
	}
	if len(seen) < 30 {
		t.Errorf("found only %d codes: the test no longer sees them", len(seen))
	}
}

func callsNew(fun ast.Expr, file string) bool {
	if id, ok := fun.(*ast.Ident); ok {
		return id.Name == "New" && strings.HasPrefix(filepath.ToSlash(file), "fault/")
	}
	sel, ok := fun.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != "New" {
		return false
	}
	pkg, ok := sel.X.(*ast.Ident)
	return ok && pkg.Name == "fault"
}

// sources parses every file of the module that is no test.
func sources(t *testing.T, mode parser.Mode) map[string]*ast.File {
	t.Helper()
	files := map[string]*ast.File{}
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && file != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go"):
			return nil
		}
		files[file], err = parser.ParseFile(token.NewFileSet(), file, nil, mode)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
