package main

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHealthcheck(t *testing.T) {
	t.Parallel()
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
			}, 1, `503 Service Unavailable: run coupond migrate` + "\n",
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
		"connection aborted": {
			func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 1, ": EOF\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(c.handler)
			defer server.Close()
			address := strings.TrimPrefix(server.URL, "http://")
			checkHealth(t, address, c.code, c.want)
			// An address that has only a port, as in the default.
			checkHealth(t, address[strings.LastIndex(address, ":"):], c.code, c.want)
			checkHealth(t, "0.0.0.0"+address[strings.LastIndex(address, ":"):], c.code, c.want)
			server.Close()
			checkHealth(t, address, 1, "connection refused\n")
		})
	}
}

func TestHealthcheck_anyPort(t *testing.T) {
	t.Parallel()
	checkHealth(t, ":0", exitUsage, "set its port\n")
}

// A service that accepts the connection and does not answer, or does not finish its answer, fails
// the check within healthcheckTimeout.
func TestHealthcheck_timeout(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{"no response": "", "half a response": "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = listener.Close() }()
			go func() {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					_, _ = io.WriteString(conn, answer)
				}
				_, _ = io.Copy(io.Discard, conn)
				_ = conn.Close()
			}()
			checkHealth(t, listener.Addr().String(), 1, "(Client.Timeout ")
		})
	}
}

// checkHealth runs coupond healthcheck on address and expects the exit code and one line that
// contains want.
func checkHealth(t *testing.T, address string, code int, want string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	got := run(t.Context(), []string{"healthcheck"}, []string{"LISTEN_ADDR=" + address}, &stdout, &stderr)
	output := stdout.String() + stderr.String()
	if got != code || !strings.Contains(output, want) || strings.Count(output, "\n") != 1 {
		t.Errorf("exit code %d, %q; want %d and one line with %q", got, output, code, want)
	}
	if code == 0 && stderr.Len() > 0 || code != 0 && stdout.Len() > 0 {
		t.Errorf("stdout %q, stderr %q: success goes to stdout, failure to stderr", stdout.String(), stderr.String())
	}
}
