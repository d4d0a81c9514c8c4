package natsserver

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/credstream/credstream/jsapi"

	"github.com/nats-io/nats.go/jetstream"
)

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
			return created, jsapi.ErrStreamConfig.Withf("The stream %s has an unexpected configuration: %s is %v, must be %v.", name, c.field, c.got, c.want)
		}
	}
	return created, nil
}
