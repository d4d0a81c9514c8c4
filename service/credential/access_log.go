package credential

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// AccessFact records that a caller got the values of a credential. It is
// durable before the values are returned. Its JSON form is stable, and it holds no secret.
type AccessFact struct {
	Lease      string       `json:"lease"`
	Credential string       `json:"credential"`
	Version    int          `json:"version"`        // of the keys
	Grant      int          `json:"grant,omitzero"` // of the tokens among them; absent when there are none
	Actor      events.Actor `json:"actor"`          // who got them
	Flow       string       `json:"flow,omitzero"`
	Step       string       `json:"step,omitzero"`
	Via        string       `json:"via"`       // "http", "nats"
	Cleartext  bool         `json:"cleartext"` // they were not encrypted
	Recipient  string       `json:"recipient"` // SHA-256 of the public key they were encrypted to, in hex; "" for clear text
	Time       time.Time    `json:"time"`      // UTC, microseconds
	Expires    time.Time    `json:"expires"`   // of the lease
	Kind       string       `json:"kind"`      // AccessGiven or AccessWithdrawn
}

// The kinds of an AccessFact.
const (
	AccessGiven     = "given"
	AccessWithdrawn = "withdrawn" // the credential changed at the same moment, so the values were not returned
	AccessRevealed  = "revealed"  // to a person, without a lease and without an end
)

// AccessRecord is a stored AccessFact with its sequence.
type AccessRecord struct {
	Seq uint64 // sequence in the access log
	AccessFact
}

// AccessRange selects entries of a tenant.
type AccessRange struct {
	Credential string    // only entries of this credential; all when ""
	From       uint64    // first sequence; the beginning when 0
	Since      time.Time // skips older entries; none when zero
}

// AccessLog stores who resolved which credential.
type AccessLog interface {
	// Append returns when the entry is durable. After an error it is not durable, or that
	// is unknown. Append gives up after some seconds.
	Append(ctx context.Context, tenant string, fact AccessFact) error
	// Read returns up to limit entries of a tenant, oldest first, and the sequence from
	// which to read on; 0 at the end. It includes every entry whose
	// Append has returned before, in this process or another.
	Read(ctx context.Context, tenant string, of AccessRange, limit int) (page []AccessRecord, next uint64, err error)
	// Last returns the last entry of each credential that has one, in any order. It may miss the
	// entries of the last moments.
	Last(ctx context.Context, tenant string, credentials []string) ([]AccessRecord, error)
}

// lookBackUse bounds how far, in sequences of the access log, the last use is looked for behind an
// access that was withdrawn.
const lookBackUse = 10_000

// lastUses returns when the values of each credential were last given, under a new lease, or
// revealed; a credential that has none has no time.
func (s *Service) lastUses(ctx context.Context, tenant string, credentials []string) (map[string]time.Time, error) {
	if s.AccessLog == nil {
		return nil, ErrAccessLog
	}
	last, err := s.AccessLog.Last(ctx, tenant, credentials)
	if err != nil {
		return nil, err
	}
	uses := map[string]time.Time{}
	for _, rec := range last {
		if rec.Kind != AccessWithdrawn {
			uses[rec.Credential] = rec.Time
			continue
		}
		before, _, err := s.AccessLog.Read(ctx, tenant, AccessRange{Credential: rec.Credential, From: rec.Seq - min(rec.Seq, lookBackUse)}, accessPage)
		if err != nil {
			return nil, err
		}
		withdrawn := map[string]bool{}
		for _, rec := range slices.Backward(before) {
			if rec.Kind == AccessWithdrawn {
				withdrawn[rec.Lease] = true
			} else if !withdrawn[rec.Lease] {
				uses[rec.Credential] = rec.Time
				break
			}
		}
	}
	return uses, nil
}

// addLastUses adds the last uses to what is shown of credentials. Without the access log, nothing
// is known of them, which is no reason to show nothing.
func (s *Service) addLastUses(ctx context.Context, tenant string, shown []Credential) {
	ids := make([]string, len(shown))
	for i, c := range shown {
		ids[i] = c.ID
	}
	uses, err := s.lastUses(ctx, tenant, ids)
	if err != nil {
		s.Logger.WarnContext(ctx, "last uses of credentials not read", "tenant", tenant, "err", err)
	}
	for i := range shown {
		shown[i].LastUse = &LastUse{Time: uses[shown[i].ID], Unknown: err != nil}
	}
}

