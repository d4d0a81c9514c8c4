package importer

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/transfer"
)

// The kinds of other systems.
const (
	FromAspire    = "aspire"    // an export of Aspire's credentials API
	FromElasticIO = "elasticio" // answers of elastic.io's /v2/credentials
	FromN8N       = "n8n"       // n8n export:credentials --decrypted
	FromEnv       = "env"       // an environment file
	FromVault     = "vault"     // a tree of a KV engine, version 2, of Vault or OpenBao
)

// Errors of other systems' files. They quote nothing of them.
var (
	ErrFrom      = fault.New(fault.Invalid, "import_from_invalid", "--from takes aspire, elasticio, n8n, vault or env.")
	ErrForeign   = fault.New(fault.Unprocessable, "import_source_invalid", "The file does not have the form of this system.")
	ErrForeignID = fault.New(fault.Unprocessable, "import_source_id_invalid", "The id is not one that a credential can have, or two credentials of the source have it.")
	ErrEncrypted = fault.New(fault.Unprocessable, "import_source_encrypted", "Its data is encrypted. Export with --decrypted.")
	ErrMasked    = fault.New(fault.Unprocessable, "import_source_masked", "The source does not hold its secrets: they are masked or left out.")
	ErrMapping   = fault.New(fault.Invalid, "import_mapping_invalid",
		`The mapping file must be a JSON object with the members "credentials" and "types": by id or type {"component", "type", "name", "fields"}.`)
)

// mask is what systems show in place of a secret.
const mask = "********"

// MaxForeign is the largest file of another system, in bytes.
const MaxForeign = 64 << 20

// Items are the items of another system.
type Items []Item

// Total implements Source.
func (l Items) Total() int { return len(l) }

// Items implements Source.
func (l Items) Items(ctx context.Context) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		for _, item := range l {
			if err := ctx.Err(); err != nil {
				yield(Item{}, err)
				return
			}
			if !yield(item, nil) {
				return
			}
		}
	}
}

// Rule says what becomes of a credential of another system. Empty members change nothing.
type Rule struct {
	Component string            `json:"component,omitzero"`
	Type      string            `json:"type,omitzero"` // free, in place of component
	Name      string            `json:"name,omitzero"`
	Fields    map[string]string `json:"fields,omitzero"` // new names of keys by their old ones; "" leaves the key out
}

// Mapping has the rules: of a credential, of all of a type, and of all others.
type Mapping struct {
	Credentials map[string]Rule `json:"credentials,omitzero"`
	Types       map[string]Rule `json:"types,omitzero"`
	Component   string          `json:"-"` // of what no rule gives another one
	// Fields are the names of a component's fields; with it, names of environment variables
	// become those fields that differ in case and '_' alone.
	Fields func(component string) ([]string, error) `json:"-"`
}

// ParseMapping reads a mapping file. It returns ErrMapping.
func ParseMapping(b []byte) (m Mapping, err error) {
	if json.Unmarshal(b, &m, json.RejectUnknownMembers(true)) != nil {
		return m, ErrMapping
	}
	return m, nil
}

// foreign is a credential of another system.
type foreign struct {
	id, typ, name, description, workspace, agent, policy string
	keys                                                 map[string]jsontext.Value
	err                                                  error
}

// item makes it an item.
func (m Mapping) item(f foreign, env bool) (Item, error) {
	rule := Rule{Component: m.Component}
	for _, r := range []Rule{m.Types[f.typ], m.Credentials[f.id]} {
		if r.Component != "" || r.Type != "" {
			rule.Component, rule.Type = r.Component, r.Type
		}
		if r.Name != "" {
			rule.Name = r.Name
		}
		if r.Fields != nil {
			rule.Fields = r.Fields
		}
	}
	facts := transfer.Credential{
		Component: rule.Component, Name: f.name, Description: f.description, Workspace: f.workspace, VPNAgent: f.agent, ThrottlePolicy: f.policy,
	}
	if facts.Component == "" {
		if facts.Type = rule.Type; facts.Type == "" {
			facts.Type = f.typ
		}
	}
	if rule.Name != "" {
		facts.Name = rule.Name
	}
	item := Item{Kind: transfer.KindCredential, ID: f.id, Err: f.err}
	var fields []string
	if env && facts.Component != "" && m.Fields != nil {
		var err error
		if fields, err = m.Fields(facts.Component); err != nil {
			return item, err
		}
	}
	keys := map[string]jsontext.Value{}
	masked := false
	for name, v := range f.keys {
		masked = masked || bytes.Contains(v, []byte(`"`+mask+`"`))
		to, ruled := rule.Fields[name]
		if !ruled {
			to = name
			if i := slices.IndexFunc(fields, func(field string) bool { return plain(field) == plain(name) }); i >= 0 {
				to = fields[i]
			}
		}
		if to != "" {
			keys[to] = v
		}
	}
	facts.Fields = slices.Sorted(maps.Keys(keys))
	item.Facts = facts
	if item.Err == nil && masked {
		item.Err = ErrMasked
	}
	raw, err := json.Marshal(keys, json.Deterministic(true))
	if err == nil {
		item.Keys, err = client.KeysJSON(raw)
	}
	if item.HasKeys = err == nil; err != nil && item.Err == nil {
		item.Err = ErrForeign
	}
	return item, nil
}

