package projections

import (
	"context"
	"database/sql/driver"
	"fmt"
	"strings"
	"time"

	"github.com/credstream/credstream/events"
)

// A row of uses joins two sources about one flow and one resource that it uses, a credential or
// an OAuth client. named is from the flow's current steps; recorded to seq are from the stream of
// the resource. thing is the name of that stream, "credential.<id>". The two sources converge:
// unsettled rows wait until the resource records or refuses what the steps name, stale ones until
// it releases what they no longer name.
//
//	fact      a step names it, by the resource's stream
//	active    credential: the flow runs, by the credential's stream; OAuth client: the flow runs
//	refusal   why it cannot be used; refused is the flow's revision that was refused last
//
// Events are applied by flow, so the key begins with the flow.
const (
	useTable = `
CREATE TABLE uses (tenant TEXT, flow TEXT, thing TEXT, named INTEGER NOT NULL, recorded INTEGER NOT NULL, fact INTEGER NOT NULL,
	revision INTEGER NOT NULL, active INTEGER NOT NULL, binding TEXT NOT NULL, until INTEGER NOT NULL, seq INTEGER NOT NULL,
	refusal TEXT NOT NULL, refused INTEGER NOT NULL, unsettled INTEGER NOT NULL, stale INTEGER NOT NULL,
	PRIMARY KEY (tenant, flow, thing)) WITHOUT ROWID;
CREATE UNIQUE INDEX uses_thing ON uses (tenant, thing, flow);
`
	useIndexes = `
CREATE INDEX uses_recorded ON uses (tenant, thing, active DESC, flow, binding) WHERE recorded = 1;
CREATE INDEX uses_until ON uses (until) WHERE binding <> '';
CREATE INDEX uses_unsettled ON uses (unsettled, tenant, flow) WHERE unsettled = 1;
CREATE INDEX uses_stale ON uses (stale, tenant, flow) WHERE stale = 1;
`
)

// The kinds of resources that flows use: the categories of their streams.
const (
	kindCredential  = "credential"
	kindOAuthClient = "oauth_client"
)

func resourceName(kind, id string) string { return kind + "." + id }

func kindAndID(resource string) (kind, id string) {
	kind, id, _ = strings.Cut(resource, ".")
	return kind, id
}

func isCredential(resource string) bool { return strings.HasPrefix(resource, kindCredential+".") }

// resourcesOf are the things that a step uses; "" ids are skipped.
func resourcesOf(credential, component string) (things []string) {
	if credential != "" {
		things = append(things, resourceName(kindCredential, credential))
	}
	if component != "" {
		things = append(things, resourceName(kindOAuthClient, component))
	}
	return things
}

// useRow is a row of uses without its key; the zero value is none.
type useRow struct {
	named, recorded, fact bool
	revision              uint64
	active                bool
	binding               string
	until                 int64 // microseconds since 1970
	seq                   uint64
	refusal               string
	refused               uint64
	unsettled, stale      bool
}

const (
	usesOfFlow = "SELECT thing, named, recorded, fact, revision, active, binding, until, seq, refusal, refused, unsettled, stale" +
		" FROM uses WHERE tenant = ? AND flow = ?"
	updateUse = "UPDATE uses SET named = ?, recorded = ?, fact = ?, revision = ?, active = ?, binding = ?, until = ?, seq = ?," +
		" refusal = ?, refused = ?, unsettled = ?, stale = ? WHERE tenant = ? AND flow = ? AND thing = ?"
	deleteUse = "DELETE FROM uses WHERE tenant = ? AND flow = ? AND thing = ?"
)

func scanUseRow(row []driver.Value) useRow {
	return useRow{
		named: num(row[0]) != 0, recorded: num(row[1]) != 0, fact: num(row[2]) != 0, revision: uint64(num(row[3])), active: num(row[4]) != 0,
		binding: str(row[5]), until: num(row[6]), seq: uint64(num(row[7])), refusal: str(row[8]), refused: uint64(num(row[9])),
		unsettled: num(row[10]) != 0, stale: num(row[11]) != 0,
	}
}

