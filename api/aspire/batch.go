package aspire

import (
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/service/throttle"
)

// Limits of one call of the service.
const (
	chunkItems = 500
	chunkBytes = 512 << 10
)

// maxItems is the maximum number of items of a batch.
const maxItems = 100_000

var errTooMany = credential.ErrTooMany.Withf("One call takes up to %d items.", maxItems)

// mediaLines is the media type of a response with progress: one JSON document per line, with
// the result in the last line.
const mediaLines = "application/x-ndjson"

// batch is a request for many credentials or policies in progress.
type batch struct {
	x       *exchange
	of      string // "credential" or "policy"
	deletes bool
	total   int // -1: unknown
	done    int // successful items
	items   []any
	refused []refusal
	lines   bool   // write progress lines
	seq     uint64 // log sequence of the last change
}

func (x *exchange) batch(total int, of string, deletes bool) *batch {
	b := &batch{x: x, total: total, items: []any{}, of: of, deletes: deletes}
	for entry := range strings.SplitSeq(strings.Join(x.R.Header["Accept"], ","), ",") {
		media, _, err := mime.ParseMediaType(strings.TrimSpace(entry))
		b.lines = b.lines || err == nil && media == mediaLines
	}
	return b
}

// progress writes a progress line.
func (b *batch) progress() {
	b.x.extend()
	if !b.lines {
		return
	}
	count := map[string]int{"done": b.done, "failed": len(b.refused)}
	if b.total >= 0 {
		count["total"] = b.total
	}
	b.line(map[string]any{"progress": count})
}

func (b *batch) line(document any) {
	x := b.x
	if x.Status == 0 {
		x.W.Header()["Content-Type"] = []string{mediaLines}
		x.End(http.StatusOK)
	}
	if text, err := json.Marshal(document, json.Deterministic(true)); err == nil {
		_, _ = x.W.Write(append(text, '\n'))
		_ = http.NewResponseController(x.W).Flush()
	}
}

// refuse adds a rejected item.
func (b *batch) refuse(id string, err *credential.ManyError) {
	details, _ := json.Marshal(err.Details)
	if err.Details == nil {
		details = nil
	}
	status := err.Status
	if err.Code != fault.ErrConflict.Code {
		status = statusOf(status)
	}
	b.refused = append(b.refused, refusal{ID: id, Status: status, Code: err.Code, Message: err.Detail, Details: details})
}

func (b *batch) refuseAs(id string, err error) {
	f := fault.Of(err)
	b.refuse(id, &credential.ManyError{Code: f.Code, Detail: f.Msg, Status: f.Kind.Status(), Details: f.Details})
}

// several executes one command per item, in calls of limited size. Each command id is derived
// from the caller's, so a repeat processes only the remaining items.
func (x *exchange) several(route, member string, items []input, many bool, success int) {
	if len(items) > maxItems {
		x.Fail(errTooMany)
		return
	}
	b := x.batch(len(items), "credential", route == "credential.delete-many")
	given := x.call.CommandID
	seen := map[string]bool{}
	for n := 0; len(items) > 0; n++ {
		var bodies []any
		var chunk []input
		size := 0
		for len(items) > 0 && len(chunk) < chunkItems && size < chunkBytes {
			in := items[0]
			items = items[1:]
			if in.err == nil && in.id != "" && seen[in.id] { // also if it was in an earlier chunk
				in.err = credential.ErrItemTwice
			}
			seen[in.id] = true
			body, err := any(in.id), in.err
			if err == nil && in.members != nil {
				body, err = in.command()
			}
			text, written := body.(jsontext.Value)
			if err == nil && written && len(text) > chunkBytes/2 {
				err = service.ErrBodyTooLarge
			}
			if err != nil {
				b.refuseAs(in.id, err)
				continue
			}
			size += 256 + len(text)
			bodies, chunk = append(bodies, body), append(chunk, in)
		}
		if len(chunk) == 0 && len(items) > 0 {
			continue
		}
		if given != "" && route == "credential.create-many" { // an update or delete is idempotent by its credential's id
			x.call.CommandID = given + "/" + strconv.Itoa(n)
		}
		done, err := ask[credential.Many](x, route, map[string]any{member: append([]any{}, bodies...)})
		if err != nil && n == 0 {
			x.Fail(err) // no item was processed
			return
		}
		for i, in := range chunk {
			switch {
			case err != nil:
				b.refuseAs(in.id, err)
			case done.Results[i].Error != nil:
				b.refuse(in.id, done.Results[i].Error)
			default:
				b.add(route, in, done.Results[i].ID)
			}
		}
		b.seq = max(b.seq, done.Seq)
		b.progress()
	}
	b.end(many, success)
}

// add adds a successful item.
func (b *batch) add(route string, in input, id string) {
	b.done++
	switch route {
	case "credential.create-many":
		b.items = append(b.items, in.created(id))
	case "credential.update-many":
		b.items = append(b.items, map[string]any{"updated": true, "id": id})
	}
}

// filtered executes a command for each credential that matches a filter.
func (x *exchange) filtered(route string, f filter, body map[string]any) {
	b := x.batch(-1, "credential", route == "credential.delete-many")
	body["filter"] = f.domain()
	for n := 0; ; n++ {
		done, err := ask[credential.Many](x, route, body)
		if err != nil {
			if n == 0 {
				x.Fail(err)
				return
			}
			b.refuseAs("", err)
			break
		}
		for _, r := range done.Results {
			if r.Error != nil {
				b.refuse(r.ID, r.Error)
				continue
			}
			b.add(route, input{}, r.ID)
		}
		b.seq = max(b.seq, done.Seq)
		b.progress()
		if body["after"] = done.Next; done.Next == "" {
			break
		}
		if b.done+len(b.refused) >= maxItems {
			b.refuseAs("", errTooMany.Withf("The filter matches more than %d credentials. Repeat the call with a narrower filter for the others.", maxItems))
			break
		}
	}
	b.end(true, http.StatusOK)
}

// end writes the result when the read models reflect the changes.
func (b *batch) end(many bool, success int) {
	x := b.x
	b.x.extend()
	if b.seq > 0 && x.call.Principal.May(permission.ThrottlePoliciesGet) {
		_, err := ask[throttle.Page](x, "throttle_policy.list", throttle.List{Limit: 1, MinSeq: b.seq})
		if f := fault.Of(err); f != nil && f.Kind != fault.Denied {
			x.Warn("read models are behind a write", err)
		}
	}
	status := success
	if b.done == 0 && len(b.refused) > 0 {
		status = http.StatusNotAcceptable
		if slices.IndexFunc(b.refused, func(r refusal) bool { return r.Status != http.StatusNotFound }) < 0 {
			status = http.StatusNotFound
		}
		if !many {
			status = b.refused[0].Status
		}
	}
	answer := map[string]any{}
	if len(b.refused) > 0 {
		answer["error"] = b.refused
	}
	switch {
	case b.done == 0 && len(b.refused) > 0:
		answer["requestId"] = x.ID
		x.Err = &fault.Error{Kind: fault.Invalid, Code: b.refused[0].Code}
	case b.deletes:
		answer["message"] = b.deleted()
	default:
		answer[b.of] = b.items
	}
	if b.lines {
		b.line(answer)
		return
	}
	x.give(status, answer)
}

func (b *batch) deleted() string {
	of := b.of
	switch {
	case b.done == 1:
	case of == "policy":
		of = "policies"
	default:
		of += "s"
	}
	return fmt.Sprintf("%d %s deleted.", b.done, of)
}
