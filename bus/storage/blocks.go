package storage

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/minio/highwayhash"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/credstream/credstream/fault"
)

// JetStream repairs what it cannot read by truncation: if one bit of a block file is wrong, it
// truncates the file there when it recovers the stream, and reuses the sequences. So the files
// are verified before the server opens them. Streams that are derived from the log are moved
// aside and rebuilt. For the others the start is refused, and nothing is changed.

// ErrStoredDamaged refuses the start on a damaged file, which JetStream would truncate.
var ErrStoredDamaged = fault.New(fault.Precondition, "stored_file_damaged", "A file of the data folder is damaged.")

// ErrStoredReadOnly refuses the start on a read-only file: JetStream would start
// and then fail each write to it.
var ErrStoredReadOnly = fault.New(fault.Precondition, "stored_file_read_only", "A file of the data folder cannot be written to.")

// The form of a record in a block file (nats-server 2.15, server/filestore.go): length
// with a flag for headers, sequence with flags, time, length of the subject; then the
// subject, the length of the headers when there are any, headers, body and checksum.
const (
	recordHeader = 22
	recordSum    = 8
	recordMax    = 32 << 20
	flagHeaders  = 1 << 31
	flagErased   = 1 << 63
	flagDeleted  = 1 << 62 // the record marks another one as deleted
)

// Verifier verifies the files of the streams of one account while no server has them open.
type Verifier struct {
	Streams string                     // their folder
	Aside   string                     // where damaged folders are moved
	Kept    []string                   // the streams that cannot be rebuilt
	Durable func(stream string) uint64 // a sequence up to which a stream was durable; 0: unknown
	Logger  *slog.Logger
}

// Verify returns ErrStoredDamaged, with the file and the sequence, if a stream of Kept
// is damaged.
func (v *Verifier) Verify() error {
	entries, err := os.ReadDir(v.Streams)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("verifying the streams: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		damage, err := v.stream(e.Name())
		switch {
		case err != nil:
			return fmt.Errorf("verifying stream %s: %w", e.Name(), err)
		case damage == "":
		case slices.Contains(v.Kept, e.Name()):
			return ErrStoredDamaged.Withf("The stream %s is damaged: %s. No file was changed. Restore the data folder from its backup.", e.Name(), damage)
		default:
			if err := v.setAside(e.Name(), damage); err != nil {
				return err
			}
		}
	}
	return nil
}

// setAside moves a folder, named relative to Streams, into Aside. The service creates it again.
func (v *Verifier) setAside(path, damage string) error {
	to := filepath.Join(v.Aside, time.Now().UTC().Format("20060102T150405.000000000")+"-"+strings.ReplaceAll(path, string(filepath.Separator), "-"))
	v.Logger.Warn("damaged files moved aside; the service creates them again", "of", path, "damage", damage, "to", to)
	if err := os.MkdirAll(v.Aside, 0o700); err != nil {
		return fmt.Errorf("moving damaged files aside: %w", err)
	}
	if err := os.Rename(filepath.Join(v.Streams, path), to); err != nil {
		return fmt.Errorf("moving damaged files aside: %w", err)
	}
	return nil
}

// stream returns the damage of a stream, or "".
func (v *Verifier) stream(name string) (damage string, err error) {
	dir := filepath.Join(v.Streams, name)
	blocks, err := blockNumbers(filepath.Join(dir, "msgs"))
	if err != nil {
		return "", err
	}
	damages := make([]string, len(blocks))
	records := make([]bool, len(blocks)) // the block has records
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, n := range blocks {
		g.Go(func() error {
			f, err := os.OpenFile(filepath.Join(dir, "msgs", strconv.Itoa(n)+".blk"), os.O_RDWR, 0)
			if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
				return ErrStoredReadOnly.Withf("The data folder has a file that cannot be written to: %s. Make it writable, then start again.", err)
			}
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }() // only read
			b, err := io.ReadAll(f)
			if err != nil {
				return err
			}
			records[i] = len(b) > 0
			damages[i] = verifyBlock(b, name, n, i == len(blocks)-1, v.Durable(name))
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return "", err
	}
	for _, damage := range damages {
		if damage != "" {
			return damage, nil
		}
	}
	key := sha256.Sum256([]byte(name))
	switch whole, err := verifyMeta(dir, key); {
	case err != nil:
		return "", err
	case whole:
	case slices.Contains(records, true):
		return metaDamaged, nil
	default: // its process died before the metadata was on disk
		return "", v.setAside(name, "its metadata is missing or damaged, and it is empty")
	}
	return "", v.consumers(name)
}

