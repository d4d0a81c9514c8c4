package admin

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/secrets"
)

// Errors of the queues.
var (
	ErrSecretInQueue = fault.New(fault.Invalid, "secret_in_queue",
		"A queued command cannot hold keys in clear text. Nothing was stored. Encrypt the keys to the public key of query service.key and send keys_sealed.")
	ErrQueueAbsent   = fault.New(fault.Unavailable, "queue_absent", "This service has no queues.")
	ErrQueueNotFound = fault.New(fault.NotFound, "queue_message_not_found", "Message not found in the dead-letter queue.")
	ErrQueueNotKept  = fault.New(fault.Precondition, "queue_message_not_kept",
		"The message could not be parsed, so its content was not kept. Correct it and publish it again.")
)

// DeadLetter is a message of the dead-letter queue: a flow event or queued command that
// failed permanently.
type DeadLetter struct {
	ID        string         `json:"id"`
	Queue     string         `json:"queue"`               // "flows" or "commands"
	Name      string         `json:"name"`                // type of the event, or the command
	Subject   string         `json:"subject"`             // where it was published
	CommandID string         `json:"command_id,omitzero"` // of a command
	EventID   string         `json:"event_id,omitzero"`   // of a flow event
	Actor     string         `json:"actor"`               // "key:<id>"
	Code      string         `json:"code"`                // error code
	Reason    string         `json:"reason"`              // error message
	Details   jsontext.Value `json:"details,omitzero"`
	At        time.Time      `json:"at"`
	Size      int            `json:"size"`             // size of the published message in bytes
	SHA256    string         `json:"sha256"`           // SHA-256 of the published message in hex
	Kept      bool           `json:"kept"`             // whether the content could be parsed: it is stored and can be retried
	Content   jsontext.Value `json:"content,omitzero"` // the kept content; only in the response of queue.get
}

// DeadLetterQueue is the dead-letter queue.
type DeadLetterQueue interface {
	// List lists up to limit messages of the tenant, oldest first, starting after an
	// id; next is "" at the end.
	List(ctx context.Context, tenant, after string, limit int) (page []DeadLetter, next string, err error)
	// Get returns one message with its content, or ErrQueueNotFound.
	Get(ctx context.Context, tenant, id string) (DeadLetter, error)
	// Retry puts a message back into its queue, durably, and removes it here:
	// ErrQueueNotFound, ErrQueueNotKept.
	Retry(ctx context.Context, tenant, id string) error
	// Drop erases a message: ErrQueueNotFound.
	Drop(ctx context.Context, tenant, id string) error
}

// CheckQueued validates a command before it is stored in the queue: that the
// command exists, that the caller may send it, and that its body is valid
// and has no clear secret. It gives the call a command id if the caller
// set none, and returns the body in the form to store.
func (s *Service) CheckQueued(ctx context.Context, call *service.Call, command string, body []byte) ([]byte, error) {
	route, err := s.Kernel.Queue(ctx, call, command)
	if err != nil {
		return nil, err
	}
	members, err := storable(route, body)
	if err != nil {
		return nil, err
	}
	if raw, ok := members["keys_sealed"]; ok {
		var sealed string
		if err := json.Unmarshal(raw, &sealed); err != nil {
			return nil, secrets.ErrKeysSealed
		}
		if _, err := s.Secrets.UnsealKeys(ctx, call, command, sealedFor(command, members), secrets.Keys{}, sealed); err != nil {
			return nil, err
		}
	}
	if call.CommandID == "" {
		call.CommandID = events.NewID()
	}
	stored := jsontext.Value(body).Clone()
	return stored, stored.Compact()
}

// MayKeep returns an error for a queued command that must not be kept: its body is invalid, or
// has a clear secret. An earlier version of the service may have stored such a message.
func (s *Service) MayKeep(command string, body []byte) error {
	route, ok := s.Kernel.Route(command)
	if !ok || !route.Command || route.Unqueueable {
		return service.ErrNotQueueable
	}
	_, err := storable(route, body)
	return err
}

