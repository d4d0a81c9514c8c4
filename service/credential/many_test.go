package credential_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/stage"
)

// A batch stops at its next item when its key is revoked or expires: what was being executed is
// done, and each remaining item is reported.
func TestBatchEndsWithItsKey(t *testing.T) {
	const items, endsAt, atOnce = 200, 20, 32
	for what, end := range map[string]func(s *stage.Stage, id string){
		"revoked": func(s *stage.Stage, id string) { s.Do("default", "api_key.revoke", fmt.Sprintf(`{"id":%q}`, id)) },
		"expired": func(s *stage.Stage, _ string) { s.Skew.Store(int64(2 * time.Hour)) },
	} {
		t.Run(what, func(t *testing.T) {
			s := stage.New(t, stage.AllowPrivate)
			who := s.Issue("default", `{"role":"ADMINISTRATOR","expires":"1h"}`)
			var requests atomic.Int32
			api := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				if requests.Add(1) == endsAt {
					end(s, who.Actor.ID)
				}
			}))
			defer api.Close()
			bodies := make([]string, items)
			for i := range bodies {
				bodies[i] = fmt.Sprintf(`{"type":"t","keys":{"k":"v"},"hosts":["127.0.0.1"],"verification":{"http":{"url":%q,"headers":{"k":"{{k}}"},"expect":{"status":[200]}}}}`, api.URL)
			}
			many, code := ask[credential.Many](s, t, "credential.create-many", `{"credentials":[`+strings.Join(bodies, ",")+`]}`, func(c *service.Call) { c.Principal = who })
			ended := 0
			for i, r := range many.Results {
				switch {
				case r.Error == nil:
				case r.Error.Code == "api_key_ended" && r.Error.Status == http.StatusUnauthorized:
					ended++
				default:
					t.Fatalf("item %d: %+v", i, r.Error)
				}
			}
			if done := items - ended; code != "" || done < endsAt-1 || done > endsAt+2*atOnce || many.Failed != ended || many.Results[items-1].Error == nil {
				t.Errorf("%d of %d items were executed: %q", done, items, code)
			}
			s.CaughtUp()
			if found, _ := ask[credential.Found](s, t, "credential.search", `{}`); found.Total != items-ended {
				t.Errorf("%d credentials exist, and %d items are reported as executed", found.Total, items-ended)
			}
		})
	}
}
