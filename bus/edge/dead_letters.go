package edge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service/admin"
)

// maxDetails is the maximum size of an entry's details in bytes; larger ones are omitted.
const maxDetails = 128 << 10

// DeadLetters is the stream of the dead-letter queue: messages that failed permanently, with the
// reason, until they are retried or dropped.
type DeadLetters struct {
	queues *Queues
	log    *slog.Logger
	put    *prometheus.CounterVec
}

var _ admin.DeadLetterQueue = (*DeadLetters)(nil)

// NewDeadLetters creates the dead-letter queue. metrics may be nil.
func NewDeadLetters(queues *Queues, metrics prometheus.Registerer, log *slog.Logger) *DeadLetters {
	p := &DeadLetters{queues: queues, log: log, put: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "credstream_poison_total", Help: "Messages put into the dead-letter queue, by queue and reason.",
	}, []string{"queue", "code"})}
	if metrics != nil {
		metrics.MustRegister(p.put, waiting("credstream_poison_messages", "Messages in the dead-letter queue.", nil, queues, DeadLetterStream))
	}
	return p
}

// waiting is a gauge of the number of messages in a stream; NaN while unknown.
func waiting(name, help string, labels prometheus.Labels, queues *Queues, stream string) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, func() float64 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		n, err := queues.count(ctx, stream)
		if err != nil {
			return math.NaN()
		}
		return float64(n)
	})
}

// deadLetter is the stored form of a dead-lettered message, in JSON.
type deadLetter struct {
	admin.DeadLetter
	Origin *origin `json:"origin,omitzero"` // nil if the content is not kept
}

// origin is the original message in its queue, byte for byte.
type origin struct {
	Subject string            `json:"subject"`
	Header  map[string]string `json:"header"`
	Data    []byte            `json:"data"`
}

// setReason sets the reason of an entry to the public part of err.
func setReason(e *admin.DeadLetter, err error) {
	f := fault.Of(err)
	e.Code, e.Reason, e.At = f.Code, f.Msg, time.Now().UTC().Truncate(time.Microsecond)
	if d := f.Problem().Details; len(d) <= maxDetails {
		e.Details = jsontext.Value(d)
	}
}

// send publishes an entry to the tenant's part of the dead-letter queue. An entry without content
// is stored once when its publisher repeats the message within the duplicate window.
func (p *DeadLetters) send(ctx context.Context, tenant string, e deadLetter) (streams.Receipt, error) {
	data, err := json.Marshal(e)
	if err != nil {
		return streams.Receipt{}, fmt.Errorf("encoding an entry of the dead-letter queue: %w", err)
	}
	m := nats.NewMsg(streams.DeadLetterSubject + tenant + "." + e.Queue)
	m.Data = data
	if e.Origin == nil {
		once(m, tenant, e.Actor, e.Subject, e.Name, e.EventID, e.Code, e.SHA256)
	}
	r, err := p.queues.send(ctx, DeadLetterStream, m)
	r.Stored = func() {
		p.put.WithLabelValues(e.Queue, e.Code).Inc()
		p.log.Warn("message moved to the dead-letter queue", "queue", e.Queue, "tenant", tenant, "name", e.Name,
			"command", e.CommandID, "event", e.EventID, "actor", e.Actor, "code", e.Code)
	}
	return r, err
}

// List returns up to limit messages of the tenant after an id, oldest first. It returns
// projections.ErrCursorInvalid for an invalid id.
func (p *DeadLetters) List(ctx context.Context, tenant, after string, limit int) (page []admin.DeadLetter, next string, err error) {
	seq := uint64(0)
	if after != "" {
		var ok bool
		if seq, ok = parseEntryID(after); !ok {
			return nil, "", projections.ErrCursorInvalid
		}
	}
	if events.CheckName(tenant) != nil {
		return nil, "", nil
	}
	stream, err := p.stream(ctx)
	if err != nil {
		return nil, "", err
	}
	for {
		m, err := stream.GetMsg(ctx, seq+1, jetstream.WithGetMsgSubject(streams.DeadLetterSubject+tenant+".>")) // or the next message
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
			return page, "", nil
		case err != nil:
			return nil, "", fmt.Errorf("reading the dead-letter queue: %w: %w", fault.ErrUnavailable, err)
		case len(page) == limit:
			return page, page[limit-1].ID, nil
		}
		seq = m.Sequence
		page = append(page, p.read(ctx, m).DeadLetter)
	}
}

// Get returns one message with its content, or admin.ErrQueueNotFound.
func (p *DeadLetters) Get(ctx context.Context, tenant, id string) (admin.DeadLetter, error) {
	_, e, err := p.find(ctx, tenant, id)
	if err != nil {
		return admin.DeadLetter{}, err
	}
	if e.Origin != nil && jsontext.Value(e.Origin.Data).IsValid() {
		e.Content = e.Origin.Data
	}
	return e.DeadLetter, nil
}

