package app

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/bus/storage"
	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/vault"
)

// The errors of CheckFolder and of its caller.
var (
	// ErrNoLog refuses a folder without a log.
	ErrNoLog = fault.New(fault.NotFound, "log_not_found", "The folder has no log.")
	// ErrFolderDamaged summarizes a FolderCheck that is not intact.
	ErrFolderDamaged = fault.New(fault.Precondition, "data_folder_damaged", "The data folder is damaged.")
)

// FolderCheck is the result of CheckFolder.
type FolderCheck struct {
	Intact   bool           `json:"intact"`
	InUse    bool           `json:"in_use"`  // a service has the folder open
	Commits  uint64         `json:"commits"` // last sequence of the log
	Streams  []StreamCheck  `json:"streams"`
	Damages  []FolderDamage `json:"damages"`  // the log's first, each stream's in order
	Affected []Affected     `json:"affected"` // whatever has lost a commit, a secret or a key
}

// StreamCheck is what a stream holds.
type StreamCheck struct {
	Stream   string `json:"stream"`
	Messages int    `json:"messages"`
	Last     uint64 `json:"last"` // highest sequence of a message
}

// FolderDamage is one place that is damaged.
type FolderDamage struct {
	Stream string `json:"stream"`
	File   string `json:"file,omitempty"`
	Byte   int    `json:"byte"`
	From   uint64 `json:"from,omitempty"` // first missing or wrong sequence; 0: unknown
	To     uint64 `json:"to,omitempty"`   // last one
	Reason string `json:"reason"`
}

// Affected is an aggregate that lost data.
type Affected struct {
	Tenant   string `json:"tenant"`
	Category string `json:"category"` // credential, component, ...
	ID       string `json:"id"`
	Reason   string `json:"reason"`
}

// CheckFolder reads all streams of a data folder and compares them with each other and with the
// recorded positions. It changes nothing, and needs no key: nothing is decrypted. A service may
// use the folder: what is found then is verified a second time, since data changes meanwhile.
// It works with the embedded server's files only.
func CheckFolder(ctx context.Context, data string) (FolderCheck, error) {
	first, err := checkFolder(ctx, data)
	if err != nil || first.Intact {
		return first, err
	}
	if lock, err := natsserver.LockFolder(data); err == nil {
		_ = lock.Close() // nobody has the folder open
		return first, nil
	}
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return first, ctx.Err()
	}
	second, err := checkFolder(ctx, data)
	second.InUse = true
	second.Damages = slices.DeleteFunc(second.Damages, func(d FolderDamage) bool { return !slices.Contains(first.Damages, d) })
	second.Affected = slices.DeleteFunc(second.Affected, func(a Affected) bool { return !slices.Contains(first.Affected, a) })
	second.Intact = len(second.Damages) == 0 && len(second.Affected) == 0
	return second, err
}

// folderCheck is the state of one check.
type folderCheck struct {
	ctx      context.Context
	data     string
	streams  string // the folder of the streams
	result   FolderCheck
	log      map[uint64]bool                // the sequences of the log
	missing  map[uint64]bool                // those that should be there
	owners   map[events.StreamID][][]byte   // the bodies of the commits of streams that have secrets, in order
	seqs     map[events.StreamID][]uint64   // their sequences
	tenants  []string                       // of the log
	erased   map[string]bool                // tenants that are erased or being erased
	affected map[events.StreamID]bool       // already in the result
	secrets  map[events.StreamID][]string   // what the vault holds
	marks    map[string]storage.MarkedState // read before the streams
}

func checkFolder(ctx context.Context, data string) (FolderCheck, error) {
	c := &folderCheck{
		ctx: ctx, data: data, streams: natsserver.StreamsDir(data),
		log: map[uint64]bool{}, missing: map[uint64]bool{}, owners: map[events.StreamID][][]byte{}, seqs: map[events.StreamID][]uint64{},
		erased: map[string]bool{}, affected: map[events.StreamID]bool{}, secrets: map[events.StreamID][]string{},
		result: FolderCheck{Streams: []StreamCheck{}, Damages: []FolderDamage{}, Affected: []Affected{}},
	}
	if _, err := os.Stat(c.streams); err != nil {
		return c.result, ErrNoLog.Withf("The folder %s has no log of a service with the embedded NATS server.", data)
	}
	var err error
	if c.marks, err = storage.ReadMarks(filepath.Join(data, "marks.json")); err != nil {
		return c.result, err
	}
	highWater := eventlog.ReadHighWater(filepath.Join(data, "high-water.json"))
	for _, step := range []func() error{
		func() error { return c.readLog(highWater) },
		c.affectedCommits,
		c.readVault,
		c.readKeysets,
		c.readOthers,
	} {
		if err := step(); err != nil {
			return c.result, err
		}
	}
	c.result.Intact = len(c.result.Damages) == 0 && len(c.result.Affected) == 0
	return c.result, nil
}

