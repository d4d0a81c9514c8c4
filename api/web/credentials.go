package web

import (
	"cmp"
	"errors"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/component"
	"github.com/credstream/credstream/service/connect"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/service/token"
)

// Page sizes.
const (
	pageSize  = 25
	mostTiles = 200
)

// tile is a component with the number of the tenant's credentials for it.
type tile struct {
	ID, Title, Type string
	Count, Bad      int
	Usable          bool
}

// credentialRow is a row of a table of credentials.
type credentialRow struct {
	credential.Credential
	Flows, Active int
	More          bool // there are more flows than were counted
	KnowsFlows    bool
}

// credentialList is the data of the page of credentials.
type credentialList struct {
	Tiles     []tile
	Component *component.Info // component of all rows; nil: several
	Type      string          // free type, in place of a component
	Rows      []credentialRow
	Listed    bool // the page has a table
	Total     int
	Query     string
	Status    string
	Sort      string
	First     string // address of the first page, "" on it
	Next      string // address of the next page, "" on the last
}

// listQuery is the body of credential.list.
type listQuery struct {
	Component    string `json:"component,omitzero"`
	Status       string `json:"status,omitzero"`
	NameContains string `json:"name_contains,omitzero"`
	Sort         string `json:"sort,omitzero"`
	Limit        int    `json:"limit,omitzero"`
	After        string `json:"after,omitzero"`
	MinSeq       uint64 `json:"min_seq,omitzero"`
	LastUse      bool   `json:"last_use,omitzero"`
}

func (x *exchange) listCredentials() error {
	q := x.R.URL.Query()
	in := listQuery{
		Component: q.Get("component"), NameContains: q.Get("q"), Status: q.Get("status"), Sort: q.Get("sort"), Limit: pageSize,
		After: q.Get("after"), MinSeq: x.minSeq(), LastUse: true,
	}
	data := credentialList{Query: in.NameContains, Status: in.Status, Sort: in.Sort}
	title := "Credentials"
	if in.Component != "" {
		c, err := ask[component.Component](x, "component.get", component.Get{ID: in.Component})
		switch {
		case err == nil:
			title, data.Component = c.Title, &c.Info
		case fault.Of(err).Kind == fault.NotFound: // deleted, but its credentials remain
			title, data.Component = in.Component, &component.Info{ID: in.Component, Title: in.Component, Deleted: true}
		default:
			return err
		}
	} else if err := x.tiles(&data); err != nil {
		return err
	}
	if data.Listed = in.Component != "" || data.Query != "" || data.Status != "" || data.Sort != "" || in.After != ""; data.Listed {
		in.LastUse = true
		page, err := ask[credential.Page](x, "credential.list", in)
		if err != nil {
			return err
		}
		if data.Rows, err = x.rows(page.Credentials); err != nil {
			return err
		}
		if in.After != "" {
			q.Del("after")
			data.First = "?" + q.Encode()
		}
		if page.Next != "" {
			q.Set("after", page.Next)
			q.Del("did")
			q.Del("seq")
			data.Next = "?" + q.Encode()
		}
	}
	return x.show("credentials", view{Title: title, Data: data, Live: "credential component flow"})
}

// tiles reads the components, and the number of credentials of each.
func (x *exchange) tiles(data *credentialList) error {
	counts, err := ask[credential.Counts](x, "credential.counts", credential.Count{MinSeq: x.minSeq()})
	if err != nil {
		return err
	}
	data.Total = counts.Total
	titles := map[string]component.Info{}
	if x.may("component.list") {
		list, err := ask[component.Page](x, "component.list", component.List{Limit: mostTiles})
		if err != nil {
			return err
		}
		for _, c := range list.Components {
			titles[c.ID] = c
		}
	}
	for _, c := range counts.Counts {
		known, listed := titles[c.Component]
		delete(titles, c.Component)
		data.Tiles = append(data.Tiles, tile{
			ID: c.Component, Type: c.Type, Title: cmp.Or(known.Title, c.Component, c.Type), Count: c.Total,
			Bad: c.Status["failed"] + c.Status["reauthorization_required"], Usable: listed && !known.Deleted,
		})
	}
	for _, c := range titles { // components without a credential
		if !c.Deleted {
			data.Tiles = append(data.Tiles, tile{ID: c.ID, Title: c.Title, Usable: true})
		}
	}
	if term := strings.ToLower(data.Query); term != "" {
		data.Tiles = slices.DeleteFunc(data.Tiles, func(t tile) bool {
			return !strings.Contains(strings.ToLower(t.Title), term) && !strings.Contains(strings.ToLower(t.ID), term)
		})
	}
	slices.SortFunc(data.Tiles, func(a, b tile) int {
		return cmp.Or(cmp.Compare(b.Bad, a.Bad), cmp.Compare(min(b.Count, 1), min(a.Count, 1)), cmp.Compare(strings.ToLower(a.Title), strings.ToLower(b.Title)), cmp.Compare(a.ID, b.ID))
	})
	return nil
}

