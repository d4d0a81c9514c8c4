package cli_test

import (
	"bytes"
	"encoding/json"
	"runtime"
	"strings"
	"testing"

	"github.com/credstream/credstream/cmd/credstream/app"
	"github.com/credstream/credstream/cmd/credstream/cli"
)

func TestVersion(t *testing.T) {
	version := func(args ...string) string {
		t.Helper()
		var out, errOut bytes.Buffer
		if code := cli.Run(t.Context(), append([]string{"version"}, args...), func(string) string { return "" }, strings.NewReader(""), &out, &errOut); code != 0 {
			t.Fatalf("exit code %d: %s", code, errOut.String())
		}
		return out.String()
	}
	if got := version(); got != "credstream "+app.Version+"\n" {
		t.Errorf("%q", got)
	}
	var got struct {
		Version, Go, Platform string
		Modules               []json.RawMessage // none in a test program
	}
	if err := json.Unmarshal([]byte(version("--json")), &got); err != nil {
		t.Fatal(err)
	}
	if got.Version != app.Version || got.Go != runtime.Version() || got.Platform != runtime.GOOS+"/"+runtime.GOARCH {
		t.Errorf("%+v", got)
	}
	if got.Modules == nil {
		t.Error("the modules are null")
	}
}