func (c *folderCheck) damage(d FolderDamage) { c.result.Damages = append(c.result.Damages, d) }

func (c *folderCheck) affect(of events.StreamID, format string, args ...any) {
	if !c.affected[of] {
		c.affected[of] = true
		c.result.Affected = append(c.result.Affected, Affected{of.Tenant, of.Category, of.ID, fmt.Sprintf(format, args...)})
	}
}

// walk reads a stream, records what is unreadable, and compares its end with its mark. It reports
// subjects that the unreadable parts name.
func (c *folderCheck) walk(stream string, durable uint64, visit func(storage.Message) error, named func(subject string)) error {
	read := StreamCheck{Stream: stream}
	end := uint64(0) // also of erased messages
	mark := c.marks[stream]
	sum := ""
	err := storage.Walk(c.streams, stream, max(durable, mark.Last), func(m storage.Message) error {
		if read.Messages%1024 == 0 && c.ctx.Err() != nil {
			return c.ctx.Err()
		}
		if end = max(end, m.Seq); m.Erased {
			return nil
		}
		read.Messages++
		read.Last = max(read.Last, m.Seq)
		if m.Seq == mark.Last {
			sum = storage.MessageSum(m.Subject, m.Body)
		}
		return visit(m)
	}, func(u storage.Unreadable) {
		c.damage(FolderDamage{Stream: stream, File: u.File, Byte: u.At, From: end + 1, Reason: fmt.Sprintf("%d bytes cannot be read", len(u.Text))})
		if named != nil {
			for _, subject := range subjectIn.FindAllString(string(u.Text), -1) {
				named(subject)
			}
		}
	})
	if err != nil {
		return err
	}
	c.result.Streams = append(c.result.Streams, read)
	whole, err := storage.VerifyMeta(c.streams, stream)
	switch {
	case err != nil:
		return err
	case !whole && (read.Messages > 0 || mark.Last > 0):
		c.damage(FolderDamage{Stream: stream, File: "meta.inf", Reason: "the description of the stream is missing or damaged"})
	}
	switch {
	case end < mark.Last && (stream == vault.Stream || stream == keyStream || stream == kv.AccessStream): // elsewhere messages are removed without a trace in the file
		c.damage(FolderDamage{Stream: stream, From: end + 1, To: mark.Last, Reason: "the end is missing"})
	case sum != "" && mark.Sum != "" && sum != mark.Sum:
		c.damage(FolderDamage{Stream: stream, From: mark.Last, To: mark.Last, Reason: "another message than the recorded one"})
	}
	return nil
}

// subjectIn finds the subjects of the service in unreadable bytes.
var subjectIn = regexp.MustCompile(`credstream\.(?:log|vault)\.[A-Za-z0-9_-]+\.[a-z_-]+\.[A-Za-z0-9_=-]+(?:\.[A-Za-z0-9_-]+)?`)

