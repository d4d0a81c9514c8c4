//go:build unix

package seal

// PrivateTo is privateTo.
var PrivateTo = privateTo
