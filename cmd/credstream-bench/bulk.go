package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	"filippo.io/age"

	"github.com/credstream/credstream/client"
)

// barDeep is the longest time that a page at the offset of deep may take.
const (
	barDeep = 50 * time.Millisecond
	deep    = 100_000
)

// batch runs a batch and adds a row for its rate.
func (b *bench) batch(what string, results iter.Seq2[client.BatchResult, error]) error {
	began, n := time.Now(), int64(0)
	for r, err := range results {
		if err == nil {
			err = r.Err
		}
		if err != nil {
			return err
		}
		n++
	}
	took := time.Since(began)
	b.report.add(what, perSecond(float64(n)/took.Seconds()), fmt.Sprintf("%s in %s", thousands(n), took.Round(10*time.Millisecond)))
	return nil
}

// bulk measures batches of the Go client, one after the other, in one tenant.
func (b *bench) bulk(ctx context.Context, s *site) error {
	api, err := client.New(client.Config{URL: "http://" + s.proc.http, Key: adminKey, Tenant: bigTenant})
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	create := func(n int64, typ string) iter.Seq2[client.BatchResult, error] {
		items := make([]client.CreateCredential, n)
		for i := range items {
			number := next.Add(1)
			keys, err := client.KeysJSON(append(appendSecret([]byte(`{"apiKey":"`), number), `"}`...))
			if err != nil {
				return func(yield func(client.BatchResult, error) bool) { yield(client.BatchResult{}, err) }
			}
			items[i] = client.CreateCredential{Type: typ, Name: string(appendName(nil, number)), Description: string(appendName(nil, number)), Keys: keys}
		}
		return api.CreateCredentials(ctx, items)
	}
	if err := b.batch("create in batches", create(b.credentials, "kept")); err != nil {
		return err
	}
	if err := b.batch("create in batches, to be changed", create(b.part, "gone")); err != nil {
		return err
	}
	text := "changed"
	if err := b.batch("update all of a filter", api.UpdateSelected(ctx, client.Selection{Type: "gone"}, client.CredentialUpdate{Description: &text})); err != nil {
		return err
	}
	return b.batch("delete all of a filter", api.DeleteSelected(ctx, client.Selection{Type: "gone"}))
}

// searches measures pages of 50 at the first and at a deep offset.
func (b *bench) searches(ctx context.Context, s *site) error {
	from := min(deep, int(b.credentials)-50)
	for _, w := range []struct{ what, params string }{
		{"by id", ""},
		{"by description", "&sort=description"},
		{"by type, descending", "&sort=-type"},
		{"of a type, by id", "&type=kept"},
		{"of a type, by description", "&type=kept&sort=description"},
		{"description contains, by id", "&description=" + url.QueryEscape("r")},
	} {
		for _, offset := range []int{0, from} {
			requests := make([][]byte, len(s.big))
			for i, k := range s.big {
				requests[i] = getRequest(nil, fmt.Sprintf("/v1/tenants/%s/credential.search?limit=50&from=%d%s", k.tenant, offset, w.params), k.key)
			}
			l, err := closed(ctx, 1, b.measured(), overHTTP(s.proc.http, func(_ int, c *wire) func() error {
				return func() error { return c.expect(200, "search", requests[rand.IntN(len(requests))]) } //nolint:gosec // a choice, not a secret
			}))
			if err != nil {
				return err
			}
			what := fmt.Sprintf("search %s, offset %s", w.what, thousands(int64(offset)))
			if offset == 0 {
				b.report.add(what, latencies(l), perSecond(l.rate)+", 1 client")
				continue
			}
			b.report.target(what, latencies(l), perSecond(l.rate)+", 1 client", "p50 50 ms", l.quantile(.5) <= barDeep)
		}
	}
	return nil
}

// transfer measures an export with secrets, and its import into an empty tenant, by the command line.
func (b *bench) transfer(ctx context.Context, s *site) error {
	const from, to = "t00", "t01"
	api, err := client.New(client.Config{URL: "http://" + s.proc.http, Key: adminKey, Tenant: from})
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	items := make([]client.CreateCredential, b.part)
	for i := range items {
		if items[i].Keys, err = client.KeysJSON(append(appendSecret([]byte(`{"apiKey":"`), next.Add(1)), `"}`...)); err != nil {
			return fmt.Errorf("make keys: %w", err)
		}
		items[i].Type, items[i].Name = "moved", fmt.Sprint("Moved ", i)
	}
	if err := b.batch("create in batches, to be exported", api.CreateCredentials(ctx, items)); err != nil {
		return err
	}
	c, err := dialWire(s.proc.http) // after the batch: the service closes an idle connection
	if err != nil {
		return err
	}
	defer c.close()
	var issued struct {
		Key string `json:"key"`
	}
	if err := command(c, adminKey, from, "api_key.issue", map[string]any{
		"role": "ADMINISTRATOR", "permissions": []string{"credentials.reveal"},
	}, &issued); err != nil {
		return err
	}
	pair, err := age.GenerateX25519Identity()
	if err != nil {
		return fmt.Errorf("make an identity: %w", err)
	}
	identity, file := filepath.Join(b.dir, "identity.txt"), filepath.Join(b.dir, "tenant.export")
	if err := os.WriteFile(identity, []byte(pair.String()+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the identity: %w", err)
	}
	for _, step := range []struct {
		what, tenant, key string
		args              []string
	}{
		{"export, secrets sealed to a recipient", from, issued.Key, []string{"export", "--to", pair.Recipient().String(), "--out", file}},
		{"import into an empty tenant", to, adminKey, []string{"import", file, "--identity", identity, "--signed-by", "any", "--json"}},
		{"import again, nothing to do", to, adminKey, []string{"import", file, "--identity", identity, "--signed-by", "any", "--json"}},
	} {
		cmd := exec.CommandContext(ctx, b.bin, step.args...)
		cmd.Env = append(os.Environ(), "CREDSTREAM_URL=http://"+s.proc.http, "CREDSTREAM_KEY="+step.key, "CREDSTREAM_TENANT="+step.tenant)
		var said bytes.Buffer
		cmd.Stdout, cmd.Stderr = io.Discard, &said
		began := time.Now()
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w: %s", step.what, err, said.String())
		}
		took := time.Since(began)
		b.report.add(step.what, perSecond(float64(b.part)/took.Seconds()), fmt.Sprintf("%s credentials in %s", thousands(b.part), took.Round(10*time.Millisecond)))
	}
	return nil
}

