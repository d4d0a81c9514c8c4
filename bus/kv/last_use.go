package kv

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/events"
)

// LastUseBucket is the key-value bucket with the last use of API keys: the minute, in Unix
// time, by the key's id. It is private.
const LastUseBucket = "CREDSTREAM_LAST_USED"

const (
	lastUseKeys  = 10_000          // keys in memory
	lastUseEvery = time.Second     // between two writes
	lastUseStop  = 2 * time.Second // for the last write at the end
)

// LastUse records when API keys were last used. Each process writes at most once a
// minute for each key, without fsync: a power cut may lose the
// last minutes.
type LastUse struct {
	kv  jetstream.KeyValue
	log *slog.Logger

	mu    sync.Mutex
	seen  *lru.Cache[string, int64] // the minute that was recorded last
	dirty map[string]int64          // minutes to be written
}

// OpenLastUse opens the bucket, creating it if it does not exist.
func OpenLastUse(ctx context.Context, js jetstream.JetStream, replicas int, log *slog.Logger) (*LastUse, error) {
	kv, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: LastUseBucket, Description: "credstream: when API keys were last used. May be deleted.",
		History: 1, Storage: jetstream.FileStorage, Replicas: replicas,
	})
	if err != nil {
		return nil, fmt.Errorf("opening the bucket of the last use of keys: %w", err)
	}
	seen, err := lru.New[string, int64](lastUseKeys)
	if err != nil {
		return nil, fmt.Errorf("cache of the last use of keys: %w", err)
	}
	return &LastUse{kv: kv, log: log, seen: seen, dirty: map[string]int64{}}, nil
}

// Note records a use of the key. It does not block, and costs nothing if the
// key was already used in the same minute.
func (l *LastUse) Note(id string, at time.Time) {
	minute := at.Unix() / 60
	if last, ok := l.seen.Get(id); ok && last >= minute || !events.Plain(id) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen.Add(id, minute)
	if len(l.dirty) < lastUseKeys {
		l.dirty[id] = minute
	}
}

// LastUsed returns when keys were last used, to the minute, by key id.
func (l *LastUse) LastUsed(ctx context.Context) (map[string]time.Time, error) {
	used := map[string]time.Time{}
	add := func(id string, minute int64) {
		if at := time.Unix(minute*60, 0).UTC(); at.After(used[id]) {
			used[id] = at
		}
	}
	watcher, err := l.kv.WatchAll(ctx, jetstream.IgnoreDeletes())
	if err != nil {
		return nil, fmt.Errorf("reading the last use of keys: %w", err)
	}
	defer watcher.Stop() //nolint:errcheck // it ends with the connection anyway
	for {
		select {
		case entry, open := <-watcher.Updates():
			if entry == nil { // the end of the stored values
				if !open {
					return nil, errors.New("reading the last use of keys: the connection was closed")
				}
				l.mu.Lock()
				defer l.mu.Unlock()
				for id, minute := range l.dirty {
					add(id, minute)
				}
				return used, nil
			}
			if minute, err := strconv.ParseInt(string(entry.Value()), 10, 64); err == nil {
				add(entry.Key(), minute)
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("reading the last use of keys: %w", ctx.Err())
		}
	}
}

// Run writes the recorded uses until ctx ends, and then the remaining ones; it returns nil.
func (l *LastUse) Run(ctx context.Context) error {
	tick := time.NewTicker(lastUseEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.write(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastUseStop)
			defer cancel()
			l.write(last)
			return nil
		}
	}
}

// write writes the recorded uses; failed ones are retried.
func (l *LastUse) write(ctx context.Context) {
	l.mu.Lock()
	dirty := l.dirty
	l.dirty = map[string]int64{}
	l.mu.Unlock()
	for id, minute := range dirty {
		_, err := l.kv.PutString(ctx, id, strconv.FormatInt(minute, 10))
		if err == nil {
			delete(dirty, id)
			continue
		}
		if ctx.Err() == nil {
			l.log.Warn("last use of keys not written", "keys", len(dirty), "err", err)
		}
		break
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, minute := range dirty {
		l.dirty[id] = max(l.dirty[id], minute)
	}
}
