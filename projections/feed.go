package projections

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/events"
)

// Subject prefixes of the feed and of the audit stream. The feed holds
// the changes, the audit stream every public event.
const (
	FeedPrefix  = "credstream.events"
	AuditPrefix = "credstream.audit"
)

// Headers with an event's position in the feed: the pair (log sequence, index
// within the commit) rises from message to message.
const (
	HeaderLogSeq   = "ce-logseq"
	HeaderLogIndex = "ce-logindex"
)

// Message is the public form of one event: a CloudEvent 1.0, a stable contract
// with other programs. It holds no secret id, no MAC, no hash of a key and no
// descriptor.
type Message struct {
	Subject      string // in the feed: "credstream.events.<tenant>.<category>.<id as token>"; "" when Audience is Audit
	AuditSubject string // in the audit stream: "credstream.audit.<tenant>.<category>.<id as token>"
	Audience     events.Audience
	ID           string    // the event's id, "<commit>-<index>"
	Type         string    // "credstream.credential.created.v1"
	Source       string    // "/credstream/<tenant>"
	EventSubject string    // "credential.<id>", the id verbatim
	Time         time.Time // when it happened, UTC; not the order
	Data         []byte    // JSON, from events.Type.Public

	// Extension attributes; empty ones are left out.
	Tenant        string
	Actor         string // "key:<id>", "user:<id>" or "system:<id>"
	CommandID     string
	CorrelationID string
	CausationID   string
	LogSeq        uint64
	LogIndex      int
}

// Headers are the message's attributes in CloudEvents binary mode, in a fixed
// order, per the CloudEvents NATS protocol binding: every
// attribute, including the content type, has the prefix "ce-", and every character
// that is not printable ASCII, and each space, quote and percent sign, is
// percent-encoded. (The CloudEvents SDK for Go reads the same names but does not
// decode percent-encoding, which only foreign ids ever need.)
func (m Message) Headers() [][2]string {
	all := m.attributes()
	for i := range all {
		all[i] = [2]string{"ce-" + all[i][0], percentEncode(all[i][1])}
	}
	return all
}

// Structured is the message in CloudEvents structured mode, in the JSON format.
func (m Message) Structured() []byte {
	b := []byte{'{'}
	for _, a := range m.attributes() {
		b, _ = jsontext.AppendQuote(b, a[0])
		b = append(b, ':')
		b, _ = jsontext.AppendQuote(b, strings.ToValidUTF8(a[1], "\uFFFD"))
		b = append(b, ',')
	}
	return append(append(append(b, `"data":`...), m.Data...), '}')
}

// attributes are the names and values of the CloudEvents attributes, in a fixed order.
func (m Message) attributes() [][2]string {
	all := [][2]string{
		{"specversion", "1.0"},
		{"id", m.ID},
		{"type", m.Type},
		{"source", m.Source},
		{"subject", m.EventSubject},
		{"time", m.Time.UTC().Format(time.RFC3339Nano)},
		{"datacontenttype", "application/json"},
		{"tenant", m.Tenant},
		{"actor", m.Actor},
		{"commandid", m.CommandID},
		{"correlationid", m.CorrelationID},
		{"causationid", m.CausationID},
		{strings.TrimPrefix(HeaderLogSeq, "ce-"), strconv.FormatUint(m.LogSeq, 10)},
		{strings.TrimPrefix(HeaderLogIndex, "ce-"), strconv.Itoa(m.LogIndex)},
	}
	return slices.DeleteFunc(all, func(a [2]string) bool { return a[1] == "" }) // an attribute has a value or is absent
}

func percentEncode(s string) string {
	plain := func(c byte) bool { return c > ' ' && c < 0x7f && c != '"' && c != '%' }
	if strings.IndexFunc(s, func(r rune) bool { return r > 0x7f || !plain(byte(r)) }) < 0 {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if plain(s[i]) {
			b.WriteByte(s[i])
		} else {
			fmt.Fprintf(&b, "%%%02X", s[i])
		}
	}
	return b.String()
}

var registry = events.All()

// Public is the public message of a record; ok is false for an event
// that is not public. It is a pure function, so the feed can be rebuilt from
// the log at any time.
func Public(r events.Record) (m Message, ok bool) {
	t, known := registry.TypeOf(r.Event)
	if !known || t.Audience == events.Internal {
		return Message{}, false
	}
	name := "credstream." + t.Name + ".v1" // another version is another type, published beside the first for as long as it has readers
	data, err := jsonv2.Marshal(t.Public(r.Stream.ID, r.Event), jsontext.AllowInvalidUTF8(true))
	if err != nil {
		panic(fmt.Sprintf("projections: %s cannot be written as JSON: %v", name, err)) // plain structs always can
	}
	tenant := r.Meta.Tenant
	stream := events.StreamID{Tenant: tenant, Category: r.Stream.Category, ID: r.Stream.ID}
	m = Message{
		AuditSubject: stream.Subject(AuditPrefix), Audience: t.Audience,
		ID: r.ID(), Type: name, Source: "/credstream/" + tenant, EventSubject: r.Stream.String(), Time: r.Meta.Time.UTC(), Data: data,
		Tenant: tenant, Actor: r.Meta.Actor.Kind + ":" + r.Meta.Actor.ID, CommandID: r.Meta.Command,
		CorrelationID: r.Meta.Correlation, CausationID: r.Meta.Causation, LogSeq: r.Seq, LogIndex: r.Index,
	}
	if t.Audience == events.Changes {
		m.Subject = stream.Subject(FeedPrefix)
	}
	return m, true
}

// StoredName is the name of the event in the log: "credential.created" of
// "credstream.credential.created.v1".
func (m Message) StoredName() string {
	name := strings.TrimPrefix(m.Type, "credstream.")
	return name[:strings.LastIndexByte(name, '.')]
}
