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
	"sync"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"golang.org/x/text/collate"
	"golang.org/x/text/language"
	"golang.org/x/text/unicode/norm"

	"github.com/credstream/credstream/events"
)

// The table's key is the sequence of the commit that created the credential.
// Sorting by creation means sorting by it, so every index ends in it for
// free. name and description are collated (see collated). doc holds the whole credential, so that a
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
CREATE INDEX credentials_policy_id ON credentials (tenant, policy, id);
CREATE INDEX credentials_description ON credentials (tenant, description, id);
CREATE INDEX credentials_workspace_created ON credentials (tenant, workspace, status) WHERE workspace <> '';
CREATE INDEX credentials_workspace_name ON credentials (tenant, workspace, status, name) WHERE workspace <> '';
CREATE INDEX credentials_workspace_id ON credentials (tenant, workspace, id) WHERE workspace <> '';
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
	KeysExpire     time.Time           `json:"ke,omitzero"` // as declared; zero: never
	TokenExpires   time.Time           `json:"te,omitzero"` // of a token that cannot be renewed; zero otherwise
	RefreshExpires time.Time           `json:"re,omitzero"` // of a refresh token, if renewals do not extend it; zero otherwise
	Warned         time.Time           `json:"wx,omitzero"` // expiry of the last early warning
	WarnedDays     int                 `json:"wd,omitzero"` // its threshold
	HostKey        string              `json:"hk,omitzero"` // of an SSH server, that dry requests accept; "" for none
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
	case events.CredentialExpirySet:
		c.KeysExpire = e.Expires
	case events.CredentialHostKeySet:
		c.HostKey = e.HostKey
	case events.CredentialExpiring:
		c.Warned, c.WarnedDays = e.Expires, e.Days
		return c, nil
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
		c.Status, c.TokenExpires = events.ReauthorizationRequired, time.Time{}
		return true
	case events.CredentialRecovered:
		c.Status = e.Status
		return true
	case events.CredentialTokensRevoked:
		c.SecretID = "" // it is erased
	case events.CredentialAuthorized:
		if !e.Renewable {
			c.TokenExpires = e.Expires
		}
	case events.CredentialRefreshTokenExpirySet:
		if c.RefreshExpires = (time.Time{}); e.Renewal == events.RefreshFixed {
			c.RefreshExpires = e.Expires
		}
	case events.CredentialRefreshStarted, events.CredentialRefreshed, events.CredentialRefreshFailed,
		events.CredentialRevokedAtProvider:
	}
	return false
}

func (c *Credential) setKeys(k events.KeysVersion, at time.Time) {
	c.Version, c.Fields, c.Revision, c.Hosts, c.SecretID = k.Version, k.Fields, k.Revision, k.Hosts, k.SecretID
	c.VerifiedAt, c.KeysExpire, c.TokenExpires, c.RefreshExpires = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	c.HostKey = ""
	c.verify(k.Verification, at)
}

func (c *Credential) verify(v events.Verification, at time.Time) {
	c.Status, c.Verification = v.Status, v
	if v.Status != events.Unverified {
		c.VerifiedAt = at
	}
}

// fold normalizes a name so that names that differ only in case, or in how an accent is encoded, are
// equal: each rune in lower case, by Unicode's simple mapping, in the normalization form C. Lists search
// by it.
func fold(name string) string {
	lower := norm.NFC.String(strings.ToLower(norm.NFC.String(name)))
	return strings.ReplaceAll(lower, "\x00", "\uFFFD") // SQLite's functions end at NUL
}

// collators have a buffer each, so they are not shared.
var collators = sync.Pool{New: func() any { return collate.New(language.Und, collate.IgnoreCase) }}

// maxCollated is the number of bytes of a folded text that determine its place in a list; the rest is
// compared as text.
const maxCollated = 128

// keyDigits are those of the key in collated. No folded text holds one, so that a search for a part of a
// text does not find the key.
const keyDigits = "ABCDEFGHIJKLMNOP"

// collated is what the columns of names and descriptions hold: the key of a folded text in the root
// collation of Unicode (UTS #10), by which lists sort, and the text itself.
func collated(folded string) string {
	c, _ := collators.Get().(*collate.Collator)
	defer collators.Put(c)
	var buffer collate.Buffer
	key := c.KeyFromString(&buffer, strings.ToValidUTF8(folded[:min(len(folded), maxCollated)], ""))
	b := make([]byte, 0, 2*len(key)+1+len(folded))
	for _, k := range key {
		b = append(b, keyDigits[k>>4], keyDigits[k&0xf])
	}
	return string(append(append(b, collatedMark...), folded...))
}

// collatedMark separates the key from the text. It sorts before the digits, so that a text comes before
// those that begin with it.
const collatedMark = "\x01"

// uncollated returns the folded text of a column.
func uncollated(column string) string {
	_, folded, _ := strings.Cut(column, collatedMark)
	return folded
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
		if err := b.credentialExpiry(old, now); err != nil {
			return err
		}
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
		seq, name := int64(now.CreatedSeq), collated(fold(now.Name))
		if old == nil {
			rows = append(rows, seq, now.Tenant, now.ID, now.kind(), string(now.Status), name, now.Workspace, now.ThrottlePolicy, collated(fold(now.Description)), string(doc))
			if err := b.w.addName(seq, now.Tenant, uncollated(name)); err != nil {
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
	renamed := fold(old.Name) != uncollated(name)
	if description := fold(now.Description); fold(old.Description) != description {
		if err := b.w.update("UPDATE credentials SET description = ? WHERE seq = ?", collated(description), seq); err != nil {
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
	return errors.Join(b.w.dropName(seq), b.w.addName(seq, now.Tenant, uncollated(name)))
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

// Credential finds a credential of a tenant by its id. The caller must not change its slices.
func (v *Views) Credential(ctx context.Context, tenant, id string) (Credential, bool, error) {
	found, mark := v.recent.get(credentialKey{tenant, id})
	if found != nil {
		return *found, true, nil
	}
	err := v.read(ctx, func(c *conn) error {
		return c.query(credentialByID, func(row []driver.Value) (err error) {
			found, err = c.recent.scan(row[0])
			return err
		}, tenant, id)
	})
	if err != nil {
		return Credential{}, false, fmt.Errorf("reading a credential: %w", err)
	}
	if found == nil {
		return Credential{}, false, nil
	}
	v.recent.keep(found, mark)
	return *found, true, nil
}
