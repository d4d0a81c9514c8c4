package projections

import (
	"bufio"
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// ErrViewsClosed is returned by reads after Close.
var ErrViewsClosed = fault.New(fault.Unavailable, "views_closed", "The service is stopping.")

// ErrViewsDamaged is returned by reads that find the file corrupt.
var ErrViewsDamaged = fault.New(fault.Unavailable, "views_damaged", "The read models are damaged and are being rebuilt. Try again shortly.")

// viewsVersion is the version of everything in the file: tables, indexes and
// how events are folded into them. Raise it with any change to these; a file
// of another version is rebuilt from the log.
const viewsVersion = 19

// tables is the schema that every file has from its first record; indexes is
// added then or, in a rebuild, once the rows are in.
const (
	tables = `
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
` + commandTable + tenantTable + apiKeyTable + roleTable + componentTable + oauthClientTable + authClientTable + connectorTable + throttlePolicyTable + webhookTable + credentialTable + flowTable + useTable + inUseTable + tokenTable + expiryTable
	indexes = apiKeyIndexes + componentIndexes + oauthClientIndexes + authClientIndexes + connectorIndexes + credentialIndexes + flowIndexes + useIndexes + inUseIndexes + tokenIndexes + expiryIndexes
)

// ViewsOptions is how views are opened.
type ViewsOptions struct {
	// Log identifies the log from which the views are derived; a file derived from
	// another log is dropped. It may be "" if there is only one.
	Log string
	// Readers is the number of queries that run at the same time; 0 means 4. Each
	// keeps a page cache of up to 4 MB.
	Readers int
	// Logger logs when and why a file is dropped; nil means slog.Default.
	Logger *slog.Logger
}

// Views are the query side in one SQLite file: credentials, components, tenants,
// API keys, flows, what they use and command ids, all derived from the log. The file is never
// trusted: one that is damaged, of another version, of another log or ahead of
// its log is dropped and rebuilt.
//
// Writes use one connection in WAL mode with synchronous=NORMAL: a power
// cut may lose the last batches, which are applied again from the log, but does not
// tear the file. Close stores the file's SHA-256 beside it as the mark of a
// clean shutdown. OpenViews compares it, so any changed byte is found. Without the
// mark (after a crash) it runs SQLite's quick_check. Damage that shows only later
// fails the query, and the file is dropped at the next start.
//
// Views is safe for concurrent use.
type Views struct {
	path string
	opts ViewsOptions
	log  *slog.Logger

	mu       sync.Mutex // held by every writer
	w        *writer    // nil after a failure, until the file is opened again
	done     bool       // Close was called
	position atomic.Uint64
	keys     atomic.Uint64 // rises when the views of API keys may have changed
	erasures atomic.Uint64 // rises when a tenant may have been erased
	readers  chan *conn    // the idle ones; nil is one that is not open
	recent   *recent
	closed   chan struct{}

	damage  atomic.Pointer[error] // nil while the file is intact
	damaged chan struct{}         // holds one token when damage was found

	bounds     bounds
	rebuilding sync.Mutex
}

var _ Model = (*Views)(nil)

// OpenViews opens the file at path, or creates an empty one, at position 0, if
// there is no usable one. Only one process may have it open at a time.
func OpenViews(path string, opts ViewsOptions) (*Views, error) {
	if opts.Readers <= 0 {
		opts.Readers = 4
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	v := &Views{
		path: path, opts: opts, log: opts.Logger, bounds: bounds{walk: 600, candidates: 600}, recent: newRecent(),
		readers: make(chan *conn, opts.Readers), closed: make(chan struct{}), damaged: make(chan struct{}, 1),
	}
	if why := validateFile(path, opts.Log); why != nil {
		v.log.Warn("dropping the read models and rebuilding them from the log", "path", path, "reason", why)
		if err := remove(path); err != nil {
			return nil, fmt.Errorf("dropping the read models: %w", err)
		}
	}
	err := removeIfThere(path + building)
	if err == nil {
		err = writable(path)
	}
	if err == nil {
		err = v.open()
	}
	if err != nil {
		return nil, fmt.Errorf("opening the read models: %w", err)
	}
	return v, nil
}

// Suffixes of the files beside the one at path.
const (
	cleanMark   = ".clean"   // the SHA-256 of a file that was closed cleanly
	damagedMark = ".damaged" // left when a query finds damage
	building    = ".new"     // a rebuild in progress
)

// remove deletes the file and everything that belongs to it; the clean mark goes first.
func remove(path string) error {
	return errors.Join(removeBeside(path), removeIfThere(path), removeIfThere(path+building))
}

func removeBeside(path string) error {
	var errs []error
	for _, suffix := range []string{cleanMark, "-wal", "-shm", "-journal", damagedMark} {
		errs = append(errs, removeIfThere(path+suffix))
	}
	return errors.Join(errs...)
}

// writable returns an error if the file exists but is not writable, because SQLite
// would open it read-only.
func writable(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return f.Close()
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// validateFile returns why the file at path must not be used; nil if it may be, or if
// there is none. It removes the clean mark.
func validateFile(path, log string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := os.Stat(path + damagedMark); err == nil {
		return errors.New("a query found damage")
	}
	checked := false
	if want, err := os.ReadFile(path + cleanMark); err == nil {
		got, err := digest(path)
		if err != nil {
			return err
		}
		if got != string(want) {
			return errors.New("the file was changed since it was closed")
		}
		_, err = os.Stat(path + "-wal")
		checked = errors.Is(err, fs.ErrNotExist)
		if err := os.Remove(path + cleanMark); err != nil {
			return err
		}
	}
	c, err := connect(path, "cell_size_check=ON")
	if err != nil {
		return err
	}
	err = inspect(c, log, checked)
	return errors.Join(err, c.Close())
}

func inspect(c *conn, log string, checked bool) error {
	var version int64
	err := c.query("PRAGMA user_version", func(row []driver.Value) error {
		version, _ = row[0].(int64)
		return nil
	})
	switch {
	case err != nil:
		return err
	case version != viewsVersion:
		return fmt.Errorf("the file has version %d, this program writes %d", version, viewsVersion)
	}
	if !checked {
		err := c.query("PRAGMA quick_check(1)", func(row []driver.Value) error {
			if row[0] != "ok" {
				return fmt.Errorf("quick_check: %v", row[0])
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if m, err := readMeta(c); err != nil || m.log != log {
		return errors.Join(err, errors.New("the file comes from another log"))
	}
	return nil
}

// meta is the file's own metadata.
type meta struct {
	log    string
	seq    uint64 // last commit applied
	commit string // its id
}

func readMeta(c *conn) (meta, error) {
	var m meta
	err := c.query("SELECT key, value FROM meta", func(row []driver.Value) error {
		key, text, n := str(row[0]), str(row[1]), num(row[1])
		switch key {
		case "log":
			m.log = text
		case "seq":
			m.seq = uint64(n)
		case "commit":
			m.commit = text
		}
		return nil
	})
	return m, err
}

// open connects the writer and the readers to the file, creating it if needed.
// Nothing is connected before. If it fails, queries fail until it succeeds.
func (v *Views) open() error {
	readers := make([]*conn, cap(v.readers))
	w, err := openWriter(v.path, v.opts.Log)
	for i := range readers {
		if err == nil {
			if readers[i], err = connect(v.path, "busy_timeout=5000", "cache_size=-4096", "mmap_size=0", "query_only=ON"); err == nil {
				readers[i].recent = v.recent
			}
		}
	}
	v.recent.forgetAll()
	if err == nil {
		v.w = w
		v.position.Store(w.meta.seq)
	}
	for _, c := range readers {
		if err != nil && c != nil {
			err, c = errors.Join(err, c.Close()), nil
		}
		v.readers <- c
	}
	if err != nil && w != nil {
		err = errors.Join(err, w.Close())
	}
	return err
}

// shut waits for running queries, blocks new ones, and closes every
// connection. Without an error the file is then complete, with no write-ahead log
// beside it.
func (v *Views) shut() error {
	var errs []error
	for range cap(v.readers) {
		if c := <-v.readers; c != nil {
			errs = append(errs, c.Close())
		}
	}
	if v.w != nil {
		errs = append(errs, v.w.exec("PRAGMA wal_checkpoint(TRUNCATE)"), v.w.Close())
		v.w = nil
	}
	return errors.Join(errs...)
}

// reopen opens the file again if a failure closed it. The caller holds mu.
func (v *Views) reopen() error {
	switch {
	case v.done:
		return ErrViewsClosed
	case v.w != nil:
		return nil
	}
	_ = v.shut() // the readers alone, which have written nothing
	if err := v.open(); err != nil {
		return v.markCorrupt(fmt.Errorf("reopening the read models: %w", err))
	}
	return nil
}

// Close ends all use of the views and writes the clean mark.
func (v *Views) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.done {
		return nil
	}
	v.done = true
	close(v.closed)
	sound := v.w != nil && v.Err() == nil
	if err := v.shut(); err != nil {
		return fmt.Errorf("closing the read models: %w", err)
	}
	if !sound {
		return nil
	}
	sum, err := digest(v.path)
	if err == nil {
		err = os.WriteFile(v.path+cleanMark, []byte(sum), 0o600)
	}
	if err != nil {
		return fmt.Errorf("marking the read models as closed: %w", err)
	}
	return nil
}

// digest is the SHA-256 of a file, in hex.
func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // only read
	h := sha256.New()
	if _, err := io.CopyBuffer(h, f, make([]byte, 1<<20)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// ErrViewsAhead means that the views reflect a commit that the log does not hold. They only
// apply durable commits, so the log has lost data.
var ErrViewsAhead = fault.New(fault.Unavailable, "log_behind_views",
	"The log misses commits that are in the read models, so it is damaged. Changes are "+
		"refused and no secret is returned until it is restored from a backup.")

// Check compares the views with the log; commitAt returns the id of the commit at
// a sequence. It returns ErrViewsAhead if the log does not hold the last commit of the
// views.
func (v *Views) Check(commitAt func(seq uint64) (commitID string, err error)) error {
	v.mu.Lock()
	if err := v.reopen(); err != nil {
		v.mu.Unlock()
		return err
	}
	m := v.w.meta
	v.mu.Unlock()
	if m.seq == 0 {
		return nil
	}
	id, err := commitAt(m.seq)
	switch {
	case err != nil && !errors.Is(err, events.ErrNoSuchCommit):
		return fmt.Errorf("comparing the read models with the log: %w", err)
	case err != nil || id != m.commit:
		return ErrViewsAhead.Withf("The read models were built from commit %d, which the log misses or has replaced by another commit, so the "+
			"log is damaged. Changes are refused and no secret is returned until it is restored from a backup. If you "+
			"restored an older log on purpose, remove views.db and the files beside it.", m.seq)
	}
	return nil
}

// swap closes the file, lets replace put another in its place, and opens that.
// Queries wait meanwhile. The caller holds mu. If it fails, the next Apply tries
// to open the file that is there.
func (v *Views) swap(replace func() error) error {
	defer v.keys.Add(1)
	defer v.erasures.Add(1)
	if err := v.shut(); err != nil { // of a file that is replaced
		v.log.Info("old read models not closed cleanly", "path", v.path, "error", err)
	}
	if err := replace(); err != nil {
		return errors.Join(err, v.open())
	}
	v.damage.Store(nil)
	return v.open()
}

// Position is the sequence of the last commit applied, 0 for none.
func (v *Views) Position() uint64 { return v.position.Load() }

// Apply implements Model.
func (v *Views) Apply(_ context.Context, batch []events.Record) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.reopen(); err != nil {
		return err
	}
	changed, err := v.w.apply(batch)
	if err != nil {
		// Whether the transaction was committed, or ended at all, a new connection finds out.
		v.recent.forgetAll()
		err = errors.Join(err, v.w.Close())
		v.w = nil
		return v.markCorrupt(err)
	}
	v.recent.forget(changed) // before the position says that they are applied
	for _, r := range batch {
		switch r.Event.(type) {
		case events.APIKey:
			v.keys.Add(1)
		case events.TenantErasureStarted:
			v.erasures.Add(1)
		}
	}
	v.position.Store(v.w.meta.seq)
	return nil
}

// KeyChanges rises whenever the views of an API key may have changed:
// a value that was read before is valid until it rises.
func (v *Views) KeyChanges() uint64 { return v.keys.Load() }

// Erasures rises whenever a tenant may have been erased: that a tenant was in use before is valid
// until it rises.
func (v *Views) Erasures() uint64 { return v.erasures.Load() }

// read lends f a connection for exclusive use.
func (v *Views) read(ctx context.Context, f func(*conn) error) error {
	select {
	case c := <-v.readers:
		defer func() { v.readers <- c }()
		if c == nil {
			return ErrViewsBehind
		}
		return v.markCorrupt(f(c))
	case <-v.closed:
		return ErrViewsClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// snapshot is read, but all statements of f see the same state.
func (v *Views) snapshot(ctx context.Context, f func(*conn) error) error {
	return v.read(ctx, func(c *conn) (err error) {
		if err := c.exec("BEGIN"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.exec("COMMIT")) }()
		return f(c)
	})
}

// markCorrupt marks the file if err says that it is damaged, so that Repair or the
// next start rebuilds it, and logs it once.
func (v *Views) markCorrupt(err error) error {
	if !damaged(err) {
		return err
	}
	if v.damage.CompareAndSwap(nil, &err) {
		v.log.Error("read models are damaged; rebuilding them from the log", "path", v.path, "error", err)
		if err := os.WriteFile(v.path+damagedMark, nil, 0o600); err != nil {
			v.log.Error("cannot mark the read models as damaged", "path", v.path, "error", err)
		}
		select {
		case v.damaged <- struct{}{}:
		default:
		}
	}
	return fmt.Errorf("%w: %w", ErrViewsDamaged, err)
}

// Err is the damage of the file, nil while it is intact.
func (v *Views) Err() error {
	if err := v.damage.Load(); err != nil {
		return fmt.Errorf("%w: %w", ErrViewsDamaged, *err)
	}
	return nil
}

// dumped lists the queries of Dump for each table, in a stable order.
var dumped = []string{
	"SELECT 'meta', key, value FROM meta WHERE key <> 'log' ORDER BY key",
	"SELECT 'command', hex(hash), seq FROM commands ORDER BY hash",
	"SELECT 'tenant', * FROM tenants ORDER BY id",
	"SELECT 'api_key', * FROM api_keys ORDER BY id",
	"SELECT 'role', * FROM roles ORDER BY tenant, name",
	"SELECT 'component', * FROM components ORDER BY id",
	"SELECT 'credential', * FROM credentials ORDER BY seq",
	"SELECT 'count', * FROM counts ORDER BY tenant, workspace, component, status",
	"SELECT 'component revision', * FROM component_revisions ORDER BY component, revision",
	"SELECT 'oauth client', * FROM oauth_clients ORDER BY tenant, component",
	"SELECT 'throttle policy', * FROM throttle_policies ORDER BY tenant, id",
	"SELECT 'webhook', * FROM webhooks ORDER BY tenant, id",
	"SELECT 'connector', * FROM connectors ORDER BY tenant, id",
	"SELECT 'connector secret', * FROM connector_secrets ORDER BY tenant, id",
	"SELECT 'flow', * FROM flows ORDER BY tenant, id",
	"SELECT 'use', * FROM uses ORDER BY tenant, flow, thing",
	"SELECT 'in use', * FROM in_use ORDER BY tenant, thing",
	"SELECT 'search', term, doc FROM temp.terms ORDER BY term, doc",
}

// Dump writes the complete content of the views as ordered text, a row a line: two
// views of the same log write the same. For tests and for comparing a replica
// with a rebuild; it reads one state and occupies a reader meanwhile.
func (v *Views) Dump(ctx context.Context, out io.Writer) error {
	b := bufio.NewWriter(out)
	err := v.read(ctx, func(c *conn) (err error) {
		err = c.script("PRAGMA query_only=OFF; CREATE VIRTUAL TABLE IF NOT EXISTS temp.terms USING fts5vocab(main, names, instance); PRAGMA query_only=ON; BEGIN")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.exec("COMMIT")) }()
		for _, q := range dumped {
			err := c.query(q, func(row []driver.Value) error {
				for i, value := range row {
					if i > 0 {
						fmt.Fprint(b, "\t")
					}
					switch x := value.(type) {
					case []byte:
						fmt.Fprintf(b, "%q", x)
					default:
						fmt.Fprintf(b, "%#v", x)
					}
				}
				return b.WriteByte('\n')
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("dumping the read models: %w", err)
	}
	return b.Flush()
}

// str and num read a column; a column of another type reads as the zero value.
func str(v driver.Value) string {
	switch s := v.(type) {
	case string:
		return strings.Clone(s)
	case []byte:
		return string(s)
	}
	return ""
}

func num(v driver.Value) int64 {
	n, _ := v.(int64)
	return n
}

// syncDir makes a rename within dir durable.
func syncDir(dir string) error {
	d, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
