package connector_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/connector"
	"github.com/credstream/credstream/service/stage"
)

// An attempt to point a connector to a secret that broke off after the secret had recorded
// it does not keep the secret, and cannot be completed once the secret is gone.
func TestBrokenOffUse(t *testing.T) {
	s := stage.New(t)
	s.Do("default", "connector_secret.put", `{"id":"s1","value":"v"}`)
	s.Do("default", "connector.put", `{"id":"wiki"}`)
	log := stage.Must(aggregates.NewLog(s.Store, 10))(t)
	meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "key", ID: "another"}, Time: time.Now(), Via: "http"}
	_, _, err := aggregates.ConnectorSecret.Execute(t.Context(), log, "default",
		commands.ConnectorSecret(commands.UseConnectorSecret{ID: "s1", Connector: "wiki", Use: "u1"}), meta, nil)
	stage.OK(t, err)
	s.Do("default", "connector_secret.delete", `{"id":"s1"}`)
	_, _, err = aggregates.Connector.Execute(t.Context(), log, "default",
		commands.Connector(commands.SetConnectorKey{ID: "wiki", Key: commands.ConnectorKey{SecretID: "s1", Use: "u1"}}), meta, nil)
	if !errors.Is(err, aggregates.ErrConnectorUseMoved) {
		t.Errorf("the connector comes to point to a secret that is gone: %v", err)
	}
}

// A value is handed out when the fact is durable, and not at all when it cannot be.
func TestRevealIsAuditedFirst(t *testing.T) {
	s := stage.New(t)
	reader := s.Issue("default", `{"permissions":["read_connector_secrets"]}`)
	reveal := func() (string, error) {
		answer, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: reader, Via: "http"}, "connector_secret.reveal", []byte(`{"id":"s1"}`))
		shown, _ := answer.(connector.RevealedSecret)
		return shown.Value, err
	}
	for n := 1; n <= 2; n++ {
		s.Do("default", "connector_secret.put", fmt.Sprintf(`{"id":"s1","value":"v%d"}`, n))
	}
	s.Do("default", "connector_secret.revert", `{"id":"s1","version":1}`)
	if value, err := reveal(); value != "v1" || err != nil {
		t.Errorf("the reverted value is %q, %v", value, err)
	}
	var revealed []events.Event
	for rec, err := range s.Store.Stream(t.Context(), aggregates.ConnectorSecret.Stream("default", "s1"), 0) {
		stage.OK(t, err)
		if e, ok := rec.Event.(events.ConnectorSecretRevealed); ok && rec.Meta.Actor == reader.Actor {
			revealed = append(revealed, e)
		}
	}
	if !slices.Equal(revealed, []events.Event{events.ConnectorSecretRevealed{Version: 3}}) {
		t.Errorf("the log says of who saw it: %v", revealed)
	}
	var refused error = fault.ErrUnavailable
	s.Writes.Store(&refused)
	if value, err := reveal(); value != "" || err == nil {
		t.Errorf("nothing can be recorded, and the value is %q, %v", value, err)
	}
}
