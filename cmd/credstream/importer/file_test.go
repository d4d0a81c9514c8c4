package importer_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/credstream/credstream/cmd/credstream/importer"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/transfer"
)

const exportID = "0198c1f0-0000-7000-8000-000000000000"

var (
	signer  = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	another = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, ed25519.SeedSize))
)

func publicOf(key ed25519.PrivateKey) string {
	return transfer.FormatKey(key.Public().(ed25519.PublicKey))
}

func header(more string) string {
	return fmt.Sprintf(`{"kind":"export","format":1,"id":%q,"tenant":"default","time":"2026-11-30T12:00:00Z","key":%q%s}`, exportID, publicOf(signer), more)
}

// signed is a file of these lines with a good last one.
func signed(lines ...string) string { return signedBy(signer, lines...) }

func signedBy(key ed25519.PrivateKey, lines ...string) string {
	text := strings.Join(lines, "\n") + "\n"
	sum := sha256.Sum256([]byte(text))
	end, err := json.Marshal(transfer.End{
		Kind: "end", Items: len(lines) - 1, SHA256: hex.EncodeToString(sum[:]),
		Signature: base64.StdEncoding.EncodeToString(ed25519.Sign(key, transfer.Signed(sum[:]))),
	})
	if err != nil {
		panic(err)
	}
	return text + string(end) + "\n"
}

const policy = `{"kind":"throttle_policy","id":"crm","facts":{"tokens":5,"per":"second"}}`

// sealed is a credential with secrets sealed to a recipient.
func sealed(t testing.TB, id string, to age.Recipient, clear string) string {
	t.Helper()
	var b bytes.Buffer
	w, err := age.Encrypt(&b, to)
	if err == nil {
		_, err = w.Write([]byte(clear))
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`{"kind":"credential","id":%q,"facts":{"type":"t","name":"n","fields":["a"]},"sealed":%q}`, id, base64.StdEncoding.EncodeToString(b.Bytes()))
}

// Each bad file is refused before anything is imported, by its own code, and none of its
// secrets is in the error.
func TestBadFiles(t *testing.T) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	mine := func(clear string) string { return sealed(t, "c1", identity.Recipient(), clear) }
	whole := func(id string) string {
		return fmt.Sprintf(`{"export":%q,"kind":"credential","id":%q,"keys":{"a":"canary"}}`, exportID, id)
	}
	good := signed(header(""), policy, mine(whole("c1")))
	for _, c := range []struct{ name, file, signedBy, code string }{
		{"good", good, "any", ""},
		{"good, by its signer", good, publicOf(signer), ""},
		{"good, without items", signed(header("")), "any", ""},
		{"of the newest format, with a role", signed(strings.Replace(header(""), `"format":1`, `"format":2`, 1), policy, `{"kind":"role","id":"BILLING","facts":{"permissions":["flows.get"]}}`), "any", ""},
		{"a header of a later minor version", signed(header(`,"later":1`), policy), "any", ""},
		{"empty", "", "any", "import_file_invalid"},
		{"no export", "PK\x03\x04\n", "any", "import_file_invalid"},
		{"another JSON document", `{"credential":[]}` + "\n", "any", "import_file_invalid"},
		{"cut within a line", good[:len(good)-20], "any", "import_file_cut"},
		{"cut after a line", header("") + "\n" + policy + "\n", "any", "import_file_cut"},
		{"one bit", strings.Replace(good, `"tokens":5`, `"tokens":4`, 1), "any", "import_signature_invalid"},
		{"the tenant changed", strings.Replace(good, `"default"`, `"another"`, 1), "any", "import_signature_invalid"},
		{"the signer changed", strings.Replace(good, publicOf(signer), publicOf(another), 1), "any", "import_signature_invalid"},
		{"signed anew by another key", signedBy(another, header(""), policy), "any", "import_signature_invalid"},
		{"an item left out", strings.Replace(good, policy+"\n", "", 1), "any", "import_signature_invalid"},
		{"without a signer", good, "", "signer_required"},
		{"signed by another key", good, publicOf(another), "import_signer_unexpected"},
		{"no key to check", good, "ed25519:short", "export_key_invalid"},
		{"a newer format", signed(strings.Replace(header(""), `"format":1`, `"format":3`, 1)), "any", "import_format_newer"},
		{"a huge line", header("") + "\n" + strings.Repeat("x", 9<<20) + "\n", "any", "import_line_too_long"},
		{"the same id twice", signed(header(""), policy, policy), "any", "import_item_repeated"},
		{"an unknown kind", signed(header(""), strings.Replace(policy, "throttle_policy", "api_key", 1)), "any", "import_file_invalid"},
		{"out of order", signed(header(""), policy, `{"kind":"component","id":"a","facts":{"descriptor":{}}}`), "any", "import_file_invalid"},
		{"an unknown fact", signed(header(""), strings.Replace(policy, `"per"`, `"admin":true,"per"`, 1)), "any", "import_file_invalid"},
		{"a fact twice", signed(header(""), strings.Replace(policy, `"per"`, `"tokens":9,"per"`, 1)), "any", "import_file_invalid"},
		{"a hostile id", signed(header(""), strings.Replace(policy, `"crm"`, `"\u001b[2Jcrm"`, 1)), "any", "import_file_invalid"},
		{"no id", signed(header(""), strings.Replace(policy, `"crm"`, `""`, 1)), "any", "import_file_invalid"},
		{"not UTF-8", signed(header(""), strings.Replace(policy, "crm", "\xff\xfe", 1)), "any", "import_file_invalid"},
		{"lines after the last", good + policy + "\n", "any", "import_file_invalid"},
		{"sealed to another key", signed(header(""), sealed(t, "c1", stranger.Recipient(), whole("c1"))), "any", "import_identity_wrong"},
		{"secrets of another item", signed(header(""), mine(whole("c2"))), "any", "import_secret_invalid"},
		{"secrets of another export", signed(header(""), mine(strings.Replace(whole("c1"), exportID, "x", 1))), "any", "import_secret_invalid"},
		{"secrets in no shape", signed(header(""), mine(`canary`)), "any", "import_secret_invalid"},
		{"secrets that are a text", signed(header(""), mine(strings.Replace(whole("c1"), `{"a":"canary"}`, `"canary"`, 1))), "any", "import_secret_invalid"},
		{"no age file", signed(header(""), `{"kind":"credential","id":"c1","facts":{"name":"n","fields":[]},"sealed":"Y2FuYXJ5"}`), "any", "import_identity_wrong"},
		{"no base64", signed(header(""), `{"kind":"credential","id":"c1","facts":{"name":"n","fields":[]},"sealed":"*"}`), "any", "import_secret_invalid"},
	} {
		f, err := importer.Open(strings.NewReader(c.file), c.signedBy, []age.Identity{identity})
		code := ""
		if err != nil {
			code = fault.Of(err).Code
		}
		if code != c.code {
			t.Errorf("%s: %q (%v), want %q", c.name, code, err, c.code)
		}
		if err != nil && (strings.Contains(err.Error(), "canary") || strings.ContainsRune(err.Error(), '\x1b')) {
			t.Errorf("%s: the error is %v", c.name, err)
		}
		if err != nil {
			continue
		}
		n := 0
		for item, err := range f.Items(t.Context()) {
			if n++; err != nil || fmt.Sprintf("%+v", item) == "" || strings.Contains(fmt.Sprintf("%+v", item), "canary") {
				t.Errorf("%s: %+v %v", c.name, item, err)
			}
		}
		if n != f.Total() {
			t.Errorf("%s: %d items, then %d", c.name, f.Total(), n)
		}
	}
}