// consumers moves damaged consumers of a stream aside: JetStream cannot open the stream
// if one has an undecodable description.
func (v *Verifier) consumers(stream string) error {
	entries, err := os.ReadDir(filepath.Join(v.Streams, stream, "obs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(stream, "obs", e.Name())
		key := sha256.Sum256([]byte(stream + "/" + e.Name()))
		whole, err := verifyMeta(filepath.Join(v.Streams, path), key)
		if err == nil && !whole {
			err = v.setAside(path, "the metadata of the consumer is missing or damaged")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

const metaDamaged = "its metadata meta.inf or the checksum meta.sum is missing or damaged"

// verifyMeta compares meta.inf in dir with meta.sum.
func verifyMeta(dir string, key [32]byte) (whole bool, err error) {
	meta, err1 := os.ReadFile(filepath.Join(dir, "meta.inf"))
	sum, err2 := os.ReadFile(filepath.Join(dir, "meta.sum"))
	err = errors.Join(err1, err2)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	hash, err := highwayhash.New64(key[:])
	if err != nil {
		return false, err
	}
	_, _ = hash.Write(meta) // never fails
	return len(meta) > 0 && hex.EncodeToString(hash.Sum(nil)) == string(sum), nil
}

// blockNumbers lists the block files of a folder in order.
func blockNumbers(dir string) (numbers []int, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if n, ok := blockNumber(e.Name()); ok {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// record is one message in a block.
type record struct {
	size int
	seq  uint64
}

// readRecord reads the record at the start of b and verifies its checksum.
func readRecord(b []byte, hash *highwayhash.Digest64) (r record, ok bool) {
	if len(b) < recordHeader+recordSum {
		return r, false
	}
	le := binary.LittleEndian
	length := le.Uint32(b)
	size, subject := int(length&^flagHeaders), int(le.Uint16(b[20:]))
	body := recordHeader + subject
	if length&flagHeaders != 0 {
		body += 4
	}
	if size > recordMax || size > len(b) || body > size-recordSum {
		return r, false
	}
	if seq := le.Uint64(b[4:]); length&flagHeaders != 0 && seq&(flagErased|flagDeleted) == 0 && !hasHeader(b[body-4:size-recordSum]) {
		return r, false
	}
	hash.Reset()
	_, _ = hash.Write(b[4:20]) // never fails, nor do the next
	_, _ = hash.Write(b[recordHeader : recordHeader+subject])
	_, _ = hash.Write(b[body : size-recordSum])
	var sum [highwayhash.Size64]byte
	return record{size: size, seq: le.Uint64(b[4:])}, bytes.Equal(hash.Sum(sum[:0]), b[size-recordSum:size])
}

// verifyBlock returns the damage of a block, or "". The end of the newest block may be
// torn by a kill or a power cut: that is no damage unless it was durable, or an intact
// record follows without unwritten pages (zeros) in between.
func verifyBlock(b []byte, stream string, number int, newest bool, durable uint64) (damage string) {
	hash := blockHash(stream, number)
	var last uint64
	at := 0
	for at < len(b) {
		r, ok := readRecord(b[at:], hash)
		if !ok {
			break
		}
		if r.seq&flagDeleted == 0 {
			last = max(last, r.seq&^flagErased)
		}
		at += r.size
	}
	if at == len(b) || newest && last >= durable && isTorn(b[at:], last, hash) {
		return ""
	}
	return fmt.Sprintf("block file %d.blk cannot be read from byte %d on, after sequence %d", number, at, last)
}

// isTorn reports whether the end of a block, which begins with an unreadable
// record, is the result of an interrupted write: no record follows it, or there are
// unwritten pages, which are zeros, in between.
func isTorn(b []byte, last uint64, hash *highwayhash.Digest64) bool {
	if len(b) >= recordHeader { // the record that cannot be read may still say how long it is
		if size := int(binary.LittleEndian.Uint32(b) &^ flagHeaders); size < len(b) {
			if _, ok := readRecord(b[size:], hash); ok {
				return bytes.Contains(b[:size], make([]byte, 512))
			}
		}
	}
	next := binary.LittleEndian.AppendUint64(nil, last+2)
	for from := 0; ; from++ {
		i := bytes.Index(b[from:], next)
		if i < 0 {
			return true
		}
		from += i
		if from < 4 {
			continue
		}
		if _, ok := readRecord(b[from-4:], hash); ok {
			return bytes.Contains(b[:from-4], make([]byte, 512))
		}
	}
}
