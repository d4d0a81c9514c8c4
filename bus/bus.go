// Package bus is everything NATS: the embedded server and its closed port, the
// group fsync that makes its acknowledgements durable, the command and query
// endpoints, and the feed.
package bus
