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
		expression, tail, closed := strings.Cut(rest, "}}")
		if !closed || expression == "" {
			return "", errTemplate
		}
		field, value, err := derive(expression, values)
		if err != nil {
			return "", err
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
	switch {
	case value == "":
		return "", refuse(field, "is missing: it is part of the URL's path")
	case hasControl(value):
		return "", refuse(field, "contains a line break or another control character")
	case hasDots(value):
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
	target, err := expandURL(p.URL, hosts, values, p.AllowHTTP)
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
// host must match one of hosts. allowHTTP is for a template that begins with a base URL.
func expandURL(template string, hosts []string, values Values, allowHTTP bool) (*url.URL, error) {
	if strings.HasPrefix(template, "{{") {
		return expandBase(template, hosts, values, allowHTTP)
	}
	scheme, rest, _ := strings.Cut(template, "://")
	if scheme != "http" && scheme != "https" || strings.Contains(rest, "#") {
		return nil, errTemplate
	}
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
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
	return join(scheme, authority, "", tail, values)
}

// expandBase expands a template that begins with a field, whose value is the URL of a server and
// may have a port and a path. The rest of the template is added to that path.
func expandBase(template string, hosts []string, values Values, allowHTTP bool) (*url.URL, error) {
	expression, tail, closed := strings.Cut(template[2:], "}}")
	if !closed || strings.Contains(tail, "#") || tail != "" && tail[0] != '/' && tail[0] != '?' {
		return nil, errTemplate
	}
	field, value, err := derive(expression, values)
	if err != nil {
		return nil, err
	}
	base, err := parseBase(field, value)
	switch {
	case err != nil:
		return nil, err
	case base.Scheme != "https" && !allowHTTP:
		return nil, refuse(field, "must begin with https://")
	// The pattern of the same field stands for the host of its URL.
	case !slices.Contains(hosts, "{{"+expression+"}}") && !allowed(base.Hostname(), hosts, values):
		return nil, ErrHostRefused
	}
	return join(base.Scheme, base.Host, strings.TrimRight(base.EscapedPath(), "/"), tail, values)
}

// parseBase parses a base URL strictly: what another parser could read as another host is refused.
// Without a scheme it is https.
func parseBase(field, value string) (*url.URL, error) {
	if value == "" {
		return nil, refuse(field, "is missing: it is the address of the server")
	}
	if strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("\\\"<>^`{|}", r) }) {
		return nil, refuse(field, "contains a space or another character that a URL cannot contain. Write an international host name in its ASCII form (xn--)")
	}
	if strings.ContainsAny(value, "?#") {
		return nil, refuse(field, "has a query or a fragment. Enter the address without it")
	}
	if !strings.Contains(value, "://") {
		value = "https://" + value
	}
	u, err := url.Parse(value)
	switch {
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Opaque != "":
		return nil, refuse(field, "is not a URL such as https://server.example.com")
	case u.User != nil || strings.Contains(u.Host, "@"):
		return nil, refuse(field, "contains a user name. Enter the address without it")
	}
	host := strings.ToLower(u.Hostname())
	if !isHost(host) {
		return nil, refuse(field, "has no valid host: a name or an IPv4 address is required")
	}
	authority := host
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || port[0] == '0' {
			return nil, refuse(field, "has no valid port")
		}
		authority += ":" + port
	}
	if strings.ToLower(u.Host) != authority {
		return nil, refuse(field, "has no valid host and port")
	}
	if hasDots(u.Path) || hasControl(u.Path) {
		return nil, refuse(field, "would lead to another path")
	}
	u.Host = authority
	return u, nil
}

// join expands a path, which follows base, and its query, and makes the URL.
func join(scheme, authority, base, tail string, values Values) (*url.URL, error) {
	path, query, hasQuery := strings.Cut(tail, "?")
	path, err := expand(path, values, asPath)
	if err != nil {
		return nil, err
	}
	path = base + path
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
	if hasDots(u.Path) {
		return nil, ErrValueInvalid.Withf("The values would lead to another path.")
	}
	return u, nil
}

// hasDots reports whether a path has a dot segment. Some servers take a backslash for a slash.
func hasDots(path string) bool {
	parts := strings.FieldsFunc(path, func(r rune) bool { return r == '/' || r == '\\' })
	return slices.Contains(parts, ".") || slices.Contains(parts, "..")
}

// FillURL fills the templates of a URL whose host no value can change but within the part that the
// template declares. Errors: ErrValueInvalid.
func FillURL(template string, values Values) (string, error) {
	_, rest, _ := strings.Cut(template, "://")
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		rest = rest[:i]
	}
	host, _, _ := strings.Cut(rest, ":")
	if strings.HasPrefix(template, "{{") {
		return "", errTemplate // no base URL: it would choose the host
	}
	u, err := expandURL(template, []string{host}, values, false)
	if err != nil {
		return "", err
	}
	return u.String(), nil
}

// Fill fills a template without changing or checking the values. Errors: ErrValueInvalid, if a
// function does not fit a value.
func Fill(template string, values Values) (string, error) { return expand(template, values, asIs) }

// FillText fills the templates of a parameter. Errors: ErrValueInvalid.
func FillText(template string, values Values) (string, error) {
	text, err := expand(template, values, asPassword)
	if err == nil && len(text) > maxLine {
		return "", ErrValueInvalid.Withf("The values are too long for a parameter.")
	}
	return text, err
}

// expandHost expands a host and checks it against the patterns in hosts.
func expandHost(template string, hosts []string, values Values) (string, error) {
	host, err := expand(template, values, asHost)
	if err != nil {
		return "", err
	}
	if host = strings.ToLower(host); !isHost(host) {
		if _, rest, ok := strings.Cut(template, "{{"); ok {
			expression, _, _ := strings.Cut(rest, "}}")
			field, _, _ := strings.Cut(expression, "|")
			return "", refuse(field, "does not make a host name")
		}
		return "", ErrHostRefused
	}
	if !allowed(host, hosts, values) {
		return "", ErrHostRefused
	}
	return host, nil
}

// allowed reports whether a host matches one of the patterns.
func allowed(host string, patterns []string, values Values) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		h, err := expand(pattern, values, asHost)
		return err == nil && strings.ToLower(h) == host
	})
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
