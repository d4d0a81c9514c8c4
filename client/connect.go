package client

import (
	"context"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// ConnectOAuth requests a link by which a person connects an account at the
// component's provider.
type ConnectOAuth struct {
	Component  string   // needed for a new credential
	Credential string   // id of one that is to be connected again, in place; "" makes a new one
	Name       string   // of a new credential; made from the component's title when empty
	Workspace  string   // of a new credential: an id of the caller's, kept as given
	Keys       Keys     // a value for each other field of the component; an existing credential keeps its own when there are none
	User       string   // for whom: an id of the caller's, which CompleteConnection has to repeat
	ReturnTo   string   // where the browser goes from the provider, with the parameters connection and confirm, or error; "": a page shows a code
	For        *ForStep // the step of a flow that a new credential is made for; may be nil
}

// ConnectLink is a link that works once.
type ConnectLink struct {
	ID      string    `json:"id"`      // of the connection
	URL     string    `json:"url"`     // to be opened in a browser; a secret
	Expires time.Time `json:"expires"` // when it is too late to open it
}

// ConnectOAuth makes a link (oauth_client_missing, oauth_endpoints_missing,
// oauth_connect_needless, return_to_invalid).
func (a *API) ConnectOAuth(ctx context.Context, in ConnectOAuth, opts ...CommandOption) (ConnectLink, error) {
	var keys jsontext.Value
	if in.Keys.clear != nil {
		keys = in.Keys.reveal()
	}
	var link ConnectLink
	err := a.Command(ctx, "oauth.connect", struct {
		Component  string         `json:"component,omitzero"`
		Credential string         `json:"credential,omitzero"`
		Name       string         `json:"name,omitzero"`
		Workspace  string         `json:"workspace,omitzero"`
		Keys       jsontext.Value `json:"keys,omitzero"`
		User       string         `json:"user,omitzero"`
		ReturnTo   string         `json:"return_to,omitzero"`
		For        *ForStep       `json:"for,omitzero"`
		Revision   int            `json:"expected_revision,omitzero"`
	}{in.Component, in.Credential, in.Name, in.Workspace, keys, in.User, in.ReturnTo, in.For, revisionOf(opts)}, &link, opts...)
	return link, err
}

// CompleteConnection says that the person who came back from the provider is who
// started, and saves what the provider grants (connection_not_returned,
// connection_confirm_wrong, connection_user_mismatch, connection_ended). Confirm
// is what the address to return to was given, or what a page showed. An
// application that has users of its own calls it for the user who is logged in
// where the browser arrives, and passes the user with which it made the link.
func (a *API) CompleteConnection(ctx context.Context, connection, confirm, user string, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "oauth.complete", struct {
		Connection string `json:"connection"`
		Confirm    string `json:"confirm"`
		User       string `json:"user,omitzero"`
	}{connection, confirm, user}, &done, opts...)
	return done, err
}

// Connection is how far a connection has come.
type Connection struct {
	ID         string    `json:"id"`
	Component  string    `json:"component"`
	Stage      string    `json:"stage"`               // "created", "opened", "returned", "done" or "failed"
	Expires    time.Time `json:"expires"`             // when the step that is due comes too late
	Credential string    `json:"credential,omitzero"` // that was saved, or is to be connected again
	Reason     string    `json:"reason,omitzero"`     // why it failed: a code
	Says       string    `json:"says,omitzero"`       // that in a sentence
}

// The stages of a connection that wait for somebody, and its ends.
const (
	ConnectionCreated  = "created"  // for a browser to open the link
	ConnectionOpened   = "opened"   // for the person, who is at the provider
	ConnectionReturned = "returned" // for CompleteConnection
	ConnectionDone     = "done"
	ConnectionFailed   = "failed"
)

// GetConnection returns a connection (connection_not_found when it has expired).
func (a *API) GetConnection(ctx context.Context, id string) (Connection, error) {
	var c Connection
	err := a.Query(ctx, "oauth.connection", byID{ID: id}, &c)
	return c, err
}

// RedirectURI returns the redirect URI of a component in the tenant, to be
// registered at the provider.
func (a *API) RedirectURI(ctx context.Context, component string) (string, error) {
	var answer struct {
		RedirectURI string `json:"redirect_uri"`
	}
	err := a.Query(ctx, "oauth.redirect-uri", struct {
		Component string `json:"component"`
	}{component}, &answer)
	return answer.RedirectURI, err
}
