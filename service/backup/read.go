package backup

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"

	"filippo.io/age"
	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/service/transfer"
)

// maxLine bounds a line in bytes: a message of a stream has at most 1 MiB.
const maxLine = 4 << 20

// File is a backup file that is being read.
type File struct {
	Label  Label
	Header Header // once it was read
	End    End    // once everything was read

	r          io.ReadSeeker
	identities []age.Identity
}

// Open reads the label of a file. It does not close r. Errors: those of ReadLabel.
func Open(r io.ReadSeeker, identities []age.Identity) (*File, error) {
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return nil, ErrNoBackup.Withf("The backup cannot be read: it must be a file.")
	}
	label, err := ReadLabel(r)
	return &File{Label: label, r: r, identities: identities}, err
}

// Messages yields the messages of the file and then, if it is not what was written, an error:
// only after the last one is it known that they are right. It may be called again. Errors:
// ErrIdentity, ErrFormatNewer, ErrDamaged, ErrSignature.
func (f *File) Messages() iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		if err := f.read(func(m Message) bool { return yield(m, nil) }); err != nil && !errors.Is(err, errEnough) {
			yield(Message{}, err)
		}
	}
}

var errEnough = errors.New("the reader stopped")

func (f *File) read(each func(Message) bool) error {
	if _, err := f.r.Seek(LabelSize, io.SeekStart); err != nil {
		return fmt.Errorf("read the backup: %w", err)
	}
	clear, err := age.Decrypt(bufio.NewReader(f.r), f.identities...)
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return ErrIdentity
	}
	if err != nil {
		return damaged("its encryption cannot be read")
	}
	text, err := gzip.NewReader(clear)
	if err != nil {
		return damaged("its content cannot be read")
	}
	lines := bufio.NewReaderSize(text, 64<<10)
	sum, keysets := sha256.New(), sha256.New()
	at := tally{}
	for first := true; ; first = false {
		line, err := readLine(lines)
		if err != nil {
			return err
		}
		kind := kindOf(line)
		switch {
		case first:
			err = f.header(line)
		case kind == "end":
			return f.end(line, lines, at, hex.EncodeToString(sum.Sum(nil)), hex.EncodeToString(keysets.Sum(nil)))
		default:
			var m Message
			if m, err = f.message(line, &at); err == nil && !each(m) {
				err = errEnough
			}
		}
		if err != nil {
			return err
		}
		if kind == KindKeysets {
			_, _ = keysets.Write(line)
		} else {
			_, _ = sum.Write(line)
		}
	}
}

// readLine reads a line with its newline.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case !errors.Is(err, bufio.ErrBufferFull) || len(line) > maxLine:
			return nil, damaged("its content ends early or was changed")
		}
	}
}

func kindOf(line []byte) string {
	rest, _ := bytes.CutPrefix(line, []byte(`{"kind":"`))
	kind, _, _ := bytes.Cut(rest, []byte(`"`))
	return string(kind)
}

func (f *File) header(line []byte) error {
	var form struct {
		Kind   string `json:"kind"`
		Format int    `json:"format"`
	}
	if json.Unmarshal(line, &form) == nil && form.Kind == "backup" && form.Format > Format {
		return ErrFormatNewer
	}
	var h Header
	if json.Unmarshal(line, &h, json.RejectUnknownMembers(true)) != nil || h.Kind != "backup" || h.Format != Format {
		return damaged("it does not begin with a header")
	}
	f.Header = h
	return nil
}

// tally is what was read.
type tally struct {
	last     Message // of the log
	commits  uint64
	secrets  uint64
	keysets  uint64
	accesses uint64
}

func (f *File) message(line []byte, at *tally) (m Message, err error) {
	if json.Unmarshal(line, &m, json.RejectUnknownMembers(true)) != nil {
		return m, damaged("a line cannot be read")
	}
	switch m.Kind {
	case KindLog:
		before := at.last.Seq
		if at.commits == 0 && f.Header.After != nil {
			before = f.Header.After.Log
		}
		if m.Seq != before+1 {
			return m, damaged("commit %d follows commit %d", m.Seq, before)
		}
		at.last = m
		at.commits++
	case KindVault:
		at.secrets++
	case KindKeysets:
		at.keysets++
	case KindAccess:
		at.accesses++
	default:
		return m, damaged("it has a line of an unknown kind")
	}
	return m, nil
}

// end checks the last line, what follows it, and what it says of the others.
func (f *File) end(line []byte, rest *bufio.Reader, at tally, sum, keysets string) error {
	var e End
	if json.Unmarshal(line, &e, json.RejectUnknownMembers(true)) != nil {
		return damaged("its last line cannot be read")
	}
	if _, err := rest.ReadByte(); !errors.Is(err, io.EOF) { // this proves the end of the encryption, too
		return damaged("its end cannot be read")
	}
	key, err := transfer.ParseKey(f.Header.Key)
	if err != nil {
		return damaged("its header has no key")
	}
	signature, err := decodeSignature(e.Signature)
	signed, bad := e.signed()
	if err := errors.Join(err, bad); err != nil || !ed25519.Verify(key, signed, signature) {
		return ErrSignature
	}
	f.End = e
	last, commit := at.last.Seq, ""
	if at.commits > 0 {
		commit = at.last.SHA256()
	} else if f.Header.After != nil {
		last, commit = f.Header.After.Log, f.Header.After.Commit
	}
	main := Label{Kind: magic, Format: Format, ID: f.Header.ID, Part: f.Label.Part, Time: f.Header.Time, After: f.Header.After, To: e.To}
	want, errWant := main.text()
	got, errGot := f.Label.text()
	switch {
	case errors.Join(errWant, errGot) != nil || !bytes.Equal(want, got):
		return damaged("its first line is that of another backup")
	case (at.keysets > 0 || f.Label.Part == KindKeysets) && (keysets != e.KeysetsSHA256 || at.keysets != e.Keysets):
		return damaged("the hash of its keysets is wrong")
	case f.Label.Part == KindKeysets:
		return nil
	case sum != e.SHA256:
		return damaged("the hash of its content is wrong")
	case at.commits != e.Commits || at.secrets != e.Secrets || at.accesses != e.Accesses || last != e.To.Log || commit != e.To.Commit:
		return damaged("it holds something else than it says")
	}
	return nil
}
