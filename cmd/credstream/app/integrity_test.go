package app

import (
	"context"
	"testing"

	eventlog "github.com/credstream/credstream/events/jetstream"
)

// What writes waits while what is stored is damaged, and begins when it is whole again, or
// ends with the process.
func TestWritersWaitForIntegrity(t *testing.T) {
	var i integrity
	if !i.await(t.Context()) {
		t.Error("it waits while nothing is damaged")
	}
	if !i.set(eventlog.ErrLogIncomplete) || i.set(eventlog.ErrLogCutShort) {
		t.Error("only the first damage is news")
	}
	waits := make(chan bool, 2)
	life, end := context.WithCancel(t.Context())
	go func() { waits <- i.await(life) }()
	end()
	if <-waits {
		t.Error("a process that ends goes on to write")
	}
	for range 2 {
		go func() { waits <- i.await(t.Context()) }()
	}
	select {
	case <-waits:
		t.Error("it does not wait")
	default:
	}
	if !i.set(nil) || i.Err() != nil {
		t.Error("the end of the damage is no news")
	}
	for range 2 {
		if !<-waits {
			t.Error("it does not go on")
		}
	}
}
