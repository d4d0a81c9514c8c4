package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/cmd/credstream/settings"
)

func (a *invocation) accessCommand() *cobra.Command {
	return a.group("access", "Query the access log of credentials", a.accessList())
}

func (a *invocation) accessList() *cobra.Command {
	var filter client.AccessFilter
	var since, until string
	cmd := &cobra.Command{
		Use: "list", Short: "List who had which credential, when and until when", Args: arguments(),
		Long: "List who had which version of which credential, when and until when, oldest first: flow engines that resolved it, with flow and\n" +
			"step, and people to whom it was revealed, which has no end.\n" +
			"A \"withdrawn\" entry follows if the credential changed at the same moment: those values did not leave " +
			"the service.",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if filter.Since, err = pastTime("since", since); err != nil {
				return err
			}
			if filter.Until, err = pastTime("until", until); err != nil {
				return err
			}
			api, err := a.api()
			if err != nil {
				return err
			}
			var rows [][]string
			for one, err := range api.Accesses(cmd.Context(), filter) {
				if err != nil {
					return err
				}
				if !a.client.JSON {
					rows = append(rows, append([]string{when(one.Time), accessEvent(one.Kind)}, accessRow(one)...))
					continue
				}
				if err := a.json(one); err != nil {
					return err
				}
			}
			if a.client.JSON {
				return nil
			}
			return a.list(append([]string{"TIME", "EVENT"}, accessHeaders...), rows)
		},
	}
	cmd.Flags().StringVar(&filter.Credential, "credential", "", "filter by credential `ID`; deleted credentials are included")
	cmd.Flags().StringVar(&filter.Actor, "actor", "", "filter by `ACTOR`: key:<id> or user:<id>")
	cmd.Flags().StringVar(&filter.Component, "component", "", "filter by the `ID` of the component")
	cmd.Flags().StringVar(&filter.Flow, "flow", "", "filter by the `ID` of the flow")
	periodFlags(cmd, &since, &until)
	return cmd
}

// periodFlags adds --since and --until, for pastTime.
func periodFlags(cmd *cobra.Command, since, until *string) {
	cmd.Flags().StringVar(since, "since", "", "only from this `TIME` on: 2026-01-31T08:00:00Z, or 24h for the last day")
	cmd.Flags().StringVar(until, "until", "", "only before this `TIME`, written like --since")
}

// pastTime parses the value of a flag: a time, or a duration before now.
func pastTime(flag, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := settings.ParseDuration(text); err == nil && ago > 0 {
		return time.Now().Add(-ago), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, errUsage.Withf("--%s must be a time such as 2026-01-31T08:00:00Z, or a duration such as 24h.", flag)
	}
	return t, nil
}

// accessEvent returns the displayed name of the kind of an entry.
func accessEvent(kind string) string {
	if kind == "given" {
		return "resolved"
	}
	return kind
}

var accessHeaders = []string{"CREDENTIAL", "VERSION", "CALLER", "FLOW", "HOW", "UNTIL", "LEASE"}

func accessRow(a client.Access) []string {
	how := a.Via + ", sealed"
	if a.Cleartext {
		how = a.Via + ", clear text"
	}
	flow := a.Flow
	if a.Step != "" {
		flow += "/" + a.Step
	}
	return []string{a.Credential, strconv.Itoa(a.Version), a.Actor, flow, how, when(a.Expires), a.Lease}
}

func (a *invocation) leaseCommand() *cobra.Command {
	var filter client.LeaseFilter
	list := &cobra.Command{
		Use: "list", Short: "List active leases", Args: arguments(),
		Long: "List active leases. A lease lets a caller keep the values of a credential until it expires.\n" +
			"A lease is shown as revoked if the credential has other keys now, must be connected again, or was deleted.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			var rows [][]string
			for one, err := range api.Leases(cmd.Context(), filter) {
				if err != nil {
					return err
				}
				if !a.client.JSON {
					state := "active"
					if one.Revoked {
						state = "revoked"
					}
					rows = append(rows, append([]string{when(one.Time), state}, accessRow(one.Access)...))
					continue
				}
				if err := a.json(one); err != nil {
					return err
				}
			}
			if a.client.JSON {
				return nil
			}
			return a.list(append([]string{"SINCE", "STATE"}, accessHeaders...), rows)
		},
	}
	list.Flags().StringVar(&filter.Credential, "credential", "", "filter by credential `ID`")
	list.Flags().StringVar(&filter.Actor, "actor", "", "filter by `ACTOR`: key:<id> or user:<id>")
	return a.group("lease", "List active leases", list)
}

func (a *invocation) credentialResolve() *cobra.Command {
	var opts client.ResolveOptions
	var clearText, show bool
	cmd := &cobra.Command{
		Use: "resolve ID", Short: "Resolve the values of a credential, as a flow engine does", Args: arguments("ID"),
		Long: "Resolve the values of a credential, as a flow engine does. The response is encrypted to a key pair that " +
			"is generated for this call.\nThe access is audited. The values are printed only with --show, as a JSON object.",
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			got, err := a.resolve(cmd, api, args[0], opts, clearText)
			if err != nil {
				return err
			}
			if show && !a.client.JSON {
				_, err := fmt.Fprintf(a.stdout, "%s\n", got.Keys.Reveal())
				return err
			}
			shown := resolvedShown{ID: got.ID, Lease: got.Lease, Expires: got.Expires, Version: got.Version, Hosts: got.Hosts, Fields: got.Keys.Names()}
			if show {
				shown.Keys = got.Keys.Reveal()
			}
			if a.client.JSON {
				return a.json(shown)
			}
			return a.pairs(nonEmpty([][2]string{
				{"id", got.ID},
				{"version", strconv.Itoa(got.Version)},
				{"fields", strings.Join(shown.Fields, ", ")},
				{"hosts", strings.Join(got.Hosts, ", ")},
				{"lease", got.Lease},
				{"until", when(got.Expires)},
			}))
		},
	}
	cmd.Flags().StringVar(&opts.Flow, "flow", "", "`ID` of the flow, for the access log")
	cmd.Flags().StringVar(&opts.Step, "step", "", "`ID` of the step, for the access log")
	cmd.Flags().BoolVar(&clearText, "cleartext", false, "request clear values; only over TLS or on the same machine")
	cmd.Flags().BoolVar(&show, "show", false, "print the values")
	return cmd
}

// resolvedShown is a resolved credential as --json prints it.
type resolvedShown struct {
	ID      string         `json:"id"`
	Lease   string         `json:"lease"`
	Expires time.Time      `json:"expires"`
	Version int            `json:"version"`
	Hosts   []string       `json:"hosts"`
	Fields  []string       `json:"fields"`
	Keys    jsontext.Value `json:"keys,omitzero"` // only with --show
}

func (a *invocation) resolve(cmd *cobra.Command, api *client.Client, id string, opts client.ResolveOptions, clearText bool) (client.Resolved, error) {
	if clearText {
		return api.ResolveCleartext(cmd.Context(), id, opts)
	}
	key, err := client.NewResolveKey()
	if err != nil {
		return client.Resolved{}, err
	}
	return api.Resolve(cmd.Context(), key, id, opts)
}
