// Package esdbtest serves the protocol of EventStoreDB, as far as clients append, read, delete and
// subscribe, in the process of a test. It keeps the events in memory, or in a file. It shows that a
// client's code works; it does not prove what the real server does.
package esdbtest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/protos/gossip"
	features "github.com/EventStore/EventStore-Client-Go/v4/protos/serverfeatures"
	"github.com/EventStore/EventStore-Client-Go/v4/protos/shared"
	api "github.com/EventStore/EventStore-Client-Go/v4/protos/streams"
	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Version is the version of the server that clients are told.
const Version = "24.10.0"

// maxAppend is the largest event that the server takes, in bytes, as the real one by default.
const maxAppend = 1 << 20

// Event is a stored event.
type Event struct {
	ID       uuid.UUID `json:"id"`
	Stream   string    `json:"stream"`
	Revision uint64    `json:"revision"`
	Position uint64    `json:"position"`
	Type     string    `json:"type"`
	Content  string    `json:"content"`
	Created  int64     `json:"created"` // 100 ns since 1970
	Data     []byte    `json:"data"`
	Meta     []byte    `json:"meta"`
}

type stream struct {
	events     []*Event
	from       uint64 // first revision that reads return
	tombstoned bool
}

// Server is the database with its nodes. Its methods are safe for concurrent use.
type Server struct {
	nodes []*node

	mu      sync.Mutex
	all     []*Event
	streams map[string]*stream
	next    uint64        // position of the next event
	grown   chan struct{} // closed and replaced by each append
	file    *os.File      // nil: in memory only

	slow atomic.Int64 // delay of an append's answer, after it is stored
	lost atomic.Pointer[loss]
}

// node is one address of the server.
type node struct {
	api.UnimplementedStreamsServer
	features.UnimplementedServerFeaturesServer

	s      *Server
	addr   string
	leader atomic.Bool

	mu    sync.Mutex
	grpc  *grpc.Server    // nil while it is stopped
	drops context.Context // ends with the subscriptions
	drop  context.CancelFunc
}

// Options configure a Server.
type Options struct {
	Nodes int    // number of nodes; the first one leads. 0 means 1
	File  string // where events are stored, durably before an append is answered; "" is memory
}

// Start starts a server and stops it at the end of the test.
func Start(t testing.TB, opts Options) *Server {
	t.Helper()
	s := &Server{streams: map[string]*stream{}, grown: make(chan struct{}), next: 512}
	if opts.File != "" {
		if err := s.load(opts.File); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.file.Close() })
	}
	for i := range max(opts.Nodes, 1) {
		n := &node{s: s, addr: "127.0.0.1:0"}
		n.leader.Store(i == 0)
		s.nodes = append(s.nodes, n)
		if err := n.start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.stop)
	}
	return s
}

// URL is the connection string of the server.
func (s *Server) URL() string {
	addrs := make([]string, 0, len(s.nodes))
	for _, n := range s.nodes {
		addrs = append(addrs, n.addr)
	}
	return "esdb://" + strings.Join(addrs, ",") + "?tls=false"
}

// Addr is the address of the node with index i.
func (s *Server) Addr(i int) string { return s.nodes[i].addr }

// Stop closes every connection and refuses new ones until Resume.
func (s *Server) Stop() {
	for _, n := range s.nodes {
		n.stop()
	}
}

// Resume serves again, at the same addresses.
func (s *Server) Resume() error {
	for _, n := range s.nodes {
		if err := n.start(); err != nil {
			return err
		}
	}
	return nil
}

// Lead makes the node with index i the leader.
func (s *Server) Lead(i int) {
	for j, n := range s.nodes {
		n.leader.Store(i == j)
	}
}

// DropSubscriptions ends every subscription with an error.
func (s *Server) DropSubscriptions() {
	for _, n := range s.nodes {
		n.mu.Lock()
		n.drop()
		n.drops, n.drop = context.WithCancel(context.Background())
		n.mu.Unlock()
	}
}

// SlowAppends delays the answer of each append, after it is stored.
func (s *Server) SlowAppends(by time.Duration) { s.slow.Store(int64(by)) }

// loss says how the next appends are lost.
type loss struct {
	left   atomic.Int64
	stored bool
	then   func() // nil: nothing happens before the answer
}

// LoseAnswers stores the next n appends, calls then (if it is not nil) and answers that the server
// is unavailable.
func (s *Server) LoseAnswers(n int, then func()) { s.lose(n, true, then) }

