package web

import (
	"bytes"
	"crypto/rand"
	"embed"
	"fmt"
	"hash/fnv"
	"html/template"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
)

//go:embed pages
var pages embed.FS

// templates has each page, combined with the layout.
var templates = func() map[string]*template.Template {
	files := template.Must(template.New("").Funcs(template.FuncMap{
		"ago": ago, "status": statusOf, "hue": hue, "initials": initials, "sentence": sentence, "pretty": pretty,
		"count": count, "actor": actor, "lower": strings.ToLower, "query": url.QueryEscape, "fresh": rand.Text, "dict": dict,
	}).ParseFS(pages, "pages/layout.html", "pages/parts.html"))
	all := map[string]*template.Template{}
	names, err := fs.Glob(pages, "pages/*.html")
	if err != nil {
		panic(err)
	}
	for _, name := range names {
		page := strings.TrimSuffix(path.Base(name), ".html")
		if page != "layout" && page != "parts" {
			all[page] = template.Must(template.Must(files.Clone()).ParseFS(pages, name))
		}
	}
	return all
}()

// view is the data of a template: that of the page in Data, and that of all pages.
type view struct {
	Title string
	Data  any
	Error *fault.Error // why the last change was refused
	Said  bool         // the page shows the error itself
	Live  string       // categories whose changes the page shows, separated by spaces
	Done  string       // confirmation of the last change, a sentence

	x *exchange
}

// Methods for the templates.
func (v view) SignedIn() bool                      { return v.x.signedIn }
func (v view) Tenant() string                      { return v.x.call.Tenant }
func (v view) May(route string) bool               { return v.x.may(route) }
func (v view) Path(parts ...string) string         { return v.x.path(parts...) }
func (v view) Who() string                         { return v.x.call.Principal.Actor.ID }
func (v view) RequestID() string                   { return v.x.ID }
func (v view) Here() string                        { return v.x.R.URL.RequestURI() }
func (v view) With(name string, data any) partView { return partView{v, name, data} }

// partView is a view for a part of a page.
type partView struct {
	view
	Name string
	Part any
}

// navItem is an entry of the navigation.
type navItem struct {
	Path, Label string
	Current     bool
}

// Nav lists the pages that the caller may open.
func (v view) Nav() []navItem {
	var items []navItem
	for _, n := range []struct {
		path, label, route string
		also               []string // pages that belong to it
	}{
		{"credentials", "Credentials", "credential.list", []string{"new-credential", "connections"}},
		{"attention", "Needs attention", "credential.list", nil},
		{"components", "Components", "component.list", []string{"new-component"}},
		{"oauth-clients", "OAuth clients", "oauth_client.list", nil},
		{"flows", "Flows", "flow.list", nil},
		{"keys", "API keys", "api_key.list", nil},
		{"webhooks", "Webhooks", "webhook.list", nil},
		{"dead-letters", "Dead letters", "queue.list", nil},
		{"audit", "Audit", "events.replay", nil},
		{"status", "Status", "component.list", nil},
	} {
		if v.May(n.route) {
			to, page := v.Path(n.path), v.x.R.URL.Path
			current := page == to || strings.HasPrefix(page, to+"/") || slices.ContainsFunc(n.also, func(path string) bool {
				return page == v.Path(path) || strings.HasPrefix(page, v.Path(path)+"/")
			})
			items = append(items, navItem{to, n.label, current})
		}
	}
	return items
}

