package seal

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/credstream/credstream/jsapi"
	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// kvKeysets is a KeysetStore over a JetStream key-value bucket, with one key per tenant.
type kvKeysets struct {
	js      jetstream.JetStream
	kv      jetstream.KeyValue
	sync    func(context.Context) error
	durable atomic.Uint64 // revisions up to this one are durable
}

// NewKVKeysets returns a KeysetStore over kv, a bucket of js whose keys are the tenants. sync
// returns when everything that was written to the bucket before the call is durable; nil means
// that the server fsyncs before it answers.
func NewKVKeysets(js jetstream.JetStream, kv jetstream.KeyValue, sync func(context.Context) error) KeysetStore {
	return &kvKeysets{js: js, kv: kv, sync: sync}
}

// Keyset implements KeysetStore. It fsyncs an entry whose writer may not have done so yet:
// nobody may encrypt with keys that a power cut could lose.
func (s *kvKeysets) Keyset(ctx context.Context, tenant string) (wrapped []byte, revision uint64, err error) {
	entry, err := s.kv.Get(ctx, tenant)
	switch {
	case err == nil:
		wrapped, revision = entry.Value(), entry.Revision()
	case errors.Is(err, jetstream.ErrKeyNotFound): // on the replica that answered, which may be behind
		wrapped, revision, err = s.fromLeader(ctx, tenant)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("reading key %s: %w", tenant, err)
	}
	if err := s.waitDurable(ctx, revision); err != nil {
		return nil, 0, err
	}
	return wrapped, revision, nil
}

// leaderTime is the timeout of a request whose context has no deadline.
const leaderTime = 5 * time.Second

// fromLeader reads the tenant's entry from the leader of the bucket's stream. Only the leader
// can report that there is none.
func (s *kvKeysets) fromLeader(ctx context.Context, tenant string) (wrapped []byte, revision uint64, err error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, leaderTime)
		defer cancel()
	}
	api := jetstream.DefaultAPIPrefix
	switch opts := s.js.Options(); {
	case opts.APIPrefix != "":
		api = strings.TrimSuffix(opts.APIPrefix, ".") + "."
	case opts.Domain != "":
		api = "$JS." + opts.Domain + ".API."
	}
	question, err := json.Marshal(map[string]string{"last_by_subj": "$KV." + s.kv.Bucket() + "." + tenant})
	if err != nil {
		return nil, 0, err
	}
	reply, err := s.js.Conn().RequestWithContext(ctx, api+"STREAM.MSG.GET.KV_"+s.kv.Bucket(), question)
	if err != nil {
		return nil, 0, err
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Seq    uint64 `json:"seq"`
			Header []byte `json:"hdrs"`
			Data   []byte `json:"data"`
		} `json:"message"`
	}
	err = json.Unmarshal(reply.Data, &answer)
	switch {
	case err != nil:
		return nil, 0, err
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, 0, ErrNoKeyset
	case answer.Error != nil:
		return nil, 0, answer.Error
	}
	header, err := nats.DecodeHeadersMsg(answer.Message.Header)
	if err != nil {
		return nil, 0, err
	}
	if header.Get("KV-Operation") != "" { // it was deleted
		return nil, 0, ErrNoKeyset
	}
	return answer.Message.Data, answer.Message.Seq, nil
}

func (s *kvKeysets) CreateKeyset(ctx context.Context, tenant string, wrapped []byte) error {
	revision, err := s.kv.Create(ctx, tenant, wrapped)
	if lostRace(err) {
		return ErrKeysetExists
	}
	if err != nil {
		return fmt.Errorf("creating key %s: %w", tenant, err)
	}
	return s.waitDurable(ctx, revision)
}

func (s *kvKeysets) UpdateKeyset(ctx context.Context, tenant string, wrapped []byte, revision uint64) error {
	revision, err := s.kv.Update(ctx, tenant, wrapped, revision)
	if lostRace(err) {
		return ErrKeysetExists
	}
	if err != nil {
		return fmt.Errorf("updating key %s: %w", tenant, err)
	}
	return s.waitDurable(ctx, revision)
}

// lostRace reports whether a write failed because the revision had changed.
func lostRace(err error) bool { return errors.Is(err, jetstream.ErrKeyExists) || jsapi.WrongLast(err) }

func (s *kvKeysets) waitDurable(ctx context.Context, revision uint64) error {
	if s.sync == nil || revision <= s.durable.Load() {
		return nil
	}
	if err := s.sync(ctx); err != nil {
		return fmt.Errorf("syncing the keysets: %w", err)
	}
	for {
		known := s.durable.Load()
		if known >= revision || s.durable.CompareAndSwap(known, revision) {
			return nil
		}
	}
}
