package app_test

import (
	"testing"

	"github.com/credstream/credstream/cmd/credstream/app"
	"github.com/credstream/credstream/cmd/credstream/cli"
)

func TestMain(m *testing.M) {
	app.CommandLine = cli.Run
	app.Main(m)
}
