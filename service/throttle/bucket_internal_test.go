package throttle

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

var midnight = time.Date(2030, 1, 2, 0, 0, 0, 0, time.UTC)

// A flow that takes all there is, as fast as it can, leaves to one that asks for a token at
// a time its half: from a period after the other one began to ask.
func TestGreedyFlowLeavesShares(t *testing.T) {
	limit := Limit{Tokens: 100, Per: time.Minute}
	var b Bucket
	got := map[string][]int64{"greedy": make([]int64, 7), "modest": make([]int64, 7)}
	for tick := range int64(7 * 6000) { // every 10 ms
		now := midnight.Add(time.Duration(tick) * 10 * time.Millisecond)
		for range 20 {
			if granted, _, _, _ := b.take(limit, "greedy", 1, now); granted {
				got["greedy"][tick/6000]++
			}
		}
		if minute := tick / 6000; minute > 0 && minute < 5 && tick%10 == 0 {
			if granted, _, _, _ := b.take(limit, "modest", 1, now); granted {
				got["modest"][minute]++
			}
		}
	}
	for minute := range 7 {
		greedy, modest := got["greedy"][minute], got["modest"][minute]
		if sum := greedy + modest; sum > 110 || sum < 80 && minute > 0 {
			t.Errorf("minute %d: %d granted", minute, sum)
		}
		if minute >= 2 && minute < 5 && (modest < 40 || greedy < 40) {
			t.Errorf("minute %d: %d for the greedy flow, %d for the modest one", minute, greedy, modest)
		}
	}
	if got["greedy"][6] < 90 {
		t.Errorf("alone again, the greedy flow gets %d", got["greedy"][6])
	}
}

// In any period no more is granted than the limit, whoever asks for what and whenever; who
// waits as told, and asks for no more than its share, is granted its tokens in the end; and
// a clock that runs back grants nothing more.
func TestNeverMoreThanTheLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := Limit{Tokens: rapid.Int64Range(1, 50).Draw(t, "limit"), Per: rapid.SampledFrom([]time.Duration{time.Second, time.Minute, 24 * time.Hour}).Draw(t, "per")}
		var b Bucket
		type grant struct {
			at time.Time
			n  int64
		}
		var grants []grant
		now := midnight
		for range rapid.IntRange(1, 200).Draw(t, "asks") {
			now = now.Add(time.Duration(rapid.Int64Range(-int64(limit.Per/100), int64(limit.Per/8)).Draw(t, "step")))
			n := rapid.Int64Range(1, limit.Tokens).Draw(t, "n")
			granted, wait, free, _ := b.take(limit, rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "flow"), n, now)
			if free < 0 || free > limit.Tokens || granted == (wait > 0) || wait > 2*limit.Per {
				t.Fatalf("granted %t, wait %v, free %d", granted, wait, free)
			}
			if !granted {
				continue
			}
			at := time.UnixMicro(b.At)
			grants = append(grants, grant{at, n})
			sum := int64(0)
			for _, g := range grants {
				if at.Sub(g.at) < limit.Per {
					sum += g.n
				}
			}
			if sum > limit.Tokens {
				t.Fatalf("%d of %d granted in the period to %v", sum, limit.Tokens, at)
			}
		}
		for tries := 0; ; tries++ {
			granted, wait, _, _ := b.take(limit, "a", 1, time.UnixMicro(max(now.UnixMicro(), b.At)))
			if granted {
				return
			}
			if now = time.UnixMicro(max(now.UnixMicro(), b.At)).Add(wait); tries > 8 {
				t.Fatalf("denied %d times, told to wait %v", tries, wait)
			}
		}
	})
}

// A policy that changes counts what was taken under the one before, as long as its new
// period reaches back; many flows do not make a bucket large.
func TestBucketOfAnotherPolicy(t *testing.T) {
	var b Bucket
	hour, minute := Limit{Tokens: 10, Per: time.Hour}, Limit{Tokens: 10, Per: time.Minute}
	for range 10 {
		b.take(hour, "a", 1, midnight)
	}
	if granted, _, free, _ := b.take(minute, "a", 1, midnight.Add(time.Second)); granted || free != 0 {
		t.Errorf("another period grants what was taken: %t, %d", granted, free)
	}
	if granted, wait, _, _ := b.take(Limit{Tokens: 4, Per: time.Minute}, "a", 1, midnight.Add(2*time.Second)); granted || wait <= 0 {
		t.Errorf("a lower limit: %t, %v", granted, wait)
	}
	if granted, _, _, _ := b.take(Limit{Tokens: 11, Per: time.Minute}, "a", 1, midnight.Add(3*time.Second)); !granted {
		t.Error("a higher limit grants no more")
	}
	if granted, _, free, _ := b.take(hour, "a", 1, midnight.Add(2*time.Minute)); granted || free != 0 {
		t.Errorf("back to the first period: %t, %d", granted, free)
	}
	for i := range 1000 {
		b.take(Limit{Tokens: 10000, Per: time.Hour}, flowID(string(rune('a'+i))), 1, midnight.Add(3*time.Minute))
	}
	flows := map[string]bool{}
	for _, s := range b.Slots {
		for f := range s.By {
			flows[f] = true
		}
	}
	if len(flows) > maxFlows+1 || len(b.Slots) > slots+2 {
		t.Errorf("%d flows, %d slots", len(flows), len(b.Slots))
	}
}