func TestMaps(t *testing.T) {
	m, err := importer.ParseMap([]string{"a=b", "component:x=y", "AAABcID5GBc==AAABcID5GBd=", "urn:x=d"})
	if err != nil || m["credential:a"] != "b" || m["component:x"] != "y" || m["credential:urn:x"] != "d" || m["credential:AAABcID5GBc="] != "AAABcID5GBd=" {
		t.Errorf("%v %v", m, err)
	}
	for _, bad := range []string{"a", "a=", "=b", "oauth_client:a=b\n"} {
		if _, err := importer.ParseMap([]string{bad}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if _, err := importer.ParseMap([]string{"a=b", "a=c"}); err == nil {
		t.Error("two maps of one id are taken")
	}
}

// A file that is changed after it was verified is noticed at the first changed line, also when its
// new content is whole and signed: nothing of it is imported.
func TestFileChangedMeanwhile(t *testing.T) {
	lines := []string{header("")}
	for i := range 2000 { // more than a buffer of the reader
		lines = append(lines, fmt.Sprintf(`{"kind":"throttle_policy","id":"p-%04d","facts":{"tokens":5,"per":"second"}}`, i))
	}
	good := signed(lines...)
	other := slices.Clone(lines)
	other[1500] = strings.Replace(other[1500], `"tokens":5`, `"tokens":9`, 1)
	for name, now := range map[string]string{
		"one line, signed anew": signed(other...),
		"one line":              strings.Replace(good, other[1501], strings.Replace(other[1501], "5", "6", 1), 1),
		"cut":                   good[:len(good)*3/4],
		"another export":        signed(header(`,"later":1`), lines[1]),
		"longer":                strings.TrimSuffix(good, "\n") + " \n" + lines[1] + "\n",
		"empty":                 "",
	} {
		path := filepath.Join(t.TempDir(), "export")
		write := func(text string) {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(good)
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		f, err := importer.Open(file, "any", nil)
		if err != nil {
			t.Fatal(err)
		}
		write(now)
		var last error
		for item, err := range f.Items(t.Context()) {
			if last = err; err == nil && item.Facts.(transfer.ThrottlePolicy).Tokens != 5 {
				t.Errorf("%s: %+v is read", name, item)
			}
		}
		if !errors.Is(last, importer.ErrChanged) {
			t.Errorf("%s: ends with %v", name, last)
		}
	}
}
