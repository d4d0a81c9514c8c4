package importer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
)

// Errors of a Vault.
var (
	ErrVaultAddress = fault.New(fault.Invalid, "import_vault_address_invalid", "Give the address of Vault or OpenBao, https://HOST:8200, by --vault-address or VAULT_ADDR, and its token by VAULT_TOKEN or --vault-token-file. http is accepted for this machine only.")
	ErrVaultTree    = fault.New(fault.Invalid, "import_vault_tree_invalid", "Name the tree as MOUNT or MOUNT/PATH, such as secret/team. The mount must be a KV engine of version 2.")
	ErrVaultRefused = fault.New(fault.Unprocessable, "import_vault_refused", "Vault refused the request.")
	ErrVaultDeleted = fault.New(fault.Unprocessable, "import_vault_deleted", "Its newest version was deleted in Vault.")
)

const (
	vaultTime   = 30 * time.Second
	vaultAnswer = 4 << 20 // bytes
	vaultMost   = 100_000 // secrets and folders of a tree
)

// Vault reads a KV engine, version 2, of Vault or OpenBao.
type Vault struct {
	Address, Namespace string
	Token              seal.Secret
	http               *http.Client
}

// Read reads every secret of a tree: MOUNT or MOUNT/PATH. The path below the mount is the
// id and the name of a credential; its type is vault.
func (m Mapping) Vault(ctx context.Context, v Vault, tree string) (Items, error) {
	u, err := url.Parse(v.Address)
	local := err == nil && (u.Hostname() == "localhost" || strings.HasPrefix(u.Hostname(), "127.") || u.Hostname() == "::1")
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && (u.Scheme != "http" || !local) || v.Token.IsZero() {
		return nil, ErrVaultAddress
	}
	v.Address = strings.TrimRight(v.Address, "/")
	v.http = &http.Client{Timeout: vaultTime, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	mount, top, _ := strings.Cut(strings.Trim(tree, "/"), "/")
	if mount == "" {
		return nil, ErrVaultTree
	}
	folders, names, seen := []string{top}, []string{}, 0
	if top != "" { // it may be a secret as well as a folder
		names = append(names, top)
	}
	for len(folders) > 0 {
		at := folders[0]
		folders = folders[1:]
		var list struct {
			Data struct {
				Keys []string `json:"keys"`
			} `json:"data"`
		}
		found, err := v.get(ctx, "LIST", mount+"/metadata/"+at, &list)
		if err != nil {
			return nil, err
		}
		if !found && at == "" {
			return nil, ErrVaultTree
		}
		for _, key := range list.Data.Keys {
			if seen++; seen > vaultMost {
				return nil, ErrVaultTree.Withf("The tree has more than %d entries. Import it in parts.", vaultMost)
			}
			whole := strings.TrimPrefix(at+"/"+key, "/")
			if folder, is := strings.CutSuffix(whole, "/"); is {
				folders = append(folders, folder)
			} else {
				names = append(names, whole)
			}
		}
	}
	slices.Sort(names)
	var all []foreign
	for _, name := range names {
		var secret struct {
			Data struct {
				Data map[string]jsontext.Value `json:"data"`
			} `json:"data"`
		}
		found, err := v.get(ctx, http.MethodGet, mount+"/data/"+name, &secret)
		if err != nil {
			return nil, err
		}
		if !found && name == top {
			continue // a folder only
		}
		f := foreign{id: name, typ: "vault", name: name, keys: secret.Data.Data}
		if !found || secret.Data.Data == nil {
			f.err = ErrVaultDeleted
		}
		all = append(all, f)
	}
	if len(all) == 0 {
		return nil, ErrVaultTree.Withf("There is no secret at this path.")
	}
	return m.list(all, false)
}

// get sends one request. found is false for 404. Its errors have neither the token nor the
// answer.
func (v Vault) get(ctx context.Context, method, at string, into any) (found bool, err error) {
	segments := strings.Split(at, "/")
	for i := range segments {
		segments[i] = url.PathEscape(segments[i])
	}
	req, err := http.NewRequestWithContext(ctx, method, v.Address+"/v1/"+strings.TrimRight(strings.Join(segments, "/"), "/"), nil)
	if err != nil {
		return false, ErrVaultAddress
	}
	req.Header.Set("X-Vault-Token", strings.TrimSpace(string(v.Token.Reveal())))
	req.Header.Set("X-Vault-Request", "true")
	if v.Namespace != "" {
		req.Header.Set("X-Vault-Namespace", v.Namespace)
	}
	resp, err := v.http.Do(req)
	if err != nil {
		if outer, is := errors.AsType[*url.Error](err); is {
			err = outer.Err
		}
		return false, fmt.Errorf("%w (%w)", ErrVaultRefused.Withf("Vault cannot be reached at %s.", v.Address), err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, vaultAnswer+1))
	switch {
	case err != nil || len(body) > vaultAnswer:
		return false, ErrVaultRefused.Withf("The answer of Vault to %s %s broke off, or is larger than 4 MiB.", method, at)
	case resp.StatusCode == http.StatusNotFound:
		return false, nil
	case resp.StatusCode == http.StatusForbidden:
		return false, ErrVaultRefused.Withf("Vault refused %s %s: the token is not valid, or may not do that. It needs list on MOUNT/metadata/* and read on MOUNT/data/*.", method, at)
	case resp.StatusCode != http.StatusOK:
		return false, ErrVaultRefused.Withf("Vault answered %s %s with status %d.", method, at, resp.StatusCode)
	case json.Unmarshal(body, into) != nil:
		return false, ErrVaultTree.Withf("The answer of Vault to %s %s is not one of a KV engine of version 2.", method, at)
	}
	return true, nil
}
