package app

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service/access"
)

// The log holds a commit of one tenant that this version cannot read, as a newer one would
// write it. The service starts all the same, also where the read models have to be built
// anew: it is not ready and names the commit, and the commands and resolves of others go on.
func TestStartsWithACommitOfANewerVersion(t *testing.T) {
	const good = `{"type":"credential.renamed","v":1,"data":{"name":"x"}}`
	for name, c := range map[string]struct {
		format, event, says string
		rebuilt             bool   // the read models are gone, and far behind
		stream, unknownKey  string // of the commit; what an unknown key is answered
	}{
		"type":    {"1", `{"type":"credential.teleported","v":1,"data":{"to":"mars"}}`, "credential.teleported", false, "other.credential.newer", "api_key_unknown"},
		"version": {"1", strings.Replace(good, `"v":1`, `"v":99`, 1), "99", false, "other.credential.newer", "api_key_unknown"},
		"format":  {"2", good, "format", true, "other.credential.newer", "api_key_unknown"},
		// It may issue the key.
		"key": {"1", `{"type":"api_key.issued","v":99,"data":{}}`, "99", false, "_system.api_key.newer", "views_behind"},
	} {
		t.Run(name, func(t *testing.T) {
			data := t.TempDir()
			u := bring(t, data)
			registerPlain(t, u.base)
			id := u.create(t)
			engineKey := u.issue(t, map[string]any{"role": "FLOW_ENGINE"})
			if c.rebuilt {
				var streams sync.WaitGroup
				for range 64 {
					stream := u.create(t)
					streams.Go(func() {
						state, err := aggregates.Credential.Load(t.Context(), u.states, aggregates.Credential.Stream("default", stream))
						for i, seq := 0, state.Seq; i <= bulkRebuild/64 && err == nil; i++ {
							seq, err = u.store.Append(t.Context(), aggregates.Credential.Stream("default", stream), seq, events.Meta{
								Tenant: "default", Actor: events.Actor{Kind: "key", ID: "k"}, Time: time.Now().UTC(), Via: "http",
							}, events.CredentialRenamed{Name: fmt.Sprint(i)})
						}
						if err != nil {
							t.Error(err)
						}
					})
				}
				streams.Wait()
			}
			conn, err := u.node.Conn("newer version")
			must(t, err)
			js, err := jetstream.New(conn)
			must(t, err)
			tenant, _, _ := strings.Cut(c.stream, ".")
			m := nats.NewMsg("credstream.log." + c.stream)
			m.Header.Set("Cs-Format", c.format)
			m.Header.Set("Cs-Commit", "0198c1aa-0000-7000-8000-000000000001")
			m.Data = []byte(`{"meta":{"commit":"0198c1aa-0000-7000-8000-000000000001","tenant":"` + tenant + `","actor":{"kind":"key","id":"k"},"command":"c","causation":"","correlation":"c","time":"2026-01-02T03:04:05Z","via":"http"},"events":[` + c.event + `]}`)
			ack, err := js.PublishMsg(t.Context(), m)
			must(t, err)
			u.stop()
			if c.rebuilt {
				files, err := filepath.Glob(filepath.Join(data, "views.db*"))
				must(t, err)
				for _, file := range files {
					must(t, os.Remove(file))
				}
			}

			u = bring(t, data)
			engine := u.as(engineKey)
			var made, again done
			must(t, u.command("credential.rename", "r", map[string]any{"id": id, "name": "Goes on"}, nil))
			must(t, u.command("credential.create", "c", map[string]any{"component": "plain", "keys": map[string]any{"apiKey": "k"}}, &made))
			must(t, u.command("credential.create", "c", map[string]any{"component": "plain", "keys": map[string]any{"apiKey": "k"}}, &again))
			if made != again {
				t.Errorf("a create is answered %+v, and its repeat %+v", made, again)
			}
			for _, of := range []string{id, made.ID} {
				must(t, engine.query("credential.resolve", "cleartext=true&id="+of, nil))
			}
			for range 2 {
				if got := code(t, u.as(string(access.NewKey().Reveal())).query("components", "", nil)); got != c.unknownKey {
					t.Errorf("an unknown key is answered %s, want %s", got, c.unknownKey)
				}
			}
			named := func(text string) bool {
				return strings.Contains(text, fmt.Sprint("commit ", ack.Sequence)) && strings.Contains(text, c.says)
			}
			await(t, "the reason", func() (bool, error) { return named(u.notReadyReasons(t)), nil })
			var status struct {
				Position, End uint64
				Stopped       string
			}
			must(t, u.query("views.status", "", &status))
			if !named(status.Stopped) || status.Position >= ack.Sequence {
				t.Errorf("the status of the views is %+v; commit %d cannot be read", status, ack.Sequence)
			}
			if built := strings.Contains(u.logs.String(), "read models not built in advance"); built != c.rebuilt {
				t.Errorf("a rebuild was tried: %v, want %v", built, c.rebuilt)
			}
		})
	}
}
