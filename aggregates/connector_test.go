package aggregates_test

import (
	"testing"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/aggregates/aggregatetest"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
)

func TestConnector(t *testing.T) {
	type (
		facts = []events.Connector
		tc    = aggregatetest.Case[commands.Connector, events.Connector]
		key   = commands.ConnectorKey
	)
	wiki, other := events.ConnectorSettings{Name: "Wiki"}, events.ConnectorSettings{Name: "Wiki 2", Native: true}
	created, deleted := events.ConnectorCreated{Connector: wiki}, events.ConnectorDeleted{}
	keyed := events.ConnectorAPIKeySet{APIKeyID: "k1", SecretID: "s1", Use: "u1"}
	abandoned := events.ConnectorUseAbandoned{Use: "u2"}
	aggregatetest.Run(t, aggregates.Connector,
		tc{Name: "create", When: commands.PutConnector{ID: "c", Settings: wiki}, Then: facts{created}},
		tc{Name: "create with a key", When: commands.PutConnector{ID: "c", Settings: wiki, Key: key{APIKeyID: "k1", SecretID: "s1", Use: "u1"}}, Then: facts{created, keyed}},
		tc{Name: "put the same", Given: facts{created}, When: commands.PutConnector{ID: "c", Settings: wiki}},
		tc{Name: "other settings keep the key", Given: facts{created, keyed}, When: commands.PutConnector{ID: "c", Settings: other}, Then: facts{events.ConnectorChanged{Connector: other}}},
		tc{Name: "a key of what was deleted", Given: facts{created, keyed, deleted}, When: commands.SetConnectorKey{ID: "c", Key: key{APIKeyID: "k1"}}, Err: aggregates.ErrConnectorNotFound},
		tc{Name: "a key of nothing", When: commands.SetConnectorKey{ID: "c", Key: key{APIKeyID: "k1"}}, Err: aggregates.ErrConnectorNotFound},
		tc{Name: "a key id alone", Given: facts{created, keyed}, When: commands.SetConnectorKey{ID: "c", Key: key{APIKeyID: "k2"}}, Then: facts{events.ConnectorAPIKeySet{APIKeyID: "k2", SecretID: "s1", Use: "u1"}}},
		tc{Name: "a secret alone", Given: facts{created, keyed}, When: commands.SetConnectorKey{ID: "c", Key: key{SecretID: "s2", Use: "u2"}}, Then: facts{events.ConnectorAPIKeySet{APIKeyID: "k1", SecretID: "s2", Use: "u2"}}},
		tc{Name: "the same secret by another use", Given: facts{created, keyed}, When: commands.SetConnectorKey{ID: "c", Key: key{SecretID: "s1", Use: "u2"}}},
		tc{Name: "nothing", Given: facts{created, keyed}, When: commands.SetConnectorKey{ID: "c"}},
		tc{Name: "a secret that records no use", Given: facts{created}, When: commands.SetConnectorKey{ID: "c", Key: key{SecretID: "s2"}}, Err: aggregates.ErrConnectorUseMoved},
		tc{Name: "a use that was abandoned", Given: facts{created, abandoned}, When: commands.SetConnectorKey{ID: "c", Key: key{SecretID: "s2", Use: "u2"}}, Err: aggregates.ErrConnectorUseMoved},
		tc{Name: "a use that was abandoned before a deletion", Given: facts{created, abandoned, deleted}, When: commands.PutConnector{ID: "c", Settings: wiki, Key: key{SecretID: "s2", Use: "u2"}}, Err: aggregates.ErrConnectorUseMoved},
		tc{Name: "abandon a use that is made", Given: facts{created, keyed}, When: commands.AbandonConnectorUse{ID: "c", Use: "u1"}},
		tc{Name: "abandon a use that is not made", Given: facts{created, keyed}, When: commands.AbandonConnectorUse{ID: "c", Use: "u2"}, Then: facts{abandoned}},
		tc{Name: "abandon a use of nothing", When: commands.AbandonConnectorUse{ID: "c", Use: "u2"}, Then: facts{abandoned}},
		tc{Name: "delete", Given: facts{created, keyed}, When: commands.DeleteConnector{ID: "c"}, Then: facts{deleted}, Again: true},
		tc{Name: "delete nothing", Given: facts{abandoned}, When: commands.DeleteConnector{ID: "c"}, Err: aggregates.ErrConnectorNotFound},
	)
}

