package verify

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/net/http/httpguts"

	"github.com/credstream/credstream/fault"
)

const (
	maxLine = 16 << 10 // bytes of an expanded URL or header value
	maxBody = 64 << 10 // bytes of an expanded body
)

// errTemplate means that the descriptor's template is malformed, although descriptors are checked
// when they are registered.
var errTemplate = errors.New("making the dry request: the probe's template is malformed")

// escape escapes the value of a field for one part of the request, or refuses it.
type escape func(field, value string) (string, error)

// expand replaces each {{field}} of a template by its value. Values are never expanded in turn.
func expand(template string, values Values, fit escape) (string, error) {
	var b strings.Builder
	for {
		text, rest, more := strings.Cut(template, "{{")
		b.WriteString(text)
		if !more {
			return b.String(), nil
		}
		field, tail, closed := strings.Cut(rest, "}}")
		if !closed || field == "" {
			return "", errTemplate
		}
		var value string
		if secret, ok := values(field); ok {
			value = string(secret.Reveal())
		}
		fitted, err := fit(field, value)
		if err != nil {
			return "", err
		}
		b.WriteString(fitted)
		template = tail
	}
}

// refuse returns the error of a field. It does not contain the value.
func refuse(field, why string) error {
	return invalid(field).Withf("The value of %q %s.", field, why)
}

func invalid(field string) *fault.Error {
	return ErrValueInvalid.At(string(jsontext.Pointer("/keys").AppendToken(field)))
}

// asHost allows only a part of a host name: a value with a scheme, port, user or path could
// redirect the keys.
func asHost(field, value string) (string, error) {
	if value == "" {
		return "", refuse(field, "is missing: it is part of the host's name")
	}
	if !onlyHostRunes(value) {
		return "", refuse(field, "must be a host name or a part of one: letters, digits, dots and hyphens, without scheme, port or path")
	}
	return strings.ToLower(value), nil
}

func asPath(field, value string) (string, error) {
	parts := strings.FieldsFunc(value, func(r rune) bool { return r == '/' || r == '\\' })
	switch {
	case value == "":
		return "", refuse(field, "is missing: it is part of the URL's path")
	case hasControl(value):
		return "", refuse(field, "contains a line break or another control character")
	case slices.Contains(parts, "."), slices.Contains(parts, ".."):
		return "", refuse(field, "would lead to another path")
	}
	return url.PathEscape(value), nil
}

func asQuery(field, value string) (string, error) {
	if hasControl(value) {
		return "", refuse(field, "contains a line break or another control character")
	}
	return url.QueryEscape(value), nil
}

func asHeader(field, value string) (string, error) {
	switch {
	case hasControl(value):
		return "", refuse(field, "contains a line break or another control character")
	case strings.Trim(value, " ") != value:
		return "", refuse(field, "begins or ends with a space")
	}
	return value, nil
}

func asUsername(field, value string) (string, error) {
	if strings.Contains(value, ":") {
		return "", refuse(field, "contains a colon, which is not allowed in a user name")
	}
	return asPassword(field, value)
}

func asPassword(field, value string) (string, error) {
	if hasControl(value) {
		return "", refuse(field, "contains a line break or another control character")
	}
	return value, nil
}

func asIs(_, value string) (string, error) { return value, nil }

func asPort(field, value string) (string, error) {
	if n, err := strconv.ParseUint(value, 10, 16); value != "" && (err != nil || n == 0) {
		return "", refuse(field, "must be a port number from 1 to 65535")
	}
	return value, nil
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r <= 0x9f })
}

// request builds the complete request of p.
func request(p *HTTP, hosts []string, values Values) (*http.Request, error) {
	target, err := expandURL(p.URL, hosts, values)
	if err != nil {
		return nil, err
	}
	body, contentType, err := expandBody(p, values)
	if err != nil {
		return nil, err
	}
	method := p.Method
	if method == "" {
		method = http.MethodGet
	}
	if !slices.Contains([]string{http.MethodGet, http.MethodHead, http.MethodPost}, method) {
		return nil, errTemplate
	}
	// The URL is parsed separately, because an error of NewRequest would repeat it.
	req, err := http.NewRequest(method, "https://host.invalid/", bytes.NewReader(body)) //nolint:noctx // Run's context is set when it is sent
	if err != nil {
		return nil, errTemplate
	}
	req.URL, req.Host = target, target.Host
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	req.Header.Set("User-Agent", "credstream")
	for _, name := range slices.Sorted(maps.Keys(p.Headers)) {
		value, err := expand(p.Headers[name], values, asHeader)
		switch {
		case err != nil:
			return nil, err
		case len(value) > maxLine:
			return nil, ErrValueInvalid.Withf("The values are too long for the header field %s.", name)
		case !httpguts.ValidHeaderFieldName(name), !httpguts.ValidHeaderFieldValue(value):
			return nil, errTemplate
		}
		req.Header.Set(name, value)
	}
	if p.Basic != nil {
		username, err := expand(p.Basic.Username, values, asUsername)
		if err != nil {
			return nil, err
		}
		password, err := expand(p.Basic.Password, values, asPassword)
		if err != nil {
			return nil, err
		}
		if len(username)+len(password) > maxLine/2 {
			return nil, ErrValueInvalid.Withf("The user name and password are too long.")
		}
		req.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(username+":"+password)))
	}
	return req, nil
}

