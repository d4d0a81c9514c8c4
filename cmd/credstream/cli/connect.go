package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/cmd/credstream/settings"
	"github.com/credstream/credstream/fault"
)

var (
	errConfirmMissing = fault.New(fault.Invalid, "confirm_missing",
		"The confirmation code is missing. With --headless, enter the code of the last page on standard input.")
	errListenLoopback = fault.New(fault.Unavailable, "loopback_unavailable",
		"Cannot listen on 127.0.0.1 for the browser's return. Use --headless.")
)

// connectPoll is the interval at which a connection is polled.
const connectPoll = 2 * time.Second

func (a *invocation) connectCommand() *cobra.Command {
	var in client.ConnectOAuth
	var keysFile, step string
	var headless, open, noBrowser bool
	var revision int
	cmd := &cobra.Command{
		Use: "connect --component ID | --credential ID", Short: "Connect an account at a component's provider, in a browser",
		Long: "Connect an account at a component's provider, in a browser, and save it as a credential.\n" +
			"The printed link works once. The browser must run on this machine, because it returns to a local port.\n" +
			"For a browser on another machine, use --headless and enter the code that the last page shows.\n" +
			"The redirect URI that credstream oauth-client define prints must be registered at the provider.",
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			switch {
			case in.Component == "" && in.Credential == "":
				return errUsage.Withf("Give --component, or --credential to connect an existing credential again.")
			case open && (headless || noBrowser):
				return errUsage.Withf("--open cannot be combined with --headless or --no-browser.")
			}
			if in.For, err = stepOfFlow(step); err != nil {
				return err
			}
			if keysFile != "" {
				b, err := a.secretJSON(keysFile)
				if err != nil {
					return err
				}
				if in.Keys, err = client.KeysJSON(b); err != nil {
					return err
				}
			}
			api, err := a.api()
			if err != nil {
				return err
			}
			connect := connecting{invocation: a, api: api, in: in, open: open, revision: revision}
			var done client.Done
			if headless {
				done, err = connect.byCode(cmd.Context())
			} else {
				done, err = connect.byLoopback(cmd.Context())
			}
			if err != nil {
				return err
			}
			if in.Credential != "" {
				return a.answer(done, "Connected credential %s again, version %d, %s.", done.ID, done.Version, done.Status)
			}
			return a.answer(done, "Created credential %s, version %d, %s.", done.ID, done.Version, done.Status)
		},
	}
	settings.Bind(cmd.Flags(), &a.client)
	f := cmd.Flags()
	f.StringVar(&in.Component, "component", "", "component `ID`")
	f.StringVar(&in.Credential, "credential", "", "`ID` of a credential to connect again; keeps its id, and its other fields unless --keys-file is given")
	f.StringVar(&in.Name, "name", "", "`NAME` of a new credential; derived from the component's title when absent")
	f.StringVar(&in.Workspace, "workspace", "", "workspace `ID`, stored as given")
	f.StringVar(&in.User, "user", "", "`ID` of the user in your application")
	f.StringVar(&step, "for", "", "`FLOW/STEP` that will use the credential; records the use")
	f.StringVar(&keysFile, "keys-file", "", "`FILE` with the values of the component's other fields as a JSON object; - for standard input")
	bindRevision(cmd, &revision)
	f.BoolVar(&headless, "headless", false, "the browser is on another machine: ask for the code that its last page shows")
	f.BoolVar(&open, "open", false, "open the link in a browser")
	f.BoolVar(&noBrowser, "no-browser", false, "only print the link (the default)")
	return cmd
}

// connecting is one run of connect.
type connecting struct {
	*invocation
	api  *client.Client
	in   client.ConnectOAuth
	open bool

	revision int // of the component, 0: any
}

// link requests the link and prints it to standard error, because standard
// output is for the credential.
func (c *connecting) link(ctx context.Context) (client.ConnectLink, error) {
	link, err := c.api.ConnectOAuth(ctx, c.in, client.ExpectRevision(c.revision))
	if err != nil {
		return link, err
	}
	fmt.Fprintf(c.stderr, "Open this link in your browser. It works once, until %s:\n\n  %s\n\n", when(link.Expires), clean(link.URL))
	if c.open {
		if err := openBrowser(ctx, link.URL); err != nil {
			fmt.Fprintln(c.stderr, "Cannot open a browser.")
		}
	}
	return link, nil
}

