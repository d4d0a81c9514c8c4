package credstream_test

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/permission"
)

var update = flag.Bool("update", false, "write docs/reference.md anew")

// docs/reference.md is generated from the route table, the events and the
// errors as they stand in the code, with their comments: it cannot drift.
func TestReference(t *testing.T) {
	want := reference(t)
	const file = "docs/reference.md"
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
		t.Errorf("%s is out of date; update it: go test . -run TestReference -update", file)
	}
}

func reference(t *testing.T) []byte {
	var b bytes.Buffer
	doc := documented(t, append(serviceRooms(t), "commands", "events", "projections", "seal")...)
	b.WriteString(`# Reference

This page describes every command, query, event and error code. It is generated from the code. NATS and HTTP serve the same commands and queries, with the same JSON:

| | command | query |
|---|---|---|
| HTTP | ` + "`POST /v1/tenants/{tenant}/commands/{command}`" + `, JSON body | ` + "`GET /v1/tenants/{tenant}/{query}?member=value`" + ` |
| NATS | request to ` + "`credstream.cmd.{tenant}.{command}`" + `, JSON body | request to ` + "`credstream.query.{tenant}.{query}`" + `, JSON body |

Send the API key as the password of HTTP Basic, as a Bearer token, or as the password (or token) of the NATS connection. To repeat a command safely, send a command id (idempotency key) in the header ` + "`Idempotency-Key`" + ` (HTTP) or ` + "`Nats-Msg-Id`" + ` (NATS). An error is a problem (RFC 9457) with a stable ` + "`code`" + `; on NATS the headers ` + "`Nats-Service-Error-Code`" + ` and ` + "`Nats-Service-Error`" + ` say so.

`)
	for _, kind := range []struct {
		title   string
		command bool
	}{{"Commands", true}, {"Queries", false}} {
		fmt.Fprintf(&b, "## %s\n\n", kind.title)
		for _, r := range application.Routes() {
			if r.Command != kind.command {
				continue
			}
			fmt.Fprintf(&b, "### %s\n\n%s Permission `%s`", r.Name, r.Summary, r.Permission)
			if r.AltPermission != "" {
				fmt.Fprintf(&b, ", or `%s` for what exists", r.AltPermission)
			}
			b.WriteString(".")
			if r.Secrets {
				b.WriteString(" Holds clear secrets: only over TLS or on the same machine.")
			}
			b.WriteString("\n\n")
			members(&b, doc, "takes", r.In)
			if r.Out == reflect.TypeFor[service.Done]() {
				b.WriteString("Answers [done](#done).\n\n")
				continue
			}
			members(&b, doc, "answers", r.Out)
		}
		if kind.command {
			b.WriteString("### done\n\nWhat most commands answer; only the members that say something are there.\n\n")
			members(&b, doc, "answers", reflect.TypeFor[service.Done]())
		}
	}
	b.WriteString("## Roles\n\n| role | permissions |\n|---|---|\n")
	for _, role := range slices.Sorted(keysOf(permission.Roles)) {
		fmt.Fprintf(&b, "| %s | ", role)
		for i, p := range permission.Roles[role] {
			if i > 0 {
				b.WriteString(", ")
			}
			fmt.Fprintf(&b, "`%s`", p)
		}
		b.WriteString(" |\n")
	}
	b.WriteString(`
## Events

Stored names never change; the number is the version written today. The public form of an event, a CloudEvent of the type ` + "`credstream.<name>.v1`" + `, holds the members listed with it and is published on the feed, in the audit stream, or on both.

`)
	for _, typ := range events.All().Types() {
		d := doc["events."+typ.GoType().Name()]
		fmt.Fprintf(&b, "### %s v%d\n\n%s\n\n", typ.Name, typ.Version(), sentence(d.comment, typ.GoType().Name()))
		switch typ.Audience {
		case events.Changes:
			b.WriteString("Published on the feed and in the audit stream: ")
		case events.Audit:
			b.WriteString("Published in the audit stream: ")
		case events.Internal:
			b.WriteString("Internal: it is not published.")
		}
		if public := typ.PublicData(); public != nil {
			fmt.Fprintf(&b, "`%s`.", strings.Join(names(public), "`, `"))
		}
		b.WriteString("\n\n")
		members(&b, doc, "holds", typ.GoType())
	}
	b.WriteString("## Error codes\n\n| code | kind | says |\n|---|---|---|\n")
	for _, e := range faults(t) {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", e[0], e[1], e[2])
	}
	return b.Bytes()
}

