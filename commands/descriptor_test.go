package commands_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/fault"
)

// with returns a small component.json whose credential has the fields apiKey
// (password, required), host, port and domain, and the members given.
func with(members string) []byte {
	if members != "" {
		members = ", " + members
	}
	return []byte(`{"title": "T", "credentials": {"fields": {
		"apiKey": {"viewClass": "PasswordFieldView", "required": true},
		"host": {"viewClass": "TextFieldView"},
		"port": {"viewClass": "TextFieldView"},
		"domain": {"viewClass": "TextFieldView", "secret": false}}}` + members + `}`)
}

// get returns one with a GET probe of this URL, whose header uses apiKey.
func get(url, members string) []byte {
	return with(fmt.Sprintf(`"verification": {"http": {"url": %q, "headers": {"X-Key": "{{apiKey}}"}}} %s`, url, members))
}

// probe returns one with an http probe of https://api.example.com/ and more members of it.
func probe(members string) []byte {
	return with(`"verification": {"http": {"url": "https://api.example.com/{{apiKey}}", ` + members + `}}`)
}

func TestDescriptorsOfEachTrait(t *testing.T) {
	type summary struct {
		Title  string
		Fields []string // name, ! when required, = options
		OAuth  bool
	}
	want := map[string]summary{
		"all-optional.json":         {"SQL database", []string{"connection", "host", "port", "user", "password", "selfSigned"}, false},
		"api-key.json":              {"Pet shop", []string{"apiKey!"}, false},
		"checkbox.json":             {"Object storage", []string{"accessKeyId!", "accessKeySecret!", "region!", "endpoint", "pathStyle"}, false},
		"host-in-field.json":        {"Sales pipeline", []string{"company!", "token!"}, false},
		"long-text.json":            {"File server", []string{"host!", "port", "username!", "password", "privateKey", "passphrase"}, false},
		"oauth-by-auth-client.json": {"Customers", []string{"oauth!"}, true},
		"oauth-with-endpoints.json": {"Worksheets", []string{"oauth!", "retries=3", "callsPerSecond"}, true},
	}
	got := map[string]summary{}
	files, err := filepath.Glob("testdata/components/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		d, err := commands.ParseDescriptor(raw)
		if err != nil {
			t.Errorf("%s: %v at %s", file, err, fault.Of(err).Pointer)
			continue
		}
		if !bytes.Equal(d.Raw, raw) || d.Verification != nil || d.Hosts != nil {
			t.Errorf("%s: not kept whole, or more read than is there", file)
		}
		s := summary{Title: d.Title, OAuth: d.UsesOAuth}
		for _, f := range d.Fields {
			if !f.Secret {
				t.Errorf("%s: the field %s is not secret by default", file, f.Name)
			}
			name := f.Name
			if f.Required {
				name += "!"
			}
			if len(f.Options) > 0 {
				name += fmt.Sprintf("=%d", len(f.Options))
			}
			s.Fields = append(s.Fields, name)
		}
		got[filepath.Base(file)] = s
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("descriptors (-want +got):\n%s", diff)
	}
}

// Real files, where they are at hand, are taken whole and hold no secret.
func TestRealDescriptors(t *testing.T) {
	files, err := filepath.Glob("../../shared/components/*.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Skip("there are no real component descriptors beside the repository")
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		d, err := commands.ParseDescriptor(raw)
		switch {
		case err != nil:
			t.Errorf("%s: %v at %s", file, err, fault.Of(err).Pointer)
		case !bytes.Equal(d.Raw, raw) || d.Title == "":
			t.Errorf("%s: not kept whole", file)
		}
		if err := commands.CheckNoSecrets(raw); err != nil {
			t.Errorf("%s: %v at %s", file, err, fault.Of(err).Pointer)
		}
	}
}

