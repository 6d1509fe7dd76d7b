package pgtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"flag" //nolint:depguard // go test defines its flags with this package; expiry reads -test.timeout
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/ory/dockertest/v3"
	"github.com/ory/dockertest/v3/docker"
)

// container is a server in a container that this process started.
type container struct {
	pool *dockertest.Pool
	id   string
	name string
	// remover is the stdin of a shell process that removes the container when stdin closes, that is
	// when this process has ended, even after SIGKILL. A line on stdin makes it keep the container.
	// remover is nil if the docker command is missing; then the Docker engine ends the container
	// later (see expiry).
	remover *os.File
}

// Labels by which later processes of the same package find old containers.
const (
	packageLabel = "coupond-pgtest.package"
	processLabel = "coupond-pgtest.process"
)

const postgresPort = "5432/tcp"

// startContainer starts a server in a container. It fails if there is no Docker engine or no image.
func startContainer(ctx context.Context, image string) (s *instance, what string, err error) {
	pool, err := dockertest.NewPool("")
	if err != nil {
		return nil, "", err
	}
	ping, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := pool.Client.PingWithContext(ping); err != nil { // NewPool succeeds even without an engine
		return nil, "", fmt.Errorf("no Docker engine answers (%w)", err)
	}
	removeOldContainers(pool)
	repository, tag, err := provideImage(ctx, pool, image)
	if err != nil {
		return nil, "", err
	}

	bind, dial := publishAddresses(pool.Client.Endpoint())
	password := rand.Text()
	command := []string{"postgres"}
	for _, name := range slices.Sorted(maps.Keys(sharedSettings)) {
		command = append(command, "-c", name+"="+sharedSettings[name])
	}
	c := &container{pool: pool, name: fmt.Sprintf("coupond-pgtest-%s-%d-%s", packageID(), os.Getpid(), newRunID())}
	if err := c.startRemover(); err != nil {
		return nil, "", err
	}
	resource, err := pool.RunWithOptions(&dockertest.RunOptions{
		Name:         c.name,
		Repository:   repository,
		Tag:          tag,
		Env:          []string{"POSTGRES_PASSWORD=" + password},
		Cmd:          command,
		Labels:       map[string]string{packageLabel: packageID(), processLabel: fmt.Sprint(os.Getpid())},
		PortBindings: map[docker.Port][]docker.PortBinding{postgresPort: {{HostIP: bind, HostPort: ""}}},
	}, func(config *docker.HostConfig) {
		config.AutoRemove = true
		config.PublishAllPorts = false
		config.ShmSize = 256 << 20 // parallel queries need more than Docker's default of 64 MiB
	})
	if err != nil {
		c.disarmRemover()
		return nil, "", errors.Join(fmt.Errorf("start a container of %s: %w", image, err), c.removeByName())
	}
	c.id = resource.Container.ID
	if err := resource.Expire(expiry()); err != nil {
		return nil, "", errors.Join(err, c.close(nil))
	}

	admin := (&url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword("postgres", password),
		Host:     net.JoinHostPort(dial, resource.GetPort(postgresPort)),
		Path:     "/postgres",
		RawQuery: "sslmode=disable",
	}).String()
	if err := c.waitReady(ctx, admin); err != nil {
		return nil, "", errors.Join(err, c.close(nil))
	}
	return newInstance(admin, c), fmt.Sprintf("container %s of %s", c.name, image), nil
}

// provideImage pulls the image if it is missing, and splits its name. Pulling may take 2 minutes:
// after that, binaries on this machine are better than a slow download.
func provideImage(ctx context.Context, pool *dockertest.Pool, image string) (repository, tag string, err error) {
	repository, tag = image, "latest"
	if colon := strings.LastIndex(image, ":"); colon > strings.LastIndex(image, "/") {
		repository, tag = image[:colon], image[colon+1:]
	}
	_, err = pool.Client.InspectImage(repository + ":" + tag)
	if !errors.Is(err, docker.ErrNoSuchImage) {
		return repository, tag, err
	}
	logf("pulling %s", image)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	err = pool.Client.PullImage(docker.PullImageOptions{Repository: repository, Tag: tag, Context: ctx}, docker.AuthConfiguration{})
	if err != nil {
		return "", "", fmt.Errorf("image %s does not exist on this machine and cannot be pulled: %w", image, err)
	}
	return repository, tag, nil
}

