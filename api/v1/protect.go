package v1

import (
	"net/http"

	"github.com/go-json-experiment/json"
)

// Values of the headers that every answer has; nobody changes them.
var (
	nosniff    = []string{"nosniff"}
	noStore    = []string{"no-store"}
	noReferrer = []string{"no-referrer"}
	sameOrigin = []string{"same-origin"}
	noContent  = []string{"default-src 'none'; frame-ancestors 'none'"}
)

// secure sets the headers that every answer has: it is what its media type says,
// no cache keeps it, no page of another origin shows or frames it, and it does
// nothing in a browser.
func secure(header http.Header) {
	header["X-Content-Type-Options"] = nosniff
	header["Cache-Control"] = noStore
	header["Referrer-Policy"] = noReferrer
	header["Cross-Origin-Resource-Policy"] = sameOrigin
	header["Content-Security-Policy"] = noContent
}

// origin refuses what a page of another origin has a browser send, but for GET,
// HEAD and OPTIONS, which change nothing here. A client that is no browser does
// not notice it.
var origin http.CrossOriginProtection

// CrossSite reports whether a page of another origin has a browser send the request,
// whatever its method.
func CrossSite(r *http.Request) bool {
	same := http.Request{Method: http.MethodPost, Host: r.Host, Header: r.Header, URL: r.URL}
	return origin.Check(&same) != nil
}

// Protect gives another surface what every answer of this edge has: the headers
// of a browser's safety, and the refusal of cross-origin requests that change
// something, as a problem.
func Protect(h http.Handler) http.Handler {
	ids := NewRequestIDs()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		secure(w.Header())
		if origin.Check(r) == nil {
			h.ServeHTTP(w, r)
			return
		}
		p := ErrCrossOrigin.Problem()
		p.RequestID = ids.Of(r)
		w.Header()["X-Request-Id"] = []string{p.RequestID}
		b, err := json.Marshal(p)
		if err != nil { // a problem of ours marshals
			b = []byte("{}")
		}
		w.Header()["Content-Type"] = typeProblem
		w.WriteHeader(p.Status)
		_, _ = w.Write(append(b, '\n')) // a client that is gone needs no answer
	})
}