// rows adds to each credential the flows that use it.
func (x *exchange) rows(list []credential.Credential) ([]credentialRow, error) {
	rows := make([]credentialRow, len(list))
	for i, c := range list {
		rows[i] = credentialRow{Credential: c, KnowsFlows: x.may("flow.list")}
		if !rows[i].KnowsFlows {
			continue
		}
		flows, err := ask[flow.Page](x, "flow.list", flow.List{Credential: c.ID})
		if err != nil {
			return nil, err
		}
		rows[i].Flows, rows[i].More = len(flows.Flows), flows.Next != ""
		for _, f := range flows.Flows {
			if f.Active {
				rows[i].Active++
			}
		}
	}
	return rows, nil
}

// credentialForm is the data of a form with a component's fields.
type credentialForm struct {
	Component   *component.Info
	Choices     []component.Info // components to choose from, before one is chosen
	Description string
	Name        string
	Fields      fields
	OAuth       bool // one of the fields is connected at a provider
	Blocked     string
	DefineAt    string                 // address of the page where the OAuth client is defined
	Credential  *credential.Credential // the one whose keys are replaced; nil for a new one
	Version     int                    // version of the keys that the form replaces
	Command     string                 // command id
	Says        *verdict
}

// verdict is the reason why the API refused the keys.
type verdict struct{ Sentence string }

// formOf reads the component of a form.
func (x *exchange) formOf(id string) (credentialForm, descriptor, error) {
	c, err := ask[component.Component](x, "component.get", component.Get{ID: id})
	if err != nil {
		return credentialForm{}, descriptor{}, err
	}
	d, err := readDescriptor(c.Descriptor)
	if err != nil {
		return credentialForm{}, d, err
	}
	form := credentialForm{Component: &c.Info, Description: d.Description, OAuth: d.OAuth(), Fields: d.Credentials.Fields}
	switch {
	case c.Deleted:
		form.Blocked = "This component was deleted. Its credentials remain, but no new one can be created."
	case c.CannotConnect != "" && slices.ContainsFunc(form.Fields, func(f field) bool { return f.OAuth() && f.Required }):
		form.Blocked = "No account can be connected: " + c.CannotConnect + " An OAuth client can supply the addresses of the provider."
	case form.OAuth && c.OAuthClient == component.ClientMissing:
		form.Blocked = "Before somebody can connect an account, this tenant needs an OAuth client for the component."
		if x.may("oauth_client.define") {
			form.DefineAt = x.path("oauth-clients") + "?component=" + url.QueryEscape(c.ID)
		} else {
			form.Blocked += " Ask an administrator to define one."
		}
	}
	return form, d, nil
}

func (x *exchange) newCredential() error {
	id := x.R.URL.Query().Get("component")
	if id == "" {
		list, err := ask[component.Page](x, "component.list", component.List{Limit: mostTiles})
		if err != nil {
			return err
		}
		data := credentialForm{Choices: slices.DeleteFunc(list.Components, func(c component.Info) bool { return c.Deleted })}
		return x.show("credential-new", view{Title: "Add a credential", Data: data})
	}
	form, _, err := x.formOf(id)
	if err != nil {
		return err
	}
	return x.show("credential-new", view{Title: "Add a credential", Data: form})
}

// newKeys is a request with the values of a form.
type newKeys struct {
	Component string         `json:"component,omitzero"`
	ID        string         `json:"id,omitzero"`
	Name      string         `json:"name,omitzero"`
	Keys      map[string]any `json:"keys"`
	Expected  int            `json:"expected_version,omitzero"`
	Revision  int            `json:"expected_revision,omitzero"`
}

