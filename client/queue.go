package client

import (
	"context"
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/base64"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"
)

// QueueAck is the position of an enqueued command.
type QueueAck struct {
	Ack
	CommandID string `json:"command_id"` // causation id of the events that result from it
}

// Enqueue enqueues a command and returns when it is durable. It is
// executed once, after earlier commands with the same target. Its result is
// an event whose causation id is the command's id, or an entry of the dead-letter queue.
// Body marshals to the command's JSON object. A body with clear keys is refused
// and not stored (secret_in_queue): see SealKeys.
func (c *Conn) Enqueue(ctx context.Context, command string, body any, opts ...CommandOption) (QueueAck, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return QueueAck{}, fmt.Errorf("encode %s: %w", command, err)
	}
	subject, err := c.subject("cmdq", command)
	if err != nil {
		return QueueAck{}, err
	}
	m, o := nats.NewMsg(subject), optionsOf(opts)
	m.Data = data
	o.write(m.Header)
	ack, err := c.publish(ctx, m)
	return QueueAck{ack, o.id}, err
}

// ServiceKey is the public key to which the keys of a queued command are encrypted.
type ServiceKey struct {
	PublicKey string `json:"public_key"` // X25519, unpadded base64url
	KeyID     string `json:"key_id"`     // the first 8 bytes of its SHA-256, in hex
	Suite     string `json:"suite"`      // of HPKE, base mode (RFC 9180)
	Info      string `json:"info"`       // how HPKE's info is composed
}

// ServiceKey returns the tenant's service key.
func (a *API) ServiceKey(ctx context.Context) (ServiceKey, error) {
	var k ServiceKey
	err := a.Query(ctx, "service.key", nil, &k)
	return k, err
}

// suite is the only HPKE suite of SealKeys.
const suite = "DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM"

// SealKeys encrypts keys to the tenant's service key, for one command with one
// command id and one target, which is the component of a new credential or the id
// of an existing one. The result goes into the member keys_sealed of that command, in place
// of keys, and cannot be decrypted for any other.
func (a *API) SealKeys(ctx context.Context, command, commandID, target string, keys Keys) (string, error) {
	k, err := a.ServiceKey(ctx)
	if err != nil {
		return "", err
	}
	if k.Suite != suite {
		return "", ErrAnswer.Withf("The service requires a sealing suite that this client does not support. Update the client.")
	}
	raw, err := base64.RawURLEncoding.DecodeString(k.PublicKey)
	if err != nil {
		return "", fmt.Errorf("%w %w", ErrAnswer, err)
	}
	public, err := hpke.DHKEM(ecdh.X25519()).NewPublicKey(raw)
	if err != nil {
		return "", fmt.Errorf("%w %w", ErrAnswer, err)
	}
	info := strings.Join([]string{"credstream/keys-sealed/1", a.tenant, command, commandID, target}, "\n")
	sealed, err := hpke.Seal(public, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(info), keys.reveal())
	if err != nil {
		return "", fmt.Errorf("seal the keys: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(sealed), nil
}

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
	Code      string         `json:"code"`                // of the error
	Reason    string         `json:"reason"`              // a sentence
	Details   jsontext.Value `json:"details,omitzero"`
	At        time.Time      `json:"at"`
	Size      int            `json:"size"`             // of the original message, in bytes
	SHA256    string         `json:"sha256"`           // of the original message, in hex
	Kept      bool           `json:"kept"`             // the content could be parsed, so it is kept and can be retried
	Content   jsontext.Value `json:"content,omitzero"` // the kept content; only in the response of GetQueued
}

// QueueFilter selects a page of the dead-letter queue.
type QueueFilter struct {
	Limit int    `json:"limit,omitzero"` // of one page, 1 to 200; 50 when 0
	After string `json:"after,omitzero"` // cursor of the previous page
}

// QueuedList is one page, oldest first.
type QueuedList struct {
	Messages []DeadLetter `json:"messages"`
	Next     string       `json:"next,omitzero"` // cursor of the next page; empty on the last
}

// ListQueued returns one page of the dead-letter queue. Here and below, the key needs
// the permission queue.manage.
func (a *API) ListQueued(ctx context.Context, filter QueueFilter) (QueuedList, error) {
	var list QueuedList
	err := a.Query(ctx, "queue.list", filter, &list)
	return list, err
}

// Queued yields every message of the dead-letter queue, page after page.
func (a *API) Queued(ctx context.Context) iter.Seq2[DeadLetter, error] {
	return func(yield func(DeadLetter, error) bool) {
		for filter := (QueueFilter{Limit: 200}); ; {
			list, err := a.ListQueued(ctx, filter)
			if err != nil {
				yield(DeadLetter{}, err)
				return
			}
			for _, m := range list.Messages {
				if !yield(m, nil) {
					return
				}
			}
			if filter.After = list.Next; list.Next == "" {
				return
			}
		}
	}
}

// GetQueued returns one message of the dead-letter queue, with its kept
// content (queue_message_not_found).
func (a *API) GetQueued(ctx context.Context, id string) (DeadLetter, error) {
	var m DeadLetter
	err := a.Query(ctx, "queue.get", byID{ID: id}, &m)
	return m, err
}

// RetryQueued puts a message of the dead-letter queue back into its queue
// (queue_message_not_kept).
func (a *API) RetryQueued(ctx context.Context, id string, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "queue.retry", byID{ID: id}, &done, opts...)
	return done, err
}

// DropQueued erases a message of the dead-letter queue.
func (a *API) DropQueued(ctx context.Context, id string, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "queue.drop", byID{ID: id}, &done, opts...)
	return done, err
}

// QueueBulk selects the messages of the dead-letter queue for a bulk change. The
// zero QueueBulk selects all.
type QueueBulk struct {
	Queue  string    `json:"queue,omitzero"`  // "flows" or "commands"
	Code   string    `json:"code,omitzero"`   // of the error
	Before time.Time `json:"before,omitzero"` // those that failed before this time; before the request when zero
	After  string    `json:"after,omitzero"`  // cursor of the previous response, with its Before
}

// QueueChanged is the response to a bulk change.
type QueueChanged struct {
	Done    int       `json:"done"`          // changed messages
	Skipped int       `json:"skipped"`       // messages without kept content, which cannot be retried
	Before  time.Time `json:"before"`        // as in the request
	Next    string    `json:"next,omitzero"` // cursor to continue with; empty at the end
}

// RetryAllQueued puts messages of the dead-letter queue back into their queues, and
// returns how many. A message that fails again gets a new entry, which this call does not retry.
func (a *API) RetryAllQueued(ctx context.Context, which QueueBulk) (QueueChanged, error) {
	return a.changeQueued(ctx, "queue.retry-all", which)
}

// DropAllQueued erases messages of the dead-letter queue, and returns how many.
func (a *API) DropAllQueued(ctx context.Context, which QueueBulk) (QueueChanged, error) {
	return a.changeQueued(ctx, "queue.drop-all", which)
}

func (a *API) changeQueued(ctx context.Context, command string, which QueueBulk) (all QueueChanged, err error) {
	for {
		var part QueueChanged
		if err := a.Command(ctx, command, which, &part); err != nil {
			return all, err
		}
		all.Done += part.Done
		all.Skipped += part.Skipped
		all.Before, which.Before, which.After = part.Before, part.Before, part.Next
		if part.Next == "" {
			return all, nil
		}
	}
}
