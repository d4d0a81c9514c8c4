package bus

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/fault"
)

// ClaimsStream is the stream of the claims on command ids.
const ClaimsStream = "CREDSTREAM_CLAIMS"

const (
	claimsPrefix = "credstream.claims."
	claimHeader  = "Cs-Claim"       // marks one attempt
	claimAge     = 10 * time.Minute // long after which every replica's views know the command
	claimTime    = 5 * time.Second  // to find out who was first
	claimTry     = time.Second      // of it, for one try
	claimPause   = 2 * time.Millisecond
)

// Claims keeps two replicas from obeying one command id for two targets, in the
// time before their views know it: whoever claims the id first obeys it. Claims
// are kept in memory for ten minutes.
type Claims struct {
	js       jetstream.JetStream
	stream   jetstream.Stream
	replicas int
}

// ClaimsConfig is the stream of the claims. It is read through its leader: a
// replica that is behind does not know the newest claim.
func ClaimsConfig(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: ClaimsStream, Description: "credstream: the command ids of the last minutes. In memory, may be deleted.",
		Subjects: []string{claimsPrefix + "*"}, Storage: jetstream.MemoryStorage, Replicas: replicas,
		MaxMsgsPerSubject: 1, MaxAge: claimAge, MaxMsgSize: 4096,
	}
}

// OpenClaims makes the stream, unless it exists.
func OpenClaims(ctx context.Context, js jetstream.JetStream, replicas int) (*Claims, error) {
	if _, err := EnsureStream(ctx, js, ClaimsConfig(replicas)); err != nil {
		return nil, err
	}
	stream, err := js.Stream(ctx, ClaimsStream)
	if err != nil {
		return nil, fmt.Errorf("looking up stream %s: %w", ClaimsStream, err)
	}
	return &Claims{js, stream, replicas}, nil
}

// Claim claims a command id for a request. Key stands for the tenant, the actor
// and the command id, request is the MAC of the request: neither tells what it
// was made of. Mine says that this call was the first; else holder is the request
// of the one that was: equal for a repeated command, different where the id was
// used for another. An error, fault.ErrUnavailable in its chain, means that it
// is not known who was first: the command must not be obeyed.
func (c *Claims) Claim(ctx context.Context, key [32]byte, request string) (mine bool, holder string, err error) {
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	attempt := rand.Text()
	for {
		var first *jetstream.RawStreamMsg
		if first, err = c.try(ctx, claimsPrefix+hex.EncodeToString(key[:]), request, attempt); err == nil {
			return first.Header.Get(claimHeader) == attempt, string(first.Data), nil
		}
		// Without a leader; or the claim ran out or was dropped meanwhile, or is not stored yet.
		select {
		case <-ctx.Done():
			return false, "", fmt.Errorf("claiming a command id: %w: %w", fault.ErrUnavailable, err)
		case <-time.After(claimPause):
		}
	}
}

// try stores a claim, unless there is one, and returns the one that stands.
func (c *Claims) try(ctx context.Context, subject, request, attempt string) (*jetstream.RawStreamMsg, error) {
	ctx, cancel := context.WithTimeout(ctx, claimTry)
	defer cancel()
	m := nats.NewMsg(subject)
	m.Data = []byte(request)
	m.Header.Set(claimHeader, attempt)
	_, err := c.js.PublishMsg(ctx, m, jetstream.WithExpectLastSequencePerSubject(0), jetstream.WithRetryAttempts(0))
	switch {
	case err == nil:
		return &jetstream.RawStreamMsg{Header: m.Header, Data: m.Data}, nil
	case errors.Is(err, jetstream.ErrNoStreamResponse): // a single server forgets it when it is restarted
		if _, made := EnsureStream(ctx, c.js, ClaimsConfig(c.replicas)); made != nil {
			return nil, made
		}
		return nil, err
	case !wrongLast(err) && ctx.Err() != nil:
		return nil, err
	}
	return c.stream.GetLastMsgForSubject(ctx, subject)
}

// Drop takes a claim back, of a command that was refused: its id may be used
// again. Only the call whose claim it was may drop it.
func (c *Claims) Drop(ctx context.Context, key [32]byte) error {
	if err := c.stream.Purge(ctx, jetstream.WithPurgeSubject(claimsPrefix+hex.EncodeToString(key[:]))); err != nil {
		return fmt.Errorf("dropping the claim on a command id: %w", err)
	}
	return nil
}
