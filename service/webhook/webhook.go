package webhook

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/vault"
)

// Errors of a webhook's input.
var (
	ErrURL = fault.New(fault.Invalid, "webhook_url_invalid",
		"The URL of a webhook must be absolute, start with https://, and have at most 2048 characters, without user name, password or fragment.")
	ErrType = fault.New(fault.Invalid, "webhook_type_unknown",
		"A webhook sends event types of the feed, such as \"credential.created\" or \"credential.*\".")
	ErrTypes       = fault.New(fault.Invalid, "webhook_types_invalid", "A webhook lists at most 64 event types. Omit them to send all.")
	ErrMode        = fault.New(fault.Invalid, "webhook_mode_invalid", `mode must be "structured" or "binary".`)
	ErrDescription = fault.New(fault.Invalid, "webhook_description_invalid",
		"The description of a webhook must have at most 1024 bytes of UTF-8 and no control characters.")
	ErrKeepPrevious = fault.New(fault.Invalid, "webhook_keep_previous_invalid", `keep_previous must be a duration from 0s to 720h, such as "24h".`)
	ErrTooMany      = fault.New(fault.Precondition, "webhook_limit_reached", "The tenant has 100 webhooks, which is the limit. Delete one first.")
)

const (
	maxURL      = 2048
	maxTypes    = 64
	maxWebhooks = 100 // of a tenant: they share one reader of the log, but each makes requests and stores its progress
	keepDefault = 24 * time.Hour
	keepMax     = 720 * time.Hour
)

// known are the event types of the feed, and "<category>.*".
var known = func() map[string]bool {
	all := map[string]bool{}
	for _, t := range events.All().Types() {
		if t.Audience == events.Changes {
			category, _, _ := strings.Cut(t.Name, ".")
			all[t.Name], all[category+".*"] = true, true
		}
	}
	return all
}()

func checkTypes(types []string) error {
	if len(types) > maxTypes {
		return ErrTypes.At("/types")
	}
	for i, name := range types {
		if !known[name] {
			return ErrType.Withf("The feed has no event type %.80q. Use one of its types, such as \"credential.created\", or \"credential.*\".", name).At(fmt.Sprintf("/types/%d", i))
		}
	}
	return nil
}

func sorted(types []string) []string { return slices.Compact(slices.Sorted(slices.Values(types))) }

func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || len(text) > maxURL || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil || u.Fragment != "" ||
		strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return ErrURL.At("/url")
	}
	return nil
}

func checkMode(mode events.WebhookMode) error {
	if mode != "" && mode != events.Structured && mode != events.Binary {
		return ErrMode.At("/mode")
	}
	return nil
}

func checkDescription(text string) error {
	if len(text) > 1024 || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
		return ErrDescription.At("/description")
	}
	return nil
}

func checkComponent(id string) error {
	if id != "" && events.CheckName(id) != nil {
		return events.ErrID.At("/component")
	}
	return nil
}

// Mode is the mode of CloudEvents over HTTP, for the edges.
type Mode = events.WebhookMode

// Define asks for a new webhook.
type Define struct {
	ID          string             `json:"id,omitzero"`          // generated when absent
	URL         string             `json:"url"`                  // of the receiver; not a place for secrets, since the audit stream has it
	Description string             `json:"description,omitzero"` // for people
	Types       []string           `json:"types,omitzero"`       // event types of the feed to send, such as "credential.created", or "credential.*" for a category; all when absent
	Component   string             `json:"component,omitzero"`   // id: only events of this component, its OAuth client and its credentials; all when absent
	Mode        events.WebhookMode `json:"mode,omitzero"`        // of CloudEvents over HTTP: "structured", the default, or "binary"
}

// Check refuses what is no webhook.
func (in Define) Check() error {
	return cmp.Or(commands.CheckRef("/id", in.ID), checkURL(in.URL), checkDescription(in.Description), checkTypes(in.Types),
		checkComponent(in.Component), checkMode(in.Mode))
}

func (s *Service) define(ctx context.Context, call *service.Call, in Define) (Signing, error) {
	if err := s.checkScheme(in.URL); err != nil {
		return Signing{}, err
	}
	_, _, total, err := s.Views.Webhooks(ctx, call.Tenant, "", 1)
	if err != nil {
		return Signing{}, err
	}
	if total >= maxWebhooks {
		return Signing{}, ErrTooMany
	}
	if in.ID == "" {
		in.ID = call.DeriveID("webhook")
	}
	settings := events.WebhookSettings{
		URL: in.URL, Description: in.Description, Types: sorted(in.Types), Component: in.Component, Mode: cmp.Or(in.Mode, events.Structured),
	}
	return s.withSecret(ctx, call, in.ID, func(secretID string) commands.Webhook {
		return commands.DefineWebhook{ID: in.ID, Webhook: settings, SecretID: secretID}
	})
}

