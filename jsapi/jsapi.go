// Package jsapi is what the jetstream package of nats.go leaves out: a read that insists on
// the leader of a stream, one answer for a lost race, and the check of a stream against its
// configuration. Its functions may be called by several goroutines.
package jsapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/fault"
)

// ErrStreamConfig is returned by EnsureStream for a stream that exists and is not as it must be.
var ErrStreamConfig = fault.New(fault.Precondition, "stream_config_differs",
	"A stream in NATS does not have the configuration that credstream requires.")

// EnsureStream creates the stream, or checks that the one that is there keeps
// messages in the same way: it returns ErrStreamConfig, with the setting that
// differs, and never changes a stream. What a server fills in by itself is not compared.
func EnsureStream(ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig) (created bool, err error) {
	stream, err := js.Stream(ctx, want.Name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		if stream, err = js.CreateStream(ctx, want); err != nil {
			return false, fmt.Errorf("creating stream %s: %w", want.Name, err)
		}
		created = true
	case err != nil:
		return false, fmt.Errorf("looking up stream %s: %w", want.Name, err)
	}
	got := stream.CachedInfo().Config
	for _, c := range []struct {
		field     string
		got, want any
	}{
		{"subjects", got.Subjects, want.Subjects},
		{"retention", got.Retention, want.Retention},
		{"discard", got.Discard, want.Discard},
		{"storage", got.Storage, want.Storage},
		{"num_replicas", got.Replicas, max(want.Replicas, 1)},
		{"max_msg_size", max(got.MaxMsgSize, 0), max(want.MaxMsgSize, 0)},
		{"max_msgs", max(got.MaxMsgs, 0), max(want.MaxMsgs, 0)},
		{"max_bytes", max(got.MaxBytes, 0), max(want.MaxBytes, 0)},
		{"max_age", got.MaxAge, want.MaxAge},
		{"max_msgs_per_subject", max(got.MaxMsgsPerSubject, 0), max(want.MaxMsgsPerSubject, 0)},
		{"allow_direct", got.AllowDirect, want.AllowDirect},
		{"deny_delete", got.DenyDelete, want.DenyDelete},
		{"deny_purge", got.DenyPurge, want.DenyPurge},
		{"allow_rollup_hdrs", got.AllowRollup, want.AllowRollup},
		{"allow_msg_ttl", got.AllowMsgTTL, want.AllowMsgTTL},
		{"allow_msg_schedules", got.AllowMsgSchedules, want.AllowMsgSchedules},
		{"persist_mode", got.PersistMode, want.PersistMode},
		{"sealed", got.Sealed, want.Sealed},
		{"mirror", got.Mirror == nil, want.Mirror == nil},
		{"sources", len(got.Sources), len(want.Sources)},
		{"subject_transform", got.SubjectTransform == nil, want.SubjectTransform == nil},
		{"no_ack", got.NoAck, want.NoAck},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			return false, ErrStreamConfig.Withf("The stream %s has an unexpected configuration: %s is %v, must be %v.", want.Name, c.field, c.got, c.want)
		}
	}
	return created, nil
}

// WrongLast reports whether a publish was refused because the last sequence is
// not the one it expected, or because another publish that could change it is
// under way on a replicated stream.
func WrongLast(err error) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// NotFound reports whether err is the server's answer that there is no such message.
func NotFound(err error) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && api.ErrorCode == jetstream.JSErrCodeMessageNotFound
}

// Question selects one message of a stream, or several from any replica (Batch).
type Question struct {
	Seq           uint64     `json:"seq,omitzero"`
	LastBySubject string     `json:"last_by_subj,omitzero"`
	NextBySubject string     `json:"next_by_subj,omitzero"`
	MultiLast     []string   `json:"multi_last,omitzero"` // subjects, up to 1024: the last message of each, with Batch of API alone
	StartTime     *time.Time `json:"start_time,omitzero"`
	Batch         int        `json:"batch,omitzero"`
	MaxBytes      int        `json:"max_bytes,omitzero"` // of a batch; it has at least one message
}

// Message is a stored message.
type Message struct {
	Subject string
	Seq     uint64
	Header  nats.Header
	Data    []byte
	Time    time.Time // when it was stored
}

// Stored is a message in the answer of a leader.
type Stored struct {
	Subject string    `json:"subject"`
	Seq     uint64    `json:"seq"`
	Header  []byte    `json:"hdrs"`
	Data    []byte    `json:"data"`
	Time    time.Time `json:"time"`
}

// Message decodes the header, which is empty for a message without one.
func (m *Stored) Message() (*Message, error) {
	header := nats.Header{}
	if len(m.Header) > 0 {
		var err error
		if header, err = nats.DecodeHeadersMsg(m.Header); err != nil {
			return nil, fmt.Errorf("header of message %d on %s: %w", m.Seq, m.Subject, err)
		}
	}
	return &Message{Subject: m.Subject, Seq: m.Seq, Header: header, Data: m.Data, Time: m.Time.UTC()}, nil
}

// API makes requests of the JetStream API that the client library has no call for.
type API struct {
	conn   *nats.Conn
	prefix string
}

