package app

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/bus/streams"
	eventlog "github.com/credstream/credstream/events/jetstream"
)

// A start syncs the description of each stream that an earlier process made: that one may
// have ended before it had.
func TestStreamsOfAnEarlierProcessAreSynced(t *testing.T) {
	data := t.TempDir()
	bring(t, data).stop()
	u := bring(t, data)
	folders, err := filepath.Glob(filepath.Join(data, "nats", "jetstream", "*", "streams", "*"))
	must(t, err)
	var found []string
	for _, folder := range folders {
		found = append(found, filepath.Base(folder))
	}
	unsynced := []string{eventlog.SnapshotStream, "KV_" + streams.InUseBucket, "KV_" + kv.ConnectBucket, "KV_" + kv.LastUseBucket, kv.ThrottleStream} // may be lost
	for _, name := range append(slices.Clone(keptStreams), eventlog.Stream, kv.CheckpointStream) {
		if !slices.Contains(found, name) {
			t.Errorf("there is no stream %s in %v", name, found)
		}
	}
	for _, name := range found {
		if u.node.Syncer(name).Trees() == 0 && !slices.Contains(unsynced, name) {
			t.Errorf("stream %s was not synced", name)
		}
	}
}
