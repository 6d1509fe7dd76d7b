// Package drill is what the programs that try a deployment share: its containers, by way of docker compose, and a sale whose books
// are compared in the end.
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
)

var (
	// ErrNotClean says that the books of a sale, or what was wanted of it beyond them, do not hold.
	ErrNotClean = errors.New("the books are not clean")
	errTimeout  = errors.New("waited in vain")
)

// Main runs a drill until it ends or is told to by SIGINT or SIGTERM, and returns the status for its program to exit with.
func Main(name string, run func(context.Context, []string) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		_, _ = fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 1
	}
	return 0
}

// Deployment is a compose file with its containers.
type Deployment struct {
	// Project is compose's name for it, and File its file, as seen from the folder in which the drill runs.
	Project, File string
	// Environ has what the file takes from the environment, as name=value.
	Environ []string
}

// Run builds and starts the containers, and calls do. In the end it removes them with their data, unless they are to be kept.
func (d *Deployment) Run(ctx context.Context, keep bool, do func(context.Context) error) (err error) {
	if !keep {
		defer func() {
			err = errors.Join(err, d.Compose(context.WithoutCancel(ctx), "down", "--volumes", "--remove-orphans", "--timeout", "10"))
		}()
	}
	// The classic builder leaves the container of a step that was stopped, unless it is forced.
	for _, args := range [][]string{{"build", "--force-rm"}, {"up", "--detach"}} {
		if err := d.Compose(ctx, args...); err != nil {
			return err
		}
	}
	return do(ctx)
}

// Compose runs docker compose, or its predecessor docker-compose.
func (d *Deployment) Compose(ctx context.Context, args ...string) error {
	name, all := "docker-compose", []string{"-p", d.Project, "-f", d.File}
	if _, err := command(ctx, nil, "docker", "compose", "version"); err == nil {
		name, all = "docker", append([]string{"compose"}, all...)
	}
	_, err := command(ctx, d.Environ, name, append(all, args...)...)
	return err
}

// Kill ends a service as a crash of its machine does.
func (d *Deployment) Kill(ctx context.Context, service string) error {
	return d.engine(ctx, "kill", service)
}

// Start starts a service that was killed.
func (d *Deployment) Start(ctx context.Context, service string) error {
	return d.engine(ctx, "start", service)
}

func (d *Deployment) engine(ctx context.Context, what, service string) error {
	id, err := d.container(ctx, service)
	if err != nil {
		return err
	}
	_, err = command(ctx, nil, "docker", what, id)
	return err
}

// Exec runs a program in the container of a service, as the user of that name where it is not empty, and returns what it printed.
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
		err = fmt.Errorf("%s has no container", service)
	}
	return strings.TrimSpace(id), err
}

func command(ctx context.Context, environ []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), environ...)
	// A Ctrl-C reaches this program alone: compose, killed by a second one in the middle of its removal, would leave something
	// behind. What runs when the context ends is asked to stop, with all that it has started, and not killed, for the same reason.
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

// Healthy waits until the service at address ("host:port") is ready.
func Healthy(ctx context.Context, address string) error {
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

// Wait waits until something is so, for so long at most.
func Wait(ctx context.Context, most time.Duration, what string, isSo func() bool) error {
	for deadline := time.Now().Add(most); !isSo(); {
		if time.Now().After(deadline) {
			return fmt.Errorf("%w for %s", errTimeout, what)
		}
		if err := Sleep(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// Sleep waits for so long, or until the context ends.
func Sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
