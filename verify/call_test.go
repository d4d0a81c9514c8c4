package verify_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/verify"
)

// call makes a POST with a form, as token requests are.
func call(t *testing.T, c *verify.Client, url string) (verify.Answer, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"?canary-query", strings.NewReader("secret=canary-form"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return c.Do(t.Context(), req)
}

func TestDo(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	t.Cleanup(elsewhere.Close)
	t.Setenv("HTTP_PROXY", elsewhere.URL)
	type want struct {
		Status, Bytes int
		Cut           verify.Cut
	}
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   want
	}{
		"good":    {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }, want{200, 5, ""}},
		"error":   {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusServiceUnavailable) }, want{503, 3, ""}},
		"nothing": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, want{204, 0, ""}},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}, want{307, 0, ""}},
		"just all": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("x", 64<<10)) }, want{200, 64 << 10, ""}},
		"too much": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("x", 64<<10+1)) }, want{200, 64 << 10, verify.CutTooLarge}},
		"packed": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			fmt.Fprint(w, "packed")
		}, want{200, 6, ""}},
		"broken off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "half")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, want{200, 4, verify.CutClosed}},
		"without end": {func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, "half")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, want{200, 4, verify.CutTimeout}},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.FormValue("secret") != "canary-form" || r.Referer() != "" || r.Header.Get("Accept-Encoding") != "" {
					t.Errorf("form %v, header %v", r.Form, r.Header)
				}
				test.answer(w, r)
			}))
			t.Cleanup(server.Close)
			cfg := verify.Config{AllowPrivate: true}
			if test.want.Cut == verify.CutTimeout {
				cfg.Timeout = 200 * time.Millisecond
			}
			got, err := call(t, verify.NewClient(cfg), server.URL)
			if err != nil {
				t.Fatal(err)
			}
			body := len(got.Body)
			if diff := cmp.Diff(test.want, want{got.Status, body, got.Cut}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// What is not allowed is not dialled, and an error tells nothing of the request.
func TestDoUnanswered(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		<-r.Context().Done()
	}))
	t.Cleanup(server.Close)
	for name, test := range map[string]struct {
		cfg  verify.Config
		url  string
		want verify.Unanswered
	}{
		"loopback": {verify.Config{}, "http://127.0.0.1/", verify.Unanswered{Outcome: verify.OutcomeAddressDenied}},
		"port":     {verify.Config{}, "http://198.51.100.1:4222/", verify.Unanswered{Outcome: verify.OutcomeAddressDenied}},
		"metadata": {verify.Config{AllowPrivate: true}, "http://169.254.169.254/", verify.Unanswered{Outcome: verify.OutcomeAddressDenied}},
		"silent":   {verify.Config{AllowPrivate: true, Timeout: 200 * time.Millisecond}, server.URL, verify.Unanswered{Outcome: verify.OutcomeTimeout, Sent: true}},
	} {
		_, err := call(t, verify.NewClient(test.cfg), test.url)
		var got *verify.Unanswered
		if !errors.As(err, &got) || *got != test.want {
			t.Errorf("%s: %v, want %+v", name, err, test.want)
		}
		if said := fmt.Sprintf("%v %+v %#v", err, err, err); strings.Contains(said, "canary") || strings.Contains(said, "http") {
			t.Errorf("%s says %s", name, said)
		}
	}
}

// A tenant makes four calls to a host at a time and 32 in all, whatever another does
// and whatever its own dry requests do.
func TestSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := verify.NewClient(verify.Config{})
		take := func(tenant, host string) (release func()) {
			t.Helper()
			release, err := c.Slot(t.Context(), tenant, host)
			if err != nil {
				t.Fatalf("%s at %s: %v", tenant, host, err)
			}
			return release
		}
		refused := func(tenant, host string) {
			t.Helper()
			begun := time.Now()
			if _, err := c.Slot(t.Context(), tenant, host); !errors.Is(err, verify.ErrBusy) || time.Since(begun) != 10*time.Second {
				t.Errorf("%s at %s: %v after %v", tenant, host, err, time.Since(begun))
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := c.Slot(ctx, tenant, host); !errors.Is(err, context.Canceled) {
				t.Errorf("%s at %s, given up: %v", tenant, host, err)
			}
		}
		var slow []func()
		for range 4 {
			slow = append(slow, take("acme", "slow.test"))
		}
		refused("acme", "slow.test")
		take("ajax", "slow.test")()
		for n := range 28 { // who is refused holds nothing
			slow = append(slow, take("acme", fmt.Sprint("host", n/4)))
		}
		refused("acme", "another.test")
		take("ajax", "another.test")()
		for _, release := range slow {
			release()
		}
		for range 4 {
			defer take("acme", "slow.test")()
		}
	})
}
