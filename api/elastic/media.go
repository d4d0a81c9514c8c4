package elastic

import (
	"mime"
	"strings"

	"github.com/credstream/credstream/api/edge"
)

// mediaElastic is the media type of Elasticsearch's clients. The parameter compatible-with is
// the version of their format; 8 and 9 do not differ here.
const mediaElastic = "application/vnd.elasticsearch+json"

// compatible returns the Content-Type of the response to a media type; "" if it is not
// supported.
func compatible(media string, params map[string]string) string {
	switch version := params["compatible-with"]; {
	case media == mediaElastic && (version == "8" || version == "9"):
		return mediaElastic + ";compatible-with=" + version
	case media == edge.MediaJSON:
		return edge.MediaJSON
	}
	return ""
}

// bodyMedia parses the Content-Type of a body; ok is false if it is not supported. A body
// without Content-Type is JSON: the official typed Go client sends secrets without one.
func bodyMedia(contentType []string) (answer string, ok bool) {
	switch len(contentType) {
	case 0:
		return edge.MediaJSON, true
	case 1:
	default:
		return "", false
	}
	media, params, err := mime.ParseMediaType(contentType[0])
	if charset, given := params["charset"]; err != nil || given && !strings.EqualFold(charset, "utf-8") {
		return "", false
	}
	answer = compatible(media, params)
	return answer, answer != ""
}

// negotiate chooses the media type of the response: one that Accept allows, preferably that of
// the body. It returns false if Accept allows none.
func (x *exchange) negotiate() bool {
	if answer, ok := bodyMedia(x.R.Header["Content-Type"]); ok {
		x.media = answer
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
		if answer := compatible(media, params); answer != "" {
			x.media = answer
			return true
		}
		anything = anything || media == "*/*" || media == "application/*"
	}
	return anything
}
