package commands

import (
	"bytes"
	_ "embed"
	"errors"
	"io"
	"maps"
	"math/big"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/net/http/httpguts"

	"github.com/credstream/credstream/fault"
)

// MaxDescriptor is the maximum size of a component.json, in bytes.
const MaxDescriptor = 256 << 10

const (
	maxDescriptorDepth = 32 // of nested objects and arrays
	maxPlaceholders    = 32 // in one template
	maxPointer         = 200
)

// The errors of a descriptor. Their pointers lead into the component.json itself.
var (
	ErrDescriptorInvalid  = fault.New(fault.Invalid, "component_descriptor_invalid", "The component.json is not valid.")
	ErrDescriptorTooLarge = fault.New(fault.Invalid, "component_descriptor_too_large", "The component.json is larger than 256 KiB.")
	// ErrSecretInDescriptor refuses a cleartext secret: descriptors are stored in the log,
	// permanently.
	ErrSecretInDescriptor = fault.New(fault.Invalid, "component_secret_in_descriptor",
		"The component.json contains a secret. Replace it with a template such as {{OAUTH_CLIENT_SECRET}}.")
)

// The errors of a credential's keys. Their pointers are /keys/<name>.
var (
	ErrKeysFieldMissing = fault.New(fault.Invalid, "keys_field_missing", "A required field has no value.")
	ErrKeysFieldUnknown = fault.New(fault.Invalid, "keys_field_unknown", "The component has no field with this name.")
)

// The view classes of fields with OAuth tokens, and of password fields.
const (
	viewOAuth    = "OAuthFieldView"
	viewHTTPAuth = "HTTPAuthView"
	viewPassword = "PasswordFieldView"
)

// Descriptor is a parsed component.json.
type Descriptor struct {
	Raw             []byte // the unchanged file
	Title           string
	Fields          []Field       // of a credential, in the order of the file
	UsesOAuth       bool          // a field holds OAuth tokens
	DeclaresOAuth   bool          // it names OAuth endpoints or clients
	WantsClient     bool          // a tenant can define an OAuth client for it
	Env             []string      // variables that the component's owner sets, sorted
	ClientIDVar     string        // of Env: the client id of the legacy link, "" for none
	ClientSecretVar string        // of Env: its client secret
	OAuth2          *OAuth2       // nil if no usable block is declared
	CannotConnect   string        // why no account can be connected although a field holds tokens, a sentence; "" otherwise
	Hosts           []string      // where a credential's values may be sent: patterns in lower case, which may contain {{field}}
	Verification    *Verification // nil if none is declared

	Partial *OAuth2 // the oauth2 block without its unusable endpoints; nil if none is declared
}

// Field is one value of a credential.
type Field struct {
	Name        string
	Label       string
	ViewClass   string // "TextFieldView", "PasswordFieldView", ...; may be ""
	Note        string
	Placeholder string
	Options     []Option // of a SelectView, in the order of the file
	Required    bool
	Optional    bool // the file declares that it is not required
	Secret      bool // false: queries return the value
}

// OnlyOAuth reports whether the field can only hold OAuth tokens; another OAuth field also accepts
// other kinds of HTTP authentication.
func (f Field) OnlyOAuth() bool { return f.ViewClass == viewOAuth }

// OAuth reports whether the field holds OAuth tokens.
func (f Field) OAuth() bool { return f.ViewClass == viewOAuth || f.ViewClass == viewHTTPAuth }

// Option is one of the values of a SelectView.
type Option struct{ Value, Label string }

// Verification is the dry request: exactly one probe is set. Its strings are templates, in which
// {{name}} is replaced by the value of a field, and {{name|function}} by a value derived from it.
type Verification struct {
	HTTP *HTTPProbe `json:"http"`
	TCP  *TCPProbe  `json:"tcp"`
	TLS  *TLSProbe  `json:"tls"`
	SMTP *Login     `json:"smtp"`

	IMAP     *Login `json:"imap"`
	LDAP     *Login `json:"ldap"`
	Postgres *Login `json:"postgres"`
	MySQL    *Login `json:"mysql"`
	SSH      *Login `json:"ssh"`
	SFTP     *Login `json:"sftp"`
}

// Login returns the probe that signs in to a server, and its name in the file; nil for another one.
func (v *Verification) Login() (protocol string, probe *Login) {
	for _, l := range []struct {
		protocol string
		probe    *Login
	}{{"smtp", v.SMTP}, {"imap", v.IMAP}, {"ldap", v.LDAP}, {"postgres", v.Postgres}, {"mysql", v.MySQL}, {"ssh", v.SSH}, {"sftp", v.SFTP}} {
		if l.probe != nil {
			return l.protocol, l.probe
		}
	}
	return "", nil
}

// HTTPProbe is one HTTP request and the criteria for its response.
type HTTPProbe struct {
	Method    string            `json:"method"`     // "GET", "HEAD" or "POST"
	URL       string            `json:"url"`        // absolute, or {{field}} with a base URL and the rest of the path
	AllowHTTP bool              `json:"allow_http"` // a base URL may begin with http://
	TLS       *TLSFiles         `json:"tls"`        // nil: the system's CAs, and no client certificate
	Headers   map[string]string `json:"headers"`
	Basic     *Basic            `json:"basic"` // nil: none
	Form      map[string]string `json:"form"`  // body of a POST; nil: none
	JSON      jsontext.Value    `json:"json"`  // body of a POST; its strings are templates; nil: none
	Expect    Expect            `json:"expect"`
	Says      map[string]string `json:"says"` // sentence by status ("401") or class ("4xx")
}

// TLSFiles are certificates in PEM for one request, as templates of fields. An empty value counts as
// absent.
type TLSFiles struct {
	CA          string `json:"ca"`          // the only CAs that are trusted
	Certificate string `json:"certificate"` // of the client, with its chain
	Key         string `json:"key"`         // of the client, not encrypted
}

