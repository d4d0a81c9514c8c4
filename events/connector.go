package events

// Connector is the set of events about one connector, which fills a search index from another
// data source: stream "connector.<id>" within its tenant.
//
//sumtype:decl
type Connector interface{ connector() }

// ConnectorCreated records: A connector was created, without an API key.
type ConnectorCreated struct {
	Connector ConnectorSettings `json:"connector" feed:",embed"`
}

// ConnectorChanged records: The settings of the connector were changed. Its API key is
// unchanged.
type ConnectorChanged struct {
	Connector ConnectorSettings `json:"connector" feed:",embed"`
}

// ConnectorSettings are the settings of a connector.
type ConnectorSettings struct {
	Name        string `json:"name"`         // display name, or ""
	Description string `json:"description"`  // free text, or ""
	IndexName   string `json:"index_name"`   // that the connector writes to, or ""
	ServiceType string `json:"service_type"` // type of the data source, or ""
	Language    string `json:"language"`     // language of the data, or ""
	Native      bool   `json:"is_native"`    // it is managed, and uses the secret of its API key
}

// Public implements fieldPublisher: the settings contain no secret.
func (s ConnectorSettings) Public() any { return s }

// ConnectorAPIKeySet records: The API key of the connector was set. It may be unchanged except for
// its use.
type ConnectorAPIKeySet struct {
	APIKeyID string `json:"api_key_id" feed:"api_key_id"`               // of the search service, or ""
	SecretID string `json:"api_key_secret_id" feed:"api_key_secret_id"` // id of a connector secret, or ""
	Use      string `json:"use" feed:"-"`                               // id of this use in the secret's stream; "" without a secret
}

// ConnectorUseAbandoned records: A use of a secret that the connector never had is excluded from
// now on: the attempt was interrupted, and the secret is being deleted.
type ConnectorUseAbandoned struct {
	Use string `json:"use" feed:"-"`
}

// ConnectorDeleted records: The connector was deleted. Its secret remains.
type ConnectorDeleted struct{}

func (ConnectorCreated) connector()      {}
func (ConnectorChanged) connector()      {}
func (ConnectorAPIKeySet) connector()    {}
func (ConnectorUseAbandoned) connector() {}
func (ConnectorDeleted) connector()      {}

// ConnectorSecret is the set of events about one secret of connectors, stream
// "connector_secret.<id>" within its tenant. The value is only in the vault.
//
//sumtype:decl
type ConnectorSecret interface{ connectorSecret() }

// ConnectorSecretCreated records: The secret got its first value, or its first one since a
// deletion.
type ConnectorSecretCreated struct {
	Version  int    `json:"version" feed:"version"` // one more than the last version of this id
	SecretID string `json:"secret_id" feed:"-"`     // where the vault keeps the value
}

// ConnectorSecretReplaced records: The secret got another value.
type ConnectorSecretReplaced struct {
	Version  int    `json:"version" feed:"version"`
	SecretID string `json:"secret_id" feed:"-"`
}

// ConnectorSecretReverted records: The value of an earlier version was activated as a new version.
type ConnectorSecretReverted struct {
	To       int    `json:"to" feed:"to"` // the earlier version
	Version  int    `json:"version" feed:"version"`
	SecretID string `json:"secret_id" feed:"-"` // that of the earlier version
}

// ConnectorSecretRevealed records: The value of the secret was revealed.
type ConnectorSecretRevealed struct {
	Version int `json:"version" feed:"version"`
}

// ConnectorSecretUsed records: A connector points to the secret, or is about to.
type ConnectorSecretUsed struct {
	Connector string `json:"connector" feed:"connector"`
	Use       string `json:"use" feed:"-"` // a new id for each attempt
}

// ConnectorSecretReleased records: One use of the secret ended.
type ConnectorSecretReleased struct {
	Connector string `json:"connector" feed:"connector"`
	Use       string `json:"use" feed:"-"`
}

// ConnectorSecretDeleted records: The secret was deleted; its values are erased from the vault.
type ConnectorSecretDeleted struct{}

func (ConnectorSecretCreated) connectorSecret()  {}
func (ConnectorSecretReplaced) connectorSecret() {}
func (ConnectorSecretReverted) connectorSecret() {}
func (ConnectorSecretRevealed) connectorSecret() {}
func (ConnectorSecretUsed) connectorSecret()     {}
func (ConnectorSecretReleased) connectorSecret() {}
func (ConnectorSecretDeleted) connectorSecret()  {}
func (SecretAbandoned) connectorSecret()         {}

// Only in the audit stream: readers of the feed may lack the permission for connectors.
var connectorTypes = []Type{
	Define[ConnectorCreated]("connector.created", Audit),
	Define[ConnectorChanged]("connector.changed", Audit),
	Define[ConnectorAPIKeySet]("connector.api_key_set", Audit),
	Define[ConnectorUseAbandoned]("connector.use_abandoned", Internal),
	Define[ConnectorDeleted]("connector.deleted", Audit),
	Define[ConnectorSecretCreated]("connector_secret.created", Audit).KeepingSecrets(),
	Define[ConnectorSecretReplaced]("connector_secret.replaced", Audit),
	Define[ConnectorSecretReverted]("connector_secret.reverted", Audit),
	Define[ConnectorSecretRevealed]("connector_secret.revealed", Audit).KeepingSecrets(),
	Define[ConnectorSecretUsed]("connector_secret.used", Audit).KeepingSecrets(),
	Define[ConnectorSecretReleased]("connector_secret.released", Audit).KeepingSecrets(),
	Define[ConnectorSecretDeleted]("connector_secret.deleted", Audit),
}
