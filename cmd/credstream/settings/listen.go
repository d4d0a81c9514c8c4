package settings

import (
	"errors"
	"syscall"

	"github.com/credstream/credstream/fault"
)

// ErrListen is returned for a listen address that cannot be used.
var ErrListen = fault.New(fault.Invalid, "listen_address_unavailable", "The listen address cannot be used. Choose another address.")

// ListenError explains why a listener for the address of a flag could not be opened.
func ListenError(flag, address string, err error) error {
	reason := "it is not a valid address, such as 127.0.0.1:8080"
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		reason = "another program uses this port. Stop that program, or choose another port"
	case errors.Is(err, syscall.EACCES):
		reason = "this user is not allowed to open the port. Choose a port above 1023"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		reason = "this machine does not have the address. Choose one of its addresses, or 0.0.0.0 for all"
	}
	return ErrListen.Withf("Cannot listen on %.100q of --%s: %s.", address, flag, reason)
}
