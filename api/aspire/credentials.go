package aspire

import (
	"bufio"
	"cmp"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/api/edge"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/throttle"
)

// document is a credential in Aspire's format.
type document struct {
	ID             string         `json:"id"`
	Type           string         `json:"type"`
	Description    string         `json:"description"`
	ThrottlePolicy string         `json:"throttlePolicy,omitzero"`
	Properties     map[string]any `json:"properties,omitzero"`
}

func documentOf(c credential.Credential, sparse bool) document {
	d := document{ID: c.ID, Type: cmp.Or(c.Component, c.Type), Description: c.Description, ThrottlePolicy: c.ThrottlePolicy, Properties: c.Keys}
	if sparse {
		d.Properties = nil
	}
	return d
}

const pageSize = 500

// page has the parameters of a list.
type page struct {
	credential.Search
	paged  bool // from or size is set
	size   int  // -1: no limit
	sparse bool
}

func (x *exchange) page() (p page, err error) {
	p.size = -1
	number := func(name string, into *int) error {
		if !x.query.Has(name) {
			return nil
		}
		n, err := strconv.Atoi(x.query.Get(name))
		if err != nil || n < 0 || n > 1_000_000_000 {
			return ErrParameter.Withf("The parameter %s must be a whole number from 0.", name)
		}
		*into, p.paged = n, true
		return nil
	}
	if err := cmp.Or(number("from", &p.From), number("size", &p.size)); err != nil {
		return p, err
	}
	p.Sort = cmp.Or(x.query.Get("sortBy"), "id")
	switch p.Sort {
	case "id", "type", "description":
	case "throttlePolicy":
		p.Sort = "throttle_policy"
	default:
		return p, ErrParameter.Withf("The parameter sortBy must be id, type, description or throttlePolicy.")
	}
	switch x.query.Get("sortMode") {
	case "", "asc":
	case "desc":
		p.Sort = "-" + p.Sort
	default:
		return p, ErrParameter.Withf("The parameter sortMode must be asc or desc.")
	}
	switch x.query.Get("sparse") {
	case "", "false":
	case "true":
		p.sparse = true
	default:
		return p, ErrParameter.Withf("The parameter sparse must be true or false.")
	}
	return p, nil
}

func (x *exchange) list() { x.listBy(filter{}) }

func (x *exchange) getAll() {
	f, err := x.filter()
	if err != nil {
		x.Fail(err)
		return
	}
	x.listBy(f.Filter)
}

// listBy writes a list, page by page.
func (x *exchange) listBy(f filter) {
	p, err := x.page()
	if err != nil {
		x.Fail(err)
		return
	}
	p.IDs, p.Type, p.Description, p.Policy = f.IDs, f.Type, f.Description, f.ThrottlePolicy
	first := true
	var out *bufio.Writer
	err = eachPage(&p, func() (int, int, string, error) {
		x.extend()
		found, err := ask[credential.Found](x, "credential.search", p.Search)
		if err != nil {
			return 0, 0, "", err
		}
		if first {
			count := map[string]int{"totalItems": found.Total}
			if p.paged {
				count["from"], count["size"] = p.From, max(p.size, 0)
				if p.size < 0 {
					count["size"] = max(found.Total-p.From, 0)
				}
			}
			out = x.begin(`{"count":`, count, `,"credential":[`)
		}
		last := ""
		list := found.Credentials
		if p.size == 0 {
			list = nil
		}
		for _, c := range list {
			b, err := json.Marshal(documentOf(c, p.sparse), json.Deterministic(true))
			if err != nil {
				return 0, 0, "", err
			}
			if !first || last != "" {
				_ = out.WriteByte(',')
			}
			_, _ = out.Write(b)
			last = c.ID
		}
		first = false
		return len(list), found.Total, last, nil
	})
	if err != nil {
		x.broken(out, err)
		return
	}
	x.finish(out, "]}\n")
}

// eachPage calls read for each page of a list, until p.size items were read. If the list is
// sorted by id, it continues after the last id, so that concurrent changes do not shift items.
func eachPage(p *page, read func() (n, total int, last string, err error)) error {
	for left := p.size; ; {
		p.Limit = pageSize
		if left >= 0 {
			p.Limit = min(max(left, 1), pageSize)
		}
		n, _, last, err := read()
		switch {
		case err != nil:
			return err
		case n < p.Limit:
			return nil
		}
		if left >= 0 {
			if left -= n; left <= 0 {
				return nil
			}
		}
		if p.From += n; p.Sort == "id" {
			p.From, p.After = 0, last
		}
	}
}