// plain is a name without what environment variables cannot have.
func plain(name string) string {
	return strings.Map(func(r rune) rune {
		if r == '_' || r == '-' {
			return -1
		}
		return r
	}, strings.ToLower(name))
}

// list makes items of credentials. One whose id no credential can have is refused by itself.
func (m Mapping) list(all []foreign, env bool) (Items, error) {
	items := make(Items, 0, len(all))
	seen := map[string]bool{}
	for i, f := range all {
		if events.CheckID(f.id) != nil || seen[f.id] {
			f.id, f.err = fmt.Sprint("#", i+1), ErrForeignID
		}
		seen[f.id] = true
		item, err := m.item(f, env)
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return items, nil
}

// Parse reads a file of another system, called name. Its errors quote nothing of it.
func (m Mapping) Parse(kind, name string, b []byte) (Items, error) {
	switch kind {
	case FromAspire:
		return m.aspire(b)
	case FromElasticIO:
		return m.elasticIO(b)
	case FromN8N:
		return m.n8n(b)
	case FromEnv:
		return m.env(name, b)
	}
	return nil, ErrFrom
}

// aspire reads an export, or an answer with credentials.
func (m Mapping) aspire(b []byte) (Items, error) {
	type credential struct {
		ID          string                    `json:"id"`
		Type        string                    `json:"type"`
		Description string                    `json:"description"`
		Policy      string                    `json:"throttlePolicy"`
		Properties  map[string]jsontext.Value `json:"properties"`
	}
	var file struct {
		Export struct {
			Credentials struct {
				Credential []credential `json:"credential"`
			} `json:"credentials"`
			Policies struct {
				Policy []struct {
					ID          string         `json:"id"`
					Description string         `json:"description"`
					Unit        string         `json:"timeUnit"`
					Documents   jsontext.Value `json:"numberOfDocuments"`
				} `json:"policy"`
			} `json:"policies"`
		} `json:"export"`
		Credential []credential `json:"credential"`
	}
	if json.Unmarshal(b, &file) != nil {
		return nil, ErrForeign
	}
	var policies Items
	for _, p := range file.Export.Policies.Policy {
		facts := transfer.ThrottlePolicy{
			Description: p.Description, Per: map[string]events.TimeUnit{"s": "second", "m": "minute", "h": "hour", "d": "day"}[p.Unit],
		}
		item := Item{Kind: transfer.KindThrottlePolicy, ID: p.ID}
		if _, err := fmt.Sscan(strings.Trim(string(p.Documents), `"`), &facts.Tokens); err != nil || facts.Per == "" || events.CheckID(p.ID) != nil {
			item.Err = ErrForeign.Withf("The policy needs an id, timeUnit s, m, h or d, and numberOfDocuments.")
		}
		item.Facts = facts
		policies = append(policies, item)
	}
	found := slices.Concat(file.Export.Credentials.Credential, file.Credential)
	if len(found) == 0 && len(policies) == 0 {
		return nil, ErrForeign
	}
	var all []foreign
	for _, c := range found {
		f := foreign{id: c.ID, typ: c.Type, name: c.Description, description: c.Description, policy: c.Policy, keys: c.Properties}
		if c.Properties == nil {
			f.err = ErrMasked
		}
		all = append(all, f)
	}
	items, err := m.list(all, false)
	return append(policies, items...), err
}

// elasticIO reads answers of /v2/credentials: one document, or the pages one after the other.
func (m Mapping) elasticIO(b []byte) (Items, error) {
	type related struct {
		Data struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	type resource struct {
		ID         string `json:"id"`
		Type       string `json:"type"`
		Attributes struct {
			Name string                    `json:"name"`
			Keys map[string]jsontext.Value `json:"keys"`
		} `json:"attributes"`
		Relationships struct {
			Component related `json:"component"`
			Workspace related `json:"workspace"`
			VPNAgent  related `json:"vpn_agent"`
		} `json:"relationships"`
	}
	var all []foreign
	dec := jsontext.NewDecoder(bytes.NewReader(b))
	for {
		var page struct {
			Data jsontext.Value `json:"data"`
		}
		err := json.UnmarshalDecode(dec, &page)
		if err == io.EOF && all != nil { //nolint:errorlint // as the decoder documents it
			return m.list(all, false)
		}
		var found []resource
		if err == nil && page.Data.Kind() == '{' {
			found = make([]resource, 1)
			err = json.Unmarshal(page.Data, &found[0])
		} else if err == nil {
			err = json.Unmarshal(page.Data, &found)
		}
		if err != nil {
			return nil, ErrForeign
		}
		all = slices.Grow(all, 1)
		for _, c := range found {
			if c.Type != "credential" {
				return nil, ErrForeign
			}
			f := foreign{
				id: c.ID, typ: c.Relationships.Component.Data.ID, name: c.Attributes.Name, workspace: c.Relationships.Workspace.Data.ID,
				agent: c.Relationships.VPNAgent.Data.ID, keys: c.Attributes.Keys,
			}
			if c.Attributes.Keys == nil {
				f.err = ErrMasked
			}
			all = append(all, f)
		}
	}
}

// n8n reads export:credentials --decrypted: an array, or one of the files of --separate.
func (m Mapping) n8n(b []byte) (Items, error) {
	type credential struct {
		ID   jsontext.Value `json:"id"` // a number in old versions
		Name string         `json:"name"`
		Type string         `json:"type"`
		Data jsontext.Value `json:"data"`
	}
	var found []credential
	if json.Unmarshal(b, &found) != nil {
		found = make([]credential, 1)
		if json.Unmarshal(b, &found[0]) != nil || found[0].Type == "" {
			return nil, ErrForeign
		}
	}
	var all []foreign
	for _, c := range found {
		f := foreign{id: strings.Trim(string(c.ID), `"`), typ: c.Type, name: c.Name}
		switch {
		case c.Data.Kind() == '"':
			f.err = ErrEncrypted
		case json.Unmarshal(c.Data, &f.keys) != nil:
			f.err = ErrForeign
		}
		all = append(all, f)
	}
	return m.list(all, false)
}

// env reads an environment file: NAME=value, one a line; # begins a comment line, export
// before a name is ignored, and a value may stand in single or double quotes. What is before
// the first __ of a name, in lower case, is the id of a credential and the rest the name of
// its key; names without __ belong to a credential that is called like the file.
func (m Mapping) env(file string, b []byte) (Items, error) {
	base := strings.TrimPrefix(path.Base(file), ".")
	if base = strings.TrimSuffix(base, path.Ext(base)); base == "" || base == "-" {
		base = "env"
	}
	byID := map[string]map[string]jsontext.Value{}
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, 1<<20)
	n := 0
	for lines.Scan() {
		n++
		line := strings.TrimSpace(lines.Text())
		if n == 1 {
			line = strings.TrimPrefix(line, "\ufeff")
		}
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "export ")), "=")
		name = strings.TrimSpace(name)
		value, good := unquote(strings.TrimSpace(value))
		if !ok || !good || !variable(name) || !utf8.ValidString(value) {
			return nil, ErrForeign.Withf("Line %d of the environment file is not NAME=value.", n)
		}
		id, key := base, name
		if prefix, rest, split := strings.Cut(name, "__"); split && prefix != "" && rest != "" {
			id, key = strings.ToLower(prefix), rest
		}
		if byID[id] == nil {
			byID[id] = map[string]jsontext.Value{}
		}
		if _, twice := byID[id][key]; twice {
			return nil, ErrForeign.Withf("Line %d of the environment file repeats a name.", n)
		}
		quoted, err := jsontext.AppendQuote(nil, value)
		if err != nil {
			return nil, ErrForeign.Withf("Line %d of the environment file is not UTF-8.", n)
		}
		byID[id][key] = quoted
	}
	if lines.Err() != nil || len(byID) == 0 {
		return nil, ErrForeign.Withf("The environment file has no line NAME=value, or one is longer than 1 MiB.")
	}
	var all []foreign
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		all = append(all, foreign{id: id, typ: "env", name: id, keys: byID[id]})
	}
	return m.list(all, true)
}

