// Package importer reads exports of credstream and of other systems, compares them with what
// a service has, and makes the difference by the commands that everybody has. A repeat
// continues where the last attempt ended: the command ids come from what is imported.
package importer

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/sync/errgroup"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/transfer"
)

// Errors of an import.
var (
	ErrConflict   = fault.New(fault.Precondition, "import_conflict", "Some items differ from those of the service. Nothing was imported. Use --on-conflict skip or --on-conflict replace.")
	ErrIncomplete = fault.New(fault.Unprocessable, "import_incomplete", "Not everything was imported.")
	ErrMap        = fault.New(fault.Invalid, "import_map_invalid", "--map takes OLD=NEW for a credential, or KIND:OLD=NEW with the kind component, throttle_policy, auth_client, credential, flow or role.")
	ErrOnConflict = fault.New(fault.Invalid, "import_on_conflict_invalid", "--on-conflict must be fail, skip or replace.")
)

// atOnce is the number of items that are imported at one time.
const atOnce = 16

// What happens to an item.
const (
	Create   = "create"
	Update   = "update"   // the service has it with other facts, or its secrets are sent again
	Same     = "same"     // the service has it with the same facts
	Conflict = "conflict" // the service has it, and it cannot become what the file says
	Refused  = "refused"  // the source does not have it in a form that can be imported
	Missing  = "missing"  // it cannot be created, since its secrets are not there
)

// Row says what happens, or has happened, to one item.
type Row struct {
	Kind   string   `json:"kind"`
	ID     string   `json:"id"` // in the service
	From   string   `json:"from,omitzero"`
	Name   string   `json:"name,omitzero"`
	Action string   `json:"action"`
	Why    string   `json:"why,omitzero"`     // what differs, or why it was left behind
	Code   string   `json:"code,omitzero"`    // of the refusal
	Left   bool     `json:"left,omitzero"`    // it was left behind
	Missed []string `json:"missing,omitzero"` // secrets that have to be entered by hand
}

// Importer imports into one tenant of a service.
type Importer struct {
	API        *client.API
	Secret     string // the API key: it keys the command ids, so that they tell nothing of what they are made from
	OnConflict string // skip, replace or fail
	NewIDs     bool   // give credentials and auth clients other ids
	Map        map[string]string
	Origin     string // names the source, so that new ids differ between sources
	Progress   func(done, total int)
}

// ParseMap reads the arguments of --map. It returns ErrMap.
func ParseMap(args []string) (map[string]string, error) {
	m := map[string]string{}
	for _, arg := range args {
		at := strings.LastIndex(strings.TrimRight(arg, "="), "=") // ids may end with =
		if at < 0 {
			return nil, ErrMap
		}
		old, now := arg[:at], arg[at+1:]
		kind, id, named := strings.Cut(old, ":")
		if !named || !slices.Contains(transfer.Kinds(), kind) || kind == transfer.KindOAuthClient {
			kind, id = transfer.KindCredential, old
		}
		if _, twice := m[kind+":"+id]; twice || events.CheckID(id) != nil || events.CheckID(now) != nil {
			return nil, ErrMap
		}
		m[kind+":"+id] = now
	}
	return m, nil
}

// Summary counts what happened.
type Summary struct {
	Created int `json:"created"`
	Updated int `json:"updated"`
	Same    int `json:"same"`
	Left    int `json:"left"`
}

// Plan compares the items of a source with the service, and changes nothing.
func (im *Importer) Plan(ctx context.Context, src Source, report func(Row) error) (Summary, error) {
	return im.run(ctx, src, false, report)
}

