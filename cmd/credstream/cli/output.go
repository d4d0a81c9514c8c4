package cli

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"charm.land/lipgloss/v2"
	"charm.land/lipgloss/v2/table"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/term"
)

// answer prints the result of a verb: v as JSON with --json, else the
// sentence.
func (a *invocation) answer(v any, sentence string, args ...any) error {
	if a.client.JSON {
		return a.json(v)
	}
	_, err := fmt.Fprintln(a.stdout, clean(fmt.Sprintf(sentence, args...)))
	return err
}

func (a *invocation) json(v any) error {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	_, err = fmt.Fprintf(a.stdout, "%s\n", b)
	return err
}

// list prints rows below headers: as a table on a terminal, else in columns
// padded with spaces.
func (a *invocation) list(headers []string, rows [][]string) error {
	for _, row := range rows {
		for i := range row {
			row[i] = clean(row[i])
		}
	}
	if width := terminalWidth(a.stdout); width > 0 {
		t := table.New().Headers(headers...).Rows(rows...).Border(lipgloss.NormalBorder()).
			BorderLeft(false).BorderRight(false).BorderTop(false).BorderBottom(false).BorderColumn(false).
			StyleFunc(func(row, _ int) lipgloss.Style {
				style := lipgloss.NewStyle().PaddingRight(2)
				if row == table.HeaderRow {
					return style.Bold(true)
				}
				return style
			})
		out := t.String()
		if lipgloss.Width(out) > width {
			out = t.Width(width).String()
		}
		_, err := lipgloss.Fprintln(a.stdout, out)
		return err
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{headers}, rows...) {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// pairs prints names and values, one pair a line.
func (a *invocation) pairs(pairs [][2]string) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, p := range pairs {
		fmt.Fprintf(w, "%s\t%s\n", clean(p[0]), clean(p[1]))
	}
	return w.Flush()
}

// terminalWidth is the number of columns when w is a terminal, else 0.
func terminalWidth(w any) int {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width < 20 {
		return 80
	}
	return width
}

// nonEmpty leaves out the pairs without a value.
func nonEmpty(pairs [][2]string) [][2]string {
	return slices.DeleteFunc(pairs, func(p [2]string) bool { return p[1] == "" })
}

// when formats a time; the zero time is a dash.
func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

// compact writes JSON in one line.
func compact(v jsontext.Value) string {
	v = v.Clone()
	if v.Compact() != nil {
		return "?"
	}
	return string(v)
}
