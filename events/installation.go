package events

// Installation is the set of events about the installation itself, stream
// "installation.durability" under System.
//
//sumtype:decl
type Installation interface{ installation() }

// DurabilityAttested records: The operator attested a durability that is weak or could not be
// verified.
type DurabilityAttested struct {
	Replicas int    `json:"replicas"` // of each stream
	Why      string `json:"why"`      // what was weak or could not be verified
}

func (DurabilityAttested) installation() {}

var installationTypes = []Type{Define[DurabilityAttested]("installation.durability_attested", Internal)}
