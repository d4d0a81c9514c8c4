package client

import (
	"context"
	"iter"
	"time"
)

// Access is one entry of the access log: who got the values of which
// credential.
type Access struct {
	Seq        uint64    `json:"seq"`  // sequence in the access log
	Kind       string    `json:"kind"` // "given"; "withdrawn": the values were not returned after all; "revealed": shown to a person
	Time       time.Time `json:"time"`
	Credential string    `json:"credential"`
	Version    int       `json:"version"`        // of the keys
	Grant      int       `json:"grant,omitzero"` // of the tokens among them
	Actor      string    `json:"actor"`          // "key:<id>"
	Flow       string    `json:"flow,omitzero"`
	Step       string    `json:"step,omitzero"`
	Via        string    `json:"via"`                // "http" or "nats"
	Cleartext  bool      `json:"cleartext"`          // the values were not encrypted
	Recipient  string    `json:"recipient,omitzero"` // SHA-256 of the public key they were encrypted to, in hex
	Lease      string    `json:"lease,omitzero"`     // "" when they were revealed
	Expires    time.Time `json:"expires,omitzero"`   // of the lease; zero when they were revealed
}

// AccessFilter selects entries of the access log. Its members combine
// by AND.
type AccessFilter struct {
	Credential string    `json:"credential,omitzero"` // deleted credentials are included
	Actor      string    `json:"actor,omitzero"`      // "key:<id>"
	Component  string    `json:"component,omitzero"`  // credentials of this component
	Flow       string    `json:"flow,omitzero"`       // given to this flow
	Since      time.Time `json:"since,omitzero"`      // entries of this time or later
	Until      time.Time `json:"until,omitzero"`      // entries before this time
	From       uint64    `json:"from,omitzero"`       // first sequence in the access log; the beginning when 0
}

// accessLimit is the number of entries of one page.
const accessLimit = 1000

// Accesses yields the entries of the access log, oldest first, to its end.
// It ends with the first error. The key needs the permission audit.read.
func (a *API) Accesses(ctx context.Context, filter AccessFilter) iter.Seq2[Access, error] {
	return inPages(filter.From, accessLimit, func(from uint64, limit int) ([]Access, uint64, error) {
		var page struct {
			Accesses []Access `json:"accesses"`
			Next     uint64   `json:"next"`
		}
		filter.From = from
		err := a.Query(ctx, "access.replay", struct {
			AccessFilter
			Limit int `json:"limit"`
		}{filter, limit}, &page)
		return page.Accesses, page.Next, err
	})
}

// Lease is the time for which a caller may keep the values of a credential.
type Lease struct {
	Access
	Revoked bool `json:"revoked"` // the credential has other keys now, must be connected again, or was deleted
}

// LeaseFilter selects leases. Its members combine by AND.
type LeaseFilter struct {
	Credential string `json:"credential,omitzero"`
	Actor      string `json:"actor,omitzero"` // "key:<id>"
}

// Leases yields the leases that have not expired, oldest first. It ends with the
// first error. The key needs the permission audit.read.
func (a *API) Leases(ctx context.Context, filter LeaseFilter) iter.Seq2[Lease, error] {
	return inPages(0, accessLimit, func(from uint64, limit int) ([]Lease, uint64, error) {
		var page struct {
			Leases []Lease `json:"leases"`
			Next   uint64  `json:"next"`
		}
		err := a.Query(ctx, "lease.list", struct {
			LeaseFilter
			From  uint64 `json:"from,omitzero"`
			Limit int    `json:"limit"`
		}{filter, from, limit}, &page)
		return page.Leases, page.Next, err
	})
}

// inPages yields the items of page after page. A page that does not fit into one
// message is requested again with a smaller limit.
func inPages[T any](from uint64, limit int, page func(from uint64, limit int) (items []T, next uint64, err error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for {
			items, next, err := page(from, limit)
			if smaller(err, &limit) {
				continue
			}
			if err != nil {
				yield(*new(T), err)
				return
			}
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
			if from = next; next == 0 {
				return
			}
		}
	}
}
