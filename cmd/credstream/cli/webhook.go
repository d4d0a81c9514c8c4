package cli

import (
	"cmp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credstream/credstream/client"
)

func (a *invocation) webhookCommand() *cobra.Command {
	return a.group("webhook", "Send events to HTTP receivers",
		a.webhookDefine(), a.webhookChange(), a.webhookRotate(), a.webhookList(), a.webhookShow(), a.webhookTest(), a.webhookDeliveries(), a.webhookRedeliver(),
		a.one("delete ID", "Delete a webhook and its pending deliveries", "Deleted webhook %s.", (*client.Client).DeleteWebhook))
}

// bindWebhook binds the flags of settings; apply takes those that are given.
func bindWebhook(cmd *cobra.Command, settings *client.WebhookSettings) (apply func()) {
	f := cmd.Flags()
	f.StringVar(&settings.URL, "url", "", "`URL` of the receiver")
	description := f.String("description", "", "description `TEXT`")
	types := f.StringSlice("type", nil, "event `TYPE` to send, such as credential.created or credential.*; repeatable; all when absent")
	component := f.String("component", "", "only events of this component `ID`, its OAuth client and its credentials")
	f.StringVar(&settings.Mode, "mode", "", "`MODE` of CloudEvents over HTTP: structured or binary")
	return func() {
		if f.Changed("description") {
			settings.Description = description
		}
		if f.Changed("type") {
			named := []string{}
			for _, t := range *types {
				if t != "" {
					named = append(named, t)
				}
			}
			settings.Types = &named
		}
		if f.Changed("component") {
			settings.Component = component
		}
	}
}

func (a *invocation) webhookDefine() *cobra.Command {
	var id string
	var settings client.WebhookSettings
	var apply func()
	cmd := &cobra.Command{
		Use: "define --url URL", Short: "Define a webhook; prints its signing secret once", Args: arguments(),
		Long: "Define a webhook. It sends the events that are recorded from now on to URL, as CloudEvents, signed according to\nStandard Webhooks. The signing secret is shown only once.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			apply()
			made, err := api.DefineWebhook(cmd.Context(), id, settings)
			if err != nil {
				return err
			}
			return a.answer(made, "Defined webhook %s.\n\nThe signing secret, shown only once:\n\n  %s", made.ID, made.Secret)
		},
	}
	cmd.Flags().StringVar(&id, "id", "", "webhook `ID`; generated when absent")
	apply = bindWebhook(cmd, &settings)
	required(cmd, "url")
	return cmd
}

func (a *invocation) webhookChange() *cobra.Command {
	var change client.WebhookChange
	var enable, disable bool
	var apply func()
	cmd := &cobra.Command{
		Use: "change ID", Short: "Change, disable or enable a webhook; omitted settings are unchanged", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			apply()
			if change.ID = args[0]; enable || disable {
				change.Enabled = &enable
			}
			done, err := api.ChangeWebhook(cmd.Context(), change)
			if err != nil {
				return err
			}
			return a.answer(done, "Changed webhook %s.", done.ID)
		},
	}
	apply = bindWebhook(cmd, &change.WebhookSettings)
	cmd.Flags().BoolVar(&enable, "enable", false, "enable the webhook; it continues where it stopped")
	cmd.Flags().BoolVar(&disable, "disable", false, "stop sending")
	cmd.Flags().BoolVar(&change.EndRotation, "end-rotation", false, "erase the previous signing secret")
	cmd.MarkFlagsMutuallyExclusive("enable", "disable")
	return cmd
}

func (a *invocation) webhookRotate() *cobra.Command {
	var keep time.Duration
	cmd := &cobra.Command{
		Use: "rotate ID", Short: "Give a webhook a new signing secret; prints it once", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			made, err := api.RotateWebhookSecret(cmd.Context(), args[0], keep)
			if err != nil {
				return err
			}
			return a.answer(made, "Rotated the signing secret of webhook %s.\n\nThe new secret, shown only once:\n\n  %s", made.ID, made.Secret)
		},
	}
	cmd.Flags().DurationVar(&keep, "keep-previous", 24*time.Hour, "`TIME` during which requests are also signed with the previous secret: 0s to 720h")
	return cmd
}

func webhookState(w client.Webhook) string {
	if w.Enabled {
		return "enabled"
	}
	return "disabled: " + w.Reason
}

func (a *invocation) webhookList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the tenant's webhooks", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			list := []client.Webhook{}
			var rows [][]string
			for w, err := range api.Webhooks(cmd.Context()) {
				if err != nil {
					return err
				}
				list = append(list, w)
				rows = append(rows, []string{w.ID, w.URL, cmp.Or(strings.Join(w.Types, ", "), "all"), webhookState(w), when(w.UpdatedAt)})
			}
			if a.client.JSON {
				return a.json(map[string]any{"webhooks": list})
			}
			return a.list([]string{"ID", "URL", "TYPES", "STATE", "UPDATED"}, rows)
		},
	}
}

func (a *invocation) webhookShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show one webhook", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			w, err := api.ShowWebhook(cmd.Context(), args[0], 0)
			if err != nil {
				return err
			}
			if a.client.JSON {
				return a.json(w)
			}
			pairs := [][2]string{
				{"id", w.ID},
				{"url", w.URL},
				{"description", w.Description},
				{"types", cmp.Or(strings.Join(w.Types, ", "), "all")},
				{"component", cmp.Or(w.Component, "all")},
				{"mode", w.Mode},
				{"state", webhookState(w)},
			}
			if !w.PreviousUntil.IsZero() {
				pairs = append(pairs, [2]string{"previous secret signs until", when(w.PreviousUntil)})
			}
			return a.pairs(append(pairs, [2]string{"created", when(w.CreatedAt) + " by " + w.CreatedBy}, [2]string{"updated", when(w.UpdatedAt)}))
		},
	}
}

func (a *invocation) webhookTest() *cobra.Command {
	return &cobra.Command{
		Use: "test ID", Short: "Send a test event to the receiver of a webhook", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			sent, err := api.TestWebhook(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.answer(sent, "%s", sent.Says)
		},
	}
}

func (a *invocation) webhookRedeliver() *cobra.Command {
	return &cobra.Command{
		Use: "redeliver ID EVENT", Short: "Send a dead letter of a webhook again", Args: arguments("ID", "EVENT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			sent, err := api.RedeliverWebhook(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			return a.answer(sent, "%s", sent.Says)
		},
	}
}

func (a *invocation) webhookDeliveries() *cobra.Command {
	var status string
	cmd := &cobra.Command{
		Use: "deliveries ID", Short: "List dead letters, pending deliveries, and the last 50 completed ones", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			list, err := api.WebhookDeliveries(cmd.Context(), args[0], status)
			if err != nil {
				return err
			}
			if a.client.JSON {
				return a.json(map[string]any{"deliveries": list})
			}
			var rows [][]string
			for _, d := range list {
				answer := d.Outcome
				if d.HTTP != 0 {
					answer = strconv.Itoa(d.HTTP)
				}
				rows = append(rows, []string{d.Event, d.Type, d.Subject, d.Status, strconv.Itoa(d.Attempts), answer, strconv.FormatInt(d.Latency, 10) + " ms", when(d.At)})
			}
			return a.list([]string{"EVENT", "TYPE", "SUBJECT", "STATUS", "ATTEMPTS", "ANSWER", "LATENCY", "LAST ATTEMPT"}, rows)
		},
	}
	cmd.Flags().StringVar(&status, "status", "", "only those with this `STATUS`: delivered, pending or dead")
	return cmd
}
