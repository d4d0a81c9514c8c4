package web

import (
	"bytes"
	"cmp"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/client"
	"github.com/credstream/credstream/service/component"
	"github.com/credstream/credstream/service/connect"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/expiry"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/service/permission"
)

// after is the cursor in the request.
func (x *exchange) after() string { return x.R.URL.Query().Get("after") }

// next returns the address of the page after a cursor; "" after the last one.
func (x *exchange) next(cursor string) string {
	if cursor == "" {
		return ""
	}
	q := x.R.URL.Query()
	q.Set("after", cursor)
	q.Del("did")
	q.Del("seq")
	return "?" + q.Encode()
}

// trouble is the data of the page of what needs attention, the worst first.
type trouble struct {
	Credentials []credentialRow
	Flows       []flow.Flow
	Letters     []admin.DeadLetter
	Expiring    []expiry.Expiry
	More        bool // there is more than the page shows
}

// mostTrouble is the maximum number of items of each kind.
const mostTrouble = 50

func (x *exchange) attention() error {
	var data trouble
	for _, status := range []string{"reauthorization_required", "failed"} {
		page, err := ask[credential.Page](x, "credential.list", listQuery{Status: status, Limit: mostTrouble, MinSeq: x.minSeq()})
		if err != nil {
			return err
		}
		rows, err := x.rows(page.Credentials)
		if err != nil {
			return err
		}
		data.Credentials, data.More = append(data.Credentials, rows...), data.More || page.Next != ""
	}
	slices.SortStableFunc(data.Credentials, func(a, b credentialRow) int {
		return cmp.Or(cmp.Compare(b.Active, a.Active), cmp.Compare(b.Flows, a.Flows))
	})
	expiring, err := ask[expiry.Page](x, "expiry.list", expiry.List{Limit: mostTrouble, MinSeq: x.minSeq()})
	if err != nil {
		return err
	}
	data.Expiring, data.More = expiring.Expiries, data.More || expiring.Next != ""
	slices.SortStableFunc(data.Expiring, func(a, b expiry.Expiry) int { // expired first, then the worst
		return cmp.Or(compareBool(b.Expired, a.Expired), cmp.Compare(b.ActiveFlows, a.ActiveFlows), a.Expires.Compare(b.Expires))
	})
	if x.may("flow.list") {
		flows, err := ask[flow.Page](x, "flow.list", flow.List{Broken: true, Limit: mostTrouble})
		if err != nil {
			return err
		}
		data.Flows, data.More = flows.Flows, data.More || flows.Next != ""
		slices.SortStableFunc(data.Flows, func(a, b flow.Flow) int { return compareBool(b.Active, a.Active) })
	}
	if x.may("queue.list") {
		letters, err := ask[admin.QueuedList](x, "queue.list", admin.ListQueued{Limit: mostTrouble})
		if err != nil {
			return err
		}
		data.Letters, data.More = letters.Messages, data.More || letters.Next != ""
	}
	return x.show("attention", view{Title: "Needs attention", Data: data, Live: "credential flow oauth_client api_key"})
}

// componentList is the data of the page of components.
type componentList struct {
	component.Page
	NextPage string
}

func (x *exchange) listComponents() error {
	page, err := ask[component.Page](x, "component.list", component.List{After: x.after(), MinSeq: x.minSeq()})
	if err != nil {
		return err
	}
	return x.show("components", view{Title: "Components", Data: componentList{page, x.next(page.Next)}, Live: "component credential"})
}

// componentForm is the data of a form with a component.json.
type componentForm struct {
	ID   string
	Text string
	At   string // line and column of the error
	New  bool
}

func (x *exchange) newComponent() error {
	return x.show("component-new", view{Title: "Register a component", Data: componentForm{New: true}})
}

// ErrNotJSON rejects a component.json that is not a JSON document.
var ErrNotJSON = fault.New(fault.Invalid, "web_component_not_json", "The file is not a JSON document.")

