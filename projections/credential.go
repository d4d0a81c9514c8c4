package projections

import (
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/credstream/credstream/events"
)

// The table's key is the sequence of the commit that created the credential.
// Sorting by creation means sorting by it, so every index ends in it for
// free. name is folded (see fold). doc holds the whole credential, so that a
// point read touches one column. The same transaction maintains counts, so that
// no query counts rows; the empty workspace is the total of all.
//
// Every supported filter and sort has an index. A list of all statuses merges the
// lists of the few statuses, which halves the number of
// indexes. Those by workspace hold only the
// credentials that have one; a component within a workspace is searched
// among them. The same holds for those by throttle policy, whatever else is asked of them.
//
// names finds substrings of at least three letters: the trigrams of every
// folded name, prefixed with a tag of its tenant, so that other tenants' names do not slow
// the search. It finds candidates; the row decides.
const (
	credentialTable = `
CREATE TABLE credentials (seq INTEGER PRIMARY KEY, tenant TEXT NOT NULL, id TEXT NOT NULL, component TEXT NOT NULL, status TEXT NOT NULL,
	name TEXT NOT NULL, workspace TEXT NOT NULL, policy TEXT NOT NULL, description TEXT NOT NULL, doc TEXT NOT NULL);
CREATE UNIQUE INDEX credentials_id ON credentials (tenant, id);
CREATE TABLE counts (tenant TEXT, workspace TEXT, component TEXT, status TEXT, n INTEGER NOT NULL,
	PRIMARY KEY (tenant, workspace, component, status)) WITHOUT ROWID;
CREATE VIRTUAL TABLE names USING fts5(text, content='', contentless_delete=1, detail=none, tokenize='trigram case_sensitive 1');
`
	credentialIndexes = `
CREATE INDEX credentials_created ON credentials (tenant, status);
CREATE INDEX credentials_component_created ON credentials (tenant, component, status);
CREATE INDEX credentials_name ON credentials (tenant, status, name);
CREATE INDEX credentials_component_name ON credentials (tenant, component, status, name);
CREATE INDEX credentials_component_id ON credentials (tenant, component, id, description);
CREATE INDEX credentials_description ON credentials (tenant, description, id);
CREATE INDEX credentials_workspace_created ON credentials (tenant, workspace, status) WHERE workspace <> '';
CREATE INDEX credentials_workspace_name ON credentials (tenant, workspace, status, name) WHERE workspace <> '';
CREATE INDEX credentials_policy_created ON credentials (tenant, policy, status) WHERE policy <> '';
CREATE INDEX credentials_policy_name ON credentials (tenant, policy, status, name) WHERE policy <> '';
`
)

// statuses are all statuses of a credential; lists merge them. Read-only.
var statuses = events.Statuses()

// Credential is the current state of one credential, without its secrets. The tags are the
// stored form of a row.
type Credential struct {
	ID             string              `json:"id"`
	Tenant         string              `json:"t"`
	Component      string              `json:"c"` // "" of a free type
	Name           string              `json:"n"`
	Workspace      string              `json:"w"`   // id given by the caller, or ""
	VPNAgent       string              `json:"vpn"` // id given by the caller, or ""
	ThrottlePolicy string              `json:"tp"`  // id of its throttle policy, or ""
	Status         events.Status       `json:"st"`
	Version        int                 `json:"v"`   // of the current keys: 1, 2, ...
	Fields         []string            `json:"f"`   // names of the fields that have a value, sorted
	Revision       int                 `json:"r"`   // of the component's descriptor when the keys were written
	Hosts          []string            `json:"h"`   // where the keys may be sent: patterns
	SecretID       string              `json:"sid"` // where the vault keeps the keys; not for callers
	Verification   events.Verification `json:"ve"`
	VerifiedAt     time.Time           `json:"va"` // when Verification was made; zero if never
	CreatedAt      time.Time           `json:"ca"`
	UpdatedAt      time.Time           `json:"ua"` // of the last change that a caller can see
	CreatedSeq     uint64              `json:"cs"`
	Seq            uint64              `json:"s"` // its last commit: the revision of its stream
	CreatedBy      events.Actor        `json:"cb"`
	Type           string              `json:"ty,omitzero"` // free; "" where there is a component
	Shape          string              `json:"sh,omitzero"` // of nested keys of a free type, see events.CredentialTyped
	Description    string              `json:"d,omitzero"`  // for people, or ""
}

func scanCredential(v driver.Value) (*Credential, error) {
	var raw []byte
	switch x := v.(type) {
	case string:
		raw = []byte(x)
	case []byte:
		raw = x
	}
	c := &Credential{}
	if err := jsonv2.Unmarshal(raw, c); err != nil {
		return nil, fmt.Errorf("reading a credential's row: %w", err)
	}
	return c, nil
}

