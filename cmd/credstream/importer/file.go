package importer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"slices"

	"filippo.io/age"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/transfer"
)

// Errors of a file. They quote nothing of it but the number of a line.
var (
	ErrFile      = fault.New(fault.Unprocessable, "import_file_invalid", "The file is not a credstream export, or it is damaged.")
	ErrCut       = fault.New(fault.Unprocessable, "import_file_cut", "The file is not complete: its last line, with the signature, is missing. Export again.")
	ErrSignature = fault.New(fault.Unprocessable, "import_signature_invalid", "The signature does not match: the file was changed after it was exported. Export again.")
	ErrSigner    = fault.New(fault.Unprocessable, "import_signer_unexpected", "The file is signed by another key than --signed-by names.")
	ErrNewer     = fault.New(fault.Unprocessable, "import_format_newer", "The file has a newer format than this program knows. Use a newer credstream.")
	ErrLine      = fault.New(fault.Unprocessable, "import_line_too_long", "A line of the file is longer than 8 MiB.")
	ErrRepeated  = fault.New(fault.Unprocessable, "import_item_repeated", "Two items of the same kind have the same id.")
	ErrChanged   = fault.New(fault.Conflict, "import_file_changed", "The file was changed while it was being imported. Nothing of its changed part was imported. Import again.")
	ErrIdentity  = fault.New(fault.Invalid, "import_identity_missing", "The file has sealed secrets. Give the age identity that opens them: --identity FILE.")
)

// maxLine is the longest line of a file, in bytes.
const maxLine = 8 << 20

// Item is one thing to import.
type Item struct {
	Kind    string      // as transfer names them
	ID      string      // in the source; "" when the source has none
	Facts   any         // a transfer.Component, a transfer.Credential, ...
	Keys    client.Keys // the secrets, if HasKeys
	HasKeys bool
	Missing []string // names of secrets that the source does not hold
	Err     error    // why it cannot be imported at all

	sealed bool // the file holds its secrets, sealed
}

// Source yields the items to import, again each time.
type Source interface {
	Items(ctx context.Context) iter.Seq2[Item, error]
	// Total is the number of items; 0 when it is not known.
	Total() int
}

// File is a verified export file.
type File struct {
	Header     transfer.Header
	sealed     int
	items      int
	sums       [][16]byte // of each line that Open has verified; nil before
	file       io.ReadSeeker
	identities []age.Identity
}

// Open verifies a file from its first to its last byte: its form, its signature, by the key
// signedBy unless that is transfer.AnySigner, and that each secret opens, unless there are no
// identities.
func Open(file io.ReadSeeker, signedBy string, identities []age.Identity) (*File, error) {
	f := &File{file: file, identities: identities}
	for _, err := range f.read() {
		if err != nil {
			return nil, err
		}
	}
	if err := transfer.CheckSigner(signedBy, f.Header.Key, ErrSigner); err != nil {
		return nil, err
	}
	return f, nil
}

// Sealed is the number of items with sealed secrets.
func (f *File) Sealed() int { return f.sealed }

// Total implements Source.
func (f *File) Total() int { return f.items }

// Items implements Source.
func (f *File) Items(ctx context.Context) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		for item, err := range f.read() {
			if err == nil {
				err = ctx.Err()
			}
			if !yield(item, err) || err != nil {
				return
			}
		}
	}
}

// read yields the items of the file, and ends with an error unless all of it is good.
func (f *File) read() iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		if _, err := f.file.Seek(0, io.SeekStart); err != nil {
			yield(Item{}, ErrFile.Withf("The file cannot be read twice. Give a regular file."))
			return
		}
		r := &reader{lines: bufio.NewReaderSize(f.file, 64<<10), hash: sha256.New(), verified: f.sums}
		if err := f.header(r); err != nil {
			yield(Item{}, err)
			return
		}
		seen := map[[16]byte]struct{}{}
		rank, n, sealed := 0, 0, 0
		for {
			line, err := r.next()
			if err != nil {
				yield(Item{}, err)
				return
			}
			var kind struct {
				Kind string `json:"kind"`
			}
			if json.Unmarshal(line, &kind) != nil {
				yield(Item{}, r.damaged())
				return
			}
			if kind.Kind == "end" {
				if err := f.end(r, line, n); err != nil {
					yield(Item{}, err)
					return
				}
				f.items, f.sealed, f.sums = n, sealed, r.sums
				return
			}
			_, _ = r.hash.Write(line)
			at := slices.Index(transfer.Kinds(), kind.Kind)
			if at < rank {
				yield(Item{}, r.damaged())
				return
			}
			rank = at
			item, err := f.item(r, line)
			if err != nil {
				yield(Item{}, err)
				return
			}
			key := sha256.Sum256(events.LengthPrefixed(item.Kind, item.ID))
			if _, twice := seen[[16]byte(key[:])]; twice {
				yield(Item{}, ErrRepeated.Withf("Line %d: another %s before it has the same id.", r.n, words(item.Kind)))
				return
			}
			seen[[16]byte(key[:])] = struct{}{}
			if n++; item.sealed {
				sealed++
			}
			if !yield(item, nil) {
				return
			}
		}
	}
}