// checkScheme refuses plain HTTP to other machines.
func (s *Service) checkScheme(text string) error {
	if strings.HasPrefix(text, "https:") || s.HTTP.AllowsPrivate() {
		return nil
	}
	return ErrURL.At("/url")
}

// withSecret generates a signing secret and executes the command that names it.
func (s *Service) withSecret(ctx context.Context, call *service.Call, id string, cmd func(secretID string) commands.Webhook) (Signing, error) {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	text := secretPrefix + base64.StdEncoding.EncodeToString(key)
	var done service.Done
	err := s.Secrets.WithSecret(ctx, secretRef(call.Tenant, id, ""), seal.NewSecret([]byte(text)), func(secretID string) (err error) {
		done, err = s.execute(ctx, call, cmd(secretID))
		return err
	})
	if err != nil {
		return Signing{}, err
	}
	return Signing{done, text}, nil
}

// secretPrefix marks a signing secret, as Standard Webhooks says.
const secretPrefix = "whsec_"

// secretRef is the vault reference of a signing secret.
func secretRef(tenant, id, secretID string) vault.Ref {
	return vault.Ref{Tenant: tenant, Category: aggregates.Webhook.Category, Owner: id, SecretID: secretID}
}

// execute executes a command and erases the secrets that the webhook no longer has.
func (s *Service) execute(ctx context.Context, call *service.Call, cmd commands.Webhook) (service.Done, error) {
	before, after, err := secrets.Change(ctx, s.Secrets, call, aggregates.Webhook, call.Tenant, cmd)
	if err != nil {
		return service.Done{}, err
	}
	return s.Kernel.Answered(aggregates.Webhook.Stream(call.Tenant, cmd.Target()), before, after.Value, after.Seq), nil
}

// Change asks for other settings of a webhook. What is absent stays.
type Change struct {
	ID          string             `json:"id"`
	URL         string             `json:"url,omitzero"`          // of the receiver
	Description *string            `json:"description,omitzero"`  // for people
	Types       *[]string          `json:"types,omitzero"`        // event types of the feed to send; all when []
	Component   *string            `json:"component,omitzero"`    // id: only events of this component, its OAuth client and its credentials; all when ""
	Mode        events.WebhookMode `json:"mode,omitzero"`         // of CloudEvents over HTTP: "structured" or "binary"
	Enabled     *bool              `json:"enabled,omitzero"`      // false stops sending; true continues where it stopped
	EndRotation bool               `json:"end_rotation,omitzero"` // no longer sign with the previous secret
}

// Check refuses what cannot be a setting.
func (in Change) Check() error {
	err := checkMode(in.Mode)
	if in.URL != "" {
		err = cmp.Or(err, checkURL(in.URL))
	}
	if in.Description != nil {
		err = cmp.Or(err, checkDescription(*in.Description))
	}
	if in.Types != nil {
		err = cmp.Or(err, checkTypes(*in.Types))
	}
	if in.Component != nil {
		err = cmp.Or(err, checkComponent(*in.Component))
	}
	return err
}

func (s *Service) change(ctx context.Context, call *service.Call, in Change) (service.Done, error) {
	if err := checkID(in.ID); err != nil {
		return service.Done{}, err
	}
	if in.URL != "" {
		if err := s.checkScheme(in.URL); err != nil {
			return service.Done{}, err
		}
	}
	if in.Types != nil {
		types := sorted(*in.Types)
		in.Types = &types
	}
	return s.execute(ctx, call, commands.ChangeWebhook(in))
}

// Rotate asks for a new signing secret.
type Rotate struct {
	ID           string  `json:"id"`
	KeepPrevious *string `json:"keep_previous,omitzero"` // how long the current secret still signs beside the new one: a duration from "0s" to "720h"; "24h" when absent
}

func (s *Service) rotate(ctx context.Context, call *service.Call, in Rotate) (Signing, error) {
	if err := checkID(in.ID); err != nil {
		return Signing{}, err
	}
	keep := keepDefault
	if in.KeepPrevious != nil {
		var err error
		if keep, err = time.ParseDuration(*in.KeepPrevious); err != nil || keep < 0 || keep > keepMax {
			return Signing{}, ErrKeepPrevious.At("/keep_previous")
		}
	}
	// Looked up first, so that no secret is generated for nothing.
	state, err := aggregates.Webhook.Fresh(ctx, s.Log, aggregates.Webhook.Stream(call.Tenant, in.ID))
	if err != nil {
		return Signing{}, err
	}
	if !state.Value.Live() {
		return Signing{}, aggregates.ErrWebhookNotFound
	}
	var until time.Time
	if keep > 0 {
		until = s.Kernel.Now().Add(keep).UTC().Truncate(time.Microsecond)
	}
	return s.withSecret(ctx, call, in.ID, func(secretID string) commands.Webhook {
		return commands.RotateWebhook{ID: in.ID, SecretID: secretID, PreviousUntil: until}
	})
}

