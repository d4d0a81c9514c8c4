package natsserver

import (
	"log/slog"

	"github.com/nats-io/nats-server/v2/server"
)

func NewServerLog(log *slog.Logger) server.Logger { return &serverLog{log: log} }
