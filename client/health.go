package client

import (
	"context"
	"io"
	"net/http"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/fault"
)

// ErrNotReady is for programs that take a process that is not ready for an error.
var ErrNotReady = fault.New(fault.Unavailable, "service_not_ready", "The service is not ready.")

// Health is the state of one process of the service.
type Health struct {
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons"` // why it is not ready
	Notes   []string `json:"notes"`   // what an operator should know even if it is ready
}

// CheckHealth asks the process at cfg.URL whether it is ready; it needs no key. It returns
// ErrConfig, ErrUnreachable if nothing answers, and ErrAnswer if something else does.
func CheckHealth(ctx context.Context, cfg Config) (h Health, err error) {
	base, err := baseURL(cfg.URL)
	if err != nil {
		return h, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/readyz", nil)
	if err != nil {
		return h, ErrConfig
	}
	resp, err := httpClient(cfg).Do(req)
	if err != nil {
		return h, unreachable(ctx, withoutURL(err))
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxHealth))
	if err != nil {
		return h, unreachable(ctx, err)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusServiceUnavailable || json.Unmarshal(body, &h) != nil ||
		h.Ready != (resp.StatusCode == http.StatusOK) {
		return Health{}, ErrAnswer
	}
	return h, nil
}

const maxHealth = 1 << 20 // bytes
