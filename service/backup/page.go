package backup

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/service/transfer"
	"github.com/credstream/credstream/vault"
)

// Page requests the next part of a backup.
type Page struct {
	Since string `json:"since,omitzero"` // of the first page: the JSON of the Position where an earlier backup ends, which this one continues
	// From is the first commit of the first page, in place of Since: the other streams are complete
	// then.
	From  uint64 `json:"from,omitzero"`
	After string `json:"after,omitzero"` // next of the previous page; without it a backup begins
}

// Part is a part of a backup.
type Part struct {
	Text  string `json:"text"`           // to be appended to the backup as it is
	Next  string `json:"next,omitzero"`  // after of the next page; absent on the last
	Done  uint64 `json:"done"`           // messages in all pages up to this one
	Total uint64 `json:"total,omitzero"` // about as many as the backup will have; on the first page
}

// Errors of the route.
var (
	ErrNoStreams = fault.New(fault.Unavailable, "backup_unsupported", "This service cannot make backups.")
	ErrCursor    = fault.New(fault.Invalid, "backup_cursor_invalid", "The cursor is not one of a backup of this service. Start the backup again.")
	ErrSince     = fault.New(fault.Precondition, "backup_since_unknown",
		"The log, the vault or the access log is not the one that the earlier backup was made of. Make a full backup.")
	ErrSinceInvalid = fault.New(fault.Invalid, "backup_since_invalid", "The position is not one of an earlier backup.")
	ErrBusy         = fault.New(fault.Unavailable, "backup_busy", "The stored data changes too quickly for a consistent backup. Retry the request.")
)

const (
	pageBytes = 512 << 10 // after which nothing more is read
	maxPage   = 4 << 20   // after which a round is not completed
	closing   = 256       // commits, and secrets, that a round may have
	rounds    = 64        // in one page
)

// The steps of a backup, in order. The log is read up to a commit, then the vault, until a round
// finds that every secret that the log names is in the backup. The keysets are read before the
// last secrets, and again if they have changed meanwhile, so that they decrypt all of them.
const (
	stepLog = iota
	stepVault
	stepClose
	stepKeysets
	stepLastSecrets
	stepAccess
	stepEnd
)

// cursor is the state of a backup between two pages. The caller keeps it, under a MAC.
type cursor struct {
	Step       int      `json:"step"`
	To         Position `json:"to"`      // read so far
	Keysets    uint64   `json:"keysets"` // read so far in this round
	KeysetsEnd uint64   `json:"keysets_end"`
	AccessEnd  uint64   `json:"access_end"`
	Counts     End      `json:"counts"`
	Sum        []byte   `json:"sum"` // states of the hashes
	KeysetsSum []byte   `json:"keysets_sum"`
}

// run is the work on one page.
type run struct {
	*Service
	cursor
	text         []byte
	sum, keysets hash.Hash
}

func (s *Service) page(ctx context.Context, call *service.Call, in Page) (out Part, err error) {
	if s.Streams == nil {
		return out, ErrNoStreams
	}
	if s.Intact != nil {
		if err := s.Intact(); err != nil {
			return out, err
		}
	}
	r := &run{Service: s, sum: sha256.New(), keysets: sha256.New()}
	if in.After == "" {
		out.Total, err = r.begin(ctx, call, in)
	} else {
		err = r.resume(ctx, call.Tenant, in.After)
	}
	for err == nil && len(r.text) < pageBytes && r.Step < stepEnd {
		err = r.step(ctx)
	}
	if err != nil {
		return out, err
	}
	out.Done = r.Counts.Commits + r.Counts.Secrets + r.Counts.Accesses
	if r.Step == stepEnd && len(r.text) < pageBytes {
		err = r.end(ctx, call.Tenant)
	} else {
		out.Next, err = r.next(ctx, call.Tenant)
	}
	out.Text = string(r.text)
	return out, err
}

// line appends a line, and adds it to a hash.
func (r *run) line(v any, sum hash.Hash) error {
	line, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return fmt.Errorf("encode a line of a backup: %w", err)
	}
	line = append(line, '\n')
	if sum != nil {
		_, _ = sum.Write(line)
	}
	r.text = append(r.text, line...)
	return nil
}

