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

// caller is one client: call makes one request and waits for its answer.
type caller struct {
	call  func() error
	close func()
}

// load is what a run of calls gave.
type load struct {
	n    int
	rate float64 // calls per second
	took []time.Duration
	all  int64         // calls, the warm time included
	cpu  time.Duration // of the service for one call, where it was looked at
}

// quantile returns the q-th part (0 to 1) of the latencies.
func (l load) quantile(q float64) time.Duration {
	if len(l.took) == 0 {
		return 0
	}
	i := int(q * float64(len(l.took)))
	return l.took[min(i, len(l.took)-1)]
}

// size says when a closed run ends: after a time, or after a number of calls.
type size struct {
	warm, time time.Duration
	calls      int64
}

// closed runs n clients that call without pause. What happens in the warm time
// is not counted.
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
				// Counted is what ends in the time: what was under way at its start
				// stands for what is under way at its end.
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

// paced makes calls at a steady rate, whatever the answers take, over n
// clients. A latency counts from when the call was due: a call that waits for a
// free client waits on the clock.
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
		runtime.LockOSThread() // its sleeps are exact, unlike those of a goroutine
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

// median of a few values; the lower one of two in the middle.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	return s[(len(s)-1)/2]
}

var errInterrupted = errors.New("interrupted")
