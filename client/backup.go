package client

import (
	"context"
	"iter"
)

// BackupPage is a part of a backup.
type BackupPage struct {
	Text  string `json:"text"` // to be appended to the backup as it is
	Next  string `json:"next,omitzero"`
	Done  uint64 `json:"done"`           // messages in all pages up to this one
	Total uint64 `json:"total,omitzero"` // about as many as the backup will have; on the first page
}

// Backup yields the parts of a backup of the installation, in order. Their texts, one after the
// other, are the backup; without the last one it is not valid. since is the position where an earlier
// backup ends, as JSON, which this one continues; "" is the beginning. from, unless 0, is the first
// commit in place of since.
func (a *API) Backup(ctx context.Context, since string, from uint64) iter.Seq2[BackupPage, error] {
	return func(yield func(BackupPage, error) bool) {
		var ask any = struct {
			Since string `json:"since,omitzero"`
			From  uint64 `json:"from,omitzero"`
		}{since, from}
		for {
			var page BackupPage
			err := a.Query(ctx, "backup.page", ask, &page)
			if !yield(page, err) || err != nil || page.Next == "" {
				return
			}
			ask = struct {
				After string `json:"after"`
			}{page.Next}
		}
	}
}
