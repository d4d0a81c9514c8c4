package admission_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credstream/credstream/admission"
)

func enter(a *admission.Admission, tenant, key string, cost int) (*admission.Pass, error) {
	p, err := a.Reserve(admission.Caller{Tenant: tenant, Key: key}, cost, 0)
	if err != nil {
		return nil, err
	}
	return p, p.Enter(context.Background())
}

// A tenant that sends without end waits for itself, and others enter at once.
func TestOthersEnterAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := admission.New(2, nil)
		var running, most atomic.Int64
		for n := range 300 {
			go func() {
				p, err := enter(a, "greedy", fmt.Sprint(n%5), admission.Request)
				if err != nil {
					t.Error(err)
					return
				}
				if now := running.Add(1); now > most.Load() {
					most.Store(now)
				}
				time.Sleep(10 * time.Millisecond)
				running.Add(-1)
				p.Leave()
			}()
		}
		synctest.Wait()
		for _, tenant := range []string{"one", "two", "three"} {
			begin := time.Now()
			p, err := enter(a, tenant, "k", admission.Scan)
			if err != nil || time.Since(begin) != 0 {
				t.Errorf("%s waits for %v: %v", tenant, time.Since(begin), err)
				continue
			}
			defer p.Leave()
		}
		time.Sleep(10 * time.Second)
		if share := int64(2 * admission.PerCore / 2 / admission.Request); most.Load() > share || most.Load() < share/2 {
			t.Errorf("%d calls of one tenant were under way at one time, want up to %d", most.Load(), share)
		}
	})
}

// Calls beyond the line are refused at once, those that wait too long later.
func TestLineIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := admission.New(1, nil)
		a.SetWait(time.Second)
		first, err := enter(a, "t", "k", admission.PerCore)
		if err != nil {
			t.Fatal(err)
		}
		var late atomic.Int64
		for range admission.MaxLine {
			go func() {
				if _, err := enter(a, "t", "k", 1); errors.Is(err, admission.ErrBusy) {
					late.Add(1)
				}
			}()
		}
		synctest.Wait()
		begin := time.Now()
		if _, err := enter(a, "t", "k", 1); !errors.Is(err, admission.ErrBusy) || time.Since(begin) != 0 {
			t.Errorf("beyond the line: %v after %v", err, time.Since(begin))
		}
		for n := range admission.MaxLines - admission.MaxLine {
			go func() { _, _ = enter(a, "t", fmt.Sprint("other", n%2), 1) }()
		}
		synctest.Wait()
		if _, err := enter(a, "t", "third", 1); !errors.Is(err, admission.ErrBusy) {
			t.Errorf("beyond the lines of the tenant: %v", err)
		}
		time.Sleep(2 * time.Second)
		if late.Load() != admission.MaxLine {
			t.Errorf("%d of %d were refused for having waited too long", late.Load(), admission.MaxLine)
		}
		first.Leave()
		empty(t, a)
	})
}

// Bodies take memory before they are decoded: a tenant has its part of it.
func TestBodiesAreBounded(t *testing.T) {
	a := admission.New(2, nil)
	var held []*admission.Pass
	for {
		p, err := a.Reserve(admission.Caller{Tenant: "greedy", Key: fmt.Sprint(len(held) % 5)}, 1, 1<<20)
		if err != nil {
			break
		}
		held = append(held, p)
	}
	if len(held) != admission.MaxBytes/2>>20 {
		t.Errorf("a tenant has %d MiB of bodies", len(held))
	}
	p, err := a.Reserve(admission.Caller{Tenant: "other", Key: "k"}, 1, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range append(held, p) {
		p.Leave()
	}
	empty(t, a)
}

// Keys of a tenant have their turn one after the other.
func TestKeysHaveTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := admission.New(1, nil)
		begin := time.Now()
		one := func(key string) (took time.Duration) {
			p, err := enter(a, "t", key, admission.PerCore)
			if err != nil {
				t.Error(err)
				return 0
			}
			time.Sleep(10 * time.Millisecond)
			p.Leave()
			return time.Since(begin)
		}
		for range 100 {
			go one("greedy")
		}
		synctest.Wait()
		if took := one("modest"); took > 30*time.Millisecond {
			t.Errorf("the other key waits behind the first: %v", took)
		}
		time.Sleep(2 * time.Second)
		empty(t, a)
	})
}