// Delete asks for the end of a webhook.
type Delete struct {
	ID string `json:"id"`
}

func (s *Service) delete(ctx context.Context, call *service.Call, in Delete) (service.Done, error) {
	if err := checkID(in.ID); err != nil {
		return service.Done{}, err
	}
	done, err := s.execute(ctx, call, commands.DeleteWebhook(in))
	if err == nil && s.Deliveries != nil {
		_ = s.Deliveries.Forget(ctx, call.Tenant, in.ID) // else the deliverer does
	}
	return done, err
}

// checkID refuses what can be the id of no webhook.
func checkID(id string) error {
	if err := service.Required("/id", id); err != nil {
		return err
	}
	if events.CheckID(id) != nil {
		return aggregates.ErrWebhookNotFound
	}
	return nil
}

// Ref identifies a webhook.
type Ref struct {
	ID     string `json:"id"`
	MinSeq uint64 `json:"min_seq,omitzero"` // wait until the answer reflects this log sequence
}

// Webhook is the public form of a webhook.
type Webhook struct {
	ID            string             `json:"id"`
	URL           string             `json:"url"`
	Description   string             `json:"description"`
	Types         []string           `json:"types"`     // event types that it sends; all when empty
	Component     string             `json:"component"` // it sends only events of this component, its OAuth client and its credentials; all when ""
	Mode          events.WebhookMode `json:"mode"`
	Enabled       bool               `json:"enabled"`
	Reason        string             `json:"reason,omitzero"`         // why it is disabled: "requested", "gone" (the receiver answered 410) or "dead_letters_full"
	PreviousUntil time.Time          `json:"previous_until,omitzero"` // until then it signs with the previous secret, too
	CreatedAt     time.Time          `json:"created_at"`
	CreatedBy     string             `json:"created_by"` // "key:<id>"
	UpdatedAt     time.Time          `json:"updated_at"`
	Seq           uint64             `json:"seq"` // log sequence of the last change
}

func shown(w projections.Webhook) Webhook {
	out := Webhook{
		ID: w.ID, URL: w.Settings.URL, Description: w.Settings.Description, Types: w.Settings.Types, Component: w.Settings.Component, Mode: w.Settings.Mode,
		Enabled: w.Disabled == "", Reason: w.Disabled, PreviousUntil: w.PreviousUntil,
		CreatedAt: w.CreatedAt, CreatedBy: w.CreatedBy, UpdatedAt: w.UpdatedAt, Seq: w.Seq,
	}
	if out.Types == nil {
		out.Types = []string{}
	}
	return out
}

func (s *Service) show(ctx context.Context, call *service.Call, in Ref) (Webhook, error) {
	if err := checkID(in.ID); err != nil {
		return Webhook{}, err
	}
	if err := s.Kernel.AtLeast(ctx, in.MinSeq); err != nil {
		return Webhook{}, err
	}
	w, found, err := s.Views.Webhook(ctx, call.Tenant, in.ID)
	if err == nil && !found {
		err = aggregates.ErrWebhookNotFound
	}
	return shown(w), err
}

// List asks for the webhooks of the tenant.
type List struct {
	Limit  int    `json:"limit,omitzero"`   // 1 to 200; 50 when absent
	After  string `json:"after,omitzero"`   // cursor of the page before
	MinSeq uint64 `json:"min_seq,omitzero"` // wait until the answer reflects this log sequence
}

// Page answers List, by id.
type Page struct {
	Webhooks []Webhook `json:"webhooks"`
	Next     string    `json:"next,omitzero"` // cursor of the next page; absent on the last
	Total    int       `json:"total"`         // of all pages
}

func (s *Service) list(ctx context.Context, call *service.Call, in List) (Page, error) {
	limit, err := service.PageSize(in.Limit)
	if err == nil {
		err = s.Kernel.AtLeast(ctx, in.MinSeq)
	}
	if err != nil {
		return Page{}, err
	}
	page := Page{Webhooks: []Webhook{}}
	rows, next, total, err := s.Views.Webhooks(ctx, call.Tenant, in.After, limit)
	page.Next, page.Total = next, total
	for _, w := range rows {
		page.Webhooks = append(page.Webhooks, shown(w))
	}
	return page, err
}
