package client

import (
	"context"
	"iter"
)

// ExportPage is a part of an export.
type ExportPage struct {
	Text  string `json:"text"`  // to append to the file unchanged
	Items int    `json:"items"` // in all pages up to this one
	Next  string `json:"next,omitzero"`
	Total int    `json:"total,omitzero"` // credentials of the tenant; on the first page
}

// Export yields the parts of a signed export of the tenant, in order. Concatenated, their texts are
// the file, which is invalid without the last one. to is the age public key that the secrets are
// encrypted to, which also requires the permission credentials.reveal; with "" the export contains
// no secrets.
func (a *API) Export(ctx context.Context, to string) iter.Seq2[ExportPage, error] {
	return func(yield func(ExportPage, error) bool) {
		for after := ""; ; {
			var page ExportPage
			ask := struct {
				To    string `json:"to,omitzero"`
				After string `json:"after,omitzero"`
			}{to, after}
			if after != "" {
				ask.To = ""
			}
			if err := a.Query(ctx, "export.page", ask, &page); err != nil {
				yield(ExportPage{}, err)
				return
			}
			if !yield(page, nil) || page.Next == "" {
				return
			}
			after = page.Next
		}
	}
}

// ExportKey returns the public key that verifies the signatures of the tenant's exports.
func (a *API) ExportKey(ctx context.Context) (string, error) {
	var answer struct {
		Key string `json:"key"`
	}
	err := a.Query(ctx, "export.key", nil, &answer)
	return answer.Key, err
}
