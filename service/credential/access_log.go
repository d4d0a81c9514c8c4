package credential

import (
	"context"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// AccessFact says that the values of a credential were given to somebody. It is
// durable before they are. Its JSON form is forever, and it holds no secret.
type AccessFact struct {
	Lease      string       `json:"lease"`
	Credential string       `json:"credential"`
	Version    int          `json:"version"`        // of the keys
	Grant      int          `json:"grant,omitzero"` // of the tokens among them; absent when there are none
	Actor      events.Actor `json:"actor"`          // who was given them
	Flow       string       `json:"flow,omitzero"`
	Step       string       `json:"step,omitzero"`
	Via        string       `json:"via"`       // "http", "nats"
	Cleartext  bool         `json:"cleartext"` // they were not sealed
	Recipient  string       `json:"recipient"` // SHA-256 of the public key they were sealed to, in hex; "" for clear text
	Time       time.Time    `json:"time"`      // UTC, microseconds
	Expires    time.Time    `json:"expires"`   // of the lease
	Kind       string       `json:"kind"`      // AccessGiven or AccessWithdrawn
}

// The kinds of an AccessFact.
const (
	AccessGiven     = "given"
	AccessWithdrawn = "withdrawn" // the credential changed at the same moment: what was to be given did not leave
)

// AccessRecord is a fact in its place.
type AccessRecord struct {
	Seq uint64 // place in the access log
	AccessFact
}

// AccessRange says which facts of a tenant to read.
type AccessRange struct {
	Credential string    // only of this one; all when ""
	From       uint64    // first place; the beginning when 0
	Since      time.Time // passes over what is older; everything when zero
}

// AccessLog keeps who was given what.
type AccessLog interface {
	// Append returns when the fact is durable. An error says that it is not, or that
	// this is not known; it gives up in some seconds.
	Append(ctx context.Context, tenant string, fact AccessFact) error
	// Read returns up to limit facts of a tenant, oldest first, and the place from
	// which the next ones are read; 0 at the end. Every fact is among them whose
	// Append had returned before, in this process or another.
	Read(ctx context.Context, tenant string, of AccessRange, limit int) (page []AccessRecord, next uint64, err error)
}

// ErrAccessLog refuses secrets while it cannot be recorded who gets them.
var ErrAccessLog = fault.New(fault.Unavailable, "access_log_unavailable",
	"The access could not be recorded in the audit log, so nothing was returned. Try again.")

// ReplayAccess asks who was given which credential. Filters combine by AND.
type ReplayAccess struct {
	Credential string    `json:"credential,omitzero"` // only this one, also after its end
	Actor      string    `json:"actor,omitzero"`      // "key:<id>"
	Since      time.Time `json:"since,omitzero"`      // facts of this time or later (RFC 3339)
	From       uint64    `json:"from,omitzero"`       // first place in the access log; 1 when absent
	Limit      int       `json:"limit,omitzero"`      // 1 to 1000; 200 when absent
}

// AccessReplay answers ReplayAccess, oldest first. A page may hold fewer facts than
// the limit, or none, and still have a next one.
type AccessReplay struct {
	Accesses []Access `json:"accesses"`
	Next     uint64   `json:"next,omitzero"` // from of the next page; absent at the end
}

// Access is one fact of the access log.
type Access struct {
	Seq        uint64    `json:"seq"`  // place in the access log
	Kind       string    `json:"kind"` // given, or withdrawn: the credential changed at the same moment and the values did not leave
	Time       time.Time `json:"time"`
	Credential string    `json:"credential"`
	Version    int       `json:"version"`        // of the keys
	Grant      int       `json:"grant,omitzero"` // of the tokens among them; absent when there are none
	Actor      string    `json:"actor"`          // "key:<id>"
	Flow       string    `json:"flow,omitzero"`
	Step       string    `json:"step,omitzero"`
	Via        string    `json:"via"`                // http or nats
	Cleartext  bool      `json:"cleartext"`          // the values were not sealed
	Recipient  string    `json:"recipient,omitzero"` // SHA-256, in hex, of the 32 bytes of the public key they were sealed to
	Lease      string    `json:"lease"`
	Expires    time.Time `json:"expires"` // of the lease
}

func accessOf(r AccessRecord) Access {
	return Access{
		Seq: r.Seq, Kind: r.Kind, Time: r.Time, Credential: r.Credential, Version: r.Version, Grant: r.Grant,
		Actor: r.Actor.Kind + ":" + r.Actor.ID, Flow: r.Flow, Step: r.Step, Via: r.Via, Cleartext: r.Cleartext,
		Recipient: r.Recipient, Lease: r.Lease, Expires: r.Expires,
	}
}

// accessPage is how many facts are read at a time, and accessScan bounds those
// that one answer looks at.
const (
	accessPage = 1000
	accessScan = 20_000
)

func (s *Service) replayAccess(ctx context.Context, call *service.Call, in ReplayAccess) (AccessReplay, error) {
	r := AccessReplay{Accesses: []Access{}}
	var err error
	r.Next, err = s.scanAccess(ctx, call, in.Credential, in.From, in.Since, in.Limit, func(rec AccessRecord) bool {
		if in.Actor != "" && in.Actor != rec.Actor.Kind+":"+rec.Actor.ID {
			return false
		}
		r.Accesses = append(r.Accesses, accessOf(rec))
		return true
	})
	return r, err
}

// scanAccess reads facts until take has taken as many as the limit, or the scan is
// long enough. next is where to go on; 0 at the end.
func (s *Service) scanAccess(ctx context.Context, call *service.Call, credential string, from uint64, since time.Time, limit int, take func(AccessRecord) bool) (next uint64, err error) {
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
			if rec.Time.Before(since) || !take(rec) {
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
	From       uint64 `json:"from,omitzero"`       // next of the page before
	Limit      int    `json:"limit,omitzero"`      // 1 to 1000; 200 when absent
}

// LeaseList answers ListLeases, oldest first.
type LeaseList struct {
	Leases []Lease `json:"leases"`
	Next   uint64  `json:"next,omitzero"` // from of the next page; absent at the end
}

// Lease is the time for which somebody may keep the values of a credential.
type Lease struct {
	Access
	Revoked bool `json:"revoked"` // the credential has other keys by now, has to be connected again, or is gone: the holder was told to drop the values
}

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

// revoked reports whether what was given is not to be used any more. An access
// token outlives its renewal, so that revokes nothing.
func revoked(state aggregates.CredentialState, given AccessFact) bool {
	return !state.Live() || state.Tokens.ReauthReason != "" || state.Current().Version != given.Version || grantOf(state) != given.Grant
}

// grantOf is the authorization that the current tokens come from; 0 when there
// are none.
func grantOf(state aggregates.CredentialState) int {
	if state.Tokens.Field == "" {
		return 0
	}
	return state.Tokens.Grant
}
