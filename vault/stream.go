package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The few requests of the JetStream API that the vault makes by itself, because
// the client library has no read that insists on the stream's leader.

// requestTimeout bounds a request whose context has no deadline.
const requestTimeout = 5 * time.Second

// codeNoMessage is the server's error code for a message that is not there.
const codeNoMessage jetstream.ErrorCode = 10037

// message is one stored message.
type message struct {
	seq    uint64
	header nats.Header
	body   []byte
	stored time.Time // zero from a direct get
}

func (v *Vault) request(ctx context.Context, subject string, body []byte) (*nats.Msg, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, requestTimeout)
		defer cancel()
	}
	return v.nc.RequestWithContext(ctx, v.api+subject, body)
}

// call makes a request of the JetStream API. The answer's own error, if any, is
// the one returned.
func (v *Vault) call(ctx context.Context, op string, req, answer any) error {
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	reply, err := v.request(ctx, "STREAM."+op+"."+Stream, body)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	var failure struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(reply.Data, &failure); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if failure.Error != nil {
		return fmt.Errorf("%s: %w", op, failure.Error)
	}
	if err := json.Unmarshal(reply.Data, answer); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// lastDirect asks any replica for the last message on subject; nil when it has none.
func (v *Vault) lastDirect(ctx context.Context, subject string) (*message, error) {
	reply, err := v.request(ctx, "DIRECT.GET."+Stream+"."+subject, nil)
	if err != nil {
		return nil, fmt.Errorf("direct get: %w", err)
	}
	switch status := reply.Header.Get("Status"); status {
	case "":
	case "404":
		return nil, nil // "none" is an answer
	default:
		return nil, fmt.Errorf("direct get: status %s", status)
	}
	seq, err := strconv.ParseUint(reply.Header.Get(jetstream.SequenceHeader), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("direct get: %w", err)
	}
	return &message{seq: seq, header: reply.Header, body: reply.Data}, nil
}

// lastFromLeader asks the stream's leader for the last message on subject; nil
// when there is none.
func (v *Vault) lastFromLeader(ctx context.Context, subject string) (*message, error) {
	req := struct {
		LastBySubject string `json:"last_by_subj"`
	}{subject}
	var answer struct {
		Message struct {
			Seq    uint64    `json:"seq"`
			Header []byte    `json:"hdrs"`
			Data   []byte    `json:"data"`
			Time   time.Time `json:"time"`
		} `json:"message"`
	}
	err := v.call(ctx, "MSG.GET", req, &answer)
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == codeNoMessage {
		return nil, nil // "none" is an answer
	}
	if err != nil {
		return nil, err
	}
	m := answer.Message
	header := nats.Header{}
	if len(m.Header) > 0 {
		if header, err = nats.DecodeHeadersMsg(m.Header); err != nil {
			return nil, fmt.Errorf("MSG.GET: %w", err)
		}
	}
	return &message{seq: m.Seq, header: header, body: m.Data, stored: m.Time.UTC()}, nil
}

// overwrite deletes the message at seq and overwrites its bytes on disk.
func (v *Vault) overwrite(ctx context.Context, seq uint64) error {
	req := struct {
		Seq uint64 `json:"seq"` // without no_erase: a secure delete
	}{seq}
	return v.call(ctx, "MSG.DELETE", req, &struct{}{})
}

// owned lists the last message of every subject that matches filter, oldest first.
func (v *Vault) owned(ctx context.Context, filter string) ([]Entry, error) {
	var entries []Entry
	for offset := 0; ; {
		req := struct {
			Filter string `json:"subjects_filter"`
			Offset int    `json:"offset"`
		}{filter, offset}
		var answer struct {
			Total int `json:"total"` // subjects in all; an answer holds so many of them
			State struct {
				Subjects map[string]uint64 `json:"subjects"`
			} `json:"state"`
		}
		if err := v.call(ctx, "INFO", req, &answer); err != nil {
			return nil, err
		}
		for subject := range answer.State.Subjects {
			ref, err := parseSubject(subject)
			if err != nil {
				return nil, err
			}
			m, err := v.lastFromLeader(ctx, subject)
			if err != nil {
				return nil, err
			}
			if m != nil { // else erased meanwhile
				entries = append(entries, Entry{Ref: ref, Seq: m.seq, Stored: m.stored})
			}
		}
		offset += len(answer.State.Subjects)
		if len(answer.State.Subjects) == 0 || offset >= answer.Total {
			break
		}
	}
	slices.SortFunc(entries, func(a, b Entry) int { return cmp.Compare(a.Seq, b.Seq) })
	return entries, nil
}
