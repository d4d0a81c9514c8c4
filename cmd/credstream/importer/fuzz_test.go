package importer_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/credstream/credstream/cmd/credstream/importer"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/transfer"
)

// FuzzFiles reads any bytes as each kind of file: an export, the lines of one with a good
// signature, the files of other systems, and a mapping. None panics, an error is a fault that
// quotes nothing, and each item has an id that a service takes, or the reason why it has not.
func FuzzFiles(f *testing.F) {
	kinds := []string{"export", "lines", importer.FromAspire, importer.FromElasticIO, importer.FromN8N, importer.FromEnv, "mapping"}
	for i := range kinds {
		for _, text := range []string{
			signed(header(""), policy), header("") + "\n" + policy, policy,
			`{"kind":"component","id":"c","facts":{"shared":true,"descriptor":{"title":"C"}},"missing":["A"]}`,
			`{"kind":"auth_client","id":"a","facts":{"name":"n","type":"basic","scope":"tenant","components":["c"],"fields":["password"]},"missing":["password"]}`,
			`{"kind":"oauth_client","id":"c","facts":{"client_id":"i"},"sealed":"AAAA"}`,
			`{"kind":"credential","id":"x=","facts":{"type":"t","name":"n","fields":["a"],"hosts":["h"],"verification":{}}}`,
			`{"kind":"flow","id":"f","facts":{"name":"n","revision":1,"active":true,"steps":[{"id":"s","component":"c","credential":"x="}]}}`,
			`{"kind":"role","id":"R","facts":{"title":"t","permissions":["flows.get"]}}`,
			`{"credential":[{"id":"AAABcID5GBc=","type":"t","description":"d","throttlePolicy":"p","properties":{"a":"canary"}}],"policy":[{"id":"p","timeUnit":"m","numberOfDocuments":"100"}]}`,
			`{"data":[{"id":"1","type":"credential","attributes":{"name":"n","keys":{"a":"canary"}},"relationships":{"component":{"data":{"id":"c"}}}}]}`,
			`[{"id":7,"name":"n","type":"githubApi","data":{"accessToken":"canary"}},{"id":"8","name":"n","type":"t","data":"U2FsdGVkX1"}]`,
			"export A__B='x'\nC=\"\\n\\$\"\n# no\nD=canary",
			`{"types":{"t":{"component":"c","fields":{"a":"b","d":""}}},"credentials":{"7":{"type":"legacy","name":"N"}}}`,
		} {
			f.Add(byte(i), text)
		}
	}
	f.Fuzz(func(t *testing.T, which byte, text string) {
		kind := kinds[int(which)%len(kinds)]
		var items []importer.Item
		var err error
		switch kind {
		case "export", "lines":
			if kind == "lines" {
				text = signed(append([]string{header("")}, strings.Split(text, "\n")...)...)
			}
			var file *importer.File
			if file, err = importer.Open(strings.NewReader(text), "any", nil); err == nil {
				for item, again := range file.Items(t.Context()) {
					if again != nil {
						t.Fatalf("%q is read once, and then %v", text, again)
					}
					items = append(items, item)
				}
			}
		case "mapping":
			_, err = importer.ParseMapping([]byte(text))
		default:
			items, err = (importer.Mapping{}).Parse(kind, "shop.env", []byte(text))
		}
		if err != nil {
			if f := fault.Of(err); f.Code == fault.ErrInternal.Code || strings.Contains(err.Error(), "canary") {
				t.Errorf("%s %q: %v", kind, text, err)
			}
			return
		}
		for _, item := range items {
			if item.Err == nil && item.ID != "" && events.CheckID(item.ID) != nil || !slices.Contains(transfer.Kinds(), item.Kind) {
				t.Errorf("%s %q has the item %q %q", kind, text, item.Kind, item.ID)
			}
			if strings.Contains(fmt.Sprintf("%+v %v", item, item.Err), "canary") && strings.Contains(text, "canary") && item.HasKeys {
				t.Errorf("%s: an item prints its secret: %+v", kind, item)
			}
		}
	})
}
