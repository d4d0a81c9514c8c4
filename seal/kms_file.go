package seal

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	aeadsubtle "github.com/tink-crypto/tink-go/v2/aead/subtle"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// keyFilePrefix starts a key file, which is one line:
//
//	credstream-kms-key-1 <standard base64 of 36 bytes>
//
// The 36 bytes are the AES-256-GCM key and the first 4 bytes of its SHA-256,
// which tell a damaged file from a wrong one.
const keyFilePrefix = "credstream-kms-key-1 "

const (
	keySize   = 32
	checkSize = 4
)

// CreateKeyFile writes a new random key to path, mode 0600, and returns when it
// is durable. It never replaces a file: the error is then fs.ErrExist.
func CreateKeyFile(path string) error {
	key := make([]byte, keySize, keySize+checkSize)
	_, _ = rand.Read(key) // ends the program rather than fail
	sum := sha256.Sum256(key)
	line := keyFilePrefix + base64.StdEncoding.EncodeToString(append(key, sum[:checkSize]...)) + "\n"

	return CreateFile(path, []byte(line))
}

// TempPrefix begins the name of a file that CreateFile has not completed; a process that is killed
// leaves it behind.
const TempPrefix = ".secret-"

// CreateFile creates a durable file that only its owner can read. A file that exists is never
// replaced: the error is fs.ErrExist.
func CreateFile(path string, content []byte) error {
	// Written aside and then linked: the name never stands for half a secret, and
	// of two creators only one wins.
	tmp, err := os.CreateTemp(filepath.Dir(path), TempPrefix+"*") // mode 0600
	if err != nil {
		return fmt.Errorf("creating %s: %w", path, err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // whatever fails below
	if _, err = tmp.Write(content); err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.Link(tmp.Name(), path); err != nil {
		return fmt.Errorf("creating %s: %w", path, err)
	}
	if err := os.Remove(tmp.Name()); err != nil {
		return fmt.Errorf("creating %s: %w", path, err)
	}
	if err := SyncFolder(filepath.Dir(path)); err != nil {
		return fmt.Errorf("syncing the folder of %s: %w", path, err)
	}
	return nil
}

// SyncFolder makes what was created, renamed or removed in a folder durable.
func SyncFolder(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// openKeyFile reads a key file. It never makes one.
func openKeyFile(u *url.URL) (tink.AEAD, error) {
	path := u.Path
	if u.Opaque != "" { // file:relative/path
		unescaped, err := url.PathUnescape(u.Opaque)
		if err != nil {
			return nil, errors.New("opening the KMS key: its URL is malformed")
		}
		path = unescaped
	}
	if path == "" || u.Host != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, errors.New("opening the KMS key: a key file is file:///absolute/path or file:relative/path")
	}
	line, err := readPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("opening the KMS key: %w", err)
	}
	key, err := parseKeyLine(line)
	if err != nil {
		return nil, fmt.Errorf("opening the KMS key: key file %s %w", path, err)
	}
	return aeadsubtle.NewAESGCM(key)
}

// readPrivate reads a small file that is private.
func readPrivate(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the key file does not exist: %w", err)
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() > 1024:
		return nil, fmt.Errorf("key file %s is not a credstream key file", path)
	case !private(info):
		return nil, fmt.Errorf("key file %s has mode %04o, so other users can read it: run chmod 600 on it", path, info.Mode().Perm())
	}
	return os.ReadFile(path)
}

func parseKeyLine(line []byte) ([]byte, error) {
	text, ok := bytes.CutPrefix(bytes.TrimRight(line, "\r\n"), []byte(keyFilePrefix))
	if !ok {
		return nil, errors.New("is not a credstream key file")
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil || len(raw) != keySize+checkSize {
		return nil, errors.New("is damaged") // without the decoder's words: it holds a key
	}
	sum := sha256.Sum256(raw[:keySize])
	if subtle.ConstantTimeCompare(sum[:checkSize], raw[keySize:]) != 1 {
		return nil, errors.New("is damaged")
	}
	return raw[:keySize], nil
}
