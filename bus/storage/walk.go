package storage

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/minio/highwayhash"
)

// Message is a stored message. Its slices are valid until the function that it was given to returns.
type Message struct {
	Seq     uint64
	Erased  bool // it was deleted: nothing but the sequence is left
	Subject string
	Header  []byte // encoded; nil when there is none
	Body    []byte
}

// Unreadable is a part of a block file without a readable message, between two messages or at an
// end of the file.
type Unreadable struct {
	File string
	At   int    // its first byte
	Text []byte // the part, valid until the function returns
}

// Walk reads the messages of a stream from its files, oldest first, without changing them and
// without the server, which may have them open. It calls damaged for each unreadable part and
// continues behind it. A write that is in progress, or was interrupted above the sequence durable, is not damage.
func Walk(streams, stream string, durable uint64, visit func(Message) error, damaged func(Unreadable)) error {
	dir := filepath.Join(streams, stream, "msgs")
	blocks, err := blockNumbers(dir)
	if err != nil {
		return fmt.Errorf("reading stream %s: %w", stream, err)
	}
	for i, n := range blocks {
		name := strconv.Itoa(n) + ".blk"
		b, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			continue
		}
		if err != nil {
			return fmt.Errorf("reading stream %s: %w", stream, err)
		}
		if err := walkBlock(b, name, blockHash(stream, n), i == len(blocks)-1, durable, visit, damaged); err != nil {
			return err
		}
	}
	return nil
}

// VerifyMeta reports whether the description of a stream is intact.
func VerifyMeta(streams, stream string) (whole bool, err error) {
	return verifyMeta(filepath.Join(streams, stream), sha256.Sum256([]byte(stream)))
}

func blockHash(stream string, number int) *highwayhash.Digest64 {
	key := sha256.Sum256(fmt.Appendf(nil, "%s-%d", stream, number))
	hash, err := highwayhash.NewDigest64(key[:])
	if err != nil {
		panic(err) // the key has the right size
	}
	return hash
}

func walkBlock(b []byte, name string, hash *highwayhash.Digest64, newest bool, durable uint64, visit func(Message) error, damaged func(Unreadable)) error {
	var last uint64
	for at := 0; at < len(b); {
		r, ok := readRecord(b[at:], hash)
		if !ok {
			if newest && last >= durable && isTorn(b[at:], last, hash) {
				return nil
			}
			next := at + 1
			for next < len(b) {
				if _, ok := readRecord(b[next:], hash); ok {
					break
				}
				next++
			}
			damaged(Unreadable{File: name, At: at, Text: b[at:next]})
			at = next
			continue
		}
		if r.seq&flagDeleted == 0 {
			last = max(last, r.seq&^flagErased)
		}
		if err := visit(r.message(b[at : at+r.size])); err != nil {
			return err
		}
		at += r.size
	}
	return nil
}

// message returns the message of an intact record b.
func (r record) message(b []byte) Message {
	if r.seq&(flagErased|flagDeleted) != 0 {
		return Message{Seq: r.seq &^ (flagErased | flagDeleted), Erased: true}
	}
	body := recordHeader + int(binary.LittleEndian.Uint16(b[20:]))
	m := Message{Seq: r.seq, Subject: string(b[recordHeader:body])}
	if b[3]&0x80 != 0 {
		header := body + 4
		body = header + int(binary.LittleEndian.Uint32(b[body:]))
		m.Header = b[header:body]
	}
	m.Body = b[body : len(b)-recordSum]
	return m
}

// hasHeader reports whether the part of a record after its subject begins with headers of the
// length that precedes them: the checksum does not cover that length.
func hasHeader(b []byte) bool {
	if len(b) < 4 {
		return false
	}
	size := binary.LittleEndian.Uint32(b)
	return uint64(size) <= uint64(len(b)-4) && bytes.HasPrefix(b[4:], []byte("NATS/1.0")) && bytes.HasSuffix(b[4:4+size], []byte("\r\n\r\n"))
}
