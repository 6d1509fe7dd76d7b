// Package drill is shared by the programs that break a deployment under load. It runs the
// containers of a compose file, and a sale with a check of all answers against what the service has
// stored.
package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

// ErrFailed is returned by a drill that found a violation, see [Result.OK], or missed another of
// its own requirements.
var ErrFailed = errors.New("drill failed")

// Main runs a drill with the program's arguments and returns the program's exit status. SIGINT and
// SIGTERM end the context of run.
func Main(name string, run func(context.Context, []string) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return 0
		}
		_, _ = fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 1
	}
	return 0
}

// Deployment is the containers of a compose file.
type Deployment struct {
	// Project is the project name for compose. File is the compose file, relative to the working
	// directory.
	Project, File string
	// Environ is added to the environment of compose, as name=value.
	Environ []string
}

// Run builds and starts the containers and calls fn. Afterwards it removes the containers with
// their data, unless keep is true.
func (d *Deployment) Run(ctx context.Context, keep bool, fn func(context.Context) error) (err error) {
	if !keep {
		defer func() {
			err = errors.Join(err, d.Compose(context.WithoutCancel(ctx), "down", "--volumes", "--remove-orphans", "--timeout", "10"))
		}()
	}
	// Without --force-rm the classic builder leaves the container of an interrupted step.
	for _, args := range [][]string{{"build", "--force-rm"}, {"up", "--detach"}} {
		if err := d.Compose(ctx, args...); err != nil {
			return err
		}
	}
	return fn(ctx)
}

// Compose runs docker compose with args, or docker-compose where that is missing.
func (d *Deployment) Compose(ctx context.Context, args ...string) error {
	name, all := "docker-compose", []string{"-p", d.Project, "-f", d.File}
	if _, err := command(ctx, nil, "docker", "compose", "version"); err == nil {
		name, all = "docker", append([]string{"compose"}, all...)
	}
	_, err := command(ctx, d.Environ, name, append(all, args...)...)
	return err
}

// Kill kills the container of a service with SIGKILL, as in a crash.
func (d *Deployment) Kill(ctx context.Context, service string) error {
	return d.docker(ctx, "kill", service)
}

// Start starts the container of a service that was killed.
func (d *Deployment) Start(ctx context.Context, service string) error {
	return d.docker(ctx, "start", service)
}

func (d *Deployment) docker(ctx context.Context, action, service string) error {
	id, err := d.container(ctx, service)
	if err != nil {
		return err
	}
	_, err = command(ctx, nil, "docker", action, id)
	return err
}

// Exec runs a program in the container of a service and returns its standard output. If user is
// empty, it runs as the container's user.
func (d *Deployment) Exec(ctx context.Context, service, user string, args ...string) (string, error) {
	id, err := d.container(ctx, service)
	if err != nil {
		return "", err
	}
	return command(ctx, nil, "docker", append([]string{"exec", "--user=" + user, id}, args...)...)
}

func (d *Deployment) container(ctx context.Context, service string) (string, error) {
	id, err := command(ctx, nil, "docker", "ps", "--all", "--quiet", "--latest",
		"--filter", "label=com.docker.compose.project="+d.Project, "--filter", "label=com.docker.compose.service="+service)
	if err == nil && strings.TrimSpace(id) == "" {
		err = fmt.Errorf("service %s has no container", service)
	}
	return strings.TrimSpace(id), err
}

func command(ctx context.Context, environ []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), environ...)
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
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, tail[max(0, len(tail)-2000):])
	}
	return stdout.String(), nil
}

// AwaitHealthy waits at most two minutes until the service at address ("host:port") is healthy.
func AwaitHealthy(ctx context.Context, address string) error {
	return Wait(ctx, 2*time.Minute, "the service to be healthy", func() bool {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/health", nil)
		if err != nil {
			return false
		}
		response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
}

// Wait polls condition until it is true. After timeout it returns an error that says what it waited
// for.
func Wait(ctx context.Context, timeout time.Duration, what string, condition func() bool) error {
	for deadline := time.Now().Add(timeout); !condition(); {
		if time.Now().After(deadline) {
			return fmt.Errorf("timed out after %v waiting for %s", timeout, what)
		}
		if err := Sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// Sleep waits for d. If ctx ends earlier, it returns ctx's error.
func Sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
