package cli_test

import (
	"strings"
	"testing"
)

// A file that is not JSON in UTF-8 is refused with a sentence that says where, before anything is sent.
func TestFilesThatAreNotJSON(t *testing.T) {
	for name, row := range map[string]struct{ content, want string }{
		"malformed": {"{\n  \"title\": \"Ä\", canary}", "malformed at line 2, column 17"},
		"truncated": {"{\"title\":", "malformed at line 1"},
		"mark":      {"\xef\xbb\xbf{}", "byte order mark"},
		"UTF-16 LE": {"\xff\xfe{\x00}\x00", "UTF-16"},
		"UTF-16 BE": {"\x00{\x00}", "UTF-16"},
		"Latin-1":   {"{\"title\":\n\"\xe4\"}", "line 2, column 2"},
		"empty":     {" \n", "is empty"},
		"two":       {"{}\n{}", "malformed at line 2, column 1"},
	} {
		t.Run(name, func(t *testing.T) {
			server, c := newCLI(t, nil)
			file := writeFile(t, "component.json", row.content, 0o600)
			for _, args := range [][]string{
				{"component", "register", "--file", file},
				{"credential", "create", "--component", "c", "--name", "n", "--keys-file", file},
			} {
				code := c.run(t.Context(), args...)
				if said := c.errOut.String(); code == 0 || !strings.Contains(said, row.want) || !strings.Contains(said, "file_not_json") ||
					strings.Contains(said, "canary") || len(server.asked) > 0 {
					t.Errorf("%v: %d %s, %q", args[:2], code, said, server.asked)
				}
			}
		})
	}
}

// Presets are registered under their names, and sent as they are printed.
func TestPresets(t *testing.T) {
	server, c := newCLI(t, nil)
	if code := c.run(t.Context(), "component", "presets"); code != 0 || len(server.asked) > 0 || !strings.Contains(c.out.String(), "slack") || strings.Count(c.out.String(), "https://") < 25 {
		t.Errorf("%d %s%s", code, c.out.String(), c.errOut.String())
	}
	c.out.Reset()
	if code := c.run(t.Context(), "component", "presets", "slack"); code != 0 || !strings.Contains(c.out.String(), "https://slack.com/api/auth.test") {
		t.Errorf("%d %s", code, c.out.String())
	}
	for _, args := range [][]string{{"presets", "nothing"}, {"register", "--preset", "nothing"}} {
		if code := c.run(t.Context(), append([]string{"component"}, args...)...); code == 0 || !strings.Contains(c.errOut.String(), "component_preset_not_found") || len(server.asked) > 0 {
			t.Errorf("%v: %d %s", args, code, c.errOut.String())
		}
	}
	for _, args := range [][]string{{}, {"--file", "f", "--preset", "slack"}} {
		if code := c.run(t.Context(), append([]string{"component", "register"}, args...)...); code == 0 || len(server.asked) > 0 {
			t.Errorf("%v: %d, %q", args, code, server.asked)
		}
	}
	c.run(t.Context(), "component", "register", "--preset", "slack")
	if len(server.asked) != 1 || !strings.Contains(server.asked[0], "component.register") {
		t.Errorf("asked for %q", server.asked)
	}
}
