package web_test

import (
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/api/web"
)

func TestPlaceOf(t *testing.T) {
	const raw = `{"a": {"b/c": [1, {"d": 2}], "e": []}, "f": 3}`
	for pointer, want := range map[string]string{
		"": raw, "/a": `"a": {`, "/a/b~1c": `"b/c": [`, "/a/b~1c/0": "1,", "/a/b~1c/1": ", {", "/a/b~1c/1/d": `"d"`, "/f": `, "f"`,
		"/a/b~1c/2": "none", "/a/b~1c/x": "none", "/a/e/0": "none", "/f/0": "none", "/g": "none", "/a/b...": "none",
	} {
		at, found := web.PlaceOf(jsontext.Value(raw), jsontext.Pointer(pointer))
		if found != (want != "none") || found && !strings.HasPrefix(raw[at:], want) {
			t.Errorf("%s: %d, %v, want %s", pointer, at, found, want)
		}
	}
}

// A long name around many values cost minutes, since the decoder spelled the name for each.
func TestPlaceOfIsLinear(t *testing.T) {
	raw := `{"` + strings.Repeat("a", 400<<10) + `": [` + strings.Repeat("1,", 200<<10) + `1], "z": 1}`
	begin := time.Now()
	at, found := web.PlaceOf(jsontext.Value(raw), "/z")
	if took := time.Since(begin); !found || raw[at:] != `, "z": 1}` || took > 5*time.Second {
		t.Errorf("%d, %v after %v", at, found, took)
	}
}