// Of returns the API that js speaks to.
func Of(js jetstream.JetStream) API {
	a := API{conn: js.Conn(), prefix: jetstream.DefaultAPIPrefix}
	switch opts := js.Options(); {
	case opts.APIPrefix != "":
		a.prefix = strings.TrimSuffix(opts.APIPrefix, ".") + "."
	case opts.Domain != "":
		a.prefix = "$JS." + opts.Domain + ".API."
	}
	return a
}

// Temporary reports whether NATS may succeed later without intervention: a server is away,
// elects a leader, or did not answer before a deadline. A canceled context is not temporary.
func Temporary(err error) bool {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		return api.Code == http.StatusServiceUnavailable
	}
	for _, passing := range []error{
		fault.ErrUnavailable, nats.ErrTimeout, nats.ErrNoResponders, nats.ErrNoServers, nats.ErrConnectionClosed, nats.ErrDisconnected,
		nats.ErrConnectionReconnecting, nats.ErrReconnectBufExceeded, jetstream.ErrNoStreamResponse, context.DeadlineExceeded,
	} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}

// Fault returns err, with fault.ErrUnavailable in its chain when it is Temporary: a caller
// may try again. A nil error stays nil.
func Fault(err error) error {
	if err == nil || !Temporary(err) || errors.Is(err, fault.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", fault.ErrUnavailable, err)
}

// requestTimeout bounds a request whose context has no deadline.
const requestTimeout = 5 * time.Second

// Request returns the answer to an operation, such as STREAM.INFO.name. Its error has
// fault.ErrUnavailable in its chain when it is Temporary.
func (a API) Request(ctx context.Context, operation string, body []byte) (*nats.Msg, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, requestTimeout)
		defer cancel()
	}
	reply, err := a.conn.RequestWithContext(ctx, a.prefix+operation, body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", operation, Fault(err))
	}
	return reply, nil
}

// Call is Request that decodes the answer. The error in it, a *jetstream.APIError, is
// the one returned.
func (a API) Call(ctx context.Context, operation string, question, answer any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return fmt.Errorf("%s: %w", operation, err)
	}
	reply, err := a.Request(ctx, operation, body)
	if err != nil {
		return err
	}
	var failure struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(reply.Data, &failure); err != nil {
		return fmt.Errorf("%s: %w", operation, err)
	}
	if failure.Error != nil {
		return fmt.Errorf("%s: %w", operation, Fault(failure.Error))
	}
	if err := json.Unmarshal(reply.Data, answer); err != nil {
		return fmt.Errorf("%s: %w", operation, err)
	}
	return nil
}

// FromLeader reads one message from the leader of the stream; nil says that there is no
// such message. Errors: the connection's, and *jetstream.APIError of the server.
func (a API) FromLeader(ctx context.Context, stream string, q Question) (*Message, error) {
	var answer struct {
		Message Stored `json:"message"`
	}
	switch err := a.Call(ctx, "STREAM.MSG.GET."+stream, q, &answer); {
	case NotFound(err):
		return nil, nil //nolint:nilnil // "none" is an answer
	case err != nil:
		return nil, err
	}
	return answer.Message.Message()
}

// The statuses of a batch that ends, or is empty.
const (
	endOfBatch = "204"
	noneFound  = "404"
)

// Batch reads messages from any replica of the stream, perhaps none: a replica may lag. The
// stream allows direct reads.
func (a API) Batch(ctx context.Context, stream string, q Question) (list []Message, err error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, requestTimeout)
		defer cancel()
	}
	body, err := json.Marshal(q)
	if err != nil {
		return nil, fmt.Errorf("direct get: %w", err)
	}
	inbox, err := a.conn.SubscribeSync(a.conn.NewInbox())
	if err != nil {
		return nil, fmt.Errorf("direct get: %w", Fault(err))
	}
	defer func() { _ = inbox.Unsubscribe() }() // fails when the connection is closed already
	if err := a.conn.PublishRequest(a.prefix+"DIRECT.GET."+stream, inbox.Subject, body); err != nil {
		return nil, fmt.Errorf("direct get: %w", Fault(err))
	}
	for {
		m, err := inbox.NextMsgWithContext(ctx)
		if err != nil {
			return nil, fmt.Errorf("direct get: %w", Fault(err))
		}
		switch status := m.Header.Get("Status"); status {
		case "":
		case endOfBatch, noneFound:
			return list, nil
		default:
			return nil, fmt.Errorf("direct get: the server answers %s %s: %w", status, m.Header.Get("Description"), fault.ErrUnavailable)
		}
		msg, err := direct(m)
		if err != nil {
			return nil, err
		}
		list = append(list, msg)
	}
}

// direct is the stored message in a direct answer, which adds headers to it.
func direct(m *nats.Msg) (msg Message, err error) {
	msg = Message{Subject: m.Header.Get(jetstream.SubjectHeader), Header: m.Header, Data: m.Data}
	if msg.Seq, err = strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64); err != nil {
		return msg, fmt.Errorf("direct get: %w", err)
	}
	if msg.Time, err = time.Parse(time.RFC3339Nano, m.Header.Get(jetstream.TimeStampHeaer)); err != nil {
		return msg, fmt.Errorf("direct get: %w", err)
	}
	for _, added := range []string{
		jetstream.StreamHeader, jetstream.SubjectHeader, jetstream.SequenceHeader, jetstream.TimeStampHeaer, jetstream.LastSequenceHeader, "Nats-Num-Pending",
	} {
		delete(m.Header, added)
	}
	return msg, nil
}
