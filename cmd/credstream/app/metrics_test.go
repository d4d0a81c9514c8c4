package app

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	alertExpr = regexp.MustCompile(`(?m)^        expr: (.*)$`)
	selector  = regexp.MustCompile(`((?:credstream|process)_[a-z_]+)(\{[^}]*\})?`)
	matcher   = regexp.MustCompile(`(\w+)="([^"]*)"`)
)

// Every series that the dashboard and the alerts read exists from the start, before anything
// happened: a rate does not see a series begin with its first event.
func TestMetricsOfDashboardAndAlerts(t *testing.T) {
	t.Parallel()
	u := bring(t, t.TempDir(), func(c *Config) { c.DevTLS = true })
	files := filepath.Join("..", "..", "..", "deploy")
	rules, err := os.ReadFile(filepath.Join(files, "prometheus", "rules.yml"))
	must(t, err)
	var expressions []string
	for _, m := range alertExpr.FindAllSubmatch(rules, -1) {
		expressions = append(expressions, string(m[1]))
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	text, err := os.ReadFile(filepath.Join(files, "grafana", "credstream.json"))
	must(t, err)
	must(t, json.Unmarshal(text, &dashboard))
	for _, p := range dashboard.Panels {
		if len(p.Targets) == 0 {
			t.Errorf("the panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			expressions = append(expressions, target.Expr)
		}
	}
	get := &http.Client{Transport: &http.Transport{TLSClientConfig: u.front.tls.Config().Clone()}}
	get.Transport.(*http.Transport).TLSClientConfig.InsecureSkipVerify = true
	resp, err := get.Get("https://" + u.front.listener.Addr().String() + "/metrics")
	must(t, err)
	defer resp.Body.Close()
	exposed, err := io.ReadAll(resp.Body)
	must(t, err)
	lines := strings.Split(string(exposed), "\n")
	found := 0
	for _, expr := range expressions {
		for _, m := range selector.FindAllStringSubmatch(expr, -1) {
			found++
			if m[1] == "credstream_request_seconds_bucket" { // begins with the first request of a route
				m[1] = "credstream_requests_total"
			}
			exists := slices.ContainsFunc(lines, func(line string) bool {
				if name, _, _ := strings.Cut(line, " "); name != m[1] && !strings.HasPrefix(line, m[1]+"{") {
					return false
				}
				return !slices.ContainsFunc(matcher.FindAllStringSubmatch(m[2], -1), func(want []string) bool {
					return want[1] != "job" && !strings.Contains(line, want[0])
				})
			})
			if !exists {
				t.Errorf("%s%s of %q does not exist after a start", m[1], m[2], expr)
			}
		}
	}
	if found < 30 {
		t.Errorf("the test sees only %d selectors", found)
	}
}
