package oauth

import (
	"bytes"
	"maps"
	"math"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/verify"
)

// response is the parsed response of a token endpoint. Parsing is lenient: an invalid member
// does not affect the others.
type response struct {
	body     []byte // the unchanged JSON object; nil for a form
	members  map[string]jsontext.Value
	complete bool // parsed to its end
}

// parse parses a JSON object, or a form, which some older providers send. Of a truncated
// object it keeps the complete members.
func parse(body []byte) response {
	body = bytes.TrimSpace(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")))
	if bytes.HasPrefix(body, []byte("{")) {
		return parseObject(body)
	}
	return parseForm(body)
}

func parseObject(body []byte) response {
	a := response{body: body, members: map[string]jsontext.Value{}}
	dec := jsontext.NewDecoder(bytes.NewReader(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if _, err := dec.ReadToken(); err != nil {
		return a
	}
	for dec.PeekKind() == '"' {
		token, err := dec.ReadToken()
		if err != nil {
			return a
		}
		name := token.String() // before the next read, which invalidates the token
		value, err := dec.ReadValue()
		if err != nil {
			return a
		}
		a.members[name] = value.Clone()
	}
	_, err := dec.ReadToken()
	a.complete = err == nil
	return a
}

// within adds the members of the object at pointer, which take precedence. The body stays that of
// the whole response, for the rules about errors.
func (a response) within(pointer string) response {
	if pointer == "" || a.body == nil {
		return a
	}
	object, found := verify.Member(a.body, pointer)
	if !found || object.Kind() != '{' {
		return a
	}
	maps.Copy(a.members, parseObject(object).members)
	return a
}

func parseForm(body []byte) response {
	form, err := url.ParseQuery(string(body))
	if err != nil || !form.Has("access_token") && !form.Has("error") {
		return response{}
	}
	a := response{members: map[string]jsontext.Value{}, complete: true}
	for name := range form {
		if value, err := jsontext.AppendQuote(nil, form.Get(name)); err == nil {
			a.members[name] = value
		}
	}
	return a
}

// text returns a member that is a string, or a number as it was written; else "".
func (a response) text(name string) string {
	switch value := a.members[name]; value.Kind() {
	case '"':
		text, _ := jsontext.AppendUnquote(nil, value) // an error means that bad UTF-8 was replaced
		return string(text)
	case '0':
		return string(value)
	}
	return ""
}

// codePointers are where providers put an error code if not in the member error.
var codePointers = []string{"/error/code", "/error/type", "/error/status", "/error_code", "/errorCode", "/code", "/errors/0/code", "/errors/0/error"}

// code returns the member error. Elsewhere, only a known error code counts. It returns "" if
// there is none.
func (a response) code() string {
	if code := a.text("error"); code != "" {
		return code
	}
	for _, pointer := range codePointers {
		value, _ := verify.Member(a.document(), pointer)
		text, _ := verify.Text(value)
		if _, known := knownCodes[strings.ToLower(text)]; known {
			return text
		}
	}
	return ""
}

// document returns the response as one JSON object, which may be truncated.
func (a response) document() []byte {
	if a.body != nil {
		return a.body
	}
	return object(a.members)
}

// refresh returns the refresh token. Any text that is not empty is accepted: it is only ever
// sent back to the provider.
func (a response) refresh() seal.Secret { return seal.NewSecret([]byte(a.text("refresh_token"))) }

// token returns the tokens of the response; ok is false if it holds no access token that is
// valid in a header field. Type and Scope, which people see, are dropped if they repeat one
// of secrets.
func (a response) token(p Provider, secrets ...seal.Secret) (t Token, ok bool) {
	access := a.text("access_token")
	if a.members["access_token"].Kind() != '"' || strings.TrimSpace(access) == "" ||
		strings.ContainsFunc(access, func(r rune) bool { return unicode.IsControl(r) || r == unicode.ReplacementChar }) {
		return Token{}, false
	}
	t = Token{Access: seal.NewSecret([]byte(access)), Refresh: a.refresh(), Answer: a.fields()}
	t.Lifetime, t.Odd = a.lifetime(p.Lifetimes, time.Now(), false)
	t.RefreshLifetime = a.refreshLifetime()
	secrets = append(secrets, t.Access, t.Refresh)
	t.Type, t.Scope = printable(a.tokenType(), 32, secrets), printable(a.scope(), 4096, secrets)
	if t.Type == "" {
		t.Type = "Bearer"
	}
	return t, true
}

func (a response) tokenType() string {
	name := strings.TrimSpace(a.text("token_type"))
	if strings.EqualFold(name, "bearer") {
		return "Bearer"
	}
	return name
}

// scope also accepts an array, which some providers send.
func (a response) scope() string {
	var list []string
	if a.members["scope"].Kind() == '[' && json.Unmarshal(a.members["scope"], &list) == nil {
		return strings.Join(list, " ")
	}
	return a.text("scope")
}

// seconds parses a number of seconds and limits it to 0 through MaxLifetime.
func seconds(s string) (time.Duration, bool) {
	f, ok := number(s)
	switch {
	case !ok:
		return 0, false
	case f <= 0:
		return 0, true
	case f >= MaxLifetime.Seconds():
		return MaxLifetime, true
	}
	return time.Duration(f * float64(time.Second)).Truncate(time.Second), true
}

func number(s string) (f float64, ok bool) {
	f, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	return f, err == nil && !math.IsNaN(f) && !math.IsInf(f, 0)
}

// fields returns the members that seal.Fields accepts. One with an invalid name, encoding or
// depth is left out, so that the others are kept.
func (a response) fields() seal.Fields {
	kept := map[string]jsontext.Value{}
	for name, value := range a.members {
		if _, err := seal.ParseFields(object(map[string]jsontext.Value{name: value})); err == nil {
			kept[name] = value
		}
	}
	if all, err := seal.ParseFields(object(kept)); err == nil {
		return all
	}
	// Re-encoding has made it too large.
	for name := range kept {
		if name != "access_token" && name != "refresh_token" {
			delete(kept, name)
		}
	}
	few, _ := seal.ParseFields(object(kept))
	return few
}

func object(members map[string]jsontext.Value) []byte {
	b := []byte{'{'}
	for name, value := range members {
		if len(b) > 1 {
			b = append(b, ',')
		}
		b, _ = jsontext.AppendQuote(b, name)
		b = append(append(b, ':'), value...)
	}
	return append(b, '}')
}

// messagePointers are where providers explain an error.
var messagePointers = []string{"/error_description", "/error/message", "/error_message", "/message", "/errmsg", "/detail", "/description", "/reason"}

// message returns the provider's explanation of an error, passed through Clean; "" for none.
func (a response) message(secrets []seal.Secret) string {
	for _, pointer := range messagePointers {
		value, _ := verify.Member(a.document(), pointer)
		if text, ok := verify.Text(value); ok && value.Kind() == '"' {
			if text = Clean(text, secrets...); text != "" {
				return text
			}
		}
	}
	return ""
}

const maxMessage = 200 // characters

// Clean makes a provider's text safe to show and store: one line, at most 200 characters, no
// control or direction characters. It returns "" for a text that contains one of secrets; a
// word that may be a secret, an address or a parameter becomes "…".
func Clean(text string, secrets ...seal.Secret) string {
	if len(text) > 64<<10 {
		return ""
	}
	for _, s := range secrets {
		if !s.IsZero() && strings.Contains(text, string(s.Reveal())) {
			return ""
		}
	}
	var words []string
	for _, word := range strings.FieldsFunc(strings.ToValidUTF8(text, ""), func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		if mayBeSecret(word) {
			word = "…"
		}
		if n := len(words); word != "…" || n == 0 || words[n-1] != "…" {
			words = append(words, word)
		}
	}
	text = strings.Join(words, " ")
	if !strings.ContainsFunc(text, unicode.IsLetter) {
		return ""
	}
	if runes := []rune(text); len(runes) > maxMessage {
		text = string(runes[:maxMessage-1]) + "…"
	}
	return text
}

// mayBeSecret reports whether a word is unlikely to be prose: it is long, mixes letters and
// digits, or has characters of addresses and parameters.
func mayBeSecret(word string) bool {
	digits := strings.ContainsFunc(word, unicode.IsDigit)
	return len(word) > 40 || strings.ContainsAny(word, "@=&%") || len(word) >= 16 && digits && strings.ContainsFunc(word, unicode.IsLetter)
}

// printable returns a text that is safe to show, else "": printable ASCII, at most limit
// bytes, and without any of secrets, which a provider may repeat in any member.
func printable(text string, limit int, secrets []seal.Secret) string {
	if len(text) > limit || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r >= 0x7f }) {
		return ""
	}
	for _, s := range secrets {
		if !s.IsZero() && strings.Contains(text, string(s.Reveal())) {
			return ""
		}
	}
	return text
}