func TestVerificationIsRead(t *testing.T) {
	raw, err := os.ReadFile("testdata/components/host-in-field.json")
	if err != nil {
		t.Fatal(err)
	}
	raw = []byte(strings.Replace(string(raw), `"version": "1.0.0",`, `"version": "1.0.0",
		"hosts": ["{{company}}.CRM.example.com", "api.crm.example.com"],
		"verification": {"http": {
			"url": "https://{{company}}.crm.example.com/v1/users/me?api_token={{token}}",
			"headers": {"Accept": "application/json"},
			"expect": {"status": [200, 204]},
			"says": {"401": "The API token was not accepted.", "4xx": "Something is wrong."}}},`, 1))
	d, err := commands.ParseDescriptor(raw)
	if err != nil {
		t.Fatal(err, fault.Of(err).Pointer)
	}
	want := &commands.Verification{HTTP: &commands.HTTPProbe{
		Method:  "GET",
		URL:     "https://{{company}}.crm.example.com/v1/users/me?api_token={{token}}",
		Headers: map[string]string{"Accept": "application/json"},
		Expect:  commands.Expect{Status: []int{200, 204}},
		Says:    map[string]string{"401": "The API token was not accepted.", "4xx": "Something is wrong."},
	}}
	if diff := cmp.Diff(want, d.Verification); diff != "" {
		t.Errorf("verification (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"{{company}}.crm.example.com", "api.crm.example.com"}, d.Hosts); diff != "" {
		t.Errorf("hosts (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"company"}, d.HostFields()); diff != "" {
		t.Errorf("host fields (-want +got):\n%s", diff)
	}
	f, ok := d.Field("token")
	wantField := commands.Field{
		Name: "token", Label: "API token", ViewClass: "TextFieldView", Required: true, Secret: true,
		Placeholder: "From your personal settings",
	}
	if diff := cmp.Diff(wantField, f); diff != "" || !ok {
		t.Errorf("field (-want +got):\n%s", diff)
	}
}

// TestDocumentedExample keeps docs/components.md true.
func TestDocumentedExample(t *testing.T) {
	page, err := os.ReadFile("../docs/components.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```json\n")
	example, _, _ := strings.Cut(rest, "```")
	d, err := commands.ParseDescriptor([]byte(example))
	if err != nil {
		t.Fatal(err, fault.Of(err).Pointer)
	}
	if d.Verification == nil || d.Verification.HTTP == nil || len(d.Hosts) != 1 {
		t.Errorf("the example has lost its probe: %+v", d)
	}
	for _, e := range []*fault.Error{
		commands.ErrDescriptorInvalid, commands.ErrDescriptorTooLarge, commands.ErrSecretInDescriptor,
		commands.ErrKeysFieldMissing, commands.ErrKeysFieldUnknown,
	} {
		if !strings.Contains(string(page), "`"+e.Code+"`") {
			t.Errorf("the page does not name %s", e.Code)
		}
	}
}

func TestDescriptorsAccepted(t *testing.T) {
	cases := map[string]struct {
		raw   []byte
		hosts string // comma separated
	}{
		"no credentials":           {[]byte(`{"title": "T"}`), ""},
		"unknown members":          {[]byte(`{"title": "T", "x": {"$ref": "https://example.com/schema"}, "credentials": {"y": 1}}`), ""},
		"hosts default":            {get("https://API.example.com/me", ""), "api.example.com"},
		"http and a port":          {get("http://127.0.0.1:8099/me", ""), "127.0.0.1"},
		"whole host":               {get("https://{{host}}/me", `, "hosts": ["{{host}}"]`), "{{host}}"},
		"part of a label":          {get("https://{{domain}}-eu.example.com", `, "hosts": ["{{domain}}-eu.example.com"]`), "{{domain}}-eu.example.com"},
		"base URL":                 {get("{{host}}/me?a=b", `, "hosts": ["{{host}}"]`), "{{host}}"},
		"base URL alone":           {get("{{host|trim}}", `, "hosts": ["{{host|trim}}"]`), "{{host|trim}}"},
		"part of a password":       {get(`https://{{apiKey|after("-")}}.api.example.com/`, `, "hosts": ["{{apiKey|after(\"-\")}}.API.example.com"]`), `{{apiKey|after("-")}}.api.example.com`},
		"what follows":             {get(`https://{{apiKey|after("-","us[0-9]+")}}.api.example.com/`, `, "hosts": ["{{apiKey|after(\"-\",\"us[0-9]+\")}}.api.example.com"]`), `{{apiKey|after("-","us[0-9]+")}}.api.example.com`},
		"files for TLS":            {probe(`"tls": {"ca": "{{domain|trim}}", "certificate": "{{host}}", "key": "{{apiKey}}"}`), "api.example.com"},
		"files for the tls probe":  {with(`"verification": {"tls": {"address": "db.example.com:5432", "ca": "{{domain}}"}}`), "db.example.com"},
		"smtp":                     {with(`"verification": {"smtp": {"address": "{{host}}:{{port}}", "default_port": 587, "username": "{{domain}}", "password": "{{apiKey}}"}}, "hosts": ["{{host}}"]`), "{{host}}"},
		"postgres":                 {with(`"verification": {"postgres": {"address": "{{host}}:{{port}}", "default_port": 5432, "database": "{{domain}}", "username": "u", "password": "{{apiKey}}", "ca": "{{domain}}"}}, "hosts": ["{{host}}"]`), "{{host}}"},
		"mysql":                    {with(`"verification": {"mysql": {"address": "db.example.com:3306", "username": "u", "password": "{{apiKey}}"}}`), "db.example.com"},
		"imap":                     {with(`"verification": {"imap": {"address": "mail.example.com:993", "security": "tls", "username": "u", "password": "{{apiKey}}"}}`), "mail.example.com"},
		"ldap":                     {with(`"verification": {"ldap": {"address": "ldap.example.com:389", "username": "cn={{domain}},dc=example", "password": "{{apiKey}}"}}`), "ldap.example.com"},
		"ssh":                      {with(`"verification": {"ssh": {"address": "{{host}}:22", "username": "u", "private_key": "{{apiKey}}"}}, "hosts": ["{{host}}"]`), "{{host}}"},
		"sftp":                     {with(`"verification": {"sftp": {"address": "{{host}}:22", "username": "u", "password": "{{apiKey}}", "private_key": "{{domain}}"}}, "hosts": ["{{host}}"]`), "{{host}}"},
		"functions":                {probe(`"headers": {"x": "{{apiKey|trim|lower|base64}}"}`), "api.example.com"},
		"tcp":                      {with(`"verification": {"tcp": {"address": "{{host}}:{{port}}", "default_port": 22}}, "hosts": ["{{host}}"]`), "{{host}}"},
		"tls":                      {with(`"verification": {"tls": {"address": "db.example.com:5432"}}`), "db.example.com"},
		"basic":                    {probe(`"basic": {"username": "key", "password": "{{apiKey}}"}`), "api.example.com"},
		"form":                     {probe(`"method": "POST", "form": {"key": "{{apiKey}}"}`), "api.example.com"},
		"json":                     {probe(`"method": "POST", "json": {"a": {"b": ["{{apiKey}}", 1, null]}}`), "api.example.com"},
		"authorization by a field": {probe(`"headers": {"Authorization": "Bearer {{apiKey}}"}`), "api.example.com"},
		"oauth templates":          {with(`"oauth2": {"client_secret": "{{OAUTH_CLIENT_SECRET}}", "client_id": "plain"}`), ""},
		"oauth nothing":            {with(`"oauth2": {"client_secret": ""}`), ""},
		"prototype names":          {[]byte(`{"title": "T", "credentials": {"fields": {"__proto__": {}, "constructor": {}, "Constructor": {}}}}`), ""},
		"model is a function":      {[]byte(`{"title": "T", "credentials": {"fields": {"a": {"viewClass": "SelectView", "model": "getAll"}}}}`), ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			d, err := commands.ParseDescriptor(c.raw)
			if err != nil {
				t.Fatal(err, "at", fault.Of(err).Pointer)
			}
			if got := strings.Join(d.Hosts, ","); got != c.hosts {
				t.Errorf("hosts %q, want %q", got, c.hosts)
			}
		})
	}
}

func TestDescriptorsRefused(t *testing.T) {
	invalid, secret := commands.ErrDescriptorInvalid, commands.ErrSecretInDescriptor
	fields := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"f%d": {}`, i)
		}
		return b.String()[1:]
	}
	hosts := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"h%d.example.com"`, i)
		}
		return b.String()[1:]
	}
	field := func(name, members string) []byte {
		return fmt.Appendf(nil, `{"title": "T", "credentials": {"fields": {%q: {%s}}}}`, name, members)
	}
	const http = "/verification/http"
	cases := map[string]struct {
		raw  []byte
		want *fault.Error
		at   string
	}{
		// base URLs, functions and files for TLS
		"base URL not in hosts":         {get("{{host}}/me", ""), invalid, http + "/url"},
		"another base URL in hosts":     {get("{{host}}/me", `, "hosts": ["{{host|trim}}"]`), invalid, http + "/url"},
		"base URL and more host":        {get("{{host}}.example.com/me", `, "hosts": ["{{host}}"]`), invalid, http + "/url"},
		"base URL and a user":           {get("{{host}}@example.com/me", `, "hosts": ["{{host}}"]`), invalid, http + "/url"},
		"base URL and a port":           {get("{{host}}:443/me", `, "hosts": ["{{host}}"]`), invalid, http + "/url"},
		"base URL and a fragment":       {get("{{host}}/#me", `, "hosts": ["{{host}}"]`), invalid, http + "/url"},
		"base URL and dots":             {get("{{host}}/../me", `, "hosts": ["{{host}}"]`), invalid, http + "/url"},
		"base URL is a password":        {get("{{apiKey}}/me", `, "hosts": ["{{apiKey}}"]`), invalid, "/hosts/0"},
		"a password's part alone":       {get("https://example.com/me", `, "hosts": ["{{apiKey|after(\"-\")}}"]`), invalid, "/hosts/0"},
		"a password's part as domain":   {get("https://example.com/me", `, "hosts": ["a.{{apiKey|after(\"-\")}}"]`), invalid, "/hosts/0"},
		"a password's part in a suffix": {get("https://example.com/me", `, "hosts": ["{{apiKey|after(\"-\")}}.co.uk"]`), invalid, "/hosts/0"},
		"a password, trimmed":           {get("https://example.com/me", `, "hosts": ["{{apiKey|trim}}.example.com"]`), invalid, "/hosts/0"},
		"http for a fixed URL":          {probe(`"allow_http": true`), invalid, http + "/allow_http"},
		"unknown function":              {probe(`"headers": {"x": "{{apiKey|upper}}"}`), invalid, http + "/headers/x"},
		"function without argument":     {probe(`"headers": {"x": "{{apiKey|after}}"}`), invalid, http + "/headers/x"},
		"argument that hides a key":     {probe(`"headers": {"x": "{{apiKey|after(\"sk_live_canary\")}}"}`), invalid, http + "/headers/x"},
		"pattern that is none":          {probe(`"headers": {"x": "{{apiKey|after(\"-\",\"[a\")}}"}`), invalid, http + "/headers/x"},
		"pattern that cuts the URL":     {probe(`"headers": {"x": "{{apiKey|after(\"-\",\"a?\")}}"}`), invalid, http + "/headers/x"},
		"argument that cuts the URL":    {probe(`"headers": {"x": "{{apiKey|after(\"?\")}}"}`), invalid, http + "/headers/x"},
		"too many functions":            {probe(`"headers": {"x": "{{apiKey|trim|trim|trim|trim|trim}}"}`), invalid, http + "/headers/x"},
		"a literal CA":                  {probe(`"tls": {"ca": "-----BEGIN CERTIFICATE-----"}`), invalid, http + "/tls/ca"},
		"a key without certificate":     {probe(`"tls": {"key": "{{apiKey}}"}`), invalid, http + "/tls"},
		"a CA of no field":              {probe(`"tls": {"ca": "{{nothing}}"}`), invalid, http + "/tls/ca"},

		"smtp, a literal password": {with(`"verification": {"smtp": {"address": "mail.example.com:465", "username": "a", "password": "swordfish"}}`), secret, "/verification/smtp/password"},
		"smtp, no hosts":           {with(`"verification": {"smtp": {"address": "{{host}}:465", "username": "a", "password": "{{apiKey}}"}}`), invalid, "/verification/smtp/address"},
		"smtp, without TLS":        {with(`"verification": {"smtp": {"address": "mail.example.com:465", "security": "none", "username": "a", "password": "{{apiKey}}"}}`), invalid, "/verification/smtp/security"},

		"ssh, a literal key":       {with(`"verification": {"ssh": {"address": "a.example.com:22", "username": "u", "private_key": "swordfish"}}`), invalid, "/verification/ssh/private_key"},
		"ssh, nothing to sign in":  {with(`"verification": {"ssh": {"address": "a.example.com:22", "username": "u"}}`), invalid, "/verification/ssh"},
		"ssh, literal password":    {with(`"verification": {"sftp": {"address": "a.example.com:22", "username": "u", "password": "swordfish"}}`), secret, "/verification/sftp/password"},
		"ssh has no CA":            {with(`"verification": {"ssh": {"address": "a.example.com:22", "username": "u", "password": "{{apiKey}}", "ca": "{{domain}}"}}`), invalid, "/verification/ssh"},
		"postgres, no STARTTLS":    {with(`"verification": {"postgres": {"address": "a.example.com:5432", "security": "tls", "username": "u", "password": "{{apiKey}}"}}`), invalid, "/verification/postgres"},
		"mysql, database of none":  {with(`"verification": {"mysql": {"address": "a.example.com:3306", "database": "{{none}}", "username": "u", "password": "{{apiKey}}"}}`), invalid, "/verification/mysql/database"},
		"ldap, a literal password": {with(`"verification": {"ldap": {"address": "a.example.com:389", "username": "u", "password": "swordfish"}}`), secret, "/verification/ldap/password"},
		"two probes":               {with(`"verification": {"ssh": {"address": "a.example.com:22", "username": "u", "password": "{{apiKey}}"}, "tcp": {"address": "a.example.com:22"}}`), invalid, "/verification"},

		// the file
		"too large":          {[]byte(`{"title": "` + strings.Repeat("x", commands.MaxDescriptor) + `"}`), commands.ErrDescriptorTooLarge, ""},
		"nothing":            {nil, invalid, ""},
		"white space":        {[]byte(" \n"), invalid, ""},
		"byte order mark":    {[]byte("\xef\xbb\xbf{\"title\": \"T\"}"), invalid, ""},
		"comment":            {[]byte(`{"title": "T" /* x */}`), invalid, ""},
		"trailing comma":     {[]byte(`{"title": "T",}`), invalid, ""},
		"two documents":      {[]byte(`{"title": "T"} {}`), invalid, ""},
		"half a document":    {[]byte(`{"title": "T"`), invalid, ""},
		"duplicate name":     {[]byte(`{"title": "T", "credentials": {}, "credentials": {}}`), invalid, "/credentials"},
		"duplicate escaped":  {[]byte(`{"title": "T", "titl\u0065": "U"}`), invalid, "/title"},
		"not UTF-8":          {[]byte("{\"title\": \"\xff\"}"), invalid, "/title"},
		"lone surrogate":     {[]byte(`{"title": "\ud800"}`), invalid, "/title"},
		"UTF-16":             {[]byte("\xff\xfe{\x00}\x00"), invalid, ""},
		"deep":               {[]byte(`{"title": "T", "x": ` + strings.Repeat("[", 32) + strings.Repeat("]", 32) + `}`), invalid, "/x" + strings.Repeat("/0", 31)},
		"very deep":          {[]byte(`{"title": "T", "x": ` + strings.Repeat(`{"":`, 20000)), invalid, "/x" + strings.Repeat("/", 31)},
		"huge number":        {[]byte(`{"title": "T", "x": 1e999999999}`), invalid, "/x"},
		"tiny number":        {[]byte(`{"title": "T", "x": 1e-999999999}`), invalid, "/x"},
		"array":              {[]byte(`[]`), invalid, ""},
		"null":               {[]byte(`null`), invalid, ""},
		"no title":           {[]byte(`{}`), invalid, ""},
		"title of spaces":    {[]byte(`{"title": "  "}`), invalid, "/title"},
		"title with control": {[]byte(`{"title": "a\nb"}`), invalid, "/title"},
		"title a number":     {[]byte(`{"title": 1}`), invalid, "/title"},
		// fields
		"fields a list":        {[]byte(`{"title": "T", "credentials": {"fields": []}}`), invalid, "/credentials/fields"},
		"201 fields":           {[]byte(`{"title": "T", "credentials": {"fields": {` + fields(201) + `}}}`), invalid, "/credentials/fields"},
		"name with a space":    {field("a b", ""), invalid, "/credentials/fields"},
		"name with braces":     {field("{{a}}", ""), invalid, "/credentials/fields"},
		"name empty":           {field("", ""), invalid, "/credentials/fields"},
		"required a word":      {field("a", `"required": "yes"`), invalid, "/credentials/fields/a/required"},
		"label null":           {field("a", `"label": null`), invalid, "/credentials/fields/a/label"},
		"password not secret":  {field("a", `"viewClass": "PasswordFieldView", "secret": false`), invalid, "/credentials/fields/a/secret"},
		"oauth not secret":     {field("a", `"viewClass": "OAuthFieldView", "secret": false`), invalid, "/credentials/fields/a/secret"},
		"http auth not secret": {field("a", `"viewClass": "HTTPAuthView", "secret": false`), invalid, "/credentials/fields/a/secret"},
		// hosts
		"hosts a word":          {with(`"hosts": "example.com"`), invalid, "/hosts"},
		"33 hosts":              {with(`"hosts": [` + hosts(33) + `]`), invalid, "/hosts"},
		"host with port":        {with(`"hosts": ["example.com:443"]`), invalid, "/hosts/0"},
		"host with scheme":      {with(`"hosts": ["a.example.com", "https://example.com"]`), invalid, "/hosts/1"},
		"host with wildcard":    {with(`"hosts": ["*.example.com"]`), invalid, "/hosts/0"},
		"host with final dot":   {with(`"hosts": ["example.com."]`), invalid, "/hosts/0"},
		"host beyond ASCII":     {with(`"hosts": ["exämple.com"]`), invalid, "/hosts/0"},
		"host full-width digit": {with(`"hosts": ["１２７.0.0.1"]`), invalid, "/hosts/0"},
		"host with underscore":  {with(`"hosts": ["a_b.example.com"]`), invalid, "/hosts/0"},
		"host unknown field":    {with(`"hosts": ["{{nope}}.example.com"]`), invalid, "/hosts/0"},
		"host of a password":    {with(`"hosts": ["{{apiKey}}.example.com"]`), invalid, "/hosts/0"},
		"host that could grow":  {with(`"hosts": ["example.com{{domain}}"]`), invalid, "/hosts/0"},
		"host of two fields":    {with(`"hosts": ["{{host}}{{domain}}"]`), invalid, "/hosts/0"},
		// the probe
		"verification empty":   {with(`"verification": {}`), invalid, "/verification"},
		"two logins":           {with(`"verification": {"tcp": {"address": "a:1"}, "tls": {"address": "a:1"}}`), invalid, "/verification"},
		"unknown probe":        {with(`"verification": {"udp": {}}`), invalid, "/verification"},
		"probe null":           {with(`"verification": {"http": null}`), invalid, http},
		"unknown member":       {probe(`"follow": true`), invalid, http},
		"no url":               {with(`"verification": {"http": {}}`), invalid, http},
		"method CONNECT":       {probe(`"method": "CONNECT"`), invalid, http + "/method"},
		"method TRACE":         {probe(`"method": "TRACE"`), invalid, http + "/method"},
		"method of our own":    {probe(`"method": "get"`), invalid, http + "/method"},
		"body on GET":          {probe(`"form": {"a": "b"}`), invalid, http},
		"two bodies":           {probe(`"method": "POST", "form": {"a": "b"}, "json": {}`), invalid, http},
		"body name a template": {probe(`"method": "POST", "json": {"{{apiKey}}": 1}`), invalid, http + "/json/{{apiKey}}"},
		"body unknown field":   {probe(`"method": "POST", "json": {"a": ["{{nope}}"]}`), invalid, http + "/json/a/0"},
		"body a list":          {probe(`"method": "POST", "json": ["{{apiKey}}"]`), invalid, http + "/json"},
		"no field used":        {with(`"verification": {"http": {"url": "https://api.example.com/me"}}`), invalid, http},
		"status a word":        {probe(`"expect": {"status": ["200"]}`), invalid, http + "/expect/status/0"},
		"status 0":             {probe(`"expect": {"status": [0]}`), invalid, http + "/expect/status/0"},
		"status 99999":         {probe(`"expect": {"status": [99999]}`), invalid, http + "/expect/status/0"},
		"status 401":           {probe(`"expect": {"status": [200, 401]}`), invalid, http + "/expect/status/1"},
		"status half":          {probe(`"expect": {"status": [200.5]}`), invalid, http + "/expect/status/0"},
		"no status":            {probe(`"expect": {"status": []}`), invalid, http + "/expect/status"},
		"says for a word":      {probe(`"says": {"all": "x"}`), invalid, http + "/says"},
		"says with a break":    {probe(`"says": {"401": "a\nb"}`), invalid, http + "/says/401"},
		"says a secret":        {probe(`"says": {"401": "{{apiKey}}"}`), invalid, http + "/says/401"},
		"says too much":        {probe(`"says": {"401": "` + strings.Repeat("x", 301) + `"}`), invalid, http + "/says/401"},
		"basic without field":  {probe(`"basic": {"username": "me", "password": "swordfish"}`), secret, http + "/basic"},
		"basic with a colon":   {probe(`"basic": {"username": "a:b", "password": "{{apiKey}}"}`), invalid, http + "/basic/username"},
		// its URL
		"url relative":               {get("/me", ""), invalid, http + "/url"},
		"url without scheme":         {get("//api.example.com/me", ""), invalid, http + "/url"},
		"url file":                   {get("file:///etc/passwd", ""), invalid, http + "/url"},
		"url gopher":                 {get("gopher://api.example.com/", ""), invalid, http + "/url"},
		"url unix":                   {get("unix:///run/docker.sock", ""), invalid, http + "/url"},
		"url upper scheme":           {get("HTTPS://api.example.com/", ""), invalid, http + "/url"},
		"url with user":              {get("https://user:pass@api.example.com/", ""), invalid, http + "/url"},
		"url with user and decoy":    {get("https://api.example.com@127.0.0.1/", `, "hosts": ["api.example.com"]`), invalid, http + "/url"},
		"url with fragment":          {get("https://api.example.com/#a", ""), invalid, http + "/url"},
		"url with fragment decoy":    {get("https://127.0.0.1#@api.example.com/", `, "hosts": ["api.example.com"]`), invalid, http + "/url"},
		"url with backslash":         {get(`https://api.example.com\@127.0.0.1/`, `, "hosts": ["api.example.com"]`), invalid, http + "/url"},
		"url with tab":               {get("https://api.example\t.com/", ""), invalid, http + "/url"},
		"url with newline":           {get("https://api.example.com/\nHost: x", ""), invalid, http + "/url"},
		"url with space":             {get("https://api.example.com/a b", ""), invalid, http + "/url"},
		"url beyond ASCII":           {get("https://api.example.com/ä", ""), invalid, http + "/url"},
		"url with one brace":         {get("https://api.example.com/{apiKey}", ""), invalid, http + "/url"},
		"url bad escape":             {get("https://api.example.com/%zz", ""), invalid, http + "/url"},
		"url dot segments":           {get("https://api.example.com/a/../b", ""), invalid, http + "/url"},
		"url no host":                {get("https:///me", ""), invalid, http + "/url"},
		"url IPv6":                   {get("https://[::1]/", ""), invalid, http + "/url"},
		"url port 0":                 {get("https://api.example.com:0/", ""), invalid, http + "/url"},
		"url port 65536":             {get("https://api.example.com:65536/", ""), invalid, http + "/url"},
		"url port empty":             {get("https://api.example.com:/", ""), invalid, http + "/url"},
		"url too long":               {get("https://api.example.com/"+strings.Repeat("a", 2048), ""), invalid, http + "/url"},
		"template in scheme":         {get("{{host}}://api.example.com/", `, "hosts": ["api.example.com"]`), invalid, http + "/url"},
		"template in port":           {get("https://api.example.com:{{port}}/", ""), invalid, http + "/url"},
		"template in port part":      {get("https://api.example.com:80{{port}}/", ""), invalid, http + "/url"},
		"template in host, no hosts": {get("https://{{host}}/", ""), invalid, http + "/url"},
		"template in host, other":    {get("https://{{host}}/", `, "hosts": ["{{domain}}"]`), invalid, http + "/url"},
		"template in host, literal":  {get("https://{{host}}/", `, "hosts": ["api.example.com"]`), invalid, http + "/url"},
		"template in host, wider":    {get("https://{{domain}}.example.com/", `, "hosts": ["{{domain}}"]`), invalid, http + "/url"},
		"host not declared":          {get("https://evil.example.net/", `, "hosts": ["api.example.com"]`), invalid, http + "/url"},
		"unknown field":              {get("https://api.example.com/{{nope}}", ""), invalid, http + "/url"},
		"nested braces":              {get("https://api.example.com/{{{{apiKey}}}}", ""), invalid, http + "/url"},
		"braces in a name":           {get("https://api.example.com/{{{apiKey}}}", ""), invalid, http + "/url"},
		"open braces":                {get("https://api.example.com/{{apiKey", ""), invalid, http + "/url"},
		"closing braces":             {get("https://api.example.com/apiKey}}", ""), invalid, http + "/url"},
		"empty braces":               {get("https://api.example.com/{{}}", ""), invalid, http + "/url"},
		"spaced braces":              {get("https://api.example.com/{{ apiKey }}", ""), invalid, http + "/url"},
		"33 fields":                  {get("https://api.example.com/"+strings.Repeat("{{domain}}", 33), ""), invalid, http + "/url"},
		// its header
		"header with space":      {probe(`"headers": {"X Key": "a"}`), invalid, http + "/headers/X Key"},
		"header with colon":      {probe(`"headers": {"X-Key:": "a"}`), invalid, http + "/headers/X-Key:"},
		"header with break":      {probe(`"headers": {"X\r\nY": "a"}`), invalid, http + "/headers/X\r\nY"},
		"header value breaks":    {probe(`"headers": {"X": "a\r\nY: b"}`), invalid, http + "/headers/X"},
		"header Host":            {probe(`"headers": {"Host": "a"}`), invalid, http + "/headers/Host"},
		"header content-length":  {probe(`"headers": {"content-length": "1"}`), invalid, http + "/headers/content-length"},
		"header T-E":             {probe(`"headers": {"Transfer-Encoding": "chunked"}`), invalid, http + "/headers/Transfer-Encoding"},
		"header Proxy-":          {probe(`"headers": {"Proxy-Authorization": "a"}`), invalid, http + "/headers/Proxy-Authorization"},
		"header Connection":      {probe(`"headers": {"Connection": "X-Key"}`), invalid, http + "/headers/Connection"},
		"header Referer":         {probe(`"headers": {"Referer": "a"}`), invalid, http + "/headers/Referer"},
		"header Accept-Encoding": {probe(`"headers": {"Accept-Encoding": "gzip"}`), invalid, http + "/headers/Accept-Encoding"},
		"header twice":           {probe(`"headers": {"X-A": "a", "x-a": "b"}`), invalid, http + "/headers/x-a"},
		"header unknown field":   {probe(`"headers": {"X-A": "{{nope}}"}`), invalid, http + "/headers/X-A"},
		"header authorization":   {probe(`"headers": {"authorization": "Bearer swordfish"}`), secret, http + "/headers/authorization"},
		"two authorizations":     {probe(`"headers": {"Authorization": "{{apiKey}}"}, "basic": {"username": "a", "password": "{{apiKey}}"}`), invalid, http + "/headers/Authorization"},
		// tcp and tls
		"address without port": {with(`"verification": {"tcp": {"address": "db.example.com"}}`), invalid, "/verification/tcp/address"},
		"address port 0":       {with(`"verification": {"tcp": {"address": "db.example.com:0"}}`), invalid, "/verification/tcp/address"},
		"address port mixed":   {with(`"verification": {"tcp": {"address": "db.example.com:5{{port}}"}}`), invalid, "/verification/tcp/address"},
		"address no hosts":     {with(`"verification": {"tls": {"address": "{{host}}:443"}}`), invalid, "/verification/tls/address"},
		"address a URL":        {with(`"verification": {"tls": {"address": "tls://db.example.com:443"}}`), invalid, "/verification/tls/address"},
		"useless default port": {with(`"verification": {"tcp": {"address": "db.example.com:1", "default_port": 2}}`), invalid, "/verification/tcp/address"},
		// secrets in clear
		"client secret":        {with(`"oauth2": {"client_secret": "swordfish"}`), secret, "/oauth2/client_secret"},
		"client secret mixed":  {with(`"oauth2": {"client_secret": "swordfish{{X}}"}`), secret, "/oauth2/client_secret"},
		"client secret camel":  {with(`"oauth2": {"clientSecret": "swordfish"}`), secret, "/oauth2/clientSecret"},
		"client secret within": {[]byte(`{"title": "T", "credentials": {"oauth2": {"a": [{"client_secret": "swordfish"}]}}}`), secret, "/credentials/oauth2/a/0/client_secret"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := commands.ParseDescriptor(c.raw)
			got := fault.Of(err)
			if !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %s", err, c.want.Code)
			}
			if got.Pointer != c.at {
				t.Errorf("points at %q, want %q: %s", got.Pointer, c.at, got.Msg)
			}
			if strings.Contains(got.Msg, "swordfish") || len(got.Msg) > 300 || len(got.Pointer) > 300 {
				t.Errorf("repeats the input: %s", got.Msg)
			}
			if got.Msg == "" || !strings.HasSuffix(got.Msg, ".") {
				t.Errorf("not a sentence: %q", got.Msg)
			}
		})
	}
}

