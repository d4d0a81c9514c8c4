package aggregates_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/aggregates/aggregatetest"
	"github.com/credstream/credstream/commands"
)

// A command that a decider has no case for is an error that names it, never "already so".
func TestUnknownCommands(t *testing.T) {
	checks := []func(){
		func() { aggregatetest.Unknown(t, aggregates.Access, commands.Access(struct{ commands.Access }{})) },
		func() { aggregatetest.Unknown(t, aggregates.APIKey, commands.APIKey(struct{ commands.APIKey }{})) },
		func() {
			aggregatetest.Unknown(t, aggregates.AuthClient, commands.AuthClient(struct{ commands.AuthClient }{}))
		},
		func() {
			aggregatetest.Unknown(t, aggregates.CommandRecord, commands.CommandRecord(struct{ commands.CommandRecord }{}))
		},
		func() {
			aggregatetest.Unknown(t, aggregates.Component, commands.Component(struct{ commands.Component }{}))
		},
		func() {
			aggregatetest.Unknown(t, aggregates.ThrottlePolicy, commands.ThrottlePolicy(struct{ commands.ThrottlePolicy }{}))
		},
		func() {
			aggregatetest.Unknown(t, aggregates.Connector, commands.Connector(struct{ commands.Connector }{}))
		},
		func() {
			aggregatetest.Unknown(t, aggregates.ConnectorSecret, commands.ConnectorSecret(struct{ commands.ConnectorSecret }{}))
		},
		func() {
			aggregatetest.Unknown(t, aggregates.Credential, commands.Credential(struct{ commands.Credential }{}))
		},
		func() { aggregatetest.Unknown(t, aggregates.Role, commands.Role(struct{ commands.Role }{})) },
		func() { aggregatetest.Unknown(t, aggregates.Flow, commands.Flow(struct{ commands.Flow }{})) },
		func() {
			aggregatetest.Unknown(t, aggregates.Installation, commands.Installation(struct{ commands.Installation }{}))
		},
		func() {
			aggregatetest.Unknown(t, aggregates.OAuthClient, commands.OAuthClient(struct{ commands.OAuthClient }{}))
		},
		func() { aggregatetest.Unknown(t, aggregates.Webhook, commands.Webhook(struct{ commands.Webhook }{})) },
		func() { aggregatetest.Unknown(t, aggregates.Tenant, commands.Tenant(struct{ commands.Tenant }{})) },
	}
	for _, check := range checks {
		check()
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	deciders := 0
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(file, "_test.go") {
			deciders += strings.Count(string(source), " = Decider[")
		}
	}
	if deciders != len(checks) {
		t.Errorf("%d deciders, %d of them looked at", deciders, len(checks))
	}
}
