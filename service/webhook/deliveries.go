package webhook

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/secrets"
)

// Errors of deliveries.
var (
	ErrDeliveryNotFound = fault.New(fault.NotFound, "webhook_delivery_not_found",
		"The webhook lists no dead or delivered event with this id. List its deliveries: those that are pending are sent again by themselves.")
	ErrUnavailable = fault.New(fault.Unavailable, "webhook_deliveries_unavailable",
		"The state of the deliveries cannot be read or stored. Try again shortly.")
)

// ErrMoved is returned by Deliveries.Store when another process was faster.
var ErrMoved = errors.New("webhook: the deliveries were changed concurrently")

// Deliveries keeps the state of the deliveries of each webhook, shared by all processes.
type Deliveries interface {
	// Load returns the stored value of a part, and its revision: 0 when there is none.
	Load(ctx context.Context, tenant, webhook, part string) (value []byte, revision uint64, err error)
	// Store replaces what has the revision, durably, or returns ErrMoved.
	Store(ctx context.Context, tenant, webhook, part string, value []byte, revision uint64) (uint64, error)
	// Forget removes all parts.
	Forget(ctx context.Context, tenant, webhook string) error
}

// The parts of the state of a webhook's deliveries. Its deliverer alone writes the progress.
const (
	partProgress = "progress"
	partDead     = "dead"
)

// The bounds of the state of a webhook's deliveries.
const (
	maxPending = 256
	maxSubject = 4 // pending of one subject: it does not hold the others
	maxRecent  = 50
	maxDead    = 200
)

// delivery is one event on its way to a receiver. The event itself is in the log.
type delivery struct {
	Seq      uint64    `json:"seq"`
	Index    int       `json:"index"`
	ID       string    `json:"id"` // of the event
	Type     string    `json:"type"`
	Subject  string    `json:"subject"` // deliveries of one subject are made in order
	Since    time.Time `json:"since"`   // when it was read: the retries end 24 hours later
	Attempts int       `json:"attempts,omitzero"`
	At       time.Time `json:"at,omitzero"`   // of the last attempt
	Next     time.Time `json:"next,omitzero"` // of the next attempt
	Status   int       `json:"status,omitzero"`
	Outcome  string    `json:"outcome,omitzero"`
	Latency  int64     `json:"latency_ms,omitzero"`
}

func (d *delivery) attempted(a attempted, at time.Time) {
	d.Attempts++
	d.At, d.Status, d.Outcome, d.Latency = at, a.status, a.outcome, a.latency.Milliseconds()
}

// progress is how far a webhook has come: it has read the log up to a position, and all
// deliveries before it that are not pending are done.
type progress struct {
	Incarnation string           `json:"incarnation"`
	Read        secrets.Position `json:"read"`
	Pending     []delivery       `json:"pending,omitzero"` // in log order
	Recent      []delivery       `json:"recent,omitzero"`  // delivered, oldest first
	Behind      map[string]held  `json:"behind,omitzero"`  // by subject: events that are read from its stream when earlier ones are done
}

// held are the events of a subject that were read, but are not pending yet: those of its stream
// after a commit, up to another.
type held struct {
	Stream events.StreamID `json:"stream"`
	After  uint64          `json:"after"`
	Last   uint64          `json:"last"`
}

// deadLetters are the deliveries that were given up, oldest first.
type deadLetters struct {
	Incarnation string     `json:"incarnation"`
	Dead        []delivery `json:"dead"`
}