func (c *folderCheck) readLog(highWater eventlog.Mark) error {
	sum, last := "", uint64(0)
	err := c.walk(eventlog.Stream, highWater.Seq, func(m storage.Message) error {
		c.log[m.Seq] = true
		last = max(last, m.Seq)
		if m.Seq == highWater.Seq {
			hash := sha256.Sum256(m.Body)
			sum = hex.EncodeToString(hash[:])
		}
		var recs []events.Record
		stream, err := events.ParseSubject(eventlog.Prefix, m.Subject)
		if err == nil {
			recs, err = events.All().DecodeCommit(stream, m.Seq, m.Body)
		}
		if err != nil {
			c.damage(FolderDamage{Stream: eventlog.Stream, From: m.Seq, To: m.Seq, Reason: "the commit cannot be decoded: " + err.Error()})
			if stream.ID != "" {
				c.affect(stream, "commit %d cannot be decoded", m.Seq)
			}
			return nil
		}
		switch stream.Category {
		case aggregates.Credential.Category, aggregates.OAuthClient.Category, aggregates.AuthClient.Category, aggregates.Component.Category, aggregates.ConnectorSecret.Category:
			c.owners[stream], c.seqs[stream] = append(c.owners[stream], slices.Clone(m.Body)), append(c.seqs[stream], m.Seq)
		case aggregates.Tenant.Category:
			if !slices.Contains(c.tenants, stream.ID) {
				c.tenants = append(c.tenants, stream.ID)
			}
			for _, r := range recs {
				if _, erased := r.Event.(events.TenantErasureStarted); erased {
					c.erased[stream.ID] = true // its keyset is destroyed sooner or later
				}
			}
		}
		return nil
	}, func(subject string) {
		if stream, err := events.ParseSubject(eventlog.Prefix, subject); err == nil {
			c.affect(stream, "a commit cannot be read")
		}
	})
	if err != nil {
		return err
	}
	c.result.Commits = last
	if sum != "" && sum != highWater.SHA256 {
		c.damage(FolderDamage{Stream: eventlog.Stream, From: highWater.Seq, To: highWater.Seq, Reason: "another commit than the recorded one"})
	}
	for seq := uint64(1); seq <= max(last, highWater.Seq); seq++ {
		if c.log[seq] {
			continue
		}
		from := seq
		for seq <= max(last, highWater.Seq) && !c.log[seq] {
			c.missing[seq] = true
			seq++
		}
		c.damage(FolderDamage{Stream: eventlog.Stream, From: from, To: seq - 1, Reason: "commits are missing"})
	}
	return nil
}

// affectedCommits finds whose commits are missing: later commits of a stream name its earlier ones,
// and so do the events in the feed and in the audit stream.
func (c *folderCheck) affectedCommits() error {
	end := c.result.Commits
	err := storage.Walk(c.streams, eventlog.Stream, 0, func(m storage.Message) error {
		if len(c.missing) == 0 || m.Erased {
			return nil
		}
		h, err := nats.DecodeHeadersMsg(m.Header)
		stream, err2 := events.ParseSubject(eventlog.Prefix, m.Subject)
		if errors.Join(err, err2) != nil {
			return nil //nolint:nilerr // readLog reports it
		}
		for seq := range strings.SplitSeq(h.Get(eventlog.HeaderPrev), ",") {
			if n, err := strconv.ParseUint(seq, 10, 64); err == nil && c.missing[n] {
				c.affect(stream, "commit %d is missing", n)
			}
		}
		return nil
	}, func(storage.Unreadable) {})
	if err != nil {
		return err
	}
	beyond := uint64(0)
	for _, feed := range []string{streams.FeedStream, streams.AuditStream} {
		err := storage.Walk(c.streams, feed, 0, func(m storage.Message) error {
			h, err := nats.DecodeHeadersMsg(m.Header)
			if m.Erased || err != nil {
				return nil //nolint:nilerr // the feed is rebuilt from the log
			}
			seq, err := strconv.ParseUint(h.Get(projections.HeaderLogSeq), 10, 64)
			if err != nil || !c.missing[seq] && seq <= end {
				return nil //nolint:nilerr // as above
			}
			beyond = max(beyond, seq)
			tenant := h.Get("ce-tenant")
			if category, id, ok := strings.Cut(h.Get("ce-subject"), "."); ok && tenant != "" {
				c.affect(events.StreamID{Tenant: tenant, Category: category, ID: id}, "commit %d is missing", seq)
			}
			return nil
		}, func(storage.Unreadable) {})
		if err != nil {
			return err
		}
	}
	if beyond > end && !c.missing[beyond] {
		c.damage(FolderDamage{Stream: eventlog.Stream, From: end + 1, To: beyond, Reason: "commits that are in the feed are missing"})
	}
	return nil
}

func (c *folderCheck) readVault() error {
	err := c.walk(vault.Stream, 0, func(m storage.Message) error {
		ref, err := vault.ParseSubject(m.Subject)
		if err != nil {
			c.damage(FolderDamage{Stream: vault.Stream, From: m.Seq, To: m.Seq, Reason: err.Error()})
			return nil
		}
		of := events.StreamID{Tenant: ref.Tenant, Category: ref.Category, ID: ref.Owner}
		c.secrets[of] = append(c.secrets[of], ref.SecretID)
		return nil
	}, func(subject string) {
		if ref, err := vault.ParseSubject(subject); err == nil {
			c.affect(events.StreamID{Tenant: ref.Tenant, Category: ref.Category, ID: ref.Owner}, "a secret cannot be read")
		}
	})
	if err != nil {
		return err
	}
	for stream := range c.owners {
		switch stream.Category {
		case aggregates.Credential.Category:
			lostSecrets(c, aggregates.Credential, stream, aggregates.CredentialState.StoredSecrets)
		case aggregates.OAuthClient.Category:
			lostSecrets(c, aggregates.OAuthClient, stream, aggregates.OAuthClientState.Secrets)
		case aggregates.AuthClient.Category:
			lostSecrets(c, aggregates.AuthClient, stream, aggregates.AuthClientState.Secrets)
		case aggregates.Component.Category:
			lostSecrets(c, aggregates.Component, stream, aggregates.ComponentState.Secrets)
		case aggregates.ConnectorSecret.Category:
			lostSecrets(c, aggregates.ConnectorSecret, stream, aggregates.ConnectorSecretState.Secrets)
		}
	}
	return nil
}

