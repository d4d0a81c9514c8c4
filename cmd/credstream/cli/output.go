package cli

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"go.yaml.in/yaml/v3"
	"golang.org/x/term"
)

// The forms of --output.
const (
	formTable = "table" // columns that fit the terminal
	formWide  = "wide"  // all columns, with exact times
	formJSON  = "json"
	formYAML  = "yaml"
	formCSV   = "csv"
)

// chooseOutput checks the flags of the output. --json is short for --output json; for a.client.JSON,
// YAML is JSON in another notation.
func (a *invocation) chooseOutput() error {
	c := &a.client
	if c.JSON && c.Output != formTable && c.Output != "" {
		return errUsage.Withf("Give either --json or --output.")
	}
	switch c.Output {
	case "", formTable, formWide, formCSV:
	case formJSON, formYAML:
		c.JSON = true
	default:
		return errUsage.Withf("--output must be table, wide, json, yaml or csv.")
	}
	if c.JSON && (c.Columns != "" || c.NoHeaders) {
		return errUsage.Withf("--columns and --no-headers are for tables and CSV, not for JSON or YAML.")
	}
	return nil
}

// answer prints the result of a verb: v as JSON or YAML if requested, else the sentence.
func (a *invocation) answer(v any, sentence string, args ...any) error {
	if a.client.JSON {
		return a.json(v)
	}
	_, err := fmt.Fprintln(a.stdout, clean(fmt.Sprintf(sentence, args...)))
	return err
}

// json prints a document as JSON in one line, or as YAML.
func (a *invocation) json(v any) error {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err == nil && a.client.Output == formYAML {
		b, err = yamlOf(b)
		if a.documents++; a.documents > 1 {
			b = append([]byte("---\n"), b...)
		}
	}
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	_, err = fmt.Fprintf(a.stdout, "%s\n", bytes.TrimSuffix(b, []byte("\n")))
	return err
}

// yamlOf rewrites JSON as YAML in block style. Numbers and the order of members do not change.
func yamlOf(b []byte) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	var block func(n *yaml.Node)
	block = func(n *yaml.Node) {
		if n.Style = 0; len(n.Content) == 0 && n.Kind != yaml.ScalarNode {
			n.Style = yaml.FlowStyle // {} and []
		}
		for _, child := range n.Content {
			block(child)
		}
	}
	block(&doc)
	return yaml.Marshal(&doc)
}

// pairs prints names and values, one pair a line.
func (a *invocation) pairs(pairs [][2]string) error {
	if a.client.Output == formCSV {
		rows := make([][]string, len(pairs))
		for i, p := range pairs {
			rows[i] = []string{p[0], p[1]}
		}
		return a.list([]string{"NAME", "VALUE"}, rows)
	}
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

// timeForm is the form of exact times for people.
const timeForm = "2006-01-02 15:04:05Z"

// when formats a time; the zero time is a dash.
func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(timeForm)
}

// compact writes JSON in one line.
func compact(v jsontext.Value) string {
	v = v.Clone()
	if v.Compact() != nil {
		return "?"
	}
	return string(v)
}