// expandURL expands each part of the URL separately, so that no value can leave its part. The
// host must match one of hosts.
func expandURL(template string, hosts []string, values Values) (*url.URL, error) {
	scheme, rest, _ := strings.Cut(template, "://")
	if scheme != "http" && scheme != "https" || strings.Contains(rest, "#") {
		return nil, errTemplate
	}
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
	path, query, hasQuery := strings.Cut(tail, "?")
	host, port, hasPort := strings.Cut(authority, ":")

	host, err := expandHost(host, hosts, values)
	if err != nil {
		return nil, err
	}
	if authority = host; hasPort {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, errTemplate
		}
		authority += ":" + port
	}
	if path, err = expand(path, values, asPath); err != nil {
		return nil, err
	}
	if query, err = expand(query, values, asQuery); err != nil {
		return nil, err
	}
	text := scheme + "://" + authority + path
	if hasQuery {
		text += "?" + query
	}
	if len(text) > maxLine {
		return nil, ErrValueInvalid.Withf("The values are too long for a URL.")
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, errTemplate // err holds the URL
	}
	if u.Host != authority || u.User != nil || u.Fragment != "" || u.Opaque != "" || u.Scheme != scheme {
		return nil, ErrHostRefused
	}
	for part := range strings.FieldsFuncSeq(u.Path, func(r rune) bool { return r == '/' || r == '\\' }) {
		if part == "." || part == ".." {
			return nil, ErrValueInvalid.Withf("The values would lead to another path.")
		}
	}
	return u, nil
}

// expandHost expands a host and checks it against the patterns in hosts.
func expandHost(template string, hosts []string, values Values) (string, error) {
	host, err := expand(template, values, asHost)
	if err != nil {
		return "", err
	}
	if host = strings.ToLower(host); !isHost(host) {
		if _, rest, ok := strings.Cut(template, "{{"); ok {
			field, _, _ := strings.Cut(rest, "}}")
			return "", refuse(field, "does not make a host name")
		}
		return "", ErrHostRefused
	}
	allowed := slices.ContainsFunc(hosts, func(pattern string) bool {
		h, err := expand(pattern, values, asHost)
		return err == nil && strings.ToLower(h) == host
	})
	if !allowed {
		return "", ErrHostRefused
	}
	return host, nil
}

var hostShape = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

// isHost accepts a name (RFC 1123) or an IPv4 address in dotted decimal form. It rejects other
// forms that some resolvers accept as an address, such as 127.1 or 0x7f.1.
func isHost(host string) bool {
	if len(host) > 253 || !hostShape.MatchString(host) {
		return false
	}
	last := host[strings.LastIndexByte(host, '.')+1:]
	if onlyDigits(last) || strings.HasPrefix(last, "0x") {
		_, err := netip.ParseAddr(host)
		return err == nil
	}
	return true
}

func onlyDigits(s string) bool { return strings.Trim(s, "0123456789") == "" }

func onlyHostRunes(s string) bool {
	for _, r := range s {
		if ('a' > r || r > 'z') && ('A' > r || r > 'Z') && ('0' > r || r > '9') && r != '.' && r != '-' {
			return false
		}
	}
	return true
}

// expandAddress returns host:port and the host.
func expandAddress(p TCP, hosts []string, values Values) (address, host string, err error) {
	i := strings.LastIndexByte(p.Address, ':')
	if i < 0 {
		return "", "", errTemplate
	}
	if host, err = expandHost(p.Address[:i], hosts, values); err != nil {
		return "", "", err
	}
	port, err := expand(p.Address[i+1:], values, asPort)
	switch {
	case err != nil:
		return "", "", err
	case port == "" && p.DefaultPort > 0:
		port = strconv.Itoa(p.DefaultPort)
	case port == "":
		return "", "", ErrValueInvalid.Withf("The port is missing.")
	}
	return host + ":" + port, host, nil
}

// expandBody returns the body and its media type, both empty if there is none.
func expandBody(p *HTTP, values Values) (body []byte, contentType string, err error) {
	switch {
	case p.Form != nil:
		form := url.Values{}
		for _, name := range slices.Sorted(maps.Keys(p.Form)) {
			value, err := expand(p.Form[name], values, asIs)
			if err != nil {
				return nil, "", err
			}
			form.Set(name, value)
		}
		body, contentType = []byte(form.Encode()), "application/x-www-form-urlencoded"
	case p.JSON != nil:
		if body, err = expandJSON(p.JSON, values); err != nil {
			return nil, "", err
		}
		contentType = "application/json"
	}
	if len(body) > maxBody {
		return nil, "", ErrValueInvalid.Withf("The values are too long for the body.")
	}
	return body, contentType, nil
}

// expandJSON expands the strings of a document, except names. A value cannot add JSON syntax: it
// remains one string.
func expandJSON(document []byte, values Values) ([]byte, error) {
	var out bytes.Buffer
	dec, enc := jsontext.NewDecoder(bytes.NewReader(document)), jsontext.NewEncoder(&out)
	for {
		token, err := dec.ReadToken()
		if errors.Is(err, io.EOF) {
			return bytes.TrimSpace(out.Bytes()), nil
		}
		if err != nil {
			return nil, errTemplate
		}
		outer, n := dec.StackIndex(dec.StackDepth())
		if isName := outer == '{' && n%2 == 1; token.Kind() == '"' && !isName {
			text, err := expand(token.String(), values, asIs)
			if err != nil {
				return nil, err
			}
			token = jsontext.String(text)
		}
		if err := enc.WriteToken(token); err != nil {
			return nil, ErrValueInvalid.Withf("A value is not text in UTF-8.")
		}
	}
}
