package storage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/events"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/fault"
)

// The errors of Marks.Check.
var (
	// ErrStoredIncomplete means that a stream was replaced, or misses messages.
	ErrStoredIncomplete = fault.New(fault.Unavailable, "stored_incomplete",
		"A stream has fewer messages than before, so it is damaged. Changes are refused and no secret is returned until it is restored from a backup.")
	// ErrMarks means that marks.json cannot be read.
	ErrMarks = fault.New(fault.Precondition, "marks_unreadable",
		"marks.json cannot be read. Restore it from its backup, or remove it if you know that the data is intact.")
)

// Marked is a stream with marks.
type Marked struct {
	Stream string
	// Exact means that only this process deletes messages, and calls Marks.Deleting
	// before each: then their number distinguishes lost messages from deleted ones.
	Exact bool
	// OnlyExpires means that messages only leave by their age, so the oldest ones first.
	OnlyExpires bool
	// Durable returns after an fsync of everything that the stream held before the call; nil means
	// that the server syncs by itself.
	Durable func(context.Context) error
}

// Marks records, in a file outside the streams, which streams exist and how much was
// durable in each. JetStream drops what it cannot read, and reuses sequences.
type Marks struct {
	path    string
	js      jetstream.JetStream
	streams []Marked
	log     *slog.Logger

	mu       sync.Mutex
	marks    map[string]mark // as they are in the file
	deleting uint64          // deletions in progress
	unknown  uint64          // deletions of this process that may still happen
	budget   uint64          // deletions that may still begin before the file must be written
}

// mark is the durable content of a stream.
type mark struct {
	Created time.Time `json:"created"` // when the stream was created; it identifies the stream
	Last    uint64    `json:"last"`    // its last sequence
	Deleted uint64    `json:"deleted"` // number of its sequences without a message
	Slack   uint64    `json:"slack"`   // maximum number of deletions since
	// First is the sequence of the oldest message of a stream whose messages only expire, and
	// FirstTime its time; 0 where the stream was empty or an earlier version wrote the mark.
	First     uint64    `json:"first,omitzero"`
	FirstTime time.Time `json:"first_time,omitzero"`
	// Sum is a hash of the last message, "" where it was deleted or an earlier version
	// wrote the mark: the files of another installation may have the same numbers.
	Sum string `json:"sum,omitzero"`
}

// marksFile is the stored format: never change its members.
type marksFile struct {
	Format  int             `json:"format"`
	Streams map[string]mark `json:"streams"`
}

const (
	marksFormat  = 1
	deleteBudget = 256 // deletions that the marks tolerate at once
	marksEvery   = time.Second
)

// OpenMarks reads the file at path, which need not exist, or returns ErrMarks.
func OpenMarks(path string, js jetstream.JetStream, log *slog.Logger, streams ...Marked) (*Marks, error) {
	marks, err := readMarks(path)
	return &Marks{path: path, js: js, streams: streams, log: log, marks: marks}, err
}

// MarkedLast is the sequence up to which a stream was durable according to the file at path; 0
// if unknown.
func MarkedLast(path, stream string) uint64 {
	marks, _ := readMarks(path) // OpenMarks reports the error
	return marks[stream].Last
}

// MarkedState is the recorded end of a stream.
type MarkedState struct {
	Last uint64 // its last sequence
	Sum  string // MessageSum of its last message; "" if unknown
}

// ReadMarks returns what the file at path says, by stream; nothing if there is no file. It returns
// ErrMarks if it cannot be read.
func ReadMarks(path string) (map[string]MarkedState, error) {
	marks, err := readMarks(path)
	states := make(map[string]MarkedState, len(marks))
	for stream, m := range marks {
		states[stream] = MarkedState{m.Last, m.Sum}
	}
	return states, err
}

// MessageSum is the hash of a message in the marks.
func MessageSum(subject string, body []byte) string {
	sum := sha256.Sum256(events.LengthPrefixed(subject, string(body)))
	return hex.EncodeToString(sum[:])
}

