package commands

// OAuthClient is the sum of the intents about the OAuth client of one component in a tenant.
//
//sumtype:decl
type OAuthClient interface {
	Command
	oauthClient()
}

// UseOAuthClient records that a flow includes the component.
type UseOAuthClient struct {
	Component, Flow string
	Revision        uint64 // of the flow
}

// ReleaseOAuthClient records that a flow of this revision no longer includes the component.
type ReleaseOAuthClient struct {
	Component, Flow string
	Revision        uint64
}

// Target implements Command.
func (c UseOAuthClient) Target() string     { return c.Component }
func (c ReleaseOAuthClient) Target() string { return c.Component }

func (UseOAuthClient) oauthClient()     {}
func (ReleaseOAuthClient) oauthClient() {}