// begin starts a streamed response.
func (x *exchange) begin(before string, first any, after string) *bufio.Writer {
	x.W.Header()["Content-Type"] = []string{edge.MediaJSON}
	x.End(http.StatusOK)
	out := bufio.NewWriterSize(x.W, 64<<10)
	b, _ := json.Marshal(first, json.Deterministic(true)) // cannot fail: numbers
	_, _ = out.WriteString(before + string(b) + after)
	return out
}

// extend sets the write deadline for the next part of a long response.
func (x *exchange) extend() {
	_ = http.NewResponseController(x.W).SetWriteDeadline(time.Now().Add(partTime))
}

// partTime is the time in which a client must read one part of a response.
const partTime = time.Minute

func (x *exchange) finish(out *bufio.Writer, end string) {
	_, _ = out.WriteString(end)
	_ = out.Flush()
}

// broken aborts a response that cannot be completed, so that the client does not take it for
// complete.
func (x *exchange) broken(out *bufio.Writer, err error) {
	if out == nil {
		x.Fail(err)
		return
	}
	x.Err = err
	panic(http.ErrAbortHandler)
}

func (x *exchange) get() {
	c, err := ask[credential.Credential](x, "credential.get", credential.Get{ID: x.item})
	if err != nil {
		x.Fail(err)
		return
	}
	x.give(http.StatusOK, map[string]any{"credential": documentOf(c, false)})
}

// filter selects credentials.
type filter struct {
	IDs            ids    `json:"ids"`
	Type           string `json:"type"`
	Description    string `json:"description"`
	ThrottlePolicy string `json:"throttlePolicy"`
}

// domain converts the filter for the service.
func (f filter) domain() credential.Filter {
	return credential.Filter{IDs: f.IDs, Type: f.Type, Description: f.Description, Policy: f.ThrottlePolicy}
}

func (f filter) empty() bool {
	return f.IDs == nil && f.Type == "" && f.Description == "" && f.ThrottlePolicy == ""
}

type filterBody struct {
	Filter filter         `json:"filter"`
	Update jsontext.Value `json:"update"`
}

// filter parses a body with a filter.
func (x *exchange) filter() (in filterBody, err error) {
	body, err := x.body()
	if err == nil {
		err = service.Decode(body, &in)
	}
	if err == nil {
		err = service.PointAt(in.Filter.domain().Check(), "/filter")
	}
	return in, err
}

// input is a credential in a request body.
type input struct {
	members map[string]jsontext.Value
	id      string
	err     error
}

// read parses a credential of a body. known are the members that it may have.
func read(v jsontext.Value, known ...string) (in input) {
	if err := service.Decode(v, &in.members); err != nil || in.members == nil {
		in.err = cmp.Or(err, error(service.ErrBody.Withf("A credential must be a JSON object.")))
		return in
	}
	for name := range in.members {
		if !slices.Contains(known, name) {
			in.err = service.ErrBody.Withf("Unknown member of a credential. Supported members: %s.", strings.Join(known, ", "))
			return in
		}
	}
	if in.members["throttlePolicy"].Kind() == 'n' {
		in.members["throttlePolicy"] = jsontext.Value(`""`) // no policy
	}
	for _, name := range []string{"id", "type", "description", "throttlePolicy"} {
		v, given := in.members[name]
		if given && v.Kind() != '"' {
			in.err = service.ErrBody.Withf("The member %s must be a string.", name).At("/" + name)
			return in
		}
	}
	if v, given := in.members["properties"]; given && v.Kind() != '{' {
		in.err = service.ErrBody.Withf("The member properties must be an object.").At("/properties")
		return in
	}
	in.id = in.text("id")
	return in
}

func (in input) text(name string) (s string) {
	if v, given := in.members[name]; given {
		_ = json.Unmarshal(v, &s)
	}
	return s
}

// need returns an error if one of the members is missing.
func (in input) need(names ...string) error {
	if in.err != nil {
		return in.err
	}
	for _, name := range names {
		if _, given := in.members[name]; !given {
			return service.ErrMissing.Withf("The member %s is required.", name).At("/" + name)
		}
	}
	return nil
}

