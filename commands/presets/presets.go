// Package presets holds descriptors of well-known APIs, with the pages of the vendors' documentation
// that they follow. None of them was run against a vendor.
package presets

import (
	"embed"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/fault"
)

// ErrNotFound means that no preset has this name.
var ErrNotFound = fault.New(fault.NotFound, "component_preset_not_found", "There is no preset of this name. List them with: credstream component presets")

// Preset is the component.json of one API.
type Preset struct {
	Name       string         `json:"name"`
	Sources    Sources        `json:"sources"`
	Accepted   Answer         `json:"accepted"` // what the documentation shows for keys that work
	Refused    Answer         `json:"refused"`  // and for keys that do not
	Descriptor jsontext.Value `json:"descriptor"`
}

// Sources are the pages of the vendor's documentation for each part of a preset.
type Sources struct {
	Request        string `json:"request"`
	Authentication string `json:"authentication"`
	Refusal        string `json:"refusal"`
	OAuth2         string `json:"oauth2,omitzero"` // "" for keys
}

// Answer is one response to the dry request. A body that is a JSON string is a text.
type Answer struct {
	Status int            `json:"status"`
	Body   jsontext.Value `json:"body"`
}

//go:embed *.json
var files embed.FS

// All returns the presets by name. They are shared: do not change them.
var All = sync.OnceValue(func() []Preset {
	entries, err := files.ReadDir(".")
	if err != nil {
		panic("presets: " + err.Error()) // a bug: they are embedded
	}
	var list []Preset
	for _, entry := range entries {
		raw, err := files.ReadFile(entry.Name())
		p := Preset{Name: strings.TrimSuffix(entry.Name(), ".json")}
		if err == nil {
			err = json.Unmarshal(raw, &p, json.RejectUnknownMembers(true))
		}
		if err == nil {
			err = p.Descriptor.Indent(jsontext.WithIndent("  "))
		}
		if err != nil {
			panic(fmt.Sprintf("presets: %s: %v", entry.Name(), err))
		}
		list = append(list, p)
	}
	return list
})

// Get returns one preset, or ErrNotFound.
func Get(name string) (Preset, error) {
	list := All()
	i := slices.IndexFunc(list, func(p Preset) bool { return p.Name == name })
	if i < 0 {
		return Preset{}, ErrNotFound
	}
	return list[i], nil
}
