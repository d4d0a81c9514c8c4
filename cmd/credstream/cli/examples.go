package cli

import (
	"strings"

	"github.com/spf13/cobra"
)

// examples are command lines for the help of verbs, one per line. Verbs with examples that need more
// than one line define their own.
const examples = `
serve --data ./data --http 127.0.0.1:8080
component register --id petstore --file docs/examples/petstore-component.json
component update petstore --file component.json
component list --output wide
component show petstore
component share petstore
component unshare petstore
component delete petstore --dry-run
component set-env petstore --values-file env.json
component where-used petstore
credential create --component petstore --name Pets
credential create --component petstore --name Pets --keys-file keys.json --expires 2160h
credential list --status failed
credential list --component petstore --output csv --columns id,name
credential counts
credential show 22971c67-05d5-8f48-a325-f1957e01b84c
credential rename 22971c67-05d5-8f48-a325-f1957e01b84c "Pets of Acme"
credential replace-keys 22971c67-05d5-8f48-a325-f1957e01b84c --keys-file keys.json
credential revert 22971c67-05d5-8f48-a325-f1957e01b84c --to-version 1
credential refresh 22971c67-05d5-8f48-a325-f1957e01b84c
credential verify 22971c67-05d5-8f48-a325-f1957e01b84c
credential revoke 22971c67-05d5-8f48-a325-f1957e01b84c
credential delete 22971c67-05d5-8f48-a325-f1957e01b84c --dry-run
credential history 22971c67-05d5-8f48-a325-f1957e01b84c
credential where-used 22971c67-05d5-8f48-a325-f1957e01b84c
credential resolve 22971c67-05d5-8f48-a325-f1957e01b84c --flow orders --step fetch
credential reveal 22971c67-05d5-8f48-a325-f1957e01b84c
connect --component calendar --name "My calendar"
connect --credential 9d3681e8-7ac8-8296-be19-e6743e7ea9bc --headless
oauth-client define --component calendar --client-id demo-client --secret-file client.secret
oauth-client change d739b0fc-b9bf-8c0f-9f0a-ed1303c1307e --secret
oauth-client list --component calendar
oauth-client show d739b0fc-b9bf-8c0f-9f0a-ed1303c1307e
oauth-client delete d739b0fc-b9bf-8c0f-9f0a-ed1303c1307e
oauth-client reveal d739b0fc-b9bf-8c0f-9f0a-ed1303c1307e
auth-client create --name Office --component sheets --component docs --credentials-file client.json
auth-client change 5d1c --name "Office of Acme"
auth-client list --component sheets
auth-client show 5d1c
auth-client delete 5d1c
auth-client reveal 5d1c
connector put --id wiki --name Wiki --index-name search-wiki --service-type confluence
connector set-api-key wiki --api-key-id k1 --api-key-secret-id s1
connector list
connector show wiki
connector delete wiki
connector secret put --id s1 --secret-file secret.txt
connector secret revert s1 --to-version 1
connector secret list
connector secret show s1
connector secret reveal s1
connector secret delete s1
throttle define --id crm --tokens 100 --per minute
throttle change crm --tokens 200
throttle list
throttle show crm
throttle delete crm
throttle assign 22971c67-05d5-8f48-a325-f1957e01b84c crm
throttle take 22971c67-05d5-8f48-a325-f1957e01b84c --flow orders
throttle clear 22971c67-05d5-8f48-a325-f1957e01b84c
webhook define --id on-call --url https://hooks.example.org/events --type credential.expiring
webhook change on-call --enable
webhook rotate on-call --keep-previous 48h
webhook list
webhook show on-call
webhook test on-call
webhook deliveries on-call --status dead
webhook redeliver on-call 0198c1b2-5f0e-7c51-a1d3-6b0c9b1f4f11-0
webhook delete on-call
expiry list --within 90d
export --to age1... --out tenant.export
export key
import tenant.export --signed-by ed25519:... --plan
import --from env shop.env --component petstore
backup verify full.backup monday.backup --identity backup-identity.txt --signed-by ed25519:...
restore full.backup --identity backup-identity.txt --signed-by ed25519:... --into ./restored
oauth revoke --component sheets --dry-run
oauth revocation
flow list --broken
flow show orders
flow bind orders --steps-file steps.json --ttl 10m
flow release orders
flow publish --event started --file flow.json --revision 2
flow watch
queue list
queue show 1
queue retry 1
queue retry --all --code unavailable
queue drop 1
queue send credential.rename --file command.json
access list --credential 22971c67-05d5-8f48-a325-f1957e01b84c --since 24h
lease list
events tail --from 1
events replay --since 24h --type credential.created
views rebuild
views status
tenant register acme --name "Acme Inc."
tenant list
key issue --role OPERATOR --name Jo
key issue --permission credentials.get --expires 720h --address 192.0.2.0/24
key list
key revoke 0198c1aa-7d3e-7bb2-9c4e-3f6a5d2b1e70
role define BILLING --permission flows.get --permission credentials.get
role change BILLING --title "Reads flows and credentials"
role list
role delete BILLING
keys rewrap --all
keys status --all
kms new /safe/kms.key
health --server https://credstream.example.org
demo petstore
demo provider --lifetime 90s
version --json
`

// addExamples gives the examples to the verbs below root.
func addExamples(root *cobra.Command) {
	for line := range strings.Lines(examples) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if cmd, _, err := root.Find(strings.Fields(line)); err == nil && cmd != root {
			cmd.Example = strings.TrimPrefix(cmd.Example+"\n  credstream "+line, "\n")
		}
	}
}
