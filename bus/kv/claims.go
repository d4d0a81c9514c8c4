// Package kv keeps what processes share beside the log: claims, leases, connections,
// checkpoints, the use of keys and the access log.
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
	claimTime    = 5 * time.Second // to write a claim
	claimTry     = time.Second     // of it, for one try
	claimPause   = 2 * time.Millisecond
	claimOpen    = 32 // attempts at one command that are told apart
)

// Claims tells the processes that serve one log of each other's attempts at named
// commands, so that a command id is one command before their views know it, and that
// no attempt is refused for good while another one may be carried out. Claims are
// kept in memory for ten minutes after the last attempt.
type Claims struct {
	js       jetstream.JetStream
	stream   jetstream.Stream
	replicas int
}

// claim is what stands under a command id.
type claim struct {
	Request string   `json:"request"`           // its MAC
	Open    []string `json:"open,omitempty"`    // attempts whose outcome is not known; none: the id is free
	Crowded bool     `json:"crowded,omitempty"` // there were more than can be told apart: some may be open as long as the claim is kept
}

func (c claim) free() bool { return len(c.Open) == 0 && !c.Crowded }

// ClaimsConfig is the stream of the claims. It is read through its leader: a
// replica that is behind does not know the newest claim.
func ClaimsConfig(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: ClaimsStream, Description: "credstream: command ids of the last minutes. In memory, may be deleted.",
		Subjects: []string{claimsPrefix + "*"}, Storage: jetstream.MemoryStorage, Replicas: replicas,
		MaxMsgsPerSubject: 1, MaxAge: claimAge, MaxMsgSize: 4096,
	}
}

// OpenClaims makes the stream, unless it exists.
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
// that the command must not be carried out.
func (c *Claims) Begin(ctx context.Context, key [32]byte, request, attempt string) (claimed string, err error) {
	err = c.change(ctx, key, false, func(now claim, found bool) (claim, bool) {
		claimed = request
		switch {
		case !found, now.free():
			now = claim{Request: request}
		case now.Request != request:
			claimed = now.Request
			return now, false
		}
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
	return claimed, err
}

// Refuse implements service.Claims. It writes in any case: a Begin without an answer may
// still be on its way, held by a server that hangs, and is refused where the claim has
// another revision than it expects.
func (c *Claims) Refuse(ctx context.Context, key [32]byte, attempt string) (others bool, err error) {
	err = c.change(ctx, key, true, func(now claim, _ bool) (claim, bool) {
		now.Open = slices.DeleteFunc(now.Open, func(a string) bool { return a == attempt })
		others = !now.free()
		return now, true
	})
	return others, err
}

// Complete implements service.Claims: the log knows, and the claim runs out by itself.
func (c *Claims) Complete([32]byte, string) {}

// change writes what update makes of a claim by compare-and-set, so that nobody's
// attempt is lost; update may be called several times, and returns false when there is
// nothing to write. Without look the first call is made without one: found is false.
func (c *Claims) change(ctx context.Context, key [32]byte, look bool, update func(now claim, found bool) (claim, bool)) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), claimTime)
	defer cancel()
	subject := claimsPrefix + hex.EncodeToString(key[:])
	var err error
	for ; ; look = true {
		var done bool
		if done, err = c.try(ctx, subject, look, update); done {
			return nil
		}
		// Without a leader; or the claim changed or ran out meanwhile, or is not stored yet.
		select {
		case <-ctx.Done():
			return fmt.Errorf("claiming a command id: %w: %w", fault.ErrUnavailable, err)
		case <-time.After(claimPause):
		}
	}
}

// try makes one change; it is to be made again when done is false.
func (c *Claims) try(ctx context.Context, subject string, look bool, update func(claim, bool) (claim, bool)) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, claimTry)
	defer cancel()
	var now claim
	var revision uint64
	if look {
		if now, revision, err = c.read(ctx, subject); err != nil {
			return false, err
		}
	}
	next, write := update(now, revision != 0)
	if !write {
		return look, nil // without a look nothing is known
	}
	data, err := json.Marshal(next)
	if err != nil {
		return false, err
	}
	m := nats.NewMsg(subject)
	m.Data = data
	_, err = c.js.PublishMsg(ctx, m, jetstream.WithExpectLastSequencePerSubject(revision), jetstream.WithRetryAttempts(0))
	if errors.Is(err, jetstream.ErrNoStreamResponse) { // a single server forgets it when it is restarted
		if _, made := jsapi.EnsureStream(ctx, c.js, ClaimsConfig(c.replicas)); made != nil {
			return false, made
		}
	}
	return err == nil, err
}

// read returns the claim that stands, with its revision: 0 when there is none.
func (c *Claims) read(ctx context.Context, subject string) (now claim, revision uint64, err error) {
	m, err := c.stream.GetLastMsgForSubject(ctx, subject)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return now, 0, nil
	case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, nats.ErrNoResponders):
		if _, made := jsapi.EnsureStream(ctx, c.js, ClaimsConfig(c.replicas)); made != nil {
			return now, 0, made
		}
		return now, 0, err
	case err != nil:
		return now, 0, err
	}
	if json.Unmarshal(m.Data, &now) != nil { // of a process of an earlier version, whose attempt is its one
		now = claim{Request: string(m.Data), Crowded: true}
	}
	return now, m.Sequence, nil
}
