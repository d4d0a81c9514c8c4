package client

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/fault"
)

// Limits of one call of a batch. The service takes 1000 items and 1 MiB.
const (
	batchItems = 250
	batchBytes = 512 << 10
	maxItem    = 1<<20 - 64
)

// ErrItemTooLarge is the error of an item of a batch that does not fit into one call.
var ErrItemTooLarge = fault.New(fault.Invalid, "batch_item_too_large", "The item is larger than one call can be: 1 MiB.")

// BatchResult is the outcome of one item of a batch.
type BatchResult struct {
	Item    int    // index of the item; of a selection, the number of results before
	ID      string // "" when the item has none and was refused
	Version int    // of the keys
	Status  string // of the credential
	Seq     uint64 // log sequence to pass as MinSeq: not less than that of the item's change
	Err     error  // why the item was refused: a *fault.Error; nil when it was done
}

// manyAnswer is the response to a call of a batch.
type manyAnswer struct {
	Results []struct {
		ID      string `json:"id"`
		Version int    `json:"version"`
		Status  string `json:"status"`
		Error   *struct {
			Kind    fault.Kind     `json:"kind"`
			Code    string         `json:"code"`
			Detail  string         `json:"detail"`
			Pointer string         `json:"pointer"`
			Details jsontext.Value `json:"details"`
		} `json:"error"`
	} `json:"results"`
	Seq  uint64 `json:"seq"`
	Next string `json:"next"`
}

func (m manyAnswer) result(i, item int) BatchResult {
	r := m.Results[i]
	result := BatchResult{Item: item, ID: r.ID, Version: r.Version, Status: r.Status, Seq: m.Seq}
	if e := r.Error; e != nil {
		f := &fault.Error{Kind: e.Kind, Code: e.Code, Msg: e.Detail, Pointer: e.Pointer}
		if e.Details != nil {
			f.Details = e.Details
		}
		result.Err = f
	}
	return result
}

// Batch sends items to one of the commands credential.create-many, credential.update-many and
// credential.delete-many, in calls of limited size, and yields the result of each item in order.
// Each item is the JSON that the command takes: an object, or an id to delete. A refused
// item does not affect the others. An error ends the batch: the outcome of the items of that call
// is unknown, and no later ones were sent.
//
// With CommandID, a repeat with the same items executes the remaining ones, and returns the first
// results of the others.
func (a *API) Batch(ctx context.Context, command string, items []jsontext.Value, opts ...CommandOption) iter.Seq2[BatchResult, error] {
	return func(yield func(BatchResult, error) bool) {
		member := map[string]string{"credential.create-many": "credentials", "credential.update-many": "updates", "credential.delete-many": "ids"}[command]
		if member == "" {
			yield(BatchResult{}, ErrConfig.Withf("%q is not a command for many credentials.", command))
			return
		}
		id := optionsOf(opts).id
		for at, call := 0, 0; at < len(items); call++ {
			if len(items[at]) > maxItem {
				if !yield(BatchResult{Item: at, Err: ErrItemTooLarge}, nil) {
					return
				}
				at++
				continue
			}
			end, size := at, 0
			for end < len(items) && end-at < batchItems && (end == at || size+len(items[end]) <= batchBytes) {
				size += len(items[end]) + 1
				end++
			}
			answer, err := a.callOf(ctx, command, map[string]any{member: items[at:end]}, append(slices.Clip(opts), CommandID(id+"/"+strconv.Itoa(call))))
			if err == nil && len(answer.Results) != end-at {
				err = ErrAnswer
			}
			if err != nil {
				yield(BatchResult{Item: at}, err)
				return
			}
			for i := range answer.Results {
				if !yield(answer.result(i, at+i), nil) {
					return
				}
			}
			at = end
		}
	}
}

// callOf sends one call of a batch. Items that the service was too busy for, or that did not fit
// into the time of one call, are repeated by the same command id, while there are fewer each time.
func (a *API) callOf(ctx context.Context, command string, in any, opts []CommandOption) (answer manyAnswer, err error) {
	for left := batchItems + 1; ; {
		answer = manyAnswer{}
		if err = a.Command(ctx, command, in, &answer, opts...); err != nil {
			return answer, err
		}
		unavailable := 0
		for _, r := range answer.Results {
			if r.Error != nil && r.Error.Kind == fault.Unavailable {
				unavailable++
			}
		}
		if unavailable == 0 || unavailable >= left {
			return answer, nil
		}
		left = unavailable
	}
}

