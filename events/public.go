package events

import (
	"fmt"
	"reflect"
	"strings"
)

// publisher is an event whose public form the tags of its fields cannot express.
type publisher interface{ Public(id string) any }

// fieldPublisher is the same for the type of a field.
type fieldPublisher interface{ Public() any }

// publicForm describes the public form of one type of event.
type publicForm struct {
	data   reflect.Type // the struct of the data
	id     bool         // whether its first field is the stream's id
	fields []publicField
}

type publicField struct {
	index     int  // of the event's field
	hasPublic bool // it is a fieldPublisher
}

// PublicData returns the type that Public returns for events of this type, nil if the audience
// is Internal.
func (t Type) PublicData() reflect.Type { return t.public.data }

// Public returns the data of e, an event of this type in the stream with this id, as the feed,
// the audit stream and the history show it: a struct for JSON. It is nil if the type's audience is
// Internal. The form derives from the tags of the event's fields:
//
//	feed:"name"     the member of this name; options as in a json tag
//	feed:",embed"   the members of the field's own public form
//	feed:"-"        no member
//
// The member with the stream's id comes first. An event that this cannot express has
// a method Public(id string) any; the type of such a field has Public() any.
func (t Type) Public(id string, e Event) any {
	if t.public.data == nil {
		return nil
	}
	if own, ok := e.(publisher); ok {
		return own.Public(id)
	}
	from, to := reflect.ValueOf(e), reflect.New(t.public.data).Elem()
	first := 0
	if t.public.id {
		to.Field(0).SetString(id)
		first = 1
	}
	for i, f := range t.public.fields {
		v := from.Field(f.index)
		if f.hasPublic {
			v = reflect.ValueOf(v.Interface().(fieldPublisher).Public()) // derive has checked the type
		}
		to.Field(first + i).Set(v)
	}
	return to.Addr().Interface()
}

// derive reads the tags of an event. id is the name of the member with the
// stream's id, "" for none. It panics when a field has no tag: a fault of the program.
func derive(event reflect.Type, id string) publicForm {
	if own, ok := reflect.TypeAssert[publisher](reflect.Zero(event)); ok {
		return publicForm{data: reflect.TypeOf(own.Public(""))}
	}
	var form publicForm
	var members []reflect.StructField
	if form.id = id != ""; form.id {
		members = append(members, reflect.StructField{Name: "StreamID", Type: reflect.TypeFor[string](), Tag: jsonTag(id)})
	}
	for f := range event.Fields() {
		tag, tagged := f.Tag.Lookup("feed")
		if !tagged {
			panic(fmt.Sprintf("events: %s.%s has no feed tag: is it public?", event, f.Name))
		}
		if tag == "-" {
			continue
		}
		typ, field := f.Type, publicField{index: f.Index[0]}
		if part, ok := reflect.TypeAssert[fieldPublisher](reflect.Zero(f.Type)); ok {
			typ, field.hasPublic = reflect.TypeOf(part.Public()), true
		} else {
			mustBeWhole(f.Type)
		}
		members = append(members, reflect.StructField{Name: f.Name, Type: typ, Tag: jsonTag(tag)})
		form.fields = append(form.fields, field)
	}
	form.data = reflect.StructOf(members)
	return form
}

// mustBeWhole panics when a part of a public field is not public under its stored name.
func mustBeWhole(t reflect.Type) {
	if t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || !strings.HasPrefix(t.PkgPath(), reflect.TypeFor[Type]().PkgPath()) {
		return
	}
	for f := range t.Fields() {
		if json, _, _ := strings.Cut(f.Tag.Get("json"), ","); f.Tag.Get("feed") != json {
			panic(fmt.Sprintf("events: %s.%s is not public under its stored name: give %s a method Public", t, f.Name, t))
		}
		mustBeWhole(f.Type)
	}
}

func jsonTag(s string) reflect.StructTag { return reflect.StructTag(fmt.Sprintf("json:%q", s)) }
