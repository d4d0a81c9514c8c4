package cli

import (
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/cmd/credstream/settings"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service/permission"
)

// completionTime is how long a shell waits for values from the service.
const completionTime = 200 * time.Millisecond

// completionPage is the number of items of which values are offered.
const completionPage = 200

// completer lists possible values; it may use the service.
type completer func(ctx context.Context, api *client.Client) ([]cobra.Completion, error)

// complete adds the completion of ids, statuses and roles to all commands below root: of flags by
// their name, and of the argument of verbs by their noun.
func (a *invocation) complete(root *cobra.Command) {
	fixed := func(values ...string) completer {
		return func(context.Context, *client.Client) ([]cobra.Completion, error) { return values, nil }
	}
	var statuses []string
	for _, s := range events.Statuses() {
		statuses = append(statuses, string(s))
	}
	flags := map[string]completer{
		"component": completeComponents, "credential": completeCredentials, "flow": completeFlows, "role": completeRoles,
		"output": fixed(formTable, formWide, formJSON, formYAML, formCSV),
	}
	arguments := map[string]completer{
		"component ID": completeComponents, "credential ID": completeCredentials, "flow ID": completeFlows, "throttle CREDENTIAL": completeCredentials,
	}
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		for _, child := range cmd.Commands() {
			visit(child)
		}
		for name, values := range flags {
			if cmd.Flag(name) != nil {
				_ = cmd.RegisterFlagCompletionFunc(name, a.completion(values, -1)) // fails only if there is none
			}
		}
		if words := strings.Fields(cmd.Use); cmd.HasParent() && len(words) > 1 {
			if values, ok := arguments[cmd.Parent().Name()+" "+words[1]]; ok {
				cmd.ValidArgsFunction = a.completion(values, 1)
			}
		}
	}
	visit(root)
	for _, path := range [][]string{{"credential", "list"}} {
		if cmd, _, err := root.Find(path); err == nil {
			_ = cmd.RegisterFlagCompletionFunc("status", a.completion(fixed(statuses...), -1))
		}
	}
}

// completion returns the completion of up to limit arguments, or of a flag if limit is negative. A
// failure, or a service that does not answer in time, offers nothing and prints nothing.
func (a *invocation) completion(values completer, limit int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if limit >= 0 && len(args) >= limit {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		a.stderr = io.Discard
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
		defer cancel()
		var api *client.Client
		if settings.FromEnvironment(cmd.Flags(), a.getenv) == nil && a.client.KeyFile != "-" {
			api, _ = a.api()
		}
		list, err := values(ctx, api)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return slices.DeleteFunc(list, func(c cobra.Completion) bool { return !strings.HasPrefix(c, prefix) }), cobra.ShellCompDirectiveNoFileComp
	}
}

// offered appends a value with its description. Shells evaluate what they are offered: a value with
// other characters than those of plain ids is not offered, and a description loses them.
func offered(list []cobra.Completion, value, description string) []cobra.Completion {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-.=", r)
	}
	if value == "" || strings.ContainsFunc(value, func(r rune) bool { return !plain(r) }) {
		return list
	}
	description = strings.Map(func(r rune) rune {
		if plain(r) || r == ' ' {
			return r
		}
		return -1
	}, description)
	return append(list, cobra.CompletionWithDesc(value, description))
}

func completeComponents(ctx context.Context, api *client.Client) (list []cobra.Completion, err error) {
	if api == nil {
		return nil, errNoKey
	}
	page, err := api.ListComponents(ctx, client.ComponentFilter{Limit: completionPage})
	for _, c := range page.Components {
		list = offered(list, c.ID, c.Title)
	}
	return list, err
}

func completeCredentials(ctx context.Context, api *client.Client) (list []cobra.Completion, err error) {
	if api == nil {
		return nil, errNoKey
	}
	page, err := api.ListCredentials(ctx, client.CredentialFilter{Limit: completionPage})
	for _, c := range page.Credentials {
		list = offered(list, c.ID, c.Name)
	}
	return list, err
}

func completeFlows(ctx context.Context, api *client.Client) (list []cobra.Completion, err error) {
	if api == nil {
		return nil, errNoKey
	}
	page, err := api.ListFlows(ctx, client.FlowFilter{Limit: completionPage})
	for _, f := range page.Flows {
		list = offered(list, f.ID, f.Name)
	}
	return list, err
}

// completeRoles lists the built-in roles, and those of the tenant if the service answers.
func completeRoles(ctx context.Context, api *client.Client) (list []cobra.Completion, err error) {
	for _, role := range slices.Sorted(maps.Keys(permission.Roles)) {
		list = offered(list, string(role), "")
	}
	if api == nil {
		return list, nil
	}
	for r, err := range api.Roles(ctx) {
		if err != nil {
			break
		}
		list = offered(list, r.Name, r.Title)
	}
	return list, nil
}
