package app

import (
	"context"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/credstream/credstream/seal"
)

func TestServeConfiguration(t *testing.T) {
	var got Config
	cmd := newCommand(func(name string) string {
		return map[string]string{"CREDSTREAM_KMS_TOKEN": "canary", "CREDSTREAM_OIDC_CLIENT_SECRET": "canary2"}[name]
	}, func(_ context.Context, cfg Config, _, _ io.Writer) error {
		got = cfg
		return nil
	})
	cmd.SetArgs([]string{"--http", "h", "--allow-private-targets"})
	must(t, cmd.ExecuteContext(t.Context()))
	if string(got.kmsToken.Reveal()) != "canary" || string(got.oidcClientSecret.Reveal()) != "canary2" {
		t.Error("a secret of the environment is not passed on")
	}
	if s := fmt.Sprintf("%+v", got); strings.Contains(s, "canary") {
		t.Error("a secret was printed")
	}
	got.kmsToken, got.oidcClientSecret = seal.Secret{}, seal.Secret{}
	if want := (Config{
		Data: "./credstream-data", HTTP: "h", NATSListen: "127.0.0.1:4222", TLSMinVersion: "1.3", ExpiryWarnings: "30,7,1", Durability: "group", AllowPrivateTargets: true,
		NATSReplicas: 3, OIDCTenantClaim: "tenant", OIDCPermissionsClaim: "permissions", OIDCScopes: "openid",
		RatePerKey: 10_000, RatePerTenant: 20_000, WrongKeys: 20, LogFormat: "text", LogLevel: "info",
		Lease: 10 * time.Minute, AccessRetention: 400 * 24 * time.Hour, KeyRetireAfter: 30 * time.Minute, RefreshPatience: 30 * time.Second,
	}); !reflect.DeepEqual(got, want) {
		t.Errorf("the configuration is %+v", got)
	}
}