// LoseRequests is LoseAnswers, but stores nothing.
func (s *Server) LoseRequests(n int, then func()) { s.lose(n, false, then) }

func (s *Server) lose(n int, stored bool, then func()) {
	l := &loss{stored: stored, then: then}
	l.left.Store(int64(n))
	s.lost.Store(l)
}

// Events returns what is stored, in log order.
func (s *Server) Events() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Event, 0, len(s.all))
	for _, e := range s.all {
		all = append(all, *e)
	}
	return all
}

// Forget removes the last n events, as a server does that lost its end.
func (s *Server) Forget(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.all[len(s.all)-n:] {
		st := s.streams[e.Stream]
		if st.events = st.events[:len(st.events)-1]; len(st.events) == 0 {
			delete(s.streams, e.Stream)
		}
	}
	s.all = s.all[:len(s.all)-n]
}

func (n *node) start() error {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", n.addr)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addr = l.Addr().String()
	n.grpc = grpc.NewServer(grpc.MaxRecvMsgSize(2 * maxAppend))
	n.drops, n.drop = context.WithCancel(context.Background())
	api.RegisterStreamsServer(n.grpc, n)
	features.RegisterServerFeaturesServer(n.grpc, n)
	gossip.RegisterGossipServer(n.grpc, gossiper{s: n.s})
	g := n.grpc
	go func() { _ = g.Serve(l) }() // ends with stop
	return nil
}

func (n *node) stop() {
	n.mu.Lock()
	g, drop := n.grpc, n.drop
	n.grpc = nil
	n.mu.Unlock()
	if g != nil {
		drop()
		g.Stop()
	}
}

func (s *Server) load(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	s.file = f
	r := bufio.NewReader(f)
	for whole := int64(0); ; {
		line, err := r.ReadBytes('\n')
		if err != nil { // a line without its end was never answered
			_ = f.Truncate(whole)
			_, err = f.Seek(whole, 0)
			return err
		}
		var e Event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		whole += int64(len(line))
		s.keep(&e)
	}
}

// keep adds e to the database. mu must be held.
func (s *Server) keep(e *Event) {
	st := s.streams[e.Stream]
	if st == nil {
		st = &stream{}
		s.streams[e.Stream] = st
	}
	st.events = append(st.events, e)
	s.all = append(s.all, e)
	s.next = e.Position + 100 + uint64(len(e.Stream)+len(e.Data)+len(e.Meta))
	if e.Type == "$streamDeleted" {
		st.tombstoned = true
	}
	if of, ok := strings.CutPrefix(e.Stream, "$$"); ok && e.Type == "$metadata" {
		var m struct {
			TB       uint64 `json:"$tb"`
			MaxCount uint64 `json:"$maxCount"`
		}
		_ = json.Unmarshal(e.Data, &m)
		if target := s.streams[of]; target != nil {
			target.from = m.TB
		}
	}
	close(s.grown)
	s.grown = make(chan struct{})
}

// write stores events at the end of a stream. mu must be held.
func (s *Server) write(name string, events ...*Event) error {
	for _, e := range events {
		st := s.streams[name]
		e.Stream, e.Position, e.Created = name, s.next, time.Now().UnixNano()/100
		if st != nil {
			e.Revision = uint64(len(st.events))
			if st.from > e.Revision { // the stream was deleted, and begins again here
				st.from = e.Revision
			}
		}
		if s.file != nil {
			line, err := json.Marshal(e)
			if err == nil {
				_, err = s.file.Write(append(line, '\n'))
			}
			if err = errors.Join(err, s.file.Sync()); err != nil {
				return status.Error(codes.Internal, err.Error())
			}
		}
		s.keep(e)
	}
	return nil
}

// expectation is the expected revision of a request.
type expectation interface {
	GetRevision() uint64
	GetNoStream() *shared.Empty
	GetAny() *shared.Empty
	GetStreamExists() *shared.Empty
}

// met reports whether the stream is as expected. mu must be held.
func (st *stream) met(want expectation) bool {
	exists := st != nil && st.from < uint64(len(st.events))
	switch {
	case want.GetAny() != nil:
		return true
	case want.GetNoStream() != nil:
		return !exists
	case want.GetStreamExists() != nil:
		return exists
	}
	return exists && uint64(len(st.events))-1 == want.GetRevision()
}

