package events

// Component is the sum of the facts about one component, stream
// "component.<id>" under System.
//
//sumtype:decl
type Component interface{ component() }

// ComponentRegistered brings a component in, from its component.json.
type ComponentRegistered struct {
	Owner      string `json:"owner"`      // tenant that registered it
	Title      string `json:"title"`      // the descriptor's title, for lists
	Descriptor string `json:"descriptor"` // the component.json, to the byte; revision 1
}

// ComponentUpdated gives the component a new descriptor and the next revision.
type ComponentUpdated struct {
	Title      string `json:"title"`
	Descriptor string `json:"descriptor"`
	Revision   int    `json:"revision"` // 2, 3, ...
}

// ComponentShared makes the component visible to every tenant.
type ComponentShared struct{}

// ComponentUnshared makes the component visible to its owner alone.
type ComponentUnshared struct{}

// ComponentEnvSet gives values to the variables that the descriptor declares.
// They live in the vault alone and serve in the owner's tenant.
type ComponentEnvSet struct {
	Names    []string `json:"names"`     // of the variables that have a value, sorted
	SecretID string   `json:"secret_id"` // where the vault keeps the values
}

// ComponentDeleted ends the component; credentials made for it remain.
type ComponentDeleted struct{}

func (ComponentRegistered) component() {}
func (ComponentUpdated) component()    {}
func (ComponentShared) component()     {}
func (ComponentUnshared) component()   {}
func (ComponentEnvSet) component()     {}
func (ComponentDeleted) component()    {}
func (SecretAbandoned) component()     {}

var componentTypes = []Type{
	Define[ComponentRegistered]("component.registered", Changes),
	Define[ComponentUpdated]("component.updated", Changes),
	Define[ComponentShared]("component.shared", Changes),
	Define[ComponentUnshared]("component.unshared", Changes),
	Define[ComponentEnvSet]("component.env_set", Changes),
	Define[ComponentDeleted]("component.deleted", Changes),
}
