package app

import (
	"context"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/oauth/oauthtest"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/connect"
)

// dyingConnections end the goroutine that makes the nth change, before or after it.
type dyingConnections struct {
	connect.Connections
	n      int32
	stored bool
	died   chan struct{}
	change atomic.Int32
}

func (c *dyingConnections) Update(ctx context.Context, id string, value []byte, revision uint64) (uint64, bool, error) {
	last := c.change.Add(1) == c.n
	if last && !c.stored {
		close(c.died)
		runtime.Goexit()
	}
	next, mine, err := c.Connections.Update(ctx, id, value, revision)
	if last {
		close(c.died)
		runtime.Goexit()
	}
	return next, mine, err
}

// Unmark does nothing: who dies does not get to it.
func (c *dyingConnections) Unmark(context.Context, string) error { return nil }

// A process dies at one of the steps from the confirmation of a connection to its
// credential. Whoever started repeats the command, or nobody comes again: the credential
// is saved, or the provider has forgotten the tokens that went down with the process.
func TestDeathWhileACodeIsRedeemed(t *testing.T) {
	provider := oauthtest.NewServer(t)
	var granted atomic.Value
	provider.Mangle(func(answer map[string]any) { granted.Store(answer["refresh_token"]) })
	u := connectable(t, provider)
	again := ""
	for _, c := range []struct {
		name     string
		change   int32 // of the connection at which it dies; 0: of the log
		stored   bool
		requests int // that reach the provider in all
		lost     bool
	}{
		{"the code was not sent", 1, true, 1, false},
		{"the tokens were not stored", 2, false, 2, true},
		{"the tokens were stored", 2, true, 1, false},
		{"the credential was not saved", 0, false, 1, false},
		{"the credential was saved", 0, true, 1, false},
		{"the end was not noted", 3, false, 1, false},
	} {
		for _, repeated := range []bool{true, false} {
			if !repeated && c.name != "the tokens were stored" {
				continue // the process manager does what a repeat does
			}
			for _, inPlace := range []bool{false, true} {
				if inPlace && !repeated {
					continue
				}
				in := map[string]any{}
				if inPlace {
					if again == "" {
						again, _ = u.connected(t, provider, "sheets")
					}
					in = map[string]any{"credential": again}
				}
				link := u.start(t, in)
				confirm := newBrowser(t).through(link.URL).confirm()
				died, requests := make(chan struct{}), provider.Count("authorization_code")
				s := u.second(t, nil, func(cfg *application.Config) {
					cfg.Connections = &dyingConnections{Connections: cfg.Connections, n: c.change, stored: c.stored, died: died}
				})
				s.ready(t)
				dead := (<-chan struct{})(died)
				if c.change == 0 {
					dead = s.deaths(1, c.stored)
				}
				complete := map[string]any{"connection": link.ID, "confirm": confirm}
				go func() { _, _ = s.command(context.WithoutCancel(t.Context()), t, "oauth.complete", "", complete) }()
				<-dead
				where := c.name
				if repeated {
					made, err := u.complete(link.ID, confirm, "")
					if got := code(t, err); got != "" && !c.lost && got != "connection_busy" || got == "" && made.ID == "" {
						t.Errorf("%s: answered %+v, %v", where, made, err)
					}
				}
				var shown connectionShown
				await(t, where+": the end of the connection", func() (bool, error) {
					shown = u.connection(t, link.ID)
					return shown.Stage == "done" || shown.Stage == "failed", nil
				})
				if (shown.Stage == "failed") != c.lost || inPlace && !c.lost && shown.Credential != again {
					t.Errorf("%s: %+v", where, shown)
				}
				if n := provider.Count("authorization_code") - requests; n != c.requests {
					t.Errorf("%s: the code was sent %d times", where, n)
				}
				if live := provider.Live(granted.Load().(string)); live == c.lost {
					t.Errorf("%s: the tokens that were granted are good: %v", where, live)
				}
			}
		}
	}
}

// hangingConnections are those of a process that hangs at its nth change, before or after it,
// until it may go on. Nobody else is told that it redeems a code.
type hangingConnections struct {
	connect.Connections
	n      int32
	stored bool
	change atomic.Int32
	hung   chan struct{}
	goOn   chan struct{}
}

func (c *hangingConnections) Update(ctx context.Context, id string, value []byte, revision uint64) (uint64, bool, error) {
	hangs := c.change.Add(1) == c.n
	if hangs && !c.stored {
		close(c.hung)
		<-c.goOn
	}
	next, mine, err := c.Connections.Update(ctx, id, value, revision)
	if hangs && c.stored {
		close(c.hung)
		<-c.goOn
	}
	return next, mine, err
}

// Mark does nothing: the process manager of the program beside would look after it.
func (c *hangingConnections) Mark(context.Context, string) error { return nil }

