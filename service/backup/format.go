// Package backup writes the stored data of an installation to a file, and reads it back: the
// log up to a commit, the sealed secrets, the wrapped keysets and the access log.
package backup

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// Format is the version of a backup file: a Label, in clear, in its first LabelSize bytes, and
// an age file of gzipped JSON documents, one a line: a Header, Messages and an End.
const Format = 1

// LabelSize is the size of a label with the spaces and the newline that follow it, in bytes.
const LabelSize = 1024

const magic = "credstream-backup"

// The kinds of a message: the streams of a backup.
const (
	KindLog     = "log"
	KindVault   = "vault"
	KindKeysets = "keysets"
	KindAccess  = "access"
)

// Position says how far a backup comes; the next one continues there.
type Position struct {
	Log    uint64 `json:"log"`    // the last commit
	Commit string `json:"commit"` // SHA256 of that commit
	Vault  Place  `json:"vault,omitzero"`
	Access Place  `json:"access,omitzero"`
}

// Place is a sequence of a stream. A stream that was created again has other sequences.
type Place struct {
	Created time.Time `json:"created"`
	Seq     uint64    `json:"seq"`
}

// Label is what a file says of itself to everybody: what the next backup continues. Nothing but
// the End, which is signed, proves it.
type Label struct {
	Kind   string    `json:"kind"` // "credstream-backup"
	Format int       `json:"format"`
	ID     string    `json:"id"`
	Part   string    `json:"part,omitzero"` // "keysets" of a file that has only them
	Time   time.Time `json:"time"`
	After  *Position `json:"after,omitzero"`
	To     Position  `json:"to"`
}

// Header is the first line.
type Header struct {
	Kind   string    `json:"kind"` // "backup"
	Format int       `json:"format"`
	ID     string    `json:"id"`
	Tenant string    `json:"tenant"` // whose key signs
	Key    string    `json:"key"`    // its public key
	Time   time.Time `json:"time"`
	After  *Position `json:"after,omitzero"` // of the backup that this one continues; absent in a full one
}

// Message is a stored message, as it is.
type Message struct {
	Kind    string              `json:"kind"`
	Seq     uint64              `json:"seq"`
	Subject string              `json:"subject"`
	Header  map[string][]string `json:"header,omitzero"`
	Data    []byte              `json:"data"`
}

// SHA256 is the hash of a message's subject and data, in hex.
func (m Message) SHA256() string {
	sum := sha256.Sum256(events.LengthPrefixed(m.Subject, string(m.Data)))
	return hex.EncodeToString(sum[:])
}

// End is the last line. Its signature covers the line without the signature.
type End struct {
	Kind          string   `json:"kind"` // "end"
	To            Position `json:"to"`
	Commits       uint64   `json:"commits"`
	Secrets       uint64   `json:"secrets"`
	Keysets       uint64   `json:"keysets"`
	Accesses      uint64   `json:"accesses"`
	SHA256        string   `json:"sha256"`         // of the lines before this one that are not keysets, hex
	KeysetsSHA256 string   `json:"keysets_sha256"` // of the others
	Signature     string   `json:"signature,omitzero"`
}

// signed is the message that the signature signs.
func (e End) signed() ([]byte, error) {
	e.Signature = ""
	line, err := json.Marshal(e, json.Deterministic(true))
	return append([]byte("credstream/backup/1\n"), line...), err
}

// Errors of files.
var (
	ErrFormatNewer = fault.New(fault.Precondition, "backup_format_newer",
		"The backup was written by a newer version of credstream. Use that version, or a later one, to read it.")
	ErrNoBackup = fault.New(fault.Invalid, "backup_file_invalid", "The file is not a backup of credstream.")
	ErrDamaged  = fault.New(fault.Unprocessable, "backup_damaged",
		"The backup file is damaged or incomplete. Nothing was restored from it: use another copy.")
	ErrIdentity = fault.New(fault.Unprocessable, "backup_identity_wrong",
		"The backup is encrypted to another key. Give the age identity of the recipient that it was made for.")
	ErrSignature = fault.New(fault.Unprocessable, "backup_signature_invalid", "The signature of the backup does not match its content.")
	ErrSigner    = fault.New(fault.Unprocessable, "backup_signer_other", "The backup was signed by another key than --signed-by.")
	ErrChain     = fault.New(fault.Invalid, "backup_files_unrelated",
		"The backup files do not continue each other: the first must be a full backup, and each other one must continue the one before it.")
	ErrKeysets = fault.New(fault.Invalid, "backup_keysets_missing",
		"The keysets are in a second file: give the one that was written with the last backup file, with --keysets.")
	ErrMissing   = fault.New(fault.Precondition, "backup_secrets_missing", "The backup misses secrets that its log references.")
	ErrRecipient = fault.New(fault.Invalid, "backup_recipient_invalid",
		"The recipient of a backup must be one age public key: age1 and 58 more characters, as age-keygen prints it.")
)

func damaged(format string, args ...any) error {
	return ErrDamaged.Withf("The backup file is damaged or incomplete: %s. Nothing was restored from it: use another copy.", fmt.Sprintf(format, args...))
}

