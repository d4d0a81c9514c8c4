package backup

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/service/transfer"
	"github.com/credstream/credstream/vault"
)

// Set is a full backup and those that continue it, in order.
type Set struct {
	Files   []*File
	Keysets *File // the keysets of the last of Files; nil if they are in it
}

// Contents are what a set restores, proven by its hashes and signatures.
type Contents struct {
	Key      string // that signed
	Tenant   string // whose key it is
	Time     time.Time
	From, To uint64 // commits
	Live     uint64 // secrets that the log references at To
	Dropped  uint64 // secrets in the files that it no longer references
	Keysets  int    // tenants
	Accesses uint64
	Counts   map[string]int // streams of the log by category
	Missing  []string       // live secrets that no file has, as category and owner

	set     *Set
	latest  map[vault.Ref]place // of each secret
	owners  *secrets.Owners
	keysets map[string]bool // of the last file, by subject
	access  int             // the first file whose access log is restored
}

// place is where a message is in a set.
type place struct {
	file int
	seq  uint64
}

var registry = events.All()

const subjectPrefix = "credstream.log" // of the stored commits, forever

// Inspect reads all files and checks them. signedBy is the key that must have signed them, as
// "credstream export key" prints it; transfer.AnySigner checks only that all have the same one.
// progress gets the number of messages read. Errors: those of File.Messages and
// transfer.CheckSigner, ErrChain, ErrKeysets, ErrSigner.
// Missing secrets are not an error. The states of all owners of secrets are kept in memory.
func (s *Set) Inspect(ctx context.Context, signedBy string, progress func(n int)) (*Contents, error) {
	c := &Contents{set: s, Counts: map[string]int{}, latest: map[vault.Ref]place{}, owners: secrets.NewOwners()}
	for i, f := range s.Files {
		var before *Position
		if i > 0 {
			before = &s.Files[i-1].Label.To
		}
		if f.Label.Part != "" || !continues(before, f.Label.After) {
			return nil, ErrChain
		}
		if f.Label.After == nil || f.Label.After.Access == (Place{}) {
			c.access = i
		}
	}
	last := s.Files[len(s.Files)-1]
	if s.Keysets != nil && (s.Keysets.Label.Part != KindKeysets || s.Keysets.Label.ID != last.Label.ID) {
		return nil, ErrKeysets.Withf("The file of --keysets was not written with the last backup file.")
	}
	n, streams, lines := 0, map[events.StreamID]bool{}, uint64(0)
	c.keysets = map[string]bool{}
	for i, f := range s.Files {
		for m, err := range f.Messages() {
			if err == nil {
				err = ctx.Err()
			}
			if err == nil {
				err = c.message(i, m, streams)
			}
			if i == len(s.Files)-1 && m.Kind == KindKeysets {
				lines++
			}
			if err != nil {
				return nil, err
			}
			if n++; n%1000 == 0 {
				progress(n)
			}
		}
		if i > 0 && f.Header.Key != s.Files[0].Header.Key {
			return nil, ErrChain.Withf("The backup files were signed by different keys, so they are not of the same installation.")
		}
		if err := transfer.CheckSigner(signedBy, f.Header.Key, ErrSigner); err != nil {
			return nil, err
		}
	}
	if s.Keysets != nil {
		for m, err := range s.Keysets.Messages() {
			if err != nil {
				return nil, err
			}
			if m.Kind != KindKeysets {
				return nil, damaged("the file of --keysets has something else")
			}
			lines++
			c.keysets[m.Subject] = true
		}
		if s.Keysets.End != last.End {
			return nil, ErrKeysets.Withf("The file of --keysets was not written with the last backup file.")
		}
	}
	if c.Keysets = len(c.keysets); lines < last.End.Keysets {
		return nil, ErrKeysets
	}
	for stream := range streams {
		c.Counts[stream.Category]++
	}
	c.Key, c.Tenant, c.Time, c.From, c.To = last.Header.Key, last.Header.Tenant, last.Header.Time, 1, last.End.To.Log
	c.owners.Required(func(ref vault.Ref) {
		c.Live++
		if _, found := c.latest[ref]; !found {
			c.Missing = append(c.Missing, ref.Category+" "+ref.Owner+" of tenant "+ref.Tenant)
		}
	})
	for ref := range c.latest {
		if !c.owners.References(ref) {
			c.Dropped++
		}
	}
	slices.Sort(c.Missing)
	c.Missing = slices.Compact(c.Missing)
	return c, nil
}

// continues reports whether a backup that begins after a position continues one that ends at
// before; nil is the beginning.
func continues(before, after *Position) bool {
	if before == nil || after == nil {
		return before == nil && after == nil
	}
	overlaps := func(after, before Place) bool {
		return after == Place{} || after.Created.Equal(before.Created) && after.Seq <= before.Seq
	}
	return before.Log == after.Log && before.Commit == after.Commit && overlaps(after.Vault, before.Vault) && overlaps(after.Access, before.Access)
}

func (c *Contents) message(file int, m Message, streams map[events.StreamID]bool) error {
	switch m.Kind {
	case KindLog:
		stream, err := events.ParseSubject(subjectPrefix, m.Subject)
		if err != nil {
			return fmt.Errorf("read commit %d of the backup: %w", m.Seq, err)
		}
		recs, err := registry.DecodeCommit(stream, m.Seq, m.Data)
		if err != nil {
			return unreadable(m.Seq, err)
		}
		streams[stream] = true
		for _, rec := range recs {
			if err := c.owners.Apply(rec); err != nil {
				return unreadable(m.Seq, err)
			}
		}
	case KindVault:
		ref, err := vault.ParseSubject(m.Subject)
		if err != nil {
			return fmt.Errorf("read a secret of the backup: %w", err)
		}
		if last := c.latest[ref]; file > last.file || m.Seq >= last.seq {
			c.latest[ref] = place{file, m.Seq}
		}
	case KindKeysets:
		if file == len(c.set.Files)-1 {
			c.keysets[m.Subject] = true
		}
	case KindAccess:
		if file >= c.access {
			c.Accesses++
		}
	}
	return nil
}

func unreadable(seq uint64, err error) error {
	return ErrFormatNewer.Withf("Commit %d of the backup cannot be read by this version of credstream (%v). Use the version that wrote it, or a later one.", seq, err)
}

// Restored calls each with the messages that a restore stores: the log; the last copy of each
// secret that the log still references at its end; the last revision of each keyset; the access
// log. An error of each ends it.
func (c *Contents) Restored(each func(Message) error) error {
	keysets := map[string]Message{}
	for i, f := range c.set.Files {
		for m, err := range f.Messages() {
			if err != nil {
				return err
			}
			switch m.Kind {
			case KindVault:
				ref, err := vault.ParseSubject(m.Subject)
				if err != nil {
					return fmt.Errorf("read a secret of the backup: %w", err)
				}
				if c.latest[ref] != (place{i, m.Seq}) || !c.owners.References(ref) {
					continue
				}
				delete(c.latest, ref) // it may be in the file twice
			case KindKeysets:
				if i == len(c.set.Files)-1 {
					keysets[m.Subject] = m
				}
				continue
			case KindAccess:
				if i < c.access {
					continue
				}
			}
			if err := each(m); err != nil {
				return err
			}
		}
	}
	if c.set.Keysets != nil {
		for m, err := range c.set.Keysets.Messages() {
			if err != nil {
				return err
			}
			keysets[m.Subject] = m
		}
	}
	for _, m := range keysets {
		if err := each(m); err != nil {
			return err
		}
	}
	return nil
}
