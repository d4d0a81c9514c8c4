package aggregates_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/aggregates/aggregatetest"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
)

var good = events.Verification{Status: events.Verified, Probe: "http", Outcome: "2xx", LatencyMS: 3}

// keys are new keys under a secret id; version is what they become.
func keys(secret string) commands.NewKeys {
	return commands.NewKeys{SecretID: secret, Fields: []string{"apiKey"}, Revision: 1, Hosts: []string{"api.example.org"}, HostMAC: "m", Verification: good}
}

func version(n int, secret string) events.KeysVersion {
	return events.KeysVersion{
		Version: n, SecretID: secret, Fields: []string{"apiKey"}, Revision: 1, Hosts: []string{"api.example.org"}, HostMAC: "m", Verification: good,
	}
}

func TestCredential(t *testing.T) {
	type (
		facts = []events.Credential
		tc    = aggregatetest.Case[commands.Credential, events.Credential]
	)
	created := events.CredentialCreated{Component: "petstore", Name: "Pets", Keys: version(1, "s1")}
	replaced := events.CredentialKeysReplaced{Keys: version(2, "s2")}
	create := commands.CreateCredential{ID: "c", Component: "petstore", Name: "Pets", Keys: keys("s1")}
	otherHost, otherMAC := keys("s1"), keys("s1")
	otherHost.Hosts = []string{"evil.example.org"}
	otherMAC.HostMAC = "n"
	movedMAC := version(2, "s2")
	movedMAC.HostMAC = "n"
	failed := events.Verification{Status: events.Failed, Probe: "http", Outcome: "4xx"}

	many := facts{created}
	for n := 2; n <= 12; n++ {
		many = append(many, events.CredentialKeysReplaced{Keys: version(n, fmt.Sprint("s", n))})
	}

	aggregatetest.Run(t, aggregates.Credential,
		tc{Name: "create", When: create, Then: facts{created}},
		tc{Name: "create what exists", Given: facts{created}, When: create, Err: aggregates.ErrCredentialExists},
		tc{Name: "create what was deleted", Given: facts{created, events.CredentialDeleted{}}, When: create, Err: aggregates.ErrCredentialExists},
		tc{Name: "create with a collected secret", Given: facts{events.SecretAbandoned{SecretID: "s1"}}, When: create, Err: aggregates.ErrSecretAbandoned},
		tc{
			Name: "create anew after a collected secret", Given: facts{events.SecretAbandoned{SecretID: "s0"}},
			When: create, Then: facts{created},
		},
		tc{
			Name: "create behind a VPN agent", When: commands.CreateCredential{ID: "c", Component: "petstore", Name: "Pets", VPNAgent: "v1", Keys: keys("s1")},
			Then: facts{created, events.CredentialVPNAgentSet{VPNAgent: "v1"}},
		},
		tc{Name: "VPN agent", Given: facts{created}, When: commands.SetVPNAgent{VPNAgent: "v1"}, Then: facts{events.CredentialVPNAgentSet{VPNAgent: "v1"}}},
		tc{Name: "VPN agent to what it is", Given: facts{created, events.CredentialVPNAgentSet{VPNAgent: "v1"}}, When: commands.SetVPNAgent{VPNAgent: "v1"}},
		tc{Name: "no VPN agent", Given: facts{created, events.CredentialVPNAgentSet{VPNAgent: "v1"}}, When: commands.SetVPNAgent{}, Then: facts{events.CredentialVPNAgentSet{}}},
		tc{Name: "VPN agent of nothing", When: commands.SetVPNAgent{VPNAgent: "v1"}, Err: aggregates.ErrCredentialNotFound},
		tc{Name: "rename", Given: facts{created}, When: commands.RenameCredential{Name: "Dogs"}, Then: facts{events.CredentialRenamed{Name: "Dogs"}}},
		tc{Name: "rename to what it is", Given: facts{created}, When: commands.RenameCredential{Name: "Pets"}},
		tc{Name: "rename nothing", When: commands.RenameCredential{Name: "Dogs"}, Err: aggregates.ErrCredentialNotFound},
		tc{Name: "rename, stale", Given: facts{created, replaced}, When: commands.RenameCredential{Name: "Dogs", Expected: 1}, Err: aggregates.ErrCredentialVersionStale},
		tc{Name: "replace keys", Given: facts{created}, When: commands.ReplaceKeys{Keys: keys("s2"), Expected: 1}, Then: facts{replaced}, Again: true},
		tc{Name: "replace keys, stale", Given: facts{created, replaced}, When: commands.ReplaceKeys{Keys: keys("s3"), Expected: 1}, Err: aggregates.ErrCredentialVersionStale},
		tc{Name: "replace keys of nothing", When: commands.ReplaceKeys{Keys: keys("s2")}, Err: aggregates.ErrCredentialNotFound},
		tc{Name: "replace keys with a collected secret", Given: facts{created, events.SecretAbandoned{SecretID: "s2"}}, When: commands.ReplaceKeys{Keys: keys("s2")}, Err: aggregates.ErrSecretAbandoned},
		tc{
			Name: "revert", Given: facts{created, replaced}, When: commands.RevertCredential{To: 1, Keys: keys("s1")},
			Then: facts{events.CredentialReverted{To: 1, Keys: version(3, "s1")}}, Again: true,
		},
		tc{Name: "revert to what it is", Given: facts{created, replaced}, When: commands.RevertCredential{To: 2, Keys: keys("s2")}},
		tc{Name: "revert to no version", Given: facts{created}, When: commands.RevertCredential{To: 7, Keys: keys("s7")}, Err: aggregates.ErrCredentialVersionNotFound},
		tc{Name: "revert to a version too old", Given: many, When: commands.RevertCredential{To: 2, Keys: keys("s2")}, Err: aggregates.ErrCredentialVersionNotFound},
		tc{
			Name: "revert to the oldest kept", Given: many, When: commands.RevertCredential{To: 3, Keys: keys("s3")},
			Then: facts{events.CredentialReverted{To: 3, Keys: version(13, "s3")}}, Again: true,
		},
		tc{Name: "revert names another secret", Given: facts{created, replaced}, When: commands.RevertCredential{To: 1, Keys: keys("s9")}, Err: aggregates.ErrCredentialVersionNotFound},
		tc{Name: "revert across hosts", Given: facts{created, replaced}, When: commands.RevertCredential{To: 1, Keys: otherHost}, Err: aggregates.ErrCredentialHostsChanged},
		tc{
			Name: "revert across host values", Given: facts{created, events.CredentialKeysReplaced{Keys: movedMAC}},
			When: commands.RevertCredential{To: 1, Keys: otherMAC}, Err: aggregates.ErrCredentialHostsChanged,
		},
		tc{
			Name: "verify", Given: facts{created}, When: commands.RecordVerification{Version: 1, Verification: failed},
			Then: facts{events.CredentialVerified{Version: 1, Verification: failed}}, Again: true,
		},
		tc{Name: "verify an old version", Given: facts{created, replaced}, When: commands.RecordVerification{Version: 1, Verification: failed}, Err: aggregates.ErrCredentialVersionStale},
		tc{Name: "delete", Given: facts{created}, When: commands.DeleteCredential{}, Then: facts{events.CredentialDeleted{}}},
		tc{Name: "delete twice", Given: facts{created, events.CredentialDeleted{}}, When: commands.DeleteCredential{}, Err: aggregates.ErrCredentialNotFound},
		tc{Name: "delete, stale", Given: facts{created, replaced}, When: commands.DeleteCredential{Expected: 1}, Err: aggregates.ErrCredentialVersionStale},
		tc{Name: "abandon before there is an owner", When: commands.AbandonSecret{SecretID: "s1"}, Then: facts{events.SecretAbandoned{SecretID: "s1"}}},
		tc{Name: "abandon what is in force", Given: facts{created}, When: commands.AbandonSecret{SecretID: "s1"}},
		tc{Name: "abandon what an older version names", Given: facts{created, replaced}, When: commands.AbandonSecret{SecretID: "s1"}},
		tc{Name: "abandon what was let go", Given: many, When: commands.AbandonSecret{SecretID: "s1"}, Then: facts{events.SecretAbandoned{SecretID: "s1"}}},
		tc{Name: "abandon does not make the owner exist", Given: facts{events.SecretAbandoned{SecretID: "s1"}}, When: commands.RenameCredential{Name: "x"}, Err: aggregates.ErrCredentialNotFound},
	)
}

