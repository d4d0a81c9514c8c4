package app

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/oauth/oauthtest"
	"github.com/credstream/credstream/service/application"
)

// The clock of one process is an hour ahead. Both say so; a reservation of ten minutes
// does not end at once, and a token that the one has renewed is not taken for good for
// an hour longer than it is.
func TestClockAnHourAhead(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider)
	registerPlain(t, u.base)
	ahead := func() time.Time { return time.Now().Add(time.Hour) }
	clocks := func(process string, now func() time.Time) *kv.Clocks {
		conn, err := u.node.Conn("clock")
		must(t, err)
		c := kv.NewClocks(kv.ClocksConfig{Conn: conn, Process: process, Logger: slog.New(slog.NewTextHandler(u.logs, nil)), Now: now})
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		ended := make(chan error, 1)
		go func() { ended <- c.Run(ctx) }()
		t.Cleanup(func() { cancel(); must(t, <-ended) })
		return c
	}
	alone := clocks("alone", nil)
	if alone.Err() == nil {
		t.Error("clocks agree before they were compared")
	}
	await(t, "a round of one process", func() (bool, error) { return alone.Err() == nil, nil })
	wrong := clocks("wrong", ahead)
	for _, c := range []*kv.Clocks{wrong, alone} {
		await(t, "the difference", func() (bool, error) { return c.Err() != nil && strings.Contains(c.Err().Error(), "1h0m0s"), nil })
	}
	s := u.second(t, u.claims(t), func(c *application.Config) { c.Now, c.ClocksAgree = ahead, wrong.Err })
	s.ready(t)

	held := u.create(t)
	must(t, u.command("flow.bind", "", map[string]any{
		"flow": "f", "ttl": "10m", "steps": []any{map[string]any{"id": "s", "component": "plain", "credential": held}},
	}, nil))
	must(t, s.proj.Wait(t.Context(), logEnd(t, u.program)))
	must(t, s.Flows.ReconcileFlows(t.Context()))
	if got := code(t, u.command("credential.delete", "", map[string]any{"id": held}, nil)); got != "credential_in_use" {
		t.Errorf("a credential that is reserved for ten minutes is deleted: %q", got)
	}

	id, _ := u.grant(t, provider)
	_, err := s.command(t.Context(), t, "credential.refresh", "r", map[string]any{"id": id})
	must(t, err)
	requests := provider.Requests()
	must(t, u.as(u.engine(t)).query("credential.resolve", "cleartext=true&id="+id, nil))
	if provider.Requests() == requests {
		t.Error("a token that ends an hour later than it can is given away without a renewal")
	}
}
