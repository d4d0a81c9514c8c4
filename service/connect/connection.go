package connect

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/permission"
)

// Connections stores the connections in progress, shared by all processes that
// serve one log. A value expires some time after its last change, but not before
// stepTime.
type Connections interface {
	// Create stores a new connection and returns its revision.
	Create(ctx context.Context, id string, value []byte) (revision uint64, err error)
	// Get returns the newest value of a connection and its revision; found is false
	// if it does not exist, or no longer does.
	Get(ctx context.Context, id string) (value []byte, revision uint64, found bool, err error)
	// Update replaces the value that has this revision, and returns the new one; saved
	// is false if the connection has another revision by now. After an error the
	// outcome is unknown.
	Update(ctx context.Context, id string, value []byte, revision uint64) (next uint64, saved bool, err error)
	// Mark marks a connection whose code is about to be redeemed, and Unmark removes the
	// mark.
	Mark(ctx context.Context, id string) error
	Unmark(ctx context.Context, id string) error
	// Marked lists the connections that are marked.
	Marked(ctx context.Context) (ids []string, err error)
}

// stage is the progress of a connection.
type stage string

// The stages. A connection only moves forward, each step by compare-and-set, so
// that a link is opened, a state returned and a code redeemed once. The only step
// back is from redeeming, if nothing was sent to the provider.
const (
	stageCreated   stage = "created"   // the link was not opened
	stageOpened    stage = "opened"    // the browser is at the provider
	stageReturned  stage = "returned"  // the provider's code waits for the confirmation by the starter
	stageRedeeming stage = "redeeming" // one process redeems the code
	stageRedeemed  stage = "redeemed"  // the provider has granted tokens, which one process saves
	stageDone      stage = "done"      // a credential was saved
	stageFailed    stage = "failed"    // it has ended without a credential
)

const (
	stepTime       = 10 * time.Minute // from one step to the next
	maxTries       = 5                // at the confirmation
	maxConnectKeys = 16 << 10         // bytes of JSON
	confirmSize    = 8                // letters and digits of the code that a page shows: 40 bits
)

// connection is one authorization code flow of a browser. It stores only the fingerprint of each secret that
// somebody else must present.
type connection struct {
	Tenant     string              `json:"tenant"`
	Actor      events.Actor        `json:"actor"` // who started it
	Component  string              `json:"component"`
	Revision   int                 `json:"revision"`   // of the component's descriptor
	Credential string              `json:"credential"` // to connect again; "" for a new one
	KeepKeys   bool                `json:"keep_keys"`  // keep the values of the other fields
	Name       string              `json:"name"`
	Workspace  string              `json:"workspace"`
	For        *credential.ForStep `json:"for"`
	User       string              `json:"user"`
	ReturnTo   string              `json:"return_to"`
	Redirect   string              `json:"redirect"` // the redirect URI that was sent to the provider

	Stage   stage        `json:"stage"`
	Expires time.Time    `json:"expires"` // of the stage
	Tries   int          `json:"tries"`   // wrong confirmations
	Reason  string       `json:"reason"`  // the code of the error that ended it
	Says    string       `json:"says"`    // the reason as a sentence
	Done    service.Done `json:"done"`
	Holder  string       `json:"holder"`  // the process that redeems the code
	Version int          `json:"version"` // of the keys that the granted tokens replace

	Provider string `json:"provider,omitzero"` // identifies the endpoints at its start; "" if an earlier version started it

	Link    fingerprint `json:"link"`
	State   fingerprint `json:"state"`
	Opened  fingerprint `json:"opened"`  // the cookie of the browser that opened the link
	Starter fingerprint `json:"starter"` // the cookie of the browser that requested the link
	Confirm fingerprint `json:"confirm"`

	id       string
	revision uint64 // of the stored value
	keys     seal.Fields
	verifier seal.Secret
	code     seal.Secret
}

// storedConnection is the encrypted part of a connection.
type storedConnection struct {
	connection
	Keys     jsontext.Value `json:"keys"`
	Verifier string         `json:"verifier"`
	Code     string         `json:"code"`
}

