package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/credstream/credstream/cmd/credstream/app"
	"github.com/credstream/credstream/cmd/credstream/settings"
)

// clientConfig is the configuration of the verbs that talk to a service.
type clientConfig struct {
	Server     string `flag:"server" arg:"URL" env:"CREDSTREAM_URL" default:"http://127.0.0.1:8080" help:"URL of the service"`
	Key        string `flag:"key" arg:"KEY" env:"CREDSTREAM_KEY" help:"API key; prefer the environment variable or --key-file, because other users of the machine can see flags"`
	KeyFile    string `flag:"key-file" arg:"FILE" env:"CREDSTREAM_KEY_FILE" help:"file with the API key, used when no key is given"`
	Tenant     string `flag:"tenant" arg:"TENANT" env:"CREDSTREAM_TENANT" default:"default" help:"tenant in which the command runs"`
	CA         string `flag:"ca" arg:"FILE" env:"CREDSTREAM_CA" help:"PEM file with the CA of the service's certificate, in addition to those of the system"`
	ClientCert string `flag:"client-cert" arg:"FILE" env:"CREDSTREAM_CLIENT_CERT" help:"PEM file with a client certificate, which can be used instead of an API key"`
	ClientKey  string `flag:"client-key" arg:"FILE" env:"CREDSTREAM_CLIENT_KEY" help:"PEM file with the key of --client-cert"`
	Output     string `flag:"output" arg:"FORM" default:"table" help:"form of the output: table, wide (all columns, exact times), json, yaml or csv"`
	JSON       bool   `flag:"json" help:"same as --output json: one document, or one per line for streams; errors too, on standard error"`
	Columns    string `flag:"columns" arg:"NAMES" help:"columns of a table or CSV, separated by commas, such as id,status; those that fit the terminal when absent"`
	NoHeaders  bool   `flag:"no-headers" help:"print no header line above a table or CSV"`
}

// natsConfig is the additional configuration of the verbs that use NATS.
type natsConfig struct {
	NATS string `flag:"nats" arg:"URL" env:"CREDSTREAM_NATS_URL" default:"nats://127.0.0.1:4222" help:"NATS URL of the service"`
}

// vaultConfig is the configuration of import --from vault.
type vaultConfig struct {
	Address   string `flag:"vault-address" arg:"URL" env:"VAULT_ADDR" help:"address of the Vault or OpenBao server"`
	TokenFile string `flag:"vault-token-file" arg:"FILE" env:"VAULT_TOKEN_FILE" help:"file with the Vault token, instead of VAULT_TOKEN"`
	Namespace string `flag:"vault-namespace" arg:"NAME" env:"VAULT_NAMESPACE" help:"Vault namespace"`

	token string `env:"VAULT_TOKEN" help:"Vault token; only as an environment variable, or in a file"`
}

// demoConfig is the configuration of the demo API.
type demoConfig struct {
	Listen  string `flag:"listen" arg:"ADDR" env:"CREDSTREAM_DEMO_LISTEN" default:"127.0.0.1:9090" help:"HTTP listen address"`
	KeyFile string `flag:"key-file" arg:"FILE" env:"CREDSTREAM_DEMO_KEY_FILE" help:"file with the API key that the demo API accepts"`

	key string `env:"CREDSTREAM_DEMO_KEY" default:"secret" help:"API key that the demo API accepts when there is no file; only as an environment variable"`
}

// demoProviderConfig is the configuration of the demo OAuth provider.
type demoProviderConfig struct {
	Listen   string        `flag:"listen" arg:"ADDR" env:"CREDSTREAM_DEMO_PROVIDER_LISTEN" default:"127.0.0.1:9091" help:"HTTP listen address"`
	Lifetime time.Duration `flag:"lifetime" arg:"TIME" env:"CREDSTREAM_DEMO_LIFETIME" default:"10m" help:"lifetime of an access token"`
}

// ConfigReference is the page docs/config.md.
func ConfigReference() string {
	var b strings.Builder
	b.WriteString("# Configuration\n" +
		"\n" +
		"The settings of `serve`, and the flags and environment variables that commands share.\n" +
		"`credstream COMMAND --help` lists the other flags of a command.\n" +
		"A flag overrides its variable, and the variable overrides the default. An empty\n" +
		"variable counts as unset. This page is generated from the program.\n")
	for _, part := range []struct {
		title string
		cfg   any
	}{
		{"credstream serve", app.Config{}},
		{"Commands that call a service", clientConfig{}},
		{"credstream events tail, flow publish, flow watch, queue send", natsConfig{}},
		{"credstream import --from vault", vaultConfig{}},
		{"credstream demo petstore", demoConfig{}},
		{"credstream demo provider", demoProviderConfig{}},
	} {
		fmt.Fprintf(&b, "\n## %s\n\n%s", part.title, settings.Table(part.cfg))
	}
	return b.String()
}
