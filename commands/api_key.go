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
	SHA256      string // hex; of the key, or of the certificate's name
	Name        string
	Home        string
	Tenants     []string // "*" is every tenant
	Role        string   // may be ""
	Permissions []string // in addition to those of the role
	Addresses   []string // networks it may be used from, as CIDR; empty: from everywhere
	Expires     time.Time
	Scope       events.Scope
	Certificate string // name in the client certificate that stands for the key; "": there is a key
}

// RevokeAPIKey revokes the key.
type RevokeAPIKey struct{ ID string }

// WarnAPIKey records that the key expires soon.
type WarnAPIKey struct {
	ID   string
	Days int // the threshold, at least 1
}

// Target implements Command.
func (c IssueAPIKey) Target() string  { return c.ID }
func (c RevokeAPIKey) Target() string { return c.ID }
func (c WarnAPIKey) Target() string   { return c.ID }

func (IssueAPIKey) apiKey()  {}
func (RevokeAPIKey) apiKey() {}
func (WarnAPIKey) apiKey()   {}
