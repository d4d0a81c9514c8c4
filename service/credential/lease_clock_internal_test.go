package credential

import (
	"testing"
	"time"
)

// A lease that was given by a clock ahead of time is not given again after the clock
// was set back.
func TestLeaseOfAClockThatWasAhead(t *testing.T) {
	given := time.Unix(1_000_000, 0)
	l := &lease{granted: given, answer: Resolved{Expires: given.Add(10 * time.Minute)}}
	for after, want := range map[time.Duration]bool{0: true, 9 * time.Minute: true, 9*time.Minute + time.Second: false, -time.Hour: false} {
		if got := l.reusable(given.Add(after)); got != want {
			t.Errorf("%s after it was granted: %v, want %v", after, got, want)
		}
	}
}
