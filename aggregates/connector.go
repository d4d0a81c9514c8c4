package aggregates

import (
	"slices"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// Errors of a connector.
var (
	ErrConnectorNotFound = fault.New(fault.NotFound, "connector_not_found", "Connector not found.")
	// ErrConnectorUseMoved tells the service that its view of a connector's use of a
	// secret is stale, or that the use was abandoned: it must record a new use. Callers never see it.
	ErrConnectorUseMoved = fault.New(fault.Conflict, "connector_use_moved", "The connector was changed concurrently. Try again.")
)

// Connector is the aggregate of one connector.
var Connector = Decider[ConnectorState, commands.Connector, events.Connector]{
	Category: "connector", Fold: 1, Decide: ConnectorState.decide, Evolve: ConnectorState.evolve,
}

// ConnectorState is the state of a connector.
type ConnectorState struct {
	Live      bool
	Settings  events.ConnectorSettings
	APIKeyID  string
	SecretID  string   // of its connector secret, or ""
	Use       string   // the use that the secret records
	Abandoned []string // uses that no event may name from now on
}

func (s ConnectorState) decide(cmd commands.Connector) ([]events.Connector, error) {
	switch c := cmd.(type) {
	case commands.PutConnector:
		var facts []events.Connector
		switch {
		case !s.Live:
			facts = append(facts, events.ConnectorCreated{Connector: c.Settings})
		case s.Settings != c.Settings:
			facts = append(facts, events.ConnectorChanged{Connector: c.Settings})
		}
		key, err := s.set(c.Key)
		if err != nil {
			return nil, err
		}
		return append(facts, key...), nil
	case commands.SetConnectorKey:
		if !s.Live {
			return nil, ErrConnectorNotFound
		}
		return s.set(c.Key)
	case commands.AbandonConnectorUse:
		if s.Use == c.Use || slices.Contains(s.Abandoned, c.Use) {
			return nil, nil
		}
		return []events.Connector{events.ConnectorUseAbandoned{Use: c.Use}}, nil
	case commands.DeleteConnector:
		if !s.Live {
			return nil, ErrConnectorNotFound
		}
		return []events.Connector{events.ConnectorDeleted{}}, nil
	}
	return nil, unknownCommand(cmd)
}

// set changes the API key. A new secret requires a use.
func (s ConnectorState) set(k commands.ConnectorKey) ([]events.Connector, error) {
	now := events.ConnectorAPIKeySet{APIKeyID: s.APIKeyID, SecretID: s.SecretID, Use: s.Use}
	next := now
	if k.APIKeyID != "" {
		next.APIKeyID = k.APIKeyID
	}
	if k.SecretID != "" && k.SecretID != s.SecretID {
		if k.Use == "" || slices.Contains(s.Abandoned, k.Use) {
			return nil, ErrConnectorUseMoved
		}
		next.SecretID, next.Use = k.SecretID, k.Use
	}
	if next == now {
		return nil, nil
	}
	return []events.Connector{next}, nil
}

func (s ConnectorState) evolve(e events.Connector) ConnectorState {
	switch e := e.(type) {
	case events.ConnectorCreated:
		s.Live, s.Settings = true, e.Connector
	case events.ConnectorChanged:
		s.Settings = e.Connector
	case events.ConnectorAPIKeySet:
		s.APIKeyID, s.SecretID, s.Use = e.APIKeyID, e.SecretID, e.Use
	case events.ConnectorUseAbandoned:
		s.Abandoned = append(slices.Clip(s.Abandoned), e.Use)
	case events.ConnectorDeleted:
		s = ConnectorState{Abandoned: s.Abandoned}
	}
	return s
}

// Errors of a connector secret.
var (
	ErrConnectorSecretNotFound     = fault.New(fault.NotFound, "connector_secret_not_found", "Connector secret not found.")
	ErrConnectorSecretVersionStale = fault.New(fault.Precondition, "connector_secret_version_stale",
		"The connector secret has changed since you read it. Read it again and repeat.")
	ErrConnectorSecretVersionNotFound = fault.New(fault.NotFound, "connector_secret_version_not_found",
		"The connector secret has no such version, or the version is too old to revert to.")
	// ErrConnectorSecretInUse protects a secret that a connector points to. Its sentence names the connectors.
	ErrConnectorSecretInUse = fault.New(fault.Precondition, "connector_secret_in_use",
		"The connector secret is in use. Delete the connectors that point to it, or give them another secret.")
	// ErrConnectorSecretMoved tells the service that the value no longer belongs to the version. Callers never see it.
	ErrConnectorSecretMoved = fault.New(fault.Conflict, "connector_secret_moved", "The connector secret was changed concurrently. Try again.")
)

// ConnectorSecret is the aggregate of one connector secret. Its id may be used
// again after a deletion.
var ConnectorSecret = Decider[ConnectorSecretState, commands.ConnectorSecret, events.ConnectorSecret]{
	Category: "connector_secret", Fold: 1, Decide: ConnectorSecretState.decide, Evolve: ConnectorSecretState.evolve,
	Weight: func(s ConnectorSecretState) int { return len(s.Uses) },
}

// ConnectorSecretState is the state of a connector secret.
type ConnectorSecretState struct {
	Last      int             // the number of the last version, including those before a deletion
	Versions  []SecretVersion // the newest KeptVersions, oldest first; none when there is no secret
	Uses      []ConnectorUse  // by connectors that point to it or are about to
	Abandoned []string        // secret ids that no event may name from now on
}

// SecretVersion is one value of a secret.
type SecretVersion struct {
	Version  int
	SecretID string // where the vault keeps it
}

// ConnectorUse is one use of a secret by a connector.
type ConnectorUse struct{ Connector, Use string }

// Live reports whether the secret exists.
func (s ConnectorSecretState) Live() bool { return len(s.Versions) > 0 }

// Current is the current version; the zero value when there is none.
func (s ConnectorSecretState) Current() SecretVersion {
	if !s.Live() {
		return SecretVersion{}
	}
	return s.Versions[len(s.Versions)-1]
}

// References reports whether a kept version has this secret.
func (s ConnectorSecretState) References(secretID string) bool {
	return slices.ContainsFunc(s.Versions, func(v SecretVersion) bool { return v.SecretID == secretID })
}

// Secrets are the ids of the secrets of all kept versions.
func (s ConnectorSecretState) Secrets() (ids []string) {
	for _, v := range s.Versions {
		ids = append(ids, v.SecretID)
	}
	return ids
}

// Terminal reports whether no further event can name a secret.
func (s ConnectorSecretState) Terminal() bool { return false }

func (s ConnectorSecretState) decide(cmd commands.ConnectorSecret) ([]events.ConnectorSecret, error) {
	one := func(e events.ConnectorSecret) ([]events.ConnectorSecret, error) {
		return []events.ConnectorSecret{e}, nil
	}
	switch c := cmd.(type) {
	case commands.PutConnectorSecret:
		switch {
		case c.Expected != 0 && c.Expected != s.Current().Version:
			return nil, ErrConnectorSecretVersionStale
		case slices.Contains(s.Abandoned, c.SecretID):
			return nil, ErrSecretAbandoned
		case s.Live():
			return one(events.ConnectorSecretReplaced{Version: s.Last + 1, SecretID: c.SecretID})
		}
		return one(events.ConnectorSecretCreated{Version: s.Last + 1, SecretID: c.SecretID})
	case commands.RevertConnectorSecret:
		return s.revert(c)
	case commands.RevealConnectorSecret:
		switch {
		case !s.Live():
			return nil, ErrConnectorSecretNotFound
		case c.Version != s.Current().Version:
			return nil, ErrConnectorSecretMoved
		}
		return one(events.ConnectorSecretRevealed{Version: c.Version})
	case commands.UseConnectorSecret:
		switch {
		case !s.Live():
			return nil, ErrConnectorSecretNotFound
		case slices.Contains(s.Uses, ConnectorUse{c.Connector, c.Use}):
			return nil, nil
		}
		return one(events.ConnectorSecretUsed{Connector: c.Connector, Use: c.Use})
	case commands.ReleaseConnectorSecret:
		if !slices.Contains(s.Uses, ConnectorUse{c.Connector, c.Use}) {
			return nil, nil
		}
		return one(events.ConnectorSecretReleased{Connector: c.Connector, Use: c.Use})
	case commands.DeleteConnectorSecret:
		switch {
		case !s.Live():
			return nil, ErrConnectorSecretNotFound
		case len(s.Uses) > 0:
			return nil, ErrConnectorSecretInUse
		}
		return one(events.ConnectorSecretDeleted{})
	case commands.AbandonConnectorSecret: // also before the secret exists
		if s.References(c.SecretID) || slices.Contains(s.Abandoned, c.SecretID) {
			return nil, nil
		}
		return one(events.SecretAbandoned{SecretID: c.SecretID})
	}
	return nil, unknownCommand(cmd)
}

func (s ConnectorSecretState) revert(c commands.RevertConnectorSecret) ([]events.ConnectorSecret, error) {
	switch now := s.Current().Version; {
	case !s.Live():
		return nil, ErrConnectorSecretNotFound
	case c.Expected != 0 && c.Expected != now:
		return nil, ErrConnectorSecretVersionStale
	case c.To == now:
		return nil, nil
	}
	i := slices.IndexFunc(s.Versions, func(v SecretVersion) bool { return v.Version == c.To })
	if i < 0 {
		return nil, ErrConnectorSecretVersionNotFound
	}
	return []events.ConnectorSecret{events.ConnectorSecretReverted{To: c.To, Version: s.Last + 1, SecretID: s.Versions[i].SecretID}}, nil
}

func (s ConnectorSecretState) evolve(e events.ConnectorSecret) ConnectorSecretState {
	switch e := e.(type) {
	case events.ConnectorSecretCreated:
		return s.with(e.Version, e.SecretID)
	case events.ConnectorSecretReplaced:
		return s.with(e.Version, e.SecretID)
	case events.ConnectorSecretReverted:
		return s.with(e.Version, e.SecretID)
	case events.ConnectorSecretRevealed:
	case events.ConnectorSecretUsed:
		s.Uses = append(slices.Clip(s.Uses), ConnectorUse{e.Connector, e.Use})
	case events.ConnectorSecretReleased:
		s.Uses = slices.DeleteFunc(slices.Clone(s.Uses), func(u ConnectorUse) bool { return u == ConnectorUse{e.Connector, e.Use} })
	case events.ConnectorSecretDeleted:
		s.Versions, s.Uses = nil, nil
	case events.SecretAbandoned:
		s.Abandoned = append(slices.Clip(s.Abandoned), e.SecretID)
	}
	return s
}

// with activates a new version and drops the oldest one.
func (s ConnectorSecretState) with(version int, secretID string) ConnectorSecretState {
	kept := s.Versions
	if len(kept) == KeptVersions {
		kept = kept[1:]
	}
	s.Versions, s.Last = append(slices.Clip(kept), SecretVersion{version, secretID}), version
	return s
}
