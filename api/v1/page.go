package v1

import (
	"embed"
	"net/http"
)

// The page at /docs shows /openapi.json to people. It is part of the program, so that it works
// without a network and under a policy that allows nothing else.
//
//go:embed page
var page embed.FS

const (
	pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	typeHTML   = "text/html; charset=utf-8"
	typeScript = "text/javascript; charset=utf-8"
	typeStyle  = "text/css; charset=utf-8"
)

// page writes one of the page's three files.
func (x *exchange) page(path string) {
	file, media := "page/page.html", typeHTML
	switch path {
	case "/docs/page.js":
		file, media = "page/page.js", typeScript
	case "/docs/page.css":
		file, media = "page/page.css", typeStyle
	}
	b, err := page.ReadFile(file)
	if err != nil {
		x.Fail(err)
		return
	}
	x.W.Header().Set("Content-Security-Policy", pagePolicy)
	x.Write(http.StatusOK, media, b)
}