// Basic is HTTP Basic authentication (RFC 7617).
type Basic struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// Expect defines which responses are a success.
type Expect struct {
	Status []int       `json:"status"` // empty: every 2xx
	JSON   []JSONCheck `json:"json"`   // all of them must hold
	Text   []TextCheck `json:"text"`   // as JSON
}

// JSONCheck is a condition on the body, and the sentence for a failure.
type JSONCheck struct {
	Condition
	Says string `json:"says"` // "" for a default sentence
}

// TextCheck is a text that the body must contain, and the sentence for a failure.
type TextCheck struct {
	Contains string `json:"contains"`
	Says     string `json:"says"`
}

// TCPProbe opens a connection and closes it.
type TCPProbe struct {
	Address     string `json:"address"`      // host:port
	DefaultPort int    `json:"default_port"` // if the port's field has no value; 0: none
}

// TLSProbe opens a connection, checks the server's certificate and closes it.
type TLSProbe struct {
	TCPProbe
	TLSFiles
}

// Login signs in to a server and does nothing else there. The schema says which members each
// protocol has.
type Login struct {
	TCPProbe
	TLSFiles
	Security   string `json:"security"` // "starttls" or "tls"
	Username   string `json:"username"`
	Password   string `json:"password"`
	Database   string `json:"database"`
	PrivateKey string `json:"private_key"` // the field that holds it
}

