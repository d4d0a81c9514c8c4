package v1

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/api/edge"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/credential"
)

const (
	linesType = "application/x-ndjson"

	replayPage = 1000             // items asked for at a time
	pageTime   = 60 * time.Second // a client must take a page within

	// identifyEvery is how often it is looked whether the key of a replay under way is
	// still good: a second is promised.
	identifyEvery = 250 * time.Millisecond
)

// replays are the queries whose pages can be had as one stream of lines, and what
// a line is.
var replays = map[string]string{
	"events.replay": "CloudEvents in JSON, one per line, up to limit or the end.",
	"access.replay": "Access records in JSON, one per line, up to limit or the end.",
}

// paging is what the questions of all replays have. The rest is for the service to read.
type paging struct {
	From  uint64                    `json:"from,omitzero"`
	Limit int                       `json:"limit,omitzero"`
	Rest  map[string]jsontext.Value `json:",embed"`
}

func wantsLines(r *http.Request) bool {
	for _, accept := range r.Header["Accept"] {
		if strings.Contains(accept, linesType) {
			return true
		}
	}
	return false
}

// replay writes every page of a replay as one stream of JSON documents, one a
// line, up to the limit in the request or to the end. An error after the first line
// cuts the connection, so that a client cannot take a part for the whole. Each page
// is for who the caller is by then, and the replay ends within a second of its key.
func (x *exchange) replay(call service.Call, name string, body []byte) {
	var ask paging
	if len(body) > 0 {
		if err := json.Unmarshal(body, &ask); err != nil {
			x.Fail(service.ErrBody)
			return
		}
	}
	left := ask.Limit // 0: no limit
	if left < 0 {
		x.Fail(service.ErrLimit.Withf("The limit is the maximum number of lines. Omit it to get all.").At("/limit"))
		return
	}
	control := http.NewResponseController(x.W)
	ctx, end := x.whileGood(control)
	defer end()
	var lines []byte
	for {
		var err error
		if call.Principal, err = edge.Identify(x.cfg.Access, x.R); err != nil {
			x.cut(err)
			return
		}
		ask.Limit = replayPage
		if left > 0 {
			ask.Limit = min(left, replayPage)
		}
		var n int
		var next uint64
		lines, n, next, err = x.replayPage(ctx, call, name, ask, lines[:0])
		if err != nil && x.Status != 0 && fault.Of(err).Kind == fault.Throttled && wait(ctx, fault.Of(err).RetryAfter) {
			continue // a replay that is under way is slowed down, not cut
		}
		if ended := context.Cause(ctx); ended != nil {
			err = ended
		}
		if err != nil {
			x.cut(err)
			return
		}
		if x.Status == 0 {
			x.W.Header().Set("Content-Type", linesType)
			x.End(http.StatusOK)
			if x.R.Method == http.MethodHead {
				return
			}
		}
		// The server's own bound is for a whole answer; here each page has its own.
		// A recorder in a test has no deadline to set.
		_ = control.SetWriteDeadline(time.Now().Add(pageTime))
		if err := context.Cause(ctx); err != nil { // the key has ended, and its deadline was overwritten
			x.cut(err)
			return
		}
		if _, err := x.W.Write(lines); err != nil {
			if ended := context.Cause(ctx); ended != nil {
				x.cut(ended)
			}
			return // the client is gone
		}
		_ = control.Flush()
		if left > 0 {
			if left -= n; left <= 0 {
				return
			}
		}
		if next == 0 {
			return
		}
		ask.From = next
	}
}

// whileGood returns a context that ends when the key of the request does, with the
// refusal as its cause; a write to a client that does not read ends then too.
func (x *exchange) whileGood(control *http.ResponseController) (ctx context.Context, end func()) {
	ctx, cancel := context.WithCancelCause(x.R.Context())
	var watching sync.WaitGroup
	watching.Go(func() {
		for wait(ctx, identifyEvery) {
			if _, err := edge.Identify(x.cfg.Access, x.R); fault.Of(err) != nil && fault.Of(err).Kind == fault.Unauthenticated {
				cancel(err)
				_ = control.SetWriteDeadline(time.Now())
				return
			}
		}
	})
	return ctx, func() { cancel(context.Canceled); watching.Wait() }
}

// replayPage appends the lines of one page to b, and tells how many they are and
// where the next page begins; 0 at the end.
func (x *exchange) replayPage(ctx context.Context, call service.Call, name string, ask paging, b []byte) (lines []byte, n int, next uint64, err error) {
	body, err := json.Marshal(ask)
	if err != nil {
		return b, 0, 0, fmt.Errorf("ask for a page of %s: %w", name, err)
	}
	answer, err := x.cfg.Service.Serve(ctx, call, name, body)
	x.Accepted(call.Tenant, err)
	if err != nil {
		return b, 0, 0, err
	}
	switch page := answer.(type) {
	case admin.Replay:
		b, err = appendLines(b, page.Events)
		return b, len(page.Events), page.Next, err
	case credential.AccessReplay:
		b, err = appendLines(b, page.Accesses)
		return b, len(page.Accesses), page.Next, err
	}
	return b, 0, 0, fmt.Errorf("%s answered %T", name, answer)
}

func appendLines[T any](b []byte, items []T) ([]byte, error) {
	for i := range items {
		line, err := json.Marshal(&items[i])
		if err != nil {
			return b, err
		}
		b = append(append(b, line...), '\n')
	}
	return b, nil
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
	if x.Status == 0 {
		x.Fail(err)
		return
	}
	x.Err = err
	panic(http.ErrAbortHandler)
}
