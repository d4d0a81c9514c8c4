package bus

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/fault"
)

// ErrStreamConfig is returned by EnsureStream for a stream that exists and is not as it must be.
var ErrStreamConfig = fault.New(fault.Precondition, "stream_config_differs",
	"A stream in NATS does not have the configuration that credstream requires.")

// EnsureStream creates the stream, or checks that the one that is there keeps
// messages in the same way: it returns ErrStreamConfig, with the setting that
// differs, and never changes a stream.
func EnsureStream(ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig) (created bool, err error) {
	stream, err := js.Stream(ctx, want.Name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		if stream, err = js.CreateStream(ctx, want); err != nil {
			return false, fmt.Errorf("creating stream %s: %w", want.Name, err)
		}
		created = true
	case err != nil:
		return false, fmt.Errorf("looking up stream %s: %w", want.Name, err)
	}
	got := stream.CachedInfo().Config
	for _, c := range []struct {
		field     string
		got, want any
	}{
		{"subjects", got.Subjects, want.Subjects},
		{"retention", got.Retention, want.Retention},
		{"discard", got.Discard, want.Discard},
		{"storage", got.Storage, want.Storage},
		{"num_replicas", got.Replicas, max(want.Replicas, 1)},
		{"max_msg_size", max(got.MaxMsgSize, 0), max(want.MaxMsgSize, 0)},
		{"max_msgs", max(got.MaxMsgs, 0), max(want.MaxMsgs, 0)},
		{"max_bytes", max(got.MaxBytes, 0), max(want.MaxBytes, 0)},
		{"max_age", got.MaxAge, want.MaxAge},
		{"max_msgs_per_subject", max(got.MaxMsgsPerSubject, 0), max(want.MaxMsgsPerSubject, 0)},
		{"allow_direct", got.AllowDirect, want.AllowDirect},
		{"deny_delete", got.DenyDelete, want.DenyDelete},
		{"deny_purge", got.DenyPurge, want.DenyPurge},
		{"allow_rollup_hdrs", got.AllowRollup, want.AllowRollup},
		{"allow_msg_ttl", got.AllowMsgTTL, want.AllowMsgTTL},
		{"allow_msg_schedules", got.AllowMsgSchedules, want.AllowMsgSchedules},
		{"persist_mode", got.PersistMode, want.PersistMode},
		{"sealed", got.Sealed, want.Sealed},
		{"mirror", got.Mirror == nil, want.Mirror == nil},
		{"sources", len(got.Sources), len(want.Sources)},
		{"subject_transform", got.SubjectTransform == nil, want.SubjectTransform == nil},
		{"no_ack", got.NoAck, want.NoAck},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			return false, ErrStreamConfig.Because("The stream %s has an unexpected configuration: %s is %v, must be %v.", want.Name, c.field, c.got, c.want)
		}
	}
	return created, nil
}

// EnsureBucket is EnsureStream for a key-value bucket.
func EnsureBucket(ctx context.Context, js jetstream.JetStream, want jetstream.KeyValueConfig) (created bool, err error) {
	name := "KV_" + want.Bucket
	stream, err := js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if _, err = js.CreateKeyValue(ctx, want); err != nil {
			return false, fmt.Errorf("creating the bucket %s: %w", want.Bucket, err)
		}
		created = true
		stream, err = js.Stream(ctx, name)
	}
	if err != nil {
		return created, fmt.Errorf("looking up stream %s: %w", name, err)
	}
	got := stream.CachedInfo().Config
	for _, c := range []struct {
		field     string
		got, want any
	}{
		{"subjects", got.Subjects, []string{"$KV." + want.Bucket + ".>"}},
		{"retention", got.Retention, jetstream.LimitsPolicy},
		{"storage", got.Storage, want.Storage},
		{"num_replicas", got.Replicas, max(want.Replicas, 1)},
		{"max_msgs_per_subject", got.MaxMsgsPerSubject, int64(max(want.History, 1))},
		{"max_age", got.MaxAge, want.TTL},
		{"max_msgs", max(got.MaxMsgs, 0), int64(0)},
		{"max_bytes", max(got.MaxBytes, 0), max(want.MaxBytes, 0)},
		{"sealed", got.Sealed, false},
		{"mirror", got.Mirror == nil, want.Mirror == nil},
		{"sources", len(got.Sources), len(want.Sources)},
		{"subject_transform", got.SubjectTransform == nil, true},
		{"no_ack", got.NoAck, false},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			return created, ErrStreamConfig.Because("The stream %s has an unexpected configuration: %s is %v, must be %v.", name, c.field, c.got, c.want)
		}
	}
	return created, nil
}

// wrongLast reports whether a publish was refused because the last sequence is
// not the one it expected, or because another publish that could change it is
// under way on a replicated stream.
func wrongLast(err error) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == wrongLastInFlight)
}