// repeats reports whether the events are those that follow the expected revision already. mu must
// be held.
func (st *stream) repeats(want expectation, events []*Event) bool {
	if st == nil || want.GetAny() != nil || want.GetStreamExists() != nil {
		return false
	}
	at := uint64(0)
	if want.GetNoStream() == nil {
		at = want.GetRevision() + 1
	}
	if at+uint64(len(events)) > uint64(len(st.events)) {
		return false
	}
	for i, e := range events {
		if st.events[at+uint64(i)].ID != e.ID {
			return false
		}
	}
	return true
}

func deleted(name string) (metadata.MD, error) {
	return metadata.Pairs("exception", "stream-deleted", "stream-name", name),
		status.Errorf(codes.FailedPrecondition, "Event stream '%s' is deleted.", name)
}

func wrongVersion(name string) (metadata.MD, error) {
	return metadata.Pairs("exception", "wrong-expected-version", "stream-name", name),
		status.Errorf(codes.FailedPrecondition, "Append failed due to WrongExpectedVersion. Stream: %s", name)
}

// led refuses a request that only the leader answers.
func (n *node) led() (metadata.MD, error) {
	if n.leader.Load() {
		return nil, nil
	}
	for _, other := range n.s.nodes {
		if other.leader.Load() {
			host, port, _ := net.SplitHostPort(other.addr)
			return metadata.Pairs("exception", "not-leader", "leader-endpoint-host", host, "leader-endpoint-port", port),
				status.Error(codes.NotFound, "Leader info available")
		}
	}
	return nil, status.Error(codes.Unavailable, "no leader")
}

// Append implements the protocol.
func (n *node) Append(in api.Streams_AppendServer) error {
	if md, err := n.led(); err != nil {
		in.SetTrailer(md)
		return err
	}
	var opts *api.AppendReq_Options
	var events []*Event
	var resp *api.AppendResp
	for {
		req, err := in.Recv()
		if err != nil {
			if opts == nil || in.Context().Err() != nil {
				return err
			}
			break
		}
		if o := req.GetOptions(); o != nil {
			opts = o
			continue
		}
		m := req.GetProposedMessage()
		if size := len(m.GetData()) + len(m.GetCustomMetadata()); size > maxAppend {
			in.SetTrailer(metadata.Pairs("exception", "maximum-append-size-exceeded", "maximum-append-size", strconv.Itoa(maxAppend)))
			return status.Errorf(codes.InvalidArgument, "Maximum Append Size of %d Exceeded.", maxAppend)
		}
		events = append(events, &Event{
			ID: idOf(m.GetId()), Type: m.GetMetadata()["type"], Content: m.GetMetadata()["content-type"], Data: m.GetData(), Meta: m.GetCustomMetadata(),
		})
	}
	name := string(opts.GetStreamIdentifier().GetStreamName())
	lost := n.s.lost.Load()
	if lost != nil && lost.left.Add(-1) < 0 {
		lost = nil
	}
	if lost == nil || lost.stored {
		var md metadata.MD
		var err error
		resp, md, err = n.s.append(name, opts, events)
		in.SetTrailer(md)
		if err != nil {
			return err
		}
	}
	if lost != nil {
		if lost.then != nil {
			lost.then()
		}
		return status.Error(codes.Unavailable, "the answer is lost")
	}
	select {
	case <-time.After(time.Duration(n.s.slow.Load())):
	case <-in.Context().Done():
		return in.Context().Err()
	}
	return in.SendAndClose(resp)
}

