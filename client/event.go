package client

import (
	"context"
	"fmt"
	"iter"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"
)

// Event is one change: a CloudEvent (CloudEvents 1.0). It marshals to the
// JSON form of the specification.
type Event struct {
	SpecVersion     string         `json:"specversion"`
	ID              string         `json:"id"`      // unique within Source
	Source          string         `json:"source"`  // "/credstream/<tenant>"
	Type            string         `json:"type"`    // "credstream.credential.created.v1"
	Subject         string         `json:"subject"` // "credential.<id>"
	Time            time.Time      `json:"time"`    // not the order
	DataContentType string         `json:"datacontenttype"`
	Tenant          string         `json:"tenant"`
	Actor           string         `json:"actor"` // "key:<id>"
	CommandID       string         `json:"commandid"`
	CorrelationID   string         `json:"correlationid"`
	CausationID     string         `json:"causationid,omitzero"`
	LogSeq          uint64         `json:"logseq"`   // log sequence...
	LogIndex        int            `json:"logindex"` // ...and within the commit: together they order all events
	Data            jsontext.Value `json:"data"`
}

// position is an event's position in the order of all events.
type position struct {
	seq   uint64
	index int
}

func (e Event) position() position { return position{e.LogSeq, e.LogIndex} }

func (p position) after(o position) bool {
	return p.seq > o.seq || p.seq == o.seq && p.index > o.index
}

// readEvent reads a CloudEvent in binary mode (CloudEvents NATS protocol
// binding 1.0.2): attributes in headers, percent-encoded, data in the body.
func readEvent(m *nats.Msg) (Event, error) {
	attribute := func(name string) string {
		// Header names keep the case in which they were sent.
		v := m.Header.Get("ce-" + name)
		if !strings.Contains(v, "%") {
			return v
		}
		if plain, err := url.PathUnescape(v); err == nil && utf8.ValidString(plain) {
			return plain
		}
		return v
	}
	e := Event{
		SpecVersion: attribute("specversion"), ID: attribute("id"), Source: attribute("source"), Type: attribute("type"),
		Subject: attribute("subject"), DataContentType: attribute("datacontenttype"), Tenant: attribute("tenant"),
		Actor: attribute("actor"), CommandID: attribute("commandid"), CorrelationID: attribute("correlationid"),
		CausationID: attribute("causationid"), Data: jsontext.Value(m.Data),
	}
	var err error
	if e.Time, err = time.Parse(time.RFC3339Nano, attribute("time")); err == nil {
		if e.LogSeq, err = strconv.ParseUint(attribute("logseq"), 10, 64); err == nil {
			e.LogIndex, err = strconv.Atoi(attribute("logindex"))
		}
	}
	if err == nil && (e.ID == "" || e.Type == "" || e.SpecVersion != "1.0") {
		err = fmt.Errorf("an attribute is absent")
	}
	if err != nil {
		return Event{}, fmt.Errorf("%w Message on %s: %w", ErrAnswer, m.Subject, err)
	}
	return e, nil
}

// ReplayFilter selects events to replay. Its members combine by AND.
type ReplayFilter struct {
	From   uint64    `json:"from,omitzero"`   // first log sequence; the beginning when 0
	To     uint64    `json:"to,omitzero"`     // last log sequence; the end of the log when 0
	Stream string    `json:"stream,omitzero"` // "credential.<id>"
	Type   string    `json:"type,omitzero"`   // "credential.created"
	Actor  string    `json:"actor,omitzero"`  // "key:<id>"
	Since  time.Time `json:"since,omitzero"`  // events of this time or later
	Until  time.Time `json:"until,omitzero"`  // events before this time

	Component string `json:"component,omitzero"` // of this component, its credentials and its OAuth client
	Flow      string `json:"flow,omitzero"`      // of this flow, and those that name it
	// Complete adds events of the type credstream.withheld.v1 for what is not returned, so that every
	// log sequence is accounted for. Only without other filters, except From and To.
	Complete bool `json:"complete,omitzero"`
}

// replayPage is one response of events.replay.
type replayPage struct {
	Events []Event `json:"events"`
	Next   uint64  `json:"next"` // From of the next page; 0 at the end
	End    uint64  `json:"end"`  // last commit of the log; 0 when the service does not report it
}

const replayLimit = 1000 // events of one page

func (a *API) replay(ctx context.Context, filter ReplayFilter, limit int) (replayPage, error) {
	var page replayPage
	err := a.Query(ctx, "events.replay", struct {
		ReplayFilter
		Limit int `json:"limit"`
	}{filter, limit}, &page)
	return page, err
}

// changes is one page of the feed's events from a log sequence on.
func (a *API) changes(ctx context.Context, from uint64, limit int) (replayPage, error) {
	var page replayPage
	err := a.Query(ctx, "events.changes", struct {
		From  uint64 `json:"from"`
		Limit int    `json:"limit"`
	}{from, limit}, &page)
	return page, err
}

// Replay yields the tenant's past events in log order, from the
// filter's From to the end of the log at the time when the last page is requested.
// It ends with the first error.
func (a *API) Replay(ctx context.Context, filter ReplayFilter) iter.Seq2[Event, error] {
	return pages(filter.From, func(from uint64) (replayPage, error) {
		filter.From = from
		return a.replay(ctx, filter, replayLimit)
	})
}

// pages yields the events of page after page.
func pages(from uint64, page func(from uint64) (replayPage, error)) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for {
			p, err := page(from)
			if err != nil {
				yield(Event{}, err)
				return
			}
			for _, e := range p.Events {
				if !yield(e, nil) {
					return
				}
			}
			if from = p.Next; p.Next == 0 {
				return
			}
		}
	}
}
