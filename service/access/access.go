package access

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// ErrKeyMalformed rejects a string that cannot be a key.
var ErrKeyMalformed = fault.New(fault.Unauthenticated, "api_key_malformed",
	"Not a valid API key: mistyped, truncated, or for another service.")

// The format of generated keys: "cs_", 256 random bits as 52 letters
// and digits of base32, and a checksum of 6 characters over the rest.
// Secret scanners can search for "cs_" and verify a match by the checksum.
const (
	keyPrefix   = "cs_"
	keyAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" // base32 (RFC 4648), as rand.Text has it
	keyRandom   = 52
	keyCheck    = 6
)

// NewKey generates an API key.
func NewKey() seal.Secret {
	key := keyPrefix + rand.Text() + rand.Text()
	return seal.NewSecret([]byte(key + keyChecksum(key)))
}

// keyChecksum is the CRC-32 (IEEE) of the text, its lower 30 bits as base32.
func keyChecksum(text string) string {
	sum := crc32.ChecksumIEEE([]byte(text))
	check := make([]byte, keyCheck)
	for i := range check {
		check[keyCheck-1-i] = keyAlphabet[sum&31]
		sum >>= 5
	}
	return string(check)
}

// CheckKeyShape returns ErrKeyMalformed for a string that cannot be a key: it is not "cs_" and
// 32 to 128 letters and digits, or has the length of generated keys without
// their checksum. Configured keys have other lengths.
func CheckKeyShape(key string) error {
	rest, ok := strings.CutPrefix(key, keyPrefix)
	if !ok || len(rest) < 32 || len(rest) > 128 {
		return ErrKeyMalformed
	}
	for i := range len(rest) {
		c := rest[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return ErrKeyMalformed
		}
	}
	if body := len(keyPrefix) + keyRandom; len(rest) == keyRandom+keyCheck && keyChecksum(key[:body]) != key[body:] {
		return ErrKeyMalformed
	}
	return nil
}

