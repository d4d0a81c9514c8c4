package cli

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// progress shows how far a long verb is, on a terminal alone. Its methods may be called from
// many goroutines.
type progress struct {
	a     *invocation
	label string
	width int

	mu    sync.Mutex
	shown time.Time
	drawn bool
}

func (a *invocation) progress(label string) *progress {
	return &progress{a: a, label: label, width: terminalWidth(a.stderr)}
}

// at shows that done of total items are done; total is 0 when it is not known.
func (p *progress) at(done, total int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.width == 0 || time.Since(p.shown) < 100*time.Millisecond && done != total {
		return
	}
	p.shown, p.drawn = time.Now(), true
	fmt.Fprint(p.a.stderr, "\r\033[K"+bar(p.label, done, total, p.width))
}

// end removes the bar, so that what follows begins a line.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.drawn {
		fmt.Fprint(p.a.stderr, "\r\033[K")
		p.drawn = false
	}
}

// bar is one line of at most width columns.
func bar(label string, done, total, width int) string {
	if total <= 0 {
		return fmt.Sprintf("%s %d", label, done)
	}
	done = min(done, total)
	count := fmt.Sprintf(" %d/%d %3d%%", done, total, 100*done/total)
	cells := min(40, width-len(label)-len(count)-4)
	if cells < 5 {
		return label + count
	}
	full := cells * done / total
	return label + " [" + strings.Repeat("#", full) + strings.Repeat(".", cells-full) + "]" + count
}
