package elasticio

import (
	"mime"
	"strings"

	"github.com/credstream/credstream/api/edge"
	"github.com/credstream/credstream/fault"
)

// The supported media types.
const (
	mediaJSONAPI = "application/vnd.api+json"
	mediaJSON    = edge.MediaJSON
)

// ErrAccept refuses a request whose Accept header allows no supported media type.
var ErrAccept = fault.New(fault.Invalid, "not_acceptable",
	"The response is application/vnd.api+json or application/json. Accept one of them, without parameters.")

// mediaOf parses the media type of a body; "" if it is not supported. Supported:
// application/vnd.api+json without parameters, because JSON:API requires it for unknown
// extensions, and application/json. A charset must be utf-8.
func mediaOf(contentType []string) string {
	if edge.IsJSON(contentType) {
		return mediaJSON
	}
	if len(contentType) != 1 {
		return ""
	}
	media, params, err := mime.ParseMediaType(contentType[0])
	delete(params, "profile") // unknown profiles are ignored
	if err != nil || media != mediaJSONAPI || len(params) > 0 {
		return ""
	}
	return media
}

// negotiate chooses the media type of the response: the first in Accept, otherwise that of the
// body, or JSON:API's own. It returns false if Accept allows neither.
func (x *exchange) negotiate() bool {
	if m := mediaOf(x.R.Header["Content-Type"]); m != "" {
		x.media = m
	}
	given := x.R.Header["Accept"]
	if len(given) == 0 {
		return true
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
			return true
		case media == "*/*", media == "application/*":
			anything = true
		}
	}
	return anything
}
