package vault

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/jsapi"
	"github.com/nats-io/nats.go/jetstream"
)

// lastDirect reads the last message on subject from any replica; nil if there is none.
func (v *Vault) lastDirect(ctx context.Context, subject string) (*jsapi.Message, error) {
	reply, err := v.api.Request(ctx, "DIRECT.GET."+Stream+"."+subject, nil)
	if err != nil {
		return nil, fmt.Errorf("direct get: %w", err)
	}
	switch status := reply.Header.Get("Status"); status {
	case "":
	case "404":
		return nil, nil // no message is not an error
	default:
		return nil, fmt.Errorf("direct get: status %s: %w", status, fault.ErrUnavailable)
	}
	seq, err := strconv.ParseUint(reply.Header.Get(jetstream.SequenceHeader), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("direct get: %w", err)
	}
	return &jsapi.Message{Seq: seq, Header: reply.Header, Data: reply.Data}, nil
}

// lastFromLeader reads the last message on subject from the stream's leader; nil if there is
// none.
func (v *Vault) lastFromLeader(ctx context.Context, subject string) (*jsapi.Message, error) {
	return v.api.FromLeader(ctx, Stream, jsapi.Question{LastBySubject: subject})
}

// overwrite deletes the message at seq and overwrites its bytes on disk.
func (v *Vault) overwrite(ctx context.Context, seq uint64) error {
	req := struct {
		Seq uint64 `json:"seq"` // without no_erase: a secure delete
	}{seq}
	return v.api.Call(ctx, "STREAM.MSG.DELETE."+Stream, req, &struct{}{})
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
			Total int `json:"total"` // number of subjects; a page has fewer
			State struct {
				Subjects map[string]uint64 `json:"subjects"`
			} `json:"state"`
		}
		if err := v.api.Call(ctx, "STREAM.INFO."+Stream, req, &answer); err != nil {
			return nil, err
		}
		for subject := range answer.State.Subjects {
			ref, err := ParseSubject(subject)
			if err != nil {
				return nil, err
			}
			m, err := v.lastFromLeader(ctx, subject)
			if err != nil {
				return nil, err
			}
			if m != nil { // otherwise it was erased meanwhile
				entries = append(entries, Entry{Ref: ref, Seq: m.Seq, Stored: m.Time})
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