// descriptorOf parses the component.json of a form.
func (x *exchange) descriptorOf() (raw jsontext.Value, form componentForm, err error) {
	form = componentForm{ID: strings.TrimSpace(x.form.Get("id")), Text: x.form.Get("descriptor")}
	raw = jsontext.Value(strings.TrimSpace(strings.ReplaceAll(form.Text, "\r\n", "\n")))
	dec := jsontext.NewDecoder(bytes.NewReader(raw))
	if _, err = dec.ReadValue(); err != nil {
		form.At = lineAndColumn(raw, dec.InputOffset())
		if syntax, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
			form.At = lineAndColumn(raw, syntax.ByteOffset)
		}
		return raw, form, ErrNotJSON
	}
	return raw, form, nil
}

// locate sets the position of an error in the component.json.
func (form *componentForm) locate(raw jsontext.Value, err error) {
	pointer, found := strings.CutPrefix(fault.Of(err).Pointer, "/descriptor")
	if !found {
		return
	}
	if at, found := placeOf(raw, jsontext.Pointer(pointer)); found {
		rest := raw[at:]
		form.At = lineAndColumn(raw, at+int64(len(rest)-len(bytes.TrimLeft(rest, ",: \t\n"))))
	}
}

// placeOf returns the offset of the member or item that a pointer refers to. It skips values
// instead of asking the decoder for its pointer after each token, which takes quadratic time in
// files with long names.
func placeOf(raw jsontext.Value, pointer jsontext.Pointer) (at int64, found bool) {
	dec := jsontext.NewDecoder(bytes.NewReader(raw))
	for token := range pointer.Tokens() {
		index, err := strconv.ParseUint(token, 10, 32)
		switch dec.PeekKind() {
		case '[':
			found = err == nil
		case '{':
			found = true
		default:
			found = false
		}
		if !found {
			return 0, false
		}
		if begin, _ := dec.ReadToken(); begin.Kind() == '[' {
			for ; index > 0 && dec.PeekKind() != ']' && err == nil; index-- {
				err = dec.SkipValue()
			}
			at, found = dec.InputOffset(), err == nil && dec.PeekKind() != ']'
		} else {
			at, found = seekMember(dec, token)
		}
		if !found {
			return 0, false
		}
	}
	return at, true
}

// seekMember reads up to the value of a member, and returns the offset of its name.
func seekMember(dec *jsontext.Decoder, name string) (at int64, found bool) {
	for dec.PeekKind() == '"' {
		at = dec.InputOffset()
		token, err := dec.ReadToken()
		if err != nil {
			return 0, false
		}
		if token.String() == name {
			return at, true
		}
		if dec.SkipValue() != nil {
			return 0, false
		}
	}
	return 0, false
}

// lineAndColumn formats a position in a text, counted from 1.
func lineAndColumn(text []byte, offset int64) string {
	before := text[:min(int(offset), len(text))]
	line := bytes.Count(before, []byte("\n")) + 1
	return fmt.Sprintf("line %d, column %d", line, len(bytes.Runes(before[bytes.LastIndexByte(before, '\n')+1:]))+1)
}

func (x *exchange) registerComponent() error {
	raw, form, err := x.descriptorOf()
	form.New = true
	if err == nil {
		var done service.Done
		if done, err = x.do("component.register", component.Register{ID: form.ID, Descriptor: raw}); err == nil {
			return x.done("registered", done.Seq, "components", done.ID)
		}
		form.locate(raw, err)
	}
	return x.refused("component-new", view{Title: "Register a component", Data: form}, err)
}

// shownComponent is the data of the page of one component.
type shownComponent struct {
	component.Component
	Own         bool
	Form        componentForm
	RedirectURI string
	Compared    bool     // the form was compared with the current revision
	Changes     []string // what it would change for credentials
	Env         []string // variables that the owner sets
}

func (x *exchange) readComponent(id string) (shownComponent, error) {
	c, err := ask[component.Component](x, "component.get", component.Get{ID: id, MinSeq: x.minSeq()})
	data := shownComponent{Component: c, Own: c.Owner == x.call.Tenant, Form: componentForm{ID: c.ID, Text: string(c.Descriptor)}}
	if err == nil && data.Own {
		data.Env, err = component.Variables(c.Descriptor)
	}
	if err == nil && c.OAuthClient != "" {
		if r, err := ask[connect.RedirectURI](x, "oauth.redirect-uri", connect.GetRedirectURI{Component: id}); err == nil {
			data.RedirectURI = r.RedirectURI
		}
	}
	return data, err
}

