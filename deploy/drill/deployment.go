package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"scalable-coupon-system/bench/load"
)

// deployment is the containers of a folder's docker-compose.yml.
type deployment struct {
	project, folder string
	address         string // host:port of the service on this machine
}

// compose runs docker compose, or docker-compose where that is missing, and returns its standard
// output.
func (d *deployment) compose(ctx context.Context, args ...string) (string, error) {
	command := []string{"docker", "compose"}
	if exec.CommandContext(ctx, "docker", "compose", "version").Run() != nil {
		command = []string{"docker-compose"}
	}
	command = slices.Concat(command, []string{"-p", d.project, "-f", d.folder + "/docker-compose.yml"}, args)
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	// A process group of its own, so that Ctrl-C reaches only this program: a second Ctrl-C would
	// otherwise kill compose while it removes containers. When the context ends, the group gets
	// SIGINT instead of SIGKILL for the same reason.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 30 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		tail := stderr.String()
		return "", fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, tail[max(0, len(tail)-2000):])
	}
	return stdout.String(), nil
}

// awaitHealthy waits until the service is healthy.
func (d *deployment) awaitHealthy(ctx context.Context) error {
	return waitFor(ctx, 2*time.Minute, "the service to be healthy", func() bool {
		client := load.NewClient(d.address, 3*time.Second)
		defer client.Close()
		response, err := client.Get(ctx, "/health")
		return err == nil && response.Status == http.StatusOK
	})
}

// waitFor polls condition until it is true. After timeout it returns an error that says what it
// waited for.
func waitFor(ctx context.Context, timeout time.Duration, what string, condition func() bool) error {
	for deadline := time.Now().Add(timeout); !condition(); {
		if time.Now().After(deadline) {
			return fmt.Errorf("timed out after %v waiting for %s", timeout, what)
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// sleep waits for d. If ctx ends earlier, it returns ctx's error.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
