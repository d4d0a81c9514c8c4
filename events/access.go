package events

import "time"

// Access is the set of events about one caller's denials and aborted connections, stream
// "access.<id of the caller>" in the caller's home tenant.
//
//sumtype:decl
type Access interface{ access() }

// AccessDenied records: A caller was denied: it lacked the permission, or it named a tenant that it
// may not access. Frequent denials of one caller are combined into one event with a count.
type AccessDenied struct {
	Principal  string    `json:"principal" feed:"principal"`   // "key:<id>" or "user:<id>"
	Tenant     string    `json:"tenant" feed:"tenant"`         // the tenant it named; "" if that is not a valid name, or if there were several
	Route      string    `json:"route" feed:"route"`           // the command or query
	Permission string    `json:"permission" feed:"permission"` // that the route requires
	Count      int       `json:"count" feed:"count"`           // number of denials
	Since      time.Time `json:"since" feed:"since"`           // the first of them
}

// AccessConnectAborted records: A connection to an account at a provider ended without a
// credential. The event is in the tenant of the connection.
type AccessConnectAborted struct {
	Principal  string `json:"principal" feed:"principal"`   // who had started it: "key:<id>" or "user:<id>"
	Connection string `json:"connection" feed:"connection"` // id of the connect link
	Component  string `json:"component" feed:"component"`
	Credential string `json:"credential" feed:"credential"` // that was to be connected again; "" for a new one
	User       string `json:"user" feed:"user"`             // id of the caller's user for whom it was started, or ""
	Reason     string `json:"reason" feed:"reason"`         // error code
}

func (AccessDenied) access()         {}
func (AccessConnectAborted) access() {}

var accessTypes = []Type{Define[AccessDenied]("access.denied", Audit).WithID(""), Define[AccessConnectAborted]("access.connect_aborted", Audit).WithID("")}