func (u useRow) values() []driver.Value {
	return []driver.Value{
		flag(u.named), flag(u.recorded), flag(u.fact), int64(u.revision), flag(u.active), u.binding, u.until, int64(u.seq),
		u.refusal, int64(u.refused), flag(u.unsettled), flag(u.stale),
	}
}

// against derives unsettled and stale from the row and its flow.
func (u useRow) against(f flowRow, resource string) useRow {
	if u == (useRow{}) {
		return u
	}
	settled := u.refused >= f.revision || u.recorded && u.fact && u.revision >= f.revision && u.active == f.active
	if !isCredential(resource) { // only a component with OAuth records its use, once; a later release arrives too late
		settled = u.recorded || u.seq == 0
	}
	u.unsettled = u.named && !settled
	// A use linked before the engine reported the flow has revision 0. It is
	// stale only if the flow was reported since then without it. A
	// refusal also makes the use by an earlier revision stale.
	u.stale = u.recorded && u.fact && f.revision > u.revision &&
		(!u.named && (u.revision > 0 || f.observed > u.seq) || u.named && isCredential(resource) && u.refused >= f.revision)
	return u
}

// flowChange is a flow with everything it uses, before and after a batch.
type flowChange struct {
	tenant, id string
	was, now   flowRow
	uses       map[string]*useChange // by resource
}

type useChange struct{ was, now useRow }

type flowKey struct{ tenant, id string }

// flowOf reads a flow and its uses into the batch, on first touch.
func (b *batch) flowOf(tenant, id string) (*flowChange, error) {
	key := flowKey{tenant, id}
	if f, ok := b.flows[key]; ok {
		return f, nil
	}
	f := &flowChange{tenant: tenant, id: id, uses: map[string]*useChange{}}
	err := b.w.query(flowByID, func(row []driver.Value) error {
		f.was = scanFlowRow(row)
		f.now = f.was
		return nil
	}, tenant, id)
	if err != nil {
		return nil, err
	}
	err = b.w.query(usesOfFlow, func(row []driver.Value) error {
		u := scanUseRow(row[1:])
		f.uses[str(row[0])] = &useChange{was: u, now: u}
		return nil
	}, tenant, id)
	if err != nil {
		return nil, err
	}
	b.flows[key] = f
	return f, nil
}

// use changes a flow's use of a resource, and records the change in the in-use index
// if it is visible there.
func (b *batch) use(f *flowChange, resource string, seq uint64, change func(*useRow)) {
	u := f.uses[resource]
	if u == nil {
		u = &useChange{}
		f.uses[resource] = u
	}
	before := u.now
	change(&u.now)
	if !u.now.named && !u.now.recorded {
		u.now = useRow{}
	}
	b.noteInUse(f.tenant, resource, seq, before, u.now)
}

// recordUse applies an event of the resource's stream; used is the new
// use, the zero value when it was released.
func (b *batch) recordUse(r events.Record, flow string, used useRow) error {
	f, err := b.flowOf(r.Stream.Tenant, flow)
	if err != nil {
		return err
	}
	b.use(f, r.Stream.String(), r.Seq, func(u *useRow) {
		used.named, used.refusal, used.refused = u.named, u.refusal, u.refused
		if used.recorded && !isCredential(r.Stream.String()) {
			used.active = f.now.active
		}
		*u = used
	})
	return nil
}

// credentialUse applies an event of a credential to its uses.
func (b *batch) credentialUse(r events.Record, e events.Credential) error {
	if _, deleted := e.(events.CredentialDeleted); deleted {
		return b.endUses(r)
	}
	use, ok := e.(events.CredentialUse)
	if !ok {
		return nil
	}
	switch e := use.(type) {
	case events.CredentialUsed:
		used := useRow{recorded: true, fact: e.Named, revision: e.Revision, active: e.Active, binding: e.Binding, seq: r.Seq}
		if e.Binding != "" {
			used.until = e.Until.UnixMicro()
		}
		return b.recordUse(r, e.Flow, used)
	case events.CredentialReleased:
		return b.recordUse(r, e.Flow, useRow{})
	}
	return errUnknownEvent
}