// sealedConnection is the stored form of a connection.
type sealedConnection struct {
	Tenant string `json:"tenant"` // whose keyset decrypts it
	Sealed []byte `json:"sealed"`
}

// fingerprint is the SHA-256 of a secret; nil matches no secret.
type fingerprint []byte

func fingerprintOf(secret string) fingerprint {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

// of reports whether the fingerprint is that of the secret. It compares in constant
// time.
func (f fingerprint) of(secret string) bool {
	return secret != "" && subtle.ConstantTimeCompare(f, fingerprintOf(secret)) == 1
}

// newSecret generates a secret of more than 256 bits, in letters and digits.
func newSecret() string { return rand.Text() + rand.Text() }

// ConnectionID is the id of the connection of a link or state: the part
// before the dot. It is not validated.
func ConnectionID(secret string) string {
	id, _, _ := strings.Cut(secret, ".")
	return id
}

// associatedConnection is the associated data that binds a sealed connection to its tenant and id.
func associatedConnection(tenant, id string) []byte {
	return events.LengthPrefixed("credstream/connection/1", tenant, id)
}

// connection reads a connection, or ErrConnectionNotFound.
func (s *Service) connection(ctx context.Context, id string) (connection, error) {
	if s.Connections == nil {
		return connection{}, ErrConnectAbsent
	}
	if len(id) != len(events.NewID()) || !events.Plain(id) {
		return connection{}, ErrConnectionNotFound
	}
	value, revision, found, err := s.Connections.Get(ctx, id)
	switch {
	case err != nil:
		return connection{}, err
	case !found:
		return connection{}, ErrConnectionNotFound
	}
	var sealed sealedConnection
	if err := json.Unmarshal(value, &sealed); err != nil {
		return connection{}, fmt.Errorf("reading connection %s: %w", id, err)
	}
	secret, err := s.Keyring.Open(ctx, sealed.Tenant, sealed.Sealed, associatedConnection(sealed.Tenant, id))
	if err != nil {
		return connection{}, fmt.Errorf("opening connection %s: %w", id, err)
	}
	var stored storedConnection
	if json.Unmarshal(secret.Reveal(), &stored) != nil {
		return connection{}, fmt.Errorf("stored connection %s is invalid", id) // never quote it
	}
	c := stored.connection
	c.id, c.revision = id, revision
	c.verifier, c.code = seal.NewSecret([]byte(stored.Verifier)), seal.NewSecret([]byte(stored.Code))
	if c.keys, err = seal.ParseFields(stored.Keys); err != nil {
		return connection{}, fmt.Errorf("stored keys of connection %s are invalid", id)
	}
	return c, nil
}

// save stores a connection; saved is false if another process has changed it since
// it was read.
func (s *Service) save(ctx context.Context, c *connection) (saved bool, err error) {
	text, err := json.Marshal(storedConnection{
		connection: *c, Keys: c.keys.Marshal().Reveal(), Verifier: string(c.verifier.Reveal()), Code: string(c.code.Reveal()),
	})
	if err != nil {
		return false, fmt.Errorf("writing connection %s: %w", c.id, err)
	}
	sealed, err := s.Keyring.Seal(ctx, c.Tenant, seal.NewSecret(text), associatedConnection(c.Tenant, c.id))
	if err != nil {
		return false, fmt.Errorf("sealing connection %s: %w", c.id, err)
	}
	value, err := json.Marshal(sealedConnection{c.Tenant, sealed})
	if err != nil {
		return false, fmt.Errorf("writing connection %s: %w", c.id, err)
	}
	if c.revision == 0 {
		c.revision, err = s.Connections.Create(ctx, c.id, value)
		return err == nil, err
	}
	next, saved, err := s.Connections.Update(ctx, c.id, value, c.revision)
	if saved {
		c.revision = next
		s.pending.update(c)
	}
	return saved, err
}

// expired reports whether the deadline of the pending step has passed.
func (c connection) expired(now time.Time) bool {
	return c.Stage != stageDone && c.Stage != stageFailed && now.After(c.Expires)
}

// redeeming reports whether a process is redeeming the code, or has tokens for it.
func (c connection) redeeming() bool { return c.Stage == stageRedeeming || c.Stage == stageRedeemed }

// permission is the permission that the connection's result requires.
func (c connection) permission() permission.Permission { return connectPermission(c.Credential) }

func connectPermission(credential string) permission.Permission {
	if credential != "" {
		return permission.CredentialsEdit
	}
	return permission.CredentialsCreate
}

// forget removes the secrets, which are no longer needed.
func (c *connection) forget() {
	c.keys, c.verifier, c.code = seal.Fields{}, seal.Secret{}, seal.Secret{}
}

// abortTime bounds how long the event of an abort may take.
const abortTime = 5 * time.Second

// abort ends a connection and records the event, unless another process has changed the connection
// meanwhile. It returns the error for the caller.
func (s *Service) abort(ctx context.Context, c connection, why *fault.Error) error {
	c.Stage, c.Reason, c.Says = stageFailed, why.Code, why.Msg
	c.forget()
	saved, err := s.save(ctx, &c)
	switch {
	case err != nil:
		return err
	case !saved:
		return ErrConnectionBusy.WithRetryAfter(time.Second)
	}
	call := service.System(c.Tenant, "connect")
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTime)
	defer cancel()
	_, _, err = service.Execute(ctx, s.Kernel, call, aggregates.Access, c.Tenant, commands.Access(commands.RecordConnectAborted{
		Starter: c.Actor.ID, Principal: c.Actor.Kind + ":" + c.Actor.ID,
		Connection: c.id, Component: c.Component, Credential: c.Credential, User: c.User, Reason: why.Code,
	}))
	if err != nil {
		s.Logger.ErrorContext(ctx, "failed to record the end of a connection", "tenant", c.Tenant, "connection", c.id, "reason", why.Code, "err", err)
	}
	s.outcomes.WithLabelValues(why.Code).Inc()
	return why
}