func (x *exchange) showComponent() error {
	data, err := x.readComponent(x.R.PathValue("id"))
	if err != nil {
		return err
	}
	return x.show("component", view{Title: data.Title, Data: data})
}

func (x *exchange) changeComponent() error {
	id, what := x.R.PathValue("id"), x.form.Get("do")
	var done service.Done
	var form *componentForm
	var err error
	switch what {
	case "shared":
		done, err = x.do("component.share", component.ID{ID: id})
	case "unshared":
		done, err = x.do("component.unshare", component.ID{ID: id})
	case "env-set":
		values := map[string]string{}
		for name := range x.form {
			if variable, found := strings.CutPrefix(name, "env."); found && x.form.Get(name) != "" {
				values[variable] = x.form.Get(name)
			}
		}
		done, err = x.do("component.set-env", envInput{ID: id, Values: values, Expected: x.revision()})
	case "compared":
		return x.compareComponent(id)
	case "updated":
		var raw jsontext.Value
		form = &componentForm{}
		if raw, *form, err = x.descriptorOf(); err == nil {
			done, err = x.do("component.update", component.Update{ID: id, Descriptor: raw, Expected: x.revision()})
			if err != nil {
				form.locate(raw, err)
			}
		}
	case "deleted":
		var tried flow.Tried
		tried, err = ask[flow.Tried](x, "component.delete", component.Delete{ID: id})
		if err == nil {
			return x.done(what, tried.Seq, "components")
		}
	default:
		return ErrForm
	}
	if err == nil {
		return x.done(what, done.Seq, "components", id)
	}
	data, readErr := x.readComponent(id)
	if readErr != nil {
		return err
	}
	if form != nil {
		data.Form = *form
	}
	return x.refused("component", view{Title: data.Title, Data: data}, err)
}

// envInput is the body of component.set-env.
type envInput struct {
	ID       string            `json:"id"`
	Values   map[string]string `json:"values"`
	Expected int               `json:"expected_revision,omitzero"`
}

// revision is the revision of the component that the form was made for; 0 if it has none.
func (x *exchange) revision() int {
	revision, _ := strconv.Atoi(x.form.Get("revision"))
	return revision
}

// compareComponent shows what an update would change. It changes nothing.
func (x *exchange) compareComponent(id string) error {
	data, err := x.readComponent(id)
	if err != nil {
		return err
	}
	raw, form, err := x.descriptorOf()
	data.Form = form
	if expected := x.revision(); err == nil && expected != 0 && expected != data.Revision {
		// The next comparison is with the revision that the page shows now.
		return x.refused("component", view{Title: data.Title, Data: data}, component.ErrRevisionStale)
	}
	if err == nil {
		if data.Changes, err = component.Compare(data.Descriptor, raw); err == nil {
			data.Compared = true
			return x.show("component", view{Title: data.Title, Data: data})
		}
		data.Form.locate(raw, err)
	}
	return x.refused("component", view{Title: data.Title, Data: data}, err)
}

func (x *exchange) confirmDeleteComponent() error {
	c, err := ask[component.Component](x, "component.get", component.Get{ID: x.R.PathValue("id")})
	if err != nil {
		return err
	}
	tried, err := ask[flow.Tried](x, "component.delete", component.Delete{ID: c.ID, DryRun: true})
	if err != nil {
		return err
	}
	return x.show("component-delete", view{Title: "Delete " + c.Title, Data: deletion{ID: c.ID, Name: c.Title, Impact: tried.DryRun}})
}

// clientList is the data of the page of OAuth clients.
type clientList struct {
	client.OAuthClientList
	NextPage  string
	Component string // component of the form
	ClientID  string
	Wanting   []component.Info // components without a client
	Redirect  string
}

