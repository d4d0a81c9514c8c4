package service

// Kind is what is counted apart.
type Kind string

// What is counted apart.
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