// storable decodes the body of a queued command by the command's own input type, which declares
// its secrets, and refuses what must not be stored.
func storable(route *service.Route, body []byte) (members map[string]jsontext.Value, err error) {
	if err := service.CheckForm(body); err != nil {
		return nil, err
	}
	if err := service.Decode(body, &members); err != nil {
		return nil, err
	}
	if _, dry := members["dry_run"]; dry {
		return nil, service.ErrNotQueueable.Withf("A command with dry_run cannot be queued: its response is needed. Send it as a request.").At("/dry_run")
	}
	for _, member := range clearMembers(route.In) {
		if _, given := members[member]; given {
			return nil, ErrSecretInQueue.At("/" + member)
		}
	}
	in := reflect.New(route.In)
	if err := service.Decode(body, in.Interface()); err != nil {
		return nil, err
	}
	if whole, ok := reflect.TypeAssert[interface{ CheckQueueable() error }](in.Elem()); ok {
		return members, whole.CheckQueueable()
	}
	return members, nil
}

// clearMembers are the members of an input that contain clear secrets.
func clearMembers(in reflect.Type) (members []string) {
	for f := range in.Fields() {
		typ := f.Type
		if typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if typ == reflect.TypeFor[secrets.Keys]() || typ == reflect.TypeFor[secrets.Secret]() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			members = append(members, name)
		}
	}
	return members
}

// QueueLane is the lane of a queued command, by its target: commands of one lane are
// executed in order.
func QueueLane(tenant, command, commandID string, body []byte) string {
	var target struct {
		ID   string `json:"id"`
		Flow string `json:"flow"`
	}
	_ = json.Unmarshal(body, &target) // it was checked before it was stored
	category, _, _ := strings.Cut(command, ".")
	id := target.ID
	if category == "flow" {
		id = target.Flow
	}
	if id == "" { // it creates a resource
		category, id = "command", commandID
	}
	return string(events.LengthPrefixed(tenant, category, id))
}

// sealedFor is the target that a queued command names.
func sealedFor(command string, members map[string]jsontext.Value) (target string) {
	member := "id"
	if command == "credential.create" {
		member = "component"
	}
	_ = json.Unmarshal(members[member], &target) // a wrong type is refused later
	return target
}

// GetSealingKey requests the key to which secrets are sealed for the tenant.
type GetSealingKey struct{}

// SealingKey is the public half of the service key, the same in every process.
type SealingKey struct {
	PublicKey string `json:"public_key"` // X25519, unpadded base64url
	KeyID     string `json:"key_id"`     // the first 8 bytes of its SHA-256, in hex
	Suite     string `json:"suite"`      // of HPKE, base mode (RFC 9180)
	Info      string `json:"info"`       // how HPKE's info is written
}

func (s *Service) serviceKey(ctx context.Context, call *service.Call, _ GetSealingKey) (SealingKey, error) {
	public, err := s.Keyring.Recipient(ctx, call.Tenant)
	if err != nil {
		return SealingKey{}, err
	}
	sum := sha256.Sum256(public)
	return SealingKey{
		PublicKey: base64.RawURLEncoding.EncodeToString(public), KeyID: hex.EncodeToString(sum[:8]), Suite: seal.Suite,
		Info: "credstream/keys-sealed/1, tenant, command, command id and target (the component of a new " +
			"credential, otherwise the id of the credential), joined by line feeds",
	}, nil
}

type ListQueued struct {
	Limit int    `json:"limit,omitzero"` // 1 to 200; 50 when absent
	After string `json:"after,omitzero"` // cursor of the previous page
}

// QueuedList is a page of the dead-letter queue, oldest first.
type QueuedList struct {
	Messages []DeadLetter `json:"messages"`
	Next     string       `json:"next,omitzero"` // cursor of the next page; absent on the last
}

func (s *Service) listQueued(ctx context.Context, call *service.Call, in ListQueued) (QueuedList, error) {
	limit, err := service.PageSize(in.Limit)
	if err != nil {
		return QueuedList{}, err
	}
	if s.DeadLetters == nil {
		return QueuedList{}, ErrQueueAbsent
	}
	page, next, err := s.DeadLetters.List(ctx, call.Tenant, in.After, limit)
	if page == nil {
		page = []DeadLetter{}
	}
	return QueuedList{Messages: page, Next: next}, err
}

// QueuedID identifies a message of the dead-letter queue.
type QueuedID struct {
	ID string `json:"id"`
}

func (s *Service) getQueued(ctx context.Context, call *service.Call, in QueuedID) (DeadLetter, error) {
	if s.DeadLetters == nil {
		return DeadLetter{}, ErrQueueAbsent
	}
	return s.DeadLetters.Get(ctx, call.Tenant, in.ID)
}