// throttle measures the tokens that callers take of one credential, and how close they come to a
// limit that is lower than that.
func (b *bench) throttle(ctx context.Context, s *site) error {
	c, err := dialWire(s.proc.http)
	if err != nil {
		return err
	}
	defer c.close()
	k, err := engineKey(c, s.keys[0].tenant)
	if err != nil {
		return err
	}
	for id, tokens := range map[string]int{"open": 1_000_000_000, "limited": throttleLimit} {
		if err := throttled(c, k.tenant, id, tokens); err != nil {
			return err
		}
	}
	if err := b.rate(ctx, "throttle.take over HTTP, one credential, 64 clients", clients, taking(k, "open", func() {}, s)); err != nil {
		return err
	}
	return b.limited(ctx, "one process", 1, k, s)
}

// throttleLimit is the limit of the rows about accuracy, in tokens per second.
const throttleLimit = 200

// limited measures how close callers come to a limit that they exceed.
func (b *bench) limited(ctx context.Context, where string, callers int, k apiKey, all ...*site) error {
	var granted atomic.Int64
	began := time.Now()
	if _, err := closed(ctx, callers, size{time: 5 * time.Second}, taking(k, "limited", func() { granted.Add(1) }, all...)); err != nil {
		return err
	}
	took := time.Since(began)
	allowed := throttleLimit * took.Seconds()
	b.report.add(fmt.Sprintf("granted of a limit of %d per second, %s", throttleLimit, where), fmt.Sprintf("%.1f%%", 100*float64(granted.Load())/allowed),
		fmt.Sprintf("%s in %s, the limit is %.0f", thousands(granted.Load()), took.Round(10*time.Millisecond), allowed))
	return nil
}

// taking are callers that take tokens of a credential, in turn of several processes.
func taking(k apiKey, id string, granted func(), all ...*site) func(int) (caller, error) {
	request := getRequest(nil, "/v1/tenants/"+k.tenant+"/throttle.take?credential="+id, k.key)
	return func(i int) (caller, error) {
		return overHTTP(all[i%len(all)].proc.http, func(_ int, c *wire) func() error {
			return func() error {
				status, body, err := c.do(request)
				var answer struct {
					Granted bool `json:"granted"`
				}
				if err == nil && (status != 200 || json.Unmarshal(body, &answer) != nil) {
					err = fmt.Errorf("take: %d %.300s", status, body)
				}
				if answer.Granted {
					granted()
				}
				return err
			}
		})(i)
	}
}

// throttleProcesses measures a limit that the callers of several processes share.
func (b *bench) throttleProcesses(ctx context.Context, _ *site) error {
	all, stop, err := b.processes(ctx, "throttle", herdProcesses)
	if err != nil {
		return err
	}
	defer stop()
	admin, err := dialWire(all[0].proc.http)
	if err != nil {
		return err
	}
	defer admin.close()
	k, err := engineKey(admin, "default")
	if err != nil {
		return err
	}
	if err := throttled(admin, k.tenant, "limited", throttleLimit); err != nil {
		return err
	}
	for _, s := range all { // every process knows the key and the credential
		c, err := dialWire(s.proc.http)
		if err == nil {
			err = retryUntilReady(ctx, func() error { return query(c, k.key, k.tenant, "throttle.take?credential=limited", nil) })
			c.close()
		}
		if err != nil {
			return err
		}
	}
	return b.limited(ctx, fmt.Sprintf("%d processes", len(all)), 4*len(all), k, all...)
}

// throttled creates a credential with a limit of its own.
func throttled(c *wire, tenant, id string, tokens int) error {
	if err := command(c, adminKey, tenant, "throttle_policy.define", map[string]any{"id": id, "tokens": tokens, "per": "second"}, nil); err != nil {
		return err
	}
	return command(c, adminKey, tenant, "credential.create", map[string]any{"id": id, "type": "t", "keys": map[string]any{}, "throttle_policy": id}, nil)
}
