package service

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
)

// Done answers a command. It is rebuilt from the stored events when the command
// comes again, so it holds nothing that is not in them.
type Done struct {
	Seq      uint64        `json:"seq"`               // log sequence to ask for as min_seq
	ID       string        `json:"id,omitzero"`       // of the thing that changed
	Version  int           `json:"version,omitzero"`  // of a credential's keys
	Status   events.Status `json:"status,omitzero"`   // of a credential
	Revision int           `json:"revision,omitzero"` // of a component's descriptor
	Says     string        `json:"says,omitzero"`     // what a failed dry request found, in a sentence
	Binding  string        `json:"binding,omitzero"`  // id of a flow's reservation
	Until    time.Time     `json:"until,omitzero"`    // when the reservation ends by itself
	DryRun   *Impact       `json:"dry_run,omitzero"`  // what would happen; nothing did
}

// repeat ends the execution of a command that was already obeyed.
type repeat struct{ done Done }

func (r *repeat) Error() string { return "the command was already obeyed" }

// name gives the call its command id: the caller's, or a random one. The
// request of a caller's id is remembered by an HMAC under the tenant's key,
// since what it holds may be guessed.
func (s *Service) name(ctx context.Context, call *Call, route string, body []byte) error {
	if call.CommandID == "" {
		call.CommandID = events.NewID()
		return nil
	}
	if len(call.CommandID) > maxID || !printable(call.CommandID) {
		return ErrCommandID
	}
	canonical := jsontext.Value(append([]byte(nil), body...))
	// Numbers stay as they were written: they may be longer than a float64.
	if err := canonical.Canonicalize(jsontext.CanonicalizeRawInts(false), jsontext.CanonicalizeRawFloats(false)); err != nil {
		return ErrBody.Because("The body is not one JSON document.")
	}
	mac, err := s.cfg.Keyring.MAC(ctx, call.Tenant, events.LengthPrefixed("credstream/request/1", route, string(canonical)))
	if err != nil {
		return fmt.Errorf("mac of the request: %w", err)
	}
	call.named, call.request = true, hex.EncodeToString(mac[:16])
	return nil
}

// commandKey is what a command id is unique for.
type commandKey struct{ tenant, kind, actor, command string }

func (c *Call) key() commandKey {
	return commandKey{c.Tenant, c.Principal.Actor.Kind, c.Principal.Actor.ID, c.CommandID}
}

// deriveID makes the id of a new thing of the command. A repeat makes the same one.
func (c *Call) deriveID(what string) string {
	return events.DeriveID(c.Tenant, c.Principal.Actor, c.CommandID, what)
}

// Claims are the named commands under way or obeyed lately, shared by every
// process that serves one log.
type Claims interface {
	// Claim notes that the command with this key is obeyed with this request,
	// unless one is noted already, and returns the one that is.
	Claim(ctx context.Context, key [sha256.Size]byte, request string) (mine bool, noted string, err error)
	// Drop forgets a command whose claim was the caller's and that was refused.
	Drop(ctx context.Context, key [sha256.Size]byte) error
}

// claim refuses a command id that another process has in hand for another
// request. drop lets go of it when the command came to nothing.
func (s *Service) claim(ctx context.Context, call *Call) (drop func(), err error) {
	if !call.named || s.cfg.Claims == nil {
		return func() {}, nil
	}
	k := call.key()
	key := sha256.Sum256(events.LengthPrefixed("credstream/claim/1", k.tenant, k.kind, k.actor, k.command))
	mine, noted, err := s.cfg.Claims.Claim(ctx, key, call.request)
	switch {
	case err != nil:
		return nil, err
	case noted != call.request:
		return nil, ErrCommandIDReused
	case !mine: // a repeat; whose claim it is drops it
		return func() {}, nil
	}
	return func() {
		if err := s.cfg.Claims.Drop(context.WithoutCancel(ctx), key); err != nil {
			s.cfg.Logger.WarnContext(ctx, "a refused command id stays claimed for a while", "err", err)
		}
	}, nil
}

