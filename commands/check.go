package commands

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// A command that callers send directly has JSON tags, and a method Check() error for the checks
// that need no state. A command with members that only the service may set has a separate
// request struct instead.

// Errors of a malformed request.
var (
	ErrBody    = fault.New(fault.Invalid, "body_invalid", "The body is not valid JSON for this command or query.")
	ErrMissing = fault.New(fault.Invalid, "member_missing", "A required member is missing.")
	ErrName    = fault.New(fault.Invalid, "name_invalid", "A name must have 1 to 200 characters and no control characters.")
)

// Required refuses an empty member.
func Required(pointer, value string) error {
	if strings.TrimSpace(value) == "" {
		return ErrMissing.Withf("The member %s is required.", strings.TrimPrefix(pointer, "/")).At(pointer)
	}
	return nil
}

// CheckName returns ErrName unless name is a valid display name.
func CheckName(pointer, name string) error {
	// Format characters can reverse or hide text. The two exceptions join letters.
	control := func(r rune) bool {
		return unicode.IsControl(r) || r == 0x2028 || r == 0x2029 || unicode.Is(unicode.Cf, r) && r != 0x200c && r != 0x200d
	}
	n := utf8.RuneCountInString(name)
	if n < 1 || n > 200 || strings.ContainsFunc(name, control) {
		return ErrName.At(pointer)
	}
	return nil
}

// Errors of a credential's description and of its free type.
var (
	ErrDescription = fault.New(fault.Invalid, "description_invalid", "A description must have at most 1000 characters and no control characters but line breaks and tabs.")
	ErrType        = fault.New(fault.Invalid, "type_invalid", "A type must have 1 to 128 bytes of UTF-8 without control characters.")
)

// CheckDescription returns ErrDescription for an invalid description; "" is none.
func CheckDescription(text string) error {
	if utf8.RuneCountInString(text) > 1000 || !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool {
		return unicode.IsControl(r) && r != '\n' && r != '\r' && r != '\t' || 0x202a <= r && r <= 0x202e || 0x2066 <= r && r <= 0x2069
	}) {
		return ErrDescription.At("/description")
	}
	return nil
}

// CheckType returns ErrType for an invalid name of a free type.
func CheckType(name string) error {
	if events.CheckID(name) != nil || strings.TrimSpace(name) == "" {
		return ErrType.At("/type")
	}
	return nil
}

// CheckTarget refuses an invalid id (ErrMissing, events.ErrID) or expected version (ErrBody).
func CheckTarget(id string, expected int) error {
	if err := Required("/id", id); err != nil {
		return err
	}
	if err := events.CheckID(id); err != nil {
		return fault.Of(err).At("/id")
	}
	if expected < 0 {
		return ErrBody.Withf("A version is a number from 1.").At("/expected_version")
	}
	return nil
}

// CheckRef returns events.ErrID for an invalid id that the caller assigns; "" is none.
func CheckRef(pointer, id string) error {
	if id == "" {
		return nil
	}
	if err := events.CheckNewID(id); err != nil {
		return fault.Of(err).At(pointer)
	}
	return nil
}