func readMarks(path string) (map[string]mark, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading marks.json: %w", err)
	}
	var file marksFile
	if err := json.Unmarshal(b, &file); err != nil || file.Format != marksFormat {
		return nil, ErrMarks.Withf("The file %s is empty, damaged or of a newer version. This does not mean that the data is damaged. Restore the file "+
			"from its backup, or, if you know that the data is intact, remove it: the next start writes it again.", path)
	}
	return file.Streams, nil
}

// Check compares the streams with their marks. It returns ErrStoredIncomplete for a stream that
// is missing, was replaced, ends too early, or misses messages that nobody deleted. A
// stream without a mark is not checked.
func (m *Marks) Check(ctx context.Context) error {
	for _, s := range m.streams {
		was, known := m.mark(s.Stream)
		if !known {
			continue
		}
		now, err := m.readState(ctx, s, was)
		allowed, _ := m.mark(s.Stream) // again: messages are deleted concurrently
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			return incomplete(s.Stream, "is missing")
		case err != nil:
			return err
		}
		if err := s.compare(was, now.mark, allowed, now.maxAge); err != nil {
			return err
		}
		if was.Sum != "" {
			switch sum, err := m.sum(ctx, s.Stream, was.Last); {
			case err != nil:
				return err
			case sum != "" && sum != was.Sum:
				return incomplete(s.Stream, "has a different message at sequence %d than before", was.Last)
			}
		}
	}
	return nil
}

// compare returns ErrStoredIncomplete if the state of a stream does not follow from its mark. allowed
// is the mark to which deletions are compared.
func (s Marked) compare(was, now, allowed mark, maxAge time.Duration) error {
	switch {
	case !now.Created.Equal(was.Created):
		return incomplete(s.Stream, "was created at %s, but the stream before it at %s", now.Created.Format(time.RFC3339Nano), was.Created.Format(time.RFC3339Nano))
	case now.Last < was.Last:
		return incomplete(s.Stream, "ends at message %d, but ended at message %d before: it misses messages from %d on", now.Last, was.Last, now.Last+1)
	case s.Exact && now.Deleted < was.Deleted:
		return incomplete(s.Stream, "has %d messages that had been erased, so it is an old copy", was.Deleted-now.Deleted)
	case s.Exact && now.Deleted > allowed.Deleted+allowed.Slack:
		return incomplete(s.Stream, "misses %d messages that were not erased", now.Deleted-allowed.Deleted-allowed.Slack)
	case s.OnlyExpires && now.First > 0 && now.Deleted > now.First-1:
		return incomplete(s.Stream, "misses %d messages after message %d, its oldest one", now.Deleted-now.First+1, now.First)
	case s.OnlyExpires && was.First > 0 && (now.First == 0 || now.First > was.First) && (maxAge <= 0 || time.Since(was.FirstTime) < maxAge):
		return incomplete(s.Stream, "misses messages from %d on, which had not expired", was.First)
	}
	return nil
}

// sum is a hash of the message at seq; "" when there is none.
func (m *Marks) sum(ctx context.Context, stream string, seq uint64) (string, error) {
	s, err := m.js.Stream(ctx, stream)
	if err != nil {
		return "", fmt.Errorf("looking up stream %s: %w", stream, err)
	}
	msg, err := s.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading message %d of stream %s: %w", seq, stream, err)
	}
	return MessageSum(msg.Subject, msg.Data), nil
}

func (m *Marks) mark(stream string) (mark, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k, known := m.marks[stream]
	return k, known
}

func incomplete(stream, format string, args ...any) error {
	return ErrStoredIncomplete.Withf("The stream %s %s. It is damaged: changes are refused and no secret is returned until it is restored from a backup.",
		stream, fmt.Sprintf(format, args...))
}

// state is the state of a stream, and the age at which its messages expire; 0: never.
type state struct {
	mark
	maxAge time.Duration
}