func (s *Server) append(name string, opts *api.AppendReq_Options, events []*Event) (*api.AppendResp, metadata.MD, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[name]
	if st != nil && st.tombstoned {
		md, err := deleted(name)
		return nil, md, err
	}
	if st.repeats(opts, events) { // a server need not tell the position of a repeated write
		last := uint64(len(events)) - 1
		if opts.GetNoStream() == nil {
			last += opts.GetRevision() + 1
		}
		return &api.AppendResp{Result: &api.AppendResp_Success_{Success: &api.AppendResp_Success{
			CurrentRevisionOption: &api.AppendResp_Success_CurrentRevision{CurrentRevision: last},
			PositionOption:        &api.AppendResp_Success_NoPosition{NoPosition: &shared.Empty{}},
		}}}, nil, nil
	}
	if !st.met(opts) {
		wrong := &api.AppendResp_WrongExpectedVersion{}
		if st == nil || len(st.events) == 0 {
			wrong.CurrentRevisionOption = &api.AppendResp_WrongExpectedVersion_CurrentNoStream{CurrentNoStream: &shared.Empty{}}
		} else {
			wrong.CurrentRevisionOption = &api.AppendResp_WrongExpectedVersion_CurrentRevision{CurrentRevision: uint64(len(st.events)) - 1}
		}
		if opts.GetNoStream() != nil {
			wrong.ExpectedRevisionOption = &api.AppendResp_WrongExpectedVersion_ExpectedNoStream{ExpectedNoStream: &shared.Empty{}}
		} else {
			wrong.ExpectedRevisionOption = &api.AppendResp_WrongExpectedVersion_ExpectedRevision{ExpectedRevision: opts.GetRevision()}
		}
		return &api.AppendResp{Result: &api.AppendResp_WrongExpectedVersion_{WrongExpectedVersion: wrong}}, nil, nil
	}
	if err := s.write(name, events...); err != nil {
		return nil, nil, err
	}
	last := s.all[len(s.all)-1]
	return &api.AppendResp{Result: &api.AppendResp_Success_{Success: &api.AppendResp_Success{
		CurrentRevisionOption: &api.AppendResp_Success_CurrentRevision{CurrentRevision: last.Revision},
		PositionOption:        &api.AppendResp_Success_Position{Position: &api.AppendResp_Position{CommitPosition: last.Position, PreparePosition: last.Position}},
	}}}, nil, nil
}

// Delete implements the protocol: the stream is empty, and may begin again.
func (n *node) Delete(ctx context.Context, req *api.DeleteReq) (*api.DeleteResp, error) {
	at, err := n.remove(ctx, string(req.GetOptions().GetStreamIdentifier().GetStreamName()), req.GetOptions(), func(name string) *Event {
		return &Event{ID: uuid.New(), Stream: "$$" + name, Type: "$metadata", Content: "application/json", Data: fmt.Appendf(nil, `{"$tb":%d}`, int64(math.MaxInt64))}
	})
	if err != nil {
		return nil, err
	}
	return &api.DeleteResp{PositionOption: &api.DeleteResp_Position_{Position: &api.DeleteResp_Position{CommitPosition: at, PreparePosition: at}}}, nil
}

// Tombstone implements the protocol: the stream never begins again.
func (n *node) Tombstone(ctx context.Context, req *api.TombstoneReq) (*api.TombstoneResp, error) {
	at, err := n.remove(ctx, string(req.GetOptions().GetStreamIdentifier().GetStreamName()), req.GetOptions(), func(name string) *Event {
		return &Event{ID: uuid.New(), Stream: name, Type: "$streamDeleted", Content: "application/octet-stream"}
	})
	if err != nil {
		return nil, err
	}
	return &api.TombstoneResp{PositionOption: &api.TombstoneResp_Position_{Position: &api.TombstoneResp_Position{CommitPosition: at, PreparePosition: at}}}, nil
}

func (n *node) remove(ctx context.Context, name string, want expectation, by func(name string) *Event) (uint64, error) {
	s := n.s
	s.mu.Lock()
	defer s.mu.Unlock()
	md, err := n.led()
	st := s.streams[name]
	switch {
	case err != nil:
	case st != nil && st.tombstoned:
		md, err = deleted(name)
	case !st.met(want):
		md, err = wrongVersion(name)
	}
	if err != nil {
		_ = grpc.SetTrailer(ctx, md)
		return 0, err
	}
	e := by(name)
	if err := s.write(e.Stream, e); err != nil {
		return 0, err
	}
	return e.Position, nil
}

// GetSupportedMethods implements the protocol. Without batchappend, clients use Append.
func (n *node) GetSupportedMethods(context.Context, *shared.Empty) (*features.SupportedMethods, error) {
	return &features.SupportedMethods{EventStoreServerVersion: Version, Methods: []*features.SupportedMethod{
		{ServiceName: "event_store.client.streams.streams", MethodName: "append"},
		{ServiceName: "event_store.client.streams.streams", MethodName: "read", Features: []string{"position", "events"}},
	}}, nil
}

// Read implements the protocol: the nodes and who leads.
func (g gossiper) Read(context.Context, *shared.Empty) (*gossip.ClusterInfo, error) {
	info := &gossip.ClusterInfo{}
	for _, n := range g.s.nodes {
		host, port, _ := net.SplitHostPort(n.addr)
		number, _ := strconv.ParseUint(port, 10, 32)
		state := gossip.MemberInfo_Follower
		if n.leader.Load() {
			state = gossip.MemberInfo_Leader
		}
		info.Members = append(info.Members, &gossip.MemberInfo{
			InstanceId: idTo(uuid.New(), false), State: state, IsAlive: true, HttpEndPoint: &gossip.EndPoint{Address: host, Port: uint32(number)},
		})
	}
	return info, nil
}

