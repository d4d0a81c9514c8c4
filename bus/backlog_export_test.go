package bus

// SetBacklog changes how many messages may wait of one tenant in each stream.
func (q *Queues) SetBacklog(most int) {
	for _, b := range q.backlog {
		b.most = most
	}
}

// ForgetBacklog has the streams looked at anew, as a process does that has just started.
func (q *Queues) ForgetBacklog() {
	for _, b := range q.backlog {
		b.tenants.Purge()
	}
}
