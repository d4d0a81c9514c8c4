package aspire

import (
	"maps"
	"net/http"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/throttle"
)

// policy is a throttle policy in Aspire's format.
type policy struct {
	ID          string `json:"id"`
	Type        string `json:"type"`
	Description string `json:"description"`
	TimeUnit    string `json:"timeUnit"`
	Documents   string `json:"numberOfDocuments"`
}

// policyType is the only supported type of policies.
const policyType = "throttle"

// units maps the time units of Aspire to those of the service.
var units = map[string]string{"s": "second", "m": "minute", "h": "hour", "d": "day"}

func policyOf(p throttle.Policy) policy {
	return newPolicy(p.ID, p.Description, p.Tokens, string(p.Per))
}

func newPolicy(id, description string, tokens int64, per string) policy {
	p := policy{ID: id, Type: policyType, Description: description, Documents: strconv.FormatInt(tokens, 10)}
	for name, unit := range units {
		if unit == per {
			p.TimeUnit = name
		}
	}
	return p
}

// policyInput is a policy in a request body, converted for the service.
type policyInput struct {
	ID          string  `json:"id,omitzero"`
	Description *string `json:"description,omitzero"`
	Tokens      int64   `json:"tokens,omitzero"`
	Per         string  `json:"per,omitzero"`

	typed bool // the body has the member type
	err   error
}

// readPolicy parses a policy of a body, for add and change.
func readPolicy(v jsontext.Value) (in policyInput) {
	var body struct {
		ID          string         `json:"id"`
		Type        *string        `json:"type"`
		Description *string        `json:"description"`
		TimeUnit    *string        `json:"timeUnit"`
		Documents   jsontext.Value `json:"numberOfDocuments"` // a number, or a string with one
	}
	if in.err = service.Decode(v, &body); in.err != nil {
		return in
	}
	in.ID, in.Description, in.typed = body.ID, body.Description, body.Type != nil
	if in.typed && *body.Type != policyType {
		in.err = service.ErrBody.Withf("The type of a policy must be throttle.").At("/type")
	}
	if body.TimeUnit != nil {
		if in.Per = units[*body.TimeUnit]; in.Per == "" {
			in.err = throttle.ErrPer.Withf("timeUnit must be s, m, h or d: a second, minute, hour or day.").At("/timeUnit")
		}
	}
	if body.Documents != nil {
		text := string(body.Documents)
		if body.Documents.Kind() == '"' {
			_ = json.Unmarshal(body.Documents, &text)
		}
		var err error
		if in.Tokens, err = strconv.ParseInt(text, 10, 64); err != nil || in.Tokens < 1 || in.Tokens > throttle.MaxTokens {
			in.err = throttle.ErrTokens.Withf("numberOfDocuments must be a whole number from 1 to %d.", throttle.MaxTokens).At("/numberOfDocuments")
		}
	}
	return in
}

// policyWords are the path segments that are names of operations. A policy may have such an id:
// its own operations have other methods.
var policyWords = map[string]operations{
	"delete": {"POST": {do: (*exchange).deleteListedPolicies, route: "throttle_policy.delete"}},
}

var (
	policyList = operations{
		"GET": {(*exchange).listPolicies, "throttle_policy.list", []string{"from", "size"}}, "POST": {do: (*exchange).addPolicies, route: "throttle_policy.define"},
		"PUT": {do: (*exchange).updatePolicies, route: "throttle_policy.change"}, "DELETE": {(*exchange).deleteNamedPolicies, "throttle_policy.delete", []string{"id"}},
	}
	policyItem = operations{
		"GET": {do: (*exchange).getPolicy, route: "throttle_policy.get"}, "PUT": {do: (*exchange).updatePolicy, route: "throttle_policy.change"},
		"DELETE": {do: (*exchange).deletePolicy, route: "throttle_policy.delete"},
	}
)

func (x *exchange) listPolicies() {
	p, err := x.page()
	found, skip, total := []policy{}, p.From, 0
	for after := ""; err == nil; {
		var list throttle.Page
		list, err = ask[throttle.Page](x, "throttle_policy.list", throttle.List{Limit: 200, After: after})
		if total = list.Total; err != nil {
			break
		}
		for _, one := range list.Policies {
			if skip--; skip < 0 && (p.size < 0 || len(found) < p.size) {
				found = append(found, policyOf(one))
			}
		}
		if after = list.Next; after == "" || p.size >= 0 && len(found) == p.size {
			break
		}
	}
	if err != nil {
		x.Fail(err)
		return
	}
	count := map[string]int{"totalItems": total}
	if p.paged {
		count["from"], count["size"] = p.From, len(found)
	}
	x.give(http.StatusOK, map[string]any{"count": count, "policy": found})
}

