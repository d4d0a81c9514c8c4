package seal_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/seal"
)

func TestFields(t *testing.T) {
	input := []byte(` { "user" : "l\u00f6rd\n", "port": 1e3, "tls":true , "oauth":{"a": [ 1, "x" ]}, "none":null, "list":[], "":`)
	input = append(input[:len(input)-len(`, "":`)], '}')
	f, err := seal.ParseFields(input)
	if err != nil {
		t.Fatal(err)
	}
	for i := range input { // the caller may wipe what it gave
		input[i] = 0
	}
	if diff := cmp.Diff([]string{"list", "none", "oauth", "port", "tls", "user"}, f.Names()); diff != "" {
		t.Errorf("Names (-want +got):\n%s", diff)
	}
	for _, c := range []struct {
		name, raw, text string
		isText          bool
	}{
		{"user", `"l\u00f6rd\n"`, "lörd\n", true},
		{"port", "1e3", "1e3", true},
		{"tls", "true", "true", true},
		{"oauth", `{"a": [ 1, "x" ]}`, "", false},
		{"none", "null", "", false},
		{"list", "[]", "", false},
	} {
		raw, ok := f.Get(c.name)
		if got := string(raw.Reveal()); !ok || got != c.raw {
			t.Errorf("Get(%s) = %s, %v", c.name, got, ok)
		}
		text, ok := f.Text(c.name)
		if got := string(text.Reveal()); ok != c.isText || got != c.text {
			t.Errorf("Text(%s) = %q, %v", c.name, got, ok)
		}
	}
	if _, ok := f.Get("absent"); ok {
		t.Error("Get found what is not there")
	}
	if _, ok := f.Text("absent"); ok {
		t.Error("Text found what is not there")
	}
	want := `{"list":[],"none":null,"oauth":{"a": [ 1, "x" ]},"port":1e3,"tls":true,"user":"l\u00f6rd\n"}`
	if got := string(f.Marshal().Reveal()); got != want {
		t.Errorf("Marshal = %s\nwant      %s", got, want)
	}
	if got := string(seal.Fields{}.Marshal().Reveal()); got != "{}" || len(seal.Fields{}.Names()) != 0 {
		t.Errorf("the zero Fields is %s", got)
	}
}

func TestParseFieldsRefuses(t *testing.T) {
	nested := func(depth int) string { // the object is the first level
		return `{"a":` + strings.Repeat("[", depth-1) + strings.Repeat("]", depth-1) + "}"
	}
	sized := func(n int) string { return `{"a":"` + strings.Repeat("x", n-len(`{"a":""}`)) + `"}` }
	for _, c := range []struct {
		name, in string
		want     error
	}{
		{"empty", "", seal.ErrKeysMalformed},
		{"null", "null", seal.ErrKeysMalformed},
		{"array", "[]", seal.ErrKeysMalformed},
		{"string", `"` + canary + `"`, seal.ErrKeysMalformed},
		{"two objects", "{}{}", seal.ErrKeysMalformed},
		{"object and more", `{} "` + canary + `"`, seal.ErrKeysMalformed},
		{"open end", `{"a":1`, seal.ErrKeysMalformed},
		{"trailing comma", `{"a":1,}`, seal.ErrKeysMalformed},
		{"comment", `{"a":1} // ` + canary, seal.ErrKeysMalformed},
		{"byte order mark", "\ufeff{}", seal.ErrKeysMalformed},
		{"bare word", `{"a":` + canary + `}`, seal.ErrKeysMalformed},
		{"name twice", `{"` + canary + `":1,"` + canary + `":2}`, seal.ErrKeysMalformed},
		{"name twice within", `{"a":{"b":1,"b":2}}`, seal.ErrKeysMalformed},
		{"name twice by escape", `{"a":1,"\u0061":2}`, seal.ErrKeysMalformed},
		{"empty name", `{"":1}`, seal.ErrKeysMalformed},
		{"control in a name", `{"a\n":1}`, seal.ErrKeysMalformed},
		{"NUL in a value", `{"a":"x\u0000"}`, seal.ErrKeysMalformed},
		{"NUL within", `{"a":[{"b":"\u0000"}]}`, seal.ErrKeysMalformed},
		{"NUL in a name within", `{"a":{"\u0000":1}}`, seal.ErrKeysMalformed},
		{"NUL byte", "{\"a\":\"\x00\"}", seal.ErrKeysMalformed},
		{"invalid UTF-8", "{\"a\":\"\xff\"}", seal.ErrKeysMalformed},
		{"lone surrogate", `{"a":"\ud800"}`, seal.ErrKeysMalformed},
		{"depth at the limit", nested(32), nil},
		{"too deep", nested(33), seal.ErrKeysTooLarge},
		{"depth bomb", `{"a":` + strings.Repeat("[", 60000), seal.ErrKeysTooLarge},
		{"size at the limit", sized(64 << 10), nil},
		{"too large", sized(64<<10 + 1), seal.ErrKeysTooLarge},
		{"tabs and line ends", `{"a":"\r\n\t"}`, nil},
		{"empty object", `{}`, nil},
	} {
		_, err := seal.ParseFields([]byte(c.in))
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if found := leaks(fmt.Sprintf("%v %+v", err, err)); len(found) > 0 {
			t.Errorf("%s: the error quotes the input: %v", c.name, err)
		}
	}
}
