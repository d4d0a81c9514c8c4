package kv

import "context"

// DeleteStream deletes the stream of the buckets.
func (b *ThrottleBuckets) DeleteStream(ctx context.Context) error {
	return b.js.DeleteStream(ctx, ThrottleStream) //nolint:wrapcheck // of a test
}