func (x *exchange) readClients() (data clientList, err error) {
	data.OAuthClientList, err = ask[client.OAuthClientList](x, "oauth_client.list", client.ListOAuthClients{After: x.after(), MinSeq: x.minSeq()})
	if err != nil {
		return data, err
	}
	data.NextPage = x.next(data.Next)
	data.Component = cmp.Or(x.form.Get("component"), x.R.URL.Query().Get("component"))
	if x.may("component.list") {
		list, err := ask[component.Page](x, "component.list", component.List{Limit: mostTiles})
		if err != nil {
			return data, err
		}
		for _, c := range list.Components {
			if c.OAuthClient == component.ClientMissing && !c.Deleted {
				data.Wanting = append(data.Wanting, c)
			}
		}
		if data.Component != "" {
			if r, err := ask[connect.RedirectURI](x, "oauth.redirect-uri", connect.GetRedirectURI{Component: data.Component}); err == nil {
				data.Redirect = r.RedirectURI
			}
		}
	}
	return data, nil
}

func (x *exchange) listClients() error {
	data, err := x.readClients()
	if err != nil {
		return err
	}
	return x.show("oauth-clients", view{Title: "OAuth clients", Data: data, Live: "oauth_client"})
}

// clientInput is the body of oauth_client.define and oauth_client.change.
type clientInput struct {
	ID        string `json:"id,omitzero"`
	Component string `json:"component,omitzero"`
	ClientID  string `json:"client_id,omitzero"`
	Secret    string `json:"client_secret,omitzero"`
}

func (x *exchange) changeClient() error {
	in := clientInput{ClientID: strings.TrimSpace(x.form.Get("client_id")), Secret: x.form.Get("client_secret")}
	var done service.Done
	var err error
	what := x.form.Get("do")
	switch what {
	case "defined":
		if in.ID = x.form.Get("client"); in.ID != "" {
			done, err = x.do("oauth_client.change", in)
		} else {
			in.Component = x.form.Get("component")
			done, err = x.do("oauth_client.define", in)
		}
	case "deleted":
		done, err = x.do("oauth_client.delete", client.OAuthClientRef{ID: x.form.Get("client")})
	default:
		return ErrForm
	}
	if err == nil {
		return x.done(what, done.Seq, "oauth-clients")
	}
	data, readErr := x.readClients()
	if readErr != nil {
		return err
	}
	data.ClientID = in.ClientID
	return x.refused("oauth-clients", view{Title: "OAuth clients", Data: data}, err)
}

// flowList is the data of the page of flows.
type flowList struct {
	flow.Page
	NextPage string
	Broken   bool
	Active   bool
}

func (x *exchange) listFlows() error {
	q := x.R.URL.Query()
	in := flow.List{Broken: q.Get("only") == "broken", Active: q.Get("only") == "active", After: x.after()}
	page, err := ask[flow.Page](x, "flow.list", in)
	if err != nil {
		return err
	}
	return x.show("flows", view{Title: "Flows", Data: flowList{page, x.next(page.Next), in.Broken, in.Active}, Live: "flow credential"})
}

func (x *exchange) showFlow() error {
	f, err := ask[flow.Flow](x, "flow.get", flow.Get{ID: x.R.PathValue("id")})
	if err != nil {
		return err
	}
	return x.show("flow", view{Title: cmp.Or(f.Name, f.ID), Data: f, Live: "flow credential"})
}

// keyList is the data of the page of API keys.
type keyList struct {
	access.APIKeyList
	NextPage string
	Roles    []permission.Role
	Rights   []permission.Info
	Issued   string // the new key, shown once
	Name     string
}

func (x *exchange) readKeys(minSeq uint64) (data keyList, err error) {
	data.APIKeyList, err = ask[access.APIKeyList](x, "api_key.list", access.ListAPIKeys{After: x.after(), MinSeq: minSeq})
	data.NextPage, data.Name = x.next(data.Next), x.form.Get("name")
	data.Roles = []permission.Role{permission.Operator, permission.FlowEngine, permission.Auditor, permission.Administrator}
	if err == nil {
		roles, err := ask[access.RoleList](x, "role.list", access.ListRoles{Limit: 200})
		if err != nil {
			return data, err
		}
		for _, r := range roles.Roles {
			data.Roles = append(data.Roles, permission.Role(r.Name))
		}
	}
	for _, p := range permission.Permissions() {
		if x.call.Principal.MayGrant(p.Permission) {
			data.Rights = append(data.Rights, p)
		}
	}
	return data, err
}