// readState reads the state of a stream. Its sum is that of the mark if the mark has the
// same last message, else it is omitted.
func (m *Marks) readState(ctx context.Context, marked Marked, was mark) (state, error) {
	s, err := m.js.Stream(ctx, marked.Stream)
	if err != nil {
		return state{}, fmt.Errorf("looking up stream %s: %w", marked.Stream, err)
	}
	info := s.CachedInfo()
	now := state{mark{Created: info.Created, Last: info.State.LastSeq, Deleted: info.State.LastSeq - info.State.Msgs}, info.Config.MaxAge}
	if marked.OnlyExpires && info.State.Msgs > 0 {
		now.First, now.FirstTime = info.State.FirstSeq, info.State.FirstTime
	}
	if now.Created.Equal(was.Created) && now.Last == was.Last {
		now.Sum = was.Sum
	}
	return now, nil
}

// Deleting announces the deletion of a message of an exact stream. The caller calls
// done afterwards, with whether the outcome is known and durable.
func (m *Marks) Deleting(context.Context) (done func(known bool), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.budget == 0 {
		relaxed := map[string]mark{}
		for name, k := range m.marks {
			k.Slack += deleteBudget
			relaxed[name] = k
		}
		if err := m.write(relaxed); err != nil {
			return nil, err
		}
		m.budget = deleteBudget
	}
	m.budget--
	m.deleting++
	return func(known bool) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.deleting--
		if !known {
			m.unknown++
		}
	}, nil
}

// Record writes the marks if the streams have advanced and their content is durable. It returns
// ErrStoredIncomplete, and keeps the marks, if a stream does not follow from its mark.
func (m *Marks) Record(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	slack := m.unknown
	if m.deleting > 0 { // deletions in progress may be counted or not
		if m.deleting >= deleteBudget {
			return nil // later: the marks tolerate only deleteBudget of them
		}
		slack += deleteBudget
	}
	next, changed := map[string]mark{}, false
	for _, s := range m.streams {
		was, known := m.marks[s.Stream]
		read, err := m.readState(ctx, s, was)
		now := read.mark
		if err == nil && known {
			err = s.compare(was, now, was, read.maxAge)
		}
		if err == nil && now.Last > was.Last {
			now.Sum, err = m.sum(ctx, s.Stream, now.Last)
		}
		if err != nil {
			return err
		}
		now.Slack = slack
		if now != was && s.Durable != nil {
			if err := s.Durable(ctx); err != nil {
				return fmt.Errorf("syncing stream %s: %w", s.Stream, err)
			}
		}
		changed = changed || now != was
		next[s.Stream] = now
	}
	if !changed {
		return nil
	}
	if err := m.write(next); err != nil {
		return err
	}
	m.budget = 0
	if m.deleting > 0 {
		m.budget = deleteBudget - m.deleting
	}
	return nil
}

// write replaces the file; the caller holds mu.
func (m *Marks) write(marks map[string]mark) error {
	b, err := json.Marshal(marksFile{Format: marksFormat, Streams: marks}, json.Deterministic(true))
	if err == nil {
		err = eventlog.ReplaceFile(m.path, b)
	}
	if err != nil {
		return fmt.Errorf("writing marks.json: %w", err)
	}
	m.marks = marks
	return nil
}

// Run records the marks every second until ctx ends, and then once more. It records
// nothing while intact returns an error.
func (m *Marks) Run(ctx context.Context, intact func() error) error {
	tick := time.NewTicker(marksEvery)
	defer tick.Stop()
	for {
		last := false
		select {
		case <-ctx.Done():
			last = true
		case <-tick.C:
		}
		if intact() == nil {
			once, cancel := context.WithTimeout(context.WithoutCancel(ctx), marksEvery)
			err := m.Record(once)
			cancel()
			if err != nil {
				m.log.WarnContext(ctx, "marks.json not written", "err", err)
			}
		}
		if last {
			return nil
		}
	}
}
