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

// BenchmarkClient compares what a request costs the client by client, while 128 connections ask as fast as they can.
// The other side is a process of its own, so that cpu-µs/op is the client's alone.
func BenchmarkClient(b *testing.B) {
	address := startAnswerer(b)
	const connections = 128
	body := []byte(`{"user_id":"user-000001","coupon_name":"sale"}`)

	clients := map[string]func(b *testing.B) func() error{
		"own": func(b *testing.B) func() error {
			c := NewConn(address, 10*time.Second)
			b.Cleanup(c.Close)
			request := []byte("POST /api/coupons/claim HTTP/1.1\r\nHost: " + address +
				"\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + string(body))
			return func() error {
				r, err := c.Do(context.Background(), request)
				if err == nil && r.Status != 201 {
					return fmt.Errorf("status %d", r.Status)
				}
				return err
			}
		},
		"fasthttp": func(b *testing.B) func() error {
			// A HostClient for each connection is its cheapest use: no pool to fight over.
			c := &fasthttp.HostClient{Addr: address, MaxConns: 1, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
				NoDefaultUserAgentHeader: true, DisablePathNormalizing: true}
			b.Cleanup(c.CloseIdleConnections)
			request, response := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
			request.SetRequestURI("http://" + address + "/api/coupons/claim")
			request.Header.SetMethod("POST")
			request.Header.SetContentType("application/json")
			return func() error {
				request.SetBodyRaw(body)
				err := c.Do(request, response)
				if err == nil && response.StatusCode() != 201 {
					return fmt.Errorf("status %d", response.StatusCode())
				}
				return err
			}
		},
		"net-http": func(b *testing.B) func() error {
			t := &http.Transport{MaxIdleConnsPerHost: 1, DisableCompression: true}
			b.Cleanup(t.CloseIdleConnections)
			c := &http.Client{Transport: t, Timeout: 10 * time.Second}
			return func() error {
				response, err := c.Post("http://"+address+"/api/coupons/claim", "application/json", bytes.NewReader(body))
				if err != nil {
					return err
				}
				_, _ = io.Copy(io.Discard, response.Body)
				_ = response.Body.Close()
				if response.StatusCode != 201 {
					return fmt.Errorf("status %d", response.StatusCode)
				}
				return nil
			}
		},
	}
	for _, name := range []string{"own", "fasthttp", "net-http"} {
		b.Run(name, func(b *testing.B) {
			var workers []func() error
			for range connections {
				do := clients[name](b)
				if err := do(); err != nil {
					b.Fatal(err)
				}
				workers = append(workers, do)
			}
			b.ReportAllocs()
			b.ResetTimer()
			before := cpu()
			var asked atomic.Int64
			var all sync.WaitGroup
			for _, do := range workers {
				all.Go(func() {
					for asked.Add(1) <= int64(b.N) {
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

// cpu is what this process has used, in user and system together.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

const answererEnv = "LOAD_TEST_ANSWERER"

// startAnswerer runs this test binary again as a server that answers every request with an empty 201.
func startAnswerer(b *testing.B) string {
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), answererEnv+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	in, err := cmd.StdinPipe() // its end tells the server that we have gone, however we went
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
	if os.Getenv(answererEnv) != "" {
		answer()
		return
	}
	os.Exit(m.Run())
}

func answer() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr())
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); os.Exit(0) }()
	created := []byte("HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nX-Request-Id: 0123456789abcdef\r\n" +
		"Date: Sun, 22 Nov 2026 20:00:00 GMT\r\nContent-Length: 0\r\n\r\n")
	for {
		conn, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		go func() {
			buffer := make([]byte, 4096)
			for {
				// Every client here sends a request in one write, and waits for its answer.
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
