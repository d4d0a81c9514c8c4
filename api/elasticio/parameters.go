package elasticio

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/credstream/credstream/fault"
)

// Errors of URL parameters.
var (
	ErrParameter = fault.New(fault.Invalid, "parameter_invalid", "Invalid URL parameter.")
	ErrPage      = fault.New(fault.Invalid, "page_out_of_reach",
		"page[number] reaches only the first 10,000 items. Follow links.next instead.")
)

// parameterPrefix is the prefix of a fault's pointer that names a URL parameter.
const parameterPrefix = "?"

func badParameter(name, why string) error {
	if len(name) > 128 {
		name = name[:128]
	}
	return ErrParameter.Withf("%s", why).At(parameterPrefix + strings.ToValidUTF8(name, ""))
}

// The limits of paging.
const (
	defaultPage = 50
	largestPage = 200
	maxOffset   = 10_000 // maximum offset of a numbered page
)

// parameters are the parameters of a URL. Empty values are treated as absent.
type parameters struct {
	component string
	workspace string
	contract  string
	tenant    string
	number    int // from 1
	size      int
	after     string // cursor from links.next of the previous page
	sort      []string
	include   bool // include the components
	fields    map[string][]string
	reveal    bool
}

// Names of the parameters that an operation may accept.
const (
	byComponent = "filter[component]"
	byWorkspace = "workspace_id"
	byContract  = "contract_id"
	byTenant    = "tenant_id"
	pageNumber  = "page[number]"
	pageSize    = "page[size]"
	pageAfter   = "page[after]"
	sorted      = "sort"
	including   = "include"
	fieldsOf    = "fields[" // followed by a type and "]"
	revealing   = "reveal"
)

var (
	paging = []string{pageNumber, pageSize, pageAfter}
	sparse = []string{including, fieldsOf}
)

// readParameters parses a query string, with plain or escaped brackets. Each parameter must be
// one of allowed and appear at most once.
func readParameters(query string, allowed ...string) (parameters, error) {
	p := parameters{number: 1, size: defaultPage, fields: map[string][]string{}}
	values, err := url.ParseQuery(query)
	if err != nil {
		return p, ErrParameter.Withf("The query string of the URL is malformed.")
	}
	for name, given := range values {
		kind, typ := name, ""
		if inner, ok := strings.CutPrefix(name, fieldsOf); ok && strings.HasSuffix(inner, "]") {
			kind, typ = fieldsOf, strings.TrimSuffix(inner, "]")
		}
		switch {
		case !slices.Contains(allowed, kind):
			return p, badParameter(name, "Unknown parameter.")
		case len(given) != 1:
			return p, badParameter(name, "The parameter appears more than once.")
		case !utf8.ValidString(given[0]):
			return p, badParameter(name, "The value is not UTF-8.")
		case given[0] == "" && kind != fieldsOf:
			continue
		}
		if err := p.set(kind, typ, given[0]); err != nil {
			return p, err
		}
	}
	if p.after == "" && (p.number-1)*p.size >= maxOffset {
		return p, ErrPage.At(parameterPrefix + pageNumber)
	}
	return p, nil
}

// set parses one non-empty parameter.
func (p *parameters) set(kind, typ, value string) (err error) {
	switch kind {
	case byComponent:
		p.component = value
	case byWorkspace:
		p.workspace = value
	case byContract:
		p.contract = value
	case byTenant:
		p.tenant = value
	case pageNumber:
		if p.number, err = strconv.Atoi(value); err != nil || p.number < 1 || p.number > 1<<30 {
			return badParameter(kind, "Pages are numbered from 1.")
		}
	case pageSize:
		if p.size, err = strconv.Atoi(value); err != nil || p.size < 1 || p.size > largestPage {
			return badParameter(kind, "A page holds 1 to 200 items.")
		}
	case pageAfter:
		p.after = value
	case sorted:
		p.sort = strings.Split(value, ",")
	case including:
		if value != "component" {
			return badParameter(kind, "Only component can be included.")
		}
		p.include = true
	case fieldsOf:
		p.fields[typ] = strings.Split(value, ",")
	case revealing:
		if p.reveal, err = strconv.ParseBool(value); err != nil {
			return badParameter(kind, "reveal must be true or false.")
		}
	}
	return nil
}

