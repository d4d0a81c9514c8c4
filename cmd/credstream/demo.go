package main

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credstream/credstream/fault"
)

// demoCommand holds the API that the README's tour makes credentials for.
func (a *app) demoCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "demo", Short: "Run a demo API or a demo OAuth provider", Args: arguments()}
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
			return a.serveDemo(cmd.Context(), "Petstore", cfg.Listen, petstoreAPI(cfg.key))
		},
	}
	bind(petstore.Flags(), &cfg)
	var oauth demoProviderConfig
	provider := &cobra.Command{
		Use: "provider", Short: "Run a small OAuth provider until interrupted",
		Long: "Run a small OAuth provider and an API that accepts its tokens. It knows the client " + demoClientID + " with the secret\n" +
			demoClientSecret + ", rotates refresh tokens, and revokes every grant at POST /withdraw-all.\n" +
			"Its component is docs/examples/calendar-component.json.",
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if oauth.Lifetime < time.Second {
				return errDemoLifetime
			}
			return a.serveDemo(cmd.Context(), "The provider", oauth.Listen, newDemoProvider(oauth.Lifetime).handler())
		},
	}
	bind(provider.Flags(), &oauth)
	cmd.AddCommand(petstore, provider)
	return cmd
}

var errDemoLifetime = fault.New(fault.Invalid, "demo_lifetime", "--lifetime must be at least 1s.")

// serveDemo serves a demonstration until ctx ends.
func (a *app) serveDemo(ctx context.Context, name, address string, handler http.Handler) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen for HTTP: %w", err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	if _, err := fmt.Fprintf(a.stdout, "%s listens on http://%s\n", name, listener.Addr()); err != nil {
		return errors.Join(err, listener.Close())
	}
	stopped := context.AfterFunc(ctx, func() { _ = server.Close() }) // nothing here is worth waiting for
	defer stopped()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return nil
}

func petstoreAPI(key string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/user/me", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if subtle.ConstantTimeCompare([]byte(r.Header.Get("api-key")), []byte(key)) != 1 {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = fmt.Fprintln(w, `{"message":"unauthorized"}`) // a client that is gone needs no answer
			return
		}
		_, _ = fmt.Fprintln(w, `{"username":"demo"}`) // see above
	})
	return mux
}
