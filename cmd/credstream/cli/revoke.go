package cli

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/fault"
)

// Errors of a revocation on the command line.
var (
	errNotConfirmed        = fault.New(fault.Invalid, "not_confirmed", "Nothing was revoked.")
	errRevocationPartial   = fault.New(fault.Unavailable, "revocation_not_confirmed", "Some providers did not confirm the revocation.")
	errRevocationElsewhere = fault.New(fault.Unavailable, "revocation_elsewhere", "Another process runs the revocation, or it was interrupted.")
)

func (a *invocation) oauthCommand() *cobra.Command {
	return a.group("oauth", "Revoke the tokens of OAuth credentials", a.oauthRevoke(), a.oauthRevocation())
}

func (a *invocation) credentialRevoke() *cobra.Command {
	var by changing
	cmd := &cobra.Command{
		Use: "revoke ID", Short: "Revoke the tokens of an OAuth credential locally and at its provider", Args: arguments("ID"),
		Long: "Revoke the tokens of an OAuth credential locally and at its provider. The credential remains and can be connected again.\n" +
			"If the provider does not confirm, the tokens are still revoked locally, the reason is printed, and the exit code is 9.",
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			done, err := api.RevokeCredential(cmd.Context(), args[0], by.options()...)
			if err != nil {
				return err
			}
			switch done.Outcome {
			case "revoked":
				return a.answer(done, "Revoked the tokens of credential %s locally and at the provider.", done.ID)
			case "":
				return a.answer(done, "Credential %s has no tokens.", done.ID)
			}
			if err := a.answer(done, "Revoked the tokens of credential %s locally.", done.ID); err != nil {
				return err
			}
			if done.Outcome == "not_offered" {
				fmt.Fprintln(a.stderr, clean(done.Says))
				return nil
			}
			return errRevocationPartial.Withf("%s", done.Says)
		},
	}
	by.bind(cmd, false)
	return cmd
}

func (a *invocation) oauthRevoke() *cobra.Command {
	var scope client.RevocationScope
	var dry, yes bool
	cmd := &cobra.Command{
		Use: "revoke --all | --component ID | --oauth-client ID", Short: "Revoke the tokens of many credentials locally and at their providers",
		Long: "Revoke the tokens of every OAuth credential of the tenant, of a component or of an OAuth client, locally and at\n" +
			"their providers, and show the progress on standard error. If you interrupt this command, the service continues.\n" +
			"If the service itself was stopped, repeat the command to revoke the remaining tokens.",
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch scope {
			case client.RevocationScope{All: true}, client.RevocationScope{Component: scope.Component}, client.RevocationScope{OAuthClient: scope.OAuthClient}:
			default:
				return errUsage.Withf("Give only one of --all, --component and --oauth-client.")
			}
			if scope == (client.RevocationScope{}) {
				return errUsage.Withf("Give --all, --component ID or --oauth-client ID.")
			}
			api, err := a.api()
			if err != nil {
				return err
			}
			total, err := api.RevokeOAuthDryRun(cmd.Context(), scope)
			if err != nil {
				return err
			}
			if dry {
				return a.answer(map[string]int{"total": total}, "The tokens of %s would be revoked.", count(total, "credential"))
			}
			if err := a.confirm(cmd.Context(), yes, total); err != nil {
				return err
			}
			started, err := api.RevokeOAuth(cmd.Context(), scope)
			if err != nil {
				return err
			}
			return a.watchRevocation(cmd.Context(), api, started.ID)
		},
	}
	cmd.Flags().BoolVar(&scope.All, "all", false, "every OAuth credential of the tenant")
	cmd.Flags().StringVar(&scope.Component, "component", "", "only credentials of the component with this `ID`")
	cmd.Flags().StringVar(&scope.OAuthClient, "oauth-client", "", "only credentials that use the OAuth client with this `ID`")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "print how many credentials are affected and revoke nothing")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask for confirmation on the terminal")
	return cmd
}

// confirm asks on a terminal for confirmation. A script is not asked.
func (a *invocation) confirm(ctx context.Context, yes bool, total int) error {
	tty, ok := a.stdin.(*os.File)
	if yes || !ok || !term.IsTerminal(int(tty.Fd())) {
		return nil
	}
	answer, err := a.ask(ctx, tty, commands.Field{
		Label: fmt.Sprintf("The tokens of %s will be revoked permanently; each credential must be connected again. Type yes to continue", count(total, "credential")), Required: true,
	})
	if err == nil && answer != "yes" {
		err = errNotConfirmed
	}
	return err
}

// watchRevocation shows the progress of a bulk revocation until its end.
func (a *invocation) watchRevocation(ctx context.Context, api *client.Client, id string) error {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	live := terminalWidth(a.stderr) > 0
	for last := -1; ; {
		p, err := api.OAuthRevocation(ctx, id)
		if err != nil {
			return err
		}
		if !p.Here {
			return errRevocationElsewhere.Withf("Another process runs the revocation, or it was interrupted. Credentials that still have tokens: %d. Repeat the command to revoke them.",
				p.Left)
		}
		if live {
			fmt.Fprintf(a.stderr, "\r%d of %d, %d secrets erased", p.Done, p.Total, p.Erased)
		} else if !a.client.JSON && p.Done+p.Erased != last {
			fmt.Fprintf(a.stderr, "%d of %d, %d secrets erased\n", p.Done, p.Total, p.Erased)
		}
		last = p.Done + p.Erased
		if !p.Running {
			if live {
				fmt.Fprintln(a.stderr)
			}
			return a.revocation(p)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errStopped.Withf("Interrupted. The service continues the revocation: credstream oauth revocation.")
		}
	}
}

// revocation prints the result of a bulk revocation.
func (a *invocation) revocation(p client.RevocationProgress) error {
	sentence := fmt.Sprintf("Revoked the tokens of %s, %d at the provider.", count(p.Done, "credential"), p.AtProvider)
	if p.NotOffered > 0 {
		sentence += fmt.Sprintf(" The components of %d have no revocation_uri.", p.NotOffered)
	}
	if err := a.answer(p, "%s", sentence); err != nil {
		return err
	}
	if p.Failed == 0 {
		return nil
	}
	for _, f := range p.Failures {
		fmt.Fprintf(a.stderr, "%s  %s\n", clean(f.Credential), clean(f.Says))
	}
	return errRevocationPartial.Withf("Providers did not confirm the revocation for %s.", count(p.Failed, "credential"))
}

func (a *invocation) oauthRevocation() *cobra.Command {
	return &cobra.Command{
		Use: "revocation", Short: "Show the progress of the tenant's last bulk revocation", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			p, err := api.OAuthRevocation(cmd.Context(), "")
			if err != nil {
				return err
			}
			if !p.Here {
				return a.answer(p, "The service process that answered has run no bulk revocation since its start. Credentials that have tokens: %d.", p.Left)
			}
			if p.Running {
				return a.answer(p, "Revoking: %d of %d, %d at the provider, %d not confirmed.", p.Done, p.Total, p.AtProvider, p.Failed)
			}
			return a.revocation(p)
		},
	}
}
