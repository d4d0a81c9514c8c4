package elasticio

import (
	"mime"
	"strings"

	"github.com/credstream/credstream/api/edge"
	"github.com/credstream/credstream/fault"
)

// The media types that are taken and answered.
const (
	mediaJSONAPI = "application/vnd.api+json"
	mediaJSON    = edge.MediaJSON
)

// ErrAccept refuses a request that takes no answer which could be given.
var ErrAccept = fault.New(fault.Invalid, "not_acceptable",
	"The response is application/vnd.api+json or application/json. Accept one of them, without parameters.")

// mediaOf is the media type of a body, "" when it is not one that is taken:
// application/vnd.api+json without parameters, as JSON:API demands of extensions
// that are not known, or application/json, in UTF-8 if it says so.
func mediaOf(contentType []string) string {
	if edge.IsJSON(contentType) {
		return mediaJSON
	}
	if len(contentType) != 1 {
		return ""
	}
	media, params, err := mime.ParseMediaType(contentType[0])
	delete(params, "profile") // profiles that are not known are ignored
	if err != nil || media != mediaJSONAPI || len(params) > 0 {
		return ""
	}
	return media
}

// negotiate chooses the media type of the answer: the first that Accept names, or,
// where it leaves the choice, that of the body, or JSON:API's own. It reports
// whether Accept takes one of them.
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
