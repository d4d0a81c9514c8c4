package client

import (
	"context"
	"iter"
	"time"
)

// Expiry is something that stops working at a known time unless somebody acts.
type Expiry struct {
	Kind        string       `json:"kind"`                 // "credential", "oauth_client" or "api_key"
	ID          string       `json:"id"`                   // of an OAuth client: its component
	Name        string       `json:"name,omitzero"`        // of a credential or API key
	Component   string       `json:"component,omitzero"`   // of a credential or OAuth client
	What        string       `json:"what"`                 // "keys" and "access_token" of a credential, "client_secret" or "api_key"
	Expires     time.Time    `json:"expires"`              // when
	Expired     bool         `json:"expired,omitzero"`     // it has passed
	WarnedDays  int          `json:"warned_days,omitzero"` // threshold of the last event that warned of it; 0 before the first
	Flows       []ExpiryFlow `json:"flows"`                // up to 20 flows that would break
	ActiveFlows int          `json:"active_flows"`         // how many of them are active
}

// ExpiryFlow is a flow that would break.
type ExpiryFlow struct {
	ID     string `json:"id"`
	Name   string `json:"name,omitzero"`
	Active bool   `json:"active"`
}

// Expiries yields what has expired in the last 30 days or expires within a time such as "30d" or "12h", the earliest
// first; "" is 30 days.
func (a *API) Expiries(ctx context.Context, within string) iter.Seq2[Expiry, error] {
	return func(yield func(Expiry, error) bool) {
		for after := ""; ; {
			var page struct {
				Expiries []Expiry `json:"expiries"`
				Next     string   `json:"next"`
			}
			err := a.Query(ctx, "expiry.list", struct {
				Within string `json:"within,omitzero"`
				After  string `json:"after,omitzero"`
				Limit  int    `json:"limit"`
			}{within, after, 200}, &page)
			if err != nil {
				yield(Expiry{}, err)
				return
			}
			for _, x := range page.Expiries {
				if !yield(x, nil) {
					return
				}
			}
			if after = page.Next; after == "" {
				return
			}
		}
	}
}