// encoded is Batch for items that are yet to be encoded.
func encoded[T any](ctx context.Context, a *API, command string, items []T, body func(T) any, opts []CommandOption) iter.Seq2[BatchResult, error] {
	return func(yield func(BatchResult, error) bool) {
		raw := make([]jsontext.Value, len(items))
		for i, item := range items {
			var err error
			if raw[i], err = json.Marshal(body(item), json.Deterministic(true)); err != nil {
				yield(BatchResult{Item: i}, errors.Join(ErrConfig.Withf("Item %d cannot be encoded as JSON.", i), err))
				return
			}
		}
		a.Batch(ctx, command, raw, opts...)(yield)
	}
}

// CreateCredentials creates many credentials, as CreateCredential does, one by one. Batch says
// what it yields.
func (a *API) CreateCredentials(ctx context.Context, items []CreateCredential, opts ...CommandOption) iter.Seq2[BatchResult, error] {
	return encoded(ctx, a, "credential.create-many", items, func(in CreateCredential) any { return in.body(optionsOf(opts)) }, opts)
}

// UpdateOne is the change of one credential of a batch.
type UpdateOne struct {
	ID string
	CredentialUpdate
}

// UpdateCredentials changes many credentials, as UpdateCredential does, one by one. Batch says
// what it yields.
func (a *API) UpdateCredentials(ctx context.Context, items []UpdateOne, opts ...CommandOption) iter.Seq2[BatchResult, error] {
	return encoded(ctx, a, "credential.update-many", items, func(in UpdateOne) any { return in.body(in.ID) }, opts)
}

// DeleteCredentials deletes many credentials, as DeleteCredential does, one by one. Batch says
// what it yields.
func (a *API) DeleteCredentials(ctx context.Context, ids []string, opts ...CommandOption) iter.Seq2[BatchResult, error] {
	return encoded(ctx, a, "credential.delete-many", ids, func(id string) any { return id }, opts)
}

// Selection selects credentials. Its members combine by AND.
type Selection struct {
	IDs            []string `json:"ids,omitzero"`             // up to 10000
	Type           string   `json:"type,omitzero"`            // a component, or a free type
	Description    string   `json:"description,omitzero"`     // part of the description, case-insensitive
	ThrottlePolicy string   `json:"throttle_policy,omitzero"` // id of a throttle policy
}

// UpdateSelected makes the same change of all credentials of the selection; the zero Selection is
// all of the tenant. Batch says what it yields.
func (a *API) UpdateSelected(ctx context.Context, by Selection, in CredentialUpdate, opts ...CommandOption) iter.Seq2[BatchResult, error] {
	update := in.body("")
	return a.selected(ctx, "credential.update-many", by, &update, opts)
}

// DeleteSelected deletes all credentials of the selection; the zero Selection is all of the
// tenant. Batch says what it yields.
func (a *API) DeleteSelected(ctx context.Context, by Selection, opts ...CommandOption) iter.Seq2[BatchResult, error] {
	return a.selected(ctx, "credential.delete-many", by, nil, opts)
}

func (a *API) selected(ctx context.Context, command string, by Selection, update *updateBody, opts []CommandOption) iter.Seq2[BatchResult, error] {
	return func(yield func(BatchResult, error) bool) {
		id, n, after := optionsOf(opts).id, 0, ""
		for call := 0; ; call++ {
			var answer manyAnswer
			err := a.Command(ctx, command, struct {
				Filter Selection   `json:"filter"`
				Update *updateBody `json:"update,omitzero"`
				After  string      `json:"after,omitzero"`
			}{by, update, after}, &answer, append(slices.Clip(opts), CommandID(id+"/"+strconv.Itoa(call)))...)
			if err != nil {
				yield(BatchResult{Item: n}, err)
				return
			}
			for i := range answer.Results {
				if !yield(answer.result(i, n), nil) {
					return
				}
				n++
			}
			if after = answer.Next; after == "" {
				return
			}
		}
	}
}

// CredentialSearch requests a page of the credentials of a selection.
type CredentialSearch struct {
	Selection
	Sort   string `json:"sort,omitzero"`  // id, type, description or throttle_policy, each also with - in front, for descending; id when empty
	From   int    `json:"from,omitzero"`  // credentials to skip before the page
	After  string `json:"after,omitzero"` // only ids after this one; requires the sort order id
	Limit  int    `json:"limit,omitzero"` // 1 to 1000; 50 when 0
	MinSeq uint64 `json:"min_seq,omitzero"`
}

// FoundCredentials is a page of the credentials of a selection.
type FoundCredentials struct {
	Credentials []Credential `json:"credentials"` // with their keys, every value masked
	Total       int          `json:"total"`       // number of credentials of the selection
}

// SearchCredentials returns a page of the credentials of a selection.
func (a *API) SearchCredentials(ctx context.Context, in CredentialSearch) (FoundCredentials, error) {
	var found FoundCredentials
	err := a.Query(ctx, "credential.search", in, &found)
	return found, err
}
