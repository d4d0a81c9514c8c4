package commands

// Installation is the sum of the intents about the installation itself.
//
//sumtype:decl
type Installation interface {
	Command
	installation()
}

// AttestDurability records that the operator vouches for the durability of the
// streams.
type AttestDurability struct {
	Replicas int
	Why      string // what was weak or not seen
}

// Target implements Command.
func (AttestDurability) Target() string { return "durability" }

func (AttestDurability) installation() {}