func (x *exchange) listKeys() error {
	data, err := x.readKeys(x.minSeq())
	if err != nil {
		return err
	}
	return x.show("keys", view{Title: "API keys", Data: data})
}

func (x *exchange) changeKey() error {
	var err error
	switch what := x.form.Get("do"); what {
	case "issued":
		in := access.IssueAPIKey{Role: permission.Role(x.form.Get("role")), Name: strings.TrimSpace(x.form.Get("name")), Expires: x.form.Get("expires")}
		for _, p := range x.form["permission"] {
			in.Permissions = append(in.Permissions, permission.Permission(p))
		}
		var issued access.IssuedAPIKey
		if issued, err = ask[access.IssuedAPIKey](x, "api_key.issue", in); err == nil {
			data, err := x.readKeys(issued.Seq)
			if err != nil {
				return err
			}
			data.Issued = issued.Key
			return x.show("keys", view{Title: "API keys", Data: data})
		}
	case "revoked":
		var done service.Done
		if done, err = x.do("api_key.revoke", access.RevokeAPIKey{ID: x.form.Get("id")}); err == nil {
			return x.done(what, done.Seq, "keys")
		}
	default:
		return ErrForm
	}
	data, readErr := x.readKeys(0)
	if readErr != nil {
		return err
	}
	return x.refused("keys", view{Title: "API keys", Data: data}, err)
}

// letterList is the data of the page of the dead-letter queue.
type letterList struct {
	admin.QueuedList
	NextPage string
	Open     *admin.DeadLetter // message with its content; nil: none
}

func (x *exchange) readLetters() (data letterList, err error) {
	data.QueuedList, err = ask[admin.QueuedList](x, "queue.list", admin.ListQueued{After: x.after()})
	data.NextPage = x.next(data.Next)
	if id := x.R.URL.Query().Get("id"); id != "" && err == nil {
		letter, err := ask[admin.DeadLetter](x, "queue.get", admin.QueuedID{ID: id})
		if err != nil {
			return data, err
		}
		data.Open = &letter
	}
	return data, err
}

func (x *exchange) listDeadLetters() error {
	data, err := x.readLetters()
	if err != nil {
		return err
	}
	return x.show("dead-letters", view{Title: "Dead letters", Data: data})
}

func (x *exchange) changeDeadLetters() error {
	var err error
	what := x.form.Get("do")
	one := admin.QueuedID{ID: x.form.Get("id")}
	switch what {
	case "retried":
		_, err = x.do("queue.retry", one)
	case "dropped":
		_, err = x.do("queue.drop", one)
	case "retry-all":
		what = "retried"
		_, err = ask[admin.QueuedChanged](x, "queue.retry-all", admin.QueuedMany{})
	case "drop-all":
		what = "dropped"
		_, err = ask[admin.QueuedChanged](x, "queue.drop-all", admin.QueuedMany{})
	default:
		return ErrForm
	}
	if err == nil {
		return x.done(what, 0, "dead-letters")
	}
	data, readErr := x.readLetters()
	if readErr != nil {
		return err
	}
	return x.refused("dead-letters", view{Title: "Dead letters", Data: data}, err)
}

// trail is the data of the audit page.
type trail struct {
	admin.Replay
	Query                 admin.ReplayEvents
	Since, Credential     string
	NextPage, NDJSON, CSV string
}

// auditQuery parses the filters of the audit page.
func (x *exchange) auditQuery() (in admin.ReplayEvents, err error) {
	q := x.R.URL.Query()
	in = admin.ReplayEvents{Type: q.Get("type"), Actor: q.Get("actor"), Limit: 100}
	if c := strings.TrimSpace(q.Get("credential")); c != "" {
		in.Stream = "credential." + c
	}
	if in.Actor != "" && !strings.Contains(in.Actor, ":") {
		in.Actor = "key:" + in.Actor
	}
	in.From, _ = strconv.ParseUint(q.Get("after"), 10, 64)
	if since := q.Get("since"); since != "" {
		if in.Since, err = time.Parse("2006-01-02", since); err != nil {
			return in, ErrForm.Withf("The day must be written like 2026-01-31.")
		}
	}
	return in, nil
}

