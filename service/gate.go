package service

// Kind is a class of calls with its own rate limit.
type Kind string

// The kinds of calls.
const (
	CommandCall   Kind = "command"
	QueryCall     Kind = "query"
	QueuedMessage Kind = "message" // to be stored in a queue
)

func kindOf(r *Route) Kind {
	if r.Command {
		return CommandCall
	}
	return QueryCall
}
