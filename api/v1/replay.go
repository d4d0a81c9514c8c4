package v1

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

const (
	replayRoute = "events.replay"
	linesType   = "application/x-ndjson"

	replayPage = 1000             // events asked for at a time
	pageTime   = 60 * time.Second // a client must take a page within
)

var typeLines = []string{linesType}

func wantsLines(r *http.Request) bool {
	for _, accept := range r.Header["Accept"] {
		if strings.Contains(accept, linesType) {
			return true
		}
	}
	return false
}

// replay writes every page of events.replay as one stream of CloudEvents in
// JSON, one a line, up to the limit in the request or to the end. An error after
// the first line cuts the connection, so that a client cannot take a part for
// the whole.
func (h *handler) replay(x *exchange, call service.Call, body []byte) {
	var ask service.ReplayEvents
	if len(body) > 0 {
		if err := json.Unmarshal(body, &ask); err != nil {
			x.fail(service.ErrBody)
			return
		}
	}
	left := ask.Limit // 0: no limit
	if left < 0 {
		x.fail(service.ErrLimit.Because("The limit is the largest number of events, or absent for all.").At("/limit"))
		return
	}
	control := http.NewResponseController(x.w)
	var lines []byte
	for {
		ask.Limit = replayPage
		if left > 0 {
			ask.Limit = min(left, replayPage)
		}
		page, err := h.replayPage(x, call, ask)
		if x.status != 0 && errors.Is(err, service.ErrRateLimited) && wait(x.r.Context(), fault.Of(err).RetryAfter) {
			continue // a replay that is under way is slowed down, not cut
		}
		if err != nil {
			x.cut(err)
			return
		}
		if x.status == 0 {
			x.w.Header()["Content-Type"] = typeLines
			x.status = http.StatusOK
			x.w.WriteHeader(http.StatusOK)
			if x.r.Method == http.MethodHead {
				return
			}
		}
		lines = lines[:0]
		for i := range page.Events {
			b, err := json.Marshal(&page.Events[i])
			if err != nil {
				x.cut(err)
				return
			}
			lines = append(append(lines, b...), '\n')
		}
		// The server's own bound is for a whole answer; here each page has its own.
		// A recorder in a test has no deadline to set.
		_ = control.SetWriteDeadline(time.Now().Add(pageTime))
		if _, err := x.w.Write(lines); err != nil {
			return // the client is gone
		}
		_ = control.Flush()
		if left > 0 {
			if left -= len(page.Events); left <= 0 {
				return
			}
		}
		if page.Next == 0 {
			return
		}
		ask.From = page.Next
	}
}

func (h *handler) replayPage(x *exchange, call service.Call, ask service.ReplayEvents) (service.Replay, error) {
	body, err := json.Marshal(ask)
	if err != nil {
		return service.Replay{}, fmt.Errorf("ask for a page of events: %w", err)
	}
	answer, err := h.cfg.Service.Serve(x.r.Context(), call, replayRoute, body)
	x.accepted(call, err)
	if err != nil {
		return service.Replay{}, err
	}
	page, ok := answer.(service.Replay)
	if !ok {
		return service.Replay{}, fmt.Errorf("events.replay answered %T", answer)
	}
	return page, nil
}

// wait returns after d, or false when ctx ends before.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// cut ends an answer with an error: as a problem while nothing is written yet,
// else by cutting the connection.
func (x *exchange) cut(err error) {
	if x.status == 0 {
		x.fail(err)
		return
	}
	x.err = err
	panic(http.ErrAbortHandler)
}
