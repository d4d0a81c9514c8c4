package oauth

import (
	"bytes"
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

// answer is what a token endpoint said, taken as leniently as it can be: each
// member is good or odd by itself.
type answer struct {
	body    []byte // a JSON object, as it came; nil of a form
	members map[string]jsontext.Value
	whole   bool // it was read to its end
}

// read reads a JSON object, or a form as some older providers send it. Of an
// object that breaks off it keeps the members before.
func read(body []byte) answer {
	body = bytes.TrimSpace(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")))
	if bytes.HasPrefix(body, []byte("{")) {
		return readObject(body)
	}
	return readForm(body)
}

func readObject(body []byte) answer {
	a := answer{body: body, members: map[string]jsontext.Value{}}
	dec := jsontext.NewDecoder(bytes.NewReader(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if _, err := dec.ReadToken(); err != nil {
		return a
	}
	for dec.PeekKind() == '"' {
		token, err := dec.ReadToken()
		if err != nil {
			return a
		}
		name := token.String() // before the next read, which ends the token's life
		value, err := dec.ReadValue()
		if err != nil {
			return a
		}
		a.members[name] = value.Clone()
	}
	_, err := dec.ReadToken()
	a.whole = err == nil
	return a
}

func readForm(body []byte) answer {
	form, err := url.ParseQuery(string(body))
	if err != nil || !form.Has("access_token") && !form.Has("error") {
		return answer{}
	}
	a := answer{members: map[string]jsontext.Value{}, whole: true}
	for name := range form {
		if value, err := jsontext.AppendQuote(nil, form.Get(name)); err == nil {
			a.members[name] = value
		}
	}
	return a
}

// text is a member that is a string, or a number as it was written; else "".
func (a answer) text(name string) string {
	switch value := a.members[name]; value.Kind() {
	case '"':
		text, _ := jsontext.AppendUnquote(nil, value) // an error means that bad UTF-8 was replaced
		return string(text)
	case '0':
		return string(value)
	}
	return ""
}

// codes are where providers put an error code instead of in the member error.
var codes = []string{"/error/code", "/error/type", "/error/status", "/error_code", "/errorCode", "/code", "/errors/0/code", "/errors/0/error"}

// code is the error the answer names in the standard's place, or one that is known in
// another place; "" when it names none.
func (a answer) code() string {
	if code := a.text("error"); code != "" {
		return code
	}
	for _, pointer := range codes {
		value, _ := verify.Member(a.document(), pointer)
		text, _ := verify.Text(value)
		if _, known := verdicts[strings.ToLower(text)]; known {
			return text
		}
	}
	return ""
}

// document is the answer as one JSON object, which may break off.
func (a answer) document() []byte {
	if a.body != nil {
		return a.body
	}
	return object(a.members)
}

// refresh is the refresh token. It may be anything that is not empty: all that
// is ever done with it is to send it back.
func (a answer) refresh() seal.Secret { return seal.NewSecret([]byte(a.text("refresh_token"))) }

// token is what the answer grants; ok is false when it holds no access token
// that could stand in a header field. What is shown of it to people holds none
// of secrets.
func (a answer) token(p Provider, secrets ...seal.Secret) (t Token, ok bool) {
	access := a.text("access_token")
	if a.members["access_token"].Kind() != '"' || strings.TrimSpace(access) == "" ||
		strings.ContainsFunc(access, func(r rune) bool { return unicode.IsControl(r) || r == unicode.ReplacementChar }) {
		return Token{}, false
	}
	t = Token{Access: seal.NewSecret([]byte(access)), Refresh: a.refresh(), Answer: a.fields()}
	t.Lifetime, t.Odd = a.lifetime(p.Lifetimes, time.Now(), false)
	secrets = append(secrets, t.Access, t.Refresh)
	t.Type, t.Scope = plain(a.tokenType(), 32, secrets), plain(a.scope(), 4096, secrets)
	if t.Type == "" {
		t.Type = "Bearer"
	}
	return t, true
}

func (a answer) tokenType() string {
	name := strings.TrimSpace(a.text("token_type"))
	if strings.EqualFold(name, "bearer") {
		return "Bearer"
	}
	return name
}

// scope takes the array that some providers answer, too.
func (a answer) scope() string {
	var list []string
	if a.members["scope"].Kind() == '[' && json.Unmarshal(a.members["scope"], &list) == nil {
		return strings.Join(list, " ")
	}
	return a.text("scope")
}

// seconds reads a number of seconds; below zero is zero, and beyond the range of a Duration
// is MaxLifetime.
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

// fields are the members whose form can be kept; one that cannot, by its name,
// its encoding or its depth, is left out for the sake of the others.
func (a answer) fields() seal.Fields {
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

// sentences are the members in which providers explain an error.
var sentences = []string{"/error_description", "/error/message", "/error_message", "/message", "/errmsg", "/detail", "/description", "/reason"}

// sentence is how the provider explains an error, in a form that may be shown: one line
// without control characters and secrets, of at most maxSentence characters.
func (a answer) sentence(secrets []seal.Secret) string {
	for _, pointer := range sentences {
		value, _ := verify.Member(a.document(), pointer)
		if text, ok := verify.Text(value); ok && value.Kind() == '"' {
			if text = Clean(text, secrets...); text != "" {
				return text
			}
		}
	}
	return ""
}

const maxSentence = 200 // characters

// Clean makes a text of a provider's fit to be shown and stored: one line, at most 200
// characters, no control or direction characters. A text that repeats one of secrets is
// dropped whole; a word that may be a secret, an address or a parameter becomes "…".
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
	if runes := []rune(text); len(runes) > maxSentence {
		text = string(runes[:maxSentence-1]) + "…"
	}
	return text
}

// mayBeSecret tells words of no language: long ones, those of letters and digits mixed,
// and those with characters of addresses and parameters.
func mayBeSecret(word string) bool {
	digits := strings.ContainsFunc(word, unicode.IsDigit)
	return len(word) > 40 || strings.ContainsAny(word, "@=&%") || len(word) >= 16 && digits && strings.ContainsFunc(word, unicode.IsLetter)
}

// plain is a text fit to be shown: printable ASCII, not too long, and without
// any of the secrets, which an answer may repeat where nobody looks for them.
func plain(text string, limit int, secrets []seal.Secret) string {
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
