package v1_test

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"
	"github.com/santhosh-tekuri/jsonschema/v6"

	v1 "github.com/credstream/credstream/api/v1"
	"github.com/credstream/credstream/service/application"
)

// compilerOf returns a compiler that knows the document as file:///openapi.json,
// and the document.
func compilerOf(t *testing.T, document string) (*jsonschema.Compiler, map[string]any) {
	t.Helper()
	root, err := jsonschema.UnmarshalJSON(strings.NewReader(document))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("file:///openapi.json", root); err != nil {
		t.Fatal(err)
	}
	return compiler, root.(map[string]any)
}

// escape writes a step of a JSON pointer into a URL's fragment.
var escape = strings.NewReplacer("/", "~1", "{", "%7B", "}", "%7D")

// Every route has an example, and its schema says so.
func TestExamples(t *testing.T) {
	e := newEdge(t)
	_, body := e.do(t, request{"GET", "/openapi.json", nil, nil})
	compiler, root := compilerOf(t, body)
	paths := root["paths"].(map[string]any)
	for _, r := range application.Routes() {
		if !r.Command {
			path := "/v1/tenants/{tenant}/" + r.Name
			shown := 0
			for i, p := range paths[path].(map[string]any)["get"].(map[string]any)["parameters"].([]any) {
				p := p.(map[string]any)
				value, given := p["example"]
				if !given {
					if p["required"] == true {
						t.Errorf("%s: the parameter %s has no example", r.Name, p["name"])
					}
					continue
				}
				shown++
				s, err := compiler.Compile("file:///openapi.json#/paths/" + escape.Replace(path) + "/get/parameters/" + strconv.Itoa(i) + "/schema")
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Validate(value); err != nil {
					t.Errorf("%s: the example of %s is none: %v", r.Name, p["name"], err)
				}
			}
			if shown == 0 {
				t.Errorf("%s has no example", r.Name)
			}
			continue
		}
		path := "/v1/tenants/{tenant}/commands/" + r.Name
		media := paths[path].(map[string]any)["post"].(map[string]any)["requestBody"].(map[string]any)["content"].(map[string]any)["application/json"].(map[string]any)
		if media["example"] == nil {
			t.Errorf("%s has no example: give it one in examples.go", r.Name)
			continue
		}
		s, err := compiler.Compile("file:///openapi.json#/paths/" + escape.Replace(path) + "/post/requestBody/content/application~1json/schema")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(media["example"]); err != nil {
			t.Errorf("%s: the example is not what the schema says: %v", r.Name, err)
		}
	}
}

// The document says what the source says of types, members and parameters.
func TestDescriptions(t *testing.T) {
	e := newEdge(t)
	_, body := e.do(t, request{"GET", "/openapi.json", nil, nil})
	for _, want := range []string{
		`"description":"replaces all values"`,                              // a member
		`"description":"wait until the answer reflects this log sequence"`, // a parameter
		`"description":"log sequence to pass as min_seq"`,                  // an embedded member
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the document lacks %s", want)
		}
	}
}

// Another surface describes itself in the one document.
func TestDescribe(t *testing.T) {
	e := newEdge(t, func(c *v1.Config) {
		c.Describe = func(doc *huma.OpenAPI) {
			doc.Paths["/v2/things"] = &huma.PathItem{Get: &huma.Operation{OperationID: "things"}}
		}
	})
	_, body := e.do(t, request{"GET", "/openapi.json", nil, nil})
	var doc struct{ Paths map[string]json.RawMessage }
	if err := json.Unmarshal([]byte(body), &doc); err != nil || doc.Paths["/v2/things"] == nil || doc.Paths["/healthz"] == nil {
		t.Errorf("%v: paths are missing", err)
	}
}

// The page needs nothing but its own three files, and its policy lets nothing
// else in.
func TestPage(t *testing.T) {
	e := newEdge(t)
	open := http.Header{"Authorization": nil}
	elsewhere := regexp.MustCompile(`(?i)https?:|src="[^/]|href="[^/#]|//[a-z]+\.`)
	inline := regexp.MustCompile(`(?is)<script[^>]*>[^<]|<style|style=|\son[a-z]+=|javascript:`)
	size := 0
	for path, media := range map[string]string{
		"/docs": "text/html; charset=utf-8", "/docs/page.js": "text/javascript; charset=utf-8", "/docs/page.css": "text/css; charset=utf-8",
	} {
		resp, body := e.do(t, request{"GET", path, nil, open})
		size += len(body)
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != media {
			t.Errorf("%s: %d %s", path, resp.StatusCode, resp.Header)
		}
		policy := resp.Header.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"} {
			if !strings.Contains(policy, want) || strings.Contains(policy, "unsafe") {
				t.Errorf("%s: the policy is %s", path, policy)
			}
		}
		if found := elsewhere.FindString(body); found != "" {
			t.Errorf("%s leads elsewhere: %s", path, found)
		}
		if strings.HasSuffix(path, ".js") {
			for _, bad := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("} {
				if strings.Contains(body, bad) {
					t.Errorf("%s makes markup or code of text: %s", path, bad)
				}
			}
			continue
		}
		if found := inline.FindString(body); found != "" {
			t.Errorf("%s has something inline: %s", path, found)
		}
	}
	if size > 20<<10 {
		t.Errorf("the page takes %d bytes", size)
	}
	for _, path := range []string{"/docs/", "/docs/page.html", "/docs/../page.go", "/docs/%2e%2e/page.go"} {
		if resp, _ := e.do(t, request{"GET", path, nil, open}); resp.StatusCode != 404 {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
}
