package credential_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/credstream/credstream/service/credential"
)

// A tenant whose leases are many loses its own, and those it asks for stay.
func TestHeldLeases(t *testing.T) {
	held, err := credential.NewHeld(8, 3)
	if err != nil {
		t.Fatal(err)
	}
	holds := func(want map[string]string) {
		t.Helper()
		total := 0
		for tenant, numbers := range want {
			total += len(numbers)
			for n := range 10 {
				if has, wanted := held.Has(tenant, n), strings.Contains(numbers, fmt.Sprint(n)); has != wanted {
					t.Errorf("%s %d: %t, want %t", tenant, n, has, wanted)
				}
			}
		}
		if leases, tenants := held.Len(); leases != total || tenants != len(want) {
			t.Errorf("%d leases of %d tenants are held, want %d of %d", leases, tenants, total, len(want))
		}
	}
	held.Add("one", 0)
	held.Add("one", 1)
	for n := range 9 {
		held.Add("evil", n)
		held.Add("evil", n)
		held.Get("evil", 0)
	}
	holds(map[string]string{"one": "01", "evil": "078"})
	for n := range 3 {
		held.Add("two", n)
	}
	holds(map[string]string{"one": "01", "evil": "078", "two": "012"})
	held.Get("one", 1)
	for n := range 2 { // beyond what is held of all
		held.Add("three", n)
	}
	holds(map[string]string{"one": "1", "evil": "08", "two": "012", "three": "01"})
	for n := range 3 {
		held.Add("four", n)
		held.Add("five", n)
	}
	if leases, tenants := held.Len(); leases != 8 || tenants > 4 {
		t.Errorf("%d leases of %d tenants are held", leases, tenants)
	}
}