// order converts sort for the service. Equal names are sorted by creation time in the same
// direction, unless the second field reverses it.
func (p *parameters) order() (by string, err error) {
	refused := badParameter(sorted, "The sort order must be name, -name, created_at or -created_at, or name and then created_at.")
	switch len(p.sort) {
	case 0:
		return "name", nil
	case 1, 2:
	default:
		return "", refused
	}
	first := p.sort[0]
	switch {
	case first == "created_at" || first == "-created_at":
		if len(p.sort) > 1 && strings.TrimPrefix(p.sort[1], "-") != "name" { // creation times are unique, so a second sort by name has no effect
			return "", refused
		}
		return strings.TrimSuffix(first, "_at"), nil
	case first != "name" && first != "-name":
		return "", refused
	case len(p.sort) == 1:
		return first, nil
	case p.sort[1] != "created_at" && p.sort[1] != "-created_at":
		return "", refused
	case strings.HasPrefix(first, "-") == strings.HasPrefix(p.sort[1], "-"):
		return first, nil
	}
	return first + "," + strings.TrimSuffix(p.sort[1], "_at"), nil
}

// trim removes the fields that fields[...] does not list.
func (p *parameters) trim(r resource) resource {
	fields, ok := p.fields[r.Type]
	if !ok {
		return r
	}
	attributes, relationships := map[string]any{}, map[string]relationship{}
	for _, f := range fields {
		if v, ok := r.Attributes[f]; ok {
			attributes[f] = v
		}
		if v, ok := r.Relationships[f]; ok {
			relationships[f] = v
		}
	}
	r.Attributes, r.Relationships = attributes, nil
	if len(relationships) > 0 {
		r.Relationships = relationships
	}
	return r
}

// fetchPage returns the requested page and the next cursor. fetch returns up to limit items after a
// cursor, and the next cursor. For a numbered page, fetchPage first skips the items before it, 200
// per call of fetch.
func fetchPage[T any](p parameters, fetch func(after string, limit int) ([]T, string, error)) ([]T, string, error) {
	after := p.after
	if after == "" {
		for skip := (p.number - 1) * p.size; skip > 0; {
			passed, next, err := fetch(after, min(skip, largestPage))
			if err != nil || next == "" {
				return nil, "", err
			}
			after, skip = next, skip-len(passed)
		}
	}
	return fetch(after, p.size)
}

// links returns the links of a page; total is the number of all items.
func (p *parameters) links(r *url.URL, next string, total int) map[string]string {
	link := func(number int, after string) string {
		q := r.Query()
		q.Set(pageNumber, strconv.Itoa(number))
		q.Set(pageSize, strconv.Itoa(p.size))
		q.Del(pageAfter)
		if after != "" {
			q.Set(pageAfter, after)
		}
		return r.EscapedPath() + "?" + q.Encode()
	}
	links := map[string]string{"first": link(1, "")}
	if p.number > 1 && (p.number-2)*p.size < maxOffset {
		links["prev"] = link(p.number-1, "")
	}
	if next != "" {
		links["next"] = link(p.number+1, next)
	}
	if last := pages(total, p.size); (last-1)*p.size < maxOffset {
		links["last"] = link(last, "")
	}
	return links
}

// pages returns the number of pages; an empty list has one.
func pages(total, size int) int { return max(1, (total+size-1)/size) }

// meta returns the page number, page size and totals.
func (p *parameters) meta(total int) map[string]any {
	return map[string]any{"page": p.number, "per_page": p.size, "total": total, "total_pages": pages(total, p.size)}
}
