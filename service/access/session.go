package access

import (
	"context"
	"encoding/base64"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
)

// SessionLife is the maximum lifetime of a session of the web page.
const SessionLife = 8 * time.Hour

// ErrSessionEnded refuses a session that has expired, was tampered with, or whose key may no
// longer be used.
var ErrSessionEnded = fault.New(fault.Unauthenticated, "session_ended", "Your session has ended. Sign in again.")

// session is the content of a sealed session: the id of an API key (never the key itself), or a
// token of the OpenID Connect issuer.
type session struct {
	Key   string    `json:"key,omitzero"`
	Token string    `json:"token,omitzero"`
	Until time.Time `json:"until"`
}

// maxSession bounds a sealed session, in bytes: browsers keep cookies of up to 4,096 bytes
// (RFC 6265bis, section 5.6), with their names and attributes.
const maxSession = 3900

// sessionContext is the associated data of a session of a principal with this home tenant.
func sessionContext(tenant string) []byte {
	return events.LengthPrefixed("credstream/session/1", tenant)
}

// StartSession authenticates an API key like Authenticate, and returns a session of its
// principal, sealed with the keyset of the key's home tenant. Every process that serves the log
// can open the session, and none stores it.
func (s *Service) StartSession(ctx context.Context, key string, from netip.Addr) (string, service.Principal, error) {
	p, err := s.Authenticate(ctx, key, from)
	if err != nil {
		return "", p, err
	}
	sealed, err := s.sealSession(ctx, p.Home, session{Key: p.Actor.ID, Until: s.Kernel.Now().Add(SessionLife)})
	return sealed, p, err
}

func (s *Service) sealSession(ctx context.Context, home string, of session) (string, error) {
	of.Until = of.Until.UTC().Truncate(time.Second)
	text, err := json.Marshal(of)
	if err != nil {
		return "", err
	}
	sealed, err := s.Keyring.Seal(ctx, home, seal.NewSecret(text), sessionContext(home))
	if err != nil {
		return "", err
	}
	cookie := home + "." + base64.RawURLEncoding.EncodeToString(sealed)
	if len(cookie) > maxSession {
		return "", ErrSessionTooLarge
	}
	return cookie, nil
}

// OpenSession returns the principal of a session that is used from the address. It returns
// ErrSessionEnded if the session or its token has expired, or its key was revoked, has expired or
// may not be used from the address.
func (s *Service) OpenSession(ctx context.Context, sealed string, from netip.Addr) (service.Principal, error) {
	tenant, encoded, _ := strings.Cut(sealed, ".")
	raw, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || len(sealed) > maxSession || events.CheckName(tenant) != nil {
		return service.Principal{}, ErrSessionEnded
	}
	switch _, exists, err := s.Views.Tenant(ctx, tenant); { // from the views: an unauthenticated request must not cause a read of the log
	case err != nil:
		return service.Principal{}, err
	case !exists:
		return service.Principal{}, ErrSessionEnded
	}
	text, err := s.Keyring.OpenForeign(ctx, tenant, raw, sessionContext(tenant))
	if errors.Is(err, seal.ErrSecretUnopenable) {
		return service.Principal{}, ErrSessionEnded
	}
	var opened session
	if err == nil {
		err = json.Unmarshal(text.Reveal(), &opened)
	}
	if err != nil {
		return service.Principal{}, err
	}
	if !s.Kernel.Now().Before(opened.Until) {
		return service.Principal{}, ErrSessionEnded
	}
	if opened.Token != "" {
		return s.principalOfToken(ctx, opened.Token)
	}
	p, err := s.Principal(ctx, opened.Key)
	if errors.Is(err, service.ErrKeyUnknown) || err == nil && !p.UsableFrom(from) {
		return service.Principal{}, ErrSessionEnded
	}
	return p, err
}

func (s *Service) principalOfToken(ctx context.Context, token string) (service.Principal, error) {
	if s.Tokens == nil {
		return service.Principal{}, ErrSessionEnded
	}
	p, err := s.Tokens.principal(ctx, token)
	if errors.Is(err, ErrToken) { // expired, or signed with a key that the issuer has withdrawn
		return p, ErrSessionEnded
	}
	return p, err
}
