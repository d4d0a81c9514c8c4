package credential

import (
	"context"
	"maps"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/sync/errgroup"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

const (
	maxMany    = 1000 // items of one call
	manyAtOnce = 32   // executed concurrently: they share an fsync of the log
)

// Errors of batches.
var (
	ErrTooMany       = fault.New(fault.Invalid, "too_many_items", "One call takes up to 1000 items. Send the rest with another call.")
	ErrItemsOrFilter = fault.New(fault.Invalid, "items_or_filter", "Give either the items or a filter.")
	ErrItemTwice     = fault.New(fault.Invalid, "item_repeated", "Another item of the same call has this id. Give each id once.")
)

// CreateMany creates many credentials.
type CreateMany struct {
	Credentials []jsontext.Value `json:"credentials"` // each as credential.create takes it
}

// UpdateMany changes many credentials: each by its own update, or all of the filter by the
// same one.
type UpdateMany struct {
	Updates []jsontext.Value          `json:"updates,omitzero"` // each as credential.update takes it
	Filter  *Filter                   `json:"filter,omitzero"`  // in place of updates
	Update  map[string]jsontext.Value `json:"update,omitzero"`  // with filter: as credential.update takes it, without id
	After   string                    `json:"after,omitzero"`   // with filter: next of the previous response
}

// DeleteMany deletes many credentials: those of ids, or those of the filter.
type DeleteMany struct {
	IDs    []string `json:"ids,omitzero"`
	Filter *Filter  `json:"filter,omitzero"` // in place of ids
	After  string   `json:"after,omitzero"`  // with filter: next of the previous response
}

// Many is the result of a batch.
type Many struct {
	Results []ManyResult `json:"results"`       // in the order of the items, or by id
	Failed  int          `json:"failed"`        // items that were refused
	Seq     uint64       `json:"seq"`           // log sequence for min_seq
	Next    string       `json:"next,omitzero"` // with a filter, when there are more: the after of the next call
}

// ManyResult is the outcome of one item.
type ManyResult struct {
	ID      string        `json:"id,omitzero"`      // absent when the item names none and was refused
	Version int           `json:"version,omitzero"` // of the keys
	Status  events.Status `json:"status,omitzero"`  // of the credential
	Error   *ManyError    `json:"error,omitzero"`   // why it was refused; absent when it was done
}

// ManyError is the reason why one item was refused.
type ManyError struct {
	Kind    fault.Kind `json:"kind"`
	Code    string     `json:"code"`
	Detail  string     `json:"detail"`
	Status  int        `json:"status"`           // HTTP status that a single call would have
	Pointer string     `json:"pointer,omitzero"` // into the item
	Details any        `json:"details,omitzero"` // machine-readable
}

// item is one command of a batch.
type item struct {
	id   string // "" of a new credential without one
	key  string // unique in the batch
	body jsontext.Value
	err  error // refused before execution
}

func (s *Service) createMany(ctx context.Context, call *service.Call, in CreateMany) (Many, error) {
	items := make([]item, len(in.Credentials))
	for i, body := range in.Credentials {
		items[i] = item{id: idOf(body), key: strconv.Itoa(i), body: body}
	}
	return s.each(ctx, call, "credential.create", items)
}

func (s *Service) updateMany(ctx context.Context, call *service.Call, in UpdateMany) (Many, error) {
	if (in.Filter == nil) == (in.Updates == nil) || (in.Filter == nil) != (in.Update == nil) {
		return Many{}, ErrItemsOrFilter.At("/filter")
	}
	if in.Filter != nil {
		return s.eachOf(ctx, call, "credential.update", *in.Filter, in.After, in.Update)
	}
	items := make([]item, len(in.Updates))
	for i, body := range in.Updates {
		items[i] = item{id: idOf(body), body: body}
		items[i].key = "id/" + items[i].id
	}
	return s.each(ctx, call, "credential.update", items)
}

func (s *Service) deleteMany(ctx context.Context, call *service.Call, in DeleteMany) (Many, error) {
	if (in.Filter == nil) == (in.IDs == nil) {
		return Many{}, ErrItemsOrFilter.At("/filter")
	}
	if in.Filter != nil {
		return s.eachOf(ctx, call, "credential.delete", *in.Filter, in.After, map[string]jsontext.Value{})
	}
	items := make([]item, len(in.IDs))
	for i, id := range in.IDs {
		body, err := json.Marshal(Delete{ID: id})
		if err != nil {
			err = events.ErrID.At("/id")
		}
		items[i] = item{id: id, key: "id/" + id, body: body, err: err}
	}
	return s.each(ctx, call, "credential.delete", items)
}

// idOf is the id in an item, or "". The item's own command reports its errors.
func idOf(body jsontext.Value) string {
	var named struct {
		ID string `json:"id"`
	}
	_ = json.Unmarshal(body, &named)
	return named.ID
}

// eachOf executes a command for up to maxMany credentials of a filter, by id. It includes all
// that were saved before the call.
func (s *Service) eachOf(ctx context.Context, call *service.Call, route string, f Filter, after string, members map[string]jsontext.Value) (Many, error) {
	if err := service.PointAt(f.Check(), "/filter"); err != nil {
		return Many{}, err
	}
	if after != "" && events.CheckID(after) != nil {
		return Many{}, events.ErrID.At("/after")
	}
	if _, given := members["id"]; given {
		return Many{}, service.ErrBody.Withf("The filter chooses the credentials. Omit id.").At("/update/id")
	}
	end, err := s.Log.Store.End(ctx)
	if err == nil {
		err = s.Kernel.AtLeast(ctx, end)
	}
	if err != nil {
		return Many{}, err
	}
	by := f.in(call)
	by.After, by.Limit = after, maxMany+1
	page, _, err := s.Views.SearchCredentials(ctx, by)
	if err != nil {
		return Many{}, err
	}
	next := ""
	if len(page) > maxMany {
		page, next = page[:maxMany], page[maxMany-1].ID
	}
	items := make([]item, len(page))
	for i, c := range page {
		one := map[string]jsontext.Value{}
		maps.Copy(one, members)
		id, err := json.Marshal(c.ID)
		if err != nil {
			return Many{}, err
		}
		one["id"] = id
		if items[i].body, err = json.Marshal(one, json.Deterministic(true)); err != nil {
			return Many{}, service.ErrBody.At("/update")
		}
		items[i].id, items[i].key = c.ID, "id/"+c.ID
	}
	many, err := s.each(ctx, call, route, items)
	many.Next = next
	return many, err
}

// each executes one command for each item. Of items with the same id, it executes only the first.
func (s *Service) each(ctx context.Context, call *service.Call, route string, items []item) (Many, error) {
	if len(items) > maxMany {
		return Many{}, ErrTooMany
	}
	many := Many{Results: make([]ManyResult, len(items))}
	seqs := make([]uint64, len(items))
	seen := map[string]bool{}
	var group errgroup.Group
	group.SetLimit(manyAtOnce)
	for i, it := range items {
		if it.err == nil && it.id != "" && seen[it.id] {
			it.err = ErrItemTwice.At("/id")
		}
		seen[it.id] = true
		group.Go(func() error {
			result := &many.Results[i]
			result.ID = it.id
			done, err := service.Done{}, it.err
			if err == nil {
				err = ctx.Err() // start no more items after the caller disconnects
			}
			if err == nil {
				done, err = s.one(ctx, call, route, it)
			}
			if err == nil {
				seqs[i], result.ID, result.Version, result.Status = done.Seq, done.ID, done.Version, done.Status
				return nil
			}
			result.Error = manyError(err)
			if result.Error.Status == http.StatusInternalServerError {
				s.Logger.ErrorContext(ctx, "batch item failed", "route", route, "tenant", call.Tenant, "err", err)
			}
			return nil
		})
	}
	_ = group.Wait()
	for i, r := range many.Results {
		many.Seq = max(many.Seq, seqs[i])
		if r.Error != nil {
			many.Failed++
		}
	}
	return many, nil // even if ctx has ended: each item has its outcome
}

func (s *Service) one(ctx context.Context, call *service.Call, route string, it item) (service.Done, error) {
	answer, err := s.Kernel.Each(ctx, call, route, it.key, it.body)
	if err != nil {
		return service.Done{}, err
	}
	if done, ok := answer.(interface{ Completed() service.Done }); ok {
		return done.Completed(), nil
	}
	return service.Done{}, nil
}

// manyError is the part of an error that the caller may see.
func manyError(err error) *ManyError {
	f := fault.Of(err)
	return &ManyError{Kind: f.Kind, Code: f.Code, Detail: f.Msg, Status: f.Kind.Status(), Pointer: f.Pointer, Details: f.Details}
}
