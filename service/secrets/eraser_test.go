package secrets_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/stage"
)

// A batch responds before its secrets are erased. They are erased afterwards; if the process ends before, the
// process manager erases them.
func TestBatchErasesAfterItsResponse(t *testing.T) {
	for name, c := range map[string]struct {
		dies bool
		left int // secrets that are left to the process manager
	}{"the process runs on": {false, 0}, "the process ends": {true, 20}} {
		t.Run(name, func(t *testing.T) {
			s := stage.New(t)
			erasing := make(chan struct{}) // closed when erasures may begin
			var dead atomic.Bool
			s.Vault.OnDelete(func(context.Context) (func(bool), error) {
				<-erasing
				if dead.Load() {
					return nil, errors.New("killed")
				}
				return func(bool) {}, nil
			})
			ids := make([]string, 20)
			for i := range ids {
				ids[i] = s.Create("canary")
			}
			done := make(chan credential.Many, 1)
			go func() {
				body := stage.Must(json.Marshal(map[string]any{"ids": ids}))(t)
				answer, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "credential.delete-many", body)
				many, _ := answer.(credential.Many)
				if err != nil || many.Failed > 0 {
					t.Errorf("the batch answers %+v, %v", many, err)
				}
				done <- many
			}()
			select {
			case <-done:
			case <-time.After(10 * time.Second):
				close(erasing)
				t.Fatal("the batch waits for its erasures")
			}
			if left := vaulted(t, s, ids); left != len(ids) {
				t.Fatalf("%d secrets are left before the first erasure", left)
			}
			dead.Store(c.dies)
			close(erasing)
			if c.dies {
				s.Service.Close()
			}
			for began := time.Now(); vaulted(t, s, ids) > c.left && time.Since(began) < 10*time.Second; {
				time.Sleep(10 * time.Millisecond)
			}
			if left := vaulted(t, s, ids); left != c.left {
				t.Fatalf("%d secrets are left, want %d", left, c.left)
			}
			dead.Store(false)
			for _, id := range ids {
				seq := stage.Must(s.Store.Last(t.Context(), aggregates.Credential.Stream("default", id)))(t)
				stage.OK(t, s.Service.Secrets.FollowUp(t.Context(), seq))
			}
			if left := vaulted(t, s, ids); left != 0 {
				t.Errorf("the process manager leaves %d secrets", left)
			}
		})
	}
}

// What a batch has left to erase is held: the process manager does not do it too.
func TestErasuresOfABatchAreHeld(t *testing.T) {
	s := stage.New(t)
	erasing := make(chan struct{})
	s.Vault.OnDelete(func(context.Context) (func(bool), error) { <-erasing; return func(bool) {}, nil })
	id := s.Create("canary")
	s.Do("default", "credential.delete-many", fmt.Sprintf(`{"ids":[%q]}`, id))
	stream := aggregates.Credential.Stream("default", id)
	seq := stage.Must(s.Store.Last(t.Context(), stream))(t)
	if held, finished := s.Service.Secrets.Tracked(stream, seq); !held || finished {
		t.Errorf("before the erasure: held %v, finished %v", held, finished)
	}
	close(erasing)
	s.Service.Secrets.Close()
	if held, finished := s.Service.Secrets.Tracked(stream, seq); held || !finished {
		t.Errorf("after the erasure: held %v, finished %v", held, finished)
	}
	if logs := s.Logs.String(); strings.Contains(logs, "not erased") {
		t.Error(logs)
	}
}

// vaulted counts the secrets of credentials.
func vaulted(t *testing.T, s *stage.Stage, ids []string) (n int) {
	t.Helper()
	for _, id := range ids {
		n += stage.Must(s.Service.Secrets.Vaulted(t.Context(), id))(t)
	}
	return n
}
