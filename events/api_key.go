package events

import (
	"encoding/json"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// APIKey is the set of events about one API key, stream "api_key.<id>" under System.
//
//sumtype:decl
type APIKey interface{ apiKey() }

// APIKeyIssued records: An API key was issued. The key itself is shown once and never stored.
type APIKeyIssued struct {
	SHA256      string    `json:"sha256" feed:"-"`                          // hex SHA-256 of the key, which is 256 random bits; of a certificate's name, if there is one
	Name        string    `json:"name" feed:"name"`                         // display name; may be ""
	Home        string    `json:"home" feed:"home"`                         // tenant used where a surface names none
	Tenants     []string  `json:"tenants" feed:"tenants"`                   // tenants it may name; "*" is every tenant
	Role        string    `json:"role" feed:"role"`                         // "ADMINISTRATOR", ..., or "<tenant>/<name>" of a tenant's own role; may be ""
	Permissions []string  `json:"permissions" feed:"permissions,omitempty"` // held by name: those of a tenant's own role too, not those of a built-in role
	Addresses   []string  `json:"addresses" feed:"-"`                       // networks it may be used from, as CIDR; empty: from everywhere
	Expires     time.Time `json:"expires,omitzero" feed:"expires,omitzero"` // expiry; absent: never
	Scope       Scope     `json:"scope" feed:"scope,omitempty"`             // the credentials that it reaches
	Certificate string    `json:"certificate" feed:"certificate,omitempty"` // name in the client certificate that stands for the key, such as "dns:engine.example.org"; "": there is a key
}

// APIKeyRevoked records: The key was revoked.
type APIKeyRevoked struct{}

// APIKeyExpiring records: The key expires soon. There is one event per warning threshold.
type APIKeyExpiring struct {
	Name    string    `json:"name" feed:"name"` // display name; may be ""
	Expires time.Time `json:"expires" feed:"expires"`
	Days    int       `json:"days" feed:"days"` // the threshold: it expires in at most this many days
}

func (APIKeyIssued) apiKey()   {}
func (APIKeyRevoked) apiKey()  {}
func (APIKeyExpiring) apiKey() {}

var apiKeyTypes = []Type{
	Define[APIKeyIssued]("api_key.issued", Audit, boundedAPIKey, unboundAPIKey, secretAPIKey),
	Define[APIKeyRevoked]("api_key.revoked", Audit),
	Define[APIKeyExpiring]("api_key.expiring", Changes).KeepingValues(),
}

// boundedAPIKey upcasts to version 2: a key of version 1 has only the permissions of its role,
// and no networks or expiry.
func boundedAPIKey(data json.RawMessage) (json.RawMessage, error) {
	var members map[string]jsontext.Value
	if err := jsonv2.Unmarshal(data, &members); err != nil {
		return nil, err
	}
	members["permissions"], members["addresses"] = jsontext.Value("[]"), jsontext.Value("[]")
	return jsonv2.Marshal(members, jsonv2.Deterministic(true))
}

// unboundAPIKey upcasts to version 3: a key of version 2 reaches every credential of its tenants.
// Because the version increased, a program that does not know scopes refuses to read the event,
// instead of ignoring the scope.
func unboundAPIKey(data json.RawMessage) (json.RawMessage, error) {
	var members map[string]jsontext.Value
	if err := jsonv2.Unmarshal(data, &members); err != nil {
		return nil, err
	}
	members["scope"] = jsontext.Value(`{"components":[],"workspaces":[],"credentials":[]}`)
	return jsonv2.Marshal(members, jsonv2.Deterministic(true))
}

// secretAPIKey upcasts to version 4: a key of version 3 is a secret. The version increased for the
// same reason as that of unboundAPIKey: an earlier program would list the key as a secret one.
func secretAPIKey(data json.RawMessage) (json.RawMessage, error) {
	var members map[string]jsontext.Value
	if err := jsonv2.Unmarshal(data, &members); err != nil {
		return nil, err
	}
	members["certificate"] = jsontext.Value(`""`)
	return jsonv2.Marshal(members, jsonv2.Deterministic(true))
}
