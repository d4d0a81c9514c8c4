package connector

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
)

// Errors of a connector's input.
var (
	ErrID            = fault.New(fault.Invalid, "connector_id_invalid", "The id of a connector must have 1 to 128 bytes of UTF-8 without control characters, and must not start with '_'.")
	ErrSetting       = fault.New(fault.Invalid, "connector_setting_invalid", "A setting of a connector must have at most 1024 bytes of UTF-8 and no control characters.")
	ErrAPIKeyID      = fault.New(fault.Invalid, "connector_api_key_id_invalid", "The id of an API key must have 1 to 512 bytes of UTF-8 and no control characters. Omit it to leave it unchanged.")
	ErrSecretUnknown = fault.New(fault.Invalid, "connector_secret_unknown",
		"api_key_secret_id must be the id of an existing connector secret. Create the secret first, or omit the id to leave it unchanged.")
	ErrKeyMismatch = fault.New(fault.Invalid, "connector_api_key_mismatch",
		"The connector secret holds an API key whose id is not api_key_id. Correct api_key_id, or replace the value of the secret.")
)

// races bounds the retries of a command that loses races.
const races = 10

type PutConnector struct {
	ID          string  `json:"id,omitzero"`   // generated when absent
	Name        string  `json:"name,omitzero"` // display name
	Description string  `json:"description,omitzero"`
	IndexName   string  `json:"index_name,omitzero"`        // the index that it fills
	ServiceType string  `json:"service_type,omitzero"`      // type of the data source
	Language    string  `json:"language,omitzero"`          // language of the data
	Native      bool    `json:"is_native,omitzero"`         // managed: it authenticates with its API key secret
	APIKeyID    *string `json:"api_key_id,omitzero"`        // unchanged when absent
	SecretID    *string `json:"api_key_secret_id,omitzero"` // id of a connector secret; unchanged when absent
}

func (s *Service) putConnector(ctx context.Context, call *service.Call, in PutConnector) (service.Done, error) {
	if in.ID == "" {
		in.ID = call.DeriveID("connector")
	}
	settings := events.ConnectorSettings{
		Name: in.Name, Description: in.Description, IndexName: in.IndexName, ServiceType: in.ServiceType, Language: in.Language, Native: in.Native,
	}
	for _, text := range [][2]string{
		{"/name", in.Name}, {"/description", in.Description}, {"/index_name", in.IndexName}, {"/service_type", in.ServiceType}, {"/language", in.Language},
	} {
		if !clean(text[1], 1024) {
			return service.Done{}, ErrSetting.At(text[0])
		}
	}
	return s.change(ctx, call, in.ID, apiKey{in.APIKeyID, in.SecretID}, func(key commands.ConnectorKey) commands.Connector {
		return commands.PutConnector{ID: in.ID, Settings: settings, Key: key}
	})
}

// SetAPIKey requests another API key of a connector. Members that are absent or null are
// unchanged.
type SetAPIKey struct {
	ID       string  `json:"id"`
	APIKeyID *string `json:"api_key_id,omitzero"`        // as the search service knows it; it is not checked
	SecretID *string `json:"api_key_secret_id,omitzero"` // id of a connector secret
}

func (s *Service) setAPIKey(ctx context.Context, call *service.Call, in SetAPIKey) (service.Done, error) {
	if err := service.Required("/id", in.ID); err != nil {
		return service.Done{}, err
	}
	return s.change(ctx, call, in.ID, apiKey{in.APIKeyID, in.SecretID}, func(key commands.ConnectorKey) commands.Connector {
		return commands.SetConnectorKey{ID: in.ID, Key: key}
	})
}

// apiKey is the API key part of a request; nil members are unchanged.
type apiKey struct{ id, secret *string }

// check validates and returns the requested change.
func (k apiKey) check() (change commands.ConnectorKey, err error) {
	if k.id != nil {
		if change.APIKeyID = *k.id; change.APIKeyID == "" || !clean(change.APIKeyID, 512) {
			return change, ErrAPIKeyID.At("/api_key_id")
		}
	}
	if k.secret != nil {
		if change.SecretID = *k.secret; events.CheckID(change.SecretID) != nil {
			return change, ErrSecretUnknown.At("/api_key_secret_id")
		}
	}
	return change, nil
}

func clean(text string, maxBytes int) bool {
	return len(text) <= maxBytes && utf8.ValidString(text) && !strings.ContainsFunc(text, unicode.IsControl)
}

// checkID rejects an invalid connector id.
func checkID(id string) error {
	if events.CheckNewID(id) != nil || id[0] == '_' {
		return ErrID.At("/id")
	}
	return nil
}

