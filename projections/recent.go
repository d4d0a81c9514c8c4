package projections

import (
	"database/sql/driver"
	"fmt"
	"sync"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// The limits of the cache: about 2 KB for each credential.
const (
	recentCredentials = 4096
	recentSize        = 4 << 10 // bytes of a stored document
)

// recent caches credentials that were read recently. A list takes them by their stored
// documents, so it only saves decoding them. A point read takes them by their ids, without a
// query; whoever commits a transaction removes those that it changed. They are shared between
// callers, who must not change their slices.
type recent struct {
	mu      sync.Mutex
	byDoc   *simplelru.LRU[string, *Credential]
	byID    *simplelru.LRU[credentialKey, *Credential]
	changes uint64 // transactions that were committed, or may have been
}

func newRecent() *recent {
	byDoc, err := simplelru.NewLRU[string, *Credential](recentCredentials, nil)
	if err != nil {
		panic("projections: " + err.Error()) // recentCredentials is not positive
	}
	byID, err := simplelru.NewLRU[credentialKey, *Credential](recentCredentials, nil)
	if err != nil {
		panic("projections: " + err.Error())
	}
	return &recent{byDoc: byDoc, byID: byID}
}

// get returns the cached credential, or nil and a mark for keep.
func (r *recent) get(key credentialKey) (c *Credential, mark uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, _ = r.byID.Get(key)
	return c, r.changes
}

// keep adds a credential that was read after get returned the mark, unless a transaction was
// committed since: it may have changed this one.
func (r *recent) keep(c *Credential, mark uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if mark == r.changes {
		r.byID.Add(credentialKey{c.Tenant, c.ID}, c)
	}
}

// forget removes the credentials that a transaction changed.
func (r *recent) forget(changed []credentialKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changes++
	for _, key := range changed {
		r.byID.Remove(key)
	}
}

// forgetAll removes all credentials, when it is unknown what changed.
func (r *recent) forgetAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changes++
	r.byID.Purge()
}

// scan decodes a stored document.
func (r *recent) scan(doc driver.Value) (*Credential, error) {
	text, short := doc.(string)
	if short = short && len(text) <= recentSize; short {
		r.mu.Lock()
		c, found := r.byDoc.Get(text)
		r.mu.Unlock()
		if found {
			return c, nil
		}
	}
	c, err := scanCredential(doc)
	if err == nil && short {
		r.mu.Lock()
		r.byDoc.Add(text, c)
		r.mu.Unlock()
	}
	return c, err
}

func scanCredential(doc driver.Value) (*Credential, error) {
	var raw []byte
	switch x := doc.(type) {
	case string:
		raw = []byte(x)
	case []byte:
		raw = x
	}
	c := &Credential{}
	if err := jsonv2.Unmarshal(raw, c); err != nil {
		return nil, fmt.Errorf("reading a credential's row: %w", err)
	}
	return c, nil
}
