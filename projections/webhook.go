package projections

import (
	"context"
	"database/sql/driver"
	"fmt"
	"strings"
	"time"

	"github.com/credstream/credstream/events"
)

const webhookTable = `
CREATE TABLE webhooks (tenant TEXT NOT NULL, id TEXT NOT NULL, url TEXT NOT NULL, description TEXT NOT NULL, types TEXT NOT NULL, component TEXT NOT NULL,
	mode TEXT NOT NULL, disabled TEXT NOT NULL, incarnation TEXT NOT NULL, previous INTEGER NOT NULL, defined INTEGER NOT NULL, seq INTEGER NOT NULL,
	created INTEGER NOT NULL, updated INTEGER NOT NULL, created_by TEXT NOT NULL, PRIMARY KEY (tenant, id)) WITHOUT ROWID;
`

// Webhook is one webhook.
type Webhook struct {
	Tenant        string
	ID            string
	Settings      events.WebhookSettings
	Disabled      string    // why; "" when it sends
	Incarnation   string    // see aggregates.WebhookState
	PreviousUntil time.Time // when its secret before the current one stops signing; zero when there is none
	Defined       uint64    // the commit that defined it
	CreatedAt     time.Time
	UpdatedAt     time.Time
	CreatedBy     string // "key:<id>"
	Seq           uint64 // the last commit that changed it
}

func (b *batch) webhook(r events.Record, e events.Webhook) error {
	tenant, id, seq, now := r.Stream.Tenant, r.Stream.ID, int64(r.Seq), r.Meta.Time.UnixMicro()
	set := func(columns string, args ...driver.Value) error {
		return b.w.update("UPDATE webhooks SET seq = ?, updated = ?, "+columns+" WHERE tenant = ? AND id = ?", append(append([]driver.Value{seq, now}, args...), tenant, id)...)
	}
	switch e := e.(type) {
	case events.WebhookDefined:
		w := e.Webhook
		return b.w.exec("INSERT INTO webhooks VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", tenant, id, w.URL, w.Description, strings.Join(w.Types, " "), w.Component,
			string(w.Mode), "", e.SecretID, int64(0), seq, seq, now, now, r.Meta.Actor.Kind+":"+r.Meta.Actor.ID)
	case events.WebhookChanged:
		w := e.Webhook
		return set("url = ?, description = ?, types = ?, component = ?, mode = ?", w.URL, w.Description, strings.Join(w.Types, " "), w.Component, string(w.Mode))
	case events.WebhookRotated:
		until := int64(0)
		if !e.PreviousUntil.IsZero() {
			until = e.PreviousUntil.UnixMicro()
		}
		return set("previous = ?", until)
	case events.WebhookRotationEnded:
		return set("previous = 0")
	case events.WebhookDisabled:
		return set("disabled = ?", e.Reason)
	case events.WebhookEnabled:
		return set("disabled = ''")
	case events.WebhookDeleted:
		return b.w.update("DELETE FROM webhooks WHERE tenant = ? AND id = ?", tenant, id)
	case events.SecretAbandoned:
		return nil // no list shows it
	}
	return errUnknownEvent
}

const (
	webhookSelect  = "SELECT tenant, id, url, description, types, component, mode, disabled, incarnation, previous, defined, seq, created, updated, created_by FROM webhooks"
	webhookColumns = webhookSelect + " WHERE tenant = ?"
	webhookCount   = "SELECT count(*) FROM webhooks WHERE tenant = ?"
	webhookPage    = " AND id > ? ORDER BY id LIMIT ?"
)

func scanWebhook(row []driver.Value) Webhook {
	w := Webhook{
		Tenant: str(row[0]), ID: str(row[1]),
		Settings: events.WebhookSettings{
			URL: str(row[2]), Description: str(row[3]), Types: strings.Fields(str(row[4])), Component: str(row[5]), Mode: events.WebhookMode(str(row[6])),
		},
		Disabled: str(row[7]), Incarnation: str(row[8]), Defined: uint64(num(row[10])),
		Seq: uint64(num(row[11])), CreatedAt: micros(row[12]), UpdatedAt: micros(row[13]), CreatedBy: str(row[14]),
	}
	if num(row[9]) != 0 {
		w.PreviousUntil = micros(row[9])
	}
	return w
}

// Webhook finds a webhook of a tenant by its id.
func (v *Views) Webhook(ctx context.Context, tenant, id string) (found Webhook, ok bool, err error) {
	err = v.read(ctx, func(c *conn) error {
		return c.query(webhookColumns+" AND id = ?", func(row []driver.Value) error {
			found, ok = scanWebhook(row), true
			return nil
		}, tenant, id)
	})
	if err != nil {
		return found, false, fmt.Errorf("reading a webhook: %w", err)
	}
	return found, ok, nil
}

// Webhooks lists a page of a tenant's webhooks by id, those after one, and how many there are
// on all pages; next is "" at the end.
func (v *Views) Webhooks(ctx context.Context, tenant, after string, limit int) (page []Webhook, next string, total int, err error) {
	limit = bounded(limit)
	err = v.snapshot(ctx, func(c *conn) error {
		n, err := count(c, webhookCount, tenant)
		if err != nil {
			return err
		}
		total = int(n)
		return c.query(webhookColumns+webhookPage, func(row []driver.Value) error {
			page = append(page, scanWebhook(row))
			return nil
		}, tenant, after, int64(limit)+1)
	})
	if err != nil {
		return nil, "", 0, fmt.Errorf("reading webhooks: %w", err)
	}
	if len(page) > limit {
		page = page[:limit]
		next = page[limit-1].ID
	}
	return page, next, total, nil
}

// AllWebhooks lists the webhooks of every tenant.
func (v *Views) AllWebhooks(ctx context.Context) (all []Webhook, err error) {
	err = v.read(ctx, func(c *conn) error {
		return c.query(webhookSelect, func(row []driver.Value) error {
			all = append(all, scanWebhook(row))
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("reading all webhooks: %w", err)
	}
	return all, nil
}
