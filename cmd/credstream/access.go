package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/credstream/credstream/client"
)

func (a *app) accessCommand() *cobra.Command {
	return a.group("access", "See who was given which credential", a.accessList())
}

func (a *app) accessList() *cobra.Command {
	var filter client.AccessFilter
	var since string
	cmd := &cobra.Command{
		Use: "list", Short: "List who was given the values of which credential, and when", Args: arguments(),
		Long: "List who was given the values of which credential, and when, oldest first.\n" +
			"A line says \"withdrawn\" where the credential changed at the same moment, so that the values did not leave.",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if filter.Since, err = sinceTime(since); err != nil {
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
					rows = append(rows, append([]string{when(one.Time), one.Kind}, accessRow(one)...))
					continue
				}
				if err := a.json(one); err != nil {
					return err
				}
			}
			if a.client.JSON {
				return nil
			}
			return a.list(append([]string{"TIME", "WHAT"}, accessHeaders...), rows)
		},
	}
	cmd.Flags().StringVar(&filter.Credential, "credential", "", "only of the credential with this `ID`, also after its end")
	cmd.Flags().StringVar(&filter.Actor, "actor", "", "only what was given to this `ACTOR`: key:<id>")
	cmd.Flags().StringVar(&since, "since", "", "only what was given at this `TIME` or later: 2026-01-31T08:00:00Z, or 24h for the last day")
	return cmd
}

// sinceTime reads a time, or how long ago it was.
func sinceTime(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	var ago time.Duration
	if (&duration{Duration: &ago}).Set(text) == nil && ago > 0 {
		return time.Now().Add(-ago), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, errUsage.Because("--since is a time such as 2026-01-31T08:00:00Z, or one that has passed since, such as 24h.")
	}
	return t, nil
}

var accessHeaders = []string{"CREDENTIAL", "VERSION", "WHO", "FLOW", "HOW", "UNTIL", "LEASE"}

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

func (a *app) leaseCommand() *cobra.Command {
	var filter client.LeaseFilter
	list := &cobra.Command{
		Use: "list", Short: "List the leases that have not expired", Args: arguments(),
		Long: "List the leases that have not expired: who may still hold the values of which credential.\n" +
			"One is revoked when the credential has other keys by now, has to be connected again, or is gone.",
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
					state := "in force"
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
	list.Flags().StringVar(&filter.Credential, "credential", "", "only of the credential with this `ID`")
	list.Flags().StringVar(&filter.Actor, "actor", "", "only of this `ACTOR`: key:<id>")
	return a.group("lease", "See who may hold the values of credentials", list)
}

func (a *app) credentialResolve() *cobra.Command {
	var opts client.ResolveOptions
	var clearText, show bool
	cmd := &cobra.Command{
		Use: "resolve ID", Short: "Fetch the values of a credential, as a flow engine does", Args: arguments("ID"),
		Long: "Fetch the values of a credential, as a flow engine does: sealed to a key that is made on the spot.\n" +
			"That they were given is recorded. They are printed with --show alone, as a JSON object.",
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
			return a.pairs(told([][2]string{
				{"id", got.ID},
				{"version", strconv.Itoa(got.Version)},
				{"fields", strings.Join(shown.Fields, ", ")},
				{"hosts", strings.Join(got.Hosts, ", ")},
				{"lease", got.Lease},
				{"until", when(got.Expires)},
			}))
		},
	}
	cmd.Flags().StringVar(&opts.Flow, "flow", "", "`ID` of the flow it is for, for the record")
	cmd.Flags().StringVar(&opts.Step, "step", "", "`ID` of the step, for the record")
	cmd.Flags().BoolVar(&clearText, "cleartext", false, "have the service answer clear values: over TLS or on the same machine alone")
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
	Keys    jsontext.Value `json:"keys,omitzero"` // with --show alone
}

func (a *app) resolve(cmd *cobra.Command, api *client.Client, id string, opts client.ResolveOptions, clearText bool) (client.Resolved, error) {
	if clearText {
		return api.ResolveCleartext(cmd.Context(), id, opts)
	}
	key, err := client.NewResolveKey()
	if err != nil {
		return client.Resolved{}, err
	}
	return api.Resolve(cmd.Context(), key, id, opts)
}
