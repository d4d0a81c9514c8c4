package aggregates_test

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/aggregates/aggregatetest"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
)

var noon = time.Date(2030, 1, 2, 12, 0, 0, 0, time.UTC)

func tokenKeys(secret string) commands.NewKeys {
	k := keys(secret)
	k.Tokens = &commands.Tokens{Field: "oauth", By: "keys", Expires: noon, Lifetime: time.Hour, Renewable: true, Scope: "read"}
	return k
}

func TestTokens(t *testing.T) {
	type (
		facts = []events.Credential
		tc    = aggregatetest.Case[commands.Credential, events.Credential]
	)
	created := events.CredentialCreated{Component: "sheets", Name: "S", Keys: version(1, "s1")}
	authorized := func(grant, version int) events.CredentialAuthorized {
		return events.CredentialAuthorized{
			Grant: grant, Version: version, Field: "oauth", By: "keys", Expires: noon, Lifetime: 3600, Renewable: true, Scope: "read",
		}
	}
	started := func(epoch, over int) events.CredentialRefreshStarted {
		return events.CredentialRefreshStarted{Epoch: epoch, Grant: 1, SecretID: fmt.Sprint("t", epoch), Holder: "p", Over: over}
	}
	start := func(of, over int) commands.StartRefresh {
		return commands.StartRefresh{ID: "c", InstanceID: "p", SecretID: fmt.Sprint("t", max(of, over)+1), Epoch: of, TakesOver: over}
	}
	refreshed := func(epoch int, late bool) events.CredentialRefreshed {
		return events.CredentialRefreshed{
			Epoch: epoch, Grant: 1, SecretID: fmt.Sprint("t", epoch), Expires: noon.Add(time.Hour), Lifetime: 3600, Rotated: true, Late: late,
		}
	}
	complete := func(epoch int) commands.CompleteRefresh {
		return commands.CompleteRefresh{
			ID: "c", Epoch: epoch, Grant: 1, SecretID: fmt.Sprint("t", epoch), Expires: noon.Add(time.Hour), Lifetime: time.Hour, Rotated: true,
		}
	}
	fail := func(epoch int, lost string) commands.FailRefresh {
		c := commands.FailRefresh{ID: "c", Epoch: epoch, Grant: 1, Outcome: "transient", Status: 503, RetryAt: noon}
		if lost != "" {
			c.Outcome, c.Status, c.ReauthReason = "revoked", 400, lost
		}
		return c
	}
	failed := events.CredentialRefreshFailed{Epoch: 1, Grant: 1, Outcome: "transient", Status: 503, RetryAt: noon}
	refused := func(epoch int) events.CredentialRefreshFailed {
		return events.CredentialRefreshFailed{Epoch: epoch, Grant: 1, Outcome: "revoked", Status: 400, RetryAt: noon}
	}
	unknown := events.CredentialRefreshFailed{Epoch: 1, Grant: 1, Outcome: "unknown"}
	lost := events.CredentialReauthorizationRequired{Grant: 1, Reason: "revoked", Says: "Gone.", Flows: []string{}, RetryAt: noon}
	used := events.CredentialUsed{Flow: "f1", Revision: 1, Named: true, Active: true, Steps: []string{"s"}}
	lostToFlow := lost
	lostToFlow.Flows, lostToFlow.Total = []string{"f1"}, 1
	unproved := func(epoch int) events.CredentialRefreshed {
		e := refreshed(epoch, true)
		e.Expires = time.Time{}
		return e
	}
	recovered := events.CredentialRecovered{Grant: 1, Status: events.Verified}
	cutting := commands.RequireReauthorization{ID: "c", Grant: 1, Reason: aggregates.ReasonRevokedHere, Says: aggregates.RevokedHere}
	cut := events.CredentialReauthorizationRequired{Grant: 1, Reason: aggregates.ReasonRevokedHere, Says: aggregates.RevokedHere, Flows: []string{}}
	given := facts{created, authorized(1, 1)}
	revoked := append(given, started(1, 0), refused(1), lost)
	replacedKeys := events.CredentialKeysReplaced{Keys: version(2, "s2")}

	aggregatetest.Run(t, aggregates.Credential,
		tc{
			Name: "create with tokens", When: commands.CreateCredential{ID: "c", Component: "sheets", Name: "S", Keys: tokenKeys("s1")},
			Then: given,
		},
		tc{
			Name: "replace the tokens", Given: given, When: commands.ReplaceKeys{ID: "c", Keys: tokenKeys("s2")},
			Then: facts{replacedKeys, authorized(2, 2)}, Again: true,
		},
		tc{Name: "revert tokens", Given: append(given, replacedKeys, authorized(2, 2)), When: commands.RevertCredential{ID: "c", To: 1, Keys: keys("s1")}, Err: aggregates.ErrRevertOAuth},

		tc{Name: "begin", Given: given, When: start(0, 0), Then: facts{started(1, 0)}},
		tc{Name: "begin without tokens", Given: facts{created}, When: start(0, 0), Err: aggregates.ErrNotOAuth},
		tc{Name: "begin what is gone", Given: append(given, events.CredentialDeleted{}), When: start(0, 0), Err: aggregates.ErrCredentialNotFound},
		tc{Name: "begin beside another", Given: append(given, started(1, 0)), When: start(0, 0), Err: aggregates.ErrRefreshUnderWay},
		tc{Name: "begin for an old token", Given: append(given, started(1, 0), refreshed(1, false)), When: start(0, 0), Err: aggregates.ErrRefreshNeedless},
		tc{Name: "take over", Given: append(given, started(1, 0)), When: start(0, 1), Then: facts{unknown, started(2, 1)}},
		tc{Name: "take over what was taken over", Given: append(given, started(1, 0), unknown, started(2, 1)), When: start(0, 1), Err: aggregates.ErrRefreshUnderWay},
		tc{Name: "begin again after a failure", Given: append(given, started(1, 0), failed), When: start(0, 0), Then: facts{events.CredentialRefreshStarted{Epoch: 2, Grant: 1, SecretID: "t1", Holder: "p"}}},

		tc{Name: "complete", Given: append(given, started(1, 0)), When: complete(1), Then: facts{refreshed(1, false)}},
		tc{Name: "complete twice", Given: append(given, started(1, 0), refreshed(1, false)), When: complete(1)},
		tc{Name: "complete after the end", Given: append(given, started(1, 0), events.CredentialDeleted{}), When: complete(1), Err: aggregates.ErrCredentialNotFound},
		tc{Name: "complete an older one late", Given: append(given, started(1, 0), unknown, started(2, 1)), When: complete(1), Then: facts{unproved(1)}},
		tc{Name: "complete after a newer one", Given: append(given, started(1, 0), unknown, started(2, 1), refreshed(2, false)), When: complete(1), Err: aggregates.ErrRefreshSuperseded},
		tc{Name: "complete of an older grant", Given: append(given, started(1, 0), replacedKeys, authorized(2, 2)), When: complete(1), Err: aggregates.ErrRefreshSuperseded},
		tc{Name: "complete of keys without tokens", Given: append(given, started(1, 0), replacedKeys), When: complete(1), Err: aggregates.ErrNotOAuth},

		tc{Name: "fail", Given: append(given, started(1, 0)), When: fail(1, ""), Then: facts{failed}},
		tc{Name: "fail what has ended", Given: append(given, started(1, 0), failed), When: fail(1, "")},
		tc{Name: "fail what was taken over", Given: append(given, started(1, 0), unknown, started(2, 1)), When: fail(1, "Gone.")},
		tc{
			Name: "a turn that did not come", Given: append(given, started(1, 0)),
			When: commands.FailRefresh{ID: "c", Epoch: 1, Grant: 1, Outcome: aggregates.OutcomeBusy, RetryAt: noon},
			Then: facts{events.CredentialRefreshFailed{Epoch: 1, Grant: 1, Outcome: aggregates.OutcomeBusy, RetryAt: noon}},
		},
		tc{Name: "revoked", Given: append(given, used, started(1, 0)), When: fail(1, "Gone."), Then: facts{refused(1), lostToFlow}},
		tc{
			Name: "refused because a late answer won", Given: append(given, started(1, 0), unknown, started(2, 1), refreshed(1, true)),
			When: fail(2, "Gone."), Then: facts{refused(2)},
		},
		tc{Name: "begin when revoked", Given: revoked, When: start(0, 0), Err: aggregates.ErrReauthorizationRequired},
		tc{
			Name: "insist when revoked", Given: revoked, When: commands.StartRefresh{ID: "c", InstanceID: "p", SecretID: "t2", RetryRejected: true},
			Then: facts{started(2, 0)},
		},
		tc{Name: "a late answer is to be proved", Given: append(given, started(1, 0), unknown, started(2, 1), refused(2), lost), When: complete(1), Then: facts{unproved(1)}},
		tc{
			Name: "proving it", Given: append(given, started(1, 0), unknown, started(2, 1), refused(2), lost, unproved(1)),
			When: commands.StartRefresh{ID: "c", InstanceID: "p", SecretID: "t3", Epoch: 1, RetryRejected: true}, Then: facts{started(3, 0)},
		},
		tc{
			Name: "proved", Given: append(given, started(1, 0), unknown, started(2, 1), refused(2), lost, unproved(1), started(3, 0)),
			When: complete(3), Then: facts{refreshed(3, false), recovered},
		},
		tc{
			Name: "not proved", Given: append(given, started(1, 0), unknown, started(2, 1), refused(2), lost, unproved(1), started(3, 0)),
			When: fail(3, "Gone."), Then: facts{refused(3), lost},
		},
		tc{
			Name: "not proved yet", Given: append(given, started(1, 0), unknown, started(2, 1), refused(2), lost, unproved(1), started(3, 0)),
			When: fail(3, ""), Then: facts{events.CredentialRefreshFailed{Epoch: 3, Grant: 1, Outcome: "transient", Status: 503, RetryAt: noon}},
		},
		tc{
			Name: "insisted in vain", Given: append(revoked, started(2, 0)), When: fail(2, ""),
			Then: facts{events.CredentialRefreshFailed{Epoch: 2, Grant: 1, Outcome: "transient", Status: 503, RetryAt: noon}},
		},
		tc{
			Name: "connected again", Given: revoked, When: commands.ReplaceKeys{ID: "c", Keys: tokenKeys("s2")},
			Then: facts{replacedKeys, authorized(2, 2), events.CredentialRecovered{Grant: 2, Status: events.Verified}}, Again: true,
		},

		tc{
			Name: "revoke here", Given: given, When: commands.RevokeTokens{ID: "c", Grant: 1},
			Then: facts{events.CredentialTokensRevoked{Grant: 1}, events.CredentialReauthorizationRequired{
				Grant: 1, Reason: "revoked_here", Says: "The tokens were revoked on request. Connect the credential again.", Flows: []string{},
			}},
		},
		tc{
			Name: "an answer after that", Given: append(given, started(1, 0), events.CredentialTokensRevoked{Grant: 1}, lost),
			When: complete(1), Err: aggregates.ErrRefreshSuperseded,
		},
		tc{
			Name: "insist after that", Given: append(given, events.CredentialTokensRevoked{Grant: 1}, lost),
			When: commands.StartRefresh{ID: "c", InstanceID: "p", SecretID: "t1", RetryRejected: true}, Err: aggregates.ErrReauthorizationRequired,
		},
		tc{Name: "revoke a grant that is over", Given: append(given, replacedKeys, authorized(2, 2)), When: commands.RevokeTokens{ID: "c", Grant: 1}},
		tc{Name: "cut", Given: given, When: cutting, Then: facts{cut}},
		tc{Name: "cut what was refused before", Given: revoked, When: cutting, Then: facts{cut}},
		tc{Name: "insist after the cut", Given: append(given, cut), When: commands.StartRefresh{ID: "c", InstanceID: "p", SecretID: "t1", RetryRejected: true}, Err: aggregates.ErrReauthorizationRequired},
		tc{Name: "an answer after the cut", Given: append(given, started(1, 0), cut), When: complete(1), Err: aggregates.ErrRefreshSuperseded},
		tc{Name: "revoke after the cut", Given: append(given, cut), When: commands.RevokeTokens{ID: "c", Grant: 1}, Then: facts{events.CredentialTokensRevoked{Grant: 1}}},
		tc{
			Name: "connected again after the cut", Given: append(given, cut), When: commands.ReplaceKeys{ID: "c", Keys: tokenKeys("s2")},
			Then: facts{replacedKeys, authorized(2, 2), events.CredentialRecovered{Grant: 2, Status: events.Verified}}, Again: true,
		},
		tc{Name: "what the provider said of the end", Given: append(given, events.CredentialDeleted{}), When: commands.RecordProviderRevocation{ID: "c", Outcome: "revoked"}, Then: facts{events.CredentialRevokedAtProvider{Outcome: "revoked"}}, Again: true},
	)
}

