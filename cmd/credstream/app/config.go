package app

import (
	"context"
	"io"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/credstream/credstream/cmd/credstream/settings"
	"github.com/credstream/credstream/seal"
)

// Config is the configuration of the service.
type Config struct {
	Data                  string        `flag:"data" arg:"DIR" env:"CREDSTREAM_DATA" default:"./credstream-data" help:"folder for all data of the service; with --nats only for data that can be rebuilt"`
	HTTP                  string        `flag:"http" arg:"ADDR" env:"CREDSTREAM_HTTP" default:"127.0.0.1:8080" help:"HTTP listen address"`
	NATSListen            string        `flag:"nats-listen" arg:"ADDR" env:"CREDSTREAM_NATS_LISTEN" default:"127.0.0.1:4222" help:"listen address of the embedded NATS server"`
	TLSCert               string        `flag:"tls-cert" arg:"FILE" env:"CREDSTREAM_TLS_CERT" help:"PEM file with the certificate of the HTTP port and of the embedded NATS port, and with those of intermediate CAs; read again when it changes; without it the ports are not encrypted"`
	TLSKey                string        `flag:"tls-key" arg:"FILE" env:"CREDSTREAM_TLS_KEY" help:"PEM file with the key of --tls-cert"`
	TLSClientCA           string        `flag:"tls-client-ca" arg:"FILE" env:"CREDSTREAM_TLS_CLIENT_CA" help:"PEM file with the CAs of client certificates, which can be used instead of API keys: credstream key issue --certificate"`
	TLSMinVersion         string        `flag:"tls-min-version" arg:"VERSION" env:"CREDSTREAM_TLS_MIN_VERSION" default:"1.3" help:"lowest version of TLS that the ports accept: 1.2 or 1.3"`
	DevTLS                bool          `flag:"dev-tls" env:"CREDSTREAM_DEV_TLS" help:"use a certificate for localhost of a CA that the first start creates in the data folder; for development only"`
	NATS                  string        `flag:"nats" arg:"URL" env:"CREDSTREAM_NATS" help:"URL of an external NATS cluster, instead of the embedded server"`
	EventStore            string        `flag:"event-store" arg:"URL" env:"CREDSTREAM_EVENT_STORE" help:"connection string of an EventStoreDB or KurrentDB server for the log, such as esdb://user:password@host:2113, instead of NATS JetStream; a password belongs in the environment variable, because other users of the machine can see flags"`
	NATSCredentials       string        `flag:"nats-credentials" arg:"FILE" env:"CREDSTREAM_NATS_CREDENTIALS" help:"credentials file of the user that owns the streams, if --nats names no user"`
	NATSEndpoints         string        `flag:"nats-endpoints" arg:"URL" env:"CREDSTREAM_NATS_ENDPOINTS" help:"URL with the user of the endpoints, which may only publish replies; the user of --nats when empty"`
	NATSSystem            string        `flag:"nats-system" arg:"URL" env:"CREDSTREAM_NATS_SYSTEM" help:"URL with a user of the system account: used to check fsync settings and to disconnect revoked keys"`
	NATSSystemCredentials string        `flag:"nats-system-credentials" arg:"FILE" env:"CREDSTREAM_NATS_SYSTEM_CREDENTIALS" help:"credentials file for --nats-system"`
	NATSCallout           string        `flag:"nats-callout" arg:"URL" env:"CREDSTREAM_NATS_CALLOUT" help:"URL with the user that receives the auth callout; the user of --nats when empty"`
	NATSCalloutSeed       string        `flag:"nats-callout-seed" arg:"FILE" env:"CREDSTREAM_NATS_CALLOUT_SEED" help:"file with the seed of the account key that signs auth callout responses; without it NATS clients cannot authenticate with API keys"`
	NATSCalloutXKey       string        `flag:"nats-callout-xkey" arg:"FILE" env:"CREDSTREAM_NATS_CALLOUT_XKEY" help:"file with the seed of the curve key to which the servers encrypt the auth callout"`
	NATSReplicas          int           `flag:"nats-replicas" arg:"N" env:"CREDSTREAM_NATS_REPLICAS" default:"3" help:"replicas of each stream on an external cluster"`
	AttestSyncAlways      bool          `flag:"attest-sync-always" env:"CREDSTREAM_ATTEST_SYNC_ALWAYS" help:"start although credstream cannot verify that the external servers fsync before acking; the operator is then responsible for durability"`
	AdminKey              string        `flag:"admin-key" arg:"KEY" env:"CREDSTREAM_ADMIN_KEY" help:"administrator key for the first start, instead of a generated one; prefer the environment variable, because other users of the machine can see flags"`
	AdminKeyFile          string        `flag:"admin-key-file" arg:"FILE" env:"CREDSTREAM_ADMIN_KEY_FILE" help:"file with the administrator key for the first start, which writes a new key to it if there is no such file, instead of printing one"`
	OIDCIssuer            string        `flag:"oidc-issuer" arg:"URL" env:"CREDSTREAM_OIDC_ISSUER" help:"OpenID Connect issuer whose tokens are accepted as Bearer over HTTP, in addition to API keys"`
	OIDCAudience          string        `flag:"oidc-audience" arg:"NAME" env:"CREDSTREAM_OIDC_AUDIENCE" help:"required audience of a token; required with --oidc-issuer"`
	OIDCTenantClaim       string        `flag:"oidc-tenant-claim" arg:"CLAIM" env:"CREDSTREAM_OIDC_TENANT_CLAIM" default:"tenant" help:"claim with the tenant, or the tenants, of a token"`
	OIDCPermissionsClaim  string        `flag:"oidc-permissions-claim" arg:"CLAIM" env:"CREDSTREAM_OIDC_PERMISSIONS_CLAIM" default:"permissions" help:"claim with the permissions and roles; use dots to reach into objects, such as realm_access.roles"`
	OIDCClientID          string        `flag:"oidc-client-id" arg:"ID" env:"CREDSTREAM_OIDC_CLIENT_ID" help:"client at the issuer with which people sign in to the web page; its redirect URI is --public-url with /ui/sign-in/callback; without it people sign in with API keys only"`
	OIDCScopes            string        `flag:"oidc-scopes" arg:"SCOPES" env:"CREDSTREAM_OIDC_SCOPES" default:"openid" help:"scopes of a sign-in to the web page, separated by spaces"`
	Durability            string        `flag:"durability" arg:"MODE" env:"CREDSTREAM_DURABILITY" default:"group" help:"fsync before a change is acknowledged: group (one fsync for all waiting changes) or always (one per change)"`
	KMSPrevious           string        `flag:"kms-previous" arg:"URL" env:"CREDSTREAM_KMS_PREVIOUS" help:"KMS key that wrapped the tenants' encryption keys before --kms, until credstream keys rewrap --all has wrapped them with --kms"`
	KMS                   string        `flag:"kms" arg:"URL" env:"CREDSTREAM_KMS" help:"KMS key that wraps the tenants' encryption keys: file:///path, hcvault://, aws-kms:// or gcp-kms://; a key file in the data folder when empty"`
	Views                 string        `flag:"views" arg:"URL" env:"CREDSTREAM_VIEWS" help:"read-model database; SQLite in the data folder when empty"`
	AllowPrivateTargets   bool          `flag:"allow-private-targets" env:"CREDSTREAM_ALLOW_PRIVATE_TARGETS" help:"allow dry requests and requests to OAuth providers to private and loopback addresses; for development only"`
	BehindTLSProxy        bool          `flag:"behind-tls-proxy" env:"CREDSTREAM_BEHIND_TLS_PROXY" help:"accept secrets over plain HTTP from other machines; only if nothing but a TLS-terminating proxy can reach the port"`
	PublicURL             string        `flag:"public-url" arg:"URL" env:"CREDSTREAM_PUBLIC_URL" help:"URL where browsers reach the service, for connect links and redirect URIs; the same for all processes; when empty, the HTTP address if that is a local address"`
	ConnectReturnTo       string        `flag:"connect-return-to" arg:"ORIGINS" env:"CREDSTREAM_CONNECT_RETURN_TO" help:"origins to which browsers may return after an account was connected, such as https://app.example.org, separated by commas; http://127.0.0.1 and http://[::1] with a port are always allowed"`
	Lease                 time.Duration `flag:"lease" arg:"TIME" env:"CREDSTREAM_LEASE" default:"10m" help:"how long a flow engine may keep the resolved values of a credential: 1m to 15m, and never beyond the expiry of the access token"`
	AccessRetention       time.Duration `flag:"access-retention" arg:"TIME" env:"CREDSTREAM_ACCESS_RETENTION" default:"400d" help:"retention of the access log: at least 1d"`
	ExpiryWarnings        string        `flag:"expiry-warnings" arg:"DAYS" env:"CREDSTREAM_EXPIRY_WARNINGS" default:"30,7,1" help:"days before the expiry of a credential, a client secret or an API key at which an event warns of it, separated by commas; none for no events"`
	KeyRetireAfter        time.Duration `flag:"key-retire-after" arg:"TIME" env:"CREDSTREAM_KEY_RETIRE_AFTER" default:"30m" help:"how long a rotated encryption key is kept at least before it is destroyed: at least 2s; with less than 15m, a rotation can end pending account connections"`
	RefreshPatience       time.Duration `flag:"refresh-patience" arg:"TIME" env:"CREDSTREAM_REFRESH_PATIENCE" default:"30s" help:"time without progress after which this process takes over a token renewal of another process; with less than 30s a slow provider may receive two renewal requests"`
	RatePerKey            int           `flag:"rate-per-key" arg:"N" env:"CREDSTREAM_RATE_PER_KEY" default:"10000" help:"commands per second of one identity in this process, and ten times as many queries; 0 means no limit"`
	RatePerTenant         int           `flag:"rate-per-tenant" arg:"N" env:"CREDSTREAM_RATE_PER_TENANT" default:"20000" help:"commands per second of one tenant in this process, and ten times as many queries; 0 means no limit"`
	WrongKeys             int           `flag:"wrong-keys" arg:"N" env:"CREDSTREAM_WRONG_KEYS" default:"20" help:"invalid API keys per minute from one address before that address is throttled; valid keys are still accepted; 0 means no limit"`
	LogFormat             string        `flag:"log-format" arg:"FORMAT" env:"CREDSTREAM_LOG_FORMAT" default:"text" help:"text or json"`
	LogLevel              string        `flag:"log-level" arg:"LEVEL" env:"CREDSTREAM_LOG_LEVEL" default:"info" help:"debug, info, warn or error"`

	fsyncDelay time.Duration `env:"CREDSTREAM_BENCH_FSYNC_DELAY" help:"added to every fsync, to model a slower disk; for benchmarks only"`

	oidcClientSecret seal.Secret `env:"CREDSTREAM_OIDC_CLIENT_SECRET" help:"secret of the client of --oidc-client-id; only as an environment variable; empty for a public client"`
	kmsPreviousToken seal.Secret `env:"CREDSTREAM_KMS_PREVIOUS_TOKEN" help:"token for the KMS of --kms-previous; only as an environment variable"`
	kmsToken         seal.Secret `env:"CREDSTREAM_KMS_TOKEN" help:"token for a Vault or OpenBao KMS; only as an environment variable"`
}