// ErrAccessLog refuses to return secrets while the access cannot be recorded.
var ErrAccessLog = fault.New(fault.Unavailable, "access_log_unavailable",
	"The access could not be recorded, so nothing was returned. Try again.")

// ReplayAccess requests the access log. Filters combine by AND.
type ReplayAccess struct {
	Credential string    `json:"credential,omitzero"` // only this one; deleted credentials are included
	Actor      string    `json:"actor,omitzero"`      // "key:<id>"
	Component  string    `json:"component,omitzero"`  // credentials of this component
	Flow       string    `json:"flow,omitzero"`       // given to this flow
	Since      time.Time `json:"since,omitzero"`      // entries of this time or later (RFC 3339)
	Until      time.Time `json:"until,omitzero"`      // entries before this time (RFC 3339)
	From       uint64    `json:"from,omitzero"`       // first sequence in the access log; 1 when absent
	Limit      int       `json:"limit,omitzero"`      // 1 to 1000; 200 when absent
}

// Check refuses filters that cannot match.
func (in ReplayAccess) Check() error {
	if in.Component != "" && !events.Plain(in.Component) {
		return service.ErrFilter.Withf("No component can have this id.").At("/component")
	}
	return errors.Join(service.CheckActor(in.Actor), service.CheckPeriod(in.Since, in.Until), service.CheckFilterID("flow", in.Flow))
}

// AccessReplay is a page of the access log, oldest first. A page may hold fewer entries than
// the limit, or none, and still have a next one.
type AccessReplay struct {
	Accesses []Access `json:"accesses"`
	Next     uint64   `json:"next,omitzero"` // from of the next page; absent at the end
}

// Access is one entry of the access log.
type Access struct {
	Seq        uint64    `json:"seq"`  // sequence in the access log
	Kind       string    `json:"kind"` // given; withdrawn: the credential changed at the same moment and the values were not returned; revealed: shown to a person
	Time       time.Time `json:"time"`
	Credential string    `json:"credential"`
	Version    int       `json:"version"`        // of the keys
	Grant      int       `json:"grant,omitzero"` // of the tokens among them; absent when there are none
	Actor      string    `json:"actor"`          // "key:<id>"
	Flow       string    `json:"flow,omitzero"`
	Step       string    `json:"step,omitzero"`
	Via        string    `json:"via"`                // http or nats
	Cleartext  bool      `json:"cleartext"`          // the values were not encrypted
	Recipient  string    `json:"recipient,omitzero"` // SHA-256, in hex, of the 32 bytes of the public key they were encrypted to
	Lease      string    `json:"lease,omitzero"`     // absent when they were revealed
	Expires    time.Time `json:"expires,omitzero"`   // of the lease; absent when they were revealed, which has no end
}

func accessOf(r AccessRecord) Access {
	return Access{
		Seq: r.Seq, Kind: r.Kind, Time: r.Time, Credential: r.Credential, Version: r.Version, Grant: r.Grant,
		Actor: r.Actor.Kind + ":" + r.Actor.ID, Flow: r.Flow, Step: r.Step, Via: r.Via, Cleartext: r.Cleartext,
		Recipient: r.Recipient, Lease: r.Lease, Expires: r.Expires,
	}
}

// accessPage is the number of entries per read, and accessScan bounds the entries
// scanned for one response.
const (
	accessPage = 1000
	accessScan = 20_000
)

func (s *Service) replayAccess(ctx context.Context, call *service.Call, in ReplayAccess) (AccessReplay, error) {
	r := AccessReplay{Accesses: []Access{}}
	components := map[string]string{} // by credential
	var err, failed error
	r.Next, err = s.scanAccess(ctx, call, in.Credential, in.From, in.Since, in.Limit, func(rec AccessRecord) bool {
		switch {
		case in.Actor != "" && in.Actor != rec.Actor.Kind+":"+rec.Actor.ID, in.Flow != "" && in.Flow != rec.Flow,
			!in.Until.IsZero() && !rec.Time.Before(in.Until), failed != nil:
			return false
		}
		if in.Component != "" {
			of, known := components[rec.Credential]
			if !known { // it never changes, so any state of the credential decides
				var state aggregates.State[aggregates.CredentialState]
				state, failed = aggregates.Credential.Load(ctx, s.Log, aggregates.Credential.Stream(call.Tenant, rec.Credential))
				of = state.Value.Component
				components[rec.Credential] = of
			}
			if of != in.Component {
				return false
			}
		}
		r.Accesses = append(r.Accesses, accessOf(rec))
		return true
	})
	return r, errors.Join(err, failed)
}

