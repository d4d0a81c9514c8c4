package projections

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/credstream/credstream/events"
)

// writer is the connection that writes one file of views. bulk is a rebuild:
// until finish it is one transaction without a journal, and the secondary
// indexes and the trigram index of names are missing.
type writer struct {
	*conn
	meta meta
	bulk bool
}

// openWriter opens the live file, or creates it.
func openWriter(path, log string) (*writer, error) {
	c, err := connect(path, "busy_timeout=5000", "journal_mode=WAL", "synchronous=NORMAL",
		"wal_autocheckpoint=4000", "journal_size_limit=33554432", "cache_size=-16384", "mmap_size=0")
	if err != nil {
		return nil, err
	}
	return start(c, log, tables+indexes)
}

// openBulk creates a file for a rebuild: as fast as possible, and worthless if
// anything fails. Call finish when the rows are in.
func openBulk(path, log string) (*writer, error) {
	c, err := connect(path, "journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE",
		"cache_size=-65536", "temp_store=MEMORY", "mmap_size=0")
	if err != nil {
		return nil, err
	}
	w, err := start(c, log, tables)
	if err != nil {
		return nil, err
	}
	w.bulk = true
	if err := w.exec("BEGIN"); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// finish builds the indexes, which is faster in one pass.
func (w *writer) finish() error {
	w.bulk = false
	if err := w.script(indexes); err != nil {
		return err
	}
	err := w.query("SELECT seq, tenant, name FROM credentials ORDER BY seq", func(row []driver.Value) error {
		return w.addName(num(row[0]), str(row[1]), uncollated(str(row[2])))
	})
	if err != nil {
		return err
	}
	return w.script("INSERT INTO names (names) VALUES ('optimize'); COMMIT")
}

// addName puts the folded name of a credential into the trigram
// index. A rebuild leaves it to finish, because FTS5 begins a new segment with every row that
// does not follow the previous one, and refuses more than 2,000 of them.
func (w *writer) addName(seq int64, tenant, name string) error {
	if w.bulk {
		return nil
	}
	return w.exec(insertName, seq, tag(tenant)+name)
}

// dropName removes the name of a credential from the trigram index.
func (w *writer) dropName(seq int64) error {
	if w.bulk {
		return nil
	}
	return w.exec("DELETE FROM names WHERE rowid = ?", seq)
}

// insert writes rows of width values each. verb is "INSERT INTO table". In bulk,
// one statement inserts many rows, which costs as much as inserting several. With a
// journal it inserts one row per statement: for more, SQLite would copy every page to be able to undo the statement.
func (w *writer) insert(verb string, width int, values []driver.Value) error {
	sizes := []int{1}
	if w.bulk {
		sizes = []int{64, 8, 1}
	}
	row := "(" + strings.Repeat("?,", width-1) + "?)"
	for _, n := range sizes {
		sql := verb + " VALUES " + strings.Join(slices.Repeat([]string{row}, n), ",")
		for len(values) >= n*width {
			if err := w.exec(sql, values[:n*width]...); err != nil {
				return err
			}
			values = values[n*width:]
		}
	}
	return nil
}

// start reads the metadata of an existing file, or creates the tables of a new one.
func start(c *conn, log, schema string) (*writer, error) {
	w := &writer{conn: c}
	err := func() error {
		isNew := true
		err := c.query("SELECT 1 FROM sqlite_schema WHERE name = 'meta'", func([]driver.Value) error {
			isNew = false
			return nil
		})
		if err != nil {
			return err
		}
		if isNew {
			if err := w.script(fmt.Sprintf("BEGIN;%s PRAGMA user_version=%d; COMMIT", schema, viewsVersion)); err != nil {
				return err
			}
			if err := w.exec("INSERT INTO meta VALUES ('log', ?)", log); err != nil {
				return err
			}
		}
		w.meta, err = readMeta(c)
		return err
	}()
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return w, nil
}

var errBatch = errors.New("a batch holds whole commits in log order")

// apply applies whole commits to the tables, in one transaction. It returns the credentials
// that may have changed.
func (w *writer) apply(recs []events.Record) (changed []credentialKey, err error) {
	for len(recs) > 0 && recs[0].Seq <= w.meta.seq {
		recs = recs[1:]
	}
	if len(recs) == 0 {
		return nil, nil
	}
	if !w.bulk {
		if err := w.exec("BEGIN IMMEDIATE"); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, w.exec("ROLLBACK"))
			}
		}()
	}
	b := newBatch(w)
	for i, r := range recs {
		first := r.Index == 0 && (i == 0 || recs[i-1].Last() && recs[i-1].Seq < r.Seq)
		next := i > 0 && !recs[i-1].Last() && recs[i-1].Seq == r.Seq && recs[i-1].Index+1 == r.Index
		if !first && !next {
			return nil, fmt.Errorf("record %d of commit %d: %w", r.Index, r.Seq, errBatch)
		}
		if err := b.apply(r); err != nil {
			return nil, fmt.Errorf("event %d of commit %d, %T of %s: %w", r.Index, r.Seq, r.Event, r.Stream, err)
		}
	}
	last := recs[len(recs)-1]
	if !last.Last() {
		return nil, fmt.Errorf("commit %d is torn: %w", last.Seq, errBatch)
	}
	if err := b.flush(); err != nil {
		return nil, err
	}
	err = w.exec("INSERT OR REPLACE INTO meta VALUES ('seq', ?), ('commit', ?)", int64(last.Seq), last.Meta.Commit)
	if err != nil {
		return nil, err
	}
	if !w.bulk {
		if err := w.exec("COMMIT"); err != nil {
			return nil, err
		}
	}
	w.meta.seq, w.meta.commit = last.Seq, last.Meta.Commit
	return slices.Collect(maps.Keys(b.credentials)), nil
}

