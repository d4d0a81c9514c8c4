package elasticio

import (
	"mime"
	"strings"

	"github.com/credstream/credstream/fault"
)

// The media types that are taken and answered.
const (
	mediaJSONAPI = "application/vnd.api+json"
	mediaJSON    = "application/json"
)

// ErrAccept refuses a request that takes no answer which could be given.
var ErrAccept = fault.New(fault.Invalid, "not_acceptable",
	"The response is application/vnd.api+json or application/json. Accept one of them, without parameters.")

// mediaOf is the media type of a body, "" when it is not one that is taken:
// application/vnd.api+json without parameters, as JSON:API demands of extensions
// that are not known, or application/json, in UTF-8 if it says so.
func mediaOf(contentType []string) string {
	if len(contentType) != 1 {
		return ""
	}
	media, params, err := mime.ParseMediaType(contentType[0])
	if err != nil {
		return ""
	}
	switch media {
	case mediaJSONAPI:
		delete(params, "profile") // profiles that are not known are ignored
		if len(params) == 0 {
			return media
		}
	case mediaJSON:
		if charset, given := params["charset"]; !given || strings.EqualFold(charset, "utf-8") {
			return media
		}
	}
	return ""
}

// negotiate chooses the media type of the answer: the first that Accept names, or,
// where it leaves the choice, that of the body, or JSON:API's own. It returns
// ErrAccept when Accept takes none of them.
func (x *exchange) negotiate() error {
	if m := mediaOf(x.r.Header["Content-Type"]); m != "" {
		x.media = m
	}
	given := x.r.Header["Accept"]
	if len(given) == 0 {
		return nil
	}
	anything := false
	for entry := range strings.SplitSeq(strings.Join(given, ","), ",") {
		media, params, err := mime.ParseMediaType(strings.TrimSpace(entry))
		if err != nil || params["q"] == "0" || params["q"] == "0.0" {
			continue
		}
		delete(params, "q")
		delete(params, "profile")
		switch {
		case media == mediaJSON, media == mediaJSONAPI && len(params) == 0:
			x.media = media
			return nil
		case media == "*/*", media == "application/*":
			anything = true
		}
	}
	if anything {
		return nil
	}
	return ErrAccept
}