type gossiper struct {
	gossip.UnimplementedGossipServer
	s *Server
}

func idOf(id *shared.UUID) uuid.UUID {
	if s := id.GetStructured(); s != nil {
		var u uuid.UUID
		for i := range 8 {
			u[i] = byte(uint64(s.GetMostSignificantBits()) >> (56 - 8*i))
			u[8+i] = byte(uint64(s.GetLeastSignificantBits()) >> (56 - 8*i))
		}
		return u
	}
	u, _ := uuid.Parse(id.GetString_())
	return u
}

func idTo(u uuid.UUID, text bool) *shared.UUID {
	if text {
		return &shared.UUID{Value: &shared.UUID_String_{String_: u.String()}}
	}
	var most, least uint64
	for i := range 8 {
		most, least = most<<8|uint64(u[i]), least<<8|uint64(u[8+i])
	}
	return &shared.UUID{Value: &shared.UUID_Structured_{Structured: &shared.UUID_Structured{
		MostSignificantBits: int64(most), LeastSignificantBits: int64(least),
	}}}
}

func sent(e *Event, opts *api.ReadReq_Options) *api.ReadResp {
	_, text := opts.GetUuidOption().GetContent().(*api.ReadReq_Options_UUIDOption_String_)
	return &api.ReadResp{Content: &api.ReadResp_Event{Event: &api.ReadResp_ReadEvent{
		Event: &api.ReadResp_ReadEvent_RecordedEvent{
			Id: idTo(e.ID, text), StreamIdentifier: &shared.StreamIdentifier{StreamName: []byte(e.Stream)}, StreamRevision: e.Revision,
			PreparePosition: e.Position, CommitPosition: e.Position, Data: e.Data, CustomMetadata: e.Meta,
			Metadata: map[string]string{"type": e.Type, "content-type": e.Content, "created": strconv.FormatInt(e.Created, 10)},
		},
		Position: &api.ReadResp_ReadEvent_CommitPosition{CommitPosition: e.Position},
	}}}
}

// filterOf returns the filter of a request.
func filterOf(opts *api.ReadReq_Options) (func(*Event) bool, error) {
	f := opts.GetFilter()
	if f == nil {
		return func(*Event) bool { return true }, nil
	}
	of, x := func(e *Event) string { return e.Stream }, f.GetStreamIdentifier()
	if x == nil {
		of, x = func(e *Event) string { return e.Type }, f.GetEventType()
	}
	if x.GetRegex() != "" {
		re, err := regexp.Compile(x.GetRegex())
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		return func(e *Event) bool { return re.MatchString(of(e)) }, nil
	}
	return func(e *Event) bool {
		return slices.ContainsFunc(x.GetPrefix(), func(p string) bool { return strings.HasPrefix(of(e), p) })
	}, nil
}

// Read implements the protocol: reads and subscriptions.
func (n *node) Read(req *api.ReadReq, out api.Streams_ReadServer) error {
	opts := req.GetOptions()
	if md, _ := metadata.FromIncomingContext(out.Context()); slices.Contains(md.Get("requires-leader"), "true") {
		if md, err := n.led(); err != nil {
			out.SetTrailer(md)
			return err
		}
	}
	keep, err := filterOf(opts)
	if err != nil {
		return err
	}
	if opts.GetSubscription() != nil {
		return n.subscribe(opts, keep, out)
	}
	events, md, missing, err := n.s.read(opts)
	out.SetTrailer(md)
	switch {
	case err != nil:
		return err
	case missing != "":
		return out.Send(&api.ReadResp{Content: &api.ReadResp_StreamNotFound_{StreamNotFound: &api.ReadResp_StreamNotFound{
			StreamIdentifier: &shared.StreamIdentifier{StreamName: []byte(missing)},
		}}})
	}
	left := opts.GetCount()
	for _, e := range events {
		if left == 0 {
			break
		}
		if keep(e) {
			left--
			if err := out.Send(sent(e, opts)); err != nil {
				return err
			}
		}
	}
	return nil
}