// Tenants lists the tenants that the caller may switch to.
func (v view) Tenants() []string {
	p := v.x.call.Principal
	names := slices.Clone(p.Tenants)
	if slices.Contains(names, service.AllTenants) {
		names = []string{p.Home}
		if v.May("tenant.list") {
			if list, err := ask[access.TenantList](v.x, "tenant.list", access.ListTenants{}); err == nil {
				names = names[:0]
				for _, t := range list.Tenants {
					names = append(names, t.ID)
				}
			}
		}
	}
	if !slices.Contains(names, v.Tenant()) {
		names = append(names, v.Tenant())
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// did has the confirmations of changes, by the parameter did; other values show none.
var did = map[string]string{
	"created": "Credential created.", "renamed": "Name saved.", "replaced": "The new keys are active.", "reverted": "The earlier keys are active again.",
	"verified": "The API accepted the keys.", "failed": "The API did not accept the keys.", "unverified": "This component declares no dry request.",
	"deleted": "Deleted.", "refreshed": "Tokens renewed.", "revoked": "Revoked.", "registered": "Component registered.", "updated": "Component updated.",
	"shared": "The component is visible to every tenant.", "unshared": "The component is visible only to this tenant.", "defined": "OAuth client saved.",
	"webhook-changed": "Webhook saved.", "webhook-enabled": "The webhook is enabled and continues where it stopped.", "webhook-disabled": "The webhook is disabled.",
	"webhook-rotation-ended": "The previous secret is erased. Requests are signed only with the current one.", "env-set": "The values of the variables were saved.",
	"retried": "Put back into its queue.", "dropped": "Dropped.",
}

// render writes a page.
func (x *exchange) render(status int, name string, v view) error {
	v.x = x
	if v.Done == "" && x.signedIn {
		v.Done = did[x.R.URL.Query().Get("did")]
	}
	var b bytes.Buffer
	if err := templates[name].ExecuteTemplate(&b, "layout", v); err != nil {
		return fmt.Errorf("page %s: %w", name, err)
	}
	x.Write(status, "text/html; charset=utf-8", b.Bytes())
	return nil
}

// show writes a page with status 200.
func (x *exchange) show(name string, v view) error { return x.render(http.StatusOK, name, v) }

// refused writes the page of a form again, with the error. An error that the user cannot correct
// in the form gets a page of its own.
func (x *exchange) refused(name string, v view, err error) error {
	f := fault.Of(err)
	switch f.Kind {
	case fault.Internal, fault.Unauthenticated, fault.Denied, fault.NotFound:
		return err
	}
	x.Err, v.Error = err, f
	return x.render(f.Kind.Status(), name, v)
}

// minSeq is the log sequence that the page must reflect, after a redirect from a change.
func (x *exchange) minSeq() uint64 {
	seq, _ := strconv.ParseUint(x.R.URL.Query().Get("seq"), 10, 64)
	return seq
}

// ago formats a time relative to now, with the exact time as its title.
func ago(t time.Time) template.HTML {
	if t.IsZero() {
		return `<span class="quiet">never</span>`
	}
	d, text := time.Since(t), ""
	form := "%s ago"
	if d < 0 {
		d, form = -d, "in %s"
	}
	switch {
	case d < 45*time.Second:
		text, form = "just now", "%s"
		if time.Until(t) > 0 {
			text = "in a moment"
		}
	case d < time.Hour:
		text = strconv.Itoa(int((d+30*time.Second)/time.Minute)) + " min"
	case d < 48*time.Hour:
		text = strconv.Itoa(int((d+30*time.Minute)/time.Hour)) + " h"
	default:
		text = strconv.Itoa(int((d+12*time.Hour)/(24*time.Hour))) + " days"
	}
	exact := t.UTC().Format("2006-01-02 15:04:05") + " UTC"
	return template.HTML(`<time datetime="` + t.UTC().Format(time.RFC3339) + `" title="` + exact + `">` + fmt.Sprintf(form, text) + `</time>`) //nolint:gosec // made of digits and our words
}

// statusWord is a status for people.
type statusWord struct{ Class, Word, Sentence string }

func statusOf(status any) statusWord {
	switch fmt.Sprint(status) {
	case "verified":
		return statusWord{"good", "verified", "The API accepted the keys."}
	case "failed":
		return statusWord{"bad", "check failed", "The API did not accept the keys at the last check."}
	case "reauthorization_required":
		return statusWord{"bad", "connect again", "The provider no longer accepts the tokens: connect the account again."}
	}
	return statusWord{"plain", "unverified", "The component declares no dry request, so the keys were not checked."}
}

// hue is one of twelve colours for a name.
func hue(name string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	return int(h.Sum32() % 12)
}

func initials(title string) string {
	for _, r := range strings.TrimSpace(title) {
		return strings.ToUpper(string(r))
	}
	return "?"
}

// sentence formats the name of an event: "credential.keys_replaced" becomes "Keys replaced".
func sentence(event string) string {
	_, name, _ := strings.Cut(event, ".")
	if name = strings.ReplaceAll(name, "_", " "); name == "" {
		return event
	}
	return strings.ToUpper(name[:1]) + name[1:]
}

// pretty indents a JSON document.
func pretty(v jsontext.Value) string {
	v = bytes.Clone(v)
	if v.Indent() != nil {
		return ""
	}
	return string(v)
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// actor shortens "key:<id>".
func actor(a string) string {
	if id, ok := strings.CutPrefix(a, "key:"); ok {
		return id
	}
	return a
}

// dict returns a map of names and values for a part of a page.
func dict(pairs ...any) map[string]any {
	m := map[string]any{}
	for i := 0; i+1 < len(pairs); i += 2 {
		m[fmt.Sprint(pairs[i])] = pairs[i+1]
	}
	return m
}
