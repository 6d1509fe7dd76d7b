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

// RedisImage is the image that Redis comes from where no redis-server is installed.
const RedisImage = "redis:7"

// RedisServer is a Redis of this machine under way, with an append-only file and no snapshots.
type RedisServer struct {
	// Address is its "host:port", on this machine only.
	Address string
	cmd     *exec.Cmd // the server, or the docker client that stays with its container
	pid     int
}

// FindRedis says how this machine can run Redis: "redis-server" when that is installed, RedisImage when a Docker engine on
// Linux has the image or can get it, else "". (Elsewhere containers run in a virtual machine, behind a proxy for their
// ports: a race against that would not be fair.)
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

// RedisVersion is what the Redis that FindRedis found says of its version; "" where there is none.
func RedisVersion(ctx context.Context) string {
	version := []string{"redis-server", "--version"}
	if FindRedis(ctx) == RedisImage {
		version = []string{"docker", "run", "--rm", RedisImage, "--version"}
	}
	out, _ := exec.CommandContext(ctx, version[0], version[1:]...).Output()
	return strings.TrimSpace(string(out))
}

// StartRedis starts a Redis that syncs its data as appendfsync says: "always" or "everysec". They stand in dir, an existing
// folder, or with the container. It returns when the server takes connections; the server ends with ctx or by Stop.
func StartRedis(ctx context.Context, dir, appendfsync string) (*RedisServer, error) {
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	how := FindRedis(ctx)
	settings := []string{"--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--appendfsync", appendfsync}
	name := "race-redis-" + port
	s := &RedisServer{Address: net.JoinHostPort("127.0.0.1", port)}
	switch how {
	case "":
		return nil, fmt.Errorf("no redis-server is installed, and no Docker engine of Linux has %s", RedisImage)
	case RedisImage:
		// On the host's network, so that Redis pays for no proxy between it and the service.
		run := []string{"run", "--rm", "--name", name, "--network", "host", RedisImage}
		s.cmd = exec.CommandContext(ctx, "docker", append(run, settings...)...)
	default:
		s.cmd = exec.CommandContext(ctx, how, append(settings, "--dir", dir)...)
	}
	// An end that it can react to: the docker client stops its container.
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(os.Interrupt) }
	s.cmd.WaitDelay = 10 * time.Second
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	if err := s.await(ctx); err != nil {
		s.Stop()
		return nil, fmt.Errorf("%s: %w", how, err)
	}
	s.pid = s.cmd.Process.Pid
	if how == RedisImage {
		out, err := exec.CommandContext(ctx, "docker", "inspect", "--format", "{{.State.Pid}}", name).Output()
		if err == nil {
			s.pid, err = strconv.Atoi(strings.TrimSpace(string(out)))
		}
		if err != nil {
			s.Stop()
			return nil, fmt.Errorf("the process of %s: %w", name, err)
		}
	}
	return s, nil
}

// await returns when the server takes connections.
func (s *RedisServer) await(ctx context.Context) error {
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

// Pid is the server's process.
func (s *RedisServer) Pid() int { return s.pid }

// Stop ends the server and waits until it has ended.
func (s *RedisServer) Stop() {
	_ = s.cmd.Process.Signal(os.Interrupt)
	_ = s.cmd.Wait() // its data are thrown away; how it ended does not matter
}