// read returns the events that a read begins with, in its order.
func (s *Server) read(opts *api.ReadReq_Options) (events []*Event, md metadata.MD, missing string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	back := opts.GetReadDirection() == api.ReadReq_Options_Backwards
	if all := opts.GetAll(); all != nil {
		i := 0
		switch at := all.GetPosition(); {
		case all.GetEnd() != nil:
			i = len(s.all)
		case at != nil:
			if i, err = s.index(at.GetCommitPosition()); err != nil {
				return nil, nil, "", err
			}
		}
		if back {
			events = slices.Clone(s.all[:i])
			slices.Reverse(events)
			return events, nil, "", nil
		}
		return slices.Clone(s.all[i:]), nil, "", nil
	}
	name := string(opts.GetStream().GetStreamIdentifier().GetStreamName())
	st := s.streams[name]
	switch {
	case st != nil && st.tombstoned:
		md, err := deleted(name)
		return nil, md, "", err
	case st == nil || st.from >= uint64(len(st.events)):
		return nil, nil, name, nil
	}
	from, at := st.from, opts.GetStream().GetRevision()
	switch {
	case back && opts.GetStream().GetEnd() == nil:
		events = slices.Clone(st.events[from:min(at+1, uint64(len(st.events)))])
	case !back && opts.GetStream().GetStart() == nil:
		events = slices.Clone(st.events[min(max(from, at), uint64(len(st.events))):])
	default:
		events = slices.Clone(st.events[from:])
	}
	if back {
		slices.Reverse(events)
	}
	return events, nil, "", nil
}

// index returns the index of the event at position; only positions of events, and the end, are
// valid. mu must be held.
func (s *Server) index(position uint64) (int, error) {
	i, found := slices.BinarySearchFunc(s.all, position, func(e *Event, p uint64) int {
		switch {
		case e.Position < p:
			return -1
		case e.Position > p:
			return 1
		}
		return 0
	})
	if !found && position != s.next && position != 0 {
		return 0, status.Error(codes.InvalidArgument, "Trying to read from an invalid position.")
	}
	return i, nil
}

func (n *node) subscribe(opts *api.ReadReq_Options, keep func(*Event) bool, out api.Streams_ReadServer) error {
	s := n.s
	n.mu.Lock()
	dropped := n.drops
	n.mu.Unlock()
	name, of := string(opts.GetStream().GetStreamIdentifier().GetStreamName()), opts.GetStream()
	s.mu.Lock()
	next := 0
	var err error
	switch all := opts.GetAll(); {
	case all.GetEnd() != nil || of.GetEnd() != nil:
		next = len(s.all)
	case all.GetPosition() != nil:
		if next, err = s.index(all.GetPosition().GetCommitPosition()); err == nil && next < len(s.all) && s.all[next].Position == all.GetPosition().GetCommitPosition() {
			next++ // after that event
		}
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if err := out.Send(&api.ReadResp{Content: &api.ReadResp_Confirmation{Confirmation: &api.ReadResp_SubscriptionConfirmation{SubscriptionId: uuid.NewString()}}}); err != nil {
		return err
	}
	window := uint64(opts.GetFilter().GetMax()) * uint64(max(opts.GetFilter().GetCheckpointIntervalMultiplier(), 1))
	for scanned, live := uint64(0), false; ; {
		s.mu.Lock()
		events, grown := slices.Clone(s.all[min(next, len(s.all)):]), s.grown
		s.mu.Unlock()
		next += len(events)
		for _, e := range events {
			scanned++
			if of != nil && (e.Stream != name || of.GetStart() == nil && of.GetEnd() == nil && e.Revision <= of.GetRevision()) {
				continue
			}
			if keep(e) {
				if err := out.Send(sent(e, opts)); err != nil {
					return err
				}
			}
			if window > 0 && scanned%window == 0 {
				if err := out.Send(&api.ReadResp{Content: &api.ReadResp_Checkpoint_{Checkpoint: &api.ReadResp_Checkpoint{CommitPosition: e.Position, PreparePosition: e.Position}}}); err != nil {
					return err
				}
			}
		}
		if !live {
			live = true
			if err := out.Send(&api.ReadResp{Content: &api.ReadResp_CaughtUp_{CaughtUp: &api.ReadResp_CaughtUp{}}}); err != nil {
				return err
			}
		}
		select {
		case <-grown:
		case <-out.Context().Done():
			return out.Context().Err()
		case <-dropped.Done():
			return status.Error(codes.Unavailable, "the subscription is dropped")
		}
	}
}
