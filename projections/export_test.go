package projections

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
)

// SetBounds makes searches take the ways of large tables on small ones.
func (v *Views) SetBounds(walk, candidates int) { v.bounds = bounds{walk, candidates} }

// Plans returns EXPLAIN QUERY PLAN, a line a step, of every statement that a
// page of the list may take.
func (v *Views) Plans(f CredentialFilter) (plans []string, err error) {
	l, err := f.listing(v.bounds)
	if err != nil {
		return nil, err
	}
	if f.Turn {
		for _, r := range []condition{{}, {" AND name > ?", []driver.Value{"m"}}, {" AND name = ?", []driver.Value{"m"}}, {" AND name = ? AND seq < ?", []driver.Value{"m", int64(7)}}} {
			sql, args := l.merge("name, seq, doc", []condition{r}, false)
			order := l.order
			if strings.Contains(r.sql, "=") {
				order = " ORDER BY seq DESC"
			}
			if err := v.explain(sql+order+" LIMIT 50", args, &plans); err != nil {
				return nil, err
			}
		}
		return plans, nil
	}
	for _, l.after = range []*rowPosition{nil, {"m", 7}} {
		add := func(sql string, args []driver.Value) {
			if err == nil {
				err = v.explain(sql+" LIMIT 50", args, &plans)
			}
		}
		add(l.query("name, seq, doc", nil, l.term != ""))
		if l.term != "" {
			add(l.query("name, seq, doc", &rowPosition{"x", 9}, true))
			add(l.query("name, seq", nil, false))
		}
		where, args := l.counted()
		add("SELECT sum(n) FROM counts"+where, args)
	}
	return plans, err
}

// OtherPlans are those of all other statements that look for rows.
func (v *Views) OtherPlans() (plans []string, err error) {
	for _, sql := range []string{
		credentialByID, candidateCount, candidates + " WHERE tenant = ? AND instr(name, ?) > 0", componentsVisible, componentsOwnedCount, componentsSharedCount, oauthClientCount, oauthClientColumns + " WHERE tenant = ? AND component > ? ORDER BY component LIMIT ?", authClientByID, authClientFollowed, authClientsUnsettled, authClientsListed, ownAuthClients, otherAuthClients,
		dueTokens, tokenHolders, tokenHoldersOf, tokenHolderCount,
		commandByHash, componentColumns + " WHERE id = ?",
		apiKeyByHash, apiKeyColumns + " WHERE id > ? ORDER BY id LIMIT ?", tenantColumns + " WHERE id = ?",
		flowByID, usesOfFlow, deletedOfFlow, flowName, expiredBindings, staleUses, unsettledFlows,
		throttlePolicyColumns + " AND id = ?", throttlePolicyColumns + throttlePolicyPage, throttlePolicyCount,
		webhookColumns + " AND id = ?", webhookColumns + webhookPage, webhookCount,
		connectorColumns + " WHERE tenant = ?" + connectorPage, connectorColumns + " WHERE tenant = ? AND secret = ?" + connectorPage, connectorCount + " WHERE tenant = ?",
		connectorSecretColumns + " WHERE tenant = ?" + connectorPage, connectorSecretColumns + " WHERE tenant = ? AND id = ?" + connectorPage, connectorSecretCount + " WHERE tenant = ?",
		inUseByThing, inUseChanges, inUseAt, inUseList + inUseOrder, inUseFlows,
		updateFlow, updateUse, deleteUse, breakFlows, forgetUses, refuseUses, emptyInUse,
	} {
		if err := v.explain(sql, make([]driver.Value, strings.Count(sql, "?")), &plans); err != nil {
			return nil, err
		}
	}
	for choice := range 1 << 4 {
		is := func(bit int) bool { return choice>>bit&1 == 1 }
		f := FlowFilter{Active: is(0), Broken: is(1)}
		if is(2) {
			f.Credential = "c"
		}
		if is(3) {
			f.Component = "k"
		}
		sql, args := f.query()
		if err := v.explain(sql, append(args, int64(9)), &plans); err != nil {
			return nil, err
		}
	}
	return plans, nil
}

func (v *Views) explain(sql string, args []driver.Value, plans *[]string) error {
	return v.read(context.Background(), func(c *conn) error {
		return c.query("EXPLAIN QUERY PLAN "+sql, func(row []driver.Value) error {
			*plans = append(*plans, str(row[3]))
			return nil
		}, args...)
	})
}

// Hurried reports whether somebody has asked the projector, which must not run,
// not to let records come together.
func (p *Projector) Hurried() bool { return len(p.flushNow) > 0 }

// ExhaustNames brings the trigram index of a new file to its end, and returns why it ended.
func ExhaustNames(path string) (err error) {
	w, err := openWriter(path, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if err := w.script("INSERT INTO names (names, rank) VALUES ('automerge', 0), ('crisismerge', 1000000); BEGIN"); err != nil {
		return err
	}
	for seq := int64(8000); seq > 0; seq-- { // each before the one written last
		if err := w.addName(seq, "acme", "orders"); err != nil {
			return err
		}
	}
	return nil
}

// The names of what SQLite calls "database or disk is full".
var (
	ErrDiskFull  = errDiskFull
	ErrIndexFull = errIndexFull
)

// InUseOf is the value of one thing; found is false when no flow ever used it.
func (v *Views) InUseOf(ctx context.Context, tenant, kind, id string) (value InUse, found bool, err error) {
	err = v.snapshot(ctx, func(c *conn) error {
		entries := []InUseEntry{{Tenant: tenant, Kind: kind, ID: id}}
		err := c.query(inUseByThing, func(row []driver.Value) error {
			entries[0].Value = scanInUse(row)
			found = true
			return nil
		}, tenant, resourceName(kind, id))
		if err != nil || !found {
			return err
		}
		err = addFlows(c, entries)
		value = entries[0].Value
		return err
	})
	if err != nil {
		return InUse{}, false, fmt.Errorf("reading the in-use index: %w", err)
	}
	return value, found, nil
}