func (x *exchange) audit() error {
	in, err := x.auditQuery()
	if err != nil {
		return err
	}
	page, err := ask[admin.Replay](x, "events.replay", in)
	if err != nil {
		return err
	}
	q := x.R.URL.Query()
	data := trail{Replay: page, Query: in, Since: q.Get("since"), Credential: q.Get("credential")}
	if page.Next != 0 {
		data.NextPage = x.next(strconv.FormatUint(page.Next, 10))
	}
	q.Del("after")
	data.NDJSON, data.CSV = x.path("audit", "audit.ndjson")+"?"+q.Encode(), x.path("audit", "audit.csv")+"?"+q.Encode()
	return x.show("audit", view{Title: "Audit", Data: data})
}

// exportAudit streams all events that match the filters, page by page, until the session
// ends.
func (x *exchange) exportAudit() error {
	format := x.R.PathValue("format")
	if format != "audit.ndjson" && format != "audit.csv" {
		return ErrForm
	}
	in, err := x.auditQuery()
	if err != nil {
		return err
	}
	in.Limit = 1000
	var sheet *csv.Writer
	if format == "audit.csv" {
		sheet = csv.NewWriter(x.W)
	}
	for first := true; ; first = false {
		var page admin.Replay
		// The session may end during the download, which has no time limit.
		x.call.Principal, err = x.session()
		if err == nil {
			page, err = ask[admin.Replay](x, "events.replay", in)
		}
		if err != nil {
			if first {
				return err
			}
			x.Err = err
			panic(http.ErrAbortHandler) // so that the client detects the incomplete response
		}
		if first {
			x.W.Header().Set("Content-Type", map[bool]string{true: "text/csv; charset=utf-8", false: "application/x-ndjson"}[sheet != nil])
			x.W.Header().Set("Content-Disposition", `attachment; filename="`+format+`"`)
			x.End(http.StatusOK)
			if sheet != nil {
				_ = sheet.Write([]string{"seq", "time", "type", "subject", "actor", "data"})
			}
		}
		_ = http.NewResponseController(x.W).SetWriteDeadline(time.Now().Add(time.Minute))
		for _, e := range page.Events {
			if err := writeEvent(x.W, sheet, e); err != nil {
				return nil //nolint:nilerr // the client has disconnected
			}
		}
		if in.From = page.Next; page.Next == 0 {
			return nil
		}
	}
}

func writeEvent(w io.Writer, sheet *csv.Writer, e admin.ReplayedEvent) error {
	if sheet == nil {
		line, err := json.Marshal(e, json.Deterministic(true))
		if err == nil {
			_, err = w.Write(append(line, '\n'))
		}
		return err
	}
	row := []string{strconv.FormatUint(e.LogSeq, 10), e.Time.UTC().Format(time.RFC3339Nano), e.Type, e.Subject, e.Actor, string(e.Data)}
	for i, cell := range row {
		row[i] = plainCell(cell)
	}
	if err := sheet.Write(row); err != nil {
		return err
	}
	sheet.Flush()
	return sheet.Error()
}

// plainCell prevents a spreadsheet from treating a cell as a formula.
func plainCell(cell string) string {
	if cell != "" && strings.ContainsAny(cell[:1], "=+-@\t\r") {
		return "'" + cell
	}
	return cell
}

// condition is the data of the status page.
type condition struct {
	Version string
	Reasons []string
	Notes   []string
	Views   *admin.ViewsPosition
}

func (x *exchange) status() error {
	data := condition{Version: x.cfg.Version}
	if x.cfg.Ready != nil {
		data.Reasons = x.cfg.Ready()
	}
	if x.cfg.Notes != nil {
		data.Notes = x.cfg.Notes()
	}
	if x.may("views.status") {
		v, err := ask[admin.ViewsPosition](x, "views.status", admin.ViewsStatus{})
		if err != nil && fault.Of(err).Kind != fault.Denied { // it requires access to all tenants
			return err
		}
		if err == nil {
			data.Views = &v
		}
	}
	return x.show("status", view{Title: "Status", Data: data})
}
