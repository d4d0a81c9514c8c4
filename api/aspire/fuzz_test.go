package aspire_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/api/aspire"
	"github.com/credstream/credstream/service/stage"
)

// FuzzBodies sends any body to each operation that takes one: filters, lists, maps, credentials
// and policies. None panics or fails inside, and what is no JSON document changes nothing.
func FuzzBodies(f *testing.F) {
	s := stage.New(f)
	handler := aspire.Handler(aspire.Config{Service: s.Service, Access: s.Service.Access})
	admin := s.Key("default", `{"role":"ADMINISTRATOR"}`)
	requests := []string{
		"POST credentials", "PUT credentials", "POST credentials/getAll", "POST credentials/updateAll", "POST credentials/delete", "POST credentials/deleteAll",
		"POST credentials/export", "POST credentials/exportAll", "PUT credentials/x", "POST policies", "PUT policies", "POST policies/delete", "PUT policies/x",
	}
	for i := range requests {
		for _, body := range []string{
			`{"filter":{"ids":["x","AAABcID5GBc="],"type":"t","description":"d","throttlePolicy":"p"},"update":{"description":"e","throttlePolicy":null}}`,
			`[{"id":"x","type":"t","description":"d","properties":{"a":{"b":[1,"c",null]}}},{"type":"t","description":"","properties":{}}]`,
			`{"x":{"id":"x","description":"d","properties":{"a":"********"}},"y":{}}`, `{"id":"x","description":"d"}`,
			`[{"id":"p","type":"throttle","description":"d","timeUnit":"m","numberOfDocuments":"100"}]`, `{"ids":["x"]}`, `{"ids":"x"}`, `[]`, `{}`, `"x"`, `[{}] {}`, `{"a":{}}]`,
		} {
			f.Add(byte(i), body)
		}
	}
	f.Fuzz(func(t *testing.T, which byte, body string) {
		method, path, _ := strings.Cut(requests[int(which)%len(requests)], " ")
		req := httptest.NewRequestWithContext(t.Context(), method, "http://127.0.0.1/aspire/_api/"+path, strings.NewReader(body))
		req.RemoteAddr = "127.0.0.1:1"
		req.SetBasicAuth("any", admin)
		req.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, req)
		if w.Code >= http.StatusInternalServerError {
			t.Errorf("%s %s %q: %d %s", method, path, body, w.Code, w.Body)
		}
		if !jsontext.Value(w.Body.Bytes()).IsValid() {
			t.Errorf("%s %s %q: the response is %q", method, path, body, w.Body)
		}
		if w.Code < 300 && !jsontext.Value(body).IsValid() {
			t.Errorf("%s %s takes %q: %s", method, path, body, w.Body)
		}
	})
}
