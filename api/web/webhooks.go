package web

import (
	"strings"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/component"
	"github.com/credstream/credstream/service/webhook"
)

// webhookList is the data of the page of webhooks.
type webhookList struct {
	webhook.Page
	NextPage string
	Form     webhookForm
	Secret   string // the new signing secret, shown once
	For      string // id of its webhook
}

// webhookForm is the data of a form with the settings of a webhook.
type webhookForm struct {
	ID, URL, Description, Types, Component, Mode string
	Components                                   []component.Info
}

// typesOf splits event types, which people separate by spaces, commas or lines.
func typesOf(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" ,\r\n\t", r) })
}

// webhookFormOf returns the form as it was submitted.
func (x *exchange) webhookFormOf() webhookForm {
	f := x.form
	return webhookForm{
		ID: strings.TrimSpace(f.Get("id")), URL: strings.TrimSpace(f.Get("url")), Description: strings.TrimSpace(f.Get("description")),
		Types: f.Get("types"), Component: f.Get("component"), Mode: f.Get("mode"),
	}
}

// withComponents adds the components that a webhook may be restricted to.
func (x *exchange) withComponents(form webhookForm) (webhookForm, error) {
	if !x.may("component.list") {
		return form, nil
	}
	list, err := ask[component.Page](x, "component.list", component.List{Limit: mostTiles})
	form.Components = list.Components
	return form, err
}

func (x *exchange) readWebhooks(form webhookForm, minSeq uint64) (data webhookList, err error) {
	if data.Page, err = ask[webhook.Page](x, "webhook.list", webhook.List{After: x.after(), MinSeq: minSeq}); err != nil {
		return data, err
	}
	data.NextPage = x.next(data.Next)
	data.Form, err = x.withComponents(form)
	return data, err
}

func (x *exchange) listWebhooks() error {
	data, err := x.readWebhooks(webhookForm{}, x.minSeq())
	if err != nil {
		return err
	}
	return x.show("webhooks", view{Title: "Webhooks", Data: data, Live: "webhook"})
}

func (x *exchange) defineWebhook() error {
	form := x.webhookFormOf()
	made, err := ask[webhook.Signing](x, "webhook.define", webhook.Define{
		ID: form.ID, URL: form.URL, Description: form.Description, Types: typesOf(form.Types), Component: form.Component, Mode: webhook.Mode(form.Mode),
	})
	if err != nil {
		data, readErr := x.readWebhooks(form, 0)
		if readErr != nil {
			return err
		}
		return x.refused("webhooks", view{Title: "Webhooks", Data: data}, err)
	}
	data, err := x.readWebhooks(webhookForm{}, made.Seq)
	if err != nil {
		return err
	}
	data.Secret, data.For = made.Secret, made.ID
	return x.show("webhooks", view{Title: "Webhooks", Data: data, Done: "Webhook defined."})
}

// shownWebhook is the data of the page of one webhook.
type shownWebhook struct {
	webhook.Webhook
	Deliveries webhook.DeliveryList
	NextPage   string
	Form       webhookForm
	Secret     string // the new signing secret, shown once
}

func (x *exchange) readWebhook(minSeq uint64) (data shownWebhook, err error) {
	id := x.R.PathValue("id")
	if data.Webhook, err = ask[webhook.Webhook](x, "webhook.show", webhook.Ref{ID: id, MinSeq: minSeq}); err != nil {
		return data, err
	}
	if data.Deliveries, err = ask[webhook.DeliveryList](x, "webhook.deliveries", webhook.ListDeliveries{ID: id, After: x.after()}); err != nil {
		return data, err
	}
	data.NextPage = x.next(data.Deliveries.Next)
	w := data.Webhook
	data.Form, err = x.withComponents(webhookForm{
		URL: w.URL, Description: w.Description, Types: strings.Join(w.Types, "\n"), Component: w.Component, Mode: string(w.Mode),
	})
	return data, err
}

func (x *exchange) showWebhook() error {
	data, err := x.readWebhook(x.minSeq())
	if err != nil {
		return err
	}
	return x.show("webhook", view{Title: data.ID, Data: data, Live: "webhook credential"})
}

func (x *exchange) confirmDeleteWebhook() error {
	w, err := ask[webhook.Webhook](x, "webhook.show", webhook.Ref{ID: x.R.PathValue("id")})
	if err != nil {
		return err
	}
	return x.show("webhook-delete", view{Title: "Delete " + w.ID, Data: w})
}

func (x *exchange) changeWebhook() error {
	id := x.R.PathValue("id")
	var done service.Done
	var form *webhookForm
	var err error
	what := x.form.Get("do")
	switch what {
	case "changed":
		in := x.webhookFormOf()
		form = &in
		types := append([]string{}, typesOf(in.Types)...)
		done, err = x.do("webhook.change", webhook.Change{
			ID: id, URL: in.URL, Description: &in.Description, Types: &types, Component: &in.Component, Mode: webhook.Mode(in.Mode),
		})
	case "enabled", "disabled":
		on := what == "enabled"
		done, err = x.do("webhook.change", webhook.Change{ID: id, Enabled: &on})
	case "rotation-ended":
		done, err = x.do("webhook.change", webhook.Change{ID: id, EndRotation: true})
	case "rotated":
		var made webhook.Signing
		if made, err = ask[webhook.Signing](x, "webhook.rotate-secret", webhook.Rotate{ID: id}); err == nil {
			data, err := x.readWebhook(made.Seq)
			if err != nil {
				return err
			}
			data.Secret = made.Secret
			return x.show("webhook", view{Title: id, Data: data, Done: "There is a new signing secret. The previous one signs for 24 hours more."})
		}
	case "tested", "redelivered":
		var sent webhook.Sent
		if what == "tested" {
			sent, err = ask[webhook.Sent](x, "webhook.test", webhook.Test{ID: id})
		} else {
			sent, err = ask[webhook.Sent](x, "webhook.redeliver", webhook.Redeliver{ID: id, Event: x.form.Get("event")})
		}
		if err == nil {
			data, err := x.readWebhook(0)
			if err != nil {
				return err
			}
			return x.show("webhook", view{Title: id, Data: data, Done: sent.Says})
		}
	case "deleted":
		if done, err = x.do("webhook.delete", webhook.Delete{ID: id}); err == nil {
			return x.done(what, done.Seq, "webhooks")
		}
	default:
		return ErrForm
	}
	if err == nil {
		return x.done("webhook-"+what, done.Seq, "webhooks", id)
	}
	data, readErr := x.readWebhook(0)
	if readErr != nil {
		return err
	}
	if form != nil {
		form.Components = data.Form.Components
		data.Form = *form
	}
	return x.refused("webhook", view{Title: id, Data: data}, err)
}