func TestConnectorSecret(t *testing.T) {
	type (
		facts = []events.ConnectorSecret
		tc    = aggregatetest.Case[commands.ConnectorSecret, events.ConnectorSecret]
	)
	created, replaced := events.ConnectorSecretCreated{Version: 1, SecretID: "v1"}, events.ConnectorSecretReplaced{Version: 2, SecretID: "v2"}
	used, released := events.ConnectorSecretUsed{Connector: "c", Use: "u1"}, events.ConnectorSecretReleased{Connector: "c", Use: "u1"}
	deleted := events.ConnectorSecretDeleted{}
	full := facts{created} // versions 1 to 11: the first is let go
	for n := 2; n <= aggregates.KeptVersions+1; n++ {
		full = append(full, events.ConnectorSecretReplaced{Version: n, SecretID: "v"})
	}
	put, put3 := commands.PutConnectorSecret{ID: "s", SecretID: "v1"}, commands.PutConnectorSecret{ID: "s", SecretID: "v3"}
	expecting := put3
	expecting.Expected = 1
	aggregatetest.Run(t, aggregates.ConnectorSecret,
		tc{Name: "create", When: put, Then: facts{created}, Again: true},
		tc{Name: "replace", Given: facts{created, replaced}, When: put3, Then: facts{events.ConnectorSecretReplaced{Version: 3, SecretID: "v3"}}, Again: true},
		tc{Name: "replace another version", Given: facts{created, replaced}, When: expecting, Err: aggregates.ErrConnectorSecretVersionStale},
		tc{Name: "create anew", Given: facts{created, replaced, deleted}, When: put3, Then: facts{events.ConnectorSecretCreated{Version: 3, SecretID: "v3"}}, Again: true},
		tc{Name: "a collected value", Given: facts{events.SecretAbandoned{SecretID: "v1"}}, When: put, Err: aggregates.ErrSecretAbandoned},
		tc{Name: "revert", Given: facts{created, replaced}, When: commands.RevertConnectorSecret{ID: "s", To: 1}, Then: facts{events.ConnectorSecretReverted{To: 1, Version: 3, SecretID: "v1"}}, Again: true},
		tc{Name: "revert to what is in force", Given: facts{created}, When: commands.RevertConnectorSecret{ID: "s", To: 1}},
		tc{Name: "revert to what was let go", Given: full, When: commands.RevertConnectorSecret{ID: "s", To: 1}, Err: aggregates.ErrConnectorSecretVersionNotFound},
		tc{Name: "revert to a version before a deletion", Given: facts{created, deleted, events.ConnectorSecretCreated{Version: 2, SecretID: "v2"}}, When: commands.RevertConnectorSecret{ID: "s", To: 1}, Err: aggregates.ErrConnectorSecretVersionNotFound},
		tc{Name: "revert nothing", When: commands.RevertConnectorSecret{ID: "s", To: 1}, Err: aggregates.ErrConnectorSecretNotFound},
		tc{Name: "reveal", Given: facts{created}, When: commands.RevealConnectorSecret{ID: "s", Version: 1}, Then: facts{events.ConnectorSecretRevealed{Version: 1}}, Again: true},
		tc{Name: "reveal another version", Given: facts{created, replaced}, When: commands.RevealConnectorSecret{ID: "s", Version: 1}, Err: aggregates.ErrConnectorSecretMoved},
		tc{Name: "reveal nothing", Given: facts{created, deleted}, When: commands.RevealConnectorSecret{ID: "s", Version: 1}, Err: aggregates.ErrConnectorSecretNotFound},
		tc{Name: "use", Given: facts{created}, When: commands.UseConnectorSecret{ID: "s", Connector: "c", Use: "u1"}, Then: facts{used}},
		tc{Name: "use nothing", Given: facts{created, deleted}, When: commands.UseConnectorSecret{ID: "s", Connector: "c", Use: "u1"}, Err: aggregates.ErrConnectorSecretNotFound},
		tc{Name: "release", Given: facts{created, used}, When: commands.ReleaseConnectorSecret{ID: "s", Connector: "c", Use: "u1"}, Then: facts{released}},
		tc{Name: "release another use", Given: facts{created, used}, When: commands.ReleaseConnectorSecret{ID: "s", Connector: "c", Use: "u2"}},
		tc{Name: "delete what is used", Given: facts{created, used}, When: commands.DeleteConnectorSecret{ID: "s"}, Err: aggregates.ErrConnectorSecretInUse},
		tc{Name: "delete what is used no more", Given: facts{created, used, released}, When: commands.DeleteConnectorSecret{ID: "s"}, Then: facts{deleted}, Again: true},
		tc{Name: "delete nothing", When: commands.DeleteConnectorSecret{ID: "s"}, Err: aggregates.ErrConnectorSecretNotFound},
		tc{Name: "abandon a value that is kept", Given: facts{created, replaced}, When: commands.AbandonConnectorSecret{ID: "s", SecretID: "v1"}},
		tc{Name: "abandon a value that is erased", Given: facts{created, deleted}, When: commands.AbandonConnectorSecret{ID: "s", SecretID: "v1"}, Then: facts{events.SecretAbandoned{SecretID: "v1"}}},
	)
}
