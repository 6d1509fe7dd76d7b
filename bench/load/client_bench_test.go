package load

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

// BenchmarkClient compares the CPU time of a request by HTTP client, with 128 connections in a
// closed loop. The server is another process, so cpu-µs/op is that of the client alone.
func BenchmarkClient(b *testing.B) {
	address := startServer(b)
	const connections = 128
	for _, client := range []struct {
		name string
		make func(b *testing.B, address string) func() error
	}{{"load", loadClient}, {"fasthttp", fasthttpClient}, {"net-http", netHTTPClient}} {
		b.Run(client.name, func(b *testing.B) {
			var workers []func() error
			for range connections {
				do := client.make(b, address)
				if err := do(); err != nil {
					b.Fatal(err)
				}
				workers = append(workers, do)
			}
			b.ReportAllocs()
			b.ResetTimer()
			before := cpu()
			var requests atomic.Int64
			var all sync.WaitGroup
			for _, do := range workers {
				all.Go(func() {
					for requests.Add(1) <= int64(b.N) {
						if err := do(); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			b.ReportMetric(float64((cpu()-before).Nanoseconds())/1e3/float64(b.N), "cpu-µs/op")
		})
	}
}

// BenchmarkRun measures all that the generator does for a request.
func BenchmarkRun(b *testing.B) {
	address := startServer(b)
	users := Users(10_000)
	b.ReportAllocs()
	b.ResetTimer()
	before := cpu()
	run, err := Start(b.Context(), Plan{
		Address: address, Connections: 128, Requests: b.N,
		Request: func(i int) Request { return Request{User: users[i%len(users)], Coupon: "sale"} },
	})
	if err != nil {
		b.Fatal(err)
	}
	if report := run.Wait(); report.Claims.Count(Claimed) != b.N {
		b.Errorf("%+v", report.Claims.Answers)
	}
	b.ReportMetric(float64((cpu()-before).Nanoseconds())/1e3/float64(b.N), "cpu-µs/op")
}

// BenchmarkReadResponse measures the parser.
func BenchmarkReadResponse(b *testing.B) {
	for name, answer := range map[string]string{
		"201": createdAnswer,
		"400": "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nX-Request-Id: 0123456789abcdef\r\n" +
			"Date: Sun, 22 Nov 2026 20:00:00 GMT\r\nContent-Length: 100\r\n\r\n" + strings.Repeat("x", 100),
	} {
		b.Run(name, func(b *testing.B) {
			source := strings.NewReader(answer)
			in, kept := bufio.NewReaderSize(source, bufferSize), make([]byte, 0, KeptBody)
			b.ReportAllocs()
			for b.Loop() {
				source.Reset(answer)
				if _, err := readResponse(in, kept); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

var claimBody = []byte(`{"user_id":"user-000001","coupon_name":"sale"}`)

// wrongStatus returns an error unless status is 201.
func wrongStatus(status int) error {
	if status != http.StatusCreated {
		return fmt.Errorf("status %d", status)
	}
	return nil
}

func loadClient(b *testing.B, address string) func() error {
	b.Helper()
	c := NewConn(address, 10*time.Second)
	b.Cleanup(c.Close)
	request := []byte("POST /api/coupons/claim HTTP/1.1\r\nHost: " + address +
		"\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(claimBody)) + "\r\n\r\n" + string(claimBody))
	return func() error {
		r, err := c.Do(context.Background(), request)
		if err != nil {
			return err
		}
		return wrongStatus(r.Status)
	}
}

// fasthttpClient has a HostClient for each connection, which is its cheapest use: connections share
// no pool.
func fasthttpClient(b *testing.B, address string) func() error {
	b.Helper()
	c := &fasthttp.HostClient{
		Addr: address, MaxConns: 1, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
		NoDefaultUserAgentHeader: true, DisablePathNormalizing: true,
	}
	b.Cleanup(c.CloseIdleConnections)
	request, response := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	request.SetRequestURI("http://" + address + "/api/coupons/claim")
	request.Header.SetMethod(http.MethodPost)
	request.Header.SetContentType("application/json")
	return func() error {
		request.SetBodyRaw(claimBody)
		if err := c.Do(request, response); err != nil {
			return err
		}
		return wrongStatus(response.StatusCode())
	}
}

func netHTTPClient(b *testing.B, address string) func() error {
	b.Helper()
	t := &http.Transport{MaxIdleConnsPerHost: 1, DisableCompression: true}
	b.Cleanup(t.CloseIdleConnections)
	c := &http.Client{Transport: t, Timeout: 10 * time.Second}
	return func() error {
		request, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://"+address+"/api/coupons/claim", bytes.NewReader(claimBody))
		if err != nil {
			return err
		}
		request.Header.Set("Content-Type", "application/json")
		response, err := c.Do(request)
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		return wrongStatus(response.StatusCode)
	}
}

// cpu returns the CPU time of this process, user and system.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

const (
	serverEnv     = "LOAD_TEST_SERVER"
	createdAnswer = "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nX-Request-Id: 0123456789abcdef\r\n" +
		"Date: Sun, 22 Nov 2026 20:00:00 GMT\r\nContent-Length: 0\r\n\r\n"
)

// startServer runs this test binary again as a server that answers every request with an empty 201.
func startServer(b *testing.B) string {
	b.Helper()
	cmd := exec.CommandContext(context.Background(), os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), serverEnv+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	in, err := cmd.StdinPipe() // the server ends when this pipe does, however this process ends
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(address)
}

func TestMain(m *testing.M) {
	if os.Getenv(serverEnv) != "" {
		runServer()
		return
	}
	os.Exit(m.Run())
}

func runServer() {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	_, _ = fmt.Fprintln(os.Stdout, listener.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = listener.Close()
	}()
	created := []byte(createdAnswer)
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			buffer := make([]byte, 4096)
			for {
				// Each client here sends a request in one write and waits for the answer.
				if _, err := conn.Read(buffer); err != nil {
					_ = conn.Close()
					return
				}
				if _, err := conn.Write(created); err != nil {
					return
				}
			}
		}()
	}
}
