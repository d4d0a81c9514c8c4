package verify_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/verify"
)

func TestCondition(t *testing.T) {
	yes, no := true, false
	value := func(text string) jsontext.Value { return jsontext.Value(text) }
	const slack = `{"ok":false,"error":"invalid_auth","n":[1,{"a/b":2.0}],"none":null,"ok":true`
	for name, c := range map[string]struct {
		verify.Condition
		document string
		want     bool
	}{
		"equals":                {verify.Condition{Pointer: "/ok", Equals: value("false")}, slack, true},
		"equals not":            {verify.Condition{Pointer: "/ok", Equals: value("true")}, slack, false},
		"another type":          {verify.Condition{Pointer: "/ok", Equals: value(`"false"`)}, slack, false},
		"a number, written so":  {verify.Condition{Pointer: "/n/1/a~1b", Equals: value("2")}, slack, true},
		"an item":               {verify.Condition{Pointer: "/n/0", Equals: value("1")}, slack, true},
		"beyond the items":      {verify.Condition{Pointer: "/n/2", Exists: &no}, slack, true},
		"an index that is none": {verify.Condition{Pointer: "/n/-", Exists: &yes}, slack, false},
		"one of":                {verify.Condition{Pointer: "/error", OneOf: []jsontext.Value{value(`1`), value(`"invalid_auth"`)}}, slack, true},
		"none of":               {verify.Condition{Pointer: "/error", OneOf: []jsontext.Value{value(`"other"`)}}, slack, false},
		"matches":               {verify.Condition{Pointer: "/error", Matches: regexp.MustCompile("^invalid_")}, slack, true},
		"matches the beginning": {verify.Condition{Pointer: "/t", Matches: regexp.MustCompile("x$")}, `{"t":"` + strings.Repeat("x", 4096) + `y"}`, true},
		"matches no rest":       {verify.Condition{Pointer: "/t", Matches: regexp.MustCompile("y")}, `{"t":"` + strings.Repeat("x", 4096) + `y"}`, false},
		"matches no object":     {verify.Condition{Pointer: "/n", Matches: regexp.MustCompile("")}, slack, false},
		"exists, though null":   {verify.Condition{Pointer: "/none", Exists: &yes}, slack, true},
		"is missing":            {verify.Condition{Pointer: "/user", Exists: &yes}, slack, false},
		"within a text":         {verify.Condition{Pointer: "/error/x", Exists: &yes}, slack, false},
		"the whole":             {verify.Condition{Pointer: "", Equals: value(`[1, 2]`)}, `[1,2]`, true},
		"a page":                {verify.Condition{Pointer: "/ok", Equals: value("true")}, `<html>`, false},
		"nothing":               {verify.Condition{Pointer: "/ok", Equals: value("true")}, ``, false},
	} {
		if got := c.Holds([]byte(c.document)); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
