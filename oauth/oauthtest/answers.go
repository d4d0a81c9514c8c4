package oauthtest

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"strings"
	"time"
)

// Status answers with a status and an error code; without code, with nothing more.
func Status(status int, code string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if code == "" {
			w.WriteHeader(status)
			return
		}
		reply(w, status, map[string]any{"error": code, "error_description": "It did not work out."})
	}
}

// Later answers with a status and the header field Retry-After.
func Later(status int, retryAfter string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", retryAfter)
		w.WriteHeader(status)
	}
}

// JSON answers 200 with this text, whether it is JSON or not.
func JSON(text string) http.HandlerFunc { return Text("application/json", text) }

// Text answers 200 with this text.
func Text(contentType, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		_, _ = w.Write([]byte(text))
	}
}

// HTML answers with a page, as a proxy or a login form in between would.
func HTML(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(`<!doctype html><title>Sign in</title><form action="?access_token=canary-page">`))
	}
}

// Redirect sends the request on to another address.
func Redirect(status int, to string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", to)
		w.WriteHeader(status)
	}
}

// Echo answers with a status and an error that repeats the request's form and
// header in every member it has.
func Echo(status int, code string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		said := r.PostForm.Encode() + " " + r.Header.Get("Authorization")
		reply(w, status, map[string]any{"error": code, "error_description": said, "error_uri": said, "form": r.PostForm})
	}
}

// Drip answers 200 and then sends a byte now and again, for as long as anybody listens.
func Drip(w http.ResponseWriter, r *http.Request) {
	_, _ = w.Write([]byte(`{"access_token":"canary-drip`))
	for r.Context().Err() == nil {
		_, _ = w.Write([]byte("."))
		_ = http.NewResponseController(w).Flush()
		select {
		case <-time.After(20 * time.Millisecond):
		case <-r.Context().Done():
		}
	}
}

// Hang never answers.
func Hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// Hangup closes the connection without an answer.
func Hangup(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// Broken answers 200, announces more than it sends, and closes the connection.
func Broken(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "1000")
	_, _ = w.Write([]byte(`{"access_token":"canary-broken","refresh_token":"canary-whole","scope":"re`))
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// Huge answers with two MiB of JSON.
func Huge(w http.ResponseWriter, r *http.Request) {
	JSON(`{"padding":"`+strings.Repeat("x", 2<<20)+`","access_token":"canary-huge"}`)(w, r)
}

// GzipBomb answers with a small body that unpacks to a good answer within 64 MiB
// of nothing, though nobody asked for packing.
func GzipBomb(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Encoding", "gzip")
	blank := packed(strings.Repeat(" ", 1<<20))
	_, _ = w.Write(packed(`{"access_token":"canary-bomb"`))
	for range 64 { // packed texts one after the other are one packed text (RFC 1952, section 2.2)
		_, _ = w.Write(blank)
	}
	_, _ = w.Write(packed("}"))
}

func packed(text string) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write([]byte(text))
	_ = z.Close()
	return b.Bytes()
}
