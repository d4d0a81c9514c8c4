package cli

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/credstream/credstream/client"
)

func (a *invocation) throttleCommand() *cobra.Command {
	return a.group("throttle", "Limit how often flows use a credential",
		a.throttleDefine(), a.throttleChange(), a.throttleList(), a.throttleShow(),
		a.one("delete ID", "Delete a throttle policy; refused while it is assigned to a credential", "Deleted throttle policy %s.", (*client.Client).DeleteThrottlePolicy),
		a.throttleAssign(), a.throttleTake(),
		a.one("clear CREDENTIAL", "Remove the throttle policy from a credential", "Credential %s has no throttle policy.", clearThrottlePolicy))
}

func clearThrottlePolicy(api *client.Client, ctx context.Context, credential string, opts ...client.CommandOption) (client.Done, error) { //nolint:revive // the form of a method expression
	return api.AssignThrottlePolicy(ctx, credential, "", opts...)
}

func (a *invocation) throttleDefine() *cobra.Command {
	var id string
	var settings client.ThrottleSettings
	var description func() *string
	cmd := &cobra.Command{
		Use: "define --tokens N --per UNIT", Short: "Define a throttle policy", Args: arguments(),
		Long: "Define a throttle policy. Each credential with this policy gets at most N tokens per period,\nshared by all its flows.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			settings.Description = description()
			done, err := api.DefineThrottlePolicy(cmd.Context(), id, settings)
			if err != nil {
				return err
			}
			return a.answer(done, "Defined throttle policy %s: %d per %s.", done.ID, settings.Tokens, settings.Per)
		},
	}
	cmd.Flags().StringVar(&id, "id", "", "throttle policy `ID`; generated when absent")
	description = bindThrottle(cmd, &settings)
	required(cmd, "tokens", "per")
	return cmd
}

// bindThrottle binds the flags of a policy; the description is nil when it is not given.
func bindThrottle(cmd *cobra.Command, settings *client.ThrottleSettings) (description func() *string) {
	f := cmd.Flags()
	text := f.String("description", "", "description `TEXT`")
	f.Int64Var(&settings.Tokens, "tokens", 0, "maximum `N` of tokens per period: 1 to 1000000000")
	f.StringVar(&settings.Per, "per", "", "`UNIT` of the period: second, minute, hour or day")
	return func() *string {
		if !f.Changed("description") {
			return nil
		}
		return text
	}
}

func (a *invocation) throttleChange() *cobra.Command {
	var settings client.ThrottleSettings
	var description func() *string
	cmd := &cobra.Command{
		Use: "change ID", Short: "Change a throttle policy for all credentials that have it; omitted settings are unchanged", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			settings.Description = description()
			done, err := api.ChangeThrottlePolicy(cmd.Context(), args[0], settings)
			if err != nil {
				return err
			}
			return a.answer(done, "Changed throttle policy %s.", done.ID)
		},
	}
	description = bindThrottle(cmd, &settings)
	return cmd
}

func (a *invocation) throttleList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the tenant's throttle policies", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			list := []client.ThrottlePolicy{}
			var rows [][]string
			for p, err := range api.ThrottlePolicies(cmd.Context()) {
				if err != nil {
					return err
				}
				list = append(list, p)
				rows = append(rows, []string{p.ID, strconv.FormatInt(p.Tokens, 10) + " per " + p.Per, p.Description, when(p.UpdatedAt)})
			}
			if a.client.JSON {
				return a.json(map[string]any{"policies": list})
			}
			return a.list([]string{"ID", "LIMIT", "DESCRIPTION", "UPDATED"}, rows)
		},
	}
}

func (a *invocation) throttleShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show one throttle policy", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			p, err := api.GetThrottlePolicy(cmd.Context(), args[0], 0)
			if err != nil {
				return err
			}
			if a.client.JSON {
				return a.json(p)
			}
			return a.pairs([][2]string{
				{"id", p.ID},
				{"limit", strconv.FormatInt(p.Tokens, 10) + " per " + p.Per},
				{"description", p.Description},
				{"created", when(p.CreatedAt) + " by " + p.CreatedBy},
				{"updated", when(p.UpdatedAt)},
			})
		},
	}
}

func (a *invocation) throttleAssign() *cobra.Command {
	return &cobra.Command{
		Use: "assign CREDENTIAL POLICY", Short: "Assign a throttle policy to a credential, replacing its current one", Args: arguments("CREDENTIAL", "POLICY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			done, err := api.AssignThrottlePolicy(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			return a.answer(done, "Credential %s has throttle policy %s.", done.ID, args[1])
		},
	}
}

func (a *invocation) throttleTake() *cobra.Command {
	var flow string
	var tokens int64
	cmd := &cobra.Command{
		Use: "take CREDENTIAL", Short: "Take tokens from the limit of a credential, as a flow engine does before a call", Args: arguments("CREDENTIAL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			taken, err := api.TakeTokens(cmd.Context(), args[0], flow, tokens)
			if err != nil {
				return err
			}
			answer := map[string]any{"granted": taken.Granted, "retry_after_ms": taken.RetryAfter.Milliseconds(), "remaining": taken.Remaining, "throttle_policy": taken.ThrottlePolicy}
			switch {
			case !taken.Granted:
				return a.answer(answer, "Denied. Retry in %v.", taken.RetryAfter)
			case taken.ThrottlePolicy == "":
				return a.answer(answer, "Granted: the credential has no throttle policy.")
			}
			return a.answer(answer, "Granted. %d tokens are left.", taken.Remaining)
		},
	}
	cmd.Flags().StringVar(&flow, "flow", "", "`ID` of the flow that takes the tokens")
	cmd.Flags().Int64Var(&tokens, "tokens", 1, "`N` tokens")
	return cmd
}
