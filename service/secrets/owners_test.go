package secrets_test

import (
	"testing"

	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/service/stage"
)

// A backup knows the owners of secrets that the process manager knows: it would bring the secrets
// of others back after they were erased.
func TestOwnersOfAllSecrets(t *testing.T) {
	s := stage.Must(secrets.New(secrets.Deps{}))(t)
	owners := secrets.NewOwners()
	for _, category := range s.FollowUpCategories() {
		if !owners.Has(category) {
			t.Errorf("a backup does not know the secrets of a %s", category)
		}
	}
}
