package client

import (
	"context"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// ConnectOAuth is a request for a link with which a user connects an account at the
// component's provider.
type ConnectOAuth struct {
	Component  string   // required for a new credential
	Credential string   // id of the credential to connect again, in place; "" creates a new one
	Name       string   // of a new credential; derived from the component's title when empty
	Workspace  string   // of a new credential: an id of the caller, stored as given
	Keys       Keys     // a value for each other field of the component; an existing credential keeps its own when empty
	User       string   // id of the user at the caller, which CompleteConnection must repeat
	ReturnTo   string   // where the browser goes from the provider, with the parameters connection and confirm, or error; "": a page shows a code
	For        *ForStep // the step of a flow for which a new credential is created; may be nil
}

// ConnectLink is a link that works once.
type ConnectLink struct {
	ID      string    `json:"id"`      // of the connection
	URL     string    `json:"url"`     // to open in a browser; a secret
	Expires time.Time `json:"expires"` // when the link expires
}

// ConnectOAuth creates a link (oauth_client_missing, oauth_endpoints_missing,
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

// CompleteConnection confirms that the user who returned from the provider is the one who
// started, and saves the tokens that the provider issues (connection_not_returned,
// connection_confirm_wrong, connection_user_mismatch, connection_ended). Confirm
// is the code that the return address received, or that a page showed. An
// application with its own users calls it for the user who is logged in
// where the browser arrives, and passes the user for which it created the link.
func (a *API) CompleteConnection(ctx context.Context, connection, confirm, user string, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "oauth.complete", struct {
		Connection string `json:"connection"`
		Confirm    string `json:"confirm"`
		User       string `json:"user,omitzero"`
	}{connection, confirm, user}, &done, opts...)
	return done, err
}

// Connection is the progress of a connection.
type Connection struct {
	ID         string    `json:"id"`
	Component  string    `json:"component"`
	Stage      string    `json:"stage"`               // "created", "opened", "returned", "done" or "failed"
	Expires    time.Time `json:"expires"`             // deadline of the pending step
	Credential string    `json:"credential,omitzero"` // that was saved, or that is connected again
	Reason     string    `json:"reason,omitzero"`     // why it failed: an error code
	Says       string    `json:"says,omitzero"`       // why it failed: a sentence
}

// The stages of a connection that wait for somebody, and its final stages.
const (
	ConnectionCreated  = "created"  // waits for a browser to open the link
	ConnectionOpened   = "opened"   // waits for the user, who is at the provider
	ConnectionReturned = "returned" // waits for CompleteConnection
	ConnectionDone     = "done"
	ConnectionFailed   = "failed"
)

// GetConnection returns a connection (connection_not_found when it has expired).
func (a *API) GetConnection(ctx context.Context, id string) (Connection, error) {
	var c Connection
	err := a.Query(ctx, "oauth.connection", byID{ID: id}, &c)
	return c, err
}

// RedirectURI returns the redirect URI of a component in the tenant, which must be
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
