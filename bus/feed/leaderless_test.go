package feed_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/credstream/credstream/jsapi"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/feed"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/events"
	eventlog "github.com/credstream/credstream/events/jetstream"
)

// Servers that have no leader refuse what they are asked for, and not by silence (503, 10008).
// Who follows the log, the feed and the in-use index begin meanwhile, and go on by
// themselves when there is one.
func TestPartsGoOnAfterServersWithoutALeader(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t, bustest.Nodes(3))
	js, err := jetstream.New(bustest.Host(t, s, 0), jetstream.WithPublishAsyncTimeout(streams.AckTimeout))
	if err != nil {
		t.Fatal(err)
	}
	made := func(is func() error) func() bool { return func() bool { return is() == nil } }
	said := &bustest.LogBuffer{}
	var store *eventlog.Store
	bustest.Eventually(t, "the streams", made(func() (err error) {
		if store == nil {
			cfg := eventlog.Config{Conn: bustest.Host(t, s, 0), Registry: events.All(), Replicas: 3, Logger: said.Logger()}
			if store, err = eventlog.Open(t.Context(), cfg); err != nil {
				return err
			}
			t.Cleanup(store.Close)
		}
		if _, err = jsapi.EnsureStream(t.Context(), js, feed.Config(3)); err != nil {
			return err
		}
		_, err = natsserver.EnsureBucket(t.Context(), js, feed.InUseConfig(3))
		return err
	}))
	u := usage{t, store}
	u.create("c1")
	u.use("c1", "f", true)

	s.Kill(1)
	s.Kill(2)
	refused := func(err error) bool {
		api, ok := errors.AsType[*jetstream.APIError](err)
		return ok && api.Code == 503 && api.ErrorCode == 10008
	}
	bustest.Eventually(t, "the server to refuse", func() bool {
		_, err := js.AccountInfo(t.Context())
		return refused(err)
	})
	r := newReplica(t, js, store) // follows the log for the in-use index, too
	writer := feed.NewFeed(js, store, 3, said.Logger())
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- writer.Run(ctx) }()
	r.run()
	for part, hears := range map[string]func() bool{
		"who follows the log": func() bool { return heard(said, "cannot follow the log yet") },
		"the feed":            func() bool { return heard(said, "feed resumes") },
		"the in-use index":    func() bool { return heard(r.said, "in-use index: comparing") },
	} {
		bustest.Eventually(t, part+" to be refused", hears)
	}

	s.StartNode(1)
	s.StartNode(2)
	s.Ready()
	last := u.use("c1", "g", true)
	r.reached(last)
	bustest.Eventually(t, "the feed to reach the end", func() bool { return writer.Position() >= last })
	if diff := cmp.Diff(r.wanted(), held(t, js)); diff != "" {
		t.Error(diff)
	}
	if err := errors.Join(writer.Err(), r.inUse.Err(), r.proj.Err()); err != nil {
		t.Errorf("it goes on and is said to stand still: %v", err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// heard reports whether a log holds a line with a message about servers without a leader.
func heard(said *bustest.LogBuffer, msg string) bool {
	for line := range strings.SplitSeq(said.String(), "\n") {
		if strings.Contains(line, msg) && (strings.Contains(line, "err_code=10008") || strings.Contains(line, "JetStream system temporarily unavailable")) {
			return true
		}
	}
	return false
}
