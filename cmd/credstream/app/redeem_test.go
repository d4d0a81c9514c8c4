package app

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/credstream/credstream/oauth/oauthtest"
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