// batch is one transaction in progress. Credentials, flows with what they use and
// command ids, which come by the thousand, are buffered and written once at its
// end; the rest is written immediately.
type batch struct {
	w           *writer
	commands    []command
	credentials map[credentialKey]*change
	touched     []*change // in order of the first touch
	flows       map[flowKey]*flowChange
	inUse       map[inUseKey]inUseChange
}

func newBatch(w *writer) *batch {
	return &batch{w: w, credentials: map[credentialKey]*change{}, flows: map[flowKey]*flowChange{}, inUse: map[inUseKey]inUseChange{}}
}

var errUnknownEvent = errors.New("unknown event")

func (b *batch) apply(r events.Record) error {
	// A generated id is never looked up; renewals of tokens make many.
	if r.Index == 0 && r.Meta.Command != "" && r.Meta.Request != "" {
		b.commands = append(b.commands, command{commandHash(r.Meta.Tenant, r.Meta.Actor, r.Meta.Command), r.Seq})
	}
	if _, abandoned := r.Event.(events.SecretAbandoned); abandoned && r.Stream.Category != kindCredential {
		return nil // no list shows it; on a credential it changes only the revision
	}
	switch e := r.Event.(type) {
	case events.Credential:
		return b.credential(r, e)
	case events.Flow:
		return b.flow(r, e)
	case events.OAuthClient:
		return b.oauthClient(r, e)
	case events.AuthClient:
		return b.authClient(r, e)
	case events.Component:
		return b.component(r, e)
	case events.Connector:
		return b.connector(r, e)
	case events.ThrottlePolicy:
		return b.throttlePolicy(r, e)
	case events.Webhook:
		return b.webhook(r, e)
	case events.ConnectorSecret:
		return b.connectorSecret(r, e)
	case events.APIKey:
		return b.apiKey(r, e)
	case events.Role:
		return b.role(r, e)
	case events.Tenant:
		return b.tenant(r, e)
	case events.Installation, events.Access, events.CommandRecord:
		return nil // shown elsewhere
	}
	return errUnknownEvent
}

func (b *batch) flush() error {
	if err := b.flushCommands(); err != nil {
		return err
	}
	if err := b.flushFlows(); err != nil {
		return err
	}
	return b.flushCredentials()
}