// publishAddresses returns the address to publish a container's port on and the address to connect
// to. Both are 127.0.0.1, unless the Docker engine is on another machine.
func publishAddresses(endpoint string) (bind, dial string) {
	if u, err := url.Parse(endpoint); err == nil && u.Scheme != "unix" && u.Hostname() != "" {
		if ip := net.ParseIP(u.Hostname()); u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return "0.0.0.0", u.Hostname()
		}
	}
	return "127.0.0.1", "127.0.0.1"
}

// expiry returns when the Docker engine itself ends the container, in seconds from now. This is the
// last resort. It is later than the time-out of go test, and leaves a kept container for keepTime.
func expiry() uint {
	d := 24 * time.Hour
	if f := flag.Lookup("test.timeout"); f != nil {
		if timeout, err := time.ParseDuration(f.Value.String()); err == nil && timeout > 0 {
			d = timeout + keepTime
		}
	}
	return uint(d.Seconds())
}

// startRemover starts the process that removes the container, in a process group of its own, so
// that the terminal's Ctrl-C does not reach it.
func (c *container) startRemover() error {
	program, err := exec.LookPath("docker")
	if err != nil {
		return nil // see the field remover
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = reader.Close() }()

	process := exec.CommandContext(context.Background(), "/bin/sh", "-c", `read -r keep || "$0" rm --force --volumes "$1" >/dev/null 2>&1`, program, c.name)
	process.Env = append(os.Environ(), "DOCKER_HOST="+c.pool.Client.Endpoint()) // the engine that dockertest uses
	process.Stdin = reader
	process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := process.Start(); err != nil {
		return errors.Join(err, writer.Close())
	}
	go func() { _ = process.Wait() }()
	c.remover = writer
	return nil
}

// disarmRemover ends the remover without removing the container.
func (c *container) disarmRemover() {
	if c.remover != nil {
		_, _ = c.remover.WriteString("keep\n")
		_ = c.remover.Close()
	}
}

func (c *container) keep() (string, error) {
	c.disarmRemover()
	return "docker rm --force --volumes " + c.name, nil
}

func (c *container) close(*instance) error {
	c.disarmRemover()
	return removeContainer(c.pool, c.id)
}

// removeByName removes a container of which only the name is known, because its creation may have
// failed.
func (c *container) removeByName() error { return removeContainer(c.pool, c.name) }

func removeContainer(pool *dockertest.Pool, id string) error {
	err := pool.Client.RemoveContainer(docker.RemoveContainerOptions{ID: id, Force: true, RemoveVolumes: true})
	if _, ok := errors.AsType[*docker.NoSuchContainer](err); ok {
		return nil
	}
	// The engine is already removing it, because it has ended.
	if refused, ok := errors.AsType[*docker.Error](err); ok && refused.Status == http.StatusConflict {
		return nil
	}
	return err
}

// removeOldContainers removes the containers of earlier runs of this package: those that were kept,
// and those of killed runs without a remover.
func removeOldContainers(pool *dockertest.Pool) {
	old, err := pool.Client.ListContainers(docker.ListContainersOptions{
		All: true, Filters: map[string][]string{"label": {packageLabel + "=" + packageID()}},
	})
	if err != nil {
		logf("%v", err)
	}
	for _, c := range old {
		var pid int
		if _, err := fmt.Sscan(c.Labels[processLabel], &pid); err != nil || isAlive(pid) {
			continue
		}
		if err := removeContainer(pool, c.ID); err != nil {
			logf("%v", err)
		}
	}
}

// waitReady waits until the server answers a query. While the official image creates the cluster,
// its server listens on no TCP port.
func (c *container) waitReady(ctx context.Context, admin string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		conn, err := pgx.Connect(attempt, admin)
		if err == nil {
			_, err = conn.Exec(attempt, "select 1")
			_ = conn.Close(attempt)
		}
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the server in container %s does not answer: %w\n%s", c.name, err, c.log())
		case <-time.After(50 * time.Millisecond):
		}
		state, inspected := c.pool.Client.InspectContainer(c.id)
		if inspected != nil || !state.State.Running {
			return fmt.Errorf("container %s has ended: %w\n%s", c.name, err, c.log())
		}
	}
}

// log returns the last 12 lines of the container's log.
func (c *container) log() string {
	var text bytes.Buffer
	_ = c.pool.Client.Logs(docker.LogsOptions{
		Container: c.id, OutputStream: &text, ErrorStream: &text, Stdout: true, Stderr: true, Tail: "12",
	})
	return text.String()
}
