package events

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// CommitFormat is the version of the commit's stored form, in the header Cs-Format of every
// commit. A reader stops at an unknown one.
const CommitFormat = "1"

// commitBody is the stored form of a commit. It is complete without headers.
type commitBody struct {
	Meta   Meta          `json:"meta"`
	Events []storedEvent `json:"events"`
}

type storedEvent struct {
	Type    string         `json:"type"`
	Version int            `json:"v"`
	Data    jsontext.Value `json:"data"`
}

var (
	errEmptyCommit = errors.New("events: a commit holds at least one event")
	errCommitMeta  = errors.New("events: a commit has an id and a tenant")
)

// EncodeCommit returns the stored form of a commit: UTF-8 JSON, the same bytes for the same
// input. It returns ErrTooLarge above MaxCommit bytes.
func (r *Registry) EncodeCommit(meta Meta, evs []Event) ([]byte, error) {
	switch {
	case len(evs) == 0:
		return nil, errEmptyCommit
	case meta.Commit == "" || meta.Tenant == "":
		return nil, errCommitMeta
	}
	meta.Time = meta.Time.UTC().Truncate(time.Microsecond)
	body := commitBody{Meta: meta, Events: make([]storedEvent, len(evs))}
	for i, e := range evs {
		t, ok := r.TypeOf(e)
		if !ok {
			return nil, fmt.Errorf("events: %T is not defined", e)
		}
		data, err := jsonv2.Marshal(e)
		if err != nil {
			return nil, fmt.Errorf("events: encode %s: %w", t.Name, err)
		}
		body.Events[i] = storedEvent{t.Name, t.Version(), data}
	}
	b, err := jsonv2.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("events: encode commit: %w", err)
	}
	if len(b) > MaxCommit {
		return nil, ErrTooLarge
	}
	return b, nil
}

// ErrCommitFormat means that a newer version of the program stored the commit.
var ErrCommitFormat = errors.New("unknown format")

var errWriter = errors.New("events: a commit's tenant must be that of its stream, or any tenant if the stream belongs to System")

// CheckWriter refuses metadata whose tenant may not write to a stream: no reader could decode the
// commit. Every Store calls it before it appends.
func CheckWriter(stream StreamID, meta Meta) error {
	if meta.Tenant == "" || stream.Tenant != meta.Tenant && stream.Tenant != System {
		return errWriter
	}
	return nil
}

// DecodeMeta decodes the metadata of a stored commit, whatever its events are.
func DecodeMeta(body []byte) (Meta, error) {
	var c struct {
		Meta Meta `json:"meta"`
	}
	if err := jsonv2.Unmarshal(body, &c); err != nil {
		return Meta{}, fmt.Errorf("events: what a commit says of itself: %w", err)
	}
	return c.Meta, nil
}

// DecodeCommit decodes the records of a stored commit. Anything unknown is an error: a reader
// must stop, not skip.
func (r *Registry) DecodeCommit(stream StreamID, seq uint64, body []byte) ([]Record, error) {
	var c commitBody
	if err := jsonv2.Unmarshal(body, &c, jsonv2.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("events: commit %d of %s: %w", seq, stream, err)
	}
	if len(c.Events) == 0 {
		return nil, fmt.Errorf("commit %d of %s: %w", seq, stream, errEmptyCommit)
	}
	if c.Meta.Commit == "" || c.Meta.Tenant == "" {
		return nil, fmt.Errorf("commit %d of %s: %w", seq, stream, errCommitMeta)
	}
	if stream.Tenant != c.Meta.Tenant && stream.Tenant != System {
		return nil, fmt.Errorf("events: commit %d of tenant %s is stored on the subject %s", seq, c.Meta.Tenant, stream.Tenant)
	}
	recs := make([]Record, len(c.Events))
	for i, s := range c.Events {
		e, err := r.Decode(s.Type, s.Version, json.RawMessage(s.Data))
		if err != nil {
			return nil, fmt.Errorf("commit %d of %s: %w", seq, stream, err)
		}
		recs[i] = Record{Stream: stream, Seq: seq, Index: i, Of: len(c.Events), Meta: c.Meta, Event: e}
	}
	return recs, nil
}
