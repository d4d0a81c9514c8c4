package events

// APIKey is the sum of the facts about one API key, stream "api_key.<id>" under System.
//
//sumtype:decl
type APIKey interface{ apiKey() }

// APIKeyIssued makes a key known. The key itself is shown once and never stored.
type APIKeyIssued struct {
	SHA256  string   `json:"sha256"`  // hex SHA-256 of the key, which is 256 random bits
	Name    string   `json:"name"`    // for people; may be ""
	Home    string   `json:"home"`    // tenant used where a surface names none
	Tenants []string `json:"tenants"` // tenants it may name; "*" is every tenant
	Role    string   `json:"role"`    // a named set of permissions: "ADMINISTRATOR", ...
}

// APIKeyRevoked ends the key.
type APIKeyRevoked struct{}

func (APIKeyIssued) apiKey()  {}
func (APIKeyRevoked) apiKey() {}

var apiKeyTypes = []Type{
	Define[APIKeyIssued]("api_key.issued"),
	Define[APIKeyRevoked]("api_key.revoked"),
}
