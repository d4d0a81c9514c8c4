// Command credstream is the service and its command line.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is the program's, three numbers.
const version = "0.1.0"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