// change executes a command that may point the connector to another secret. The secret's stream
// records the use first, so that it cannot be deleted meanwhile. A process
// that crashes in between leaves a use that the deletion of the secret recognizes as unused.
func (s *Service) change(ctx context.Context, call *service.Call, id string, requested apiKey, cmd func(commands.ConnectorKey) commands.Connector) (service.Done, error) {
	if err := checkID(id); err != nil {
		return service.Done{}, err
	}
	key, err := requested.check()
	if err != nil {
		return service.Done{}, err
	}
	stream := aggregates.Connector.Stream(call.Tenant, id)
	for range races {
		now, err := aggregates.Connector.Fresh(ctx, s.Log, stream)
		if err != nil {
			return service.Done{}, err
		}
		if _, sets := cmd(key).(commands.SetConnectorKey); sets && !now.Value.Live {
			return service.Done{}, aggregates.ErrConnectorNotFound
		}
		if err := s.checkMatch(ctx, call.Tenant, now.Value, key); err != nil {
			return service.Done{}, err
		}
		key.Use = ""
		if key.SecretID != "" && key.SecretID != now.Value.SecretID {
			key.Use = events.NewID()
			_, _, err := service.Execute(ctx, s.Kernel, call.Step(0), aggregates.ConnectorSecret, call.Tenant,
				commands.ConnectorSecret(commands.UseConnectorSecret{ID: key.SecretID, Connector: id, Use: key.Use}))
			if errors.Is(err, aggregates.ErrConnectorSecretNotFound) {
				err = ErrSecretUnknown.At("/api_key_secret_id")
			}
			if err != nil {
				return service.Done{}, err
			}
		}
		before, after, err := service.Execute(ctx, s.Kernel, call, aggregates.Connector, call.Tenant, cmd(key))
		if key.Use != "" && (err == nil && after.Value.Use != key.Use || err != nil && service.IsRejected(err)) {
			s.release(ctx, call, key.SecretID, aggregates.ConnectorUse{Connector: id, Use: key.Use})
		}
		switch {
		case errors.Is(err, aggregates.ErrConnectorUseMoved):
			continue
		case err != nil:
			return service.Done{}, err
		case before.Use != after.Value.Use:
			s.release(ctx, call, before.SecretID, aggregates.ConnectorUse{Connector: id, Use: before.Use})
		}
		return s.Kernel.Answered(stream, before, after.Value, after.Seq), nil
	}
	return service.Done{}, fault.ErrConflict
}

// release ends a use that the connector no longer has. If that fails, the use stays
// until the deletion of the secret releases it.
func (s *Service) release(ctx context.Context, call *service.Call, secret string, use aggregates.ConnectorUse) {
	if use.Use == "" {
		return
	}
	_, _, err := service.Execute(ctx, s.Kernel, call.Step(1), aggregates.ConnectorSecret, call.Tenant,
		commands.ConnectorSecret(commands.ReleaseConnectorSecret{ID: secret, Connector: use.Connector, Use: use.Use}))
	if err != nil {
		s.Logger.WarnContext(ctx, "use of a connector secret not released; the secret's deletion will release it", "tenant", call.Tenant, "connector", use.Connector, "err", err)
	}
}

// checkMatch refuses to pair an API key id with a secret that holds another key.
func (s *Service) checkMatch(ctx context.Context, tenant string, now aggregates.ConnectorState, change commands.ConnectorKey) error {
	id, secret := now.APIKeyID, now.SecretID
	if change.APIKeyID != "" {
		id = change.APIKeyID
	}
	if change.SecretID != "" {
		secret = change.SecretID
	}
	if id == "" || secret == "" || id == now.APIKeyID && secret == now.SecretID {
		return nil
	}
	_, value, err := s.value(ctx, tenant, secret)
	if errors.Is(err, aggregates.ErrConnectorSecretNotFound) {
		return ErrSecretUnknown.At("/api_key_secret_id")
	}
	if err != nil {
		return err
	}
	if held, ok := keyID(value.Reveal()); ok && held != id {
		return ErrKeyMismatch.At("/api_key_id")
	}
	return nil
}

// keyID is the id of an encoded API key, base64 of "id:key". It is false for any other value.
func keyID(value []byte) (id string, ok bool) {
	plain, err := base64.StdEncoding.DecodeString(string(value))
	if err != nil {
		plain, err = base64.RawStdEncoding.DecodeString(string(value))
	}
	text := string(plain)
	if err != nil || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
		return "", false
	}
	id, _, ok = strings.Cut(text, ":")
	return id, ok && id != ""
}

