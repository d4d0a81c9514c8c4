package cli

import (
	"cmp"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/fault"
)

var errExpires = fault.New(fault.Invalid, "expires_invalid", "--expires must be a duration such as 2160h, or a time such as 2031-01-31T00:00:00Z.")

// bindExpires adds the flag of commands that declare an expiry.
func bindExpires(cmd *cobra.Command, expires *string, what string) {
	cmd.Flags().StringVar(expires, "expires", "", "`TIME` at which "+what+" at the provider: 2160h for that long from now, or 2031-01-31T00:00:00Z; an event warns before")
}

// expiry returns the command option of --expires; none when the flag is absent.
func expiry(text string) ([]client.CommandOption, error) {
	if text == "" {
		return nil, nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		after, err := time.ParseDuration(text)
		if err != nil {
			return nil, errExpires
		}
		at = time.Now().Add(after)
	}
	return []client.CommandOption{client.Expires(at)}, nil
}

func (a *invocation) expiryCommand() *cobra.Command {
	return a.group("expiry", "See what expires soon", a.expiryList())
}

func (a *invocation) expiryList() *cobra.Command {
	var within string
	cmd := &cobra.Command{
		Use: "list", Short: "List what has expired or expires soon", Args: arguments(),
		Long: "List what has expired in the last 30 days or expires soon, the earliest first: keys and client secrets with a declared\n" +
			"expiry, tokens that cannot be renewed, and API keys. ACTIVE FLOWS is the number of active flows that would fail.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			list := []client.Expiry{}
			var rows [][]string
			for x, err := range api.Expiries(cmd.Context(), within) {
				if err != nil {
					return err
				}
				state := "expires"
				if x.Expired {
					state = "expired"
				}
				list = append(list, x)
				rows = append(rows, []string{x.Kind, x.ID, cmp.Or(x.Name, "-"), x.What, state, when(x.Expires), strconv.Itoa(x.ActiveFlows)})
			}
			if a.client.JSON {
				return a.json(map[string]any{"expiries": list})
			}
			return a.list([]string{"KIND", "ID", "NAME", "WHAT", "STATE", "AT", "ACTIVE FLOWS"}, rows)
		},
	}
	cmd.Flags().StringVar(&within, "within", "30d", "`TIME` ahead, such as 30d or 12h")
	return cmd
}