// A process hangs when the provider has granted tokens for a code. Another one leaves the
// connection to it for as long as a call may take, and then takes it over; what the first
// one does afterwards changes nothing: both answer the same credential with good tokens,
// or there is none and the provider has forgotten the tokens.
func TestTakeoverOfAProcessThatLives(t *testing.T) {
	provider := oauthtest.NewServer(t)
	var granted atomic.Value
	provider.Mangle(func(answer map[string]any) { granted.Store(answer["refresh_token"]) })
	u := connectable(t, provider)
	again, _ := u.connected(t, provider, "sheets")
	for _, c := range []struct {
		name   string
		stored bool
		in     map[string]any
	}{
		{"before the tokens are stored", false, nil},
		{"when the tokens are stored", true, nil},
		{"when the tokens are stored, in place", true, map[string]any{"credential": again}},
	} {
		link := u.start(t, c.in)
		confirm := newBrowser(t).through(link.URL).confirm()
		hanging := &hangingConnections{n: 2, stored: c.stored, hung: make(chan struct{}), goOn: make(chan struct{})}
		var ahead atomic.Int64
		first := u.second(t, nil, func(cfg *application.Config) {
			hanging.Connections = cfg.Connections
			cfg.InstanceID, cfg.Connections = "first", hanging
		})
		other := u.second(t, nil, func(cfg *application.Config) {
			cfg.InstanceID, cfg.Connections = "other", &hangingConnections{Connections: cfg.Connections}
			cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		})
		first.ready(t)
		other.ready(t)
		complete := map[string]any{"connection": link.ID, "confirm": confirm}
		type answer struct {
			done any
			err  error
		}
		answered := make(chan answer, 1)
		go func() {
			done, err := first.command(context.WithoutCancel(t.Context()), t, "oauth.complete", "", complete)
			answered <- answer{done, err}
		}()
		<-hanging.hung
		for _, passed := range []time.Duration{0, service.MaxCall} {
			ahead.Store(int64(passed))
			if _, err := other.command(t.Context(), t, "oauth.complete", "", complete); fault.Of(err) == nil || fault.Of(err).Code != "connection_busy" {
				t.Errorf("%s: after %v the other process answers %v", c.name, passed, err)
			}
		}
		ahead.Store(int64(service.MaxCall + time.Minute))
		done, err := other.command(t.Context(), t, "oauth.complete", "", complete)
		if (err == nil) != c.stored {
			t.Errorf("%s: the other process answers %+v, %v", c.name, done, err)
		}
		close(hanging.goOn)
		late := <-answered
		if (late.err == nil) != c.stored || c.stored && late.done.(service.Done).ID != done.(service.Done).ID {
			t.Errorf("%s: the first process answers %+v, %v", c.name, late.done, late.err)
		}
		if live := provider.Live(granted.Load().(string)); live != c.stored {
			t.Errorf("%s: the tokens are good: %v", c.name, live)
		}
		if shown := u.connection(t, link.ID); (shown.Stage == "done") != c.stored || !c.stored && shown.Stage != "failed" {
			t.Errorf("%s: %+v", c.name, shown)
		}
	}
	// The one that was connected in place, and one of the three connections.
	var list listed
	await(t, "the credentials", func() (bool, error) {
		return len(list.Credentials) == 2, u.query("credential.list", "limit=200", &list)
	})
}

// The key of who started a connection is revoked while its code is redeemed. No credential
// comes of it, and the provider has forgotten the tokens, also where the process that had
// them is no more.
func TestKeyRevokedWhileItsCodeIsRedeemed(t *testing.T) {
	provider := oauthtest.NewServer(t)
	var granted atomic.Value
	provider.Mangle(func(answer map[string]any) { granted.Store(answer["refresh_token"]) })
	u := connectable(t, provider)
	ends := map[string]func(){}
	for _, died := range []string{"", "the code was sent", "the tokens were stored"} {
		var issued struct{ ID, Key string }
		must(t, u.command("api_key.issue", "", map[string]any{"role": "ADMINISTRATOR"}, &issued))
		revoke := func() { must(t, u.command("api_key.revoke", "", map[string]any{"id": issued.ID}, nil)) }
		starter := u.as(issued.Key)
		link := starter.start(t, nil)
		confirm := newBrowser(t).through(link.URL).confirm()
		if died == "" {
			var once sync.Once
			provider.After(func(*http.Request) { once.Do(revoke) })
			if made, err := starter.complete(link.ID, confirm, ""); err == nil {
				t.Errorf("a revoked key is answered %+v", made)
			}
			provider.After(nil)
		} else {
			dead := make(chan struct{})
			s := u.second(t, nil, func(cfg *application.Config) {
				cfg.Connections = &dyingConnections{Connections: cfg.Connections, n: 2, stored: died == "the tokens were stored", died: dead}
			})
			s.ready(t)
			var err error
			s.admin, err = s.Access.Authenticate(t.Context(), issued.Key, netip.Addr{})
			must(t, err)
			provider.After(func(*http.Request) { revoke(); provider.After(nil) })
			go func() {
				_, _ = s.command(context.WithoutCancel(t.Context()), t, "oauth.complete", "", map[string]any{"connection": link.ID, "confirm": confirm})
			}()
			<-dead
		}
		refresh := granted.Load().(string)
		ends[died] = func() {
			await(t, "the end of the connection", func() (bool, error) { return u.connection(t, link.ID).Stage == "failed", nil })
			if provider.Live(refresh) {
				t.Errorf("%q: the tokens are left at the provider", died)
			}
		}
	}
	for _, ended := range ends {
		ended()
	}
	end, err := u.store.End(t.Context())
	must(t, err)
	must(t, u.proj.Wait(t.Context(), end))
	var list listed
	if must(t, u.query("credential.list", "limit=200", &list)); len(list.Credentials) != 0 {
		t.Errorf("credentials of a revoked key: %+v", list.Credentials)
	}
}

