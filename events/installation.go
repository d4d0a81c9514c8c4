package events

// Installation is the set of events about the installation itself, stream
// "installation.durability" under System.
//
//sumtype:decl
type Installation interface{ installation() }

// DurabilityAttested says that the operator vouches for a durability that the
// program saw to be weak or could not see.
type DurabilityAttested struct {
	Replicas int    `json:"replicas"` // of each stream
	Why      string `json:"why"`      // what was weak or not seen
}

func (DurabilityAttested) installation() {}

var installationTypes = []Type{Define[DurabilityAttested]("installation.durability_attested", Internal)}