// Retry puts a message back into its queue, durably, and then erases it here. After a crash in
// between it is in both queues; the command id or the revision detects the second execution.
func (p *DeadLetters) Retry(ctx context.Context, tenant, id string) error {
	_, e, err := p.find(ctx, tenant, id)
	if err != nil {
		return err
	}
	queue := Queue(e.Queue).layout()
	if !e.Kept || e.Origin == nil || !strings.HasPrefix(e.Origin.Subject, queue.storedPrefix+tenant+".") {
		return admin.ErrQueueNotKept
	}
	m := nats.NewMsg(e.Origin.Subject)
	for k, v := range e.Origin.Header {
		m.Header[k] = []string{v}
	}
	m.Header.Del(nats.MsgIdHdr) // within the duplicate window the stream would not store it again
	m.Data = e.Origin.Data
	if err := p.queues.put(ctx, queue.stream, m); err != nil {
		return err
	}
	err = p.Drop(ctx, tenant, id)
	if errors.Is(err, admin.ErrQueueNotFound) { // it was dropped concurrently
		return nil
	}
	return err
}

// Drop erases a message, or returns admin.ErrQueueNotFound.
func (p *DeadLetters) Drop(ctx context.Context, tenant, id string) error {
	stream, e, err := p.find(ctx, tenant, id)
	if err != nil {
		return err
	}
	seq, _ := parseEntryID(e.ID) // valid: find has parsed it
	err = stream.SecureDeleteMsg(ctx, seq)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound), errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) && p.gone(ctx, tenant, id):
		return admin.ErrQueueNotFound
	case err != nil:
		return fmt.Errorf("erasing from the dead-letter queue: %w: %w", fault.ErrUnavailable, err)
	}
	if durable := p.queues.durable[DeadLetterStream]; durable != nil {
		return durable(ctx)
	}
	return nil
}

func (p *DeadLetters) gone(ctx context.Context, tenant, id string) bool {
	_, _, err := p.find(ctx, tenant, id)
	return errors.Is(err, admin.ErrQueueNotFound)
}

func (p *DeadLetters) stream(ctx context.Context) (jetstream.Stream, error) {
	s, err := p.queues.js.Stream(ctx, DeadLetterStream)
	if err != nil {
		return nil, fmt.Errorf("looking up the dead-letter queue: %w: %w", fault.ErrUnavailable, err)
	}
	return s, nil
}

// find reads the tenant's message with this id.
func (p *DeadLetters) find(ctx context.Context, tenant, id string) (jetstream.Stream, deadLetter, error) {
	seq, ok := parseEntryID(id)
	if !ok {
		return nil, deadLetter{}, admin.ErrQueueNotFound
	}
	stream, err := p.stream(ctx)
	if err != nil {
		return nil, deadLetter{}, err
	}
	m, err := stream.GetMsg(ctx, seq)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return nil, deadLetter{}, admin.ErrQueueNotFound
	case err != nil:
		return nil, deadLetter{}, fmt.Errorf("reading the dead-letter queue: %w: %w", fault.ErrUnavailable, err)
	case !strings.HasPrefix(m.Subject, streams.DeadLetterSubject+tenant+"."):
		return nil, deadLetter{}, admin.ErrQueueNotFound
	}
	return stream, p.read(ctx, m), nil
}

// read decodes an entry. One of unknown format is returned as such, so that it can be dropped
// and does not hide others.
func (p *DeadLetters) read(ctx context.Context, m *jetstream.RawStreamMsg) deadLetter {
	var e deadLetter
	if err := json.Unmarshal(m.Data, &e); err != nil {
		p.log.WarnContext(ctx, "invalid entry in the dead-letter queue", "seq", m.Sequence)
		e = deadLetter{DeadLetter: admin.DeadLetter{Subject: m.Subject, At: m.Time.UTC(), Size: len(m.Data), SHA256: hexSum(m.Data)}}
		setReason(&e.DeadLetter, errForeign)
	}
	e.ID = strconv.FormatUint(m.Sequence, 10)
	return e
}

// parseEntryID parses an id: the entry's sequence in the stream, in decimal.
func parseEntryID(id string) (seq uint64, ok bool) {
	seq, err := strconv.ParseUint(id, 10, 63)
	return seq, err == nil && seq > 0 && strconv.FormatUint(seq, 10) == id
}

func hexSum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

var tameName = regexp.MustCompile(`^[a-z][a-z0-9_.-]{0,63}$`)

// safeName returns a name from a message if it can be displayed, otherwise "".
func safeName(name string) string {
	if !tameName.MatchString(name) {
		return ""
	}
	return name
}
