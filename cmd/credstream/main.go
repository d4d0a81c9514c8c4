// Command credstream is the service and its command line.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/credstream/credstream/cmd/credstream/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := cli.Run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
