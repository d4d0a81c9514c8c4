package commands

// Installation is the set of commands on the installation itself.
//
//sumtype:decl
type Installation interface {
	Command
	installation()
}

// AttestDurability records that the operator attests the durability of the streams.
type AttestDurability struct {
	Replicas int
	Why      string // what was weak or could not be verified
}

// Target implements Command.
func (AttestDurability) Target() string { return "durability" }

func (AttestDurability) installation() {}
