package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/ory/dockertest/v3"
	"github.com/ory/dockertest/v3/docker"
)

// lifetime is a shell command that runs in the container beside the server, and ends the container
// when its stdin closes. Only this process has the other end, so the container ends with it, even
// after SIGKILL.
const lifetime = `cat >/dev/null; kill -s QUIT 1`

const postgresPort = "5432/tcp"

// startContainer starts a server in a container. It fails if there is no Docker engine or no image.
func startContainer(ctx context.Context, image string) (*instance, error) {
	pool, err := dockertest.NewPool("")
	if err != nil {
		return nil, err
	}
	pool.MaxWait = timeout
	ping, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := pool.Client.PingWithContext(ping); err != nil { // NewPool succeeds even without an engine
		return nil, fmt.Errorf("no Docker engine answers (%w)", err)
	}
	repository, tag := docker.ParseRepositoryTag(image)
	if err := provideImage(ctx, pool, image, repository, tag); err != nil {
		return nil, err
	}

	password := rand.Text()
	command := []string{"postgres"}
	for name, value := range sharedSettings {
		command = append(command, "-c", name+"="+value)
	}
	resource, err := pool.RunWithOptions(&dockertest.RunOptions{
		Name: runPrefix() + rand.Text(), Repository: repository, Tag: tag, Cmd: command,
		Env:          []string{"POSTGRES_PASSWORD=" + password, "POSTGRES_INITDB_ARGS=--no-sync"},
		PortBindings: map[docker.Port][]docker.PortBinding{postgresPort: {{HostIP: "127.0.0.1"}}},
	}, func(config *docker.HostConfig) {
		config.AutoRemove = true
		config.PublishAllPorts = false
		config.ShmSize = 256 << 20 // parallel queries need more than Docker's default of 64 MiB
	})
	if err != nil {
		return nil, fmt.Errorf("start a container of %s: %w", image, err)
	}
	name := strings.TrimPrefix(resource.Container.Name, "/")
	stdin, _ := io.Pipe() // nothing is written to it
	go func() {
		_, _ = resource.Exec([]string{"sh", "-c", lifetime}, dockertest.ExecOptions{StdIn: stdin, StdOut: io.Discard})
	}()

	admin := fmt.Sprintf("postgres://postgres:%s@%s/postgres?sslmode=disable&connect_timeout=5", password, resource.GetHostPort(postgresPort))
	// While the official image creates the cluster, its server listens on no TCP port.
	err = pool.Retry(func() error {
		conn, err := pgx.Connect(ctx, admin)
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	})
	if err != nil {
		err = fmt.Errorf("the server in container %s does not answer: %w", name, err)
		return nil, errors.Join(err, pool.Purge(resource))
	}
	logf("using %s in container %s", image, name)
	return newInstance(admin, func() error { return pool.Purge(resource) })
}

// provideImage pulls the image if it is missing. That may take 2 minutes: after that, binaries on
// this machine are better than a slow download.
func provideImage(ctx context.Context, pool *dockertest.Pool, image, repository, tag string) error {
	_, err := pool.Client.InspectImage(image)
	if !errors.Is(err, docker.ErrNoSuchImage) {
		return err
	}
	logf("pulling %s", image)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	err = pool.Client.PullImage(docker.PullImageOptions{Repository: repository, Tag: tag, Context: ctx}, docker.AuthConfiguration{})
	if err != nil {
		return fmt.Errorf("image %s does not exist on this machine and cannot be pulled: %w", image, err)
	}
	return nil
}
