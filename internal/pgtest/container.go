package pgtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
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

// container is a server in a container of ours.
type container struct {
	pool *dockertest.Pool
	id   string
	name string
	// lifeline is the input of a little shell process that removes the container when it closes, that is when we are gone,
	// however we went (Ctrl-C, a time-out of go test, SIGKILL); a line there says that it is to stay. nil where there is no
	// docker command: then the engine itself ends the container some time (see expiry).
	lifeline *os.File
}

// Labels by which a later process of the same package finds what was left.
const (
	packageLabel = "coupon-pgtest.package"
	processLabel = "coupon-pgtest.process"
)

const postgresPort = "5432/tcp"

// startContainer starts a server in a container, when there is a Docker engine and the image can be had.
func startContainer(ctx context.Context, image string) (s *server, what string, err error) {
	pool, err := dockertest.NewPool("")
	if err != nil {
		return nil, "", err
	}
	ping, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := pool.Client.PingWithContext(ping); err != nil { // NewPool succeeds without an engine, too
		return nil, "", fmt.Errorf("no Docker engine answers (%w)", err)
	}
	removeLeftContainers(pool)
	repository, tag, err := provideImage(ctx, pool, image)
	if err != nil {
		return nil, "", err
	}

	bind, dial := publishedAt(pool.Client.Endpoint())
	password := rand.Text()
	command := []string{"postgres"}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		command = append(command, "-c", name+"="+settings[name])
	}
	c := &container{pool: pool, name: fmt.Sprintf("coupon-dbtest-%s-%d-%s", thisPackage(), os.Getpid(), newRun())}
	if err := c.hold(); err != nil {
		return nil, "", err
	}
	resource, err := pool.RunWithOptions(&dockertest.RunOptions{
		Name:         c.name,
		Repository:   repository,
		Tag:          tag,
		Env:          []string{"POSTGRES_PASSWORD=" + password},
		Cmd:          command,
		Labels:       map[string]string{packageLabel: thisPackage(), processLabel: fmt.Sprint(os.Getpid())},
		PortBindings: map[docker.Port][]docker.PortBinding{postgresPort: {{HostIP: bind, HostPort: ""}}},
	}, func(config *docker.HostConfig) {
		config.AutoRemove = true
		config.PublishAllPorts = false
		config.ShmSize = 256 << 20 // parallel queries share memory there; Docker's 64 MiB are few
	})
	if err != nil {
		c.release()
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
	return newServer(admin, c), fmt.Sprintf("container %s of %s", c.name, image), nil
}

// provideImage makes sure that the image is there, and takes it apart. Pulling is bounded: whoever has binaries of PostgreSQL on
// his machine would rather use them than wait for a slow line.
func provideImage(ctx context.Context, pool *dockertest.Pool, image string) (repository, tag string, err error) {
	repository, tag = image, "latest"
	if colon := strings.LastIndex(image, ":"); colon > strings.LastIndex(image, "/") {
		repository, tag = image[:colon], image[colon+1:]
	}
	_, err = pool.Client.InspectImage(repository + ":" + tag)
	if !errors.Is(err, docker.ErrNoSuchImage) {
		return repository, tag, err
	}
	say("pulling %s", image)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	err = pool.Client.PullImage(docker.PullImageOptions{Repository: repository, Tag: tag, Context: ctx}, docker.AuthConfiguration{})
	if err != nil {
		return "", "", fmt.Errorf("%s is not here and cannot be pulled: %w", image, err)
	}
	return repository, tag, nil
}

// publishedAt tells on which address a container's port is to be published, and at which it is reached from here: this
// machine's own, except for an engine on another one.
func publishedAt(endpoint string) (bind, dial string) {
	if u, err := url.Parse(endpoint); err == nil && u.Scheme != "unix" && u.Hostname() != "" {
		if ip := net.ParseIP(u.Hostname()); u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return "0.0.0.0", u.Hostname()
		}
	}
	return "127.0.0.1", "127.0.0.1"
}

// expiry is when the engine itself kills the container, in seconds from now: the last resort. It is later than go test's own
// time-out; and a container that is kept for somebody to look at is there for a working day.
func expiry() uint {
	d := 24 * time.Hour
	if f := flag.Lookup("test.timeout"); f != nil {
		if timeout, err := time.ParseDuration(f.Value.String()); err == nil && timeout > 0 {
			d = timeout + workingDay
		}
	}
	return uint(d.Seconds())
}

// hold starts the process at the other end of the lifeline. It is out of reach of the terminal's Ctrl-C.
func (c *container) hold() error {
	program, err := exec.LookPath("docker")
	if err != nil {
		return nil // see lifeline
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reader.Close()

	keeper := exec.Command("/bin/sh", "-c", `read -r stay || "$0" rm --force --volumes "$1" >/dev/null 2>&1`, program, c.name)
	keeper.Env = append(os.Environ(), "DOCKER_HOST="+c.pool.Client.Endpoint()) // the engine that dockertest has found
	keeper.Stdin = reader
	keeper.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := keeper.Start(); err != nil {
		return errors.Join(err, writer.Close())
	}
	go keeper.Wait()
	c.lifeline = writer
	return nil
}

// release lets the container live without us.
func (c *container) release() {
	if c.lifeline != nil {
		_, _ = c.lifeline.WriteString("stay\n")
		_ = c.lifeline.Close()
	}
}

func (c *container) keep() (string, error) {
	c.release()
	return "docker rm --force --volumes " + c.name, nil
}

func (c *container) close(*server) error {
	c.release()
	return removeContainer(c.pool, c.id)
}

// removeByName is for a container of which it is not known whether it was made.
func (c *container) removeByName() error { return removeContainer(c.pool, c.name) }

func removeContainer(pool *dockertest.Pool, id string) error {
	err := pool.Client.RemoveContainer(docker.RemoveContainerOptions{ID: id, Force: true, RemoveVolumes: true})
	var missing *docker.NoSuchContainer
	var refused *docker.Error
	// 409: the engine is removing it already, because it has ended.
	if errors.As(err, &missing) || (errors.As(err, &refused) && refused.Status == 409) {
		return nil
	}
	return err
}

// removeLeftContainers removes what tests of this package have left before: for somebody to look at, or because they were
// killed where there is no docker command.
func removeLeftContainers(pool *dockertest.Pool) {
	left, err := pool.Client.ListContainers(docker.ListContainersOptions{
		All: true, Filters: map[string][]string{"label": {packageLabel + "=" + thisPackage()}},
	})
	if err != nil {
		say("%v", err)
	}
	for _, c := range left {
		var pid int
		if _, err := fmt.Sscan(c.Labels[processLabel], &pid); err != nil || isAlive(pid) {
			continue
		}
		if err := removeContainer(pool, c.ID); err != nil {
			say("%v", err)
		}
	}
}

// waitReady waits until the server answers a query. (The official image's server, while the cluster is being made, listens on
// no TCP port.)
func (c *container) waitReady(ctx context.Context, admin string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
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

// log are the last lines that the container has written.
func (c *container) log() string {
	var text bytes.Buffer
	_ = c.pool.Client.Logs(docker.LogsOptions{
		Container: c.id, OutputStream: &text, ErrorStream: &text, Stdout: true, Stderr: true, Tail: "12",
	})
	return text.String()
}
