package secrets

import "testing"

// A backup knows the owners of secrets that the process manager knows: it would bring the secrets
// of others back after they were erased.
func TestOwnersOfAllSecrets(t *testing.T) {
	s, err := New(Deps{})
	if err != nil {
		t.Fatal(err)
	}
	owners := NewOwners()
	for category := range s.followUpByCategory {
		if !owners.Has(category) {
			t.Errorf("a backup does not know the secrets of a %s", category)
		}
	}
}
