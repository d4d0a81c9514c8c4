package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// wire is one keep-alive HTTP/1.1 connection that sends prebuilt requests and parses only the
// necessary parts of responses. Every HTTP row uses it, so that the cost of the client is the same
// in all of them.
type wire struct {
	conn net.Conn
	in   *bufio.Reader
	body []byte
}

// wireTimeout bounds the lifetime of a connection; every row is shorter.
const wireTimeout = 10 * time.Minute

var errAnswer = errors.New("the answer is not HTTP/1.1 with a Content-Length")

func dialWire(addr string) (*wire, error) {
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second) //nolint:noctx // has its own timeout
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if err := conn.SetDeadline(time.Now().Add(wireTimeout)); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return &wire{conn: conn, in: newReader(conn)}, nil
}

func (w *wire) close() { _ = w.conn.Close() }

// do sends one request and reads the response. The body is valid until the next call.
func (w *wire) do(request []byte) (status int, body []byte, err error) {
	if _, err := w.conn.Write(request); err != nil {
		return 0, nil, fmt.Errorf("send: %w", err)
	}
	return w.read()
}

// expect sends one request and checks only the status of the response.
func (w *wire) expect(want int, what string, request []byte) error {
	status, answer, err := w.do(request)
	if err != nil || status != want {
		return fmt.Errorf("%s: %d %.300s: %w", what, status, answer, err)
	}
	return nil
}

func (w *wire) read() (status int, body []byte, err error) {
	line, err := w.in.ReadSlice('\n')
	if err != nil {
		return 0, nil, fmt.Errorf("read the status: %w", err)
	}
	// "HTTP/1.1 200 OK\r\n"
	if len(line) < 13 || string(line[:9]) != "HTTP/1.1 " {
		return 0, nil, errAnswer
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, nil, errAnswer
	}
	length := -1
	for {
		if line, err = w.in.ReadSlice('\n'); err != nil {
			return 0, nil, fmt.Errorf("read the header: %w", err)
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		const name = "content-length:"
		if len(line) > len(name) && bytes.EqualFold(line[:len(name)], []byte(name)) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[len(name):]))); err != nil {
				return 0, nil, errAnswer
			}
		}
	}
	if length < 0 {
		return 0, nil, errAnswer
	}
	if cap(w.body) < length {
		w.body = make([]byte, length)
	}
	body = w.body[:length]
	if _, err := io.ReadFull(w.in, body); err != nil {
		return 0, nil, fmt.Errorf("read the body: %w", err)
	}
	return status, body, nil
}

// getRequest and postRequest append a whole request to b, without a key if key is "".
func getRequest(b []byte, target, key string) []byte {
	b = append(b, "GET "...)
	b = append(b, target...)
	b = appendHeaders(b, key)
	return append(b, "\r\n"...)
}

func postRequest(b []byte, target, key, commandID string, body []byte) []byte {
	b = append(b, "POST "...)
	b = append(b, target...)
	b = appendHeaders(b, key)
	b = append(b, "Content-Type: application/json\r\n"...)
	if commandID != "" {
		b = append(b, "Idempotency-Key: "...)
		b = append(b, commandID...)
		b = append(b, "\r\n"...)
	}
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
	b = append(b, "\r\n\r\n"...)
	return append(b, body...)
}

func appendHeaders(b []byte, key string) []byte {
	b = append(b, " HTTP/1.1\r\nHost: localhost\r\n"...)
	if key != "" {
		b = append(b, "Authorization: Bearer "...)
		b = append(b, key...)
		b = append(b, "\r\n"...)
	}
	return b
}

func newReader(conn net.Conn) *bufio.Reader { return bufio.NewReaderSize(conn, 32<<10) }
