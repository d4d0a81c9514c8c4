package jetstream

import (
	"context"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/events"
)

// snapshotFormat is the version of the stored form, in the header Cs-Format.
const snapshotFormat = "1"

// snapshotBody is the stored form of a snapshot. It contains the name of its stream, so that it
// can be verified without the subject.
type snapshotBody struct {
	Tenant string         `json:"tenant"`
	Stream string         `json:"stream"` // events.StreamID.String
	Seq    uint64         `json:"seq"`
	Commit string         `json:"commit"`
	Fold   int            `json:"fold"`
	State  jsontext.Value `json:"state"`
}

// Snapshot implements events.Store. It ignores a snapshot that it cannot decode.
func (s *Store) Snapshot(ctx context.Context, stream events.StreamID, fold int) (events.Snapshot, error) {
	subj, err := subject(SnapshotPrefix, stream)
	if err != nil {
		return events.Snapshot{}, err
	}
	kept, err := s.direct(ctx, SnapshotStream, subj)
	if err != nil || kept == nil || kept.format != snapshotFormat {
		return events.Snapshot{}, err
	}
	var b snapshotBody
	if err := jsonv2.Unmarshal(kept.body, &b); err != nil {
		s.log.Warn("snapshot not readable", "stream", stream.String(), "error", err)
		return events.Snapshot{}, nil
	}
	if b.Fold != fold || b.Tenant != stream.Tenant || b.Stream != stream.String() || b.Seq == 0 {
		return events.Snapshot{}, nil
	}
	m, err := s.get(ctx, b.Seq)
	if err != nil {
		return events.Snapshot{}, err
	}
	if m == nil || m.subject != stream.Subject(Prefix) || m.commit != b.Commit {
		return events.Snapshot{}, nil // after a power cut, sequences may be reused
	}
	return events.Snapshot{Seq: b.Seq, Commit: b.Commit, Fold: b.Fold, State: []byte(b.State)}, nil
}

// SaveSnapshot implements events.Store. It returns events.ErrTooLarge for a state that does not
// fit into one message.
func (s *Store) SaveSnapshot(ctx context.Context, stream events.StreamID, snap events.Snapshot) error {
	subj, err := subject(SnapshotPrefix, stream)
	if err != nil {
		return err
	}
	if err := s.WaitDurable(ctx, snap.Seq); err != nil {
		return err
	}
	body, err := jsonv2.Marshal(snapshotBody{
		Tenant: stream.Tenant,
		Stream: stream.String(),
		Seq:    snap.Seq,
		Commit: snap.Commit,
		Fold:   snap.Fold,
		State:  jsontext.Value(snap.State),
	})
	if err != nil {
		return fmt.Errorf("saving a snapshot of %s: %w", stream, err)
	}
	if len(body) > events.MaxCommit {
		return events.ErrTooLarge
	}
	answer, err := s.mux.request(ctx, &nats.Msg{Subject: subj, Header: nats.Header{headerFormat: {snapshotFormat}}, Data: body})
	if err != nil {
		return unavailable("saving a snapshot of "+stream.String(), err)
	}
	var ack pubAck
	if err := jsonv2.Unmarshal(answer.Data, &ack); err != nil {
		return fmt.Errorf("saving a snapshot of %s: %w", stream, err)
	}
	if ack.Error != nil {
		return unavailable("saving a snapshot of "+stream.String(), ack.Error)
	}
	return nil
}