// evolve is the credential after one more event; nil means that there is none.
func (c *Credential) evolve(r events.Record, e events.Credential) (*Credential, error) {
	if created, ok := e.(events.CredentialCreated); ok {
		if c != nil {
			return nil, errors.New("the credential exists already")
		}
		n := &Credential{
			ID: r.Stream.ID, Tenant: r.Stream.Tenant, Component: created.Component, Name: created.Name, Workspace: created.Workspace,
			CreatedAt: r.Meta.Time, UpdatedAt: r.Meta.Time, CreatedSeq: r.Seq, Seq: r.Seq, CreatedBy: r.Meta.Actor,
		}
		n.setKeys(created.Keys, r.Meta.Time)
		return n, nil
	}
	if c == nil {
		_, secret := e.(events.SecretAbandoned)
		_, use := e.(events.CredentialThrottlePolicyUseAbandoned)
		if secret || use { // an attempt before the credential was created, or after its deletion
			return nil, nil //nolint:nilnil // no credential, as expected
		}
		return nil, errNoRow
	}
	c.Seq = r.Seq
	switch e := e.(type) {
	case events.CredentialRenamed:
		c.Name = e.Name
	case events.CredentialVPNAgentSet:
		c.VPNAgent = e.VPNAgent
	case events.CredentialThrottlePolicyAssigned:
		c.ThrottlePolicy = e.Policy
	case events.CredentialTyped:
		c.Type, c.Shape = e.Type, e.Shape
	case events.CredentialDescriptionSet:
		c.Description = e.Description
	case events.CredentialKeysReplaced:
		c.setKeys(e.Keys, r.Meta.Time)
	case events.CredentialReverted:
		c.setKeys(e.Keys, r.Meta.Time)
	case events.CredentialVerified:
		if status := c.Status; e.Version == c.Version {
			c.verify(e.Verification, r.Meta.Time)
			if status == events.ReauthorizationRequired { // takes precedence
				c.Status = status
			}
		}
	case events.CredentialToken:
		if !c.evolveTokens(e) {
			return c, nil
		}
	case events.CredentialDeleted:
		return nil, nil //nolint:nilnil // as above
	case events.CredentialUse, events.CredentialRevealed, events.SecretAbandoned, events.CredentialThrottlePolicyUseAbandoned: // not shown on the credential
		return c, nil
	case events.CredentialCreated: // above
	default:
		return nil, errUnknownEvent
	}
	c.UpdatedAt = r.Meta.Time
	return c, nil
}

// evolveTokens reports whether the change is visible on the credential.
func (c *Credential) evolveTokens(e events.CredentialToken) bool {
	switch e := e.(type) {
	case events.CredentialReauthorizationRequired:
		c.Status = events.ReauthorizationRequired
		return true
	case events.CredentialRecovered:
		c.Status = e.Status
		return true
	case events.CredentialTokensRevoked:
		c.SecretID = "" // it is erased
	case events.CredentialAuthorized, events.CredentialRefreshStarted, events.CredentialRefreshed, events.CredentialRefreshFailed,
		events.CredentialRevokedAtProvider:
	}
	return false
}

func (c *Credential) setKeys(k events.KeysVersion, at time.Time) {
	c.Version, c.Fields, c.Revision, c.Hosts, c.SecretID = k.Version, k.Fields, k.Revision, k.Hosts, k.SecretID
	c.VerifiedAt = time.Time{}
	c.verify(k.Verification, at)
}

func (c *Credential) verify(v events.Verification, at time.Time) {
	c.Status, c.Verification = v.Status, v
	if v.Status != events.Unverified {
		c.VerifiedAt = at
	}
}

// fold normalizes a name so that names that differ only in case are equal: each
// rune in lower case, by Unicode's simple mapping. Lists sort and search by it.
func fold(name string) string {
	return strings.ReplaceAll(strings.ToLower(name), "\x00", "\uFFFD") // SQLite's functions end at NUL
}

// tag prefixes a tenant's names in the trigram index: three runes from a
// private-use plane, so one trigram. Tenants may share a tag; rows tell them apart.
func tag(tenant string) string {
	sum := sha256.Sum256([]byte(tenant))
	bits := binary.BigEndian.Uint64(sum[:])
	return string([]rune{0xF0000 + rune(bits&0xfff), 0xF0000 + rune(bits>>12&0xfff), 0xF0000 + rune(bits>>24&0xfff)})
}

const (
	credentialByID = "SELECT doc FROM credentials INDEXED BY credentials_id WHERE tenant = ? AND id = ?"
	// One row per statement: a multi-row statement opens a savepoint, at which FTS5
	// flushes everything it has buffered.
	insertName = "INSERT INTO names (rowid, text) VALUES (?, ?)"
)

type credentialKey struct{ tenant, id string }

// change is a credential before and after a batch; nil means that there is none.
type change struct{ old, now *Credential }

type countKey struct {
	tenant, workspace, component string
	status                       events.Status
}

// freeMark ends the key of a free type, so that a component of the same name has another
// one. No name holds it.
const freeMark = "\x01"

// kind is what the column component holds: the component, or the key of the free type.
func (c *Credential) kind() string {
	if c.Component == "" {
		return c.Type + freeMark
	}
	return c.Component
}

