package commands

import (
	"bytes"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// CheckNoSecrets returns ErrSecretInDescriptor for a component.json with a cleartext value under the
// name of a secret: in its OAuth parameters, the queries of its endpoints, its dry request, or as
// the value of a variable. Call it, after ParseDescriptor, only for descriptors that are not stored
// yet.
func CheckNoSecrets(raw []byte) error {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		return ErrDescriptorInvalid
	}
	root, _ := doc.(map[string]any)
	credentials, _ := root["credentials"].(map[string]any)
	for _, part := range []struct {
		at    string
		value any
	}{
		{"/oauth2", root["oauth2"]},
		{"/credentials/oauth2", credentials["oauth2"]},
		{"/verification", root["verification"]},
		{"/env", root["env"]},
		{"/envVars", root["envVars"]},
	} {
		if at, name := literalSecret(part.value, part.at, ""); name != "" {
			return ErrSecretInDescriptor.Withf("The component.json contains a value for %q, which is the name of a secret. A component.json is stored permanently. Remove the "+
				"value, and replace the secret if it is in use. Set the secret of an OAuth client with oauth_client.define and the value of a "+
				"variable with component.set-env. Make a secret of an account a field of the credential: {{field}}.", short(name)).At(shortPointer(at))
		}
	}
	return nil
}

// literalSecret finds a cleartext value under the name of a secret within v, the value of name.
func literalSecret(v any, at, name string) (where, found string) {
	switch v := v.(type) {
	case string:
		switch {
		case strings.Contains(v, "{{"):
		case secretName(name) && !plainSetting(v):
			return at, name
		case strings.HasPrefix(v, "https://"), strings.HasPrefix(v, "http://"):
			return at, secretInQuery(v)
		}
	case []any:
		for i, e := range v {
			if where, found := literalSecret(e, at+pointer(strconv.Itoa(i)), name); found != "" {
				return where, found
			}
		}
	case map[string]any:
		for _, member := range sorted(v) {
			of := member
			switch member {
			case "basic": // ParseDescriptor requires a field in it; besides, an API may require a fixed text
				continue
			case "value", "default":
				of = name
			case "key": // of a JSON body: often a term of the API, not a secret
				if strings.HasPrefix(at, "/verification/http/json") {
					continue
				}
			}
			if where, found := literalSecret(v[member], at+pointer(member), of); found != "" {
				return where, found
			}
		}
	}
	return "", ""
}

func secretInQuery(uri string) string {
	_, query, _ := strings.Cut(uri, "?")
	parameters, _ := url.ParseQuery(query)
	for _, name := range sorted(parameters) {
		if secretName(name) && slices.ContainsFunc(parameters[name], func(v string) bool { return !plainSetting(v) && !strings.Contains(v, "{{") }) {
			return name
		}
	}
	return ""
}

// plainSetting reports whether a value cannot be a secret.
func plainSetting(v string) bool {
	return slices.Contains([]string{"", "true", "false", "yes", "no", "0", "1"}, strings.ToLower(v))
}

// secretName reports whether the name is that of a secret: app_secret, appSecret, API-Key,
// access_token2; but not token_type or client_key, which is an id.
func secretName(name string) bool {
	plain := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, strings.ToLower(name))
	for _, part := range []string{"secret", "passw", "passphrase", "privatekey", "apikey"} {
		if strings.Contains(plain, part) {
			return true
		}
	}
	plain = strings.TrimRight(plain, "0123456789")
	if strings.HasSuffix(plain, "clientkey") || strings.HasSuffix(plain, "publickey") {
		return false
	}
	for _, end := range []string{"key", "token", "pwd", "assertion", "credential", "credentials", "jwt", "bearer", "authorization"} {
		if strings.HasSuffix(plain, end) {
			return true
		}
	}
	return false
}
