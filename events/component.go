package events

import (
	"crypto/sha256"
	"encoding/hex"
)

// Component is the set of events about one component, stream
// "component.<id>" under System.
//
//sumtype:decl
type Component interface{ component() }

// ComponentRegistered records: A component was registered from its component.json.
type ComponentRegistered struct {
	Owner      string `json:"owner"`      // tenant that registered it
	Title      string `json:"title"`      // the descriptor's title, for lists
	Descriptor string `json:"descriptor"` // the unchanged component.json; revision 1
}

// ComponentUpdated records: The component got a new descriptor, as the next revision.
type ComponentUpdated struct {
	Title      string `json:"title"`
	Descriptor string `json:"descriptor"`
	Revision   int    `json:"revision"` // 2, 3, ...
}

// PublicDescriptor is the public form of a new descriptor.
type PublicDescriptor struct {
	ID       string `json:"id"`
	Owner    string `json:"owner,omitzero"` // tenant that registered the component; absent for an update
	Title    string `json:"title"`
	Revision int    `json:"revision"` // 1, 2, 3, ...
	SHA256   string `json:"sha256"`   // of the descriptor, hex
}

// Public replaces the descriptor by its hash.
func (e ComponentRegistered) Public(id string) any {
	return PublicDescriptor{ID: id, Owner: e.Owner, Title: e.Title, Revision: 1, SHA256: DescriptorHash(e.Descriptor)}
}

// Public replaces the descriptor by its hash.
func (e ComponentUpdated) Public(id string) any {
	return PublicDescriptor{ID: id, Title: e.Title, Revision: e.Revision, SHA256: DescriptorHash(e.Descriptor)}
}

// DescriptorHash is the SHA-256 of a descriptor, hex.
func DescriptorHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// ComponentShared records: The component was shared with all tenants.
type ComponentShared struct{}

// ComponentUnshared records: Only the owner can use the component from now on.
type ComponentUnshared struct{}

// ComponentEnvSet records: The variables that the descriptor declares were set. Their values are
// only in the vault and only used in the owner's tenant.
type ComponentEnvSet struct {
	Names    []string `json:"names" feed:"names"` // of the variables that have a value, sorted
	SecretID string   `json:"secret_id" feed:"-"` // where the vault keeps the values
}

// ComponentDeleted records: The component was deleted; its credentials remain.
type ComponentDeleted struct{}

func (ComponentRegistered) component() {}
func (ComponentUpdated) component()    {}
func (ComponentShared) component()     {}
func (ComponentUnshared) component()   {}
func (ComponentEnvSet) component()     {}
func (ComponentDeleted) component()    {}
func (SecretAbandoned) component()     {}

var componentTypes = []Type{
	Define[ComponentRegistered]("component.registered", Changes).KeepingSecrets(),
	Define[ComponentUpdated]("component.updated", Changes).KeepingSecrets(),
	Define[ComponentShared]("component.shared", Changes).KeepingSecrets(),
	Define[ComponentUnshared]("component.unshared", Changes).KeepingSecrets(),
	Define[ComponentEnvSet]("component.env_set", Changes),
	Define[ComponentDeleted]("component.deleted", Changes),
}
