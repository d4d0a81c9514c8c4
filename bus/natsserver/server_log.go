package natsserver

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"time"
)

// serverLog forwards the server's log. Tracing, the only level that
// prints payloads, is never enabled. Messages about clients,
// such as a permission violation, can be provoked arbitrarily often, so they are limited to one
// warning a minute for each key, and one for all connections without a key.
type serverLog struct {
	log   *slog.Logger
	fatal chan<- string // receives the first message that would have ended a standalone server

	mu      sync.Mutex
	clients map[string]*clientFaults // by principal; "" for connections without a key
}

// clientFaults are those of one key since the last warning.
type clientFaults struct {
	count      int
	from, last string
}

const (
	clientLogEvery = time.Minute
	clientLogBytes = 256 // of the last message
)

var (
	// accountName finds the accounts of keys.
	accountName = regexp.MustCompile(clientPrefix + `([A-Za-z0-9_-]+)_[A-Z2-7]{26}`)
	// clientLine is the start of a message about a client on the
	// network: address and number, the client's own data, account and user.
	clientLine = regexp.MustCompile(`(?s)^(\S+):\d+ - [a-z]id(?:_ws)?:\d+ - ` +
		`(?:(?:"(?:[^"\\]|\\.)*" - )?"` + accountName.String() + `/user:[^"]*" - (.*)|(.*))$`)
)

func (l *serverLog) Noticef(format string, v ...any) { l.write(slog.LevelDebug, format, v) }

func (l *serverLog) Warnf(format string, v ...any) { l.write(slog.LevelWarn, format, v) }

func (l *serverLog) Errorf(format string, v ...any) { l.write(slog.LevelError, format, v) }

func (l *serverLog) Debugf(format string, v ...any) { l.write(slog.LevelDebug, format, v) }

func (l *serverLog) Tracef(string, ...any) {}

func (l *serverLog) Fatalf(format string, v ...any) {
	l.write(slog.LevelError, format, v)
	select {
	case l.fatal <- fmt.Sprintf(format, v...):
	default:
	}
}

func (l *serverLog) write(level slog.Level, format string, v []any) {
	ctx := context.Background()
	if !l.log.Enabled(ctx, level) {
		return
	}
	text := fmt.Sprintf(format, v...)
	if client := clientLine.FindStringSubmatch(text); client != nil && level >= slog.LevelWarn {
		l.fault(client[2], client[1], client[3]+client[4])
		return
	}
	l.log.Log(ctx, level, accountName.ReplaceAllString(text, clientPrefix+"$1"))
}

// fault counts an incident of a client, and logs a warning unless there was one in the last minute.
func (l *serverLog) fault(principal, from, text string) {
	text = accountName.ReplaceAllString(text[:min(len(text), clientLogBytes)], clientPrefix+"$1")
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.clients[principal]; f != nil {
		f.count, f.from, f.last = f.count+1, from, text
		return
	}
	if l.clients == nil {
		l.clients = map[string]*clientFaults{}
	}
	l.clients[principal] = &clientFaults{}
	l.warn(principal, clientFaults{1, from, text})
	time.AfterFunc(clientLogEvery, func() { l.again(principal) })
}

// again logs the incidents of each minute, until a minute has none.
func (l *serverLog) again(principal string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.clients[principal]
	if f.count == 0 {
		delete(l.clients, principal)
		return
	}
	l.warn(principal, *f)
	*f = clientFaults{}
	time.AfterFunc(clientLogEvery, func() { l.again(principal) })
}

func (l *serverLog) warn(principal string, f clientFaults) {
	if principal == "" {
		l.log.Warn("connections without a key failed on the NATS port", "count", f.count, "from", f.from, "last", f.last)
		return
	}
	l.log.Warn("the NATS server denied an operation of a key", "principal", principal, "count", f.count, "from", f.from, "last", f.last)
}