// renamed maps the members of a credential to those of the service's commands.
var renamed = map[string]string{"properties": "keys", "throttlePolicy": "throttle_policy"}

// command encodes the members as the body of a command.
func (in input) command() (jsontext.Value, error) {
	body := map[string]jsontext.Value{}
	for name, v := range in.members {
		body[cmp.Or(renamed[name], name)] = v
	}
	b, err := json.Marshal(body, json.Deterministic(true))
	if err != nil {
		return nil, service.ErrBody
	}
	return b, nil
}

// created is the response for a new credential: the caller's input, with masked values.
func (in input) created(id string) document {
	d := document{ID: id, Type: in.text("type"), Description: in.text("description"), ThrottlePolicy: in.text("throttlePolicy"), Properties: map[string]any{}}
	if json.Unmarshal(in.members["properties"], &d.Properties) == nil {
		mask(d.Properties)
	}
	return d
}

func mask(properties map[string]any) {
	for name, v := range properties {
		if inner, is := v.(map[string]any); is {
			mask(inner)
			continue
		}
		properties[name] = "********"
	}
}

// add creates one credential or several.
func (x *exchange) add() {
	list, many, err := x.oneOrSeveral()
	if err != nil {
		x.Fail(err)
		return
	}
	items := make([]input, len(list))
	for i, v := range list {
		items[i] = read(v, "id", "type", "description", "properties", "throttlePolicy")
		items[i].err = items[i].need("type", "description", "properties")
	}
	x.several("credential.create-many", "credentials", items, many, http.StatusCreated)
}

// change parses the change of one credential.
func change(v jsontext.Value, id string) input {
	in := read(v, "id", "description", "properties", "throttlePolicy")
	if _, given := in.members["type"]; given {
		in.err = service.ErrBody.Withf("The type of a credential cannot be changed. Delete it and add another one.").At("/type")
	}
	if in.err == nil && in.id != "" && in.id != id {
		in.err = service.ErrBody.Withf("The member id differs from the id in the path or map.").At("/id")
	}
	in.id = id
	if in.err == nil && in.members["description"] == nil && in.members["properties"] == nil && in.members["throttlePolicy"] == nil {
		in.err = service.ErrMissing.Withf("Give at least one of description, properties and throttlePolicy.")
	}
	if in.err == nil {
		in.members["id"], in.err = json.Marshal(id)
	}
	return in
}

func (x *exchange) update() {
	body, err := x.body()
	if err != nil {
		x.Fail(err)
		return
	}
	x.several("credential.update-many", "updates", []input{change(body, x.item)}, false, http.StatusOK)
}

// updateListed changes the credentials of a map by id, or a single credential with its id.
func (x *exchange) updateListed() {
	list, many, err := x.byID()
	if err != nil {
		x.Fail(err)
		return
	}
	var items []input
	for _, id := range slices.Sorted(maps.Keys(list)) {
		items = append(items, change(list[id], id))
	}
	x.several("credential.update-many", "updates", items, many, http.StatusOK)
}

// updateAll applies one change to all credentials that match a filter.
func (x *exchange) updateAll() {
	in, err := x.filter()
	if err == nil && (in.Filter.empty() || in.Update == nil) {
		err = service.ErrMissing.Withf("Give a filter with at least one member, and update.")
	}
	var one input
	if err == nil {
		one = change(in.Update, "")
		err = one.err
	}
	if err == nil && one.members["id"] != nil {
		delete(one.members, "id")
	}
	var body jsontext.Value
	if err == nil {
		body, err = one.command()
	}
	if err != nil {
		x.Fail(err)
		return
	}
	x.filtered("credential.update-many", in.Filter, map[string]any{"update": body})
}

func (x *exchange) delete() {
	if x.query.Has("id") {
		x.Fail(ErrParameter)
		return
	}
	x.deleteIDs([]string{x.item}, false)
}

func (x *exchange) deleteNamed() {
	if len(x.query["id"]) == 0 {
		x.Fail(service.ErrMissing.Withf("Name the credentials: ?id=A&id=B."))
		return
	}
	x.deleteIDs(x.query["id"], true)
}

func (x *exchange) deleteListed() {
	list, err := x.listed()
	if err != nil {
		x.Fail(err)
		return
	}
	x.deleteIDs(list, true)
}

