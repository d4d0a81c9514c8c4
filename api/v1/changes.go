package v1

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/api/edge"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/admin"
)

// The feed over HTTP is the query events.changes for readers that wait: as server-sent events
// (HTML Living Standard, section 9.2), or as a page that is returned when it has an event (long
// poll). Each page of either is a call of its own, with its own authentication, authorization and
// admission. A connection that waits holds no capacity, except its place among the followers.
const (
	changesRoute = "events.changes"
	streamType   = "text/event-stream"
	lastEventID  = "Last-Event-ID"

	maxWait       = 30 * time.Second
	feedKeepAlive = 20 * time.Second      // between two lines of an idle stream, each after a check of the key
	feedPause     = 20 * time.Millisecond // between two pages of a stream
	maxPlace      = 64                    // bytes
)

// Errors of readers of the feed.
var (
	ErrLastEventID = fault.New(fault.Invalid, "last_event_id_invalid",
		"Last-Event-ID must be the id of an event of this stream: LOGSEQ.LOGINDEX, or LOGSEQ for a whole commit. Omit from then.")
	ErrFeedAhead = fault.New(fault.Precondition, "feed_position_ahead",
		"The log ends before this position: an earlier state was restored from a backup. Read from the beginning again.")
)

// feedPlace is a position in the feed: events after it are delivered.
type feedPlace struct {
	seq   uint64 // log sequence
	index int    // within its commit; math.MaxInt: the whole commit
}

func (p feedPlace) String() string {
	if p.index == math.MaxInt {
		return strconv.FormatUint(p.seq, 10)
	}
	return fmt.Sprintf("%d.%d", p.seq, p.index)
}

func parsePlace(text string) (p feedPlace, ok bool) {
	seq, index, inside := strings.Cut(text, ".")
	p.seq, ok = digits(seq)
	p.index = math.MaxInt
	if ok && inside {
		var n uint64
		n, ok = digits(index)
		p.index = int(min(n, math.MaxInt))
	}
	return p, ok && len(text) <= maxPlace
}

// digits parses an unsigned decimal number without a sign or leading zeros.
func digits(text string) (uint64, bool) {
	n, err := strconv.ParseUint(text, 10, 63)
	return n, err == nil && strconv.FormatUint(n, 10) == text
}

// waitFor returns how long the caller waits for an event (RFC 7240).
func waitFor(r *http.Request) time.Duration {
	for _, prefer := range r.Header["Prefer"] {
		for part := range strings.SplitSeq(prefer, ",") {
			if seconds, ok := strings.CutPrefix(strings.TrimSpace(part), "wait="); ok {
				if n, err := strconv.ParseUint(seconds, 10, 31); err == nil {
					return min(time.Duration(n)*time.Second, maxWait)
				}
			}
		}
	}
	return 0
}

func wantsStream(r *http.Request) bool {
	for _, accept := range r.Header["Accept"] {
		if strings.Contains(accept, streamType) {
			return true
		}
	}
	return false
}

// feedReader is one request that may wait for events.
type feedReader struct {
	*exchange
	call  service.Call
	ask   paging
	after feedPlace
}

// changes serves events.changes to a reader that may wait.
func (x *exchange) changes(call service.Call, body []byte) {
	f := &feedReader{exchange: x, call: call}
	if err := f.read(body); err != nil {
		x.Fail(err)
		return
	}
	stream := wantsStream(x.R)
	if !stream && waitFor(x.R) == 0 || x.R.Method == http.MethodHead || x.cfg.Live == nil {
		page, err := f.page()
		if err != nil {
			x.Fail(err)
			return
		}
		x.JSON(http.StatusOK, edge.MediaJSON, page)
		return
	}
	f.follow(stream)
}

// read takes the position and the page size from the request.
func (f *feedReader) read(body []byte) error {
	if len(body) > 0 && json.Unmarshal(body, &f.ask) != nil {
		return service.ErrBody
	}
	switch given := f.R.Header[http.CanonicalHeaderKey(lastEventID)]; {
	case len(given) == 0:
		if f.ask.From > 0 {
			f.after = feedPlace{f.ask.From - 1, math.MaxInt}
		}
	default:
		var ok bool
		if f.after, ok = parsePlace(given[0]); !ok || len(given) > 1 || f.ask.From != 0 {
			return ErrLastEventID
		}
	}
	if wantsStream(f.R) && f.ask.Limit != 0 {
		return service.ErrLimit.Withf("A stream of events has no limit. Omit it.").At("/limit")
	}
	return nil
}

// page reads the events after the position of the reader, and moves it behind them.
func (f *feedReader) page() (page admin.Replay, err error) {
	ask := f.ask
	ask.From = f.after.seq
	if f.after.index == math.MaxInt {
		ask.From++
	}
	body, err := json.Marshal(ask)
	if err != nil {
		return page, fmt.Errorf("ask for a page of the feed: %w", err)
	}
	answer, err := f.cfg.Service.Serve(f.R.Context(), f.call, changesRoute, body)
	f.SetTenant(f.call.Tenant, err)
	if err != nil {
		return page, err
	}
	page, ok := answer.(admin.Replay)
	if !ok {
		return page, fmt.Errorf("%s answered %T", changesRoute, answer)
	}
	for len(page.Events) > 0 && page.Events[0].LogSeq == f.after.seq && page.Events[0].LogIndex <= f.after.index {
		page.Events = page.Events[1:]
	}
	switch {
	case f.R.Header.Get(lastEventID) != "" && page.End < f.after.seq:
		return page, ErrFeedAhead
	case page.Next > 0:
		f.after = feedPlace{page.Next - 1, math.MaxInt}
	case page.End >= f.after.seq:
		f.after = feedPlace{page.End, math.MaxInt}
	}
	return page, nil
}