// alone returns when no other call with the same command id is under way in this
// process; release lets the next one in. Two requests that share an id but not a
// target would otherwise not meet.
func (s *Service) alone(ctx context.Context, call *Call) (release func(), err error) {
	if !call.named {
		return func() {}, nil
	}
	key, mine := call.key(), make(chan struct{})
	for {
		other, taken := s.inFlight.LoadOrStore(key, mine)
		if !taken {
			return func() { s.inFlight.Delete(key); close(mine) }, nil
		}
		resume := admission.Idle(ctx)
		select {
		case <-other.(chan struct{}):
			resume()
		case <-ctx.Done():
			resume()
			return nil, ctx.Err()
		}
	}
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x21 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

// repeated answers a named command that the log already holds, else nil. The
// views know every command up to their position; it waits for them when the
// stream the command is decided on has gone further.
func (s *Service) repeated(ctx context.Context, call *Call, streamSeq uint64) (*Done, error) {
	if !call.named {
		return nil, nil
	}
	if err := s.cfg.Projector.Wait(ctx, streamSeq); err != nil {
		return nil, err
	}
	seq, found := s.obeyed.Get(call.key()) // what the views may not know yet
	if !found {
		var err error
		seq, found, err = s.cfg.Views.Command(ctx, call.Tenant, call.Principal.Actor, call.CommandID)
		if err != nil || !found {
			return nil, err
		}
	}
	recs, err := s.cfg.Log.Store.Commit(ctx, seq)
	if err != nil {
		return nil, fmt.Errorf("commit of a repeated command: %w", err)
	}
	if recs[0].Meta.Request != call.request {
		return nil, ErrCommandIDReused
	}
	done := answerOf(recs)
	return &done, nil
}

// execute runs one command of one aggregate: the one way to the log. It returns
// the value the command was decided on and the state after it.
func execute[S any, C commands.Command, E any](ctx context.Context, s *Service, call *Call,
	d aggregates.Decider[S, C, E], tenant string, cmd C,
) (before S, after aggregates.State[S], err error) {
	begin := s.now()
	was, after, err := d.Execute(ctx, s.cfg.Log, tenant, cmd, s.meta(call), func(ctx context.Context, seq uint64) error {
		if !call.named || seq <= call.looked { // an unnamed call may have several under way
			return nil // or an earlier look covered it
		}
		done, err := s.repeated(ctx, call, seq)
		if done != nil {
			return &repeat{*done}
		}
		call.looked = seq
		return err
	})
	if err == nil && after.Seq != was.Seq {
		s.metrics.appended.Observe(s.now().Sub(begin).Seconds())
		if call.named {
			s.obeyed.Add(call.key(), after.Seq)
		}
	}
	return was.Value, after, err
}

// answerOf rebuilds a command's answer from the commit it made.
func answerOf(recs []events.Record) Done {
	done := Done{Seq: recs[0].Seq, ID: recs[0].Stream.ID}
	for _, r := range recs {
		switch e := r.Event.(type) {
		case events.CredentialCreated:
			done.Version, done.Status = e.Keys.Version, e.Keys.Verification.Status
		case events.CredentialKeysReplaced:
			done.Version, done.Status = e.Keys.Version, e.Keys.Verification.Status
		case events.CredentialReverted:
			done.Version, done.Status = e.Keys.Version, e.Keys.Verification.Status
		case events.CredentialVerified:
			done.Version, done.Status = e.Version, e.Verification.Status
		case events.CredentialReauthorizationRequired:
			done.Status = events.ReauthorizationRequired
		case events.OAuthClientDefined:
			done.ID = e.ID
		case events.FlowBound:
			done.Binding, done.Until = e.Binding, e.Until
		case events.FlowReleased:
			done.Binding = e.Binding
		case events.ComponentRegistered:
			done.Revision = 1
		case events.ComponentUpdated:
			done.Revision = e.Revision
		}
	}
	return done
}