// ParseDescriptor parses a component.json: one JSON document in strict UTF-8 without duplicate
// names. It checks the members that the service uses against component.schema.json and then
// against each other, and ignores all others. Errors: ErrDescriptorTooLarge,
// ErrSecretInDescriptor, ErrDescriptorInvalid, with a pointer to the invalid member. It keeps raw:
// do not change it afterwards. Parsing takes about 10 µs per KiB, so cache the result by revision.
func ParseDescriptor(raw []byte) (Descriptor, error) {
	if len(raw) > MaxDescriptor {
		return Descriptor{}, ErrDescriptorTooLarge
	}
	if err := checkJSON(raw); err != nil {
		return Descriptor{}, err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		return Descriptor{}, ErrDescriptorInvalid
	}
	if err := checkNoClientSecret(doc); err != nil {
		return Descriptor{}, err
	}
	if err := descriptorSchema().Validate(doc); err != nil {
		return Descriptor{}, schemaFault(err)
	}
	var file struct {
		Title       string `json:"title"`
		Credentials struct {
			Fields fieldList `json:"fields"`
			oauthMembers
		} `json:"credentials"`
		oauthMembers
		EnvVars      jsontext.Value `json:"envVars"`
		Env          jsontext.Value `json:"env"`
		Hosts        []string       `json:"hosts"`
		Verification *Verification  `json:"verification"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return Descriptor{}, invalidAt("", "A member has a value of the wrong type.")
	}
	d := Descriptor{
		Raw: raw, Title: file.Title, Fields: file.Credentials.Fields,
		Hosts: file.Hosts, Verification: file.Verification,
		DeclaresOAuth: file.declared() || file.Credentials.declared(),
		WantsClient:   file.wantsClient() || file.Credentials.wantsClient(),
		Env:           slices.Compact(slices.Sorted(slices.Values(slices.Concat(variables(file.EnvVars), variables(file.Env))))),
	}
	if d.ClientIDVar, d.ClientSecretVar = file.clientVariables(); d.ClientIDVar == "" {
		d.ClientIDVar, d.ClientSecretVar = file.Credentials.clientVariables()
	}
	d.OAuth2, err = file.oauth2("/oauth2", &d)
	if err == nil && d.OAuth2 == nil {
		d.OAuth2, err = file.Credentials.oauth2("/credentials/oauth2", &d)
	}
	unusable, isUnusable := errors.AsType[*unusableError](err)
	if err != nil && !isUnusable {
		return Descriptor{}, err
	}
	if strings.ContainsFunc(d.Title, unicode.IsControl) || strings.TrimSpace(d.Title) == "" {
		return Descriptor{}, invalidAt("/title", "The title is empty or has control characters.")
	}
	for _, check := range []func() error{d.checkFields, d.checkHosts, d.checkVerification} {
		if err := check(); err != nil {
			return Descriptor{}, err
		}
	}
	switch {
	case isUnusable:
		d.Partial, d.OAuth2, d.CannotConnect = d.OAuth2, nil, unusable.Error()
	case d.UsesOAuth && d.OAuth2 == nil:
		d.CannotConnect = "The component.json has no oauth2 block with an auth_uri and a token_uri."
	}
	// If the file names no variables for a client, only a tenant's own client can serve it.
	d.WantsClient = d.WantsClient || d.UsesOAuth && d.OAuth2 != nil && d.ClientIDVar == "" && d.OAuth2.NeedsClient()
	return d, nil
}

// freeRules is the stored form of the rules of a free type.
type freeRules struct {
	Hosts        []string       `json:"hosts,omitzero"`
	Verification jsontext.Value `json:"verification,omitzero"`
}

const maxRules = 32 << 10 // bytes

// FreeRules checks the hosts and the dry request of keys of a free type, and encodes them for
// events.CredentialTyped: "" for neither. Errors: those of ParseDescriptor and CheckNoSecrets.
func FreeRules(hosts []string, verification jsontext.Value, fields []string) (string, error) {
	if len(hosts) == 0 && len(verification) == 0 {
		return "", nil
	}
	raw, err := json.Marshal(freeRules{hosts, verification})
	if err != nil {
		return "", ErrDescriptorInvalid
	}
	if len(raw) > maxRules {
		return "", ErrDescriptorTooLarge
	}
	d, err := FreeDescriptor(&FreeType{Name: "free", Rules: string(raw)}, fields)
	if err == nil {
		err = CheckNoSecrets(d.Raw)
	}
	return string(raw), err
}

// FreeDescriptor returns the descriptor of keys of a free type, from their hosts and dry request.
// Every value is secret. Templates may use the keys with a valid field name.
func FreeDescriptor(free *FreeType, fields []string) (Descriptor, error) {
	if free == nil || free.Rules == "" {
		return Descriptor{}, nil
	}
	var rules freeRules
	if err := json.Unmarshal([]byte(free.Rules), &rules); err != nil {
		return Descriptor{}, ErrDescriptorInvalid
	}
	named := map[string]struct{}{}
	for _, name := range fields {
		if fieldName.MatchString(name) {
			named[name] = struct{}{}
		}
	}
	file := map[string]any{"title": "free", "credentials": map[string]any{"fields": named}}
	if rules.Hosts != nil {
		file["hosts"] = rules.Hosts
	}
	if rules.Verification != nil {
		file["verification"] = rules.Verification
	}
	raw, err := json.Marshal(file, json.Deterministic(true))
	if err != nil {
		return Descriptor{}, ErrDescriptorInvalid
	}
	return ParseDescriptor(raw)
}

// oauthMembers are the members that declare OAuth, at the top level or inside credentials. Members
// of another form are ignored.
type oauthMembers struct {
	OAuth2          jsontext.Value `json:"oauth2"`
	UseOAuthClient  jsontext.Value `json:"useOAuthClient"`
	AuthClientTypes jsontext.Value `json:"authClientTypes"`
}

func (m oauthMembers) declared() bool { return m.OAuth2.Kind() == '{' || m.wantsClient() }

// wantsClient reports whether a tenant can define its own client.
func (m oauthMembers) wantsClient() bool {
	var types []string
	_ = json.Unmarshal(m.AuthClientTypes, &types)
	return m.UseOAuthClient.Kind() == 't' || slices.Contains(types, "oauth2")
}

// clientVariables returns the variables in the templates of the legacy link:
// {"client_id": "{{PIZZAVAN_KEY}}", "client_secret": "{{PIZZAVAN_SECRET}}"}.
func (m oauthMembers) clientVariables() (id, secret string) {
	var block struct {
		ID     string `json:"client_id"`
		Secret string `json:"client_secret"`
	}
	if json.Unmarshal(m.OAuth2, &block) != nil {
		return "", ""
	}
	variable := func(template string) string {
		inner, ok := strings.CutPrefix(strings.TrimSpace(template), "{{")
		if name, closed := strings.CutSuffix(inner, "}}"); ok && closed {
			return strings.TrimSpace(name)
		}
		return ""
	}
	return variable(block.ID), variable(block.Secret)
}

// variables returns the names that an object declares, sorted.
func variables(object jsontext.Value) []string {
	var declared map[string]jsontext.Value
	if object.Kind() != '{' || json.Unmarshal(object, &declared) != nil {
		return nil
	}
	return slices.Sorted(maps.Keys(declared))
}

// NeedsCredential reports whether a step of the component requires a credential: it has a field,
// and not all fields are optional.
func (d Descriptor) NeedsCredential() bool {
	return slices.ContainsFunc(d.Fields, func(f Field) bool { return !f.Optional }) || d.DeclaresOAuth
}

// Field returns the field called name; ok is false if there is none.
func (d Descriptor) Field(name string) (f Field, ok bool) {
	i := slices.IndexFunc(d.Fields, func(f Field) bool { return f.Name == name })
	if i < 0 {
		return Field{}, false
	}
	return d.Fields[i], true
}

// HostFields returns the names of the fields whose values determine the hosts that a credential's
// values are sent to, in the order of the file.
func (d Descriptor) HostFields() []string {
	var names []string
	for _, f := range d.Fields {
		if slices.ContainsFunc(d.Hosts, func(p string) bool { return uses(p, f.Name) }) {
			names = append(names, f.Name)
		}
	}
	return names
}

// HostTemplates returns the distinct templates in Hosts, {{field}} and {{field|function}}, in the
// order of the fields.
func (d Descriptor) HostTemplates() (templates []string) {
	for _, f := range d.Fields {
		for _, pattern := range d.Hosts {
			for _, e := range expressions(pattern) {
				if t := "{{" + e + "}}"; fieldOf(e) == f.Name && !slices.Contains(templates, t) {
					templates = append(templates, t)
				}
			}
		}
	}
	return templates
}

// CheckKeys checks the names of the fields that have a non-empty value: ErrKeysFieldUnknown,
// ErrKeysFieldMissing. A field whose tokens the service itself requests needs no value.
func (d Descriptor) CheckKeys(names []string) error {
	for _, name := range names {
		if _, ok := d.Field(name); !ok {
			return ErrKeysFieldUnknown.Withf("The component has no field %q.", short(name)).At(pointer("keys", name))
		}
	}
	for _, f := range d.Fields {
		requested := f.OAuth() && d.OAuth2 != nil && d.OAuth2.ClientCredentials
		if f.Required && !requested && !slices.Contains(names, f.Name) {
			return ErrKeysFieldMissing.Withf("The field %q is required.", f.Name).At(pointer("keys", f.Name))
		}
	}
	return nil
}

// KeepsRules reports whether d has the same rules as the descriptor entered for the values of these
// fields: the hosts that they may be sent to, the dry request, the requests to the provider that
// contain them, which are masked, and which hold OAuth tokens. d may mask more of them.
func (d Descriptor) KeepsRules(entered Descriptor, fields []string) bool {
	for _, name := range fields {
		was, before := entered.Field(name)
		now, still := d.Field(name)
		if !before || !still || was.Secret && !now.Secret || was.OAuth() != now.OAuth() {
			return false
		}
	}
	return slices.Equal(d.Hosts, entered.Hosts) && reflect.DeepEqual(d.Verification.sends(), entered.Verification.sends()) &&
		reflect.DeepEqual(d.declaredOAuth().sends(), entered.declaredOAuth().sends())
}

// PublicClients reports whether the clients of the component need no secret: they use only PKCE.
func (d Descriptor) PublicClients() bool { o := d.declaredOAuth(); return o != nil && o.Public }

// declaredOAuth returns the oauth2 block, with or without usable endpoints; nil if there is none.
func (d Descriptor) declaredOAuth() *OAuth2 {
	if d.OAuth2 != nil {
		return d.OAuth2
	}
	return d.Partial
}

// sends returns the dry request without the criteria for its response, which send no value
// anywhere.
func (v *Verification) sends() Verification {
	if v == nil {
		return Verification{}
	}
	sent := *v
	if v.HTTP != nil {
		request := *v.HTTP
		request.Expect, request.Says = Expect{}, nil
		sent.HTTP = &request
	}
	return sent
}

// fieldList preserves the order of the file.
type fieldList []Field

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (l *fieldList) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	return eachMember(dec, func(name string) error {
		var in struct {
			Label       string         `json:"label"`
			ViewClass   string         `json:"viewClass"`
			Note        string         `json:"note"`
			Placeholder string         `json:"placeholder"`
			Model       jsontext.Value `json:"model"`
			Required    *bool          `json:"required"`
			Secret      *bool          `json:"secret"`
		}
		if err := json.UnmarshalDecode(dec, &in); err != nil {
			return err
		}
		*l = append(*l, Field{
			Name: name, Label: in.Label, ViewClass: in.ViewClass, Note: in.Note, Placeholder: in.Placeholder,
			Options: options(in.Model), Required: in.Required != nil && *in.Required, Optional: in.Required != nil && !*in.Required, Secret: in.Secret == nil || *in.Secret,
		})
		return nil
	})
}

// options parses a SelectView's model. It returns no options for a model that is nested, or names a
// function of the component.
func options(model jsontext.Value) (list []Option) {
	if model.Kind() != '{' {
		return nil
	}
	dec := jsontext.NewDecoder(bytes.NewReader(model))
	err := eachMember(dec, func(value string) error {
		label, err := dec.ReadToken()
		if err != nil {
			return err
		}
		if label.Kind() != '"' {
			return errors.New("not a label")
		}
		list = append(list, Option{Value: value, Label: label.String()})
		return nil
	})
	if err != nil {
		return nil
	}
	return list
}

// eachMember decodes an object and calls member with each name; member decodes the value.
func eachMember(dec *jsontext.Decoder, member func(name string) error) error {
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return err
		}
		if err := member(name.String()); err != nil {
			return err
		}
	}
	_, err := dec.ReadToken()
	return err
}

// checkFields checks the fields against each other and sets UsesOAuth.
func (d *Descriptor) checkFields() error {
	for _, f := range d.Fields {
		d.UsesOAuth = d.UsesOAuth || f.OAuth()
		if !f.Secret && (f.OAuth() || f.ViewClass == viewPassword) {
			return invalidAt(pointer("credentials", "fields", f.Name, "secret"), "A field with the view %s is always secret.", f.ViewClass)
		}
	}
	return nil
}

// checkHosts converts the patterns to lower case. If none are declared, it adds the probe's host.
func (d *Descriptor) checkHosts() error {
	own := ""
	if d.Verification != nil {
		own = d.Verification.host()
	}
	for i, h := range d.Hosts {
		at := pointer("hosts", strconv.Itoa(i))
		pattern, ok := hostPattern(h)
		if !ok {
			return invalidAt(at, "This is not a host name. Use letters, digits, dots and hyphens, with {{field}} for a whole part between dots; no port, scheme or wildcard.")
		}
		if err := d.checkTemplate(at, pattern); err != nil {
			return err
		}
		for _, e := range expressions(pattern) {
			name := fieldOf(e)
			// A part of a password can be public, such as the data centre at the end of Mailchimp's keys.
			part := strings.Contains(e, "|after(") && belowDomain(pattern)
			if f, _ := d.Field(name); f.OAuth() || f.ViewClass == viewPassword && !part {
				return invalidAt(at, "The field %q is a password or a token and cannot be part of a host. Only a part of a password can, by after, below a domain that the file names.", name)
			}
		}
		d.Hosts[i] = pattern
	}
	if len(d.Hosts) == 0 && own != "" && !strings.Contains(own, "{{") {
		if pattern, ok := hostPattern(own); ok {
			d.Hosts = []string{pattern}
		}
	}
	return nil
}

const oneProbe = "Give exactly one of http, tcp, tls, smtp, imap, ldap, postgres, mysql, ssh and sftp."

// checkVerification checks the probe against the fields and the hosts.
func (d *Descriptor) checkVerification() error {
	switch v := d.Verification; {
	case v == nil:
		return nil
	case v.HTTP != nil:
		return d.checkHTTP(v.HTTP)
	case v.TCP != nil:
		return d.checkAddress("/verification/tcp", *v.TCP)
	case v.TLS != nil:
		if err := d.checkAddress("/verification/tls", v.TLS.TCPProbe); err != nil {
			return err
		}
		return d.checkTLSFiles("/verification/tls", &v.TLS.TLSFiles)
	}
	if protocol, login := d.Verification.Login(); login != nil {
		return d.checkLogin("/verification/"+protocol, login)
	}
	return invalidAt("/verification", oneProbe)
}

// addresses returns the templates that determine to which server the probe goes, beside its host.
func (v *Verification) addresses() []string {
	switch {
	case v == nil:
		return nil
	case v.HTTP != nil && v.HTTP.TLS != nil:
		return []string{v.HTTP.TLS.CA}
	case v.TCP != nil:
		return []string{v.TCP.Address}
	case v.TLS != nil:
		return []string{v.TLS.Address, v.TLS.CA}
	}
	if _, login := v.Login(); login != nil {
		return []string{login.Address, login.CA}
	}
	return nil
}

// host returns the probe's host, in lower case if it is valid.
func (v *Verification) host() string {
	var host string
	switch {
	case v.HTTP != nil:
		if base, _, ok := cutBase(v.HTTP.URL); ok {
			return base
		}
		host, _, _ = splitPort(authority(v.HTTP.URL))
	case v.TCP != nil:
		host, _, _ = splitPort(v.TCP.Address)
	case v.TLS != nil:
		host, _, _ = splitPort(v.TLS.Address)
	}
	if _, login := v.Login(); login != nil {
		host, _, _ = splitPort(login.Address)
	}
	if pattern, ok := hostPattern(host); ok {
		return pattern
	}
	return host
}

func (d *Descriptor) checkHTTP(p *HTTPProbe) error {
	const at = "/verification/http"
	if p.Method == "" {
		p.Method = "GET"
	}
	if err := d.checkURL(at+"/url", p.URL); err != nil {
		return err
	}
	if err := d.checkTLSFiles(at+"/tls", p.TLS); err != nil {
		return err
	}
	if err := d.checkHeaders(at+"/headers", p.Headers, p.Basic != nil); err != nil {
		return err
	}
	templates := []string{p.URL}
	templates = slices.AppendSeq(templates, maps.Values(p.Headers))
	if b := p.Basic; b != nil {
		if err := d.checkTemplate(at+"/basic/username", b.Username); err != nil {
			return err
		}
		if err := d.checkTemplate(at+"/basic/password", b.Password); err != nil {
			return err
		}
		if strings.Contains(b.Username, ":") {
			return invalidAt(at+"/basic/username", "A user name cannot contain a colon.")
		}
		if !strings.Contains(b.Username+b.Password, "{{") {
			return ErrSecretInDescriptor.Withf("The user name and password are literal values. Use the fields that contain them: {{field}}.").At(at + "/basic")
		}
		templates = append(templates, b.Username+b.Password)
	}
	if p.Form != nil || p.JSON != nil {
		switch {
		case p.Method != "POST":
			return invalidAt(at, "Only a POST request can have a body.")
		case p.Form != nil && p.JSON != nil:
			return invalidAt(at, "Give the body as either form or json, not both.")
		}
	}
	for _, name := range sorted(p.Form) {
		if err := d.checkTemplate(at+pointer("form", name), p.Form[name]); err != nil {
			return err
		}
		templates = append(templates, p.Form[name])
	}
	if p.JSON != nil {
		texts, err := d.checkJSONBody(at+"/json", p.JSON)
		if err != nil {
			return err
		}
		templates = append(templates, texts...)
	}
	if err := p.checkSentences(at); err != nil {
		return err
	}
	if !slices.ContainsFunc(templates, func(t string) bool { return strings.Contains(t, "{{") }) {
		return invalidAt(at, "The request uses no field, so it cannot verify the keys.")
	}
	return nil
}

// checkSentences checks the probe's sentences, and its conditions on response bodies.
func (p *HTTPProbe) checkSentences(at string) error {
	sentence := func(at, says string) error {
		if strings.ContainsFunc(says, unicode.IsControl) || strings.Contains(says, "{{") {
			return invalidAt(at, "The message cannot contain control characters or {{field}}.")
		}
		return nil
	}
	for _, status := range sorted(p.Says) {
		if err := sentence(at+pointer("says", status), p.Says[status]); err != nil {
			return err
		}
	}
	if p.Method == "HEAD" && len(p.Expect.JSON)+len(p.Expect.Text) > 0 {
		return invalidAt(at+"/expect", "The response to a HEAD request has no body to check. Use GET.")
	}
	for i, check := range p.Expect.JSON {
		at := at + pointer("expect", "json", strconv.Itoa(i))
		if err := errors.Join(check.check(at), sentence(at+"/says", check.Says)); err != nil {
			return err
		}
	}
	for i, check := range p.Expect.Text {
		if err := sentence(at+pointer("expect", "text", strconv.Itoa(i), "says"), check.Says); err != nil {
			return err
		}
	}
	return nil
}

// checkURL refuses a URL that a value or a typing error could turn into another destination for
// secrets.
func (d *Descriptor) checkURL(at, template string) error {
	if err := d.checkTemplate(at, template); err != nil {
		return err
	}
	base, tail, isBase := cutBase(template)
	rest := template
	if isBase {
		// The field is checked as a URL when it has a value.
		if rest = "https://base.invalid" + tail; tail != "" && tail[0] != '/' && tail[0] != '?' {
			return invalidAt(at, "A field with a base URL must be followed by a path.")
		}
	}
	auth := authority(rest)
	if auth == "" {
		return invalidAt(at, "The URL must begin with https:// or http:// and a host, or with a {{field}} that holds a base URL.")
	}
	if strings.ContainsFunc(template, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '\\' }) {
		return invalidAt(at, "The URL contains a space, a backslash, a control character or a non-ASCII character. Percent-encode it.")
	}
	if strings.Contains(template, "#") {
		return invalidAt(at, "The URL contains a fragment (#).")
	}
	if strings.Contains(auth, "@") {
		return invalidAt(at, "The URL contains a user name. Use basic instead.")
	}
	sample := fill(rest, "x")
	if strings.ContainsAny(sample, "{}") {
		return invalidAt(at, "The URL contains a brace that is not part of {{field}}.")
	}
	if strings.Contains(sample, "/../") || strings.Contains(sample, "/./") {
		return invalidAt(at, "The URL's path contains a dot segment.")
	}
	if u, err := url.Parse(sample); err != nil || u.Host == "" || u.Opaque != "" {
		return invalidAt(at, "This is not a URL.")
	}
	if isBase {
		return d.checkDeclared(at, base)
	}
	if d.Verification.HTTP != nil && d.Verification.HTTP.AllowHTTP {
		return invalidAt("/verification/http/allow_http", "allow_http is only allowed for a URL that begins with a {{field}}.")
	}
	host, port, hasPort := splitPort(auth)
	if hasPort && !isPort(port) {
		return invalidAt(at, "The port must be a number from 1 to 65535, not a field.")
	}
	return d.checkDeclared(at, host)
}

// checkDeclared checks the probe's host against hosts.
func (d *Descriptor) checkDeclared(at, host string) error {
	pattern, ok := hostPattern(host)
	if !ok {
		return invalidAt(at, "The host must be a name or an IPv4 address.")
	}
	if !slices.Contains(d.Hosts, pattern) {
		return invalidAt(at, "The host %q is not listed in hosts. Add it there exactly as written here.", short(pattern))
	}
	return nil
}

// checkTLSFiles checks that the files are fields, not literals. t may be nil.
func (d *Descriptor) checkTLSFiles(at string, t *TLSFiles) error {
	if t == nil {
		return nil
	}
	for _, file := range []struct{ member, template string }{{"ca", t.CA}, {"certificate", t.Certificate}, {"key", t.Key}} {
		if err := d.checkTemplate(at+"/"+file.member, file.template); err != nil {
			return err
		}
		if file.template != "" && !wholeTemplate.MatchString(file.template) {
			return invalidAt(at+"/"+file.member, "Name the field that holds the PEM: {{field}}.")
		}
	}
	if (t.Certificate == "") != (t.Key == "") {
		return invalidAt(at, "certificate and key are only allowed together.")
	}
	return nil
}

func (d *Descriptor) checkLogin(at string, p *Login) error {
	if p.Security == "" {
		p.Security = "starttls"
	}
	if err := d.checkAddress(at, p.TCPProbe); err != nil {
		return err
	}
	if err := d.checkTLSFiles(at, &p.TLSFiles); err != nil {
		return err
	}
	for _, part := range []struct{ member, template string }{{"username", p.Username}, {"password", p.Password}, {"database", p.Database}, {"private_key", p.PrivateKey}} {
		if err := d.checkTemplate(at+"/"+part.member, part.template); err != nil {
			return err
		}
	}
	if p.PrivateKey != "" && !wholeTemplate.MatchString(p.PrivateKey) {
		return invalidAt(at+"/private_key", "Name the field that holds the private key: {{field}}.")
	}
	if p.Password == "" && p.PrivateKey == "" {
		return invalidAt(at, "Name the field of the password or of the private key.")
	}
	if p.Password != "" && !strings.Contains(p.Password, "{{") {
		return ErrSecretInDescriptor.Withf("The password is a literal value. Use the field that contains it: {{field}}.").At(at + "/password")
	}
	return nil
}

func (d *Descriptor) checkAddress(at string, p TCPProbe) error {
	at += "/address"
	if err := d.checkTemplate(at, p.Address); err != nil {
		return err
	}
	host, port, hasPort := splitPort(p.Address)
	names, _ := placeholders(port)
	isField := len(names) == 1 && wholeTemplate.MatchString(port)
	if !hasPort || !isField && !isPort(port) {
		return invalidAt(at, "The address must be host:port. The port is a number from 1 to 65535 or {{field}}.")
	}
	if p.DefaultPort != 0 && !isField {
		return invalidAt(at, "default_port is only allowed for a port that is a {{field}}.")
	}
	return d.checkDeclared(at, host)
}

// ownHeaders are set by the HTTP client, or would change the destination (RFC 9110, section 7.6.1),
// the framing of the response, or what it reveals of the request.
var ownHeaders = []string{
	"accept-encoding", "connection", "content-length", "expect", "host", "http2-settings", "keep-alive",
	"referer", "te", "trailer", "transfer-encoding", "upgrade",
}

func (d *Descriptor) checkHeaders(at string, headers map[string]string, basic bool) error {
	seen := map[string]bool{}
	for _, name := range sorted(headers) {
		at, value, lower := at+pointer(name), headers[name], strings.ToLower(name)
		switch {
		case !httpguts.ValidHeaderFieldName(name):
			return invalidAt(at, "This is not a valid name of a header field.")
		case slices.Contains(ownHeaders, lower), strings.HasPrefix(lower, "proxy-"):
			return invalidAt(at, "The HTTP client sets the header field %s. Remove it.", short(name))
		case seen[lower]:
			return invalidAt(at, "The header field %s appears more than once.", short(name))
		case basic && lower == "authorization":
			return invalidAt(at, "The request has both basic and an Authorization header. Remove one of them.")
		case !httpguts.ValidHeaderFieldValue(value):
			return invalidAt(at, "The value contains a line break or another control character.")
		}
		seen[lower] = true
		if err := d.checkTemplate(at, value); err != nil {
			return err
		}
		if lower == "authorization" && !strings.Contains(value, "{{") {
			return ErrSecretInDescriptor.Withf("The Authorization header is a literal value. Use the field that contains the secret: {{field}}.").At(at)
		}
	}
	return nil
}

// checkJSONBody checks every string of a body and returns them. Placeholders are only allowed in
// values, not in names.
func (d *Descriptor) checkJSONBody(at string, body jsontext.Value) ([]string, error) {
	var texts []string
	dec := jsontext.NewDecoder(bytes.NewReader(body))
	for {
		token, err := dec.ReadToken()
		switch {
		case errors.Is(err, io.EOF):
			return texts, nil
		case err != nil:
			return nil, invalidAt(at, "The body is not JSON.")
		case token.Kind() != '"':
			continue
		}
		text := token.String()
		// Only errors build the pointer: its names can be as long as the body.
		location := func() string { return at + string(dec.StackPointer()) }
		if d.checkTemplate(at, text) != nil {
			return nil, d.checkTemplate(location(), text)
		}
		if outer, n := dec.StackIndex(dec.StackDepth()); outer == '{' && n%2 == 1 {
			if strings.Contains(text, "{{") {
				return nil, invalidAt(location(), "A name cannot contain {{field}}.")
			}
			continue
		}
		texts = append(texts, text)
	}
}

// checkTemplate checks that braces are balanced and that each name is that of a field.
func (d *Descriptor) checkTemplate(at, template string) error {
	names, ok := placeholders(template)
	if !ok {
		return invalidAt(at, "Braces are only allowed around the name of a field: {{field}}.")
	}
	if len(names) > maxPlaceholders {
		return invalidAt(at, "A template can use at most %d fields.", maxPlaceholders)
	}
	for _, name := range names {
		if _, ok := d.Field(name); !ok {
			return invalidAt(at, "The credential has no field {{%s}}.", name)
		}
	}
	for _, pattern := range expected.FindAllStringSubmatch(template, -1) {
		if _, err := regexp.Compile("^(?:" + pattern[1] + ")$"); err != nil {
			return invalidAt(at, "The pattern of what follows in after is not a regular expression (RE2).")
		}
	}
	return nil
}

var (
	fieldName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,63}$`)
	// expression is what braces enclose: a field, and the functions of package verify that derive a
	// value. No argument has a character that delimits a part of a URL.
	expression = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,63}(\|(base64|lower|trim|after\("[!$-.0-9;->@-\[\]-z|~]{1,8}"(,"[A-Za-z0-9()\[\].*+|^-]{1,40}")?\))){0,4}$`)
	// expected is the pattern of what follows in after.
	expected = regexp.MustCompile(`","([^"]+)"\)`)
	// hostShape is a host name with _ for a placeholder. Dots or hyphens must delimit it, so that
	// no value can extend the adjacent fixed part.
	hostShape = regexp.MustCompile(`^(_|[a-z0-9]+)(-+(_|[a-z0-9]+))*(\.(_|[a-z0-9]+)(-+(_|[a-z0-9]+))*)*$`)
)

// placeholders returns the names in a template, in order; ok is false if braces are empty or
// unbalanced.
func placeholders(template string) (names []string, ok bool) {
	for {
		text, rest, more := strings.Cut(template, "{{")
		if strings.Contains(text, "}}") {
			return nil, false
		}
		if !more {
			return names, true
		}
		name, tail, closed := strings.Cut(rest, "}}")
		if !closed || !expression.MatchString(name) {
			return nil, false
		}
		names, template = append(names, fieldOf(name)), tail
	}
}

// expressions returns what is between the braces of a checked template, in order.
func expressions(template string) (list []string) {
	for {
		_, rest, more := strings.Cut(template, "{{")
		if !more {
			return list
		}
		e, tail, _ := strings.Cut(rest, "}}")
		list, template = append(list, e), tail
	}
}

// fieldOf returns the field of an expression.
func fieldOf(expression string) string {
	name, _, _ := strings.Cut(expression, "|")
	return name
}

// uses reports whether a template contains the field.
func uses(template, field string) bool {
	return slices.ContainsFunc(expressions(template), func(e string) bool { return fieldOf(e) == field })
}

// cutBase splits a URL that begins with a field, which holds a base URL.
func cutBase(template string) (base, tail string, ok bool) {
	end := strings.Index(template, "}}")
	if !strings.HasPrefix(template, "{{") || end < 0 {
		return "", "", false
	}
	return template[:end+2], template[end+2:], true
}

// fill replaces every placeholder of a checked template by value.
func fill(template, value string) string {
	for _, e := range expressions(template) {
		template = strings.Replace(template, "{{"+e+"}}", value, 1)
	}
	return template
}

// hostPattern returns a host, which may contain placeholders, with its fixed parts in lower case; ok
// is false if it is invalid.
func hostPattern(host string) (pattern string, ok bool) {
	if _, ok := placeholders(host); !ok || strings.Contains(fill(host, ""), "_") {
		return "", false
	}
	if shape := strings.ToLower(fill(host, "_")); len(shape) > 253 || !hostShape.MatchString(shape) {
		return "", false
	}
	var b strings.Builder
	for {
		text, rest, more := strings.Cut(host, "{{")
		b.WriteString(strings.ToLower(text))
		if !more {
			return b.String(), true
		}
		name, tail, _ := strings.Cut(rest, "}}")
		b.WriteString("{{" + name + "}}")
		host = tail
	}
}

// authority returns the authority of an http or https URL, or "".
func authority(rawURL string) string {
	rest, ok := strings.CutPrefix(rawURL, "https://")
	if !ok {
		if rest, ok = strings.CutPrefix(rawURL, "http://"); !ok {
			return ""
		}
	}
	if end := strings.IndexAny(rest, "/?#"); end >= 0 {
		rest = rest[:end]
	}
	return rest
}

// splitPort splits host:port; a host alone has no port.
func splitPort(hostport string) (host, port string, ok bool) {
	i := strings.LastIndexByte(hostport, ':')
	if i < 0 {
		return hostport, "", false
	}
	return hostport[:i], hostport[i+1:], true
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0 && s[0] != '0' && s[0] != '+'
}

// checkJSON checks what a JSON Schema cannot: one document, strict UTF-8, no duplicate names, bounded
// depth, and numbers that are cheap to compare.
func checkJSON(raw []byte) error {
	if bytes.HasPrefix(raw, []byte("\xef\xbb\xbf")) {
		return invalidAt("", "The file begins with a byte order mark. Save it as UTF-8 without one.")
	}
	dec := jsontext.NewDecoder(bytes.NewReader(raw))
	for documents := 0; ; {
		token, err := dec.ReadToken()
		var syntax *jsontext.SyntacticError
		switch {
		case errors.Is(err, io.EOF) && documents == 1:
			return nil
		case errors.Is(err, io.EOF) && len(bytes.TrimSpace(raw)) == 0:
			return invalidAt("", "The file is empty.")
		case errors.Is(err, jsontext.ErrDuplicateName) && errors.As(err, &syntax):
			return invalidAt(string(syntax.JSONPointer), "A name appears more than once in one object.")
		case errors.As(err, &syntax):
			return invalidAt(string(syntax.JSONPointer), "The file is not valid JSON in UTF-8, at or after byte %d.", syntax.ByteOffset)
		case err != nil:
			return invalidAt("", "The file is not valid JSON in UTF-8, at or after byte %d.", dec.InputOffset())
		case documents == 1:
			return invalidAt("", "The file contains more than one JSON document.")
		case dec.StackDepth() > maxDescriptorDepth:
			return invalidAt(string(dec.StackPointer()), "Objects and arrays are nested deeper than %d levels.", maxDescriptorDepth)
		case token.Kind() == '0' && !plainNumber(token.String()):
			return invalidAt(string(dec.StackPointer()), "A number is too long or too large.")
		}
		if dec.StackDepth() == 0 {
			documents++
		}
	}
}

// plainNumber rejects numbers such as 1e999999999, for which exact arithmetic takes forever.
func plainNumber(s string) bool {
	_, exponent, _ := strings.Cut(strings.ToLower(s), "e")
	return len(s) <= 64 && len(exponent) <= 4
}

// checkNoClientSecret refuses a cleartext client secret anywhere in the OAuth parts of the document.
// A template or an empty string is allowed.
func checkNoClientSecret(doc any) error {
	root, _ := doc.(map[string]any)
	for _, part := range []string{"credentials", "oauth2"} {
		if at := clientSecret(root[part], "/"+part); at != "" {
			return ErrSecretInDescriptor.At(shortPointer(at))
		}
	}
	return nil
}

// wholeTemplate matches a string that consists of one template.
var wholeTemplate = regexp.MustCompile(`^\{\{[^{}]+\}\}$`)

// clientSecret returns a pointer to a cleartext client secret within v, or "".
func clientSecret(v any, at string) string {
	switch v := v.(type) {
	case []any:
		for i, e := range v {
			if found := clientSecret(e, at+pointer(strconv.Itoa(i))); found != "" {
				return found
			}
		}
	case map[string]any:
		for _, name := range sorted(v) {
			e := v[name]
			text, isText := e.(string)
			plain := strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(name))
			if isText && plain == "clientsecret" && text != "" && !wholeTemplate.MatchString(text) {
				return at + pointer(name)
			}
			if found := clientSecret(e, at+pointer(name)); found != "" {
				return found
			}
		}
	}
	return ""
}

// DescriptorSchema is the JSON Schema (draft 2020-12) of the members of a component.json that the
// service uses.
//
//go:embed component.schema.json
var DescriptorSchema string

// descriptorSchema is compiled once and cannot load other schemas.
var descriptorSchema = sync.OnceValue(func() *jsonschema.Schema {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(DescriptorSchema))
	if err != nil {
		panic("commands: component.schema.json: " + err.Error())
	}
	const id = "urn:credstream:component:1"
	c := jsonschema.NewCompiler()
	c.UseLoader(jsonschema.SchemeURLLoader{})
	if err := c.AddResource(id, doc); err != nil {
		panic("commands: component.schema.json: " + err.Error())
	}
	return c.MustCompile(id)
})

// schemaFault returns the error for the first violation. The library's own messages repeat the value,
// which may be long or secret.
func schemaFault(err error) error {
	var v *jsonschema.ValidationError
	if !errors.As(err, &v) {
		return ErrDescriptorInvalid
	}
	v = firstFault(v)
	at := pointer(v.InstanceLocation...)
	switch k := v.ErrorKind.(type) {
	case *kind.Type:
		return invalidAt(at, "The value must be of type %s, but is of type %s.", strings.Join(k.Want, " or "), k.Got)
	case *kind.Required:
		return invalidAt(at, "The member %q is missing.", k.Missing[0])
	case *kind.AdditionalProperties:
		slices.Sort(k.Properties)
		return invalidAt(at, "The name %q is not allowed here.", short(k.Properties[0]))
	case *kind.Enum:
		var want []string
		for _, w := range k.Want {
			switch w := w.(type) {
			case string:
				want = append(want, w)
			case bool:
				want = append(want, strconv.FormatBool(w))
			}
		}
		return invalidAt(at, "The value must be one of %s.", strings.Join(want, ", "))
	case *kind.MinProperties, *kind.MaxProperties:
		if at == "/verification" {
			return invalidAt(at, oneProbe)
		}
		return invalidAt(at, "There are too many or too few members here.")
	case *kind.MinItems:
		return invalidAt(at, "At least %d items are required.", k.Want)
	case *kind.MaxItems:
		return invalidAt(at, "At most %d items are allowed.", k.Want)
	case *kind.UniqueItems:
		return invalidAt(at, "An item appears more than once.")
	case *kind.MinLength:
		return invalidAt(at, "At least %d characters are required.", k.Want)
	case *kind.MaxLength:
		return invalidAt(at, "At most %d characters are allowed.", k.Want)
	case *kind.Minimum:
		return invalidAt(at, "The number must be at least %s.", whole(k.Want))
	case *kind.Maximum:
		return invalidAt(at, "The number must be at most %s.", whole(k.Want))
	case *kind.OneOf: // only of a condition
		return invalidAt(at, "Give exactly one of equals, one_of, matches and exists.")
	case *kind.FalseSchema: // a member that the schema does not evaluate
		return invalidAt(at, "This name is not allowed here.")
	case *kind.Not:
		return invalidAt(at, "This value is not allowed here.")
	}
	return invalidAt(at, "This does not match the schema of a component.json.")
}

// firstFault returns the most specific violation, the first by pointer if there are several: the
// library iterates over maps, but an error must be the same in each run.
func firstFault(v *jsonschema.ValidationError) *jsonschema.ValidationError {
	if len(v.Causes) == 0 {
		return v
	}
	var first *jsonschema.ValidationError
	for _, cause := range v.Causes {
		if f := firstFault(cause); first == nil || slices.Compare(f.InstanceLocation, first.InstanceLocation) < 0 {
			first = f
		}
	}
	return first
}

// sorted returns the names of m in order, so that errors are the same in each run.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func whole(r *big.Rat) string { return r.RatString() }

func invalidAt(at, format string, args ...any) error {
	return ErrDescriptorInvalid.Withf(format, args...).At(shortPointer(at))
}

// pointer returns a JSON pointer (RFC 6901).
func pointer(tokens ...string) string {
	var p jsontext.Pointer
	for _, t := range tokens {
		p = p.AppendToken(short(t))
	}
	return string(p)
}

// shortPointer truncates a pointer at a token, so that no error repeats a large input.
func shortPointer(p string) string {
	if len(p) <= maxPointer {
		return p
	}
	return p[:strings.LastIndexByte(p[:maxPointer], '/')]
}

// short truncates a name, so that no error repeats a large input.
func short(name string) string {
	const limit = 64
	if len(name) <= limit {
		return name
	}
	return strings.ToValidUTF8(name[:limit], "") + "..."
}
