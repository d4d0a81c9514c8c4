package elastic

import (
	"mime"
	"strings"

	"github.com/credstream/credstream/api/edge"
)

// mediaElastic is the media type of Elasticsearch's clients. Its parameter compatible-with is
// the version whose forms they know: those of 8 and 9 are alike here.
const mediaElastic = "application/vnd.elasticsearch+json"

// compatible returns how the answer to a media type says its own, "" when it is not served.
func compatible(media string, params map[string]string) string {
	switch version := params["compatible-with"]; {
	case media == mediaElastic && (version == "8" || version == "9"):
		return mediaElastic + ";compatible-with=" + version
	case media == edge.MediaJSON:
		return edge.MediaJSON
	}
	return ""
}

// bodyMedia reads the Content-Type of a body. It is false for what is not served. A body
// without one is JSON: the official typed Go client sends those of secrets so.
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

// negotiate chooses the media type of the answer: what the client accepts or, where it
// accepts anything, that of its body. It is false when the client accepts none.
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
