package v1

import "github.com/credstream/credstream/api/edge"

// The tenant and the generated id in the examples.
const (
	exampleTenant = "default"
	ExampleID     = edge.ExampleID
)

// examples has a request for each route: the body of a command, or the parameters of a query as
// an object. Together they tell one story: a pet store's component, a credential for it, and a
// flow that uses it.
var examples = map[string]string{
	"tenant.register": `{"id":"acme","name":"Acme Corporation"}`,
	"tenant.list":     `{}`,
	"tenant.erase":    `{"id":"acme"}`,
	"tenant.erasure":  `{"id":"acme"}`,

	"component.register": `{"id":"petstore","descriptor":` + exampleDescriptor + `}`,
	"component.update":   `{"id":"petstore","descriptor":` + exampleDescriptor + `}`,
	"component.share":    `{"id":"petstore"}`,
	"component.unshare":  `{"id":"petstore"}`,
	"component.set-env":  `{"id":"petstore","values":{"PETSTORE_KEY":"a-client-id","PETSTORE_SECRET":"a-client-secret"}}`,
	"component.delete":   `{"id":"petstore","dry_run":true}`,
	"component.get":      `{"id":"petstore"}`,
	"component.list":     `{"limit":20}`,

	"oauth.revoke":     `{"component":"petstore","dry_run":true}`,
	"oauth.revocation": `{}`,

	"oauth_client.define": `{"component":"petstore","client_id":"a-client-id","client_secret":"a-client-secret"}`,
	"oauth_client.change": `{"id":"` + ExampleID + `","client_secret":"another-client-secret"}`,
	"oauth_client.delete": `{"id":"` + ExampleID + `"}`,
	"oauth_client.reveal": `{"component":"petstore"}`,
	"oauth_client.get":    `{"component":"petstore"}`,
	"oauth_client.list":   `{"component":"petstore","limit":20}`,

	"credential.create":                 `{"component":"petstore","name":"Pet store, production","keys":{"apiKey":"a-secret-key"},"workspace":"sales"}`,
	"credential.rename":                 `{"id":"` + ExampleID + `","name":"Pet store, test"}`,
	"credential.set-vpn-agent":          `{"id":"` + ExampleID + `","vpn_agent":"office"}`,
	"credential.assign-throttle-policy": `{"id":"` + ExampleID + `","throttle_policy":"crm"}`,
	"credential.replace-keys":           `{"id":"` + ExampleID + `","keys":{"apiKey":"a-newer-key"},"expected_version":1}`,
	"credential.revert":                 `{"id":"` + ExampleID + `","version":1}`,
	"credential.verify":                 `{"id":"` + ExampleID + `"}`,
	"credential.refresh":                `{"id":"` + ExampleID + `"}`,
	"credential.reveal":                 `{"id":"` + ExampleID + `"}`,
	"credential.delete":                 `{"id":"` + ExampleID + `","dry_run":true}`,
	"credential.revoke":                 `{"id":"` + ExampleID + `"}`,
	"credential.get":                    `{"id":"` + ExampleID + `"}`,
	"credential.list":                   `{"component":"petstore","status":"unverified","sort":"-created","limit":20}`,
	"credential.counts":                 `{"component":"petstore"}`,
	"credential.history":                `{"id":"` + ExampleID + `","limit":50}`,
	"credential.resolve":                `{"id":"` + ExampleID + `","flow":"orders","step":"step_1","cleartext":true}`,
	"lease.list":                        `{"limit":100}`,
	"access.replay":                     `{"credential":"` + ExampleID + `","since":"2026-01-01T00:00:00Z","limit":100}`,
	"credential.set-description":        `{"id":"` + ExampleID + `","description":"The pets' account"}`,
	"credential.update":                 `{"id":"` + ExampleID + `","description":"The pets' account","keys":{"apiKey":"a-newer-key"}}`,
	"credential.create-many":            `{"credentials":[{"type":"filesystem","description":"Sales HD1","keys":{"domain":"sales","user":"a-user","password":"a-password"}}]}`,
	"credential.update-many":            `{"filter":{"type":"filesystem"},"update":{"description":"Sales"}}`,
	"credential.delete-many":            `{"ids":["` + ExampleID + `"]}`,
	"credential.search":                 `{"type":"petstore","description":"pets","sort":"-id","from":20,"limit":20}`,
	"credential.export":                 `{"type":"petstore","limit":100}`,

	"oauth.connect":      `{"component":"calendar","name":"Calendar of u1","user":"u1","return_to":"https://app.example.org/connected"}`,
	"oauth.complete":     `{"connection":"` + ExampleID + `","confirm":"K7QD2XWM","user":"u1"}`,
	"oauth.connection":   `{"id":"` + ExampleID + `"}`,
	"oauth.redirect-uri": `{"component":"calendar"}`,

	"auth_client.create": `{"name":"Pet stores","type":"basic","scope":"workspace","scope_id":"sales","components":["petstore"],` +
		`"credentials":{"username":"a-user","password":"a-secret-password"}}`,
	"auth_client.change": `{"id":"` + ExampleID + `","name":"Pet stores, test","credentials":{"password":"another-secret-password"}}`,
	"auth_client.delete": `{"id":"` + ExampleID + `"}`,
	"auth_client.reveal": `{"id":"` + ExampleID + `"}`,
	"auth_client.get":    `{"id":"` + ExampleID + `"}`,
	"auth_client.list":   `{"component":"petstore","limit":20}`,

	"auth_secret.create":       `{"workspace":"sales","component":"petstore","name":"Pet store of sales","keys":{"apiKey":"a-secret-key"}}`,
	"auth_secret.rename":       `{"workspace":"sales","id":"` + ExampleID + `","name":"Pet store, test"}`,
	"auth_secret.replace-keys": `{"workspace":"sales","id":"` + ExampleID + `","keys":{"apiKey":"a-newer-key"}}`,
	"auth_secret.refresh":      `{"workspace":"sales","id":"` + ExampleID + `"}`,
	"auth_secret.delete":       `{"workspace":"sales","id":"` + ExampleID + `"}`,
	"auth_secret.get":          `{"workspace":"sales","id":"` + ExampleID + `"}`,
	"auth_secret.list":         `{"workspace":"sales","component":"petstore","limit":20}`,

	"role.define": `{"name":"BILLING","title":"The team that pays the providers","permissions":["credentials.get","flows.get"]}`,
	"role.change": `{"name":"BILLING","title":"Billing"}`,
	"role.delete": `{"name":"BILLING"}`,
	"role.list":   `{"limit":20}`,

	"throttle_policy.define": `{"id":"crm","description":"as the contract with the CRM says","tokens":100,"per":"minute"}`,
	"throttle_policy.change": `{"id":"crm","tokens":50}`,
	"throttle_policy.delete": `{"id":"crm"}`,
	"throttle_policy.get":    `{"id":"crm"}`,
	"throttle_policy.list":   `{"limit":20}`,
	"webhook.define":         `{"id":"on-call","url":"https://hooks.example.org/credstream","types":["credential.*"]}`,
	"webhook.change":         `{"id":"on-call","types":["credential.reauthorization_required","credential.recovered"]}`,
	"webhook.rotate-secret":  `{"id":"on-call","keep_previous":"24h"}`,
	"webhook.test":           `{"id":"on-call"}`,
	"webhook.redeliver":      `{"id":"on-call","event":"0198c1a0-0000-7000-8000-000000000001-0"}`,
	"webhook.deliveries":     `{"id":"on-call","status":"dead"}`,
	"webhook.delete":         `{"id":"on-call"}`,
	"webhook.show":           `{"id":"on-call"}`,
	"webhook.list":           `{"limit":20}`,
	"expiry.list":            `{"within":"30d"}`,
	"throttle.take":          `{"credential":"` + ExampleID + `","tokens":1,"flow":"orders"}`,

	"connector.put":         `{"id":"wiki","name":"Wiki","index_name":"search-wiki","service_type":"confluence","is_native":true}`,
	"connector.set-api-key": `{"id":"wiki","api_key_id":"VuaCfGcBCdbkQm-e5aOx","api_key_secret_id":"wiki-key"}`,
	"connector.delete":      `{"id":"wiki"}`,
	"connector.get":         `{"id":"wiki"}`,
	"connector.list":        `{"service_type":"confluence","limit":20}`,

	"connector_secret.put":    `{"id":"wiki-key","value":"a-secret-value"}`,
	"connector_secret.revert": `{"id":"wiki-key","version":1}`,
	"connector_secret.delete": `{"id":"wiki-key"}`,
	"connector_secret.reveal": `{"id":"wiki-key"}`,
	"connector_secret.get":    `{"id":"wiki-key"}`,
	"connector_secret.list":   `{"limit":20}`,

	"flow.bind": `{"flow":"orders","name":"Orders to the pet store","ttl":"10m",` +
		`"steps":[{"id":"step_1","name":"Look up","component":"petstore","credential":"` + ExampleID + `"}]}`,
	"flow.release": `{"flow":"orders"}`,
	"flow.report":  `{"change":"stopped","id":"returns","name":"Returns to the pet store","revision":3}`,

	"export.page": `{}`,
	"backup.page": `{}`,
	"export.key":  `{}`,
	"flow.get":    `{"id":"orders"}`,
	"flow.list":   `{"component":"petstore","limit":20}`,
	"flow.in-use": `{"limit":20}`,

	"queue.list":  `{"limit":20}`,
	"queue.get":   `{"id":"` + ExampleID + `"}`,
	"queue.retry": `{"id":"` + ExampleID + `"}`,
	"queue.drop":  `{"id":"` + ExampleID + `"}`,

	"queue.retry-all": `{"queue":"commands"}`,
	"queue.drop-all":  `{"code":"flow_event_invalid"}`,

	"service.key":           `{}`,
	"audit.rewind":          `{"seq":1}`,
	"encryption_key.rotate": `{}`,
	"encryption_key.rewrap": `{}`,
	"encryption_key.status": `{}`,

	"views.rebuild":  `{}`,
	"views.status":   `{}`,
	"events.changes": `{"from":1,"limit":100}`,
	"events.replay":  `{"type":"credential.created","since":"2026-01-01T00:00:00Z","limit":100}`,

	"api_key.issue":  `{"role":"OPERATOR","name":"dashboard","tenants":["default"],"expires":"720h","addresses":["127.0.0.0/8","2001:db8::/32"]}`,
	"api_key.revoke": `{"id":"` + ExampleID + `"}`,
	"api_key.list":   `{}`,
}

// exampleDescriptor is a small component.json.
const exampleDescriptor = `{"title":"Pet store",` +
	`"useOAuthClient":true,"envVars":{"PETSTORE_KEY":{"description":"client id"},"PETSTORE_SECRET":{"description":"client secret"}},` +
	`"credentials":{"fields":{"apiKey":{"label":"API key","viewClass":"PasswordFieldView","required":true}}}}`
