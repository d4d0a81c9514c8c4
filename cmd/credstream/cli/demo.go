package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credstream/credstream/cmd/credstream/demo"
	"github.com/credstream/credstream/cmd/credstream/settings"
	"github.com/credstream/credstream/fault"
)

// demoCommand runs the demo APIs of the README's tour.
func (a *invocation) demoCommand() *cobra.Command {
	cmd := noun(&cobra.Command{Use: "demo", Short: "Run a demo API or a demo OAuth provider"})
	var cfg demoConfig
	petstore := &cobra.Command{
		Use: "petstore", Short: "Run a small Petstore API until interrupted",
		Long: "Run a small Petstore API: GET /v2/user/me answers 200 if the header api-key has the right " +
			"key, otherwise 401.\nIts component is docs/examples/petstore-component.json.",
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.key = "secret"
			if key := a.getenv("CREDSTREAM_DEMO_KEY"); key != "" {
				cfg.key = key
			}
			if cfg.KeyFile != "" {
				b, err := a.secretFile(cfg.KeyFile)
				if err != nil {
					return err
				}
				cfg.key = strings.TrimSpace(string(b))
			}
			return a.serveDemo(cmd.Context(), "Petstore", cfg.Listen, demo.Petstore(cfg.key))
		},
	}
	settings.Bind(petstore.Flags(), &cfg)
	var oauth demoProviderConfig
	provider := &cobra.Command{
		Use: "provider", Short: "Run a small OAuth provider until interrupted",
		Long: "Run a small OAuth provider and an API that accepts its tokens. It knows the client " + demo.ClientID + " with the secret\n" +
			demo.ClientSecret + ", rotates refresh tokens, and revokes every grant at POST /revoke-all.\n" +
			"Its component is docs/examples/calendar-component.json.",
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if oauth.Lifetime < time.Second {
				return errDemoLifetime
			}
			return a.serveDemo(cmd.Context(), "The provider", oauth.Listen, demo.Provider(oauth.Lifetime))
		},
	}
	settings.Bind(provider.Flags(), &oauth)
	cmd.AddCommand(petstore, provider)
	return cmd
}

var errDemoLifetime = fault.New(fault.Invalid, "demo_lifetime", "--lifetime must be at least 1s.")

// serveDemo serves a demonstration until ctx ends.
func (a *invocation) serveDemo(ctx context.Context, name, address string, handler http.Handler) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return settings.ListenError("listen", address, err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	if _, err := fmt.Fprintf(a.stdout, "%s listens on http://%s\n", name, listener.Addr()); err != nil {
		return errors.Join(err, listener.Close())
	}
	stopped := context.AfterFunc(ctx, func() { _ = server.Close() }) // no request is worth waiting for
	defer stopped()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return nil
}
