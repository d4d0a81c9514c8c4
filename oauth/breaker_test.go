package oauth_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/oauth/oauthtest"
)

// An endpoint that fails five times in a row rests, each time twice as long, and
// is then tried once.
func TestBreakerRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, ctx := oauth.NewBreaker(), t.Context()
		// enter is the rest that is left when a request may not be made, else 0.
		enter := func(path, client string) (leave func(*oauth.Error), rest time.Duration) {
			leave, err := b.Acquire(ctx, "as", path, "t", client)
			if err == nil {
				return leave, 0
			}
			e := failure(t, err)
			if e.Outcome != oauth.Transient || e.Sent {
				t.Fatalf("while it rests: %+v", e)
			}
			return nil, e.RetryAfter
		}
		must := func(path, client string) func(*oauth.Error) {
			t.Helper()
			leave, rest := enter(path, client)
			if rest > 0 {
				t.Fatalf("%s rests for %v", path, rest)
			}
			return leave
		}
		down := &oauth.Error{Outcome: oauth.Transient, Status: 503}
		for range 4 {
			must("/token", "c")(down)
		}
		must("/token", "c")(&oauth.Error{Outcome: oauth.Revoked, Status: 400}) // an answer: it is well
		for i := range 5 {
			must("/token", fmt.Sprint("c", i))([]*oauth.Error{down, {Outcome: oauth.Malformed, Status: 200}}[i%2])
		}
		for i, seconds := range []time.Duration{10, 20, 40, 80, 160, 300, 300} {
			want := seconds * time.Second
			if _, rest := enter("/token", "c"); rest != want {
				t.Fatalf("rest %d is %v, want %v", i, rest, want)
			}
			must("/other", "c")(nil) // another path of the host has nothing to do with it
			time.Sleep(want / 2)
			if _, rest := enter("/token", "another"); rest != want-want/2 {
				t.Fatalf("half through rest %d, %v are left", i, rest)
			}
			time.Sleep(want - want/2)
			try := must("/token", "c")
			if _, rest := enter("/token", "c"); rest != time.Second {
				t.Fatalf("a second try at the same time: %v", rest)
			}
			try(down)
		}
	})
}

func TestBreakerRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, ctx := oauth.NewBreaker(), t.Context()
		down := &oauth.Error{Outcome: oauth.Transient}
		for range 5 {
			leave, err := b.Acquire(ctx, "as", "/token", "t", "c")
			if err != nil {
				t.Fatal(err)
			}
			leave(down)
		}
		time.Sleep(10 * time.Second)
		leave, err := b.Acquire(ctx, "as", "/token", "t", "c")
		if err != nil {
			t.Fatal(err)
		}
		leave(nil)
		if b.Size() != 0 {
			t.Errorf("%d circuits are kept after a success", b.Size())
		}
		for range 4 {
			leave, err := b.Acquire(ctx, "as", "/token", "t", "c")
			if err != nil {
				t.Fatal(err)
			}
			leave(down)
		}
		if _, err := b.Acquire(ctx, "as", "/token", "t", "c"); err != nil {
			t.Errorf("after four failures: %v", err)
		}
	})
}

// Retry-After is obeyed at once. A demand for fewer requests concerns the client
// it was made to, any other the tenant; neither concerns another tenant.
func TestBreakerObeysRetryAfter(t *testing.T) {
	for _, test := range []struct {
		status  int
		another bool // client may go on
	}{{429, true}, {503, false}} {
		synctest.Test(t, func(t *testing.T) {
			b, ctx := oauth.NewBreaker(), t.Context()
			early, err := b.Acquire(ctx, "as", "/token", "t", "c")
			if err != nil {
				t.Fatal(err)
			}
			leave, err := b.Acquire(ctx, "as", "/token", "t", "c")
			if err != nil {
				t.Fatal(err)
			}
			leave(&oauth.Error{Outcome: oauth.Transient, Status: test.status, RetryAfter: 30 * time.Minute})
			early(nil) // was under way, and says nothing of what was asked since
			if _, err := b.Acquire(ctx, "as", "/token", "t", "c"); failure(t, err).RetryAfter != 30*time.Minute {
				t.Errorf("%d: %v", test.status, err)
			}
			if _, err := b.Acquire(ctx, "as", "/token", "t", "c2"); (err == nil) != test.another {
				t.Errorf("%d: another client: %v", test.status, err)
			}
			if _, err := b.Acquire(ctx, "as", "/token", "t2", "c"); err != nil {
				t.Errorf("%d: another tenant: %v", test.status, err)
			}
			time.Sleep(30 * time.Minute)
			if _, err := b.Acquire(ctx, "as", "/token", "t", "c"); err != nil {
				t.Errorf("%d: afterwards: %v", test.status, err)
			}
		})
	}
}