func (b *batch) oauthClient(r events.Record, e events.OAuthClient) error {
	switch e := e.(type) {
	case events.OAuthClientUsed:
		return b.recordUse(r, e.Flow, useRow{recorded: true, fact: true, revision: e.Revision, seq: r.Seq})
	case events.OAuthClientReleased:
		return b.recordUse(r, e.Flow, useRow{seq: r.Seq})
	case events.OAuthClientDefined, events.OAuthClientChanged, events.OAuthClientMarkedUnusable, events.OAuthClientRevealed,
		events.OAuthClientExpirySet, events.OAuthClientExpiring,
		events.OAuthClientDeleted, events.SecretAbandoned:
		return b.client(r, e)
	}
	return errUnknownEvent
}

// What the steps name is kept, to tell which flows are broken; the
// deletion counts as a refusal of what was recorded.
const (
	breakFlows = "UPDATE flows SET broken = 1 WHERE tenant = ? AND broken = 0 AND id IN" +
		" (SELECT flow FROM uses INDEXED BY uses_thing WHERE tenant = ? AND thing = ? AND named = 1)"
	forgetUses = "DELETE FROM uses INDEXED BY uses_thing WHERE tenant = ? AND thing = ? AND named = 0"
	refuseUses = "UPDATE uses INDEXED BY uses_thing SET recorded = 0, fact = 0, revision = 0, active = 0, binding = '', until = 0, seq = 0, refusal = '" + credentialDeleted + "'," +
		" refused = CASE WHEN recorded = 1 AND fact = 1 THEN max(refused, revision) ELSE refused END, stale = 0 WHERE tenant = ? AND thing = ?"
	emptyInUse = "UPDATE in_use SET seq = ?, total = 0, active = 0 WHERE tenant = ? AND thing = ? AND total > 0"
)

// endUses ends all uses of a deleted credential with a fixed number of statements.
func (b *batch) endUses(r events.Record) error {
	if err := b.flushFlows(); err != nil {
		return err
	}
	tenant, resource := r.Stream.Tenant, r.Stream.String()
	for _, do := range []struct {
		sql  string
		args []driver.Value
	}{
		{breakFlows, []driver.Value{tenant, tenant, resource}},
		{forgetUses, []driver.Value{tenant, resource}},
		{refuseUses, []driver.Value{tenant, resource}},
		{emptyInUse, []driver.Value{int64(r.Seq), tenant, resource}},
	} {
		if err := b.w.exec(do.sql, do.args...); err != nil {
			return err
		}
	}
	return nil
}

// flushFlows writes the flows, uses and in-use changes of the batch
// and clears them.
func (b *batch) flushFlows() error {
	var flows, uses []driver.Value
	for _, f := range b.flows {
		f.now.broken = f.now.faults != ""
		for resource, u := range f.uses {
			u.now = u.now.against(f.now, resource)
			f.now.broken = f.now.broken || u.now.refusal == credentialDeleted
			switch {
			case u.now == u.was:
			case u.was == useRow{}:
				uses = append(append(uses, f.tenant, f.id, resource), u.now.values()...)
			case u.now == useRow{}:
				if err := b.w.update(deleteUse, f.tenant, f.id, resource); err != nil {
					return err
				}
			default:
				if err := b.w.update(updateUse, append(u.now.values(), f.tenant, f.id, resource)...); err != nil {
					return err
				}
			}
		}
		switch {
		case f.now == f.was:
		case f.was == flowRow{}:
			flows = append(append(flows, f.tenant, f.id), f.now.values()...)
		case f.now.seq == 0:
			if err := b.w.update("DELETE FROM flows WHERE tenant = ? AND id = ?", f.tenant, f.id); err != nil {
				return err
			}
		default:
			if err := b.w.update(updateFlow, append(f.now.values(), f.tenant, f.id)...); err != nil {
				return err
			}
		}
	}
	clear(b.flows)
	if err := b.w.insert("INSERT INTO flows", 14, flows); err != nil {
		return err
	}
	if err := b.w.insert("INSERT INTO uses", 15, uses); err != nil {
		return err
	}
	return b.flushInUse()
}