// scanAccess reads entries until accept has returned true for as many as the limit, or the scan
// limit is reached. next is where to continue; 0 at the end.
func (s *Service) scanAccess(ctx context.Context, call *service.Call, credential string, from uint64, since time.Time, limit int, accept func(AccessRecord) bool) (next uint64, err error) {
	if credential != "" {
		if err := events.CheckID(credential); err != nil {
			return 0, fault.Of(err).At("/credential")
		}
	}
	if limit == 0 {
		limit = 200
	}
	if limit < 0 || limit > 1000 {
		return 0, service.ErrLimit.Withf("A page holds 1 to 1000 entries.").At("/limit")
	}
	if s.AccessLog == nil {
		return 0, ErrAccessLog.Withf("This service has no access log.")
	}
	of := AccessRange{Credential: credential, From: from, Since: since}
	taken := 0
	for seen := 0; seen < accessScan; {
		page, next, err := s.AccessLog.Read(ctx, call.Tenant, of, accessPage)
		if err != nil {
			return 0, err
		}
		for i, rec := range page {
			if rec.Time.Before(since) {
				continue
			}
			if reached, err := s.Kernel.Reaches(ctx, call, rec.Credential); err != nil {
				return 0, err
			} else if !reached || !accept(rec) {
				continue
			}
			if taken++; taken < limit {
				continue
			}
			if i+1 < len(page) {
				return rec.Seq + 1, nil
			}
			return next, nil
		}
		if next == 0 {
			return 0, nil
		}
		of.From = next
		seen += len(page)
	}
	return of.From, nil
}

type ListLeases struct {
	Credential string `json:"credential,omitzero"` // only of this one
	Actor      string `json:"actor,omitzero"`      // "key:<id>"
	From       uint64 `json:"from,omitzero"`       // next of the previous page
	Limit      int    `json:"limit,omitzero"`      // 1 to 1000; 200 when absent
}

// LeaseList lists leases, oldest first.
type LeaseList struct {
	Leases []Lease `json:"leases"`
	Next   uint64  `json:"next,omitzero"` // from of the next page; absent at the end
}

// Lease is the time for which a caller may keep the values of a credential.
type Lease struct {
	Access
	Revoked bool `json:"revoked"` // the credential has other keys now, must be connected again, or was deleted: the holder was notified
}

// Check refuses filters that cannot match.
func (in ListLeases) Check() error { return service.CheckActor(in.Actor) }

func (s *Service) listLeases(ctx context.Context, call *service.Call, in ListLeases) (LeaseList, error) {
	list := LeaseList{Leases: []Lease{}}
	now := s.Kernel.Now()
	withdrawn := map[string]bool{}
	var grants []AccessRecord
	next, err := s.scanAccess(ctx, call, in.Credential, in.From, now.Add(-MaxLease), in.Limit, func(rec AccessRecord) bool {
		if rec.Kind == AccessWithdrawn {
			withdrawn[rec.Lease] = true
		}
		if rec.Kind != AccessGiven || !now.Before(rec.Expires) || in.Actor != "" && in.Actor != rec.Actor.Kind+":"+rec.Actor.ID {
			return false
		}
		grants = append(grants, rec)
		return true
	})
	if err != nil {
		return list, err
	}
	list.Next = next
	states := map[string]aggregates.CredentialState{}
	for _, rec := range grants {
		if withdrawn[rec.Lease] {
			continue
		}
		state, known := states[rec.Credential]
		if !known {
			fresh, err := aggregates.Credential.Fresh(ctx, s.Log, aggregates.Credential.Stream(call.Tenant, rec.Credential))
			if err != nil {
				return list, err
			}
			state = fresh.Value
			states[rec.Credential] = state
		}
		list.Leases = append(list.Leases, Lease{accessOf(rec), revoked(state, rec.AccessFact)})
	}
	return list, nil
}

// revoked reports whether the returned values must no longer be used. An access
// token stays valid after its renewal, so a renewal does not revoke a lease.
func revoked(state aggregates.CredentialState, given AccessFact) bool {
	return !state.Live() || state.Tokens.ReauthReason != "" || state.Current().Version != given.Version || grantOf(state) != given.Grant
}

// grantOf is the grant of the current tokens; 0 when there
// are none.
func grantOf(state aggregates.CredentialState) int {
	if state.Tokens.Field == "" {
		return 0
	}
	return state.Tokens.Grant
}
