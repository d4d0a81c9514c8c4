package main

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// caller is one client: call makes one request and waits for the response.
type caller struct {
	call  func() error
	close func()
}

// load is the result of a run of calls.
type load struct {
	n    int
	rate float64 // calls per second
	took []time.Duration
	all  int64         // calls, including those of the warm-up
	cpu  time.Duration // of the service per call; 0 if not measured
}

// quantile returns the q-quantile (0 to 1) of the latencies.
func (l load) quantile(q float64) time.Duration {
	if len(l.took) == 0 {
		return 0
	}
	i := int(q * float64(len(l.took)))
	return l.took[min(i, len(l.took)-1)]
}

// size defines when a closed-loop run ends: after a time, or after a number of calls.
type size struct {
	warm, time time.Duration
	calls      int64
}

// closed runs n clients in a closed loop: they call without pause. Calls of the warm-up are not
// counted.
func closed(ctx context.Context, n int, s size, open func(i int) (caller, error)) (load, error) {
	callers, err := openAll(n, open)
	defer closeAll(callers)
	if err != nil {
		return load{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var left, made atomic.Int64
	left.Store(s.calls)
	start := time.Now()
	from, until := start.Add(s.warm), start.Add(s.warm+s.time)
	took := make([][]time.Duration, n)
	var all sync.WaitGroup
	for i, c := range callers {
		all.Go(func() {
			n := int64(0)
			defer func() { made.Add(n) }()
			for ; ctx.Err() == nil; n++ {
				if s.calls > 0 && left.Add(-1) < 0 {
					return
				}
				began := time.Now()
				if s.calls == 0 && !began.Before(until) {
					return
				}
				if err := c.call(); err != nil {
					cancel(err)
					return
				}
				// A call counts if it ends in the time: those in flight at the start make up
				// for those in flight at the end.
				if ended := time.Now(); s.calls > 0 || ended.After(from) && ended.Before(until) {
					took[i] = append(took[i], ended.Sub(began))
				}
			}
		})
	}
	all.Wait()
	if err := context.Cause(ctx); err != nil {
		return load{}, err
	}
	elapsed := s.time
	if s.calls > 0 {
		elapsed = time.Since(start)
	}
	l := summed(took, elapsed)
	l.all = made.Load()
	return l, nil
}

// paced makes calls at a constant rate (open loop) over n clients. Latency is measured from the time
// when the call was due, so it includes the wait for a free client.
func paced(ctx context.Context, n int, rate float64, d time.Duration, open func(i int) (caller, error)) (load, error) {
	callers, err := openAll(n, open)
	defer closeAll(callers)
	if err != nil {
		return load{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	due := make(chan time.Time, int(rate*d.Seconds())+1)
	took := make([][]time.Duration, n)
	var all sync.WaitGroup
	for i, c := range callers {
		all.Go(func() {
			for at := range due {
				if ctx.Err() != nil {
					continue
				}
				if err := c.call(); err != nil {
					cancel(err)
					continue
				}
				took[i] = append(took[i], time.Since(at))
			}
		})
	}
	start := time.Now()
	all.Go(func() {
		defer close(due)
		runtime.LockOSThread() // sleeps of a thread are more exact than those of a goroutine
		defer runtime.UnlockOSThread()
		for i := range int(rate * d.Seconds()) {
			at := start.Add(time.Duration(float64(i) / rate * float64(time.Second)))
			for wait := time.Until(at); wait > 0 && ctx.Err() == nil; wait = time.Until(at) {
				pause := unix.NsecToTimeval(wait.Nanoseconds() + 999)
				_, _ = unix.Select(0, nil, nil, nil, &pause) // a signal ends it early; the loop sleeps again
			}
			due <- at
		}
	})
	all.Wait()
	if err := context.Cause(ctx); err != nil {
		return load{}, err
	}
	return summed(took, time.Since(start)), nil
}

func openAll(n int, open func(i int) (caller, error)) ([]caller, error) {
	var callers []caller
	for i := range n {
		c, err := open(i)
		if err != nil {
			return callers, err
		}
		callers = append(callers, c)
	}
	return callers, nil
}

func closeAll(callers []caller) {
	for _, c := range callers {
		if c.close != nil {
			c.close()
		}
	}
}

func summed(took [][]time.Duration, elapsed time.Duration) load {
	var l load
	l.took = slices.Concat(took...)
	slices.Sort(l.took)
	l.n = len(l.took)
	l.rate = float64(l.n) / elapsed.Seconds()
	return l
}

// median returns the median of a few values; of two in the middle, the lower one.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	return s[(len(s)-1)/2]
}

var errInterrupted = errors.New("interrupted")
