package demo

import (
	"crypto/subtle"
	"fmt"
	"net/http"
)

// Petstore is an API that accepts one key, in the header api-key of GET /v2/user/me.
func Petstore(key string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/user/me", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if subtle.ConstantTimeCompare([]byte(r.Header.Get("api-key")), []byte(key)) != 1 {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = fmt.Fprintln(w, `{"message":"unauthorized"}`) // a client that is gone needs no response
			return
		}
		_, _ = fmt.Fprintln(w, `{"username":"demo"}`) // see above
	})
	return mux
}
