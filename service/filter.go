package service

import (
	"slices"
	"strings"
	"time"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// ErrFilter refuses a filter that matches nothing whatever is stored, such as a misspelled type: an
// empty answer would look like proof that nothing happened.
var ErrFilter = fault.New(fault.Invalid, "filter_invalid", "This filter cannot match anything.")

// actorKinds are the kinds of events.Actor.
var actorKinds = []string{"key", "user", "system"}

// CheckActor refuses a filter by actor that has no kind or no id. "" is no filter.
func CheckActor(actor string) error {
	kind, id, _ := strings.Cut(actor, ":")
	if actor == "" || id != "" && slices.Contains(actorKinds, kind) {
		return nil
	}
	return ErrFilter.Withf("An actor is written key:<id>, user:<id> or system:<id>.").At("/actor")
}

// CheckPeriod refuses a period that ends before it begins. A zero time is no bound.
func CheckPeriod(since, until time.Time) error {
	if since.IsZero() || until.IsZero() || since.Before(until) {
		return nil
	}
	return ErrFilter.Withf("The period ends before it begins: until must be after since.").At("/until")
}

// CheckFilterID refuses a filter by an id that no resource can have. "" is no filter.
func CheckFilterID(member, id string) error {
	if id == "" || events.CheckID(id) == nil {
		return nil
	}
	return ErrFilter.Withf("No resource can have this id.").At("/" + member)
}
