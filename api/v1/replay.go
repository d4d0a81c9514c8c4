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

	replayPage = 1000             // items per page
	pageTime   = 60 * time.Second // a client must read a page within this time

	// identifyEvery is the interval at which a replay authenticates its key again, because a
	// revocation must take effect within a second.
	identifyEvery = 250 * time.Millisecond
)

// replays are the queries that can be streamed as one JSON document per line, with the
// description of their lines.
var replays = map[string]string{
	"events.replay": "CloudEvents in JSON, one per line, up to limit or the end.",
	"access.replay": "Access records in JSON, one per line, up to limit or the end.",
}

// paging has the paging members of all replays. The service parses the others.
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

// replay streams all pages as one JSON document per line, up to the limit in the request or the
// end. An error after the first line aborts the connection, so that the client does not consider
// the response complete. Every page is authorized again, and the stream ends within a second
// after its key was revoked.
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
			continue // slow down instead of aborting
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
		// The server's timeout is for a whole response; here each page has its own. A recorder
		// in tests does not support deadlines.
		_ = control.SetWriteDeadline(time.Now().Add(pageTime))
		if err := context.Cause(ctx); err != nil { // the key is no longer valid; SetWriteDeadline above has replaced the deadline that whileGood set
			x.cut(err)
			return
		}
		if _, err := x.W.Write(lines); err != nil {
			if ended := context.Cause(ctx); ended != nil {
				x.cut(ended)
			}
			return // the client has disconnected
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

// whileGood returns a context that is cancelled when the key of the request becomes invalid,
// with the error as the cause. A blocked write then fails too.
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

// replayPage appends the lines of one page to b. It returns their number and the start of the
// next page; 0 at the end.
func (x *exchange) replayPage(ctx context.Context, call service.Call, name string, ask paging, b []byte) (lines []byte, n int, next uint64, err error) {
	body, err := json.Marshal(ask)
	if err != nil {
		return b, 0, 0, fmt.Errorf("ask for a page of %s: %w", name, err)
	}
	answer, err := x.cfg.Service.Serve(ctx, call, name, body)
	x.SetTenant(call.Tenant, err)
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

// wait sleeps for d. It returns false if ctx is done before.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// cut fails a response: with a problem document if nothing was written yet, otherwise by
// aborting the connection.
func (x *exchange) cut(err error) {
	if x.Status == 0 {
		x.Fail(err)
		return
	}
	x.Err = err
	panic(http.ErrAbortHandler)
}