func (x *exchange) getPolicy() {
	p, err := ask[throttle.Policy](x, "throttle_policy.get", throttle.Ref{ID: x.item})
	if err != nil {
		x.Fail(err)
		return
	}
	x.give(http.StatusOK, map[string]any{"policy": policyOf(p)})
}

// policies executes one command per policy. Each command id is derived from the caller's.
func (x *exchange) policies(route string, items []policyInput, many bool, success int, shows func(in policyInput, id string) any) {
	if len(items) > maxItems {
		x.Fail(service.ErrBody.Withf("One call takes up to %d items.", maxItems))
		return
	}
	b := x.batch(len(items), "policy", shows == nil)
	given := x.call.CommandID
	for n, in := range items {
		if given != "" {
			x.call.CommandID = given + "/" + strconv.Itoa(n)
		}
		var done service.Done
		err := in.err
		if err == nil {
			done, err = ask[service.Done](x, route, in)
		}
		if err != nil {
			b.refuseAs(in.ID, err)
			continue
		}
		if b.seq = max(b.seq, done.Seq); shows != nil {
			b.items = append(b.items, shows(in, done.ID))
		}
		if b.done++; b.done%chunkItems == 0 {
			b.progress()
		}
	}
	b.end(many, success)
}

func (x *exchange) addPolicies() {
	list, many, err := x.oneOrSeveral()
	if err != nil {
		x.Fail(err)
		return
	}
	items := make([]policyInput, len(list))
	for i, v := range list {
		if items[i] = readPolicy(v); items[i].err == nil && (!items[i].typed || items[i].Per == "" || items[i].Tokens == 0) {
			items[i].err = service.ErrMissing.Withf("A policy requires type, timeUnit and numberOfDocuments.")
		}
	}
	x.policies("throttle_policy.define", items, many, http.StatusCreated, func(in policyInput, id string) any {
		description := ""
		if in.Description != nil {
			description = *in.Description
		}
		return newPolicy(id, description, in.Tokens, in.Per)
	})
}

// changePolicy parses the change of the policy with this id.
func changePolicy(v jsontext.Value, id string) policyInput {
	in := readPolicy(v)
	switch {
	case in.err != nil:
	case in.ID != "" && in.ID != id:
		in.err = service.ErrBody.Withf("The member id differs from the id in the path or map.").At("/id")
	case in.Description == nil && in.Tokens == 0 && in.Per == "":
		in.err = service.ErrMissing.Withf("Give at least one of description, timeUnit and numberOfDocuments.")
	}
	in.ID = id
	return in
}

func updated(_ policyInput, id string) any { return map[string]any{"updated": true, "id": id} }

func (x *exchange) updatePolicy() {
	body, err := x.body()
	if err != nil {
		x.Fail(err)
		return
	}
	x.policies("throttle_policy.change", []policyInput{changePolicy(body, x.item)}, false, http.StatusOK, updated)
}

// updatePolicies changes the policies of a map by id, or a single policy with its id.
func (x *exchange) updatePolicies() {
	list, many, err := x.byID()
	if err != nil {
		x.Fail(err)
		return
	}
	var items []policyInput
	for _, id := range slices.Sorted(maps.Keys(list)) {
		items = append(items, changePolicy(list[id], id))
	}
	x.policies("throttle_policy.change", items, many, http.StatusOK, updated)
}

func (x *exchange) deletePolicies(list []string, many bool) {
	var items []policyInput
	for _, id := range list {
		items = append(items, policyInput{ID: id})
	}
	x.policies("throttle_policy.delete", items, many, http.StatusOK, nil)
}

func (x *exchange) deletePolicy() { x.deletePolicies([]string{x.item}, false) }

func (x *exchange) deleteNamedPolicies() {
	if len(x.query["id"]) == 0 {
		x.Fail(service.ErrMissing.Withf("Name the policies: ?id=A&id=B."))
		return
	}
	x.deletePolicies(x.query["id"], true)
}

func (x *exchange) deleteListedPolicies() {
	list, err := x.listed()
	if err != nil {
		x.Fail(err)
		return
	}
	x.deletePolicies(list, true)
}
