package cli

import (
	"encoding/csv"
	"fmt"
	"image/color"
	"slices"
	"strconv"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
)

// dropOrder lists the columns that a table on a narrow terminal omits, first those that are omitted
// first. All other columns, such as ids and states, are never omitted.
var dropOrder = []string{
	"LATENCY", "ATTEMPTS", "HOW", "VIA", "ISSUED", "CERTIFICATE", "ADDRESSES", "BOUND TO", "PERMISSIONS", "DESCRIPTION", "THROTTLE POLICY",
	"SCOPE", "TYPES", "INDEX", "SERVICE TYPE", "SECRET", "API KEY", "LEASE", "REVISION", "STEPS", "VISIBLE TO", "KMS KEY", "VERSION", "ANSWER",
	"LAST ATTEMPT", "ACTOR", "CALLER", "SUBJECT", "QUEUE", "TENANTS", "TITLE", "COMPONENTS", "CREDENTIALS", "UPDATED", "LAST USED", "EXPIRES",
	"UNTIL", "CLIENT ID", "REASON", "FLOW", "COMPONENT", "TYPE", "ROLE", "URL", "CODE",
}

// timeColumns have times, which a table on a terminal shows relative to now.
var timeColumns = []string{"TIME", "SINCE", "AT", "UPDATED", "ISSUED", "EXPIRES", "UNTIL", "LAST USED", "LAST ATTEMPT"}

// statusColumns are coloured on a terminal.
var statusColumns = []string{"STATUS", "STATE"}

// columnGap is the number of spaces between two columns.
const columnGap = 2

// list prints rows below headers. A table on a terminal has only the columns that fit into its
// width; if the others do not fit either, each record is a block of lines with all columns. So no
// value is cut or wrapped. Elsewhere a table has all columns, and exact times.
func (a *invocation) list(headers []string, rows [][]string) error {
	for _, row := range rows {
		for i := range row {
			row[i] = clean(row[i])
		}
	}
	headers, rows, err := a.selectColumns(headers, rows)
	if err != nil {
		return err
	}
	if a.client.Output == formCSV {
		return a.csv(headers, rows)
	}
	width := terminalWidth(a.stdout)
	if a.client.Output == formWide {
		return a.table(headers, rows, width > 0)
	}
	if width == 0 {
		return a.table(headers, rows, false)
	}
	relativeTimes(headers, rows, time.Now())
	fitHeaders, fitRows := headers, rows
	if a.client.Columns == "" {
		for _, name := range dropOrder {
			if a.tableWidth(fitHeaders, fitRows) <= width {
				break
			}
			fitHeaders, fitRows = withoutColumn(fitHeaders, fitRows, name)
		}
	}
	if a.tableWidth(fitHeaders, fitRows) <= width {
		return a.table(fitHeaders, fitRows, true)
	}
	return a.blocks(headers, rows)
}

// selectColumns returns the columns of --columns, in its order; all when absent.
func (a *invocation) selectColumns(headers []string, rows [][]string) ([]string, [][]string, error) {
	if a.client.Columns == "" {
		return headers, rows, nil
	}
	var at []int
	var names []string
	for name := range strings.SplitSeq(a.client.Columns, ",") {
		name = strings.NewReplacer("-", " ", "_", " ").Replace(strings.ToUpper(strings.TrimSpace(name)))
		i := slices.Index(headers, name)
		if i < 0 {
			known := strings.ReplaceAll(strings.ToLower(strings.Join(headers, ", ")), " ", "-")
			return nil, nil, errUsage.Withf("--columns: the columns of this list are %s.", strings.ReplaceAll(known, ",-", ", "))
		}
		at, names = append(at, i), append(names, name)
	}
	selected := make([][]string, len(rows))
	for r, row := range rows {
		for _, i := range at {
			selected[r] = append(selected[r], row[i])
		}
	}
	return names, selected, nil
}

// withoutColumn returns the columns without the named one. The first column always remains.
func withoutColumn(headers []string, rows [][]string, name string) ([]string, [][]string) {
	at := slices.Index(headers, name)
	if at <= 0 {
		return headers, rows
	}
	fewer := make([][]string, len(rows))
	for r, row := range rows {
		fewer[r] = slices.Delete(slices.Clone(row), at, at+1)
	}
	return slices.Delete(slices.Clone(headers), at, at+1), fewer
}