// hashKey is the stored form of a key: hex SHA-256. The key's 256 random bits need no
// slower hash.
func hashKey(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

// knownKey is a cached key. It is valid until the views report a change of any key.
type knownKey struct {
	principal service.Principal
	changes   uint64 // Views.KeyChanges before the key was looked up
}

// LastUse stores when keys were last used, to the minute. It is not derived
// from the log, so its data can be lost.
type LastUse interface {
	// Note records a use of the key. It is called for every request and does not block.
	Note(id string, at time.Time)
	// LastUsed returns when keys were last used, by key id.
	LastUsed(ctx context.Context) (map[string]time.Time, error)
}

// Authenticate returns the principal of an API key that is used from the
// address; the zero address is unknown. Errors: ErrUnauthenticated for an empty key,
// ErrKeyMalformed and ErrKeyUnknown; ErrWrongKeys instead of these after too many invalid
// keys from the address.
func (s *Service) Authenticate(ctx context.Context, key string, from netip.Addr) (service.Principal, error) {
	p, err := s.authenticate(ctx, key, from)
	return p, s.wrongKeys.refuse(from, s.Kernel.CheckIntegrity(err))
}

func (s *Service) authenticate(ctx context.Context, key string, from netip.Addr) (service.Principal, error) {
	if key == "" {
		return service.Principal{}, service.ErrUnauthenticated
	}
	if err := CheckKeyShape(key); err != nil {
		return service.Principal{}, err
	}
	p, err := s.principal(ctx, sha256.Sum256([]byte(key)))
	if err != nil {
		return service.Principal{}, err
	}
	if p.Expired(s.Kernel.Now()) || !p.UsableFrom(from) {
		return service.Principal{}, service.ErrKeyUnknown
	}
	s.noteUse(p)
	return p, nil
}

func (s *Service) noteUse(p service.Principal) {
	if s.LastUse != nil {
		s.LastUse.Note(p.Actor.ID, s.Kernel.Now())
	}
}

// principal looks up a key by its hash, so the time that the lookup takes does not help an
// attacker to guess a key.
func (s *Service) principal(ctx context.Context, sum [sha256.Size]byte) (service.Principal, error) {
	changes, viewsUpdated := s.Views.KeyChanges(), s.Projector.Err() == nil
	if k, ok := s.keys.Get(sum); ok && k.changes == changes && viewsUpdated {
		return k.principal, nil
	}
	at, hash := s.Views.Position(), hex.EncodeToString(sum[:])
	k, found, err := s.Views.APIKey(ctx, hash)
	switch {
	case err != nil:
		return service.Principal{}, err
	case !found && !viewsUpdated: // the key may have been issued after the position at which the views stopped
		id, err := s.Kernel.KeyBeyondViews(ctx, hash, at)
		if err != nil {
			return service.Principal{}, err
		}
		return s.FreshPrincipal(ctx, id)
	case !found || k.Revoked:
		s.keys.Remove(sum)
		return service.Principal{}, service.ErrKeyUnknown
	case !viewsUpdated: // the key may have been revoked after the position at which the views stopped
		return s.FreshPrincipal(ctx, k.ID)
	}
	p, err := principalOf(k.ID, aggregates.APIKeyState{
		Home: k.Home, Tenants: k.Tenants, Role: k.Role, Permissions: k.Permissions, Addresses: k.Addresses, Expires: k.Expires, Scope: k.Scope,
	})
	if err != nil {
		return service.Principal{}, err
	}
	s.keys.Add(sum, knownKey{p, changes})
	return p, nil
}

// Principal returns the principal of a key that an edge has authenticated already and
// identifies by its id, or ErrKeyUnknown if it was revoked or has expired since. The
// edge has checked its address.
func (s *Service) Principal(ctx context.Context, id string) (service.Principal, error) {
	changes, viewsUpdated := s.Views.KeyChanges(), s.Projector.Err() == nil
	k, ok := s.keyIDs.Get(id)
	if !ok || k.changes != changes || !viewsUpdated {
		p, err := s.FreshPrincipal(ctx, id)
		if err != nil {
			s.keyIDs.Remove(id)
			return service.Principal{}, err
		}
		k = knownKey{p, changes}
		s.keyIDs.Add(id, k)
	}
	if k.principal.Expired(s.Kernel.Now()) {
		return service.Principal{}, service.ErrKeyUnknown
	}
	s.noteUse(k.principal)
	return k.principal, nil
}

// CheckCurrent implements service.Gate.
func (s *Service) CheckCurrent(ctx context.Context, who service.Principal) error {
	if who.Expired(s.Kernel.Now()) {
		return service.ErrKeyEnded
	}
	if who.Actor.Kind != "key" {
		return nil
	}
	_, err := s.Principal(ctx, who.Actor.ID)
	if errors.Is(err, service.ErrKeyUnknown) {
		return service.ErrKeyEnded
	}
	return err
}

// FreshPrincipal reads a key from the log.
func (s *Service) FreshPrincipal(ctx context.Context, id string) (service.Principal, error) {
	state, err := aggregates.APIKey.Fresh(ctx, s.Log, aggregates.APIKey.Stream(events.System, id))
	switch {
	case err != nil:
		return service.Principal{}, err
	case !state.Value.Exists || state.Value.Revoked:
		return service.Principal{}, s.Kernel.CheckIntegrity(service.ErrKeyUnknown)
	}
	return principalOf(id, state.Value)
}

func principalOf(id string, k aggregates.APIKeyState) (service.Principal, error) {
	p := service.Principal{
		Actor: events.Actor{Kind: "key", ID: id}, Home: k.Home, Tenants: k.Tenants, Role: permission.Role(k.Role), Expires: k.Expires,
		Scope: k.Scope,
	}
	for _, perm := range k.Permissions {
		p.Permissions = append(p.Permissions, permission.Permission(perm))
	}
	for _, network := range k.Addresses {
		n, err := netip.ParsePrefix(network)
		if err != nil {
			return service.Principal{}, fmt.Errorf("network of key %s: %w", id, err)
		}
		p.Addresses = append(p.Addresses, n)
	}
	return p, nil
}

// Authorize checks that the tenant of a call exists and is granted to the caller, and that the
// caller has the permission. No other function authorizes calls. A tenant that is not granted gets
// the same error as an unknown one. A denial is recorded.
func (s *Service) Authorize(ctx context.Context, call *service.Call, perm permission.Permission) error {
	if call.Principal.Actor.ID == "" {
		return service.ErrUnauthenticated
	}
	if events.CheckName(call.Tenant) != nil || !call.Principal.Reaches(call.Tenant) {
		s.Denied(ctx, call, perm)
		return service.ErrTenantNotFound
	}
	switch err := s.checkTenant(ctx, call.Tenant); {
	case err != nil:
		return err
	case !call.Principal.May(perm):
		return s.Deny(ctx, call, perm)
	case permission.Known[perm].Everywhere && !slices.Contains(call.Principal.Tenants, service.AllTenants):
		s.Denied(ctx, call, perm)
		return service.ErrDenied.Withf("The permission %s affects every tenant. Use a key that is granted every tenant (*).", perm)
	}
	return nil
}

// Deny refuses a call because of a missing permission, and records that. It is for
// calls that require more than the permission of their route.
func (s *Service) Deny(ctx context.Context, call *service.Call, perm permission.Permission) error {
	s.Denied(ctx, call, perm)
	return service.ErrDenied.Withf("The key lacks the permission %s.", perm)
}

// Require authorizes a call for a permission that an HTTP API requires in addition to that of
// the route, and records a denial. Serve checks the route's own permission.
func (s *Service) Require(ctx context.Context, call service.Call, route string, perm permission.Permission) error {
	call.Route = route
	return s.Authorize(ctx, &call, perm)
}
