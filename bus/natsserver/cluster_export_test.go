package natsserver

// Subjects is what a key may send requests to, and what it may subscribe to.
func (g Grant) Subjects() (requests, subscriptions []string, err error) { return g.subjects() }