func TestErrorsAreTheSameEachTime(t *testing.T) {
	raw := with(`"hosts": 1, "verification": {"http": {"headers": {"Host": 2, "Te": 3, "A": 4}, "x": 5}}`)
	_, want := commands.ParseDescriptor(raw)
	for range 50 {
		if _, err := commands.ParseDescriptor(raw); !cmp.Equal(fault.Of(err), fault.Of(want)) {
			t.Fatalf("%v, then %v", fault.Of(want), fault.Of(err))
		}
	}
}

func TestCheckKeys(t *testing.T) {
	plain, err := commands.ParseDescriptor(with(""))
	if err != nil {
		t.Fatal(err)
	}
	const field = `{"title": "T", "credentials": {"fields": {"oauth": {"viewClass": "OAuthFieldView", "required": true}}}`
	oauth, err := commands.ParseDescriptor([]byte(field + `}`))
	if err != nil {
		t.Fatal(err)
	}
	asked, err := commands.ParseDescriptor([]byte(field + `, "oauth2": {"token_uri": "https://as.example.com/token", "grant_type": "client_credentials"}}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		d     commands.Descriptor
		names []string
		want  *fault.Error
		at    string
	}{
		{plain, []string{"apiKey"}, nil, ""},
		{plain, []string{"port", "apiKey", "host"}, nil, ""},
		{plain, nil, commands.ErrKeysFieldMissing, "/keys/apiKey"},
		{plain, []string{"host"}, commands.ErrKeysFieldMissing, "/keys/apiKey"},
		{plain, []string{"apiKey", "a/b~c"}, commands.ErrKeysFieldUnknown, "/keys/a~1b~0c"},
		{plain, []string{"apikey"}, commands.ErrKeysFieldUnknown, "/keys/apikey"},
		{oauth, []string{"oauth"}, nil, ""},
		{oauth, nil, commands.ErrKeysFieldMissing, "/keys/oauth"},
		{asked, nil, nil, ""},
		{commands.Descriptor{}, nil, nil, ""},
	} {
		err := c.d.CheckKeys(c.names)
		if c.want == nil {
			if err != nil {
				t.Errorf("%v: %v", c.names, err)
			}
			continue
		}
		if !errors.Is(err, c.want) || fault.Of(err).Pointer != c.at {
			t.Errorf("%v: %v at %q, want %s at %q", c.names, err, fault.Of(err).Pointer, c.want.Code, c.at)
		}
	}
}

// FuzzDescriptor: nothing panics, a refusal is a fault, and what is accepted is
// accepted again, with the same reading.
func FuzzDescriptor(f *testing.F) {
	files, err := filepath.Glob("testdata/components/*.json")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		if len(raw) < 4<<10 { // the fuzzer takes minutes to minimise larger ones
			f.Add(raw)
		}
	}
	f.Add(get("https://{{domain}}.example.com/{{host}}?k={{apiKey}}", `, "hosts": ["{{domain}}.example.com"]`))
	f.Add(with(`"verification": {"tcp": {"address": "{{host}}:{{port}}", "default_port": 22}}, "hosts": ["{{host}}"]`))
	f.Add(block(`"scopes": "a b", "prompt": "consent", "token_params": {"resource": "x"}, "pkce": false`))
	f.Add(probe(`"method": "POST", "json": {"a": {"b": ["{{apiKey}}", 1, null]}}, "says": {"4xx": "No."}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := commands.ParseDescriptor(bytes.Clone(raw))
		if err != nil {
			if fault.Of(err).Kind != fault.Invalid {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if !bytes.Equal(d.Raw, raw) {
			t.Fatal("not kept to the byte")
		}
		again, err := commands.ParseDescriptor(d.Raw)
		if err != nil {
			t.Fatalf("refused the second time: %v", err)
		}
		if diff := cmp.Diff(d, again); diff != "" {
			t.Fatalf("read otherwise the second time:\n%s", diff)
		}
		for _, name := range d.HostFields() {
			if _, ok := d.Field(name); !ok {
				t.Fatalf("host field %q is not declared", name)
			}
		}
	})
}

func BenchmarkParseDescriptor(b *testing.B) {
	raw, err := os.ReadFile("testdata/components/api-key.json")
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, err := commands.ParseDescriptor(raw); err != nil {
			b.Fatal(err)
		}
	}
}

// A long name around many texts cost a minute and more, since the name was spelled for each.
func TestBodiesAreCheckedInOnePass(t *testing.T) {
	raw := with(`"verification": {"http": {"url": "https://api.example.com/", "headers": {"x": "{{apiKey}}"}, "method": "POST", "json": {"` +
		strings.Repeat("a", 100<<10) + `": [` + strings.Repeat(`"",`, 30_000) + `""]}}}`)
	begin := time.Now()
	_, err := commands.ParseDescriptor(raw)
	if took := time.Since(begin); err != nil || took > 5*time.Second {
		t.Errorf("%v after %v", err, took)
	}
}

// A reconnect keeps values only if the new file sends them as the old one did.
func TestKeepsRulesOfBaseURLs(t *testing.T) {
	parse := func(members string) commands.Descriptor {
		d, err := commands.ParseDescriptor(with(`"hosts": ["{{host}}"], "verification": {"http": {"url": "{{host}}/me", "headers": {"x": "{{apiKey}}"}` + members + `}}`))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	was := parse("")
	for members, keeps := range map[string]bool{
		``: true, `, "says": {"401": "No."}`: true,
		`, "allow_http": true`: false, `, "tls": {"ca": "{{domain}}"}`: false, `, "tls": {"certificate": "{{host}}", "key": "{{apiKey}}"}`: false,
	} {
		if got := parse(members).KeepsRules(was, []string{"apiKey", "host"}); got != keeps {
			t.Errorf("%q keeps the rules: %v", members, got)
		}
	}
	trimmed, err := commands.ParseDescriptor(with(`"hosts": ["{{host|trim}}"], "verification": {"http": {"url": "{{host|trim}}/me", "headers": {"x": "{{apiKey}}"}}}`))
	if err != nil || trimmed.KeepsRules(was, []string{"apiKey", "host"}) {
		t.Errorf("another host keeps the rules, %v", err)
	}
	if got := trimmed.AddressFields(); len(got) != 1 || got[0] != "host" {
		t.Errorf("the values go where %v say", got)
	}
}

// A captured value must not lead the kept values to another server: neither by the port, nor by the
// CA that its certificate is checked with.
func TestAddressFieldsOfProbes(t *testing.T) {
	for verification, want := range map[string][]string{
		`"http": {"url": "https://{{host}}/me", "headers": {"x": "{{apiKey}}"}, "tls": {"ca": "{{domain}}"}}`:         {"domain", "host"},
		`"tcp": {"address": "{{host}}:{{port}}"}`:                                                                     {"host", "port"},
		`"tls": {"address": "{{host}}:{{port}}", "ca": "{{domain}}"}`:                                                 {"domain", "host", "port"},
		`"postgres": {"address": "{{host}}:{{port}}", "ca": "{{domain}}", "username": "u", "password": "{{apiKey}}"}`: {"domain", "host", "port"},
		`"ssh": {"address": "{{host}}:22", "username": "{{domain}}", "password": "{{apiKey}}"}`:                       {"host"},
		`"http": {"url": "https://{{host}}/{{domain}}", "headers": {"x": "{{apiKey}}"}}`:                              {"host"},
	} {
		d, err := commands.ParseDescriptor(with(`"hosts": ["{{host}}"], "verification": {` + verification + `}`))
		if err != nil {
			t.Fatal(err)
		}
		got := d.AddressFields()
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", verification, got, want)
		}
	}
}
