package credential_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/stage"
)

// silentLog is an access log whose last entries cannot be read.
type silentLog struct{ credential.AccessLog }

func (silentLog) Last(context.Context, string, []string) ([]credential.AccessRecord, error) {
	return nil, errors.New("the server is away")
}

// A credential was last used when its values were given or revealed, not when they were about to be.
// Without the access log nothing is known, and the credentials are listed nevertheless.
func TestLastUse(t *testing.T) {
	s := stage.New(t)
	used, withdrawn, never := s.Create("canary-1"), s.Create("canary-2"), s.Create("canary-3")
	resolve := func(id string) {
		stage.OK(t, second(s.Resolve(fmt.Sprintf(`{"id":%q,"cleartext":true}`, id))))
	}
	resolve(used)
	resolve(withdrawn)
	given := map[string]time.Time{}
	for _, f := range s.Facts(credential.ReplayAccess{}) {
		given[f.Credential] = f.Time
	}
	// Its keys are replaced whenever they are about to be given, so nothing is.
	s.Access.After = func(f credential.AccessFact) {
		if f.Kind == credential.AccessGiven {
			s.Do("default", "credential.replace-keys", fmt.Sprintf(`{"id":%q,"keys":{"apiKey":"canary-4"}}`, f.Credential))
		}
	}
	s.Do("default", "credential.replace-keys", fmt.Sprintf(`{"id":%q,"keys":{"apiKey":"canary-5"}}`, withdrawn)) // ends the lease
	if _, err := s.Resolve(fmt.Sprintf(`{"id":%q,"cleartext":true}`, withdrawn)); stage.CodeOf(err) != "conflict" {
		t.Fatalf("replaced again and again: %v", err)
	}
	s.Access.After = nil
	list := func(body string) map[string]*credential.LastUse {
		s.CaughtUp()
		page := stage.Must(s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "credential.list", []byte(body)))(t).(credential.Page)
		shown := map[string]*credential.LastUse{}
		for _, c := range page.Credentials {
			shown[c.ID] = c.LastUse
		}
		return shown
	}
	if shown := list(`{"last_use":true}`); len(shown) != 3 || shown[used] == nil || !shown[used].Time.Equal(given[used]) ||
		shown[never] == nil || *shown[never] != (credential.LastUse{}) || shown[withdrawn] == nil || !shown[withdrawn].Time.Equal(given[withdrawn]) {
		t.Errorf("listed: %v; given were %v", shown, given)
	}
	if shown := list(`{}`); shown[used] != nil {
		t.Errorf("unasked: %v", shown[used])
	}
	s.Service.Credentials.AccessLog = silentLog{s.Access}
	if shown := list(`{"last_use":true}`); len(shown) != 3 || shown[used] == nil || !shown[used].Unknown {
		t.Errorf("without the access log: %v", shown)
	}
}