// text is the label as the first bytes of a file.
func (l Label) text() ([]byte, error) {
	text, err := json.Marshal(l, json.Deterministic(true))
	if err == nil && len(text) >= LabelSize {
		err = fmt.Errorf("the label of a backup has %d bytes", len(text))
	}
	if err != nil {
		return nil, err
	}
	return append(append(text, bytes.Repeat([]byte{' '}, LabelSize-1-len(text))...), '\n'), nil
}

// ReadLabel reads the label of a file, or of what is after it. Errors: ErrNoBackup,
// ErrFormatNewer, ErrDamaged.
func ReadLabel(r io.Reader) (Label, error) {
	text := make([]byte, LabelSize)
	n, err := io.ReadFull(r, text)
	text = text[:n]
	if !bytes.HasPrefix(text, []byte(`{"kind":"`+magic+`","format":`)) {
		return Label{}, ErrNoBackup
	}
	if err != nil {
		return Label{}, damaged("it ends in its first line")
	}
	var form struct {
		Format int `json:"format"`
	}
	if json.Unmarshal(text, &form) == nil && form.Format > Format {
		return Label{}, ErrFormatNewer
	}
	var l Label
	if json.Unmarshal(text, &l, json.RejectUnknownMembers(true)) != nil || l.Format != Format {
		return Label{}, damaged("its first line cannot be read")
	}
	return l, nil
}

// ParseRecipient reads an age public key. It returns ErrRecipient.
func ParseRecipient(text string) (age.Recipient, error) {
	if len(text) > 4096 || strings.ContainsAny(text, " \t\r\n#") {
		return nil, ErrRecipient
	}
	list, err := age.ParseRecipients(strings.NewReader(text))
	if err != nil || len(list) != 1 {
		return nil, ErrRecipient
	}
	return list[0], nil
}

// Writer writes a backup to one file, or to two, the second with the keysets.
type Writer struct {
	main, keysets *part
	label         Label
	end           End
	key           string // that signs
	rest          []byte // the beginning of a line
}

// part is one of the files.
type part struct {
	file io.WriteSeeker
	age  io.WriteCloser
	zip  *gzip.Writer
}

// NewWriter begins a backup in empty files; keysets may be nil.
func NewWriter(to age.Recipient, file, keysets io.WriteSeeker) (*Writer, error) {
	w := &Writer{}
	var err error
	if w.main, err = newPart(to, file); err == nil && keysets != nil {
		w.keysets, err = newPart(to, keysets)
	}
	return w, err
}

func newPart(to age.Recipient, file io.WriteSeeker) (*part, error) {
	if _, err := file.Write(make([]byte, LabelSize)); err != nil { // Close writes the label
		return nil, err
	}
	out, err := age.Encrypt(file, to)
	if err != nil {
		return nil, err
	}
	return &part{file, out, gzip.NewWriter(out)}, nil
}

// Write takes the text of a backup, as the service answers it, in parts of any size.
func (w *Writer) Write(b []byte) (int, error) {
	n := len(b)
	for {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		if !whole {
			w.rest = append(w.rest, b...)
			return n, nil
		}
		line, b = append(append(w.rest, line...), '\n'), rest
		w.rest = w.rest[:0]
		if err := w.line(line); err != nil {
			return 0, err
		}
	}
}

var keysetsLine = []byte(`{"kind":"` + KindKeysets + `",`)

func (w *Writer) line(line []byte) error {
	if w.keysets != nil && bytes.HasPrefix(line, keysetsLine) {
		_, err := w.keysets.zip.Write(line)
		return err
	}
	if bytes.HasPrefix(line, []byte(`{"kind":"backup",`)) || bytes.HasPrefix(line, []byte(`{"kind":"end",`)) {
		var h Header
		var err error
		if line[9] == 'b' {
			err = json.Unmarshal(line, &h)
			w.label = Label{Kind: magic, Format: h.Format, ID: h.ID, Time: h.Time, After: h.After}
			w.key = h.Key
		} else {
			err = json.Unmarshal(line, &w.end)
			w.label.To = w.end.To
		}
		if err != nil {
			return fmt.Errorf("read a line of a backup: %w", err)
		}
		if w.keysets != nil {
			if _, err := w.keysets.zip.Write(line); err != nil {
				return err
			}
		}
	}
	_, err := w.main.zip.Write(line)
	return err
}

// Key is the public key that signs the backup; "" before its first text is written.
func (w *Writer) Key() string { return w.key }

// Close completes the files after the last text, and says what they hold. Without it they are
// not a backup. It does not close the files.
func (w *Writer) Close() (Label, End, error) {
	err := w.main.close(w.label)
	if err == nil && w.keysets != nil {
		label := w.label
		label.Part = KindKeysets
		err = w.keysets.close(label)
	}
	return w.label, w.end, err
}

func (p *part) close(label Label) error {
	if err := p.zip.Close(); err != nil {
		return err
	}
	if err := p.age.Close(); err != nil {
		return err
	}
	text, err := label.text()
	if err == nil {
		_, err = p.file.Seek(0, io.SeekStart)
	}
	if err == nil {
		_, err = p.file.Write(text)
	}
	return err
}

// encodeSignature and decodeSignature are its form in an End.
func encodeSignature(sig []byte) string { return base64.StdEncoding.EncodeToString(sig) }

func decodeSignature(text string) ([]byte, error) {
	return base64.StdEncoding.Strict().DecodeString(text)
}
