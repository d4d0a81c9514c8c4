package projections

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"fmt"
	"slices"

	"github.com/credstream/credstream/events"
)

// commandTable maps each command id to the commit it produced, forever. A row is
// about 25 bytes; the id itself is not stored.
const commandTable = `
CREATE TABLE commands (hash BLOB PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
`

type command struct {
	hash [16]byte
	seq  uint64
}

// commandHash is half a SHA-256 of everything that makes a command id unique.
func commandHash(tenant string, actor events.Actor, id string) [16]byte {
	sum := sha256.Sum256(events.LengthPrefixed(tenant, actor.Kind, actor.ID, id))
	return [16]byte(sum[:16])
}

// flushCommands writes in the order of the table; the first commit of a command
// id stays its result.
func (b *batch) flushCommands() error {
	slices.SortFunc(b.commands, func(x, y command) int {
		return cmp.Or(bytes.Compare(x.hash[:], y.hash[:]), cmp.Compare(x.seq, y.seq))
	})
	values := make([]driver.Value, 0, 2*len(b.commands))
	for i := range b.commands {
		c := &b.commands[i]
		values = append(values, c.hash[:], int64(c.seq))
	}
	return b.w.insert("INSERT OR IGNORE INTO commands", 2, values)
}

const commandByHash = "SELECT seq FROM commands WHERE hash = ?"

// Command finds the commit that a command id of an actor produced within a
// tenant. It covers every commit up to Position.
func (v *Views) Command(ctx context.Context, tenant string, actor events.Actor, id string) (seq uint64, found bool, err error) {
	hash := commandHash(tenant, actor, id)
	err = v.read(ctx, func(c *conn) error {
		return c.query(commandByHash, func(row []driver.Value) error {
			seq, found = uint64(num(row[0])), true
			return nil
		}, hash[:])
	})
	if err != nil {
		return 0, false, fmt.Errorf("looking up a command: %w", err)
	}
	return seq, found, nil
}