// variable reports whether a name is one of an environment variable.
func variable(name string) bool {
	for i, c := range name {
		if c != '_' && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

// unquote reads a value. In double quotes, \n, \", \\ and \$ are escapes; in single quotes
// nothing is; without quotes, a space and # begin a comment.
func unquote(v string) (string, bool) {
	switch {
	case strings.HasPrefix(v, "'"):
		inner, rest, ok := strings.Cut(v[1:], "'")
		return inner, ok && commentOnly(rest)
	case strings.HasPrefix(v, `"`):
		var b strings.Builder
		for i := 1; i < len(v); i++ {
			switch c := v[i]; {
			case c == '"':
				return b.String(), commentOnly(v[i+1:])
			case c == '\\' && i+1 < len(v) && strings.IndexByte(`n"\$`, v[i+1]) >= 0:
				if i++; v[i] == 'n' {
					b.WriteByte('\n')
				} else {
					b.WriteByte(v[i])
				}
			default:
				b.WriteByte(c)
			}
		}
		return "", false
	}
	v, _, _ = strings.Cut(v, " #")
	return strings.TrimSpace(v), true
}

func commentOnly(rest string) bool {
	rest = strings.TrimSpace(rest)
	return rest == "" || strings.HasPrefix(rest, "#")
}
