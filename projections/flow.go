package projections

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/credstream/credstream/events"
)

// A deleted flow keeps its row, because its revision identifies leftover uses.
// broken means that faults are recorded or that a named credential was deleted.
// observed is the sequence of the commit that set revision.
const (
	flowTable = `
CREATE TABLE flows (tenant TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL, revision INTEGER NOT NULL, active INTEGER NOT NULL,
	deleted INTEGER NOT NULL, broken INTEGER NOT NULL, binding TEXT NOT NULL, until INTEGER NOT NULL, updated INTEGER NOT NULL,
	observed INTEGER NOT NULL, seq INTEGER NOT NULL, steps TEXT NOT NULL, faults TEXT NOT NULL);
CREATE UNIQUE INDEX flows_id ON flows (tenant, id);
`
	flowIndexes = `
CREATE INDEX flows_live ON flows (tenant, id) WHERE deleted = 0;
CREATE INDEX flows_active ON flows (tenant, id) WHERE active = 1;
CREATE INDEX flows_broken ON flows (tenant, id) WHERE broken = 1;
`
)

// Flow is the last known state of one flow of a flow engine.
type Flow struct {
	Tenant, ID, Name string
	Revision         uint64 // the engine's; 0 if only a reservation is known, or nothing
	Active           bool
	Deleted          bool
	Steps            []events.FlowStep // of the revision; of the reservation while Revision is 0
	Faults           []FlowFault       // empty: the flow is not broken
	Binding          string            // id of the current reservation, "" for none
	Until            time.Time         // when the reservation expires, in microseconds
	UpdatedAt        time.Time
	Seq              uint64 // the last commit of its stream
}

// FlowFault says why a step cannot use what it names.
type FlowFault struct {
	Step       string `json:"step"`
	Component  string `json:"component"`
	Credential string `json:"credential"` // "" if the step names none but needs one
	Reason     string `json:"reason"`     // the recorded code, or "credential_deleted"
}

// credentialDeleted is the reason of the steps whose credential was deleted
// after they could use it.
const credentialDeleted = "credential_deleted"

// flowRow is a row of flows without its key; the zero value is none.
type flowRow struct {
	name                    string
	revision                uint64
	active, deleted, broken bool
	binding                 string
	until, updated          int64 // microseconds since 1970; until is 0 without a binding
	observed, seq           uint64
	steps, faults           string // JSON; "" for none
}

const (
	flowColumns = "name, revision, active, deleted, broken, binding, until, updated, observed, seq, steps, faults"
	flowByID    = "SELECT " + flowColumns + " FROM flows INDEXED BY flows_id WHERE tenant = ? AND id = ?"
	updateFlow  = "UPDATE flows SET name = ?, revision = ?, active = ?, deleted = ?, broken = ?, binding = ?, until = ?, updated = ?," +
		" observed = ?, seq = ?, steps = ?, faults = ? WHERE tenant = ? AND id = ?"
)

func scanFlowRow(row []driver.Value) flowRow {
	return flowRow{
		name: str(row[0]), revision: uint64(num(row[1])), active: num(row[2]) != 0, deleted: num(row[3]) != 0, broken: num(row[4]) != 0,
		binding: str(row[5]), until: num(row[6]), updated: num(row[7]), observed: uint64(num(row[8])), seq: uint64(num(row[9])),
		steps: str(row[10]), faults: str(row[11]),
	}
}