// diskThreads is added to GOMAXPROCS where the server is embedded. An fsync or a write occupies
// one of the scheduler's processors until the runtime notices, so on two cores the log, the vault
// and the views can leave none for the rest. Measured in docs/benchmarks.md.
const diskThreads = 3

// Command is the verb that runs the service.
func Command(getenv func(string) string) *cobra.Command { return newCommand(getenv, serve) }

func newCommand(getenv func(string) string, serve func(ctx context.Context, cfg Config, stdout, stderr io.Writer) error) *cobra.Command {
	var cfg Config
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the service",
		Long: "Run the service: HTTP, NATS with JetStream, and storage, in one process and one data folder.\n" +
			"With --nats it uses external NATS servers, and several processes can serve the same data.\n" +
			"The first start prints an administrator's key, only once.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			for name, secret := range map[string]*seal.Secret{
				"CREDSTREAM_KMS_TOKEN": &cfg.kmsToken, "CREDSTREAM_KMS_PREVIOUS_TOKEN": &cfg.kmsPreviousToken,
				"CREDSTREAM_OIDC_CLIENT_SECRET": &cfg.oidcClientSecret,
			} {
				if value := getenv(name); value != "" {
					*secret = seal.NewSecret([]byte(value))
				}
			}
			if delay := getenv("CREDSTREAM_BENCH_FSYNC_DELAY"); delay != "" {
				var err error
				if cfg.fsyncDelay, err = time.ParseDuration(delay); err != nil {
					return settings.ErrEnvironment.Withf("The environment variable CREDSTREAM_BENCH_FSYNC_DELAY must be a duration.")
				}
			}
			if cfg.NATS == "" && getenv("GOMAXPROCS") == "" {
				runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + diskThreads)
			}
			return serve(cmd.Context(), cfg, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	settings.Bind(cmd.Flags(), &cfg)
	return cmd
}
