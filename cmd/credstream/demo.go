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
)

// demoCommand holds the API that the README's tour makes credentials for.
func (a *app) demoCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "demo", Short: "Run an API to try credentials with", Args: arguments()}
	var cfg demoConfig
	petstore := &cobra.Command{
		Use: "petstore", Short: "Run a tiny Petstore API, until interrupted",
		Long: "Run a tiny Petstore API: GET /v2/user/me answers 200 to the right key in the header api-key, else 401.\n" +
			"docs/examples/petstore-component.json is the component for it.",
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
			return a.servePetstore(cmd.Context(), cfg)
		},
	}
	bind(petstore.Flags(), &cfg)
	cmd.AddCommand(petstore)
	return cmd
}

func (a *app) servePetstore(ctx context.Context, cfg demoConfig) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen for HTTP: %w", err)
	}
	server := &http.Server{Handler: petstoreAPI(cfg.key), ReadHeaderTimeout: 5 * time.Second}
	if _, err := fmt.Fprintf(a.stdout, "Petstore answers on http://%s\n", listener.Addr()); err != nil {
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
