package bustest

import (
	"net"
	"sync"
	"testing"
)

// wires carries what the servers of a cluster tell each other, by a proxy for each
// two of them and each direction.
type wires struct {
	to map[[2]int]net.Listener // from a server to another one

	mu    sync.Mutex
	cut   map[int]bool  // servers that reach nobody
	moved chan struct{} // closed when cut changes
}

// Cut parts one server from the others: what they send each other is held back
// until Heal. Its clients still reach it.
func (s *NATS) Cut(i int) { s.wires.set(i, true) }

// Heal ends Cut.
func (s *NATS) Heal(i int) { s.wires.set(i, false) }

func (w *wires) set(i int, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[i] = cut
	close(w.moved)
	w.moved = make(chan struct{})
}

// open waits until two servers can reach each other. It returns false when done ends first.
func (w *wires) open(i, j int, done <-chan struct{}) bool {
	for {
		w.mu.Lock()
		cut, moved := w.cut[i] || w.cut[j], w.moved
		w.mu.Unlock()
		if !cut {
			return true
		}
		select {
		case <-moved:
		case <-done:
			return false
		}
	}
}

func (w *wires) address(i, j int) string { return w.to[[2]int{i, j}].Addr().String() }

// lay opens the proxies. They are closed at the end of the test.
func (w *wires) lay(t testing.TB, nodes []*node) {
	t.Helper()
	w.to, w.cut, w.moved = map[[2]int]net.Listener{}, map[int]bool{}, make(chan struct{})
	var running sync.WaitGroup
	var conns sync.Map // that are open
	done := make(chan struct{})
	for i := range nodes {
		for j, other := range nodes {
			if i == j {
				continue
			}
			l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed with the test
			if err != nil {
				t.Fatal(err)
			}
			w.to[[2]int{i, j}] = l
			running.Go(func() {
				for {
					from, err := l.Accept()
					if err != nil {
						return
					}
					conns.Store(from, nil)
					running.Go(func() {
						defer from.Close() //nolint:errcheck // it is over
						if !w.open(i, j, done) {
							return
						}
						to, err := net.Dial("tcp", other.route) //nolint:noctx // a server of this machine
						if err != nil {
							return
						}
						defer to.Close() //nolint:errcheck // it is over
						conns.Store(to, nil)
						var back sync.WaitGroup
						back.Go(func() { w.carry(from, to, i, j, done) })
						w.carry(to, from, i, j, done)
						back.Wait()
					})
				}
			})
		}
	}
	t.Cleanup(func() { // before the servers are stopped
		close(done)
		for _, l := range w.to {
			_ = l.Close() // nothing is lost
		}
		conns.Range(func(c, _ any) bool {
			_ = c.(net.Conn).Close() // it may be closed already
			return true
		})
		running.Wait()
	})
}

// carry moves bytes until one of the connections ends; then it ends the other one.
func (w *wires) carry(to, from net.Conn, i, j int, done <-chan struct{}) {
	defer to.Close()   //nolint:errcheck // it is over
	defer from.Close() //nolint:errcheck // it is over
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil || !w.open(i, j, done) {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}