// lostSecrets reports an owner with a secret, as returned by stored, that the vault lacks. The
// state is that of the readable commits.
func lostSecrets[S interface{ References(string) bool }, C commands.Command, E any](c *folderCheck, d aggregates.Decider[S, C, E], stream events.StreamID, stored func(S) []string) {
	var state S
	owner := stream
	for i, body := range c.owners[stream] {
		recs, err := events.All().DecodeCommit(stream, c.seqs[stream][i], body)
		if err != nil {
			return
		}
		owner.Tenant = recs[0].Meta.Tenant
		for _, r := range recs {
			if e, ok := r.Event.(E); ok {
				state = d.Evolve(state, e)
			}
		}
	}
	for _, id := range stored(state) {
		if id != "" && state.References(id) && !slices.Contains(c.secrets[owner], id) {
			c.affect(owner, "a secret is missing in the vault")
		}
	}
}

func (c *folderCheck) readKeysets() error {
	prefix := "$KV." + keyBucket + "."
	have := map[string]bool{}
	err := c.walk(keyStream, 0, func(m storage.Message) error {
		have[strings.TrimPrefix(m.Subject, prefix)] = len(m.Body) > 0
		return nil
	}, nil)
	for _, tenant := range c.tenants {
		if !have[tenant] && !c.erased[tenant] {
			c.affect(events.StreamID{Tenant: events.System, Category: aggregates.Tenant.Category, ID: tenant}, "the keyset is missing: no secret of the tenant can be decrypted")
		}
	}
	return err
}

// readOthers reads the other streams that cannot be rebuilt. Derived ones are rebuilt by the next start.
func (c *folderCheck) readOthers() error {
	for _, stream := range keptStreams {
		if stream == vault.Stream || stream == keyStream {
			continue
		}
		if _, err := os.Stat(filepath.Join(c.streams, stream)); errors.Is(err, fs.ErrNotExist) && c.marks[stream].Last == 0 {
			continue
		}
		first, last, n := uint64(0), uint64(0), uint64(0)
		err := c.walk(stream, 0, func(m storage.Message) error {
			if n == 0 {
				first = m.Seq
			}
			last = m.Seq
			n++
			return nil
		}, nil)
		if err != nil {
			return err
		}
		if stream == kv.AccessStream && n > 0 && last-first+1 != n {
			c.damage(FolderDamage{Stream: stream, From: first, To: last, Reason: fmt.Sprintf("%d messages are missing", last-first+1-n)})
		}
	}
	return nil
}

// Err is ErrFolderDamaged with the first damage, or nil.
func (c FolderCheck) Err() error {
	switch {
	case c.Intact:
		return nil
	case len(c.Damages) == 0:
		return ErrFolderDamaged.Withf("The data folder is damaged: %s %s of tenant %s: %s. Restore it from a backup.", c.Affected[0].Category, c.Affected[0].ID, c.Affected[0].Tenant, c.Affected[0].Reason)
	}
	return ErrFolderDamaged.Withf("The data folder is damaged. The first damage is in the stream %s: %s. Restore the folder from a backup.", c.Damages[0].Stream, c.Damages[0].String())
}

// String is the damage in words, without its stream.
func (d FolderDamage) String() string {
	var b strings.Builder
	b.WriteString(d.Reason)
	if d.File != "" {
		fmt.Fprintf(&b, ", file %s", d.File)
		if strings.HasSuffix(d.File, ".blk") {
			fmt.Fprintf(&b, ", byte %d", d.Byte)
		}
	}
	switch {
	case d.From > 0 && d.To > d.From:
		fmt.Fprintf(&b, ", sequences %d to %d", d.From, d.To)
	case d.From > 0 && d.To == d.From:
		fmt.Fprintf(&b, ", sequence %d", d.From)
	case d.From > 0:
		fmt.Fprintf(&b, ", from sequence %d", d.From)
	}
	return b.String()
}
