package cli

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// progress shows the progress of a long command, only on a terminal. It is safe for concurrent use.
type progress struct {
	a     *invocation
	label string
	width int  // 0: standard error is not a terminal
	mixed bool // standard output is a terminal as well

	mu    sync.Mutex
	shown time.Time
	drawn bool
}

func (a *invocation) progress(label string) *progress {
	return &progress{a: a, label: label, width: terminalWidth(a.stderr), mixed: terminalWidth(a.stdout) > 0}
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

// printing removes the bar where the next line of standard output would follow it.
func (p *progress) printing() {
	if p.mixed {
		p.end()
	}
}

// end removes the progress bar, so that the next output begins on a new line.
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