// counted adds n to each count that includes c.
func (c *Credential) counted(counts map[countKey]int64, n int64) {
	if c == nil {
		return
	}
	counts[countKey{c.Tenant, "", c.kind(), c.Status}] += n
	if c.Workspace != "" {
		counts[countKey{c.Tenant, c.Workspace, c.kind(), c.Status}] += n
	}
}

func (b *batch) credential(r events.Record, e events.Credential) error {
	if only, err := b.token(r, e); only || err != nil {
		return err
	}
	key := credentialKey{r.Stream.Tenant, r.Stream.ID}
	ch, ok := b.credentials[key]
	if !ok {
		ch = &change{}
		if _, created := e.(events.CredentialCreated); !created { // the unique index ensures that a created one is new
			if err := b.load(ch, key); err != nil {
				return err
			}
		}
		b.credentials[key] = ch
		b.touched = append(b.touched, ch)
	}
	now, err := ch.now.evolve(r, e)
	if err != nil {
		return err
	}
	if now != nil && !slices.Contains(statuses, now.Status) {
		return fmt.Errorf("the status %q is not known", now.Status)
	}
	ch.now = now
	return b.credentialUse(r, e)
}

func (b *batch) load(ch *change, key credentialKey) error {
	return b.w.query(credentialByID, func(row []driver.Value) (err error) {
		if ch.old, err = scanCredential(row[0]); err != nil {
			return err
		}
		now := *ch.old
		ch.now = &now
		return nil
	}, key.tenant, key.id)
}

func (b *batch) flushCredentials() error {
	var rows []driver.Value
	counts := map[countKey]int64{}
	for _, ch := range b.touched {
		old, now := ch.old, ch.now
		old.counted(counts, -1)
		now.counted(counts, 1)
		if old != nil && (now == nil || now.CreatedSeq != old.CreatedSeq) {
			seq := int64(old.CreatedSeq)
			if err := errors.Join(b.w.update("DELETE FROM credentials WHERE seq = ?", seq), b.w.dropName(seq)); err != nil {
				return err
			}
			old = nil
		}
		if now == nil {
			continue
		}
		doc, err := jsonv2.Marshal(now)
		if err != nil {
			return err
		}
		seq, name := int64(now.CreatedSeq), fold(now.Name)
		if old == nil {
			rows = append(rows, seq, now.Tenant, now.ID, now.kind(), string(now.Status), name, now.Workspace, now.ThrottlePolicy, fold(now.Description), string(doc))
			if err := b.w.addName(seq, now.Tenant, name); err != nil {
				return err
			}
			continue
		}
		if err := b.update(old, now, name, string(doc)); err != nil {
			return err
		}
	}
	if err := b.w.insert("INSERT INTO credentials", 10, rows); err != nil {
		return err
	}
	return b.flushCounts(counts)
}

// update writes a credential that has a row. It leaves out unchanged columns,
// so that their indexes are not touched.
func (b *batch) update(old, now *Credential, name, doc string) error {
	seq := int64(now.CreatedSeq)
	renamed := fold(old.Name) != name
	if description := fold(now.Description); fold(old.Description) != description {
		if err := b.w.update("UPDATE credentials SET description = ? WHERE seq = ?", description, seq); err != nil {
			return err
		}
	}
	if !renamed && old.Status == now.Status && old.ThrottlePolicy == now.ThrottlePolicy {
		return b.w.update("UPDATE credentials SET doc = ? WHERE seq = ?", doc, seq)
	}
	if err := b.w.update("UPDATE credentials SET status = ?, name = ?, policy = ?, doc = ? WHERE seq = ?", string(now.Status), name, now.ThrottlePolicy, doc, seq); err != nil {
		return err
	}
	if !renamed {
		return nil
	}
	return errors.Join(b.w.dropName(seq), b.w.addName(seq, now.Tenant, name))
}

func (b *batch) flushCounts(counts map[countKey]int64) error {
	for k, n := range counts {
		if n == 0 {
			continue
		}
		err := b.w.exec("INSERT INTO counts VALUES (?,?,?,?,?) ON CONFLICT DO UPDATE SET n = n + excluded.n",
			k.tenant, k.workspace, k.component, string(k.status), n)
		if err != nil {
			return err
		}
		if n < 0 {
			err := b.w.exec("DELETE FROM counts WHERE tenant = ? AND workspace = ? AND component = ? AND status = ? AND n = 0",
				k.tenant, k.workspace, k.component, string(k.status))
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// Credential finds a credential of a tenant by its id.
func (v *Views) Credential(ctx context.Context, tenant, id string) (Credential, bool, error) {
	var found *Credential
	err := v.read(ctx, func(c *conn) error {
		return c.query(credentialByID, func(row []driver.Value) (err error) {
			found, err = scanCredential(row[0])
			return err
		}, tenant, id)
	})
	if err != nil {
		return Credential{}, false, fmt.Errorf("reading a credential: %w", err)
	}
	if found == nil {
		return Credential{}, false, nil
	}
	return *found, true, nil
}