func (f flowRow) values() []driver.Value {
	return []driver.Value{
		f.name, int64(f.revision), flag(f.active), flag(f.deleted), flag(f.broken), f.binding, f.until, f.updated,
		int64(f.observed), int64(f.seq), f.steps, f.faults,
	}
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// flow decodes the whole row.
func (f flowRow) flow(tenant, id string) (Flow, error) {
	flow := Flow{
		Tenant: tenant, ID: id, Name: f.name, Revision: f.revision, Active: f.active, Deleted: f.deleted, Binding: f.binding, Seq: f.seq,
	}
	if f.binding != "" {
		flow.Until = time.UnixMicro(f.until).UTC()
	}
	if f.updated != 0 {
		flow.UpdatedAt = time.UnixMicro(f.updated).UTC()
	}
	if err := errors.Join(unmarshalText(f.steps, &flow.Steps), unmarshalText(f.faults, &flow.Faults)); err != nil {
		return Flow{}, fmt.Errorf("reading a flow's row: %w", err)
	}
	return flow, nil
}

func unmarshalText(text string, to any) error {
	if text == "" {
		return nil
	}
	return jsonv2.Unmarshal([]byte(text), to)
}

func marshalText[T any](list []T) (string, error) {
	if len(list) == 0 {
		return "", nil
	}
	text, err := jsonv2.Marshal(list)
	return string(text), err
}

// flow applies an event of a flow.
func (b *batch) flow(r events.Record, e events.Flow) error {
	f, err := b.flowOf(r.Stream.Tenant, r.Stream.ID)
	if err != nil {
		return err
	}
	switch e := e.(type) {
	case events.FlowObserved:
		err = b.observe(f, r, e)
	case events.FlowBound:
		f.now.binding, f.now.until = e.Binding, e.Until.UnixMicro()
		if f.now.name == "" {
			f.now.name = e.Name
		}
		if f.now.revision == 0 {
			f.now.steps, err = marshalText(e.Steps)
		}
	case events.FlowReleased:
		f.now.binding, f.now.until = "", 0
		if f.now.revision == 0 { // nothing is known of it any longer
			f.now = flowRow{}
			return nil
		}
	case events.FlowUseRefused:
		if e.Revision == 0 || e.Revision != f.now.revision {
			return nil // of an outdated revision
		}
		err = b.refuse(f, e)
	default:
		return errUnknownEvent
	}
	f.now.seq, f.now.updated = r.Seq, r.Meta.Time.UnixMicro()
	return err
}

func (b *batch) observe(f *flowChange, r events.Record, e events.FlowObserved) (err error) {
	f.now.name, f.now.revision, f.now.active, f.now.deleted = e.Name, e.Revision, e.Active, e.Change == events.FlowWasDeleted
	f.now.observed, f.now.faults = r.Seq, ""
	if f.now.active || f.now.deleted { // a start confirms the reservation, a deletion ends it
		f.now.binding, f.now.until = "", 0
	}
	f.now.steps, err = marshalText(e.Steps)
	named := map[string]bool{}
	for _, step := range e.Steps {
		for _, resource := range resourcesOf(step.Credential, step.Component) {
			named[resource] = true
		}
	}
	for resource := range f.uses {
		if !named[resource] {
			named[resource] = false
		}
	}
	for resource, is := range named {
		b.use(f, resource, r.Seq, func(u *useRow) {
			u.named = is
			if u.refusal != credentialDeleted {
				u.refusal = ""
			}
			if !isCredential(resource) {
				u.active = u.recorded && e.Active
			}
		})
	}
	return err
}

// refuse records a refusal of the current revision on the flow and on what the
// step names.
func (b *batch) refuse(f *flowChange, e events.FlowUseRefused) error {
	var faults []FlowFault
	if err := unmarshalText(f.now.faults, &faults); err != nil {
		return err
	}
	text, err := marshalText(append(faults, FlowFault{Step: e.Step, Component: e.Component, Credential: e.Credential, Reason: e.Reason}))
	f.now.faults = text
	for _, resource := range resourcesOf(e.Credential, e.Component) {
		if u, known := f.uses[resource]; known && u.now.named {
			u.now.refused = e.Revision
			if u.now.refusal != credentialDeleted {
				u.now.refusal = e.Reason
			}
		}
	}
	return err
}

// Flow finds a flow of a tenant by its id: one that the flow engine reported and
// did not delete, or that has a reservation.
func (v *Views) Flow(ctx context.Context, tenant, id string) (f Flow, found bool, err error) {
	err = v.snapshot(ctx, func(c *conn) error {
		var row flowRow
		err := c.query(flowByID, func(columns []driver.Value) error {
			row = scanFlowRow(columns)
			return nil
		}, tenant, id)
		if err != nil || row.deleted || row == (flowRow{}) {
			return err
		}
		found = true
		if f, err = row.flow(tenant, id); err != nil || !row.broken {
			return err
		}
		return addDeleted(c, &f)
	})
	if err != nil {
		return Flow{}, false, fmt.Errorf("reading a flow: %w", err)
	}
	return f, found, nil
}

const deletedOfFlow = "SELECT thing FROM uses WHERE tenant = ? AND flow = ? AND named = 1 AND refusal = '" + credentialDeleted + "'"

// addDeleted adds the faults of steps whose credential was deleted after they
// could use it.
func addDeleted(c *conn, f *Flow) error {
	deleted := map[string]bool{}
	err := c.query(deletedOfFlow, func(row []driver.Value) error {
		_, id := kindAndID(str(row[0]))
		deleted[id] = true
		return nil
	}, f.Tenant, f.ID)
	if err != nil {
		return err
	}
	reported := map[string]bool{}
	for _, fault := range f.Faults {
		reported[fault.Step] = true
	}
	for _, s := range f.Steps {
		if deleted[s.Credential] && !reported[s.ID] {
			f.Faults = append(f.Faults, FlowFault{Step: s.ID, Component: s.Component, Credential: s.Credential, Reason: credentialDeleted})
		}
	}
	return nil
}

// FlowFilter selects flows. Empty fields select all; set fields combine by AND.
type FlowFilter struct {
	Tenant     string
	Credential string       // those that name it, use it or have it reserved
	Component  string       // those that include it
	Active     bool         // only active ones
	Broken     bool         // only those with a fault
	Limit      int          // 1 to 1000; 0 means 50
	After      string       // last flow id of the previous page, or ""
	Scope      events.Scope // only those that use a credential in it
}

const joinedFlowColumns = "f.name, f.revision, f.active, f.deleted, f.broken, f.binding, f.until, f.updated, f.observed, f.seq, f.steps, f.faults"

// query is the SELECT of a page: a walk over one index in the order of ids. Its
// columns are the id, the binding and until of the use, and those of the flow, which
// are NULL for a use without a flow row.
func (f FlowFilter) query() (sql string, args []driver.Value) {
	resources := resourcesOf(f.Credential, f.Component)
	if len(resources) == 0 {
		index := "flows_live"
		switch {
		case f.Broken:
			index = "flows_broken"
		case f.Active:
			index = "flows_active"
		}
		sql = "SELECT f.id, '', 0, " + joinedFlowColumns + " FROM flows f INDEXED BY " + index + " WHERE f.tenant = ? AND f.deleted = 0 AND f.id > ?"
		args = []driver.Value{f.Tenant, f.After}
	} else {
		sql = "SELECT u.flow, u.binding, u.until, " + joinedFlowColumns + " FROM uses u INDEXED BY uses_thing" +
			" LEFT JOIN flows f INDEXED BY flows_id ON f.tenant = u.tenant AND f.id = u.flow WHERE u.tenant = ? AND u.thing = ? AND u.flow > ?"
		args = []driver.Value{f.Tenant, resources[0], f.After}
		if len(resources) > 1 {
			sql += " AND EXISTS (SELECT 1 FROM uses o WHERE o.tenant = u.tenant AND o.flow = u.flow AND o.thing = ?)"
			args = append(args, resources[1])
		}
	}
	if f.Active {
		sql += " AND f.active = 1"
	}
	if f.Broken {
		sql += " AND f.broken = 1"
	}
	flow := "u.flow"
	if len(resources) == 0 {
		flow = "f.id"
	}
	if f.Scope.Narrow() {
		used := usedIn(f.Scope, "s.")
		sql += " AND EXISTS (SELECT 1 FROM uses s WHERE s.tenant = ? AND s.flow = " + flow + used.sql + ")"
		args = append(append(args, f.Tenant), used.args...)
	}
	return sql + " ORDER BY " + flow + " LIMIT ?", args
}

// Flows returns a page of flows by id; next is "" at the end. With Credential or
// Component it also lists flows that the engine has not reported or
// has deleted, while they still have a use or reservation; an unreported one has
// only its id and reservation. Faults are included.
func (v *Views) Flows(ctx context.Context, filter FlowFilter) (page []Flow, next string, err error) {
	limit := bounded(filter.Limit)
	err = v.snapshot(ctx, func(c *conn) error {
		var broken []int
		sql, args := filter.query()
		err := c.query(sql, func(row []driver.Value) error {
			r := scanFlowRow(row[3:])
			if r == (flowRow{}) {
				r.binding, r.until = str(row[1]), num(row[2])
			}
			f, err := r.flow(filter.Tenant, str(row[0]))
			if r.broken {
				broken = append(broken, len(page))
			}
			page = append(page, f)
			return err
		}, append(args, int64(limit)+1)...)
		for _, i := range broken {
			if err == nil {
				err = addDeleted(c, &page[i])
			}
		}
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("listing flows: %w", err)
	}
	if len(page) > limit {
		page = page[:limit]
		next = page[limit-1].ID
	}
	return page, next, nil
}

const flowName = "SELECT name FROM flows INDEXED BY flows_id WHERE tenant = ? AND id = ?"

// FlowNames returns the names of the known flows among ids, by id.
func (v *Views) FlowNames(ctx context.Context, tenant string, ids []string) (map[string]string, error) {
	names := make(map[string]string, len(ids))
	err := v.read(ctx, func(c *conn) error {
		for _, id := range ids {
			err := c.query(flowName, func(row []driver.Value) error {
				names[id] = str(row[0])
				return nil
			}, tenant, id)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading names of flows: %w", err)
	}
	return names, nil
}
