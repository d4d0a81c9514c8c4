package commands_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/fault"
)

// A descriptor is kept for ever: a value in clear under the name of a secret is
// refused, with where it stands and never with what it is.
func TestSecretsInDescriptors(t *testing.T) {
	const canary = "canary-in-a-descriptor"
	oauth2 := func(more string) string {
		return `{"title":"T","oauth2":{"auth_uri":"https://a.example/auth","token_uri":"https://a.example/token",` + more + `},"hosts":["a.example"],"credentials":{"fields":{"k":{}}}}`
	}
	probe := func(more string) string {
		return `{"title":"T","hosts":["a.example"],"credentials":{"fields":{"k":{}}},"verification":{"http":{"headers":{"x-k":"{{k}}"},` + more + `}}}`
	}
	check := func(descriptor string) (string, error) {
		if _, err := commands.ParseDescriptor([]byte(descriptor)); err != nil {
			return "", err
		}
		err := commands.CheckNoSecrets([]byte(descriptor))
		if err == nil {
			return "", nil
		}
		f := fault.Of(err)
		if !errors.Is(err, commands.ErrSecretInDescriptor) || strings.Contains(fmt.Sprintf("%v %+v", f.Msg, f.Problem()), canary) {
			t.Errorf("refused with %v", err)
		}
		return f.Pointer, nil
	}
	names := []string{
		"secret", "app_secret", "appSecret", "APP-SECRET", "secret_v2", "appsecret_proof", "password2", "user_passwd", "passphrase", "api_key", "apikey", "ApiKey1", "key",
		"private_key", "subscription-key", "signing.key", "access_token", "subject_token", "id_token", "authToken2", "client_assertion2", "service_credentials", "jwt", "pwd",
	}
	for _, name := range names {
		for at, descriptor := range map[string]string{
			"/oauth2/token_params/":       oauth2(`"token_params":{"` + name + `":"` + canary + `"}`),
			"/oauth2/auth_params/":        oauth2(`"auth_params":{"` + name + `":"` + canary + `"}`),
			"/oauth2/":                    oauth2(`"` + name + `":"` + canary + `"`),
			"/verification/http/headers/": strings.ReplaceAll(strings.Replace(probe(`"url":"https://a.example/"`), `"x-k":`, `"`+name+`":"`+canary+`","x-k":`, 1), ".key", "-key"),
			"/verification/http/form/":    probe(`"url":"https://a.example/","method":"POST","form":{"` + name + `":"` + canary + `"}`),
			"/env/":                       `{"title":"T","env":{"` + name + `":"` + canary + `"}}`,
			"/envVars/":                   `{"title":"T","envVars":{"` + name + `":{"default":"` + canary + `"}}}`,
		} {
			if got, err := check(descriptor); err != nil || !strings.HasPrefix(got, at) {
				t.Errorf("%s as %s: refused at %q, %v", name, at, got, err)
			}
		}
		for at, descriptor := range map[string]string{
			"/oauth2/revocation_uri": oauth2(`"revocation_uri":"https://a.example/r?` + name + `=` + canary + `"`),
			"/verification/http/url": probe(`"url":"https://a.example/?x=1&` + name + `=` + canary + `"`),
		} {
			if got, err := check(descriptor); err != nil || got != at {
				t.Errorf("%s in the query of %s: refused at %q, %v", name, at, got, err)
			}
		}
	}
	for name, descriptor := range map[string]string{
		"ids, types and switches": oauth2(`"token_params":{"resource":"https://r.example/?a=b","audience":"x","token_type":"bearer","client_key":"id","public_key":"p","require_password":"true","token_access_type":"offline"}`),
		"prompts":                 oauth2(`"access_type":"offline","prompt":"consent","auth_params":{"show_secret":"","id_token_hint":"x"}`),
		"fields":                  probe(`"url":"https://a.example/?api_key={{k}}","method":"POST","form":{"password":"{{k}}","grant_type":"password"}`),
		"a fixed password":        probe(`"url":"https://a.example/","basic":{"username":"{{k}}","password":"X"}`),
		"words of an API":         probe(`"url":"https://a.example/","method":"POST","json":{"filter":{"key":"status"}}`),
		"declared variables":      `{"title":"T","envVars":{"API_KEY":{"required":true,"description":"The key of the account."}},"env":{"A":1}}`,
		"templates":               oauth2(`"client_id":"{{ID}}","client_secret":"{{SECRET}}"`),
		"of nothing":              `{"title":"T"}`,
	} {
		if got, err := check(descriptor); err != nil || got != "" {
			t.Errorf("%s: refused at %q, %v", name, got, err)
		}
	}
	files, err := filepath.Glob("testdata/components/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no descriptors", err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := commands.CheckNoSecrets(raw); err != nil {
			t.Errorf("%s: %v at %s", file, err, fault.Of(err).Pointer)
		}
	}
}
