package natsserver

import (
	"time"

	"golang.org/x/sys/unix"
)

// The limits of the embedded NATS port, per connection and per key.
const (
	maxOfKey         = 128 // connections; further ones are closed with a timeout, and reconnect
	maxSubscriptions = 1000
	maxPending       = 16 << 20        // bytes that wait for a slow reader before its connection is closed
	stalled          = 5 * time.Second // time without reading after which a connection is closed
	silent           = time.Minute     // time without a pong after which an external server has closed a connection
)

const (
	connectionShare = 4     // one in so many file descriptors may be a connection to one port
	connectionLimit = 16384 // regardless of the number of descriptors
)

// MaxConnections is the number of connections that each port of the process accepts: a quarter
// of the file descriptors of the process. The rest are for files and
// outgoing connections.
func MaxConnections() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return connectionLimit
	}
	return int(min(limit.Cur/connectionShare, connectionLimit))
}
