// Package kv stores what processes share besides the log: claims, leases, connections,
// checkpoints, the last use of keys and the access log.
package kv

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/credstream/credstream/jsapi"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// ClaimsStream is the stream of the claims on command ids.
const ClaimsStream = "CREDSTREAM_CLAIMS"

const (
	claimsPrefix = "credstream.claims."
	claimAge     = service.ClaimTime
	claimTime    = 5 * time.Second // timeout of a change
	claimTry     = time.Second     // timeout of one try of it
	claimPause   = 2 * time.Millisecond
	claimOpen    = 32 // attempts at one command that are distinguished
)

// Claims coordinates attempts at commands with a command id among the processes of one log: it
// detects a reused id before the read models have the first command, and prevents a final refusal
// while another attempt may still commit. Claims are kept in memory for ten minutes after the last
// attempt; an attempt whose process died counts for eleven minutes.
type Claims struct {
	js       jetstream.JetStream
	stream   jetstream.Stream
	replicas int
}

// claim is the value of a command id.
type claim struct {
	Request string   `json:"request"`           // its MAC
	Open    []string `json:"open,omitempty"`    // attempts with an unknown outcome; none: the id is free
	Crowded bool     `json:"crowded,omitempty"` // there were too many to distinguish: some may be open until the claim expires
}

func (c claim) free() bool { return len(c.Open) == 0 && !c.Crowded }

// ClaimsConfig is the stream of the claims. It is read through its leader: a
// lagging replica misses the newest claim.
func ClaimsConfig(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: ClaimsStream, Description: "credstream: command ids of the last minutes. In memory, may be deleted.",
		Subjects: []string{claimsPrefix + "*"}, Storage: jetstream.MemoryStorage, Replicas: replicas,
		MaxMsgsPerSubject: 1, MaxAge: claimAge, MaxMsgSize: 4096,
	}
}

// OpenClaims creates the stream, unless it exists.
func OpenClaims(ctx context.Context, js jetstream.JetStream, replicas int) (*Claims, error) {
	if _, err := jsapi.EnsureStream(ctx, js, ClaimsConfig(replicas)); err != nil {
		return nil, err
	}
	stream, err := js.Stream(ctx, ClaimsStream)
	if err != nil {
		return nil, fmt.Errorf("looking up stream %s: %w", ClaimsStream, err)
	}
	return &Claims{js, stream, replicas}, nil
}

// Begin implements service.Claims. An error, fault.ErrUnavailable in its chain, means
// that the command must not be executed.
func (c *Claims) Begin(ctx context.Context, key [32]byte, request, attempt string) (claimed string, others bool, err error) {
	err = c.change(ctx, key, false, func(now claim, found bool) (claim, bool) {
		claimed, others = request, false
		switch {
		case !found, now.free():
			now = claim{Request: request}
		case now.Request != request:
			claimed = now.Request
			return now, false
		}
		others = othersIn(now, attempt)
		if slices.Contains(now.Open, attempt) { // stored by a try that seemed to fail
			return now, false
		}
		if len(now.Open) < claimOpen {
			now.Open = append(now.Open, attempt)
		} else {
			now.Crowded = true
		}
		return now, true
	})
	return claimed, others, err
}

func othersIn(now claim, attempt string) bool {
	return now.Crowded || slices.ContainsFunc(now.Open, func(a string) bool { return a != attempt })
}

// Others implements service.Claims.
func (c *Claims) Others(ctx context.Context, key [32]byte, attempt string) (others bool, err error) {
	err = c.change(ctx, key, true, func(now claim, _ bool) (claim, bool) {
		others = othersIn(now, attempt)
		return now, false
	})
	return others, err
}

// Refuse implements service.Claims. It always writes: a Begin without a response may
// still be in flight, delayed by a hung server, and then fails because the claim has
// another revision than it expects.
func (c *Claims) Refuse(ctx context.Context, key [32]byte, attempt string) (others bool, err error) {
	err = c.change(ctx, key, true, func(now claim, _ bool) (claim, bool) {
		now.Open = slices.DeleteFunc(now.Open, func(a string) bool { return a == attempt })
		others = !now.free()
		return now, true
	})
	return others, err
}

// Complete implements service.Claims. It does nothing: the log has the result, and the claim expires.
func (c *Claims) Complete([32]byte, string) {}

// change applies update to a claim by compare-and-set, so that no attempt is lost; update may
// be called several times, and returns false if there is nothing to write. Without readFirst,
// the first try does not read the claim, and found is false.
func (c *Claims) change(ctx context.Context, key [32]byte, readFirst bool, update func(now claim, found bool) (claim, bool)) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), claimTime)
	defer cancel()
	subject := claimsPrefix + hex.EncodeToString(key[:])
	var err error
	for ; ; readFirst = true {
		var done bool
		if done, err = c.try(ctx, subject, readFirst, update); done {
			return nil
		}
		// No leader; or the claim changed or expired meanwhile, or is not stored yet.
		select {
		case <-ctx.Done():
			return fmt.Errorf("claiming a command id: %w: %w", fault.ErrUnavailable, err)
		case <-time.After(claimPause):
		}
	}
}

// try makes one attempt at a change; it must be repeated if done is false.
func (c *Claims) try(ctx context.Context, subject string, readFirst bool, update func(claim, bool) (claim, bool)) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, claimTry)
	defer cancel()
	var now claim
	var revision uint64
	if readFirst {
		if now, revision, err = c.read(ctx, subject); err != nil {
			return false, err
		}
		now.Open = slices.DeleteFunc(now.Open, func(a string) bool { return service.AttemptEnded(a, time.Now()) })
	}
	next, write := update(now, revision != 0)
	if !write {
		return readFirst, nil // without a read, the decision is not final
	}
	data, err := json.Marshal(next)
	if err != nil {
		return false, err
	}
	m := nats.NewMsg(subject)
	m.Data = data
	_, err = c.js.PublishMsg(ctx, m, jetstream.WithExpectLastSequencePerSubject(revision), jetstream.WithRetryAttempts(0))
	if errors.Is(err, jetstream.ErrNoStreamResponse) { // a restart of a single server loses it
		if _, createErr := jsapi.EnsureStream(ctx, c.js, ClaimsConfig(c.replicas)); createErr != nil {
			return false, createErr
		}
	}
	return err == nil, err
}

// read returns the current claim with its revision: 0 when there is none.
func (c *Claims) read(ctx context.Context, subject string) (now claim, revision uint64, err error) {
	m, err := c.stream.GetLastMsgForSubject(ctx, subject)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return now, 0, nil
	case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, nats.ErrNoResponders):
		if _, createErr := jsapi.EnsureStream(ctx, c.js, ClaimsConfig(c.replicas)); createErr != nil {
			return now, 0, createErr
		}
		return now, 0, err
	case err != nil:
		return now, 0, err
	}
	if json.Unmarshal(m.Data, &now) != nil { // an earlier version stored only the request
		now = claim{Request: string(m.Data), Crowded: true}
	}
	return now, m.Sequence, nil
}