// openBrowser opens an address in the system's browser.
func openBrowser(ctx context.Context, address string) error {
	if !strings.HasPrefix(address, "https://") && !strings.HasPrefix(address, "http://") {
		return client.ErrAnswer
	}
	program := []string{"xdg-open"}
	switch runtime.GOOS {
	case "darwin":
		program = []string{"open"}
	case "windows":
		program = []string{"rundll32", "url.dll,FileProtocolHandler"}
	}
	cmd := exec.CommandContext(ctx, program[0], append(program[1:], address)...)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("open a browser: %w", err)
	}
	return nil
}

// byCode prompts for the code that the last page shows.
func (c *connecting) byCode(ctx context.Context) (client.Done, error) {
	link, err := c.link(ctx)
	if err != nil {
		return client.Done{}, err
	}
	for {
		fmt.Fprint(c.stderr, "Code on the last page: ")
		code, err := c.line(ctx)
		if err != nil {
			return client.Done{}, err
		}
		if code == "" {
			continue
		}
		done, err := c.api.CompleteConnection(ctx, link.ID, code, c.in.User)
		var refused *fault.Error
		if !errors.As(err, &refused) || refused.Code != "connection_confirm_wrong" && refused.Code != "connection_not_returned" {
			return done, err
		}
		fmt.Fprintln(c.stderr, clean(refused.Msg))
	}
}

// line reads a line of standard input.
func (c *connecting) line(ctx context.Context) (string, error) {
	type line struct {
		text string
		err  error
	}
	read := make(chan line, 1)
	go func() { // a read cannot be cancelled: after an interrupt it ends with the process
		text, err := readLine(c.stdin)
		read <- line{strings.TrimSpace(text), err}
	}()
	select {
	case l := <-read:
		if l.err != nil && l.text == "" {
			return "", errConfirmMissing
		}
		return l.text, nil
	case <-ctx.Done():
		fmt.Fprintln(c.stderr)
		return "", errStopped.Withf("Interrupted. Nothing was connected.")
	}
}

// byLoopback waits for the browser to return to this machine (RFC 8252, section 7.3).
func (c *connecting) byLoopback(ctx context.Context) (done client.Done, err error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return done, fmt.Errorf("%w (%w)", errListenLoopback, err)
	}
	back := &comeback{path: "/" + rand.Text(), arrived: make(chan arrival, 1), over: make(chan struct{})}
	server := &http.Server{Handler: back, ReadHeaderTimeout: 5 * time.Second}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(listener) }()
	defer func() { // the page in the browser shows the outcome
		back.says = "Connected. You can close this page."
		if err != nil {
			back.says = "Not connected: " + clean(err.Error())
		}
		close(back.over)
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = server.Shutdown(last)
		_ = server.Close()
		<-served
	}()
	c.in.ReturnTo = "http://" + listener.Addr().String() + back.path
	link, err := c.link(ctx)
	if err != nil {
		return done, err
	}
	fmt.Fprintln(c.stderr, "Waiting for the browser to return ...")
	look := time.NewTicker(connectPoll)
	defer look.Stop()
	for {
		select {
		case came := <-back.arrived:
			if came.connection == link.ID && came.confirm != "" {
				return c.api.CompleteConnection(ctx, link.ID, came.confirm, c.in.User)
			}
			if err := c.ended(ctx, link.ID); err != nil { // else somebody else has sent a browser here
				return done, err
			}
		case <-look.C:
			if err := c.ended(ctx, link.ID); err != nil {
				return done, err
			}
		case <-ctx.Done():
			return done, errStopped.Withf("Interrupted. Nothing was connected.")
		}
	}
}

// ended returns why a connection failed; nil while it is in progress.
func (c *connecting) ended(ctx context.Context, id string) error {
	now, err := c.api.GetConnection(ctx, id)
	switch {
	case ctx.Err() != nil:
		return errStopped.Withf("Interrupted. Nothing was connected.")
	case err != nil:
		return err
	case now.Stage == client.ConnectionFailed:
		return &fault.Error{Kind: fault.Precondition, Code: now.Reason, Msg: now.Says}
	}
	return nil
}

// arrival is a browser that has returned.
type arrival struct{ connection, confirm string }

// comeback is the handler to which the browser returns: one path, once.
type comeback struct {
	path    string
	arrived chan arrival
	over    chan struct{} // closed when the outcome is known
	says    string        // the outcome; may be read after over is closed
}

// ServeHTTP implements http.Handler.
func (b *comeback) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method != http.MethodGet || r.URL.EscapedPath() != b.path {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	q := r.URL.Query()
	select {
	case b.arrived <- arrival{q.Get("connection"), q.Get("confirm")}:
	default: // another arrival is being handled
	}
	select {
	case <-b.over:
		_, _ = fmt.Fprintln(w, b.says) // a browser that is gone needs no response
	case <-r.Context().Done():
	}
}
