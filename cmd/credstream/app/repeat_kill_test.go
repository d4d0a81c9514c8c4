package app

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
)

// repeated sends a command until the service, which is starting, has answered it.
func (a api) repeated(name, id string, body []byte) (status int, answer []byte, err error) {
	for begin := time.Now(); time.Since(begin) < 30*time.Second; time.Sleep(time.Millisecond) {
		req, err := http.NewRequest(http.MethodPost, a.base+"/v1/tenants/"+a.tenant+"/commands/"+name, bytes.NewReader(body))
		if err != nil {
			return 0, nil, err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", id)
		req.Header.Set("Authorization", "Bearer "+a.key)
		resp, err := http.DefaultClient.Do(req)
		if err != nil { // nobody listens yet
			continue
		}
		answer, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusServiceUnavailable {
			return resp.StatusCode, answer, err
		}
	}
	return 0, answer, errors.New("the service does not start")
}

// The process is killed, and its read models are behind the log when it starts again: an
// older copy, none at all, or at a standstill. From its first moment on it answers the
// commands that it acknowledged as it did first, whatever has become of their targets
// since, and refuses new ones by the end of the log.
func TestRepeatsAfterAKillWithViewsBehind(t *testing.T) {
	t.Parallel()
	type m = map[string]any
	keys := m{"apiKey": "k"}
	data, older := t.TempDir(), t.TempDir()
	p := spawn(t, data)
	registerPlain(t, p.http)
	_ = p.kill(syscall.SIGKILL)
	views := func(folder string) []string {
		files, err := filepath.Glob(filepath.Join(folder, "views.db*"))
		must(t, err)
		return files
	}
	copied := func(from, to string) {
		for _, file := range views(to) {
			must(t, os.Remove(file))
		}
		for _, file := range views(from) {
			content, err := os.ReadFile(file)
			must(t, err)
			must(t, os.WriteFile(filepath.Join(to, filepath.Base(file)), content, 0o600))
		}
	}
	copied(data, older)

	u := bring(t, data) // much for the read models to catch up with
	meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "key", ID: "k"}, Time: time.Now().UTC(), Via: "http"}
	var streams sync.WaitGroup
	for range 16 {
		var made done
		must(t, u.command("credential.create", "", m{"component": "plain", "keys": keys}, &made))
		streams.Go(func() {
			for i, seq := 0, made.Seq; i < 60; i++ {
				var err error
				if seq, err = u.store.Append(t.Context(), aggregates.Credential.Stream("default", made.ID), seq, meta, events.CredentialRenamed{Name: fmt.Sprint(i)}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	streams.Wait()
	u.stop()

	for _, behind := range []struct {
		name          string
		before, after func() // the process that acknowledges, and its kill
	}{
		{"an older copy", func() {}, func() { copied(older, data) }},
		{"none", func() {}, func() { copied(t.TempDir(), data) }},
		{"at a standstill", func() {
			u := bring(t, data)
			_, err := u.store.Append(t.Context(), aggregates.Credential.Stream("other", "never-created"), 0, events.Meta{
				Tenant: "other", Actor: meta.Actor, Time: meta.Time, Via: "http",
			}, events.CredentialRenamed{Name: "x"})
			must(t, err)
			u.stop()
		}, func() {}},
	} {
		t.Run(behind.name, func(t *testing.T) {
			behind.before()
			p := spawn(t, data)
			a := caller(p)
			renamed, replaced, deleted := a.create(t), a.create(t), a.create(t)
			acknowledged := map[string]m{
				"credential.create":       {"component": "plain", "name": "Created", "keys": keys},
				"credential.rename":       {"id": renamed, "name": "Renamed", "expected_version": 1},
				"credential.replace-keys": {"id": replaced, "keys": keys, "expected_version": 1},
				"credential.delete":       {"id": deleted},
			}
			first := map[string][]byte{}
			for route, in := range acknowledged {
				status, answer := a.raw(t, route, behind.name[:2]+route, in)
				if status != http.StatusOK {
					t.Fatalf("%s is answered %d %s", route, status, answer)
				}
				first[route] = answer
			}
			must(t, a.command("credential.replace-keys", "", m{"id": replaced, "keys": keys}, nil))
			must(t, a.command("credential.delete", "", m{"id": renamed}, nil))
			_ = p.kill(syscall.SIGKILL)
			behind.after()

			var repeats sync.WaitGroup
			for route, in := range acknowledged {
				body := encode(t, in)
				repeats.Go(func() {
					if status, again, err := a.repeated(route, behind.name[:2]+route, body); err != nil || status != http.StatusOK || !bytes.Equal(first[route], again) {
						t.Errorf("%s was answered\n%s\nand again, %d\n%s%v", route, first[route], status, again, err)
					}
				})
			}
			for route, code := range map[string]string{
				"credential.rename": "credential_not_found", "credential.replace-keys": "credential_version_stale", "credential.delete": "credential_not_found",
			} {
				body := encode(t, acknowledged[route])
				repeats.Go(func() {
					if status, answer, err := a.repeated(route, behind.name[:2]+"new-"+route, body); err != nil || status == http.StatusOK || !bytes.Contains(answer, []byte(code)) {
						t.Errorf("%s with a new command id is answered %d %s%v", route, status, answer, err)
					}
				})
			}
			p = spawn(t, data, "--http", strings.TrimPrefix(a.base, "http://"))
			repeats.Wait()
			_ = p.kill(syscall.SIGKILL)
		})
	}
}
