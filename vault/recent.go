package vault

import (
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/credstream/credstream/seal"
)

// The bounds of what is kept in memory of the vault: sealed, as it is on disk.
const (
	recentSecrets = 8192
	recentSize    = 4 << 10 // bytes of one
)

// recent keeps secrets that were read lately, sealed, so that who asks again does
// not ask the server. A secret is written once and never changed, only erased:
// then it goes from here, too. What another process erases stays until newer ones
// take its place; nothing in force names it.
type recent struct {
	mu     sync.Mutex
	sealed *lru.Cache[string, seal.Sealed] // by subject
	erased uint64                          // how often something was erased
}

func newRecent() *recent {
	sealed, err := lru.New[string, seal.Sealed](recentSecrets)
	if err != nil {
		panic("vault: " + err.Error()) // a size that is not positive
	}
	return &recent{sealed: sealed}
}

// get returns what is kept under the subject and, when nothing is, a mark for keep.
func (r *recent) get(subject string) (sealed seal.Sealed, mark uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	sealed, ok = r.sealed.Get(subject)
	return sealed, r.erased, ok
}

// keep keeps what was read since the mark, unless something was erased meanwhile:
// it may have been this.
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
