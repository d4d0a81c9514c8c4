package projections

import (
	"context"
	"database/sql/driver"
	"fmt"
	"slices"
	"strings"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// ErrSearchSort rejects an unsupported sort order.
var ErrSearchSort = fault.New(fault.Invalid, "search_sort_invalid", `A search can be sorted by "id", "type", "description" or "throttle_policy".`)

// CredentialSearch selects a page of credentials by offset. Empty fields select all; set fields
// combine by AND.
type CredentialSearch struct {
	Tenant      string
	IDs         []string // nil: all; empty: none
	Type        string   // a component, or a free type
	Description string   // substring, case-insensitive
	Policy      string   // id of a throttle policy
	Sort        string   // "id" (the default), "type", "description" or "throttle_policy", then by id
	Desc        bool
	From        int    // rows before the page
	After       string // only ids after this one; requires the sort by id, ascending
	Limit       int    // of the page; 0: no rows, only the total
	Scope       events.Scope
}

// SearchCredentials returns a page and the total without After and From, both from one state of
// the views. It skips the rows before the page, or those after it if they are fewer, in an index,
// about 0.1 µs each. A substring of a
// description is searched in every description of the tenant, or of the type.
func (v *Views) SearchCredentials(ctx context.Context, f CredentialSearch) (page []Credential, total int, err error) {
	s, err := f.statement()
	if err != nil {
		return nil, 0, err
	}
	err = v.snapshot(ctx, func(c *conn) error {
		if err := s.narrow(c); err != nil {
			return err
		}
		n, err := s.count(c)
		if total = int(n); err != nil || f.Limit <= 0 {
			return err
		}
		from, limit, order := int64(f.From), int64(f.Limit), s.order
		if f.After == "" && from > n/2 { // the other end is nearer
			limit = max(0, min(limit, n-from))
			from, order = n-from-limit, s.reverse
		}
		rows, args := s.rows(order)
		return c.query("SELECT doc FROM ("+rows+" LIMIT ? OFFSET ?) AS found CROSS JOIN credentials USING (seq)"+s.order, func(row []driver.Value) error {
			k, err := c.recent.scan(row[0])
			if err == nil {
				page = append(page, *k)
			}
			return err
		}, append(args, limit, max(0, from))...)
	})
	if err != nil {
		return nil, 0, fmt.Errorf("searching credentials: %w", err)
	}
	return page, total, nil
}

// maxArms is the number of components, or workspaces, of a scope up to which each is an arm of its own.
const maxArms = 8

// search is a CredentialSearch as SQL: a merge of arms, each of which is a range of one index.
type search struct {
	f     CredentialSearch
	index string
	by    string   // condition of an arm for its kind
	kinds []string // components or workspaces: one arm for each; none: one arm for all
	where string
	args  []driver.Value
	order string

	reverse string // the opposite of order
}

func (f CredentialSearch) statement() (*search, error) {
	s := &search{f: f, index: "credentials_id", by: " AND component = ?"}
	switch {
	case f.IDs != nil:
		ids, err := jsonv2.Marshal(f.IDs)
		if err != nil {
			return nil, events.ErrID
		}
		s.where, s.args = " AND id IN (SELECT value FROM json_each(?))", append(s.args, string(ids))
		if f.Type != "" {
			s.where, s.args = s.where+" AND component IN (?, ?)", append(s.args, f.Type, f.Type+freeMark)
		}
	case f.Type != "":
		s.index, s.kinds = "credentials_component_id", []string{f.Type, f.Type + freeMark}
	case f.Policy != "":
		s.index = "credentials_policy_id"
	case len(f.Scope.Components) > 0 && len(f.Scope.Components) <= maxArms:
		s.index, s.kinds = "credentials_component_id", slices.Compact(slices.Sorted(slices.Values(f.Scope.Components)))
	case len(f.Scope.Workspaces) > 0 && len(f.Scope.Workspaces) <= maxArms:
		s.by = " AND workspace = ? AND workspace <> ''" // the second part permits the index, which has no others
		s.index, s.kinds = "credentials_workspace_id", slices.Compact(slices.Sorted(slices.Values(f.Scope.Workspaces)))
	case f.Description != "" || f.Sort == "description":
		s.index = "credentials_description"
	case f.Sort == "type":
		s.index = "credentials_component_id"
	case f.Sort == "throttle_policy":
		s.index = "credentials_policy_id"
	}
	if f.Description != "" {
		s.where, s.args = s.where+" AND instr(description, ?) > 0", append(s.args, fold(f.Description))
	}
	if f.Policy != "" {
		s.where, s.args = s.where+" AND policy = ?", append(s.args, f.Policy)
	}
	scope := within(f.Scope, "")
	s.where, s.args = s.where+scope.sql, append(s.args, scope.args...)
	by := map[string]string{"": "", "id": "", "type": "component", "description": "description", "throttle_policy": "policy"}
	column, known := by[f.Sort]
	if !known || f.After != "" && (column != "" || f.Desc) {
		return nil, ErrSearchSort
	}
	s.order, s.reverse = orderBy(column, ""), orderBy(column, " DESC")
	if f.Desc {
		s.order, s.reverse = s.reverse, s.order
	}
	return s, nil
}

// orderBy orders by a column, unless it is "", and then by id.
func orderBy(column, desc string) string {
	if column != "" {
		column += desc + ", "
	}
	return " ORDER BY " + column + "id" + desc
}

// narrow leaves out the arm of a type of which there is no credential: most types are either a
// component or free, and a merge reads ten times slower than one range of an index.
func (s *search) narrow(c *conn) error {
	if s.f.Type == "" || len(s.kinds) < 2 {
		return nil
	}
	var some []string
	err := c.query("SELECT DISTINCT component FROM counts WHERE tenant = ? AND workspace = '' AND component IN (?, ?) AND n > 0", func(row []driver.Value) error {
		some = append(some, str(row[0]))
		return nil
	}, s.f.Tenant, s.kinds[0], s.kinds[1])
	if len(some) == 1 {
		s.kinds = some
	}
	return err
}

// arms is an unordered SELECT of the rows.
func (s *search) arms(columns, beyond string, more ...driver.Value) (sql string, args []driver.Value) {
	arm := "SELECT " + columns + " FROM credentials INDEXED BY " + s.index + " WHERE tenant = ?"
	if len(s.kinds) == 0 {
		return arm + s.where + beyond, append(append(append(args, s.f.Tenant), s.args...), more...)
	}
	var arms []string
	for _, kind := range s.kinds {
		arms = append(arms, arm+s.by+s.where+beyond)
		args = append(append(append(args, s.f.Tenant, kind), s.args...), more...)
	}
	return strings.Join(arms, " UNION ALL "), args
}

// rows is a SELECT of the sequences, in an order. It reads only columns of the index.
func (s *search) rows(order string) (sql string, args []driver.Value) {
	columns := "seq, id"
	switch s.f.Sort {
	case "type":
		columns += ", component"
	case "description":
		columns += ", description"
	case "throttle_policy":
		columns += ", policy"
	}
	if s.f.After == "" {
		sql, args = s.arms(columns, "")
	} else {
		sql, args = s.arms(columns, " AND id > ?", s.f.After)
	}
	return "SELECT seq FROM (" + sql + ")" + order, args
}

// count is the total, from the counts if they cover the filter.
func (s *search) count(c *conn) (int64, error) {
	if s.f.IDs == nil && s.f.Description == "" && s.f.Policy == "" && !s.f.Scope.Narrow() {
		sql, args := "SELECT coalesce(sum(n), 0) FROM counts WHERE tenant = ? AND workspace = ''", []driver.Value{s.f.Tenant}
		if s.f.Type != "" {
			sql, args = sql+" AND component IN (?, ?)", append(args, s.f.Type, s.f.Type+freeMark)
		}
		return count(c, sql, args...)
	}
	sql, args := s.arms("1", "")
	return count(c, "SELECT count(*) FROM ("+sql+")", args...)
}