// Ref identifies a connector.
type Ref struct {
	ID     string `json:"id"`
	MinSeq uint64 `json:"min_seq,omitzero"` // wait until the response reflects this log sequence
}

type Delete struct {
	ID string `json:"id"`
}

func (s *Service) deleteConnector(ctx context.Context, call *service.Call, in Delete) (service.Done, error) {
	if err := service.Required("/id", in.ID); err != nil {
		return service.Done{}, err
	}
	if events.CheckID(in.ID) != nil {
		return service.Done{}, aggregates.ErrConnectorNotFound
	}
	before, after, err := service.Execute(ctx, s.Kernel, call, aggregates.Connector, call.Tenant, commands.Connector(commands.DeleteConnector{ID: in.ID}))
	if err != nil {
		return service.Done{}, err
	}
	s.release(ctx, call, before.SecretID, aggregates.ConnectorUse{Connector: in.ID, Use: before.Use})
	return s.Kernel.Answered(aggregates.Connector.Stream(call.Tenant, in.ID), before, after.Value, after.Seq), nil
}

// Connector is the public form of a connector.
type Connector struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	Description string    `json:"description"`
	IndexName   string    `json:"index_name"`
	ServiceType string    `json:"service_type"`
	Language    string    `json:"language"`
	Native      bool      `json:"is_native"`
	APIKeyID    string    `json:"api_key_id"`        // "" if it has none
	SecretID    string    `json:"api_key_secret_id"` // id of a connector secret, or ""
	CreatedAt   time.Time `json:"created_at"`
	CreatedBy   string    `json:"created_by"` // "key:<id>"
	UpdatedAt   time.Time `json:"updated_at"`
	Seq         uint64    `json:"seq"` // log sequence of the last change
}

func connectorInfo(c projections.Connector) Connector {
	return Connector{
		ID: c.ID, Name: c.Settings.Name, Description: c.Settings.Description, IndexName: c.Settings.IndexName, ServiceType: c.Settings.ServiceType,
		Language: c.Settings.Language, Native: c.Settings.Native, APIKeyID: c.APIKeyID, SecretID: c.SecretID,
		CreatedAt: c.CreatedAt, CreatedBy: c.CreatedBy, UpdatedAt: c.UpdatedAt, Seq: c.Seq,
	}
}

func (s *Service) getConnector(ctx context.Context, call *service.Call, in Ref) (Connector, error) {
	if err := service.Required("/id", in.ID); err != nil {
		return Connector{}, err
	}
	if err := s.newest(ctx, in.MinSeq); err != nil {
		return Connector{}, err
	}
	page, _, _, err := s.Views.Connectors(ctx, projections.ConnectorFilter{Tenant: call.Tenant, ID: in.ID})
	switch {
	case err != nil:
		return Connector{}, err
	case len(page) == 0:
		return Connector{}, aggregates.ErrConnectorNotFound
	}
	return connectorInfo(page[0]), nil
}

type ListConnectors struct {
	Name        string `json:"name,omitzero"`         // only those with this name
	IndexName   string `json:"index_name,omitzero"`   // only those that fill this index
	ServiceType string `json:"service_type,omitzero"` // only those of this type
	Limit       int    `json:"limit,omitzero"`        // 1 to 200; 50 when absent
	After       string `json:"after,omitzero"`        // cursor of the previous page
	MinSeq      uint64 `json:"min_seq,omitzero"`      // wait until the response reflects this log sequence
}

// List is a page of connectors, by id.
type List struct {
	Connectors []Connector `json:"connectors"`
	Next       string      `json:"next,omitzero"` // cursor of the next page; absent on the last
	Total      int         `json:"total"`         // number of connectors on all pages
}

func (s *Service) listConnectors(ctx context.Context, call *service.Call, in ListConnectors) (List, error) {
	limit, err := service.PageSize(in.Limit)
	if err == nil {
		err = s.newest(ctx, in.MinSeq)
	}
	if err != nil {
		return List{}, err
	}
	list := List{Connectors: []Connector{}}
	page, next, total, err := s.Views.Connectors(ctx, projections.ConnectorFilter{
		Tenant: call.Tenant, Name: in.Name, IndexName: in.IndexName, ServiceType: in.ServiceType, Limit: limit, After: in.After,
	})
	if err != nil {
		return list, fmt.Errorf("list connectors: %w", err)
	}
	list.Next, list.Total = next, total
	for _, c := range page {
		list.Connectors = append(list.Connectors, connectorInfo(c))
	}
	return list, nil
}