// begin checks what the backup continues, and writes the header.
func (r *run) begin(ctx context.Context, call *service.Call, in Page) (total uint64, err error) {
	places := map[string]Place{}
	for _, kind := range []string{KindVault, KindAccess, KindKeysets} {
		var p Place
		if p.Created, p.Seq, err = r.Streams.End(ctx, kind); err != nil {
			return 0, err
		}
		p.Created = p.Created.UTC()
		places[kind] = p
		if kind != KindKeysets {
			total += p.Seq
		}
	}
	end, err := r.durable(ctx)
	if err != nil {
		return 0, err
	}
	var since *Position
	switch {
	case in.Since != "":
		if json.Unmarshal([]byte(in.Since), &since, json.RejectUnknownMembers(true)) != nil || since == nil {
			return 0, ErrSinceInvalid.At("/since")
		}
	case in.From > 1:
		since = &Position{Log: in.From - 1}
	}
	r.To = Position{Vault: Place{Created: places[KindVault].Created}, Access: Place{Created: places[KindAccess].Created}}
	if since != nil {
		if since.Commit, err = r.hashOf(ctx, since.Log, end, since.Commit); err != nil {
			return 0, err
		}
		r.To.Log, r.To.Commit = since.Log, since.Commit
		for _, p := range []struct {
			since Place
			now   Place
			read  *Place
		}{{since.Vault, places[KindVault], &r.To.Vault}, {since.Access, places[KindAccess], &r.To.Access}} {
			if p.since == (Place{}) {
				continue
			}
			if !p.since.Created.Equal(p.now.Created) || p.since.Seq > p.now.Seq {
				return 0, ErrSince
			}
			p.read.Seq = p.since.Seq
		}
	}
	total += end - r.To.Log - r.To.Vault.Seq - r.To.Access.Seq
	key, err := r.Keyring.SigningKey(ctx, call.Tenant)
	if err != nil {
		return 0, err
	}
	h := Header{
		Kind: "backup", Format: Format, ID: events.NewID(), Tenant: call.Tenant, Key: transfer.FormatKey(key),
		Time: r.Kernel.Now().UTC().Truncate(time.Second), After: since,
	}
	r.Logger.InfoContext(ctx, "backup begun", "backup", h.ID, "principal", call.Principal.Actor.ID, "after", r.To.Log)
	return total, r.line(h, r.sum)
}

// durable returns the end of the log, when it is durable.
func (r *run) durable(ctx context.Context) (uint64, error) {
	end, err := r.Log.Store.End(ctx)
	if err == nil {
		err = r.Log.Store.WaitDurable(ctx, end)
	}
	return end, err
}

// hashOf returns the hash of the commit at seq. It returns ErrSince if it is not want, unless
// that is "".
func (r *run) hashOf(ctx context.Context, seq, end uint64, want string) (string, error) {
	if seq == 0 || seq > end {
		return "", ErrSince
	}
	msgs, err := r.Streams.Read(ctx, KindLog, seq-1, seq)
	if err != nil {
		return "", err
	}
	if len(msgs) != 1 || want != "" && msgs[0].SHA256() != want {
		return "", ErrSince
	}
	return msgs[0].SHA256(), nil
}

