package elastic

import (
	"net/http"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/connector"
)

func (x *exchange) postSecret() {
	if done, ok := x.store(""); ok {
		x.give(http.StatusOK, map[string]string{"id": done.ID})
	}
}

func (x *exchange) putSecret() {
	done, ok := x.store(x.item)
	if !ok {
		return
	}
	status := http.StatusOK
	if done.Status == connector.Created {
		status = http.StatusCreated
	}
	x.give(status, map[string]any{"result": done.Status})
}

// store sets the value of a secret. If id is "", it creates one with a new id.
func (x *exchange) store(id string) (done service.Done, ok bool) {
	in, err := x.members(false, "value")
	if err == nil {
		if id != "" {
			in["id"] = text(id)
		}
		done, err = ask[service.Done](x, "connector_secret.put", in)
	}
	if err != nil {
		x.Fail(err)
	}
	return done, err == nil
}

// getSecret returns a value. The service audits the access first.
func (x *exchange) getSecret() {
	shown, err := ask[connector.RevealedSecret](x, "connector_secret.reveal", connector.SecretRef{ID: x.item})
	if err != nil {
		x.Fail(err)
		return
	}
	x.give(http.StatusOK, map[string]string{"id": x.item, "value": shown.Value})
}

func (x *exchange) deleteSecret() {
	if _, err := ask[service.Done](x, "connector_secret.delete", connector.SecretRef{ID: x.item}); err != nil {
		x.Fail(err)
		return
	}
	x.give(http.StatusOK, map[string]bool{"deleted": true})
}
