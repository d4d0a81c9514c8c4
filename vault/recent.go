package vault

import (
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/credstream/credstream/seal"
)

// The limits of the cache. It holds ciphertext, as on disk.
const (
	recentSecrets = 8192
	recentSize    = 4 << 10 // bytes of a secret
)

// recent is a cache of encrypted secrets, which saves repeated reads from the server. A secret
// is written once and never changed, only erased: then it is removed. Secrets erased by another
// process stay until they are evicted; no current state references them.
type recent struct {
	mu     sync.Mutex
	sealed *lru.Cache[string, seal.Sealed] // by subject
	erased uint64                          // number of erasures
}

func newRecent() *recent {
	sealed, err := lru.New[string, seal.Sealed](recentSecrets)
	if err != nil {
		panic("vault: " + err.Error()) // recentSecrets is not positive
	}
	return &recent{sealed: sealed}
}

// get returns the cached secret.
func (r *recent) get(subject string) (seal.Sealed, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sealed.Get(subject)
}

// mark returns a mark for keep, before the secret is read from the server.
func (r *recent) mark() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.erased
}

// keep adds the entry unless any secret was erased since get returned the mark: it may have
// been this one.
func (r *recent) keep(subject string, sealed seal.Sealed, mark uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if mark == r.erased && len(sealed) <= recentSize {
		r.sealed.Add(subject, sealed)
	}
}

func (r *recent) erase(subject string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.erased++
	r.sealed.Remove(subject)
}
