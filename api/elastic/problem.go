package elastic

import (
	"net/http"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/api/edge"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/connector"
)

// cause is an error in Elasticsearch's format.
type cause struct {
	RootCause []cause `json:"root_cause,omitzero"`
	Type      string  `json:"type"`
	Reason    string  `json:"reason"`
}

type failure struct {
	Error  cause `json:"error"`
	Status int   `json:"status"`
}

// Fail writes err. Elasticsearch answers 406, not 415, to an unsupported media type of a body.
func (x *exchange) Fail(err error) {
	if f := fault.Of(err); f.Code == edge.ErrMediaType.Code {
		x.FailAs(http.StatusNotAcceptable, edge.ErrMediaType.Withf("The body must be %s, or %s with compatible-with=8 or 9.", edge.MediaJSON, mediaElastic))
		return
	}
	x.Exchange.Fail(err)
}

// Problem writes an error in Elasticsearch's format.
func (x *exchange) Problem(p fault.Problem) {
	one := cause{Type: typeOf(p), Reason: x.reason(p)}
	document := failure{Error: cause{RootCause: []cause{one}, Type: one.Type, Reason: one.Reason}, Status: p.Status}
	b, err := json.Marshal(document)
	if err != nil { // cannot happen: reasons are valid UTF-8
		b = []byte("{}")
	}
	x.Write(p.Status, x.media, append(b, '\n'))
}

// typeOf returns the Elasticsearch exception type for a problem.
func typeOf(p fault.Problem) string {
	switch p.Code {
	case ErrConnectorIDMissing.Code, ErrSecretIDMissing.Code, connector.ErrValueMissing.Code:
		return "action_request_validation_exception"
	case service.ErrBody.Code:
		return "x_content_parse_exception"
	case ErrBodyRequired.Code:
		return "parse_exception"
	}
	switch p.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return "security_exception"
	case http.StatusNotFound:
		return "resource_not_found_exception"
	case http.StatusNotAcceptable:
		return "media_type_header_exception"
	case http.StatusRequestEntityTooLarge:
		return "content_too_long_exception"
	case http.StatusTooManyRequests:
		return "es_rejected_execution_exception"
	case http.StatusConflict, http.StatusServiceUnavailable:
		return "status_exception"
	case http.StatusInternalServerError:
		return "exception"
	}
	return "illegal_argument_exception"
}

// reason returns the message of an error: Elasticsearch's own text if clients may depend on it.
func (x *exchange) reason(p fault.Problem) string {
	switch p.Code {
	case "connector_not_found":
		return "connector [" + cut(x.item) + "] not found"
	case "connector_secret_not_found":
		return "No secret with id [" + cut(x.item) + "]"
	case connector.ErrValueMissing.Code:
		return `[value] of the connector secret cannot be [null] or [""]`
	}
	return p.Detail
}
