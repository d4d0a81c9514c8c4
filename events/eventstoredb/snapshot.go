package eventstoredb

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"github.com/google/uuid"

	"github.com/credstream/credstream/events"
)

// snapshotBody is the stored form of a snapshot. It contains the name of its stream, so that it can
// be verified without the name of its own.
type snapshotBody struct {
	Tenant string `json:"tenant"`
	Stream string `json:"stream"` // events.StreamID.String
	events.Snapshot
}

// Snapshot implements events.Store. It ignores a snapshot that it cannot decode.
func (s *Store) Snapshot(ctx context.Context, stream events.StreamID, fold int) (events.Snapshot, error) {
	name, err := streamName(snapshotPrefix, stream)
	if err != nil {
		return events.Snapshot{}, err
	}
	page, err := s.links.readStream(ctx, name, esdb.Backwards, esdb.End{}, 1)
	if err != nil {
		return events.Snapshot{}, fmt.Errorf("reading a snapshot of %s: %w", stream, err)
	}
	if len(page) == 0 || page[0].EventType != snapshotType {
		return events.Snapshot{}, nil
	}
	var b snapshotBody
	if err := json.Unmarshal(page[0].Data, &b); err != nil {
		s.log.Warn("snapshot not readable", "stream", stream.String(), "error", err)
		return events.Snapshot{}, nil
	}
	if b.Fold != fold || b.Tenant != stream.Tenant || b.Stream != stream.String() || b.Seq == 0 {
		return events.Snapshot{}, nil
	}
	e, err := s.at(ctx, b.Seq)
	if err != nil {
		return events.Snapshot{}, err
	}
	of, _ := streamName(Prefix, stream)
	if e == nil || e.StreamID != of || e.EventID.String() != b.Commit {
		return events.Snapshot{}, nil
	}
	return b.Snapshot, nil
}

// SaveSnapshot implements events.Store. It returns events.ErrTooLarge for a state that does not fit
// into one event.
func (s *Store) SaveSnapshot(ctx context.Context, stream events.StreamID, snap events.Snapshot) error {
	name, err := streamName(snapshotPrefix, stream)
	if err != nil {
		return err
	}
	if err := s.WaitDurable(ctx, snap.Seq); err != nil {
		return err
	}
	body, err := json.Marshal(snapshotBody{stream.Tenant, stream.String(), snap})
	if err != nil {
		return fmt.Errorf("saving a snapshot of %s: %w", stream, err)
	}
	if len(body) > events.MaxCommit {
		return events.ErrTooLarge
	}
	id := uuid.New() // the same for each repetition, so that the server stores one
	r, err := ask(ctx, s.links, func(ctx context.Context, c *esdb.Client) (*esdb.WriteResult, error) {
		return c.AppendToStream(ctx, name, esdb.AppendToStreamOptions{ExpectedRevision: esdb.Any{}},
			esdb.EventData{EventID: id, EventType: snapshotType, ContentType: esdb.ContentTypeJson, Data: body})
	})
	if err == nil && r.NextExpectedVersion == 0 { // the server keeps the last one
		_, err = ask(ctx, s.links, func(ctx context.Context, c *esdb.Client) (*esdb.WriteResult, error) {
			var m esdb.StreamMetadata
			m.SetMaxCount(1)
			return c.SetStreamMetadata(ctx, name, esdb.AppendToStreamOptions{ExpectedRevision: esdb.Any{}}, m)
		})
	}
	if err != nil {
		return s.failed("saving a snapshot of "+stream.String(), name, err)
	}
	return nil
}
