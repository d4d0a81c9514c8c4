package throttle

import (
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"slices"
	"time"
)

// A period is divided into slots. A slot's tokens are free again when the whole slot is a
// period ago. So at most the limit is granted in any period, and over a long time at
// least the share slots/(slots+1) of it, 97%.
const slots = 32

// maxFlows bounds the flows that a bucket tracks separately. All others share otherFlows.
const (
	maxFlows   = 32
	otherFlows = "others"
)

// Limit is the maximum number of tokens that a bucket grants in any period.
type Limit struct {
	Tokens int64
	Per    time.Duration
}

// Bucket holds what flows took from one credential's limit, and which of them wait. Times are
// microseconds since 1970, by the clock of the servers that store the bucket.
type Bucket struct {
	Per    int64            `json:"p"`          // the period that Slots divide
	At     int64            `json:"a"`          // when it was last written: its time never runs backwards
	Slots  []Slot           `json:"s,omitzero"` // oldest first
	Claims map[string]int64 `json:"c,omitzero"` // flows that were denied: until when each has a claim on its share
}

// Slot holds what was taken within one part of a period.
type Slot struct {
	N  int64            `json:"n"` // number of the slot since 1970
	By map[string]int64 `json:"t"` // tokens by flow
}

func (s Slot) taken() (n int64) {
	for _, by := range s.By {
		n += by
	}
	return n
}

// clone is a bucket that shares nothing with b.
func (b Bucket) clone() Bucket {
	b.Slots, b.Claims = slices.Clone(b.Slots), maps.Clone(b.Claims)
	for i := range b.Slots {
		b.Slots[i].By = maps.Clone(b.Slots[i].By)
	}
	return b
}

// flowID is a short hash of a flow's id, which callers choose and may be long.
func flowID(flow string) string {
	sum := sha256.Sum256([]byte(flow))
	return base64.RawURLEncoding.EncodeToString(sum[:9])
}

// take grants n tokens to a flow, all or none; n is at most the limit. If it denies them, wait is
// the time after which the flow may get them. free is what is left. It changes the bucket in
// either case; store is false if the change need not be stored.
//
// A flow may take what is free up to its fair share: the limit divided among the flows that
// recently took some or were denied. Beyond its share it leaves theirs to the flows that were
// denied, for as long as they keep asking. So one flow gets all that the others do not request,
// and another one that requests tokens gets its share within a period.
func (b *Bucket) take(limit Limit, flow string, n int64, now time.Time) (granted bool, wait time.Duration, free int64, store bool) {
	at := max(now.UnixMicro(), b.At)
	b.advance(limit.Per.Microseconds(), at)
	taken, used := int64(0), map[string]int64{}
	for _, s := range b.Slots {
		for f, by := range s.By {
			taken += by
			used[f] += by
		}
	}
	free = max(0, limit.Tokens-taken)
	flows := len(used)
	for f := range b.Claims {
		if _, took := used[f]; !took {
			flows++
		}
	}
	if _, known := b.Claims[flow]; used[flow] == 0 && !known {
		if flows >= maxFlows {
			flow = otherFlows
		}
		flows++
	}
	claims, lapse := int64(0), at+b.Per // of others, and when the first of them ends
	if share := max(1, limit.Tokens/int64(flows)); used[flow]+n > share {
		for f, until := range b.Claims {
			if claim := share - used[f]; f != flow && claim > 0 {
				claims += claim
				lapse = min(lapse, until)
			}
		}
	}
	grace := max(b.Per/8, (100 * time.Millisecond).Microseconds())
	if b.Claims == nil {
		b.Claims = map[string]int64{}
	}
	until, claimed := b.Claims[flow]
	if n <= free-claims {
		slot := at / b.width()
		if last := len(b.Slots) - 1; last < 0 || b.Slots[last].N < slot {
			b.Slots = append(b.Slots, Slot{slot, map[string]int64{}})
		}
		b.Slots[len(b.Slots)-1].By[flow] += n
		if claimed {
			b.Claims[flow] = at + grace
		}
		b.At = at
		return true, 0, free - n, true
	}
	due := b.freeAt(min(limit.Tokens, n+claims)-(limit.Tokens-taken), at)
	if n <= free {
		due = min(due, lapse)
	}
	// Do not store the claim again for each request of a flow that keeps asking.
	if store = due+grace-until > grace/2; store {
		b.Claims[flow], b.At = due+grace, at
	}
	return false, time.Duration(due-at) * time.Microsecond, free, store
}

func (b *Bucket) width() int64 { return max(1, b.Per/slots) }

// advance moves the bucket to a time, and to the period that the policy has now.
func (b *Bucket) advance(per, at int64) {
	if b.Per != per {
		before := b.width()
		b.Per = per
		width := b.width()
		var merged []Slot
		for _, s := range b.Slots {
			// By its end, so that nothing counts for a shorter time than it must.
			s.N = min((s.N+1)*before-1, at) / width
			if last := len(merged) - 1; last >= 0 && merged[last].N == s.N {
				for f, by := range s.By {
					merged[last].By[f] += by
				}
			} else {
				merged = append(merged, s)
			}
		}
		b.Slots = merged
	}
	b.Slots = slices.DeleteFunc(b.Slots, func(s Slot) bool { return (s.N+1)*b.width()+b.Per <= at })
	maps.DeleteFunc(b.Claims, func(_ string, until int64) bool { return until <= at })
}

// freeAt returns when this many more tokens will be free.
func (b *Bucket) freeAt(more, at int64) int64 {
	due := at + b.Per
	for _, s := range b.Slots {
		if more <= 0 {
			break
		}
		more -= s.taken()
		due = (s.N+1)*b.width() + b.Per
	}
	return max(due, at+1)
}
