package client

import (
	"context"
	"iter"
	"time"
)

// Connector is what the service shows of a connector, which fills a search index.
type Connector struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	Description string    `json:"description"`
	IndexName   string    `json:"index_name"`
	ServiceType string    `json:"service_type"` // type of the data source
	Language    string    `json:"language"`
	Native      bool      `json:"is_native"`         // a managed connector, which uses the secret of its API key
	APIKeyID    string    `json:"api_key_id"`        // "" when it has none
	SecretID    string    `json:"api_key_secret_id"` // id of a connector secret, or ""
	CreatedAt   time.Time `json:"created_at"`
	CreatedBy   string    `json:"created_by"` // "key:<id>"
	UpdatedAt   time.Time `json:"updated_at"`
	Seq         uint64    `json:"seq"` // log sequence of the last change
}

// ConnectorSettings are the settings of PutConnector. An empty API key or secret id keeps the current one.
type ConnectorSettings struct {
	Name        string `json:"name,omitzero"`
	Description string `json:"description,omitzero"`
	IndexName   string `json:"index_name,omitzero"`
	ServiceType string `json:"service_type,omitzero"`
	Language    string `json:"language,omitzero"`
	Native      bool   `json:"is_native,omitzero"`
	APIKeyID    string `json:"api_key_id,omitzero"`
	SecretID    string `json:"api_key_secret_id,omitzero"`
}

// PutConnector creates a connector, or replaces the settings of the one with this id. An
// empty id is generated. The status of the response is "created", "updated" or "noop". Error
// codes: connector_secret_unknown, connector_api_key_mismatch.
func (a *API) PutConnector(ctx context.Context, id string, settings ConnectorSettings, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "connector.put", struct {
		ID string `json:"id,omitzero"`
		ConnectorSettings
	}{id, settings}, &done, opts...)
	return done, err
}

// SetConnectorAPIKey sets the id of a connector's API key, the connector secret that holds
// the key, or both; an empty one is unchanged. The status of the response is "updated" or "noop".
func (a *API) SetConnectorAPIKey(ctx context.Context, id, apiKeyID, secretID string, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "connector.set-api-key", struct {
		ID       string `json:"id"`
		APIKeyID string `json:"api_key_id,omitzero"`
		SecretID string `json:"api_key_secret_id,omitzero"`
	}{id, apiKeyID, secretID}, &done, opts...)
	return done, err
}

// DeleteConnector deletes a connector. Its secret remains.
func (a *API) DeleteConnector(ctx context.Context, id string, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "connector.delete", change{ID: id}, &done, opts...)
	return done, err
}

// GetConnector returns the current state of one connector.
func (a *API) GetConnector(ctx context.Context, id string) (Connector, error) {
	var c Connector
	err := a.Query(ctx, "connector.get", change{ID: id}, &c)
	return c, err
}

// Connectors yields the tenant's connectors by id.
func (a *API) Connectors(ctx context.Context) iter.Seq2[Connector, error] {
	return listed(ctx, a, "connector.list", func(p idPage) []Connector { return p.Connectors })
}

// ConnectorSecret is what the service shows of a connector secret, never its value.
type ConnectorSecret struct {
	ID         string    `json:"id"`
	Version    int       `json:"version"`        // current
	Oldest     int       `json:"oldest_version"` // oldest version that a revert can restore
	Connectors []string  `json:"connectors"`     // up to 200 connectors that point to it; absent in a list
	CreatedAt  time.Time `json:"created_at"`
	CreatedBy  string    `json:"created_by"` // "key:<id>"
	UpdatedAt  time.Time `json:"updated_at"`
	Seq        uint64    `json:"seq"` // log sequence of the last change
}

// PutConnectorSecret creates a connector secret, or replaces the value of the one with this id.
// An empty id is generated.
func (a *API) PutConnectorSecret(ctx context.Context, id string, value OAuthSecret, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "connector_secret.put", struct {
		ID    string `json:"id,omitzero"`
		Value string `json:"value"`
	}{id, value.reveal()}, &done, opts...)
	return done, err
}

// RevertConnectorSecret activates the value of an earlier version as a new version
// (connector_secret_version_not_found).
func (a *API) RevertConnectorSecret(ctx context.Context, id string, version int, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "connector_secret.revert", struct {
		ID      string `json:"id"`
		Version int    `json:"version"`
	}{id, version}, &done, opts...)
	return done, err
}

// DeleteConnectorSecret deletes a connector secret and erases its values. It is refused
// while a connector points to it (connector_secret_in_use).
func (a *API) DeleteConnectorSecret(ctx context.Context, id string, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "connector_secret.delete", change{ID: id}, &done, opts...)
	return done, err
}

// RevealConnectorSecret returns the value of a connector secret. The key needs the
// permission read_connector_secrets. The access is audited first.
func (a *API) RevealConnectorSecret(ctx context.Context, id string, opts ...CommandOption) (string, error) {
	var shown struct {
		Value string `json:"value"`
	}
	err := a.Command(ctx, "connector_secret.reveal", change{ID: id}, &shown, opts...)
	return shown.Value, err
}

// GetConnectorSecret returns the current state of one connector secret, without its value.
func (a *API) GetConnectorSecret(ctx context.Context, id string) (ConnectorSecret, error) {
	var s ConnectorSecret
	err := a.Query(ctx, "connector_secret.get", change{ID: id}, &s)
	return s, err
}

// ConnectorSecrets yields the tenant's connector secrets by id.
func (a *API) ConnectorSecrets(ctx context.Context) iter.Seq2[ConnectorSecret, error] {
	return listed(ctx, a, "connector_secret.list", func(p idPage) []ConnectorSecret { return p.Secrets })
}

// idPage is a page of what is listed by id.
type idPage struct {
	Policies   []ThrottlePolicy  `json:"policies"`
	Connectors []Connector       `json:"connectors"`
	Secrets    []ConnectorSecret `json:"secrets"`
	Roles      []Role            `json:"roles"`
	Webhooks   []Webhook         `json:"webhooks"`
	Next       string            `json:"next"`
}

// listed yields the items of all pages of a query.
func listed[T any](ctx context.Context, a *API, query string, items func(idPage) []T) iter.Seq2[T, error] {
	return listedAt(ctx, a, query, 0, items)
}

// listedAt is listed for a query that reflects at least the log sequence minSeq.
func listedAt[T any](ctx context.Context, a *API, query string, minSeq uint64, items func(idPage) []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for after := ""; ; {
			var page idPage
			err := a.Query(ctx, query, struct {
				After  string `json:"after,omitzero"`
				Limit  int    `json:"limit"`
				MinSeq uint64 `json:"min_seq,omitzero"`
			}{after, 200, minSeq}, &page)
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, item := range items(page) {
				if !yield(item, nil) {
					return
				}
			}
			if after = page.Next; after == "" {
				return
			}
		}
	}
}
