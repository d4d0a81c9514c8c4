package jetstream

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/events"
)

// The headers of a commit's message; they never change. They are copies from the body, for
// readers that do not decode it.
const (
	headerFormat  = "Cs-Format"  // events.CommitFormat
	headerCommit  = "Cs-Commit"  // id of the commit
	headerCommand = "Cs-Command" // id of the command, encoded by printable
	HeaderPrev    = "Cs-Prev"    // sequences of the stream's earlier commits, newest first; absent on the first commit
)

// headerExpected makes the server refuse the message unless this is the stream's last sequence.
const headerExpected = "Nats-Expected-Last-Subject-Sequence"

// maxPrev is the maximum number of sequences in HeaderPrev.
const maxPrev = 50

// message is a stored commit.
type message struct {
	subject string
	seq     uint64
	format  string
	commit  string
	prev    []uint64 // newest first
	body    []byte
}

// commitMessage encodes a commit. prev are the stream's last sequences.
func commitMessage(subject string, meta events.Meta, prev []uint64, body []byte) *nats.Msg {
	h := nats.Header{
		headerFormat:   {events.CommitFormat},
		headerCommit:   {meta.Commit},
		headerExpected: {"0"},
	}
	if meta.Command != "" {
		h[headerCommand] = []string{printable(meta.Command)}
	}
	if len(prev) > 0 {
		list := joinSeqs(prev)
		h[HeaderPrev] = []string{list}
		h[headerExpected] = []string{strconv.FormatUint(prev[0], 10)}
	}
	return &nats.Msg{Subject: subject, Header: h, Data: body}
}

// readMessage parses a message of the log.
func readMessage(subject string, seq uint64, h nats.Header, body []byte) (*message, error) {
	prev, err := splitSeqs(h.Get(HeaderPrev), seq)
	if err != nil {
		return nil, fmt.Errorf("commit %d: header %s: %w", seq, HeaderPrev, err)
	}
	return &message{
		subject: subject,
		seq:     seq,
		format:  h.Get(headerFormat),
		commit:  h.Get(headerCommit),
		prev:    prev,
		body:    body,
	}, nil
}

// records decodes the commit. It returns an error for anything unknown.
func (m *message) records(reg *events.Registry) ([]events.Record, error) {
	if m.format != events.CommitFormat {
		return nil, fmt.Errorf("commit %d on %s: %w: %q", m.seq, m.subject, events.ErrCommitFormat, m.format)
	}
	stream, err := events.ParseSubject(Prefix, m.subject)
	if err != nil {
		return nil, fmt.Errorf("commit %d: %w", m.seq, err)
	}
	recs, err := reg.DecodeCommit(stream, m.seq, m.body)
	if err != nil {
		return nil, err
	}
	if id := recs[0].Meta.Commit; id != m.commit {
		return nil, fmt.Errorf("commit %d on %s: header says %q, body %q", m.seq, m.subject, m.commit, id)
	}
	return recs, nil
}

// previous returns the sequence of the stream's previous commit; 0 for the first.
func (m *message) previous() uint64 {
	if len(m.prev) == 0 {
		return 0
	}
	return m.prev[0]
}

// following returns the last sequences after one more commit.
func following(seq uint64, prev []uint64) []uint64 {
	return append([]uint64{seq}, prev[:min(len(prev), maxPrev-1)]...)
}

func joinSeqs(seqs []uint64) string {
	b := make([]byte, 0, 8*len(seqs))
	for i, s := range seqs {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, s, 10)
	}
	return string(b)
}

// splitSeqs parses the format of joinSeqs: decreasing numbers below the sequence of the commit.
func splitSeqs(list string, below uint64) ([]uint64, error) {
	if list == "" {
		return nil, nil
	}
	seqs := make([]uint64, 0, 1+strings.Count(list, ","))
	for field := range strings.SplitSeq(list, ",") {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return nil, err
		}
		if n == 0 || n >= below {
			return nil, fmt.Errorf("%d stands where a number below %d belongs", n, below)
		}
		seqs, below = append(seqs, n), n
	}
	return seqs, nil
}

// printable encodes an id as a header value: unchanged if it is visible ASCII and does not
// start with '=', otherwise as '=' and its unpadded base64url.
func printable(id string) string {
	plain := !strings.HasPrefix(id, "=")
	for i := range len(id) {
		plain = plain && '!' <= id[i] && id[i] <= '~'
	}
	if plain {
		return id
	}
	return "=" + base64.RawURLEncoding.EncodeToString([]byte(id))
}