func (x *exchange) createCredential() error {
	form, d, err := x.formOf(x.R.URL.Query().Get("component"))
	if err != nil {
		return err
	}
	in := newKeys{Component: form.Component.ID, Name: strings.TrimSpace(x.form.Get("name")), Keys: d.keys(x.form)}
	in.Revision, _ = strconv.Atoi(x.form.Get("revision"))
	if x.form.Has("connect") {
		var started connect.Connected
		if started, err = x.connect(in, ""); err == nil {
			return x.connecting(started, form.Component.Title)
		}
	} else {
		var made service.Done
		if made, err = x.do("credential.create", in); err == nil {
			return x.done("created", made.Seq, "credentials", made.ID)
		}
	}
	form.Name, form.Fields = in.Name, d.filled(x.form, err)
	x.explain(&form, err)
	return x.refused("credential-new", view{Title: "Add a credential", Data: form, Said: form.Says != nil}, err)
}

// explain adds the API's reason for refusing the keys to the form. A second submit is a new
// command, unless the outcome of this one is unknown.
func (x *exchange) explain(form *credentialForm, err error) {
	f := fault.Of(err)
	if errors.Is(err, credential.ErrVerificationFailed) {
		form.Says = &verdict{f.Msg}
	}
	if f.Kind == fault.Unavailable {
		form.Command = x.call.CommandID
	}
}

// shownHistory is an event in the history of a credential.
type shownHistory struct {
	credential.HistoryEntry
	Revertible bool // the credential can be reverted to the version of the event
}

// shownCredential is the data of the page of one credential.
type shownCredential struct {
	credential.Credential
	Component *component.Info
	Fields    []shownField
	Flows     []flow.Flow
	History   []shownHistory
	MoreAt    uint64 // cursor of the next page of the history
	Hosts     []string
	Accesses  []credential.Access
	OAuth     bool
}

type shownField struct {
	Name, Label string
	Value       string
	Masked      bool
	Revealed    bool
}

// readCredential reads everything about one credential that the caller may read.
func (x *exchange) readCredential(id string) (data shownCredential, err error) {
	if data.Credential, err = ask[credential.Credential](x, "credential.get", credential.Get{ID: id, MinSeq: x.minSeq(), LastUse: true}); err != nil {
		return data, err
	}
	labels := map[string]field{}
	if data.Credential.Component != "" && x.may("component.get") {
		c, err := ask[component.Component](x, "component.get", component.Get{ID: data.Credential.Component})
		if err == nil {
			data.Component = &c.Info
			if d, err := readDescriptor(c.Descriptor); err == nil {
				data.OAuth = d.OAuth()
				for _, f := range d.Credentials.Fields {
					labels[f.Name] = f
				}
			}
		} else if fault.Of(err).Kind != fault.NotFound {
			return data, err
		}
	}
	for _, name := range data.Credential.Fields {
		f := shownField{Name: name, Label: cmp.Or(labels[name].Label, name), Masked: true}
		if v, open := data.Keys[name].(jsontext.Value); open {
			f.Masked, f.Value = false, textOf(v)
		}
		data.Fields = append(data.Fields, f)
	}
	return data, x.readStory(&data)
}

// textOf returns the text of a JSON string, or the JSON of any other value.
func textOf(v any) string {
	raw, ok := v.(jsontext.Value)
	if !ok {
		var err error
		if raw, err = json.Marshal(v); err != nil {
			return ""
		}
	}
	var text string
	if json.Unmarshal(raw, &text) != nil {
		return string(raw)
	}
	return text
}