// doubtfulStore never says whether a credential was saved.
type doubtfulStore struct {
	events.Store
	stored bool
}

func (s *doubtfulStore) Stage(ctx context.Context, stream events.StreamID, expected uint64, meta events.Meta, evs ...events.Event) (uint64, error) {
	if stream.Category != "credential" {
		return s.Store.Stage(ctx, stream, expected, meta, evs...)
	}
	if s.stored {
		if seq, err := s.Store.Stage(ctx, stream, expected, meta, evs...); err != nil {
			return seq, err
		}
	}
	return 0, events.ErrUnknownOutcome
}

// It is not known whether what a provider granted was saved. The connection does not end with
// that: it is found out, and the tokens are those of a credential.
func TestUnknownOutcomeOfAConnection(t *testing.T) {
	provider := oauthtest.NewServer(t)
	var granted atomic.Value
	provider.Mangle(func(answer map[string]any) { granted.Store(answer["refresh_token"]) })
	u := connectable(t, provider)
	type doubt struct {
		stored        bool
		link, refresh string
	}
	var doubts []doubt
	for _, stored := range []bool{true, false} {
		again, _ := u.connected(t, provider, "sheets")
		for _, in := range []map[string]any{nil, {"credential": again}} {
			link := u.start(t, in)
			confirm := newBrowser(t).through(link.URL).confirm()
			s := u.second(t, nil)
			s.store.Store = &doubtfulStore{Store: u.store, stored: stored}
			s.ready(t)
			_, err := s.command(t.Context(), t, "oauth.complete", "", map[string]any{"connection": link.ID, "confirm": confirm})
			if fault.Of(err) == nil || fault.Of(err).Code != connect.ErrConnectionUnknownOutcome.Code {
				t.Errorf("stored %v: answered %v", stored, err)
			}
			doubts = append(doubts, doubt{stored, link.ID, granted.Load().(string)})
		}
	}
	for _, d := range doubts {
		var shown connectionShown
		await(t, "the end of the connection", func() (bool, error) {
			shown = u.connection(t, d.link)
			return shown.Stage == "done" || shown.Stage == "failed", nil
		})
		if shown.Stage != "done" || !provider.Live(d.refresh) {
			t.Errorf("stored %v: %+v, the tokens are good: %v", d.stored, shown, provider.Live(d.refresh))
		}
		if len(u.secretsOf(t, "credential", shown.Credential)) == 0 {
			t.Errorf("stored %v: the vault has nothing of %+v", d.stored, shown)
		}
	}
}

// A credential is connected again while the end of its tokens is completed after a crash. A
// provider that would end the new tokens with the old ones is not told of these.
func TestRevocationSparesANewerGrant(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := connectable(t, provider)
	id, _ := u.connected(t, provider, "sheets")
	old := u.secretsOf(t, "credential", id)
	release := u.svc.Secrets.Hold(events.StreamID{Tenant: "default", Category: "credential", ID: id}) // the process manager waits
	s := u.second(t, nil)
	s.ready(t)
	dead := s.deaths(2, true)
	go func() {
		_, _ = s.command(context.WithoutCancel(t.Context()), t, "credential.revoke", "", map[string]any{"id": id})
	}()
	<-dead
	provider.OneConsent(true)
	newer := provider.Grant()
	must(t, u.command("credential.replace-keys", "", map[string]any{"id": id, "keys": map[string]any{"oauth": newer}}, nil))
	release()
	await(t, "the old tokens are erased", func() (bool, error) {
		return !slices.ContainsFunc(u.secretsOf(t, "credential", id), func(id string) bool { return slices.Contains(old, id) }), nil
	})
	if !provider.Live(newer["refresh_token"].(string)) {
		t.Error("the provider has ended the new tokens with the old ones")
	}
	var ended revokedAnswer
	must(t, u.command("credential.revoke", "", map[string]any{"id": id}, &ended))
	if ended.Outcome != "revoked" || provider.Live(newer["refresh_token"].(string)) {
		t.Errorf("the new tokens are revoked: %+v", ended)
	}
}