// follow reads pages, and waits between them until something happens in the tenant. A long poll
// ends with the first page that has an event. A stream ends when its key is revoked.
func (f *feedReader) follow(stream bool) {
	f.Quiet = true
	control := http.NewResponseController(f.W)
	_ = control.SetReadDeadline(time.Time{}) // it would end the wait; a recorder in tests has none
	timeout := time.NewTimer(maxWait)
	if !stream {
		timeout.Reset(waitFor(f.R))
	}
	defer timeout.Stop()
	tick := time.NewTicker(feedKeepAlive)
	defer tick.Stop()
	// It joins before it reads, so that no event is between. Who may not read does not join.
	page, err := f.page()
	if err != nil {
		f.Fail(err)
		return
	}
	joined, err := f.cfg.Live.Join(f.call.Tenant, f.call.Principal.Actor, "")
	if err != nil {
		f.Fail(err)
		return
	}
	defer f.cfg.Live.Leave(joined)
	if stream {
		f.W.Header().Set("Content-Type", streamType)
		f.W.Header().Set("X-Accel-Buffering", "no")
		f.End(http.StatusOK)
		if !f.send(control, []byte("retry: 2000\n: open\n\n")) {
			return
		}
	}
	first := true
	for {
		if stream {
			if !f.sendPage(control, page) {
				return
			}
		} else if len(page.Events) > 0 || page.Next > 0 {
			f.answer(page)
			return
		}
		if !first && page.Next == 0 { // the second page may have what came between the first and the start of the wait
			select {
			case <-f.R.Context().Done():
				return
			case <-joined.End:
				if !stream {
					f.answer(page)
				}
				return
			case <-timeout.C:
				if !stream {
					f.answer(page)
					return
				}
			case <-joined.Change:
			case <-joined.Look:
			case <-tick.C:
			}
		}
		if stream && !first && !wait(f.R.Context(), feedPause) {
			return
		}
		first = false
		if page, err = f.again(); err == nil {
			continue
		}
		if fault.Of(err).Kind == fault.Throttled && stream { // slow down instead of ending
			if !wait(f.R.Context(), max(fault.Of(err).RetryAfter, feedPause)) {
				return
			}
			page, first = admin.Replay{}, true
			continue
		}
		f.fail(control, stream, err)
		return
	}
}

// again authenticates the caller again, because the key may have been revoked, and reads a page.
func (f *feedReader) again() (admin.Replay, error) {
	who, err := edge.Identify(f.cfg.Access, f.R)
	if err != nil {
		return admin.Replay{}, err
	}
	f.call.Principal = who
	return f.page()
}

func (f *feedReader) answer(page admin.Replay) {
	f.W.Header().Set("Preference-Applied", "wait")
	f.JSON(http.StatusOK, edge.MediaJSON, page)
}

// fail ends a wait with an error: a stream with an event "end" that has the problem.
func (f *feedReader) fail(control *http.ResponseController, stream bool, err error) {
	if !stream {
		f.Fail(err)
		return
	}
	f.Err = err
	p := fault.Of(err).Problem()
	p.Status, p.RequestID = fault.Of(err).Kind.Status(), f.ID
	if b, err := json.Marshal(p); err == nil {
		f.send(control, append(append([]byte("event: end\ndata: "), b...), "\n\n"...))
	}
}

// sendPage sends the events of a page, or the position of the reader if it has none: a reader
// that connects again then does not search what others wrote meanwhile.
func (f *feedReader) sendPage(control *http.ResponseController, page admin.Replay) bool {
	var b []byte
	for i := range page.Events {
		e := &page.Events[i]
		line, err := json.Marshal(e)
		if err != nil {
			f.Warn("an event of the feed was not encoded", err)
			return false
		}
		b = fmt.Appendf(b, "id: %d.%d\ndata: %s\n\n", e.LogSeq, e.LogIndex, line)
	}
	if len(b) == 0 {
		b = fmt.Appendf(b, ": position\nid: %s\n\n", f.after)
	}
	return f.send(control, b)
}

func (f *feedReader) send(control *http.ResponseController, b []byte) bool {
	// The write timeout applies to each page, because the response never ends.
	_ = control.SetWriteDeadline(time.Now().Add(pageTime))
	_, err := f.W.Write(b)
	return err == nil && control.Flush() == nil
}

// describeChanges adds what a reader of the feed can ask for to the operation of events.changes.
func describeChanges(op *huma.Operation) {
	op.Parameters = append(op.Parameters,
		text(lastEventID, "header", false, "Position in the feed, instead of from: the id of the last event that was received, such as 42.0. Events after it are returned.", nil),
		text("Prefer", "header", false, fmt.Sprintf("Long poll: wait=SECONDS, %d at most, returns when there is an event, else the empty page.", int(maxWait.Seconds())), "wait=30"))
	op.Responses["200"].Content[streamType] = &huma.MediaType{
		Schema:  &huma.Schema{Type: huma.TypeString, Description: "Server-sent events without an end: each has a CloudEvent in JSON, and its position as the id. An event named end has the problem that ended the stream."},
		Example: jsontext.Value(strconv.Quote("id: 42.0\ndata: {\"specversion\":\"1.0\",\"type\":\"credstream.credential.renamed.v1\",\"subject\":\"credential.a\"}\n\n")),
	}
}
