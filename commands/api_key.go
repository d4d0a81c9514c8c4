package commands

import (
	"time"

	"github.com/credstream/credstream/events"
)

// APIKey is the set of commands on one API key.
//
//sumtype:decl
type APIKey interface {
	Command
	apiKey()
}

// IssueAPIKey registers a key by its hash.
type IssueAPIKey struct {
	ID          string
	SHA256      string // hex
	Name        string
	Home        string
	Tenants     []string // "*" is every tenant
	Role        string   // may be ""
	Permissions []string // in addition to those of the role
	Addresses   []string // networks it may be used from, as CIDR; empty: from everywhere
	Expires     time.Time
	Scope       events.Scope
}

// RevokeAPIKey revokes the key.
type RevokeAPIKey struct{ ID string }

// Target implements Command.
func (c IssueAPIKey) Target() string  { return c.ID }
func (c RevokeAPIKey) Target() string { return c.ID }

func (IssueAPIKey) apiKey()  {}
func (RevokeAPIKey) apiKey() {}
