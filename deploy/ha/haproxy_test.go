package ha_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"scalable-coupon-system/internal/wait"
)

// startHAProxy runs HAProxy with haproxy.cfg in front of one instance at address; the other one is
// down. Its time-outs for requests are a fifth of those in the file, so that the test does not wait
// for long. It returns HAProxy's address.
func startHAProxy(t *testing.T, instance string) string {
	t.Helper()
	program, err := exec.LookPath("haproxy")
	if err != nil {
		if program, err = exec.LookPath("/usr/sbin/haproxy"); err != nil {
			t.Skip("haproxy is not installed (Debian: apt-get install haproxy); its configuration is not tested")
		}
	}
	text, err := os.ReadFile("haproxy.cfg")
	if err != nil {
		t.Fatal(err)
	}
	errorFiles, err := filepath.Abs("errors")
	if err != nil {
		t.Fatal(err)
	}
	address := freeAddress(t)
	config := filepath.Join(t.TempDir(), "haproxy.cfg")
	replaced := strings.NewReplacer(
		"/etc/coupond-ha/errors", errorFiles,
		"bind :8080", "bind "+address,
		"coupond1:8080", instance,
		"coupond2:8080", freeAddress(t),
		"http-request 5s", "http-request 1s",
		"http-keep-alive 10s", "http-keep-alive 2s",
	).Replace(string(text))
	if err := os.WriteFile(config, []byte(replaced), 0o600); err != nil {
		t.Fatal(err)
	}
	if output, err := exec.CommandContext(t.Context(), program, "-c", "-f", config).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}

	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	cmd := exec.CommandContext(ctx, program, "-db", "-f", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	wait.For(t, "HAProxy to listen", func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	return address
}

// freeAddress returns an address of this machine on which nothing listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// A connection that does not complete a request is closed, long before 4,096 of them could fill
// maxconn.
func TestHAProxy_closesConnectionsWithoutARequest(t *testing.T) {
	t.Parallel()
	instance := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer instance.Close()
	address := startHAProxy(t, instance.Listener.Addr().String())

	for name, sent := range map[string]string{
		"nothing":                    "",
		"half a header":              "POST /api/coupons/claim HTTP/1.1\r\nHost: loc",
		"a request and nothing more": "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"a request and half of one":  "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if _, err := io.WriteString(conn, sent); err != nil {
				t.Fatal(err)
			}
			// Before `timeout client`, which does not close a connection that trickles bytes.
			if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if answer, err := io.ReadAll(conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("still open; answered %q", answer)
			}
		})
	}
}

// An instance whose health checks take longer than the interval, or one of whose checks fails, is
// still used: all requests meanwhile are answered by it.
func TestHAProxy_keepsAnInstanceThatIsBusy(t *testing.T) {
	t.Parallel()
	const failing = 2
	var checks atomic.Int32
	instance := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/health":
		case checks.Add(1) == failing:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			time.Sleep(time.Second)
		}
	}))
	defer instance.Close()
	address := startHAProxy(t, instance.Listener.Addr().String())

	refused := ""
	wait.For(t, "the checks after the one that fails", func() bool {
		response, err := http.Get(fmt.Sprintf("http://%s/api/coupons/lamp", address))
		if err != nil {
			refused = err.Error()
			return true
		}
		_ = response.Body.Close()
		if response.StatusCode != http.StatusOK {
			refused = response.Status
		}
		return refused != "" || checks.Load() > failing+1
	})
	if refused != "" {
		t.Errorf("a request after %d health checks: %s", checks.Load(), refused)
	}
}
