// Package settings makes flags of configurations. A configuration is a struct with the
// tags flag, env, default, help, and arg, which names the value in the help. A flag
// overrides its environment variable, and the variable overrides the default.
package settings

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/credstream/credstream/fault"
)

// ErrEnvironment is returned for an environment variable whose value is invalid.
var ErrEnvironment = fault.New(fault.Invalid, "config_environment", "An environment variable has an invalid value.")

// envOf is the annotation that names a flag's variable.
const envOf = "env"

// Bind adds a flag for every exported field of the configuration that cfg points at.
func Bind(flags *pflag.FlagSet, cfg any) {
	flags.SortFlags = false
	v := reflect.ValueOf(cfg).Elem()
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name := f.Tag.Get("flag")
		if name == "" {
			continue
		}
		help := f.Tag.Get("help")
		if env := f.Tag.Get("env"); env != "" {
			help += " [$" + env + "]"
		}
		switch p := v.Field(i).Addr().Interface().(type) {
		case *string:
			*p = f.Tag.Get("default")
			flags.Var(&text{p, f.Tag.Get("arg")}, name, help)
		case *bool:
			flags.BoolVar(p, name, false, help)
		case *time.Duration:
			d := &duration{p, f.Tag.Get("arg")}
			if d.Set(f.Tag.Get("default")) != nil {
				panic(fmt.Sprintf("configuration field %s has no duration for its default", f.Name)) // a mistake of ours
			}
			flags.Var(d, name, help)
		case *int:
			n, err := strconv.Atoi(f.Tag.Get("default"))
			if err != nil {
				panic(fmt.Sprintf("configuration field %s has no number for its default", f.Name)) // a mistake of ours
			}
			*p = n
			flags.Var(&number{p, f.Tag.Get("arg")}, name, help)
		default:
			panic(fmt.Sprintf("configuration field %s has a type that no flag has", f.Name)) // a mistake of ours
		}
		if env := f.Tag.Get("env"); env != "" {
			flags.Lookup(name).Annotations = map[string][]string{envOf: {env}}
		}
	}
}

// text is the value of a flag whose help names the value.
type text struct {
	*string
	arg string
}

func (t *text) Set(s string) error { *t.string = s; return nil }
func (t *text) String() string     { return *t.string }
func (t *text) Type() string       { return t.arg }

// number is a text value that is a number.
type number struct {
	*int
	arg string
}

func (n *number) Set(s string) (err error) {
	v, err := strconv.Atoi(s)
	if err == nil {
		*n.int = v
	}
	return err
}
func (n *number) String() string { return strconv.Itoa(*n.int) }
func (n *number) Type() string   { return n.arg }

// duration is a text value that is a duration, such as 10m or 400d.
type duration struct {
	*time.Duration
	arg string
}

func (d *duration) Set(s string) (err error) {
	v, err := ParseDuration(s)
	if err == nil {
		*d.Duration = v
	}
	return err
}

// ParseDuration parses a duration such as 10m, 48h or 400d.
func ParseDuration(s string) (time.Duration, error) {
	days, ok := strings.CutSuffix(s, "d")
	if !ok {
		return time.ParseDuration(s)
	}
	n, err := strconv.Atoi(days)
	if err == nil && (n < 0 || n > maxDays) {
		err = strconv.ErrRange
	}
	return time.Duration(n) * day, err
}

func (d *duration) String() string {
	if n := *d.Duration / day; n > 0 && *d.Duration%day == 0 {
		return strconv.Itoa(int(n)) + "d"
	}
	return d.Duration.String()
}

func (d *duration) Type() string { return d.arg }

const (
	day     = 24 * time.Hour
	maxDays = 100_000 // the maximum of a time.Duration is slightly more
)

// FromEnvironment sets the flags that were not given from their variables. It is
// called after parsing, so that help never prints the value of a variable. It returns
// ErrEnvironment.
func FromEnvironment(flags *pflag.FlagSet, getenv func(string) string) (err error) {
	keyFile := flags.Lookup("key-file") // if given, it takes precedence over a key in the environment
	fileGiven := keyFile != nil && keyFile.Changed
	flags.VisitAll(func(f *pflag.Flag) {
		env := f.Annotations[envOf]
		if f.Name == "key" && fileGiven {
			return
		}
		if f.Changed || len(env) == 0 || getenv(env[0]) == "" || err != nil {
			return
		}
		if f.Value.Set(getenv(env[0])) != nil {
			err = ErrEnvironment.Withf("The environment variable %s has an invalid value.", env[0])
		}
	})
	return err
}

// Table describes the settings of a configuration in Markdown.
func Table(cfg any) string {
	var b strings.Builder
	b.WriteString("| flag | variable | default | |\n|---|---|---|---|\n")
	for f := range reflect.TypeOf(cfg).Fields() {
		tag, flag := f.Tag, ""
		if tag.Get("flag") != "" {
			flag = strings.TrimSpace("--" + tag.Get("flag") + " " + tag.Get("arg"))
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", quoted(flag), quoted(tag.Get("env")), quoted(tag.Get("default")), tag.Get("help"))
	}
	return b.String()
}

func quoted(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

// Takes describes the values that a flag accepts, such as "a number"; "" when unknown.
func Takes(f *pflag.Flag) string {
	switch f.Value.(type) {
	case *number:
		return "a number"
	case *duration:
		return "a time such as 10m, 48h or 400d"
	}
	switch f.Value.Type() {
	case "bool":
		return "true or false"
	case "int":
		return "a number"
	case "uint64":
		return "a non-negative number"
	case "duration":
		return "a time such as 90s or 10m"
	}
	return ""
}