func keysOf[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// sentence takes the Go name off the start of a doc comment.
func sentence(comment, name string) string {
	s := strings.Join(strings.Fields(strings.TrimPrefix(strings.TrimPrefix(comment, name+" "), "records: ")), " ")
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// typeDoc is what the source says of a struct.
type typeDoc struct {
	comment string
	fields  map[string]string // comment of each
}

// serviceRooms are the folders of the service.
func serviceRooms(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("service")
	if err != nil {
		t.Fatal(err)
	}
	rooms := []string{"service"}
	for _, e := range entries {
		if e.IsDir() {
			rooms = append(rooms, "service/"+e.Name())
		}
	}
	return rooms
}

// documented reads the comments of every struct of the given folders.
func documented(t *testing.T, folders ...string) map[string]typeDoc {
	t.Helper()
	docs := map[string]typeDoc{}
	for _, folder := range folders {
		files, err := filepath.Glob(folder + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			for _, decl := range f.Decls {
				gen, ok := decl.(*ast.GenDecl)
				if !ok || gen.Tok != token.TYPE {
					continue
				}
				for _, spec := range gen.Specs {
					ts := spec.(*ast.TypeSpec)
					st, ok := ts.Type.(*ast.StructType)
					if !ok {
						continue
					}
					d := typeDoc{comment: gen.Doc.Text(), fields: map[string]string{}}
					for _, field := range st.Fields.List {
						for _, n := range field.Names {
							d.fields[n.Name] = strings.TrimSpace(field.Comment.Text() + field.Doc.Text())
						}
					}
					docs[folder+"."+ts.Name.Name] = d
				}
			}
		}
	}
	return docs
}

// names lists the JSON members of a struct.
func names(typ reflect.Type) (all []string) {
	for f := range typ.Fields() {
		name, option, _ := strings.Cut(f.Tag.Get("json"), ",")
		if option == "embed" {
			all = append(all, names(f.Type)...)
			continue
		}
		all = append(all, name)
	}
	return all
}

// members writes the JSON members of a struct as a table.
func members(b *bytes.Buffer, doc map[string]typeDoc, verb string, typ reflect.Type) {
	rows := rowsOf(doc, "", typ, 0)
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(b, "| %s | type | |\n|---|---|---|\n%s\n", verb, strings.Join(rows, ""))
}

func rowsOf(doc map[string]typeDoc, prefix string, typ reflect.Type, depth int) (rows []string) {
	d := doc[strings.TrimPrefix(typ.PkgPath(), module)+"."+typ.Name()]
	for f := range typ.Fields() {
		if f.Anonymous {
			rows = append(rows, rowsOf(doc, prefix, f.Type, depth)...)
			continue
		}
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || tag == "" || tag == "-" {
			continue
		}
		optional := ""
		if strings.Contains(f.Tag.Get("json"), "omitzero") {
			optional = "?"
		}
		rows = append(rows, fmt.Sprintf("| `%s%s`%s | %s | %s |\n", prefix, tag, optional, jsonType(f.Type), d.fields[f.Name]))
		inner, path := f.Type, prefix+tag+"."
		if inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Slice {
			inner, path = inner.Elem(), prefix+tag+"[]."
		}
		if inner.Kind() == reflect.Struct && strings.HasPrefix(inner.PkgPath(), module) && inner.Name() != "Keys" && depth < 3 {
			rows = append(rows, rowsOf(doc, path, inner, depth+1)...)
		}
	}
	return rows
}

func jsonType(t reflect.Type) string {
	switch {
	case t.String() == "time.Time":
		return "time (RFC 3339)"
	case t.Name() == "Keys":
		return "object of clear values"
	case t.String() == "jsontext.Value", t.Kind() == reflect.Interface:
		return "any"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return jsonType(t.Elem())
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	case reflect.Slice:
		return "array of " + jsonType(t.Elem())
	case reflect.Map:
		return "object"
	case reflect.Struct:
		return "object"
	}
	return "integer"
}

// faults lists code, kind and sentence of every error, from the source.
func faults(t *testing.T) (rows [][3]string) {
	t.Helper()
	for file, f := range sources(t, parser.SkipObjectResolution) {
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 3 || !callsNew(call.Fun, file) {
				return true
			}
			var kind bytes.Buffer
			if err := printer.Fprint(&kind, token.NewFileSet(), call.Args[0]); err != nil {
				t.Fatal(err)
			}
			rows = append(rows, [3]string{text(call.Args[1]), kindName(kind.String()), text(call.Args[2])})
			return true
		})
	}
	sort.Slice(rows, func(i, j int) bool { return rows[i][0] < rows[j][0] })
	return rows
}

var wordStart = strings.NewReplacer("NotFound", "not_found", "Unauthenticated", "unauthenticated")

func kindName(expr string) string {
	return strings.ToLower(wordStart.Replace(strings.TrimPrefix(expr, "fault.")))
}

// text is the value of a string literal, or of several joined by +.
func text(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, _ := strconv.Unquote(e.Value)
		return s
	case *ast.BinaryExpr:
		return text(e.X) + text(e.Y)
	}
	return ""
}
