package connect

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"html/template"
	"net/http"
)

// page is the content of an HTML page. The template escapes all texts.
type page struct {
	Title  string
	Text   []string // paragraphs
	Code   string   // code that the user enters elsewhere
	Detail string   // for support: error code and request id
}

const style = `body{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:12vh auto;padding:0 1.5rem;color:#1b1f24;background:#fff}` +
	`h1{font-size:1.5rem}.code{font:600 2rem ui-monospace,monospace;letter-spacing:.1em}.detail{color:#57606a;font-size:.85rem}` +
	`@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}.detail{color:#9198a1}}`

// pagePolicy allows the page's own style, and no scripts, images, forms or frames.
var pagePolicy = "default-src 'none'; style-src 'sha256-" + styleHash() + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func styleHash() string {
	sum := sha256.Sum256([]byte(style))
	return base64.StdEncoding.EncodeToString(sum[:])
}

var pageTemplate = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><meta name="robots" content="noindex">
<title>{{.Title}}</title><style>` + style + `</style></head>
<body><h1>{{.Title}}</h1>
{{range .Text}}<p>{{.}}</p>
{{end}}{{with .Code}}<p class="code">{{.}}</p>
{{end}}{{with .Detail}}<p class="detail">{{.}}</p>
{{end}}</body></html>
`))

func (x *exchange) page(status int, p page) {
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, p); err != nil { // cannot fail: the template and its data are ours
		status = http.StatusInternalServerError
		b.Reset()
	}
	x.Write(status, "text/html; charset=utf-8", b.Bytes())
}
