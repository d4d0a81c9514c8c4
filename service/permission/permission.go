// Package permission is the closed list of permissions, and the roles
// that bundle them.
package permission

// Permission is one permission of a caller. The list is closed.
type Permission string

// The permissions.
const (
	ComponentsGet            Permission = "components.get"
	ComponentsCreate         Permission = "components.create"
	ComponentsEdit           Permission = "components.edit"
	ComponentsDelete         Permission = "components.delete"
	CredentialsGet           Permission = "credentials.get"
	CredentialsCreate        Permission = "credentials.create"
	CredentialsEdit          Permission = "credentials.edit"
	CredentialsDelete        Permission = "credentials.delete"
	CredentialsReveal        Permission = "credentials.reveal"
	CredentialsResolve       Permission = "credentials.resolve"
	CredentialsExport        Permission = "credentials.export"
	WorkspacesCredentialEdit Permission = "workspaces.credential.edit"
	AuthSecretsGet           Permission = "workspaces.auth_secret.get"
	AuthSecretsCreate        Permission = "workspaces.auth_secret.create"
	AuthSecretsEdit          Permission = "workspaces.auth_secret.edit"
	AuthSecretsDelete        Permission = "workspaces.auth_secret.delete"
	AuthSecretsRefresh       Permission = "workspaces.auth_secret.refresh"
	OAuthClientsGet          Permission = "tenants.oauth_clients.get"
	OAuthClientsCreate       Permission = "tenants.oauth_clients.create"
	OAuthClientsEdit         Permission = "tenants.oauth_clients.edit"
	OAuthClientsDelete       Permission = "tenants.oauth_clients.delete"
	ThrottlePoliciesGet      Permission = "throttle_policies.get"
	ThrottlePoliciesEdit     Permission = "throttle_policies.edit"
	ConnectorsManage         Permission = "connectors.manage"
	ConnectorSecretsRead     Permission = "read_connector_secrets"
	ConnectorSecretsWrite    Permission = "write_connector_secrets"
	WebhooksGet              Permission = "webhooks.get"
	WebhooksEdit             Permission = "webhooks.edit"
	FlowsGet                 Permission = "flows.get"
	FlowsEdit                Permission = "flows.edit"
	QueueManage              Permission = "queue.manage"
	AuditRead                Permission = "audit.read"
	TenantsManage            Permission = "tenants.manage"
	KeysManage               Permission = "keys.manage"
	ViewsManage              Permission = "views.manage"
	BackupsCreate            Permission = "backups.create"
)

// Info describes a permission.
type Info struct {
	Permission Permission
	Allows     string // a phrase
	Everywhere bool   // affects every tenant: it requires a caller that is granted every tenant
}

// Permissions is the closed list, in the order of the reference.
func Permissions() []Info {
	return []Info{
		{ComponentsGet, "read components", false},
		{ComponentsCreate, "register components", false},
		{ComponentsEdit, "change, share and set up components", false},
		{ComponentsDelete, "delete components", false},
		{CredentialsGet, "read the metadata of credentials, never their secrets", false},
		{CredentialsCreate, "create credentials", false},
		{CredentialsEdit, "rename, replace, revert and verify credentials", false},
		{CredentialsDelete, "delete credentials and revoke their tokens", false},
		{CredentialsReveal, "reveal secret values, one resource at a time, each time audited", false},
		{CredentialsResolve, "fetch the secrets of a credential for a flow", false},
		{CredentialsExport, "export the tenant without secrets; with credentials.reveal, with secrets sealed to a recipient", false},
		{WorkspacesCredentialEdit, "write credentials over the REST API v2", false},
		{AuthSecretsGet, "read the metadata of credentials of workspaces, never their secrets", false},
		{AuthSecretsCreate, "create credentials in workspaces", false},
		{AuthSecretsEdit, "rename and replace the credentials of workspaces", false},
		{AuthSecretsDelete, "delete the credentials of workspaces", false},
		{AuthSecretsRefresh, "renew the tokens of the credentials of workspaces", false},
		{OAuthClientsGet, "read OAuth clients", false},
		{OAuthClientsCreate, "define OAuth clients", false},
		{OAuthClientsEdit, "change OAuth clients", false},
		{OAuthClientsDelete, "delete OAuth clients", false},
		{ThrottlePoliciesGet, "read throttle policies", false},
		{ThrottlePoliciesEdit, "define, change and delete throttle policies", false},
		{ConnectorsManage, "manage connectors, but not their secrets", false},
		{ConnectorSecretsRead, "read the secrets of connectors", false},
		{ConnectorSecretsWrite, "write and delete the secrets of connectors", false},
		{WebhooksGet, "read webhooks and their deliveries, never their secrets", false},
		{WebhooksEdit, "define, change, rotate, test and delete webhooks, and redeliver: to send the changes of the tenant to any address", false},
		{FlowsGet, "read flows and what they use", false},
		{FlowsEdit, "publish flow events; bind and release flows", false},
		{QueueManage, "inspect, retry and drop dead-lettered messages", false},
		{AuditRead, "read the history of the tenant", false},
		{TenantsManage, "register, list and erase tenants, rotate and rewrap their encryption keys; with keys.manage, map client certificates to API keys", true},
		{KeysManage, "issue, list and revoke API keys", false},
		{ViewsManage, "inspect and rebuild the read models", true},
		{BackupsCreate, "back up all tenants: the log, the access log, and secrets and keysets as they are encrypted", true},
	}
}

// Known describes the closed list of permissions. Read-only.
var Known = func() map[Permission]Info {
	m := map[Permission]Info{}
	for _, p := range Permissions() {
		m[p.Permission] = p
	}
	return m
}()

// Role is a named set of permissions.
type Role string

// The roles. An OPERATOR reads the metadata of credentials, and exports it,
// but never sees a secret; a FLOW_ENGINE resolves credentials, publishes flow events and binds
// flows; an AUDITOR reads history.
const (
	Administrator Role = "ADMINISTRATOR"
	Operator      Role = "OPERATOR"
	FlowEngine    Role = "FLOW_ENGINE"
	Auditor       Role = "AUDITOR"
)

// Roles are the permissions of each role. No role lets a person see a secret:
// credentials.reveal and read_connector_secrets are granted individually.
var Roles = map[Role][]Permission{
	Administrator: {
		ComponentsGet, ComponentsCreate, ComponentsEdit, ComponentsDelete,
		CredentialsGet, CredentialsCreate, CredentialsEdit, CredentialsDelete, CredentialsExport, WorkspacesCredentialEdit,
		AuthSecretsGet, AuthSecretsCreate, AuthSecretsEdit, AuthSecretsDelete, AuthSecretsRefresh,
		OAuthClientsGet, OAuthClientsCreate, OAuthClientsEdit, OAuthClientsDelete,
		ThrottlePoliciesGet, ThrottlePoliciesEdit, ConnectorsManage, ConnectorSecretsWrite,
		FlowsGet, FlowsEdit, QueueManage, AuditRead, TenantsManage, KeysManage, ViewsManage, BackupsCreate,
		WebhooksGet, WebhooksEdit,
	},
	Operator:   {ComponentsGet, CredentialsGet, CredentialsExport, AuthSecretsGet, OAuthClientsGet, ThrottlePoliciesGet, FlowsGet},
	FlowEngine: {ComponentsGet, CredentialsGet, CredentialsResolve, FlowsGet, FlowsEdit},
	Auditor:    {ComponentsGet, CredentialsGet, WebhooksGet, FlowsGet, AuditRead},
}