const countNaming = "SELECT count(*), coalesce(sum(f.active), 0) FROM uses u INDEXED BY uses_thing CROSS JOIN flows f INDEXED BY flows_id" +
	" ON f.tenant = u.tenant AND f.id = u.flow WHERE u.tenant = ? AND u.thing = ? AND u.named = 1"

// CountNaming counts the flows whose steps name a resource, recorded or not, and
// how many of them are active. It reads every such flow.
func (v *Views) CountNaming(ctx context.Context, tenant, kind, id string) (flows, active int, err error) {
	err = v.read(ctx, func(c *conn) error {
		return c.query(countNaming, func(row []driver.Value) error {
			flows, active = int(num(row[0])), int(num(row[1]))
			return nil
		}, tenant, resourceName(kind, id))
	})
	if err != nil {
		return 0, 0, fmt.Errorf("counting flows: %w", err)
	}
	return flows, active, nil
}

// FlowUse names a flow and one resource it uses.
type FlowUse struct {
	Tenant, Kind, ID, Flow, Binding string
	Revision                        uint64
}

const (
	expiredBindings = "SELECT tenant, thing, flow, binding, revision FROM uses INDEXED BY uses_until WHERE binding <> '' AND until < ? ORDER BY until LIMIT ?"
	staleUses       = "SELECT u.tenant, u.thing, u.flow, u.binding, f.revision FROM uses u INDEXED BY uses_stale CROSS JOIN flows f INDEXED BY flows_id" +
		" ON f.tenant = u.tenant AND f.id = u.flow WHERE u.stale = 1 LIMIT ?"
	unsettledFlows = "SELECT of, '', flow, '', revision FROM (SELECT DISTINCT tenant AS of, flow FROM uses INDEXED BY uses_unsettled WHERE unsettled = 1 LIMIT ?)" +
		" CROSS JOIN flows INDEXED BY flows_id ON tenant = of AND id = flow"
)

// ExpiredBindings lists up to limit reservations, as recorded by the credentials,
// that expire before a time, oldest first.
func (v *Views) ExpiredBindings(ctx context.Context, before time.Time, limit int) ([]FlowUse, error) {
	return v.flowUses(ctx, expiredBindings, before.UnixMicro(), int64(limit))
}

// StaleUses lists up to limit recorded uses by flows whose current steps, of a
// later revision, do not name the resource, or name a credential that has refused
// this revision; Revision is the flow's. Reservations alone do not count. A use without a revision, by a
// credential created for a step, counts only if the flow was reported after it.
func (v *Views) StaleUses(ctx context.Context, limit int) ([]FlowUse, error) {
	return v.flowUses(ctx, staleUses, int64(limit))
}

// UnsettledFlows lists up to limit flows, with their revision, that name
// something that has neither recorded nor refused the use by this revision:
// those in progress, and those left by a crash. A
// component counts only if a recorded use was released too late.
func (v *Views) UnsettledFlows(ctx context.Context, limit int) ([]FlowUse, error) {
	return v.flowUses(ctx, unsettledFlows, int64(limit))
}

func (v *Views) flowUses(ctx context.Context, sql string, args ...driver.Value) (uses []FlowUse, err error) {
	err = v.read(ctx, func(c *conn) error {
		return c.query(sql, func(row []driver.Value) error {
			kind, id := kindAndID(str(row[1]))
			uses = append(uses, FlowUse{Tenant: str(row[0]), Kind: kind, ID: id, Flow: str(row[2]), Binding: str(row[3]), Revision: uint64(num(row[4]))})
			return nil
		}, args...)
	})
	if err != nil {
		return nil, fmt.Errorf("listing uses: %w", err)
	}
	return uses, nil
}
