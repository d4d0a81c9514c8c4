package events

import "time"

// Access is the sum of the facts about what one caller tried, stream
// "access.<id of the caller>" in the caller's home tenant.
//
//sumtype:decl
type Access interface{ access() }

// AccessDenied says that a caller was refused: it lacked the permission, or it
// named a tenant that it may not name. What is refused often is told of once in a
// while, with its count.
type AccessDenied struct {
	Principal  string    `json:"principal"`  // "key:<id>" or "user:<id>"
	Tenant     string    `json:"tenant"`     // the tenant it named; "" when that is no tenant's name, or when they were several
	Route      string    `json:"route"`      // the command or query
	Permission string    `json:"permission"` // that the route takes
	Count      int       `json:"count"`      // refusals that this tells of
	Since      time.Time `json:"since"`      // the first of them
}

func (AccessDenied) access() {}

var accessTypes = []Type{Define[AccessDenied]("access.denied")}
