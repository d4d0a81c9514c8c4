package projections

import (
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// ErrCursorInvalid rejects a cursor that was not issued for this tenant,
// filter and sort.
var ErrCursorInvalid = fault.New(fault.Invalid, "cursor_invalid", "The cursor does not belong to this list. Start again at the first page.")

// ErrSortInvalid rejects an unsupported sort order.
var ErrSortInvalid = fault.New(fault.Invalid, "sort_invalid", `Credentials can be sorted by "name" or "created". A search for a part of the name supports one of them only.`)

// CredentialFilter selects and orders credentials. Empty fields select all.
type CredentialFilter struct {
	Tenant         string
	Component      string
	Workspace      string
	ThrottlePolicy string // id of a throttle policy
	Status         events.Status
	NameContains   string // case-insensitive
	Sort           string // "name" (the default; case-insensitive, then by age) or "created"
	Desc           bool
	Turn           bool   // reverse the order by age within one name; only with sort by name, and not with NameContains
	Limit          int    // 1 to 1000; 0 means 50
	After          string // cursor of the previous page, or ""
	Scope          events.Scope
}

// bounds limits a search by part of a name. A page scans at most walk
// rows. It uses the trigram index only if that yields at most
// candidates rows, which are then all fetched and sorted.
type bounds struct{ walk, candidates int }

// Credentials returns a page of credentials. next is the cursor of the next page,
// "" at the end. With NameContains a page may be short or empty and still
// have a next one, because a page scans a bounded number of rows. It returns
// ErrCursorInvalid for a cursor of another tenant, filter or sort (the page
// size may change), and ErrSortInvalid.
func (v *Views) Credentials(ctx context.Context, f CredentialFilter) (page []Credential, next string, err error) {
	l, err := f.listing(v.bounds)
	if err != nil {
		return nil, "", err
	}
	read, fetch := v.read, l.page
	if f.Turn {
		read, fetch = v.snapshot, l.turned
	}
	err = read(ctx, func(c *conn) error {
		page, next, err = fetch(c)
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("listing credentials: %w", err)
	}
	return page, next, nil
}

// listing is a validated filter, as SQL.
type listing struct {
	f        CredentialFilter
	bounds   bounds
	term     string // folded
	limit    int
	index    string
	statuses []events.Status // each is one arm of the query
	order    string
	after    *rowPosition
	scope    condition
	// The comparison operators for: after, before, and not after.
	beyond, short, within string
}

// rowPosition is a row's position in the order.
type rowPosition struct {
	name string // collated; "" when sorted by creation
	seq  uint64
}

func (f CredentialFilter) listing(b bounds) (*listing, error) {
	if f.Sort == "" {
		f.Sort = "name"
	}
	l := &listing{f: f, bounds: b, term: fold(f.NameContains), limit: bounded(f.Limit), statuses: statuses, beyond: ">", short: "<", within: "<="}
	l.scope = within(f.Scope, "")
	l.index = "credentials_"
	switch {
	case f.ThrottlePolicy != "":
		l.index += "policy_"
	case f.Workspace != "":
		l.index += "workspace_"
	case f.Component != "":
		l.index += "component_"
	}
	l.index += f.Sort
	if f.Status != "" {
		l.statuses = []events.Status{f.Status}
	}
	desc := ""
	if f.Desc {
		desc, l.beyond, l.short, l.within = " DESC", "<", ">", ">="
	}
	switch f.Sort {
	case "name":
		l.order = " ORDER BY name" + desc + ", seq" + desc
	case "created":
		l.order = " ORDER BY seq" + desc
	default:
		return nil, ErrSortInvalid
	}
	if f.Turn && (f.Sort != "name" || f.NameContains != "") {
		return nil, ErrSortInvalid
	}
	if f.After != "" {
		p, err := l.parse(f.After)
		if err != nil {
			return nil, err
		}
		l.after = &p
	}
	return l, nil
}

// filter is the WHERE clause of the rows; an empty status selects all. The clause
// "workspace (or policy) is not empty" makes SQLite use the partial index of rows that
// have one.
func (l *listing) filter(status events.Status) (where string, args []driver.Value) {
	where, args = l.narrowed(" WHERE tenant = ?", []driver.Value{l.f.Tenant}, status)
	if l.f.Workspace != "" {
		where, args = where+" AND workspace = ? AND workspace <> ''", append(args, l.f.Workspace)
	}
	if l.f.ThrottlePolicy != "" {
		where, args = where+" AND policy = ? AND policy <> ''", append(args, l.f.ThrottlePolicy)
	}
	return where + l.scope.sql, append(args, l.scope.args...)
}

// counted is the WHERE clause of the counts, which are not kept by policy.
func (l *listing) counted() (where string, args []driver.Value) {
	return l.narrowed(" WHERE tenant = ? AND workspace = ?", []driver.Value{l.f.Tenant, l.f.Workspace}, l.f.Status)
}

// narrowed adds component and status to a WHERE clause.
func (l *listing) narrowed(where string, args []driver.Value, status events.Status) (string, []driver.Value) {
	if l.f.Component != "" {
		where, args = where+" AND component = ?", append(args, l.f.Component)
	}
	if status != "" {
		where, args = where+" AND status = ?", append(args, string(status))
	}
	return where, args
}

// condition is a piece of a WHERE clause with its arguments.
type condition struct {
	sql  string
	args []driver.Value
}

// between returns, as alternatives, the conditions for a row to come after one position and not
// after the other; nil means from the start or to the end. Each alternative is
// one index range. A comparison of (name, seq) with a pair would be equivalent,
// but SQLite then uses only the name and scans all rows
// with that name, which may be every credential.
func (l *listing) between(after, end *rowPosition) []condition {
	var all []condition
	is := func(sql string, args ...driver.Value) { all = append(all, condition{sql, args}) }
	seq := func(p *rowPosition) driver.Value { return int64(p.seq) }
	switch {
	case after == nil && end == nil:
		is("")
	case l.f.Sort == "created" && end == nil:
		is(" AND seq "+l.beyond+" ?", seq(after))
	case l.f.Sort == "created" && after == nil:
		is(" AND seq "+l.within+" ?", seq(end))
	case l.f.Sort == "created":
		is(" AND seq "+l.beyond+" ? AND seq "+l.within+" ?", seq(after), seq(end))
	case end == nil:
		is(" AND name = ? AND seq "+l.beyond+" ?", after.name, seq(after))
		is(" AND name "+l.beyond+" ?", after.name)
	case after == nil:
		is(" AND name "+l.short+" ?", end.name)
		is(" AND name = ? AND seq "+l.within+" ?", end.name, seq(end))
	case after.name == end.name:
		is(" AND name = ? AND seq "+l.beyond+" ? AND seq "+l.within+" ?", after.name, seq(after), seq(end))
	default:
		is(" AND name = ? AND seq "+l.beyond+" ?", after.name, seq(after))
		is(" AND name "+l.beyond+" ? AND name "+l.short+" ?", after.name, end.name)
		is(" AND name = ? AND seq "+l.within+" ?", end.name, seq(end))
	}
	return all
}

// query is a SELECT of the rows after the cursor, up to and including end, in
// order: a merge of index ranges without sorting. columns
// begins with "name, seq". The statement lacks its LIMIT.
func (l *listing) query(columns string, end *rowPosition, contains bool) (sql string, args []driver.Value) {
	sql, args = l.merge(columns, l.between(l.after, end), contains)
	return sql + l.order, args
}

// merge is an unordered SELECT of the rows of each range.
func (l *listing) merge(columns string, ranges []condition, contains bool) (sql string, args []driver.Value) {
	var arms []string
	for _, s := range l.statuses {
		for _, c := range ranges {
			where, a := l.filter(s)
			arm := "SELECT " + columns + " FROM credentials INDEXED BY " + l.index + where + c.sql
			args = slices.Concat(args, a, c.args)
			if contains {
				arm += " AND instr(name, ?) > 0"
				args = append(args, l.term)
			}
			arms = append(arms, arm)
		}
	}
	return strings.Join(arms, " UNION ALL "), args
}

// turned fetches a page on which rows of one name are in the reverse order of age
// than in the index. It reads in index order and reverses the rows of each name;
// for the name at the cursor and the one at the end of the page, which
// may have more rows, it reads from the other end.
func (l *listing) turned(c *conn) (page []Credential, next string, err error) {
	rest, beyond := l.limit+1, condition{}
	if p := l.after; p != nil {
		if page, err = l.named(c, p, rest); err != nil {
			return nil, "", err
		}
		beyond = condition{" AND name " + l.beyond + " ?", []driver.Value{p.name}}
	}
	if rest -= len(page); rest > 0 {
		sql, args := l.merge("name, seq, doc", []condition{beyond}, false)
		rows, err := fetch(c, sql+l.order, args, rest)
		if err != nil {
			return nil, "", err
		}
		full := len(rows) == rest
		for len(rows) > 0 {
			name := collated(fold(rows[0].Name))
			n := slices.IndexFunc(rows, func(k Credential) bool { return fold(k.Name) != uncollated(name) })
			if n < 0 {
				n = len(rows)
			}
			same := rows[:n]
			if rows = rows[n:]; len(rows) == 0 && full {
				if same, err = l.named(c, &rowPosition{name: name}, n); err != nil {
					return nil, "", err
				}
			} else {
				slices.Reverse(same)
			}
			page = append(page, same...)
		}
	}
	page, next = l.cut(page)
	return page, next, nil
}

// named fetches up to limit rows of one name in the order of turned: those after a
// position, or from the first if its seq is 0.
func (l *listing) named(c *conn, after *rowPosition, limit int) ([]Credential, error) {
	is := condition{" AND name = ?", []driver.Value{after.name}}
	if after.seq != 0 {
		is = condition{is.sql + " AND seq " + l.short + " ?", append(is.args, int64(after.seq))}
	}
	order := " ORDER BY seq DESC"
	if l.f.Desc {
		order = " ORDER BY seq"
	}
	sql, args := l.merge("name, seq, doc", []condition{is}, false)
	return fetch(c, sql+order, args, limit)
}

func (l *listing) page(c *conn) ([]Credential, string, error) {
	if l.term == "" {
		return l.read(c, nil, false)
	}
	rows, err := l.total(c)
	if err != nil {
		return nil, "", err
	}
	if rows <= int64(l.bounds.walk) {
		return l.read(c, nil, true)
	}
	if q := match(l.f.Tenant, l.term); q != "" {
		n, err := count(c, candidateCount, q, int64(l.bounds.candidates)+1)
		if err != nil {
			return nil, "", err
		}
		if n <= int64(l.bounds.candidates) {
			return l.search(c, q)
		}
	}
	return l.walk(c)
}

const (
	candidateCount = "SELECT count(*) FROM (SELECT 1 FROM names WHERE names MATCH ? LIMIT ?)"
	candidates     = "SELECT name, seq, doc FROM (SELECT rowid AS candidate FROM names WHERE names MATCH ?) CROSS JOIN credentials ON seq = candidate"
)

// search fetches and sorts the matches of the trigram index.
func (l *listing) search(c *conn, query string) ([]Credential, string, error) {
	where, args := l.filter(l.f.Status)
	args = slices.Concat([]driver.Value{query}, args, []driver.Value{l.term})
	where += " AND instr(name, ?) > 0"
	switch p := l.after; {
	case p == nil:
	case l.f.Sort == "name":
		where += " AND (name, seq) " + l.beyond + " (?, ?)"
		args = append(args, p.name, int64(p.seq))
	default:
		where += " AND seq " + l.beyond + " ?"
		args = append(args, int64(p.seq))
	}
	return l.rows(c, nil, candidates+where+l.order, args)
}

// walk scans a bounded number of rows in order and keeps those that contain the term.
func (l *listing) walk(c *conn) ([]Credential, string, error) {
	var end *rowPosition // the last row scanned, when there are more
	sql, args := l.query("name, seq", nil, false)
	err := c.query(sql+" LIMIT 1 OFFSET ?", func(row []driver.Value) error {
		end = &rowPosition{str(row[0]), uint64(num(row[1]))}
		return nil
	}, append(args, int64(l.bounds.walk)-1)...)
	if err != nil {
		return nil, "", err
	}
	return l.read(c, end, true)
}

// read fetches a page in index order, up to end if it is set.
func (l *listing) read(c *conn, end *rowPosition, contains bool) ([]Credential, string, error) {
	sql, args := l.query("name, seq, doc", end, contains)
	return l.rows(c, end, sql, args)
}

// rows runs a query of name, seq and doc. The page ends at its limit, or at
// end, the last row scanned, if it is set.
func (l *listing) rows(c *conn, end *rowPosition, sql string, args []driver.Value) (page []Credential, next string, err error) {
	page, err = fetch(c, sql, args, l.limit+1)
	if err != nil {
		return nil, "", err
	}
	if page, next = l.cut(page); next == "" && end != nil {
		next = l.cursor(*end)
	}
	return page, next, nil
}

// cut removes the extra row that was read to detect a next page, and
// returns the cursor of that page.
func (l *listing) cut(page []Credential) ([]Credential, string) {
	if len(page) <= l.limit {
		return page, ""
	}
	last := page[l.limit-1]
	return page[:l.limit], l.cursor(rowPosition{collated(fold(last.Name)), last.CreatedSeq})
}

// fetch runs a query of name, seq and doc for up to limit rows.
func fetch(c *conn, sql string, args []driver.Value, limit int) (list []Credential, err error) {
	err = c.query(sql+" LIMIT ?", func(row []driver.Value) error {
		k, err := c.recent.scan(row[2])
		if err != nil {
			return err
		}
		list = append(list, *k)
		return nil
	}, append(args, int64(limit))...)
	return list, err
}

// total is the number of rows of the filter, from the counts; of a policy it is the number
// of those that may have it.
func (l *listing) total(c *conn) (int64, error) {
	where, args := l.counted()
	return count(c, "SELECT coalesce(sum(n), 0) FROM counts"+where, args...)
}

func count(c *conn, sql string, args ...driver.Value) (n int64, err error) {
	err = c.query(sql, func(row []driver.Value) error {
		n = num(row[0])
		return nil
	}, args...)
	return n, err
}

// cursor encodes a position bound to the tenant, filter and sort: sequence, name and
// a checksum over all of it. The checksum is not a secret: a forged one
// only names a position in a list that the caller may read anyway.
func (l *listing) cursor(p rowPosition) string {
	if l.f.Sort != "name" {
		p.name = ""
	}
	raw := append(binary.BigEndian.AppendUint64(nil, p.seq), uncollated(p.name)...)
	return base64.RawURLEncoding.EncodeToString(append(l.checksum(raw), raw...))
}

func (l *listing) parse(cursor string) (rowPosition, error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(raw) < 16 || string(l.checksum(raw[8:])) != string(raw[:8]) {
		return rowPosition{}, ErrCursorInvalid
	}
	p := rowPosition{seq: binary.BigEndian.Uint64(raw[8:])}
	if l.f.Sort == "name" {
		p.name = collated(string(raw[16:]))
	}
	return p, nil
}

func (l *listing) checksum(raw []byte) []byte {
	f := l.f
	sum := sha256.Sum256(events.LengthPrefixed("credstream/cursor/1", f.Tenant, f.Component, f.Workspace, f.ThrottlePolicy, string(f.Status), l.term, f.Sort, fmt.Sprint(f.Desc, f.Turn), string(raw)))
	return sum[:8]
}

// Count is a number of credentials.
type Count struct {
	Component string
	Type      string // free, in place of the component
	Status    events.Status
	N         int
}

// CredentialCounts counts a tenant's credentials, ordered by component and status.
// Of the filter, only Component, Workspace, Status and Scope apply.
func (v *Views) CredentialCounts(ctx context.Context, tenant string, f CredentialFilter) (counts []Count, err error) {
	f = CredentialFilter{Tenant: tenant, Component: f.Component, Workspace: f.Workspace, Status: f.Status, Scope: f.Scope}
	l, err := f.listing(v.bounds)
	if err != nil {
		return nil, err
	}
	where, args := l.counted()
	rows := "SELECT component, status, n FROM counts" + where
	if l.scope.sql != "" { // the counts are not kept by scope
		where, args = l.filter(f.Status)
		rows = "SELECT component, status, count(*) FROM credentials" + where + " GROUP BY component, status"
	}
	err = v.read(ctx, func(c *conn) error {
		return c.query(rows+" ORDER BY component, status", func(row []driver.Value) error {
			n := Count{Component: str(row[0]), Status: events.Status(str(row[1])), N: int(num(row[2]))}
			if name, free := strings.CutSuffix(n.Component, freeMark); free {
				n.Component, n.Type = "", name
			}
			counts = append(counts, n)
			return nil
		}, args...)
	})
	if err != nil {
		return nil, fmt.Errorf("counting credentials: %w", err)
	}
	return counts, nil
}

// match is the query for names of the tenant that may contain the folded term,
// "" when the term is too short for the index.
func match(tenant, term string) string {
	runes := []rune(term)
	if len(runes) < 3 {
		return ""
	}
	var q strings.Builder
	q.WriteString(`"` + tag(tenant) + `"`)
	for i := range min(len(runes)-2, 16) { // 16 trigrams are selective enough
		q.WriteString(` AND "` + strings.ReplaceAll(string(runes[i:i+3]), `"`, `""`) + `"`)
	}
	return q.String()
}

// bounded is the effective page size: 50 by default, 1000 at most.
func bounded(limit int) int {
	switch {
	case limit <= 0:
		return 50
	case limit > 1000:
		return 1000
	}
	return limit
}
