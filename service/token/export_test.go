package token

import (
	"context"
	"fmt"
	"time"
)

// RefreshDue is what the token refresher does about a credential that the views list as due.
func (s *Service) RefreshDue(ctx context.Context, tenant, id string) error {
	return s.refreshDue(ctx, credentialKey{tenant, id})
}

// Patience is what a revocation in bulk has with a provider that answers so,
// one outcome after the other, so long apart.
func Patience(apart time.Duration, outcomes ...string) (waits []bool) {
	var r revocations
	job := &revocation{since: map[string]time.Time{}}
	for _, outcome := range outcomes {
		waits = append(waits, r.shouldRetry(job, "sheets", providerAnswer{outcome: outcome}))
		time.Sleep(apart)
	}
	return waits
}

// BeginRevocations begins revocations of components, one after the other, and
// returns the errors.
func BeginRevocations(components ...string) (errs []error) {
	r := revocations{jobs: map[string][]*revocation{}}
	for n, component := range components {
		job := &revocation{component: component, progress: RevocationProgress{ID: fmt.Sprint(n), Running: true}}
		errs = append(errs, r.begin("acme", job))
	}
	return errs
}