func load[T any](ctx context.Context, of Deliveries, tenant, id, part string) (value T, revision uint64, err error) {
	b, revision, err := of.Load(ctx, tenant, id, part)
	if err == nil && revision != 0 {
		err = json.Unmarshal(b, &value)
	}
	if err != nil {
		return value, 0, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return value, revision, nil
}

// changeDead changes the dead letters of a webhook; change may be called several times, and
// returns false when there is nothing to store.
func (s *Service) changeDead(ctx context.Context, tenant, id, incarnation string, change func([]delivery) ([]delivery, bool)) error {
	for {
		now, revision, err := load[deadLetters](ctx, s.Deliveries, tenant, id, partDead)
		if err != nil {
			return err
		}
		if now.Incarnation != incarnation {
			now = deadLetters{Incarnation: incarnation}
		}
		var store bool
		if now.Dead, store = change(now.Dead); !store {
			return nil
		}
		b, err := json.Marshal(now)
		if err != nil {
			return err
		}
		if _, err = s.Deliveries.Store(ctx, tenant, id, partDead, b, revision); !errors.Is(err, ErrMoved) {
			return err
		}
	}
}

// ListDeliveries asks for the deliveries of a webhook.
type ListDeliveries struct {
	ID     string `json:"id"`
	Status string `json:"status,omitzero"` // only those that are "delivered", "pending" or "dead"
	Limit  int    `json:"limit,omitzero"`  // 1 to 200; 50 when absent
	After  string `json:"after,omitzero"`  // cursor of the previous page
}

// Delivery is the public form of a delivery.
type Delivery struct {
	Event    string    `json:"event"`   // id of the event, which is the header webhook-id
	Type     string    `json:"type"`    // of the event
	Subject  string    `json:"subject"` // of the event
	Status   string    `json:"status"`  // "delivered", "pending" or "dead"
	Attempts int       `json:"attempts"`
	HTTP     int       `json:"http_status,omitzero"` // of the last answer; absent without one
	Outcome  string    `json:"outcome,omitzero"`     // why there was no answer
	Latency  int64     `json:"latency_ms"`           // of the last attempt
	At       time.Time `json:"at,omitzero"`          // of the last attempt
	Next     time.Time `json:"next,omitzero"`        // of the next attempt
	Seq      uint64    `json:"seq"`                  // log sequence of the event
}

// DeliveryList answers ListDeliveries: the dead letters, then the pending deliveries, then the
// last 50 that were delivered, each in the order of the log.
type DeliveryList struct {
	Deliveries []Delivery `json:"deliveries"`
	ReadUpTo   uint64     `json:"read_up_to"`    // log sequence up to which the webhook has read
	Next       string     `json:"next,omitzero"` // cursor of the next page; absent on the last
}

// place is the position of a delivery in a list of deliveries.
type place struct {
	group int // 0: dead, 1: pending, 2: delivered
	seq   uint64
	index int
}

func (p place) compare(other place) int {
	return cmp.Or(cmp.Compare(p.group, other.group), cmp.Compare(p.seq, other.seq), cmp.Compare(p.index, other.index))
}

func (p place) cursor() string { return fmt.Sprintf("%d.%d.%d", p.group, p.seq, p.index) }

// parsePlace parses a cursor, or returns projections.ErrCursorInvalid.
func parsePlace(cursor string) (p place, err error) {
	if cursor == "" {
		return place{group: -1}, nil
	}
	if _, err := fmt.Sscanf(cursor, "%d.%d.%d", &p.group, &p.seq, &p.index); err != nil || p.cursor() != cursor {
		return p, projections.ErrCursorInvalid.At("/after")
	}
	return p, nil
}

func (s *Service) deliveries(ctx context.Context, call *service.Call, in ListDeliveries) (DeliveryList, error) {
	list := DeliveryList{Deliveries: []Delivery{}}
	limit, err := service.PageSize(in.Limit)
	if err != nil {
		return list, err
	}
	after, err := parsePlace(in.After)
	if err != nil {
		return list, err
	}
	state, err := s.live(ctx, call.Tenant, in.ID)
	if err != nil {
		return list, err
	}
	if s.Deliveries == nil {
		return list, ErrUnavailable
	}
	// A delivery that is given up is stored as a dead letter first, and then removed from the progress:
	// read in the other order, no delivery is missed, and one that is in both is dead.
	at, _, err := load[progress](ctx, s.Deliveries, call.Tenant, in.ID, partProgress)
	if err != nil {
		return list, err
	}
	dead, _, err := load[deadLetters](ctx, s.Deliveries, call.Tenant, in.ID, partDead)
	if err != nil {
		return list, err
	}
	if dead.Incarnation == at.Incarnation {
		at.Pending = slices.DeleteFunc(at.Pending, func(p delivery) bool {
			return slices.ContainsFunc(dead.Dead, func(d delivery) bool { return d.ID == p.ID })
		})
	}
	var last place
	add := func(group int, status string, incarnation string, all []delivery) {
		if incarnation != state.Incarnation || in.Status != "" && in.Status != status {
			return
		}
		// Dead letters are kept in the order in which they were given up.
		slices.SortFunc(all, func(a, b delivery) int { return place{0, a.Seq, a.Index}.compare(place{0, b.Seq, b.Index}) })
		for _, d := range all {
			at := place{group, d.Seq, d.Index}
			switch {
			case at.compare(after) <= 0:
				continue
			case len(list.Deliveries) == limit:
				list.Next = last.cursor()
				return
			}
			last = at
			list.Deliveries = append(list.Deliveries, Delivery{
				Event: d.ID, Type: d.Type, Subject: d.Subject, Status: status, Attempts: d.Attempts, HTTP: d.Status, Outcome: d.Outcome,
				Latency: d.Latency, At: d.At, Next: d.Next, Seq: d.Seq,
			})
		}
	}
	add(0, "dead", dead.Incarnation, dead.Dead)
	add(1, "pending", at.Incarnation, at.Pending)
	add(2, "delivered", at.Incarnation, at.Recent)
	if at.Incarnation == state.Incarnation {
		list.ReadUpTo = at.Read.Seq
	}
	return list, nil
}

// live is the newest state of a webhook, or ErrWebhookNotFound.
func (s *Service) live(ctx context.Context, tenant, id string) (aggregates.WebhookState, error) {
	if err := checkID(id); err != nil {
		return aggregates.WebhookState{}, err
	}
	state, err := aggregates.Webhook.Fresh(ctx, s.Log, aggregates.Webhook.Stream(tenant, id))
	if err == nil && !state.Value.Live() {
		err = aggregates.ErrWebhookNotFound
	}
	return state.Value, err
}

// Test asks for one request to the receiver.
type Test struct {
	ID string `json:"id"`
}

// Sent answers a command that makes a request to the receiver.
type Sent struct {
	service.Done        // says what the receiver answered
	Outcome      string `json:"outcome"` // "delivered" or "failed"
}

// Remember implements service.Result.
func (s Sent) Remember(c *events.CommandCompleted) (service.Done, bool) {
	c.Outcome = s.Outcome
	return s.Done, true
}

func recallSent(_ context.Context, _ *service.Call, done service.Done, c events.CommandCompleted) (any, error) {
	return Sent{done, c.Outcome}, nil
}

func sent(id string, a attempted) Sent {
	out := Sent{service.Done{ID: id, Says: a.says()}, "failed"}
	if a.delivered() {
		out.Outcome = "delivered"
	}
	return out
}

// test sends an event that stands for nothing. Its type is no type of the feed.
func (s *Service) test(ctx context.Context, call *service.Call, in Test) (Sent, error) {
	state, err := s.live(ctx, call.Tenant, in.ID)
	if err != nil {
		return Sent{}, err
	}
	if _, err := s.Kernel.Begin(ctx, call, events.CommandStarted{}); err != nil {
		return Sent{}, err
	}
	call.Detach()
	actor := call.Principal.Actor
	a, err := s.send(ctx, call.Tenant, in.ID, state, projections.Message{
		ID: call.DeriveID("webhook_test"), Type: "credstream.webhook.test.v1", Source: "/credstream/" + call.Tenant, EventSubject: "webhook." + in.ID,
		Time: s.Kernel.Now(), Tenant: call.Tenant, Actor: actor.Kind + ":" + actor.ID, CommandID: call.CommandID, Data: []byte(`{"test":true}`),
	})
	if err != nil {
		return Sent{}, err
	}
	return sent(in.ID, a), nil
}

// Redeliver asks for another attempt at a dead letter, or at one that was delivered.
type Redeliver struct {
	ID    string `json:"id"`
	Event string `json:"event"` // id of the event
}

func (s *Service) redeliver(ctx context.Context, call *service.Call, in Redeliver) (Sent, error) {
	state, err := s.live(ctx, call.Tenant, in.ID)
	if err != nil {
		return Sent{}, err
	}
	if s.Deliveries == nil {
		return Sent{}, ErrUnavailable
	}
	dead, _, err := load[deadLetters](ctx, s.Deliveries, call.Tenant, in.ID, partDead)
	if err != nil {
		return Sent{}, err
	}
	at, _, err := load[progress](ctx, s.Deliveries, call.Tenant, in.ID, partProgress)
	if err != nil {
		return Sent{}, err
	}
	var listed []delivery
	if dead.Incarnation == state.Incarnation {
		listed = dead.Dead
	}
	if at.Incarnation == state.Incarnation {
		listed = append(listed, at.Recent...)
	}
	i := slices.IndexFunc(listed, func(d delivery) bool { return d.ID == in.Event })
	if i < 0 {
		return Sent{}, ErrDeliveryNotFound
	}
	one := listed[i]
	m, err := s.message(ctx, one)
	if err != nil {
		return Sent{}, err
	}
	if _, err := s.Kernel.Begin(ctx, call, events.CommandStarted{}); err != nil {
		return Sent{}, err
	}
	call.Detach()
	a, err := s.send(ctx, call.Tenant, in.ID, state, m)
	if err != nil {
		return Sent{}, err
	}
	one.attempted(a, s.Kernel.Now().UTC())
	err = s.changeDead(ctx, call.Tenant, in.ID, state.Incarnation, func(all []delivery) ([]delivery, bool) {
		i := slices.IndexFunc(all, func(d delivery) bool { return d.ID == in.Event })
		switch {
		case i < 0: // it was delivered, or another call was faster
			return all, false
		case a.delivered():
			return slices.Delete(all, i, i+1), true
		}
		all[i] = one
		return all, true
	})
	return sent(in.ID, a), err
}

// message is the public form of a delivery's event.
func (s *Service) message(ctx context.Context, d delivery) (projections.Message, error) {
	recs, err := s.Log.Store.Commit(ctx, d.Seq)
	if err != nil {
		return projections.Message{}, err
	}
	if d.Index >= len(recs) || recs[d.Index].ID() != d.ID {
		return projections.Message{}, fmt.Errorf("webhook: the log has another event than %s at %d", d.ID, d.Seq)
	}
	m, _ := projections.Public(recs[d.Index])
	return m, nil
}
