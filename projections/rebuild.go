package projections

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// ErrViewsRebuilding is returned by Rebuild while another rebuild is running.
var ErrViewsRebuilding = fault.New(fault.Precondition, "views_rebuild_running", "The read models are already being rebuilt.")

// Records that a rebuild applies in one transaction, and the lag in commits at
// which it stops the writer for the final catch-up.
const (
	bulkBatch = 4 * maxBatch
	nearEnd   = maxBatch
)

// Rebuild builds the views from the log in a new file and then replaces
// the old one. Meanwhile queries and the projector continue with the old file;
// they wait only for the exchange, a matter of milliseconds. progress,
// which may be nil, gets the position of the new file and the end of the log.
// If it fails before the exchange, nothing has changed.
func (v *Views) Rebuild(ctx context.Context, store events.Store, progress func(done, end uint64)) (err error) {
	if !v.rebuilding.TryLock() {
		return ErrViewsRebuilding
	}
	defer v.rebuilding.Unlock()
	if progress == nil {
		progress = func(uint64, uint64) {}
	}
	newFile := v.path + building
	if err := remove(newFile); err != nil {
		return fmt.Errorf("rebuilding the read models: %w", err)
	}
	w, err := openBulk(newFile, v.opts.Log)
	if err != nil {
		return fmt.Errorf("rebuilding the read models: %w", err)
	}
	defer func() {
		if w != nil {
			err = errors.Join(err, w.Close())
		}
		if err != nil {
			err = fmt.Errorf("rebuilding the read models: %w", errors.Join(err, remove(newFile)))
		}
	}()

	for indexed := false; ; {
		end, err := store.End(ctx)
		if err != nil {
			return err
		}
		if indexed && end <= w.meta.seq+nearEnd {
			break
		}
		if err := w.replay(ctx, store, end, progress); err != nil {
			return err
		}
		if !indexed {
			if err := w.finish(); err != nil {
				return err
			}
			indexed = true
		}
	}

	v.mu.Lock() // no position changes from here on
	defer v.mu.Unlock()
	if v.done {
		return ErrViewsClosed
	}
	if err := w.replay(ctx, store, v.Position(), progress); err != nil {
		return err
	}
	err = w.Close()
	w = nil
	if err == nil {
		err = syncFile(newFile)
	}
	if err != nil {
		return err
	}
	return v.swap(func() error {
		if err := removeBeside(v.path); err != nil {
			return err
		}
		if err := os.Rename(newFile, v.path); err != nil {
			return err
		}
		return syncDir(filepath.Dir(v.path))
	})
}

// Repair rebuilds the views each time a query or the projector finds the file
// damaged, until ctx ends; then it returns nil. It returns the error of a failed
// rebuild, and may be run again.
func (v *Views) Repair(ctx context.Context, store events.Store) error {
	for {
		if v.Err() == nil {
			select {
			case <-v.damaged:
			case <-ctx.Done():
				return nil
			}
			continue
		}
		if err := v.Rebuild(ctx, store, nil); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		v.log.InfoContext(ctx, "damaged read models rebuilt", "path", v.path, "position", v.Position())
	}
}

// replay applies the log up to and including end.
func (w *writer) replay(ctx context.Context, store events.Store, end uint64, progress func(done, end uint64)) error {
	if w.meta.seq >= end {
		return nil
	}
	for batch, err := range follow(ctx, store, w.meta.seq, bulkBatch) {
		if err == nil {
			_, err = w.apply(batch)
		}
		if err != nil {
			return err
		}
		progress(w.meta.seq, max(end, w.meta.seq))
		if w.meta.seq >= end {
			return nil
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return fmt.Errorf("the log ended after %d of %d", w.meta.seq, end)
}

func syncFile(path string) error {
	f, err := os.OpenFile(filepath.Clean(path), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
