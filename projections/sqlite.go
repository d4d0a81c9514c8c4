package projections

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
)

// The result codes that are distinguished, https://sqlite.org/rescode.html.
const (
	sqliteCorrupt = 11
	sqliteFull    = 13
	sqliteNotADB  = 26
)

// SQLite reports both as "database or disk is full".
var (
	errDiskFull  = errors.New("the disk of the read models is full")
	errIndexFull = errors.New("an index of the read models cannot grow, although the disk has space")
)

// diskFull is the free space in bytes below which SQLite's "full" means the disk.
const diskFull = 16 << 20

// conn is one SQLite connection with its prepared statements, for one goroutine
// at a time. It uses the driver without database/sql, whose pool and
// conversions add half the cost of the point reads that every command
// makes. Statements are short, so they do not watch a context.
type conn struct {
	driver.Conn
	path  string
	stmts map[string]statement
	args  []driver.NamedValue

	recent *recent // of a reader
}

type statement interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// connect opens the file, creating it if it is missing, and runs pragmas.
func connect(path string, pragmas ...string) (*conn, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	connector, err := sqlite.NewConnector((&url.URL{Scheme: "file", OmitHost: true, Path: filepath.ToSlash(abs)}).String())
	if err != nil {
		return nil, err
	}
	raw, err := connector.Connect(context.Background())
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: raw, path: abs, stmts: map[string]statement{}}
	for _, p := range pragmas {
		if err := c.exec("PRAGMA " + p); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// Close finalizes the statements and closes the connection.
func (c *conn) Close() error {
	var errs []error
	for _, s := range c.stmts {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, c.Conn.Close())...)
}

// prepared returns the cached statement of a text.
func (c *conn) prepared(sql string) (statement, error) {
	if s, ok := c.stmts[sql]; ok {
		return s, nil
	}
	raw, err := c.Prepare(sql)
	if err != nil {
		return nil, c.failed("preparing "+head(sql), err)
	}
	s, ok := raw.(statement)
	if !ok {
		return nil, fmt.Errorf("preparing %s: unexpected driver type %T", head(sql), raw)
	}
	c.stmts[sql] = s
	return s, nil
}

func (c *conn) named(args []driver.Value) []driver.NamedValue {
	c.args = c.args[:0]
	for i, a := range args {
		c.args = append(c.args, driver.NamedValue{Ordinal: i + 1, Value: a})
	}
	return c.args
}

// exec runs a statement. Arguments are int64, string, []byte or nil.
func (c *conn) exec(sql string, args ...driver.Value) error {
	s, err := c.prepared(sql)
	if err != nil {
		return err
	}
	if _, err := s.ExecContext(context.Background(), c.named(args)); err != nil {
		return c.failed(head(sql), err)
	}
	return nil
}

var errNoRow = errors.New("there is no such row")

// update runs a statement that must change a row.
func (c *conn) update(sql string, args ...driver.Value) error {
	s, err := c.prepared(sql)
	if err != nil {
		return err
	}
	res, err := s.ExecContext(context.Background(), c.named(args))
	if err == nil {
		var n int64
		if n, err = res.RowsAffected(); err == nil && n == 0 {
			err = errNoRow
		}
	}
	if err != nil {
		return c.failed(head(sql), err)
	}
	return nil
}

// script runs several statements, once.
func (c *conn) script(sql string) error {
	s, err := c.Prepare(sql)
	if err != nil {
		return c.failed("preparing "+head(sql), err)
	}
	if _, err = s.(statement).ExecContext(context.Background(), nil); err != nil {
		err = c.failed(head(sql), err)
	}
	return errors.Join(err, s.Close())
}

// query calls row for each row; the slice is reused for the next one.
func (c *conn) query(sql string, row func([]driver.Value) error, args ...driver.Value) (err error) {
	s, err := c.prepared(sql)
	if err != nil {
		return err
	}
	rows, err := s.QueryContext(context.Background(), c.named(args))
	if err != nil {
		return c.failed(head(sql), err)
	}
	defer func() {
		if e := rows.Close(); err == nil && e != nil {
			err = c.failed(head(sql), e)
		}
	}()
	dest := make([]driver.Value, len(rows.Columns()))
	for {
		switch err := rows.Next(dest); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return c.failed(head(sql), err)
		}
		if err := row(dest); err != nil {
			return err
		}
	}
}

// head is the start of a statement, for error messages.
func head(sql string) string {
	if len(sql) > 60 {
		return sql[:60]
	}
	return sql
}

// failed wraps the error with what failed, and tells the causes of SQLite's "full" apart.
func (c *conn) failed(what string, err error) error {
	if resultCode(err) == sqliteFull {
		var fs unix.Statfs_t
		full := errDiskFull
		if unix.Statfs(filepath.Dir(c.path), &fs) == nil && uint64(fs.Bavail)*uint64(fs.Bsize) >= diskFull { // their types differ between systems
			full = errIndexFull
		}
		err = fmt.Errorf("%w: %w", full, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// damaged reports whether SQLite found the file corrupt.
func damaged(err error) bool {
	code := resultCode(err)
	return code == sqliteCorrupt || code == sqliteNotADB
}

// resultCode is SQLite's primary result code, 0 when err is not SQLite's.
func resultCode(err error) int {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return 0
	}
	return e.Code() & 0xff
}
