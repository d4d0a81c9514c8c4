package component_test

import (
	"strings"
	"testing"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service/component"
)

func TestSlug(t *testing.T) {
	for title, want := range map[string]string{
		"Pet Shop API (Node.js)":      "pet-shop-api-node-js",
		"sftp":                        "sftp",
		"  --Über  ":                  "ber",
		"日本":                          "component",
		"":                            "component",
		strings.Repeat("ab ", 40):     strings.Repeat("ab-", 21) + "a",
		"customers-component-v2.json": "customers-component-v2-json",
	} {
		got := component.Slug(title)
		if got != want {
			t.Errorf("Slug(%q) = %q, want %q", title, got, want)
		}
		if events.CheckName(got) != nil {
			t.Errorf("Slug(%q) = %q is no component id", title, got)
		}
	}
}
