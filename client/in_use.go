package client

import (
	"context"
	"encoding/base64"
	"fmt"
	"iter"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/fault"
)

// ErrInUseRefused is returned by WatchInUse if the key may not watch the
// in-use index.
var ErrInUseRefused = fault.New(fault.Denied, "in_use_refused", "The key may not subscribe to the in-use index of this tenant.")

// InUse is a value of the in-use index: the flows that use one resource.
type InUse struct {
	Seq       uint64      `json:"seq"`   // log sequence it reflects
	Total     int         `json:"total"` // of the flows
	Active    int         `json:"active"`
	Flows     []InUseFlow `json:"flows"`              // active ones first, then by id; up to 1,000
	Truncated bool        `json:"truncated,omitzero"` // there are more flows than are listed
}

// InUseFlow is a flow that uses the resource.
type InUseFlow struct {
	ID       string `json:"id"`
	Active   bool   `json:"active"`
	Reserved bool   `json:"reserved,omitzero"` // by a binding
}

// InUseEntry is one key of the in-use index.
type InUseEntry struct {
	Kind  string `json:"kind"` // "credential" or "oauth_client"
	ID    string `json:"id"`   // of the credential, or of the component
	Value InUse  `json:"value"`
}

// InUseFilter selects a page of the in-use index.
type InUseFilter struct {
	Limit  int    `json:"limit,omitzero"` // of one page, 1 to 200; 50 when 0
	After  string `json:"after,omitzero"` // cursor of the previous page
	MinSeq uint64 `json:"min_seq,omitzero"`
}

// InUseList is one page.
type InUseList struct {
	Entries []InUseEntry `json:"entries"`
	Next    string       `json:"next,omitzero"` // cursor of the next page; empty on the last
}

// ListInUse returns one page of the in-use index.
func (a *API) ListInUse(ctx context.Context, filter InUseFilter) (InUseList, error) {
	var list InUseList
	err := a.Query(ctx, "flow.in-use", filter, &list)
	return list, err
}

// WatchInUse yields the tenant's in-use index: first every existing entry, then
// each new value of an entry, until ctx ends; then it ends without
// an error. An entry without flows is no longer in use. For one key
// the Seq rises from value to value; values in quick succession may be
// skipped, but never the last one.
//
// It subscribes to the bucket credstream-in-use first, then queries flow.in-use for
// the existing entries, and does so again after each reconnect and whenever the caller
// was too slow. It creates no consumer. The key needs the permission flows.get.
func (c *Conn) WatchInUse(ctx context.Context) iter.Seq2[InUseEntry, error] {
	return func(yield func(InUseEntry, error) bool) {
		known := map[string]uint64{} // kind and id to Seq
		yieldNew := func(e InUseEntry) error {
			key := e.Kind + "." + e.ID
			if seq, ok := known[key]; ok && e.Value.Seq <= seq {
				return nil
			}
			known[key] = e.Value.Seq
			if !yield(e, nil) {
				return errStopped
			}
			return nil
		}
		list := func() error {
			for filter := (InUseFilter{Limit: 200}); ; {
				page, err := c.ListInUse(ctx, filter)
				if smaller(err, &filter.Limit) {
					continue
				}
				if err != nil {
					return err
				}
				for _, e := range page.Entries {
					if err := yieldNew(e); err != nil {
						return err
					}
				}
				if filter.After = page.Next; page.Next == "" {
					return nil
				}
			}
		}
		prefix := "$KV.credstream-in-use." + c.tenant + "."
		take := func(m *nats.Msg) error {
			e, err := readInUse(prefix, m)
			if err != nil {
				return err
			}
			return yieldNew(e)
		}
		if err := c.listen(ctx, prefix+">", ErrInUseRefused, list, take); err != nil {
			yield(InUseEntry{}, err)
		}
	}
}

// readInUse decodes a value of the bucket.
func readInUse(prefix string, m *nats.Msg) (InUseEntry, error) {
	kind, token, ok := strings.Cut(strings.TrimPrefix(m.Subject, prefix), ".")
	e := InUseEntry{Kind: kind, ID: token}
	err := json.Unmarshal(m.Data, &e.Value)
	if coded, is := strings.CutPrefix(token, "="); is && err == nil {
		var id []byte
		id, err = base64.RawURLEncoding.DecodeString(coded)
		e.ID = string(id)
	}
	if err == nil && !ok {
		err = fmt.Errorf("the key has no id")
	}
	if err != nil {
		return InUseEntry{}, fmt.Errorf("%w Message on %s: %w", ErrAnswer, m.Subject, err)
	}
	return e, nil
}
