package rivals

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"time"
)

// RedisServer is a redis-server of this machine under way, with an append-only file and no snapshots.
type RedisServer struct {
	// Address is its "host:port", on this machine only.
	Address string
	cmd     *exec.Cmd
}

// HasRedis says whether this machine has a redis-server.
func HasRedis() bool {
	_, err := exec.LookPath("redis-server")
	return err == nil
}

// StartRedis starts a redis-server that keeps its data in dir, an existing folder, and syncs them as appendfsync says:
// "always" or "everysec". It returns when the server takes connections; the server ends with ctx or by Stop.
func StartRedis(ctx context.Context, dir, appendfsync string) (*RedisServer, error) {
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	s := &RedisServer{Address: net.JoinHostPort("127.0.0.1", port)}
	s.cmd = exec.CommandContext(ctx, "redis-server", //nolint:gosec // fixed arguments
		"--port", port, "--bind", "127.0.0.1", "--dir", dir, "--save", "", "--appendonly", "yes", "--appendfsync", appendfsync)
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	var dialer net.Dialer
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := dialer.DialContext(ctx, "tcp", s.Address)
		if err == nil {
			return s, conn.Close()
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			s.Stop()
			return nil, fmt.Errorf("redis-server: %w", err)
		}
	}
}

func freePort(ctx context.Context) (string, error) {
	var listening net.ListenConfig
	listener, err := listening.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	port := listener.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // a TCP listener has one
	return strconv.Itoa(port), listener.Close()
}

// Pid is the server's process.
func (s *RedisServer) Pid() int { return s.cmd.Process.Pid }

// Stop ends the server and waits until it has ended.
func (s *RedisServer) Stop() {
	_ = s.cmd.Process.Signal(os.Interrupt)
	_ = s.cmd.Wait() // its data are thrown away; how it ended does not matter
}
