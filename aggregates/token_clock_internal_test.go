package aggregates

import (
	"testing"
	"time"
)

// An end that a clock ahead of time has written is not believed.
func TestTokenOfAClockThatWasAhead(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for left, want := range map[time.Duration]bool{
		10 * time.Minute: true, 10*time.Minute + 30*time.Second: true, time.Minute: true, 59 * time.Second: false,
		12 * time.Minute: false, 365 * 24 * time.Hour: false,
	} {
		if got := (Token{Expires: now.Add(left), Lifetime: 10 * time.Minute}).ValidFor(now, time.Minute); got != want {
			t.Errorf("of a token of 10 minutes that ends in %s: %v, want %v", left, got, want)
		}
	}
}
