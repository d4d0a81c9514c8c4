package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/vault"
	"github.com/credstream/credstream/verify"
)

// attempted is the outcome of one request to a receiver.
type attempted struct {
	status     int           // of HTTP; 0 when there was no answer
	outcome    string        // of verify, when there was none
	latency    time.Duration // until it was known
	retryAfter time.Duration // as the receiver asked; 0 when it did not
}

func (a attempted) delivered() bool { return a.status/100 == 2 }

func (a attempted) says() string {
	took := a.latency.Round(time.Millisecond)
	switch {
	case a.delivered():
		return fmt.Sprintf("The receiver accepted the event with status %d in %v.", a.status, took)
	case a.status == http.StatusGone:
		return "The receiver answered with status 410: it wants no more events. The webhook was disabled."
	case a.status != 0:
		return fmt.Sprintf("The receiver answered with status %d in %v. Only a status of 200 to 299 accepts an event.", a.status, took)
	case a.outcome == verify.OutcomeAddressDenied:
		return "The host was not found, or the service does not connect to its address or port."
	}
	return fmt.Sprintf("The receiver did not answer: %s, after %v.", a.outcome, took)
}

// send posts one event to the receiver, signed with the secrets that the webhook has now. An
// error means that nothing was sent.
func (s *Service) send(ctx context.Context, tenant, id string, state aggregates.WebhookState, m projections.Message) (attempted, error) {
	body := m.Data
	if state.Settings.Mode != events.Binary {
		body = m.Structured()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, state.Settings.URL, bytes.NewReader(body))
	if err != nil {
		return attempted{}, ErrURL // it was checked
	}
	if state.Settings.Mode == events.Binary {
		for _, h := range m.Headers() {
			req.Header.Set(h[0], h[1])
		}
		req.Header.Del("ce-datacontenttype")
		req.Header.Set("Content-Type", "application/json")
	} else {
		req.Header.Set("Content-Type", "application/cloudevents+json")
	}
	now := s.Kernel.Now()
	stamp := strconv.FormatInt(now.Unix(), 10)
	var signatures []string
	for _, secretID := range []string{state.SecretID, state.Previous} {
		if secretID == "" || secretID == state.Previous && !now.Before(state.PreviousUntil) {
			continue
		}
		signature, err := s.sign(ctx, secretRef(tenant, id, secretID), m.ID, stamp, body)
		if err != nil {
			return attempted{}, err
		}
		signatures = append(signatures, signature)
	}
	req.Header.Set("Webhook-Id", m.ID)
	req.Header.Set("Webhook-Timestamp", stamp)
	req.Header.Set("Webhook-Signature", strings.Join(signatures, " "))
	req.Header.Set("User-Agent", "credstream")
	begin := time.Now()
	answer, err := s.HTTP.Do(ctx, req)
	out := attempted{status: answer.Status, latency: time.Since(begin)}
	if none, ok := errors.AsType[*verify.Unanswered](err); ok {
		out.outcome = none.Outcome
	}
	if answer.Status != 0 {
		out.retryAfter = retryAfter(answer.Header.Get("Retry-After"), now)
	}
	return out, nil
}

// sign is the signature of Standard Webhooks: HMAC-SHA256 of id, time and body.
func (s *Service) sign(ctx context.Context, ref vault.Ref, id, stamp string, body []byte) (string, error) {
	secret, err := s.Vault.Get(ctx, ref)
	if err != nil {
		return "", fmt.Errorf("signing secret of webhook %s: %w", ref.Owner, err)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(string(secret.Reveal()), secretPrefix))
	if err != nil {
		return "", errors.New("webhook: a signing secret is malformed")
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(id + "." + stamp + "."))
	mac.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)), nil
}

// retryAfter is how long a receiver asks to wait: seconds, or a date.
func retryAfter(text string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil && at.After(now) {
		return at.Sub(now)
	}
	return 0
}