// Connection is what the service shows of a connection.
type Connection struct {
	ID         string    `json:"id"`
	Component  string    `json:"component"`
	Stage      string    `json:"stage"`               // "created", "opened" by a browser, "returned" from the provider and waiting for oauth.complete, "done" or "failed"
	Expires    time.Time `json:"expires"`             // deadline of the pending step
	Credential string    `json:"credential,omitzero"` // the saved one, or the one to connect again
	Reason     string    `json:"reason,omitzero"`     // why it failed: a code of this reference
	Says       string    `json:"says,omitzero"`       // the reason as a sentence
}

type GetConnection struct {
	ID string `json:"id"`
}

func (s *Service) getConnection(ctx context.Context, call *service.Call, in GetConnection) (Connection, error) {
	c, err := s.connectionOf(ctx, call, "/id", in.ID)
	if err != nil {
		return Connection{}, err
	}
	shown := Connection{
		ID: c.id, Component: c.Component, Stage: string(c.Stage), Expires: c.Expires,
		Credential: c.Credential, Reason: c.Reason, Says: c.Says,
	}
	switch {
	case c.expired(s.Kernel.Now()):
		shown.Stage, shown.Reason, shown.Says = string(stageFailed), ErrConnectionExpired.Code, ErrConnectionExpired.Msg
	case c.redeeming():
		shown.Stage = string(stageReturned)
	case c.Stage == stageDone:
		shown.Credential = c.Done.ID
	}
	return shown, nil
}

// connectionOf reads a connection of the caller's tenant, or ErrConnectionNotFound. A key
// that is restricted to some credentials finds only the connections that it started.
func (s *Service) connectionOf(ctx context.Context, call *service.Call, pointer, id string) (connection, error) {
	if err := service.Required(pointer, id); err != nil {
		return connection{}, err
	}
	c, err := s.connection(ctx, id)
	if err == nil && (c.Tenant != call.Tenant || call.Principal.Scope.Narrow() && c.Actor != call.Principal.Actor) {
		err = ErrConnectionNotFound
	}
	if errors.Is(err, ErrConnectionNotFound) {
		err = ErrConnectionNotFound.At(pointer)
	}
	return c, err
}