// header reads the first line.
func (f *File) header(r *reader) error {
	line, err := r.next()
	if err != nil {
		if errors.Is(err, ErrCut) && !errors.Is(err, ErrChanged) {
			return ErrFile
		}
		return err
	}
	var h transfer.Header
	if json.Unmarshal(line, &h) != nil || h.Kind != "export" || h.Format < 1 {
		return ErrFile
	}
	if h.Format > transfer.Format {
		return ErrNewer
	}
	if _, err := transfer.ParseKey(h.Key); err != nil || h.ID == "" {
		return r.damaged()
	}
	_, _ = r.hash.Write(line)
	f.Header = h
	return nil
}

// end reads the last line, and checks the signature.
func (f *File) end(r *reader, line []byte, items int) error {
	var e transfer.End
	if json.Unmarshal(line, &e, json.RejectUnknownMembers(true)) != nil {
		return r.damaged()
	}
	key, err := transfer.ParseKey(f.Header.Key)
	if err != nil {
		return err
	}
	signature, err := base64.StdEncoding.Strict().DecodeString(e.Signature)
	sum := r.hash.Sum(nil)
	if err != nil || e.SHA256 != hex.EncodeToString(sum) || e.Items != items || !ed25519.Verify(key, transfer.Signed(sum), signature) {
		return ErrSignature
	}
	if _, err := r.lines.ReadByte(); !errors.Is(err, io.EOF) {
		return ErrFile.Withf("The file goes on after its last line. Export again.")
	}
	return nil
}

// item reads one item.
func (f *File) item(r *reader, line []byte) (Item, error) {
	var raw transfer.Item
	if json.Unmarshal(line, &raw, json.RejectUnknownMembers(true)) != nil || events.CheckID(raw.ID) != nil {
		return Item{}, r.damaged()
	}
	facts, err := factsOf(raw.Kind, raw.Facts)
	if err != nil {
		return Item{}, r.damaged()
	}
	item := Item{Kind: raw.Kind, ID: raw.ID, Facts: facts, Missing: raw.Missing, sealed: raw.Sealed != ""}
	if raw.Sealed == "" || len(f.identities) == 0 {
		return item, nil
	}
	clear, err := raw.Open(f.Header.ID, f.identities...)
	if err == nil {
		item.Keys, err = client.KeysJSON(clear)
		if item.HasKeys = err == nil; err != nil {
			err = transfer.ErrSealedInvalid
		}
	}
	if errors.Is(err, transfer.ErrSealedInvalid) {
		err = transfer.ErrSealedInvalid.Withf("Line %d: the sealed secrets are damaged, or belong to another item. Export again.", r.n)
	}
	return item, err
}

// factsOf decodes the facts of a kind.
func factsOf(kind string, raw jsontext.Value) (any, error) {
	decode := func(into any) error { return json.Unmarshal(raw, into, json.RejectUnknownMembers(true)) }
	switch kind {
	case transfer.KindComponent:
		var c transfer.Component
		err := decode(&c)
		return c, err
	case transfer.KindThrottlePolicy:
		var c transfer.ThrottlePolicy
		err := decode(&c)
		return c, err
	case transfer.KindAuthClient:
		var c transfer.AuthClient
		err := decode(&c)
		return c, err
	case transfer.KindOAuthClient:
		var c transfer.OAuthClient
		err := decode(&c)
		return c, err
	case transfer.KindCredential:
		var c transfer.Credential
		err := decode(&c)
		return c, err
	case transfer.KindFlow:
		var c transfer.Flow
		err := decode(&c)
		return c, err
	case transfer.KindRole:
		var c transfer.Role
		err := decode(&c)
		return c, err
	}
	return nil, ErrFile
}

// reader reads lines of bounded length.
type reader struct {
	lines *bufio.Reader
	hash  hash.Hash
	n     int // lines read
	line  bytes.Buffer
	sums  [][16]byte // of the lines read

	verified [][16]byte // sums that the lines must have; nil: any
}

// next returns the next line with its line feed; it is good until the next call. A file that
// ends before its last line is ErrCut, one that was changed since it was verified ErrChanged.
func (r *reader) next() ([]byte, error) {
	line, err := r.read()
	if err != nil {
		if r.verified != nil {
			err = fmt.Errorf("%w (%w)", ErrChanged, err)
		}
		return nil, err
	}
	sum := sha256.Sum256(line)
	if r.verified != nil && (r.n > len(r.verified) || r.verified[r.n-1] != [16]byte(sum[:])) {
		return nil, ErrChanged
	}
	r.sums = append(r.sums, [16]byte(sum[:]))
	return line, nil
}

func (r *reader) read() ([]byte, error) {
	r.line.Reset()
	r.n++
	for {
		part, err := r.lines.ReadSlice('\n')
		if r.line.Len()+len(part) > maxLine {
			return nil, ErrLine.Withf("Line %d of the file is longer than 8 MiB.", r.n)
		}
		r.line.Write(part)
		switch {
		case err == nil:
			return r.line.Bytes(), nil
		case errors.Is(err, io.EOF):
			return nil, ErrCut
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, fmt.Errorf("read the export: %w", err)
		}
	}
}

func (r *reader) damaged() error {
	return ErrFile.Withf("Line %d of the file is damaged, or not of a credstream export.", r.n)
}