// Processes that race, stall and die must not lose tokens: whatever is put into
// the vault for the grant in force and is newer than what is in force is still
// named, until newer tokens are in force.
func TestTokensOfRacingProcesses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type process struct{ epoch, grant int } // what it believes to hold
		var s aggregates.CredentialState
		do := func(c commands.Credential) error {
			facts, err := aggregates.Credential.Decide(s, c)
			for _, f := range facts {
				s = aggregates.Credential.Evolve(s, f)
			}
			return err
		}
		if err := do(commands.CreateCredential{ID: "c", Component: "sheets", Name: "S", Keys: tokenKeys("s")}); err != nil {
			t.Fatal(err)
		}
		processes := make([]process, 3)
		for n := range rapid.IntRange(1, 40).Draw(t, "steps") {
			p := &processes[rapid.IntRange(0, 2).Draw(t, "process")]
			before := s.Tokens
			switch rapid.IntRange(0, 5).Draw(t, "act") {
			case 0: // begin, or take over
				err := do(commands.StartRefresh{ID: "c", InstanceID: "p", SecretID: fmt.Sprint("t", n), Epoch: before.Token.Epoch, TakesOver: before.Refresh.Epoch})
				if err != nil {
					break
				}
				*p = process{s.Tokens.Refresh.Epoch, s.Tokens.Grant}
				if s.Tokens.Refresh.Epoch <= before.Epoch {
					t.Fatalf("epoch %d follows %d", s.Tokens.Refresh.Epoch, before.Epoch)
				}
			case 1, 2: // the answer is in the vault
				secret := ""
				for _, r := range append(before.Late, before.Refresh) {
					if r.Epoch == p.epoch {
						secret = r.SecretID
					}
				}
				if secret == "" || p.grant != before.Grant {
					break
				}
				if !s.References(secret) {
					t.Fatalf("the answer of epoch %d is not named: the collector could erase it", p.epoch)
				}
				err := do(commands.CompleteRefresh{ID: "c", Epoch: p.epoch, Grant: p.grant, SecretID: secret, Expires: noon, Lifetime: time.Hour})
				if err != nil && before.Token.Epoch < p.epoch {
					t.Fatalf("the answer of epoch %d was refused while %d was in force: %v", p.epoch, before.Token.Epoch, err)
				}
				if s.Tokens.ReauthReason != "" && !s.Tokens.Unverified && s.Tokens.Token.Epoch == p.epoch && err == nil && before.Token.Epoch != p.epoch {
					t.Fatal("there are new tokens and re-authorization is required")
				}
			case 3:
				_ = do(commands.FailRefresh{ID: "c", Epoch: p.epoch, Grant: p.grant, Outcome: "transient", RetryAt: noon})
			case 4:
				_ = do(commands.FailRefresh{ID: "c", Epoch: p.epoch, Grant: p.grant, Outcome: "revoked", RetryAt: noon, ReauthReason: "Gone."})
			case 5:
				if err := do(commands.ReplaceKeys{ID: "c", Keys: tokenKeys(fmt.Sprint("s", n))}); err != nil {
					t.Fatal(err)
				}
			}
			if s.Tokens.Token.Epoch < before.Token.Epoch {
				t.Fatalf("tokens of epoch %d took the place of those of %d", s.Tokens.Token.Epoch, before.Token.Epoch)
			}
		}
	})
}
