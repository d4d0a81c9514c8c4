package kv

import (
	"context"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/service/secrets"
)

// CheckpointBucket is the key-value bucket of the positions of the followers of the log.
// It is private, and can be lost: without it a follower starts near the end of the log
// again.
const CheckpointBucket = "CREDSTREAM_CHECKPOINTS"

// CheckpointStream is the name of the bucket's stream.
const CheckpointStream = "KV_" + CheckpointBucket

const checkpointPrefix = "$KV." + CheckpointBucket + "."

// CheckpointConfig is the stream of the bucket. It is read through its leader: a
// lagging replica has an old position.
func CheckpointConfig(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: CheckpointStream, Description: "credstream: how far followers of the log have come. May be deleted.",
		Subjects: []string{checkpointPrefix + ">"}, Storage: jetstream.FileStorage, Replicas: replicas,
		MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew,
	}
}

// Checkpoint stores the position of one follower of the log.
type Checkpoint struct {
	js   jetstream.JetStream
	name string
	sync func(context.Context) error
}

// NewCheckpoint returns the checkpoint of the follower with this plain name, in the
// stream of CheckpointConfig. sync returns when everything that was published to the stream before
// the call is durable; nil means that the server syncs before it acknowledges.
func NewCheckpoint(js jetstream.JetStream, name string, sync func(context.Context) error) *Checkpoint {
	return &Checkpoint{js, name, sync}
}

// Load implements secrets.Checkpoint. An invalid value counts as none.
func (c *Checkpoint) Load(ctx context.Context) (p secrets.Position, err error) {
	stream, err := c.js.Stream(ctx, CheckpointStream)
	if err != nil {
		return p, fmt.Errorf("looking up stream %s: %w", CheckpointStream, err)
	}
	msg, err := stream.GetLastMsgForSubject(ctx, checkpointPrefix+c.name)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return p, nil
	case err != nil:
		return p, fmt.Errorf("reading the checkpoint %s: %w", c.name, err)
	}
	if json.Unmarshal(msg.Data, &p) != nil {
		return secrets.Position{}, nil
	}
	return p, nil
}

// Save implements secrets.Checkpoint.
func (c *Checkpoint) Save(ctx context.Context, p secrets.Position) error {
	data, err := json.Marshal(p)
	if err == nil {
		_, err = c.js.Publish(ctx, checkpointPrefix+c.name, data)
	}
	if err == nil && c.sync != nil {
		err = c.sync(ctx)
	}
	if err != nil {
		return fmt.Errorf("saving the checkpoint %s: %w", c.name, err)
	}
	return nil
}
