package jetstream

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// Errors that prove the loss of a part of the log. JetStream drops a damaged block with a
// warning and reuses its sequences, so the service records positions and counts.
var (
	ErrLogCutShort   = events.ErrLogCutShort
	ErrLogIncomplete = events.ErrLogIncomplete
	// ErrHighWater means that the high-water file cannot be read.
	ErrHighWater = fault.New(fault.Precondition, "high_water_unreadable",
		"high-water.json cannot be read. Restore it from its backup, or remove it if you know that the log is intact.")
)

// CutShort returns ErrLogCutShort for a log without the commit at seq.
func CutShort(seq uint64) error { return events.CutShort(seq) }

// CheckWhole counts the commits of the log, which never deletes any. It returns
// ErrLogIncomplete or ErrLogCutShort, with the first missing commit, unless the log starts with
// commit 1, has no gaps, and ends at or after the last durable commit.
func (s *Store) CheckWhole(ctx context.Context) error {
	durable := s.Durable() // before reading the state: it advances meanwhile
	state, err := s.state(ctx, stateQuestion{}, 0)
	switch {
	case err != nil:
		return err
	case state.LastSeq < durable:
		return CutShort(durable)
	case state.LastSeq == 0 || state.FirstSeq == 1 && state.Messages == state.LastSeq:
		return nil
	}
	missing := uint64(1)
	if state.FirstSeq == 1 {
		if state, err = s.state(ctx, stateQuestion{Deleted: true}, 0); err != nil {
			return err
		}
		if len(state.Deleted) > 0 {
			missing = slices.Min(state.Deleted)
		}
	}
	return ErrLogIncomplete.Withf("The log misses %d of its %d commits, from commit %d on, so it is damaged. Changes are "+
		"refused and no secret is returned until it is restored from a backup.", state.LastSeq-min(state.LastSeq, state.Messages), state.LastSeq, missing)
}

// HighWater records, in a file outside the log's folder, up to which commit the log was
// durable, and the hash of that commit. It is safe for concurrent use.
type HighWater struct {
	path  string
	store Markable
	log   *slog.Logger

	mu   sync.Mutex // held while the file is compared or written
	last Mark       // as in the file
}

// Mark is the content of a high-water file.
type Mark struct {
	Seq    uint64 `json:"seq"`
	SHA256 string `json:"sha256"` // of the commit's body, in hex
}

// Markable is a log whose position can be recorded.
type Markable interface {
	CheckWhole(ctx context.Context) error
	Durable() uint64
	// Body returns the stored form of the commit at seq; nil if there is none.
	Body(ctx context.Context, seq uint64) ([]byte, error)
}

// NewHighWater returns a HighWater for store with the file at path.
func NewHighWater(path string, store Markable, log *slog.Logger) *HighWater {
	return &HighWater{path: path, store: store, log: log}
}

// Body implements Markable.
func (s *Store) Body(ctx context.Context, seq uint64) ([]byte, error) {
	msg, err := s.get(ctx, seq)
	if err != nil || msg == nil {
		return nil, err
	}
	return msg.body, nil
}

// Marked returns the sequence in the high-water file at path; 0 if it cannot be read.
func Marked(path string) uint64 { return ReadHighWater(path).Seq }

// ReadHighWater returns the content of the high-water file at path; the zero Mark if it cannot be
// read.
func ReadHighWater(path string) Mark {
	var m Mark
	b, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(b, &m) != nil {
		return Mark{}
	}
	return m
}

// Check runs CheckWhole and compares the log with the mark. It returns ErrLogCutShort if the
// log does not have the marked commit, and ErrHighWater if the file cannot be read. Without a
// file it compares nothing.
func (h *HighWater) Check(ctx context.Context) error {
	if err := h.store.CheckWhole(ctx); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	b, err := os.ReadFile(h.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("reading the high-water mark: %w", err)
	}
	var m Mark
	if err := json.Unmarshal(b, &m); err != nil || m.Seq == 0 {
		return ErrHighWater.Withf("The file %s is empty or damaged. This does not mean that the log is damaged. Restore the file from its "+
			"backup, or, if you know that the log is intact, remove it: the next start writes it again.", h.path)
	}
	at, err := h.mark(ctx, m.Seq)
	switch {
	case err != nil:
		return err
	case at != m:
		return CutShort(m.Seq)
	}
	h.last = m
	return nil
}

// mark returns the mark of the commit at seq; the zero mark if there is none.
func (h *HighWater) mark(ctx context.Context, seq uint64) (Mark, error) {
	body, err := h.store.Body(ctx, seq)
	if err != nil || body == nil {
		return Mark{}, err
	}
	sum := sha256.Sum256(body)
	return Mark{seq, hex.EncodeToString(sum[:])}, nil
}

// Record writes the mark if the durable position has advanced.
func (h *HighWater) Record(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	seq := h.store.Durable()
	if seq <= h.last.Seq {
		return nil
	}
	m, err := h.mark(ctx, seq)
	if err != nil || m.Seq == 0 {
		return err
	}
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encoding the high-water mark: %w", err)
	}
	if err := ReplaceFile(h.path, b); err != nil {
		return fmt.Errorf("writing the high-water mark: %w", err)
	}
	h.last = m
	return nil
}

// Run records the mark every second until ctx is done, and once more at the end.
func (h *HighWater) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			return h.Record(last)
		case <-tick.C:
		}
		if err := h.Record(ctx); err != nil && ctx.Err() == nil {
			h.log.Warn("high-water mark not written", "err", err)
		}
	}
}

// ReplaceFile replaces a file atomically: after a power cut it has the old or the new content.
func ReplaceFile(path string, content []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
