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
	"time"
)

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		code    int
		says    string
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
			}, 1, "503 Service Unavailable: run coupond migrate\n",
		},
		"something else listens": {
			func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "who?\n\nNobody.", http.StatusNotFound) }, 1, "404 Not Found: who?\n",
		},
		"hangs up": {
			func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 1, "EOF\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(c.handler)
			defer server.Close()
			address := strings.TrimPrefix(server.URL, "http://")
			checkHealth(t, address, c.code, c.says)
			// Like the service's default, an address that only names the port.
			checkHealth(t, address[strings.LastIndex(address, ":"):], c.code, c.says)
		})
	}
}

func TestHealthcheckOfNobody(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	checkHealth(t, address, 1, "connection refused\n")
}

// A service that takes the connection and says nothing is found out within the bound, and so is one that never ends its answer.
func TestHealthcheckIsBounded(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{"silence": "", "half an answer": "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"} {
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
			started := time.Now()
			checkHealth(t, listener.Addr().String(), 1, "no answer within 2.5s\n")
			if took := time.Since(started); took > healthcheckTimeout+2*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestHealthcheckCannotGuessAPort(t *testing.T) {
	checkHealth(t, ":0", exitUsage, "only the service knows")
}

func TestHealthcheckReachesWildcards(t *testing.T) {
	for listen, want := range map[string]string{
		":8080":          "127.0.0.1:8080",
		"0.0.0.0:80":     "127.0.0.1:80",
		"[::]:80":        "[::1]:80",
		"10.1.2.3:80":    "10.1.2.3:80",
		"example.org:80": "example.org:80",
	} {
		if got, err := reachable(listen); got != want || err != nil {
			t.Errorf("a service on %s is asked at %s (%v), want %s", listen, got, err, want)
		}
	}
}

// checkHealth runs healthcheck on address and expects the exit code and one line that says says.
func checkHealth(t *testing.T, address string, code int, says string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	got := run(t.Context(), []string{"healthcheck"}, []string{"LISTEN_ADDR=" + address}, &stdout, &stderr)
	said := stdout.String() + stderr.String()
	if got != code || !strings.Contains(said, says) || strings.Count(said, "\n") != 1 {
		t.Errorf("exit code %d, %q; want %d and one line with %q", got, said, code, says)
	}
	if code == 0 && stderr.Len() > 0 || code != 0 && stdout.Len() > 0 {
		t.Errorf("stdout %q, stderr %q: what went well belongs to stdout, what did not to stderr", stdout.String(), stderr.String())
	}
}