func (s *Service) retryQueued(ctx context.Context, call *service.Call, in QueuedID) (service.Done, error) {
	return s.takeQueued(ctx, call, in, DeadLetterQueue.Retry)
}

func (s *Service) dropQueued(ctx context.Context, call *service.Call, in QueuedID) (service.Done, error) {
	return s.takeQueued(ctx, call, in, DeadLetterQueue.Drop)
}

// takeQueued removes one message from the dead-letter queue by a change. The command starts only
// if the message exists: if a repeat after a crash does not find it, the earlier attempt removed
// it.
func (s *Service) takeQueued(ctx context.Context, call *service.Call, in QueuedID, change func(q DeadLetterQueue, ctx context.Context, tenant, id string) error) (service.Done, error) {
	if s.DeadLetters == nil {
		return service.Done{}, ErrQueueAbsent
	}
	resumed := call.Resumed() != nil
	if !resumed {
		if _, err := s.DeadLetters.Get(ctx, call.Tenant, in.ID); err != nil {
			return service.Done{}, err
		}
	}
	if _, err := s.Kernel.Begin(ctx, call, events.CommandStarted{}); err != nil {
		return service.Done{}, err
	}
	call.Detach()
	err := change(s.DeadLetters, ctx, call.Tenant, in.ID)
	if resumed && errors.Is(err, ErrQueueNotFound) {
		err = nil
	}
	return service.Done{ID: in.ID}, err
}

// QueuedMany selects messages of the dead-letter queue for a bulk change. Filters combine by
// AND.
type QueuedMany struct {
	Queue  string     `json:"queue,omitzero"`  // "flows" or "commands"
	Code   string     `json:"code,omitzero"`   // error code
	Before *time.Time `json:"before,omitzero"` // those that failed before (RFC 3339); before the request when absent
	After  string     `json:"after,omitzero"`  // cursor of the previous response, with the same filters
}

// QueuedChanged is the response to a bulk change.
type QueuedChanged struct {
	Done    int       `json:"done"`          // messages that were changed; after a crash, those that were left
	Skipped int       `json:"skipped"`       // matching messages without kept content, which cannot be retried
	Before  time.Time `json:"before"`        // as in the request
	Next    string    `json:"next,omitzero"` // cursor to continue with; absent at the end
}

// maxQueuedChanges bounds the messages that one bulk change scans.
const maxQueuedChanges = 1000

func (s *Service) retryAllQueued(ctx context.Context, call *service.Call, in QueuedMany) (QueuedChanged, error) {
	return s.changeQueued(ctx, call, in, DeadLetterQueue.Retry)
}

func (s *Service) dropAllQueued(ctx context.Context, call *service.Call, in QueuedMany) (QueuedChanged, error) {
	return s.changeQueued(ctx, call, in, DeadLetterQueue.Drop)
}

// changeQueued changes the messages one after the other. A message that fails
// again gets a new entry with a later time, which this call does not process.
func (s *Service) changeQueued(ctx context.Context, call *service.Call, in QueuedMany, change func(q DeadLetterQueue, ctx context.Context, tenant, id string) error) (QueuedChanged, error) {
	if s.DeadLetters == nil {
		return QueuedChanged{}, ErrQueueAbsent
	}
	before := s.Kernel.Now().UTC()
	if in.Before != nil {
		before = in.Before.UTC()
	}
	// A repeat after a crash is for the same messages, without those that failed since.
	started, err := s.Kernel.Begin(ctx, call, events.CommandStarted{Before: before})
	if err != nil {
		return QueuedChanged{}, err
	}
	before = started.Before
	call.Detach()
	out := QueuedChanged{Before: before}
	for seen := 0; seen < maxQueuedChanges; {
		page, next, err := s.DeadLetters.List(ctx, call.Tenant, in.After, 200)
		if err != nil {
			return out, err
		}
		for _, m := range page {
			if in.Queue != "" && m.Queue != in.Queue || in.Code != "" && m.Code != in.Code || !m.At.Before(before) {
				continue
			}
			err := change(s.DeadLetters, ctx, call.Tenant, m.ID)
			switch {
			case err == nil:
				out.Done++
			case errors.Is(err, ErrQueueNotKept):
				out.Skipped++
			case errors.Is(err, ErrQueueNotFound): // another call was faster
			default:
				return out, err
			}
		}
		seen += len(page)
		in.After = next
		if out.Next = next; next == "" {
			break
		}
	}
	return out, nil
}
