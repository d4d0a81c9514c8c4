package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credstream/credstream/client"
)

const healthTimeout = 5 * time.Second // well below the interval of container health checks

// healthCommand is for the health checks of containers and service managers.
func (a *invocation) healthCommand() *cobra.Command {
	cmd := a.group("health", "Check whether a process of the service is ready")
	cmd.Long = "Check whether a process of the service is ready. It needs no API key.\n" +
		"The exit code is 0 if the process is ready, and 9 if it is not or cannot be reached."
	cmd.Args = arguments()
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), healthTimeout)
		defer cancel()
		trust, err := a.tls()
		if err != nil {
			return err
		}
		h, err := client.CheckHealth(ctx, client.Config{URL: a.client.Server, TLS: trust})
		if err != nil {
			return err
		}
		if !h.Ready {
			return client.ErrNotReady.Withf("The service is not ready: %s.", strings.Join(h.Reasons, "; "))
		}
		if a.client.JSON {
			return a.json(h)
		}
		fmt.Fprintln(a.stdout, "ready")
		for _, note := range h.Notes {
			fmt.Fprintf(a.stdout, "note: %s\n", clean(note))
		}
		return nil
	}
	return cmd
}
