package contestants

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// RedisImage is the container image of Redis that is used where no redis-server is installed.
const RedisImage = "redis:7"

// RedisServer is a running Redis on this machine, with an append-only file and no snapshots.
type RedisServer struct {
	// Address is its "host:port" on the loopback interface.
	Address string
	cmd     *exec.Cmd // the server, or the docker client attached to its container
	pid     int
}

// FindRedis returns how this machine can run Redis: "redis-server" if that is installed, RedisImage
// if a Docker engine on Linux has the image or can pull it, else "". On other systems containers
// run in a virtual machine behind a port proxy, which would slow Redis down unfairly.
func FindRedis(ctx context.Context) string {
	if _, err := exec.LookPath("redis-server"); err == nil {
		return "redis-server"
	}
	if runtime.GOOS != "linux" {
		return ""
	}
	if exec.CommandContext(ctx, "docker", "image", "inspect", RedisImage).Run() == nil ||
		exec.CommandContext(ctx, "docker", "pull", "--quiet", RedisImage).Run() == nil {
		return RedisImage
	}
	return ""
}

// RedisVersion returns the version that the Redis of FindRedis reports, or "" if there is no Redis.
func RedisVersion(ctx context.Context) string {
	version := []string{"redis-server", "--version"}
	if FindRedis(ctx) == RedisImage {
		version = []string{"docker", "run", "--rm", RedisImage, "--version"}
	}
	out, _ := exec.CommandContext(ctx, version[0], version[1:]...).Output()
	return strings.TrimSpace(string(out))
}

// StartRedis starts a Redis with that appendfsync, "always" or "everysec". Its data are in dir,
// which must exist, or in its container. StartRedis returns when the server accepts connections.
// The server runs until ctx ends or Stop is called.
func StartRedis(ctx context.Context, dir, appendfsync string) (*RedisServer, error) {
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	program := FindRedis(ctx)
	settings := []string{"--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--appendfsync", appendfsync}
	name := "race-redis-" + port
	s := &RedisServer{Address: net.JoinHostPort("127.0.0.1", port)}
	switch program {
	case "":
		return nil, fmt.Errorf("no redis-server is installed, and no Docker engine on Linux has %s", RedisImage)
	case RedisImage:
		// On the host's network, so that no proxy between Redis and the service slows it down.
		run := []string{"run", "--rm", "--name", name, "--network", "host", RedisImage}
		s.cmd = exec.CommandContext(ctx, "docker", append(run, settings...)...)
	default:
		s.cmd = exec.CommandContext(ctx, program, append(settings, "--dir", dir)...)
	}
	// An interrupt, not a kill: the docker client then stops its container.
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(os.Interrupt) }
	s.cmd.WaitDelay = 10 * time.Second
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	if err := s.awaitConnection(ctx); err != nil {
		s.Stop()
		return nil, fmt.Errorf("%s: %w", program, err)
	}
	s.pid = s.cmd.Process.Pid
	if program == RedisImage {
		out, err := exec.CommandContext(ctx, "docker", "inspect", "--format", "{{.State.Pid}}", name).Output()
		if err == nil {
			s.pid, err = strconv.Atoi(strings.TrimSpace(string(out)))
		}
		if err != nil {
			s.Stop()
			return nil, fmt.Errorf("process of container %s: %w", name, err)
		}
	}
	return s, nil
}

// awaitConnection waits at most 20 seconds until the server accepts a connection.
func (s *RedisServer) awaitConnection(ctx context.Context) error {
	var dialer net.Dialer
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := dialer.DialContext(ctx, "tcp", s.Address)
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
	}
}

func freePort(ctx context.Context) (string, error) {
	var listening net.ListenConfig
	listener, err := listening.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	port := listener.Addr().(*net.TCPAddr).Port
	return strconv.Itoa(port), listener.Close()
}

// Pid returns the process ID of the server.
func (s *RedisServer) Pid() int { return s.pid }

// Stop ends the server and waits for it.
func (s *RedisServer) Stop() {
	_ = s.cmd.Process.Signal(os.Interrupt)
	_ = s.cmd.Wait() // its data are discarded, so its exit status does not matter
}