func (x *exchange) deleteIDs(list []string, several bool) {
	var items []input
	for _, id := range list {
		items = append(items, input{id: id})
	}
	x.several("credential.delete-many", "ids", items, several, http.StatusOK)
}

func (x *exchange) deleteAll() {
	in, err := x.filter()
	if err == nil && (in.Filter.empty() || in.Update != nil) {
		err = service.ErrMissing.Withf("Give a filter with at least one member.")
	}
	if err != nil {
		x.Fail(err)
		return
	}
	x.filtered("credential.delete-many", in.Filter, map[string]any{})
}

func (x *exchange) export() {
	if names := x.query["id"]; len(names) > 0 {
		x.exportBy(filter{IDs: names})
		return
	}
	x.exportBy(filter{})
}

func (x *exchange) exportOne() { x.exportBy(filter{IDs: ids{x.item}}) }

func (x *exchange) exportListed() {
	list, err := x.listed()
	if err != nil {
		x.Fail(err)
		return
	}
	x.exportBy(filter{IDs: list})
}

func (x *exchange) exportAll() {
	in, err := x.filter()
	if err == nil && in.Update != nil {
		err = service.ErrBody.Withf("The body of an export can only have a filter.")
	}
	if err != nil {
		x.Fail(err)
		return
	}
	x.exportBy(in.Filter)
}

// missing lists the secrets that an export omits.
type missing struct {
	Credential string   `json:"credential"`
	Properties []string `json:"properties"`
	Message    string   `json:"message"`
}

// exportBy writes an export. It omits the secrets and lists them.
func (x *exchange) exportBy(f filter) {
	p, err := x.page()
	if err != nil {
		x.Fail(err)
		return
	}
	p.IDs, p.Type, p.Description, p.Policy = f.IDs, f.Type, f.Description, f.ThrottlePolicy
	credentials, left, policies := []document{}, []missing{}, []policy{}
	seen, needed := map[string]bool{}, map[string]bool{}
	err = eachPage(&p, func() (int, int, string, error) {
		x.extend()
		out, err := ask[credential.Exported](x, "credential.export", p.Search)
		if err == nil && len(credentials)+len(out.Credentials) > maxItems {
			err = errTooMany.Withf("One export holds up to %d credentials. Export them in parts, by from and size or by a filter.", maxItems)
		}
		if err != nil {
			return 0, 0, "", err
		}
		if p.size == 0 {
			return 0, out.Total, "", nil
		}
		last := ""
		for _, c := range out.Credentials {
			credentials = append(credentials, document{
				ID: c.ID, Type: cmp.Or(c.Component, c.Type), Description: c.Description, ThrottlePolicy: c.ThrottlePolicy, Properties: map[string]any{},
			})
			if c.ThrottlePolicy != "" {
				needed[c.ThrottlePolicy] = true
			}
			last, seen[c.ID] = c.ID, true
		}
		for _, m := range out.Missing {
			left = append(left, missing{m.Credential, m.Properties, m.Says})
		}
		return len(out.Credentials), out.Total, last, nil
	})
	if err != nil {
		x.Fail(err)
		return
	}
	for _, id := range slices.Sorted(maps.Keys(needed)) {
		p, err := ask[throttle.Policy](x, "throttle_policy.get", throttle.Ref{ID: id})
		if errors.Is(err, throttle.ErrNotFound) {
			continue // it was deleted meanwhile
		}
		if err != nil {
			x.Fail(err)
			return
		}
		policies = append(policies, policyOf(p))
	}
	var refused []refusal
	for _, id := range f.IDs {
		if !seen[id] && !p.paged {
			seen[id] = true
			refused = append(refused, refusal{ID: id, Status: http.StatusNotFound, Code: "credential_not_found", Message: "Credential not found."})
		}
	}
	answer := map[string]any{
		"export": map[string]any{
			"credentials": map[string]any{"credential": credentials},
			"policies":    map[string]any{"policy": policies},
		},
		"missing": left,
	}
	status := http.StatusOK
	if len(refused) > 0 {
		answer["error"] = refused
		if len(credentials) == 0 {
			status = http.StatusNotFound
			answer = map[string]any{"error": refused, "requestId": x.ID}
		}
	}
	x.give(status, answer)
}
