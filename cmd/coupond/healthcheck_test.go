package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	// A service that does not answer, or does not finish its answer, fails the check in time.
	stuck := func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		code    int
		want    string
	}{
		"ready": {
			func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodGet || r.URL.Path != "/health" {
					w.WriteHeader(http.StatusNotFound)
				}
			}, 0, "healthy: ",
		},
		"not ready": {
			func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusServiceUnavailable)
				_, _ = io.WriteString(w, `{"status":"unhealthy","error":"run coupond migrate"}`)
			}, 1, `503 Service Unavailable: {"status":"unhealthy","error":"run coupond migrate"}` + "\n",
		},
		"another program listens": {
			func(w http.ResponseWriter, _ *http.Request) {
				http.Error(w, "no such page\n\nGoodbye.", http.StatusNotFound)
			}, 1, "404 Not Found: no such page\n",
		},
		"another program redirects": {
			func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/health" {
					http.Redirect(w, r, "/login", http.StatusFound)
				}
			}, 1, "302 Found: ",
		},
		"connection aborted": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 1, ": EOF\n"},
		"no response":        {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, 1, "context deadline exceeded\n"},
		"half a response":    {stuck, 1, "context deadline exceeded\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(c.handler)
			defer server.Close()
			address := strings.TrimPrefix(server.URL, "http://")
			check := func(address string, code int, want string) {
				t.Helper()
				expect(t, code, want, []string{"LISTEN_ADDR=" + address}, "healthcheck")
			}
			check(address, c.code, c.want)
			if c.code == 0 { // also an address that has only a port, as in the default
				port := address[strings.LastIndex(address, ":"):]
				check(port, 0, c.want)
				check("0.0.0.0"+port, 0, c.want)
				server.Close()
				check(address, 1, "connection refused\n")
			}
		})
	}
}