// Who waits for something else holds nothing, and goes on without waiting again.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := admission.New(1, nil)
		p, err := enter(a, "t", "k", admission.PerCore/2)
		if err != nil {
			t.Fatal(err)
		}
		ctx := p.With(t.Context())
		resume := admission.Idle(ctx)
		inner := admission.Idle(ctx)
		if used, _, _, _ := a.Held(); used != 0 {
			t.Errorf("%d units are held by who waits", used)
		}
		q, err := enter(a, "t", "k", admission.PerCore/2)
		if err != nil {
			t.Fatal(err)
		}
		inner()
		resume()
		if used, _, _, _ := a.Held(); used != admission.PerCore {
			t.Errorf("%d units are held by two", used)
		}
		q.Leave()
		late := admission.Idle(ctx)
		p.Leave()
		late()
		admission.Idle(ctx)() // of who has left
		admission.Idle(t.Context())()
		empty(t, a)
	})
}

// A call with a large body leaves room for others: not only for one of each tenant.
func TestLargestCallLeavesRoom(t *testing.T) {
	a := admission.New(2, nil)
	p, err := a.Reserve(admission.Caller{Tenant: "t", Key: "k"}, admission.Request, 16<<20)
	if err != nil || p.Enter(t.Context()) != nil {
		t.Fatal("a body of 16 MiB is refused")
	}
	defer p.Leave()
	for range 4 {
		q, err := enter(a, "other", "k", admission.Request)
		if err != nil {
			t.Fatal("another tenant is refused: ", err)
		}
		defer q.Leave()
	}
}

// One fsync serves many calls, which then resume at once. A tenant whose calls wait for the
// disk has only so many of them, and another tenant enters at once.
func TestCallsThatWaitForTheDiskAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := admission.New(1, nil)
		var resume []func()
		for range 2 * admission.PerCore {
			p, err := enter(a, "greedy", "k", admission.Request)
			if err != nil {
				break
			}
			defer p.Leave()
			resume = append(resume, admission.IdleForDisk(p.With(t.Context())))
		}
		if used, _, _, _ := a.Held(); len(resume) < 32 || len(resume) >= admission.PerCore || used > admission.PerCore/2 {
			t.Errorf("%d calls of one key wait for the disk and hold %d units", len(resume), used)
		}
		p, err := enter(a, "other", "k", admission.Request)
		if err != nil {
			t.Fatal("another tenant: ", err)
		}
		p.Leave()
		for _, f := range resume {
			f() // none of them waits
		}
		if used, _, _, _ := a.Held(); used != len(resume)*admission.Request {
			t.Errorf("%d calls hold %d units after the fsync", len(resume), used)
		}
	})
}

// Whatever happens, all is given back.
func TestAllIsGivenBack(t *testing.T) {
	a := admission.New(2, nil)
	a.SetWait(2 * time.Millisecond)
	var all sync.WaitGroup
	for n := range 64 {
		r := rand.New(rand.NewPCG(1, uint64(n)))
		all.Go(func() {
			for range 200 {
				p, err := a.Reserve(admission.Caller{Tenant: fmt.Sprint(r.IntN(4)), Key: fmt.Sprint(r.IntN(3))}, 1+r.IntN(200), int64(r.IntN(1<<20)))
				if err != nil {
					continue
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(r.IntN(1000))*time.Microsecond)
				if r.IntN(10) > 0 && p.Enter(ctx) == nil && r.IntN(2) == 0 {
					wait := []func(context.Context) func(){admission.Idle, admission.IdleForDisk}[r.IntN(2)]
					resume := wait(p.With(ctx))
					time.Sleep(time.Duration(r.IntN(200)) * time.Microsecond)
					resume()
				}
				p.Leave()
				cancel()
			}
		})
	}
	all.Wait()
	empty(t, a)
}

func empty(t *testing.T, a *admission.Admission) {
	t.Helper()
	if used, tenants, waiting, bytes := a.Held(); used != 0 || tenants != 0 || waiting != 0 || bytes != 0 {
		t.Errorf("%d units, %d tenants, %d that wait and %d bytes are held in the end", used, tenants, waiting, bytes)
	}
}