// Apply imports the items of a source. It returns ErrConflict, with nothing done, or
// ErrIncomplete.
func (im *Importer) Apply(ctx context.Context, src Source, report func(Row) error) (sum Summary, err error) {
	if im.OnConflict == "fail" {
		conflicts := 0
		_, err := im.run(ctx, src, false, func(r Row) error {
			if r.Action != Update && r.Action != Conflict {
				return nil
			}
			conflicts++
			return report(r)
		})
		if err != nil {
			return sum, err
		}
		if conflicts > 0 {
			return sum, ErrConflict.Withf("%d items differ from those of the service. Nothing was imported. Use --on-conflict skip or --on-conflict replace.", conflicts)
		}
	}
	sum, err = im.run(ctx, src, true, report)
	if err == nil && sum.Left > 0 {
		err = ErrIncomplete.Withf("Left behind: %d. The rest was imported. Correct what the list says of them and import again: an item is not imported twice.", sum.Left)
	}
	return sum, err
}

func (im *Importer) run(ctx context.Context, src Source, apply bool, report func(Row) error) (sum Summary, err error) {
	var chunk []Item
	done := 0
	flush := func() error {
		rows := make([]Row, len(chunk))
		group, inside := errgroup.WithContext(ctx)
		for i, item := range chunk {
			group.Go(func() error {
				return patiently(inside, func() (err error) {
					rows[i], err = im.one(inside, item, apply)
					return err
				})
			})
		}
		err := group.Wait()
		for _, row := range rows {
			if row.Action == "" { // its outcome is not known
				continue
			}
			switch {
			case row.Left:
				sum.Left++
			case row.Action == Create:
				sum.Created++
			case row.Action == Update:
				sum.Updated++
			default:
				sum.Same++
			}
			if err := report(row); err != nil {
				return err
			}
		}
		done += len(chunk)
		chunk = chunk[:0]
		if im.Progress != nil {
			im.Progress(done, src.Total())
		}
		return err
	}
	for item, err := range src.Items(ctx) {
		if err == nil && len(chunk) > 0 && (len(chunk) == atOnce || chunk[0].Kind != item.Kind) {
			err = flush() // what an item names is there before it
		}
		if err != nil {
			return sum, errors.Join(err)
		}
		chunk = append(chunk, item)
	}
	return sum, flush()
}

// change is how an item gets from what the service has to what the file says.
type change struct {
	action string
	why    string
	// do makes the change, and answers whether the service has it now that had it not before.
	// salt tells the commands of one attempt from those of another one.
	do func(ctx context.Context, salt string) (done client.Done, changed bool, err error)
}

// one compares one item with the service and, with apply, imports it. An error is one that
// ends the import; what an item is refused for is in its row.
func (im *Importer) one(ctx context.Context, item Item, apply bool) (Row, error) {
	row := Row{Kind: item.Kind, Missed: item.Missing}
	if row.ID = im.target(item.Kind, item.ID); row.ID != item.ID {
		row.From = item.ID
	}
	refuse := func(action string, err error) (Row, error) {
		f, is := errors.AsType[*fault.Error](err)
		if !is || f.Kind == fault.Unauthenticated || f.Kind == fault.Unavailable || f.Kind == fault.Internal || f.Kind == fault.Throttled ||
			f.Code == tenantUnknown || f.Code == lacksPermission && item.Kind != transfer.KindRole || ctx.Err() != nil {
			return Row{}, err
		}
		row.Action, row.Why, row.Code, row.Left = action, f.Msg, f.Code, true
		return row, nil
	}
	if item.Err != nil {
		return refuse(Refused, item.Err)
	}
	c, name, err := im.compare(ctx, item, row.ID, 0)
	row.Name = name
	if err != nil {
		return refuse(Conflict, err)
	}
	row.Action, row.Why = c.action, c.why
	bare := item.Kind == transfer.KindComponent && len(item.Missing) > 0 && c.action != Same // its variables are in no export
	switch {
	case c.action == Conflict, c.action == Missing:
		row.Left = true
		return row, nil
	case c.action == Update && im.OnConflict == "skip":
		row.Left, row.Why = true, "It differs: "+c.why+"."
		return row, nil
	case !apply, c.do == nil, c.action == Same:
		row.Left = bare
		return row, nil
	}
	done, changed, err := c.do(ctx, "")
	if err == nil && c.action == Create { // unless the answer was that of an earlier import
		var now change
		if now, _, err = im.compare(ctx, item, row.ID, done.Seq); err == nil && now.action == Create {
			_, _, err = now.do(ctx, fmt.Sprint("after ", done.Seq))
		}
	}
	if err != nil {
		return refuse(c.action, err)
	}
	if !changed {
		row.Action, row.Why = Same, ""
	}
	if bare {
		row.Left, row.Why = true, "It was imported without its variables. Set them: credstream component set-env "+row.ID
	}
	return row, nil
}