// columnWidths returns the width of each column in terminal cells.
func (a *invocation) columnWidths(headers []string, rows [][]string) []int {
	widths := make([]int, len(headers))
	if !a.client.NoHeaders {
		for i, h := range headers {
			widths[i] = lipgloss.Width(h)
		}
	}
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], lipgloss.Width(cell))
		}
	}
	return widths
}

func (a *invocation) tableWidth(headers []string, rows [][]string) int {
	width := -columnGap
	for _, w := range a.columnWidths(headers, rows) {
		width += w + columnGap
	}
	return width
}

// table prints one line per row.
func (a *invocation) table(headers []string, rows [][]string, terminal bool) error {
	widths, paint := a.columnWidths(headers, rows), a.painter(terminal)
	line := func(row []string, style func(i int, cell string) string) error {
		var b strings.Builder
		for i, cell := range row {
			b.WriteString(style(i, cell))
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-lipgloss.Width(cell)+columnGap))
			}
		}
		_, err := fmt.Fprintln(a.stdout, b.String())
		return err
	}
	if !a.client.NoHeaders {
		if err := line(headers, func(_ int, cell string) string { return cell }); err != nil {
			return err
		}
	}
	for _, row := range rows {
		if err := line(row, func(i int, cell string) string { return paint(headers[i], cell) }); err != nil {
			return err
		}
	}
	return nil
}

// blocks prints each row as lines with the name and the value of a column, and a blank line
// between rows.
func (a *invocation) blocks(headers []string, rows [][]string) error {
	label, paint := 0, a.painter(true)
	for _, h := range headers {
		label = max(label, lipgloss.Width(h))
	}
	for r, row := range rows {
		if r > 0 {
			if _, err := fmt.Fprintln(a.stdout); err != nil {
				return err
			}
		}
		for i, cell := range row {
			if _, err := fmt.Fprintf(a.stdout, "%-*s  %s\n", label, strings.ToLower(headers[i]), paint(headers[i], cell)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *invocation) csv(headers []string, rows [][]string) error {
	w := csv.NewWriter(a.stdout)
	if !a.client.NoHeaders {
		names := make([]string, len(headers))
		for i, h := range headers {
			names[i] = strings.ReplaceAll(strings.ToLower(h), " ", "_")
		}
		rows = append([][]string{names}, rows...)
	}
	return w.WriteAll(rows)
}

// painter returns a function that colours the cells of status columns, on a terminal and unless
// NO_COLOR is set (https://no-color.org).
func (a *invocation) painter(terminal bool) func(header, cell string) string {
	if !terminal || a.getenv("NO_COLOR") != "" || a.getenv("TERM") == "dumb" {
		return func(_, cell string) string { return cell }
	}
	return func(header, cell string) string {
		if c := statusColor(cell); c != nil && slices.Contains(statusColumns, header) {
			return lipgloss.NewStyle().Foreground(c).Render(cell)
		}
		return cell
	}
}

// statusColor returns the colour of a status: red for what needs attention, green for what
// works, nil for all others.
func statusColor(status string) color.Color {
	words := strings.FieldsFunc(status, func(r rune) bool { return r == ' ' || r == ',' || r == ':' })
	for _, bad := range []string{"failed", "reauthorization_required", "revoked", "expired", "disabled", "broken", "dead", "missing", "unusable"} {
		if slices.Contains(words, bad) {
			return lipgloss.Red
		}
	}
	for _, good := range []string{"verified", "active", "enabled", "delivered"} {
		if slices.Contains(words, good) {
			return lipgloss.Green
		}
	}
	return nil
}

// relativeTimes replaces the exact times in rows.
func relativeTimes(headers []string, rows [][]string, now time.Time) {
	for i, h := range headers {
		if !slices.Contains(timeColumns, h) {
			continue
		}
		for _, row := range rows {
			if t, err := time.Parse(timeForm, row[i]); err == nil {
				row[i] = relative(t, now)
			}
		}
	}
}

// relative formats a time relative to now: "5m ago", "in 3d".
func relative(t, now time.Time) string {
	d, form := now.Sub(t), "%s ago"
	if d < 0 {
		d, form = -d, "in %s"
	}
	for _, unit := range []struct {
		length time.Duration
		name   string
		until  time.Duration // from this duration on, the next unit
	}{
		{time.Second, "s", 2 * time.Minute},
		{time.Minute, "m", 2 * time.Hour},
		{time.Hour, "h", 48 * time.Hour},
		{24 * time.Hour, "d", 1 << 62},
	} {
		if d < unit.until {
			return fmt.Sprintf(form, strconv.Itoa(int(d/unit.length))+unit.name)
		}
	}
	return ""
}