// Whatever commands come in whatever order: versions rise by one, the secret in
// force is never an abandoned one, and no more than KeptVersions are kept.
func TestCredentialInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s aggregates.CredentialState
		d := aggregates.Credential
		secret := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n"})
		for range rapid.IntRange(1, 60).Draw(t, "commands") {
			var cmd commands.Credential
			k := keys(secret.Draw(t, "secret"))
			switch rapid.IntRange(0, 6).Draw(t, "command") {
			case 0:
				cmd = commands.CreateCredential{Keys: k}
			case 1, 2:
				cmd = commands.ReplaceKeys{Keys: k}
			case 3:
				cmd = commands.RevertCredential{To: rapid.IntRange(1, 20).Draw(t, "to"), Keys: k}
			case 4:
				cmd = commands.AbandonSecret{SecretID: k.SecretID}
			case 5:
				cmd = commands.RecordVerification{Version: s.Current().Version, Verification: good}
			case 6:
				cmd = commands.DeleteCredential{Expected: rapid.IntRange(0, 9).Draw(t, "expected")}
			}
			before := s.Current().Version
			facts, err := d.Decide(s, cmd)
			if err != nil && len(facts) > 0 {
				t.Fatalf("%#v was refused and gave %v", cmd, facts)
			}
			for _, f := range facts {
				s = d.Evolve(s, f)
			}
			if now := s.Current().Version; s.Live() && now != before && now != before+1 {
				t.Fatalf("version %d follows %d", now, before)
			}
			if len(s.Versions) > aggregates.KeptVersions {
				t.Fatalf("%d versions are kept", len(s.Versions))
			}
			for _, a := range s.Abandoned {
				if s.References(a) {
					t.Fatalf("the abandoned secret %s is named", a)
				}
			}
		}
	})
}