// compare compares an item with what the service has, as of the log sequence seq or later.
func (im *Importer) compare(ctx context.Context, item Item, id string, seq uint64) (c change, name string, err error) {
	switch facts := item.Facts.(type) {
	case transfer.Component:
		c, err = im.component(ctx, id, facts, seq)
	case transfer.ThrottlePolicy:
		c, err = im.policy(ctx, id, facts, seq)
	case transfer.AuthClient:
		name = facts.Name
		c, err = im.authClient(ctx, item, id, facts, seq)
	case transfer.OAuthClient:
		c, err = im.oauthClient(ctx, item, id, facts, seq)
	case transfer.Credential:
		name = facts.Name
		c, err = im.credential(ctx, item, id, facts, seq)
	case transfer.Flow:
		name = facts.Name
		c, err = im.flow(ctx, id, facts, seq)
	case transfer.Role:
		name = facts.Title
		c, err = im.role(ctx, id, facts, seq)
	}
	return c, name, err
}

// target is the id of an item in the service.
func (im *Importer) target(kind, id string) string {
	if kind == transfer.KindOAuthClient { // named by its component
		kind = transfer.KindComponent
	}
	if to, mapped := im.Map[kind+":"+id]; mapped {
		return to
	}
	if im.NewIDs && (kind == transfer.KindCredential || kind == transfer.KindAuthClient) {
		sum := sha256.Sum256(events.LengthPrefixed("credstream/import-id/1", im.Origin, kind, id))
		h := hex.EncodeToString(sum[:16])
		return h[:8] + "-" + h[8:12] + "-8" + h[13:16] + "-8" + h[17:20] + "-" + h[20:32]
	}
	return id
}

// commandID is the id of the command that does this to an item, in this and every later
// attempt. It is a MAC under the API key, since it covers the secrets.
func (im *Importer) commandID(verb, id, salt string, facts any, keys client.Keys) client.CommandOption {
	raw, err := json.Marshal(facts, json.Deterministic(true))
	if err != nil { // it was decoded from JSON
		raw = nil
	}
	mac := hmac.New(sha256.New, []byte(im.Secret))
	_, _ = mac.Write(events.LengthPrefixed("credstream/import/1", im.Origin, verb, id, salt, string(raw)))
	_, _ = mac.Write(keys.Reveal())
	return client.CommandID("import-" + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:24]))
}

// The codes of refusals that every other item would meet too.
const (
	tenantUnknown   = "tenant_not_found"
	lacksPermission = "permission_denied"
)

func notFound(err error) bool {
	f, is := errors.AsType[*fault.Error](err)
	return is && f.Kind == fault.NotFound && f.Code != tenantUnknown
}

// patiently repeats what is refused for coming too soon, until ctx ends.
func patiently(ctx context.Context, do func() error) error {
	for {
		err := do()
		f, is := errors.AsType[*fault.Error](err)
		if !is || f.Kind != fault.Throttled {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(f.RetryAfter + 50*time.Millisecond):
		}
	}
}

// differing lists the names whose two values differ.
func differing(pairs ...[3]string) string {
	var names []string
	for _, p := range pairs {
		if p[1] != p[2] {
			names = append(names, p[0])
		}
	}
	return strings.Join(names, ", ")
}

func sameJSON(a, b jsontext.Value) bool {
	a, b = a.Clone(), b.Clone()
	return a.Canonicalize() == nil && b.Canonicalize() == nil && string(a) == string(b)
}

// words is a kind for people.
func words(kind string) string { return strings.ReplaceAll(kind, "_", " ") }

func list(names []string) string {
	names = slices.Clone(names)
	slices.Sort(names)
	return strings.Join(names, ",")
}