// step does a part of the current step, or begins the next one.
func (r *run) step(ctx context.Context) error {
	switch r.Step {
	case stepLog:
		end, err := r.durable(ctx)
		if err != nil || r.To.Log >= end {
			r.Step++
			return err
		}
		return r.commits(ctx, end)
	case stepVault:
		_, end, err := r.Streams.End(ctx, KindVault)
		if err != nil {
			return err
		}
		more, err := r.secrets(ctx, end, nil)
		if !more {
			r.Step++
		}
		return err
	case stepClose:
		return r.close(ctx)
	case stepKeysets:
		if r.KeysetsEnd == 0 {
			var err error
			if _, r.KeysetsEnd, err = r.Streams.End(ctx, KindKeysets); err != nil {
				return err
			}
		}
		more, err := r.read(ctx, KindKeysets, &r.Keysets, r.KeysetsEnd, &r.Counts.Keysets, r.keysets, nil)
		if !more {
			r.Step++
		}
		return err
	case stepLastSecrets:
		_, end, err := r.Streams.End(ctx, KindVault)
		if err != nil {
			return err
		}
		if more, err := r.secrets(ctx, end, nil); more || err != nil {
			return err
		}
		_, keysets, err := r.Streams.End(ctx, KindKeysets)
		switch {
		case err != nil:
			return err
		case keysets != r.KeysetsEnd:
			r.Keysets, r.KeysetsEnd, r.Step = 0, 0, stepKeysets
		default:
			r.Step++
		}
		return nil
	}
	if r.AccessEnd == 0 {
		var err error
		if _, r.AccessEnd, err = r.Streams.End(ctx, KindAccess); err != nil {
			return err
		}
	}
	more, err := r.read(ctx, KindAccess, &r.To.Access.Seq, r.AccessEnd, &r.Counts.Accesses, r.sum, nil)
	if !more {
		r.Step++
	}
	return err
}

// read writes messages after a sequence and reports whether there are more up to upTo.
func (r *run) read(ctx context.Context, kind string, after *uint64, upTo uint64, count *uint64, sum hash.Hash, each func(Message) error) (more bool, err error) {
	if *after >= upTo {
		return false, nil
	}
	msgs, err := r.Streams.Read(ctx, kind, *after, upTo)
	if err != nil {
		return false, err
	}
	for _, m := range msgs {
		m.Kind = kind
		if each != nil {
			err = each(m)
		}
		if err == nil {
			err = r.line(m, sum)
		}
		if err != nil {
			return false, err
		}
		*count++
		*after = m.Seq
	}
	if len(msgs) == 0 { // the rest was erased
		*after = upTo
	}
	return *after < upTo, nil
}

// commits writes the next commits, up to one.
func (r *run) commits(ctx context.Context, upTo uint64) error {
	next := r.To.Log + 1
	_, err := r.read(ctx, KindLog, &r.To.Log, upTo, &r.Counts.Commits, r.sum, func(m Message) error {
		if m.Seq != next {
			return fmt.Errorf("back up the log: commit %d follows commit %d: %w", m.Seq, next-1, fault.ErrUnavailable)
		}
		next++
		r.To.Commit = m.SHA256()
		return nil
	})
	if err == nil && r.To.Log != next-1 {
		err = fmt.Errorf("back up the log: commit %d is missing: %w", next, fault.ErrUnavailable)
	}
	return err
}

// secrets writes the next secrets up to a sequence, and adds their refs to seen.
func (r *run) secrets(ctx context.Context, upTo uint64, seen map[vault.Ref]bool) (more bool, err error) {
	return r.read(ctx, KindVault, &r.To.Vault.Seq, upTo, &r.Counts.Secrets, r.sum, func(m Message) error {
		if seen == nil {
			return nil
		}
		ref, err := vault.ParseSubject(m.Subject)
		seen[ref] = true
		return err
	})
}

// close ends the log where it names no secret that the backup lacks. A secret is stored before
// the commit that names it, and erased after the commit that drops it. So a round that reads the
// log to its end, and the vault after that, misses a secret only if it was erased in between, by
// a commit that the next round reads.
func (r *run) close(ctx context.Context) error {
	for range rounds {
		from := r.To.Log
		end, err := r.durable(ctx)
		if err != nil {
			return err
		}
		_, stored, err := r.Streams.End(ctx, KindVault)
		if err != nil {
			return err
		}
		if end > from+closing || stored > r.To.Vault.Seq+closing {
			r.Step = stepLog // come closer
			return nil
		}
		seen := map[vault.Ref]bool{}
		for r.To.Log < end && err == nil && len(r.text) <= maxPage {
			err = r.commits(ctx, end)
		}
		for more := true; more && err == nil && len(r.text) <= maxPage; {
			more, err = r.secrets(ctx, stored, seen)
		}
		if err != nil {
			return err
		}
		if len(r.text) > maxPage {
			r.Step = stepLog // in the next page
			return nil
		}
		whole, err := r.whole(ctx, from, end, seen)
		if err != nil {
			return err
		}
		if whole {
			r.Step++
			return nil
		}
		if len(r.text) >= pageBytes {
			return nil
		}
	}
	return ErrBusy
}