// What fails for one tenant alone, however often, is no trouble of the endpoint: it
// may be the tenant's own doing. What keeps failing for two is, for everybody, until
// it is well for somebody.
func TestBreakerTakesManyTenants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := oauth.NewBreaker()
		down := &oauth.Error{Outcome: oauth.Transient, Status: 500}
		fail := func(tenant string, times int) {
			t.Helper()
			for range times {
				leave, err := b.Acquire(t.Context(), "as", "/token", tenant, "c")
				if err != nil {
					t.Fatalf("%s: %v", tenant, err)
				}
				leave(down)
			}
		}
		rests := func(tenant string, want time.Duration) (leave func(*oauth.Error)) {
			t.Helper()
			leave, err := b.Acquire(t.Context(), "as", "/token", tenant, "c")
			if rest := time.Duration(0); err != nil {
				if rest = failure(t, err).RetryAfter; rest != want {
					t.Errorf("%s rests for %v, want %v", tenant, rest, want)
				}
			} else if want != 0 {
				t.Errorf("%s does not rest", tenant)
			}
			return leave
		}
		fail("evil", 5)
		rests("evil", 10*time.Second)
		fail("one", 4) // by chance
		rests("two", 0)(nil)
		time.Sleep(10 * time.Second)
		fail("evil", 1)
		rests("evil", 20*time.Second)
		fail("one", 1)
		rests("one", 10*time.Second)
		rests("two", 10*time.Second)
		rests("three", 10*time.Second)
		time.Sleep(10 * time.Second)
		try := rests("two", 0)
		rests("three", time.Second)
		try(down)
		rests("three", 20*time.Second)
		time.Sleep(20 * time.Second)
		rests("three", 0)(nil)
		rests("two", 0)(nil)
	})
}

// What fails together counts once: the rest is not the longer for it.
func TestBreakerCountsAHerdOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := oauth.NewBreaker()
		var leaves []func(*oauth.Error)
		for range 8 {
			leave, err := b.Acquire(t.Context(), "as", "/token", "t", "c")
			if err != nil {
				t.Fatal(err)
			}
			leaves = append(leaves, leave)
		}
		for _, leave := range leaves {
			leave(&oauth.Error{Outcome: oauth.Transient, Status: 500})
		}
		if _, err := b.Acquire(t.Context(), "as", "/token", "t", "c"); failure(t, err).RetryAfter != 10*time.Second {
			t.Errorf("eight at once: %v", failure(t, err).RetryAfter)
		}
	})
}

// No more than eight requests go to one host, and nobody waits for ever.
func TestBreakerBoundsAHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := oauth.NewBreaker()
		var (
			wg        sync.WaitGroup
			mu        sync.Mutex
			now, most int
		)
		for i := range 30 {
			wg.Go(func() {
				leave, err := b.Acquire(t.Context(), "as", fmt.Sprintf("/%d", i), "t", "c")
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				now++
				most = max(most, now)
				mu.Unlock()
				time.Sleep(time.Second)
				mu.Lock()
				now--
				mu.Unlock()
				leave(nil)
			})
		}
		synctest.Wait()
		if leave, err := b.Acquire(t.Context(), "another", "/", "t", "c"); err != nil {
			t.Error(err)
		} else {
			leave(nil)
		}
		wg.Wait()
		if most != 8 || b.Size() != 0 {
			t.Errorf("%d at a time, %d kept", most, b.Size())
		}
		for range 8 {
			if _, err := b.Acquire(t.Context(), "as", "/", "t", "c"); err != nil {
				t.Fatal(err)
			}
		}
		begin := time.Now()
		_, err := b.Acquire(t.Context(), "as", "/", "t", "c")
		if e := failure(t, err); e.Outcome != oauth.Transient || e.Sent || !e.Busy || time.Since(begin) != 10*time.Second {
			t.Errorf("after %v: %+v", time.Since(begin), e)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Acquire(ctx, "as", "/", "t", "c"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("when the caller gives up: %v", err)
		}
	})
}

// What once failed does not stay in memory for ever.
func TestBreakerForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := oauth.NewBreaker()
		for i := range 5000 {
			leave, err := b.Acquire(t.Context(), "as", fmt.Sprintf("/%d", i), "t", "c")
			if err != nil {
				t.Fatal(err)
			}
			leave(&oauth.Error{Outcome: oauth.Transient})
		}
		if b.Size() > 1000 {
			t.Errorf("%d circuits are kept", b.Size())
		}
	})
}

// The same at a server: while it rests it is not asked.
func TestProviderRests(t *testing.T) {
	s := oauthtest.NewServer(t)
	x, ctx := exchanger(), t.Context()
	s.FailNext(100, 502, "")
	for range 5 {
		if e := failure(t, second(x.ClientCredentials(ctx, "t", s.Provider(), s.Client()))); e.Status != 502 || !e.Sent {
			t.Fatalf("got %+v", e)
		}
	}
	e := failure(t, second(x.ClientCredentials(ctx, "t", s.Provider(), s.Client())))
	if e.Sent || e.Busy || e.Outcome != oauth.Transient || e.RetryAfter <= 0 || e.RetryAfter > 10*time.Second || s.Requests() != 5 {
		t.Errorf("the sixth: %+v, %d requests", e, s.Requests())
	}
	for range 5 {
		failure(t, second(x.ClientCredentials(ctx, "t2", s.Provider(), s.Client())))
	}
	if e := failure(t, second(x.ClientCredentials(ctx, "t3", s.Provider(), s.Client()))); e.Sent || s.Requests() != 10 {
		t.Errorf("a third tenant: %+v, %d requests", e, s.Requests())
	}
	if err := x.Revoke(ctx, "t", s.Provider(), s.Client(), secret("x"), ""); err != nil {
		t.Errorf("another endpoint of the host: %v", err)
	}
	s.Recover()
	y := exchanger()
	s.AnswerNext(1, oauthtest.Later(429, "3600"))
	failure(t, second(y.ClientCredentials(ctx, "t", s.Provider(), s.Client())))
	e = failure(t, second(y.ClientCredentials(ctx, "t", s.Provider(), s.Client())))
	if e.Sent || e.RetryAfter < 50*time.Minute || s.Requests() != 11 {
		t.Errorf("after a 429: %+v, %d requests", e, s.Requests())
	}
}
