package flow_test

import (
	"testing"

	"github.com/credstream/credstream/service/flow"
)

// Only the content type tells the mode of a message, not an attribute that is called so.
func TestModeOfCloudEvents(t *testing.T) {
	for range 50 { // headers come in any order
		e, err := flow.ReadCloudEvent(map[string][]string{
			"ce-specversion": {"1.0"}, "ce-id": {"e1"}, "ce-source": {"/engine"}, "ce-type": {"flow.stopped"},
			"Content-Type": {"application/json"}, "ce-content-type": {"application/cloudevents+json"},
		}, []byte(`{"id":"f1","revision":2}`), "f1")
		if err != nil || e.ID != "f1" || e.Revision != 2 {
			t.Fatalf("%+v, %v", e, err)
		}
	}
}
