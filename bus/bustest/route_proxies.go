package bustest

import (
	"net"
	"sync"
	"testing"
)

// routeProxies proxies the routes of a test cluster, with one proxy per ordered pair of
// servers.
type routeProxies struct {
	listeners map[[2]int]net.Listener // by sender and receiver

	mu      sync.Mutex
	cut     map[int]bool  // servers that are cut off
	changed chan struct{} // closed when cut changes
}

// Cut separates one server from the others: messages between them are delayed until Heal. Its
// clients still reach it.
func (s *NATS) Cut(i int) { s.proxies.set(i, true) }

// Heal ends Cut.
func (s *NATS) Heal(i int) { s.proxies.set(i, false) }

func (w *routeProxies) set(i int, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[i] = cut
	close(w.changed)
	w.changed = make(chan struct{})
}

// open waits until two servers can reach each other. It returns false if done is closed first.
func (w *routeProxies) open(i, j int, done <-chan struct{}) bool {
	for {
		w.mu.Lock()
		cut, moved := w.cut[i] || w.cut[j], w.changed
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

func (w *routeProxies) address(i, j int) string { return w.listeners[[2]int{i, j}].Addr().String() }

// listen starts the proxies. The end of the test closes them.
func (w *routeProxies) listen(t testing.TB, nodes []*node) {
	t.Helper()
	w.listeners, w.cut, w.changed = map[[2]int]net.Listener{}, map[int]bool{}, make(chan struct{})
	var running sync.WaitGroup
	var conns sync.Map // open connections
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
			w.listeners[[2]int{i, j}] = l
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
						back.Go(func() { w.copy(from, to, i, j, done) })
						w.copy(to, from, i, j, done)
						back.Wait()
					})
				}
			})
		}
	}
	t.Cleanup(func() { // before the servers are stopped
		close(done)
		for _, l := range w.listeners {
			_ = l.Close() // nothing is lost
		}
		conns.Range(func(c, _ any) bool {
			_ = c.(net.Conn).Close() // it may be closed already
			return true
		})
		running.Wait()
	})
}

// copy forwards data until one of the connections is closed, and then closes the other one.
func (w *routeProxies) copy(to, from net.Conn, i, j int, done <-chan struct{}) {
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