// whole reports whether every secret of the owners of the commits after from is in the vault, or
// was read in this round.
func (r *run) whole(ctx context.Context, from, end uint64, seen map[vault.Ref]bool) (bool, error) {
	owners, done := secrets.NewOwners(), map[events.StreamID]bool{}
	for seq := from + 1; seq <= end; seq++ {
		stream, _, err := r.Log.Store.Meta(ctx, seq)
		if err != nil {
			return false, err
		}
		if done[stream] || !owners.Has(stream.Category) {
			continue
		}
		done[stream] = true
		for rec, err := range r.Log.Store.Stream(ctx, stream, 0) {
			if err == nil && rec.Seq > end {
				break
			}
			if err == nil {
				err = owners.Apply(rec)
			}
			if err != nil {
				return false, err
			}
		}
	}
	var missing []vault.Ref
	owners.Required(func(ref vault.Ref) {
		if !seen[ref] {
			missing = append(missing, ref)
		}
	})
	for _, ref := range missing {
		if has, err := r.Vault.Has(ctx, ref); err != nil || !has {
			return false, err
		}
	}
	return true, nil
}

// end writes the last line.
func (r *run) end(ctx context.Context, tenant string) error {
	e := r.Counts
	e.Kind, e.To = "end", r.To
	e.SHA256, e.KeysetsSHA256 = hex.EncodeToString(r.sum.Sum(nil)), hex.EncodeToString(r.keysets.Sum(nil))
	signed, err := e.signed()
	if err != nil {
		return fmt.Errorf("encode the end of a backup: %w", err)
	}
	signature, err := r.Keyring.Sign(ctx, tenant, signed)
	if err != nil {
		return err
	}
	e.Signature = encodeSignature(signature)
	return r.line(e, nil)
}

func (s *Service) cursorMAC(ctx context.Context, tenant string, text []byte) ([]byte, error) {
	return s.Keyring.MAC(ctx, tenant, events.LengthPrefixed("credstream/backup-cursor/1", string(text)))
}

// next is the cursor of the next page.
func (r *run) next(ctx context.Context, tenant string) (string, error) {
	var err error
	if r.Sum, err = r.sum.(encoding.BinaryMarshaler).MarshalBinary(); err == nil {
		r.KeysetsSum, err = r.keysets.(encoding.BinaryMarshaler).MarshalBinary()
	}
	if err != nil {
		return "", fmt.Errorf("keep the state of a backup: %w", err)
	}
	text, err := json.Marshal(r.cursor)
	if err != nil {
		return "", fmt.Errorf("encode the cursor of a backup: %w", err)
	}
	mac, err := r.cursorMAC(ctx, tenant, text)
	return base64.RawURLEncoding.EncodeToString(append(mac, text...)), err
}

// resume continues at a cursor.
func (r *run) resume(ctx context.Context, tenant, after string) error {
	raw, err := base64.RawURLEncoding.DecodeString(after)
	if err != nil || len(raw) < sha256.Size {
		return ErrCursor.At("/after")
	}
	mac, err := r.cursorMAC(ctx, tenant, raw[sha256.Size:])
	if err != nil {
		return err
	}
	if !hmac.Equal(mac, raw[:sha256.Size]) || json.Unmarshal(raw[sha256.Size:], &r.cursor) != nil {
		return ErrCursor.At("/after")
	}
	if err = r.sum.(encoding.BinaryUnmarshaler).UnmarshalBinary(r.Sum); err == nil {
		err = r.keysets.(encoding.BinaryUnmarshaler).UnmarshalBinary(r.KeysetsSum)
	}
	if err != nil {
		return fmt.Errorf("read the state of a backup: %w", err)
	}
	return nil
}