// readStory reads the history, the flows and the accesses of a credential.
func (x *exchange) readStory(data *shownCredential) error {
	id := data.ID
	if x.may("flow.list") {
		flows, err := ask[flow.Page](x, "flow.list", flow.List{Credential: id, Limit: 200})
		if err != nil {
			return err
		}
		data.Flows = flows.Flows
		slices.SortStableFunc(data.Flows, func(a, b flow.Flow) int {
			return cmp.Or(compareBool(b.Broken, a.Broken), compareBool(b.Active, a.Active))
		})
	}
	if x.may("credential.history") {
		after, _ := strconv.ParseUint(x.R.URL.Query().Get("after"), 10, 64)
		h, err := ask[credential.History](x, "credential.history", credential.GetHistory{ID: id, After: after, Limit: 500})
		if err != nil {
			return err
		}
		data.MoreAt = h.Next
		for _, e := range h.Events {
			var made struct {
				Hosts []string `json:"hosts"`
			}
			keys := e.Type == "credential.created" || e.Type == "credential.keys_replaced" || e.Type == "credential.reverted"
			if keys && json.Unmarshal(e.Data, &made) == nil {
				data.Hosts = made.Hosts
			}
			data.History = append(data.History, shownHistory{e, keys && e.Version != data.Version && x.may("credential.revert")})
		}
		slices.Reverse(data.History)
	}
	if x.may("access.replay") {
		given, err := ask[credential.AccessReplay](x, "access.replay", credential.ReplayAccess{Credential: id, Since: time.Now().Add(-30 * 24 * time.Hour), Limit: 200})
		if err != nil {
			return err
		}
		slices.Reverse(given.Accesses)
		data.Accesses = given.Accesses[:min(len(given.Accesses), 20)]
	}
	return nil
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

func (x *exchange) showCredential() error {
	data, err := x.readCredential(x.R.PathValue("id"))
	if err != nil {
		return err
	}
	return x.show("credential", view{Title: data.Name, Data: data, Live: "credential flow"})
}

// changeCredential executes the command of a button on the page of one credential.
func (x *exchange) changeCredential() error {
	id := x.R.PathValue("id")
	expected, _ := strconv.Atoi(x.form.Get("version"))
	var done service.Done
	var err error
	what := x.form.Get("do")
	switch what {
	case "renamed":
		if err = x.unchanged(id); err != nil {
			break
		}
		done, err = x.do("credential.rename", credential.Rename{ID: id, Name: strings.TrimSpace(x.form.Get("name")), Expected: expected})
	case "verified":
		if done, err = x.do("credential.verify", credential.Verify{ID: id}); err == nil {
			what = string(done.Status)
		}
	case "reverted":
		to, _ := strconv.Atoi(x.form.Get("to"))
		done, err = x.do("credential.revert", credential.Revert{ID: id, Version: to, Expected: expected})
	case "refreshed":
		done, err = x.do("credential.refresh", token.Refresh{ID: id})
	case "revoked":
		var revoked token.Revoked
		revoked, err = ask[token.Revoked](x, "credential.revoke", token.Revoke{ID: id})
		done = revoked.Done
	case "deleted":
		var tried flow.Tried
		tried, err = ask[flow.Tried](x, "credential.delete", credential.Delete{ID: id, Expected: expected})
		if err == nil {
			return x.done(what, tried.Seq, "credentials")
		}
	case "connect":
		var started connect.Connected
		if started, err = x.connect(newKeys{}, id); err == nil {
			return x.connecting(started, x.form.Get("title"))
		}
	case "reveal":
		return x.reveal(id)
	default:
		return ErrForm
	}
	if err == nil {
		return x.done(what, done.Seq, "credentials", id)
	}
	data, readErr := x.readCredential(id)
	if readErr != nil {
		return err
	}
	return x.refused("credential", view{Title: data.Name, Data: data}, err)
}

// ErrRenamed refuses to overwrite a name that was changed after the page was opened.
var ErrRenamed = fault.New(fault.Conflict, "web_renamed_meanwhile", "Somebody else renamed this credential while you had the page open. This page now shows the new name.")

// unchanged compares the name with the one on the caller's page.
func (x *exchange) unchanged(id string) error {
	c, err := ask[credential.Credential](x, "credential.get", credential.Get{ID: id})
	if err == nil && c.Name != x.form.Get("was") {
		err = ErrRenamed
	}
	return err
}

// revealedFor is how long the page shows a revealed value.
const revealedFor = 30 * time.Second

// reveal shows the value of one field for a while. The service audits the access first.
func (x *exchange) reveal(id string) error {
	revealed, err := ask[credential.Revealed](x, "credential.reveal", credential.Reveal{ID: id})
	if err != nil {
		return err
	}
	data, err := x.readCredential(id)
	if err != nil {
		return err
	}
	for i, f := range data.Fields {
		if v, ok := revealed.Keys[f.Name]; ok && f.Name == x.form.Get("field") {
			data.Fields[i].Revealed, data.Fields[i].Masked, data.Fields[i].Value = true, false, textOf(v)
		}
	}
	x.W.Header().Set("Refresh", strconv.Itoa(int(revealedFor.Seconds()))+"; url="+x.path("credentials", id))
	return x.show("credential", view{Title: data.Name, Data: data})
}

func (x *exchange) keysForm() error {
	c, form, d, err := x.keysOf()
	if err != nil {
		return err
	}
	form.Fields = d.shown(c.Keys, secrets.Mask)
	return x.show("credential-keys", view{Title: "Replace the keys of " + c.Name, Data: form})
}

// keysOf reads a credential and the form of its component.
func (x *exchange) keysOf() (c credential.Credential, form credentialForm, d descriptor, err error) {
	if c, err = ask[credential.Credential](x, "credential.get", credential.Get{ID: x.R.PathValue("id"), MinSeq: x.minSeq()}); err != nil {
		return c, form, d, err
	}
	form, d, err = x.formOf(c.Component)
	form.Credential, form.Version = &c, c.Version
	return c, form, d, err
}

func (x *exchange) replaceKeys() error {
	c, form, d, err := x.keysOf()
	if err != nil {
		return err
	}
	in := newKeys{ID: c.ID, Keys: d.keys(x.form)}
	in.Expected, _ = strconv.Atoi(x.form.Get("version"))
	form.Version = in.Expected
	done, err := x.do("credential.replace-keys", in)
	if err == nil {
		return x.done("replaced", done.Seq, "credentials", c.ID)
	}
	form.Fields = d.filled(x.form, err)
	x.explain(&form, err)
	return x.refused("credential-keys", view{Title: "Replace the keys of " + c.Name, Data: form, Said: form.Says != nil}, err)
}

// deletion is the data of a page that confirms a delete.
type deletion struct {
	ID, Name string
	Version  int
	Impact   *flow.Impact
}

func (x *exchange) confirmDelete() error {
	c, err := ask[credential.Credential](x, "credential.get", credential.Get{ID: x.R.PathValue("id")})
	if err != nil {
		return err
	}
	tried, err := ask[flow.Tried](x, "credential.delete", credential.Delete{ID: c.ID, DryRun: true})
	if err != nil {
		return err
	}
	return x.show("credential-delete", view{Title: "Delete " + c.Name, Data: deletion{c.ID, c.Name, c.Version, tried.DryRun}})
}

// connect starts to connect an account, for a new credential or an existing one.
func (x *exchange) connect(in newKeys, credentialID string) (connect.Connected, error) {
	return ask[connect.Connected](x, "oauth.connect", struct {
		Component  string         `json:"component,omitzero"`
		Credential string         `json:"credential,omitzero"`
		Name       string         `json:"name,omitzero"`
		Keys       map[string]any `json:"keys,omitempty"`
		Revision   int            `json:"expected_revision,omitzero"`
	}{in.Component, credentialID, in.Name, in.Keys, in.Revision})
}

// connection is the data of the page of a connection.
type connection struct {
	connect.Connection
	URL  string // the one-time link; on the first page only
	Name string
}

// connecting writes the page with the link to the provider. No later page has it.
func (x *exchange) connecting(started connect.Connected, title string) error {
	return x.show("connection", view{Title: "Connect an account", Data: connection{
		Connection: connect.Connection{ID: started.ID, Stage: "created", Expires: started.Expires}, URL: started.URL, Name: title,
	}})
}

func (x *exchange) showConnection() error {
	c, err := ask[connect.Connection](x, "oauth.connection", connect.GetConnection{ID: x.R.PathValue("id")})
	if err != nil {
		return err
	}
	return x.show("connection", view{Title: "Connect an account", Data: connection{Connection: c}})
}

// completeConnection takes the code that the callback page showed to the user.
func (x *exchange) completeConnection() error {
	id := x.R.PathValue("id")
	code := strings.ReplaceAll(strings.TrimSpace(x.form.Get("code")), "-", "")
	done, err := x.do("oauth.complete", connect.CompleteConnection{Connection: id, Confirm: code})
	if err == nil {
		return x.done("created", done.Seq, "credentials", done.ID)
	}
	c, readErr := ask[connect.Connection](x, "oauth.connection", connect.GetConnection{ID: id})
	if readErr != nil {
		return err
	}
	return x.refused("connection", view{Title: "Connect an account", Data: connection{Connection: c}}, err)
}
