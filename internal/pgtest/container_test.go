package pgtest

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ory/dockertest/v3"

	"scalable-coupon-system/internal/wait"
)

// engine returns a client of this machine's Docker engine. It skips the test if the engine or the
// image is missing.
func engine(t *testing.T) *dockertest.Pool {
	t.Helper()
	pool, err := dockertest.NewPool("")
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := pool.Client.PingWithContext(ctx); err != nil {
		t.Skipf("no Docker engine: %v", err)
	}
	if _, err := pool.Client.InspectImage(defaultImage); err != nil {
		t.Skipf("no image %s: %v", defaultImage, err)
	}
	return pool
}

var containerName = regexp.MustCompile(`coupond-pgtest-[0-9a-f]{8}-\d+-[0-9a-f]{8}`)

func TestContainer(t *testing.T) {
	t.Parallel()
	pool := engine(t)
	exists := func(name string) bool {
		_, err := pool.Client.InspectContainer(name)
		return err == nil
	}
	p := newPackage(t)

	output := p.run(t, "passing", true)
	passed := containerName.FindString(output)
	if passed == "" || !strings.Contains(output, "of "+defaultImage) {
		t.Fatalf("the output does not say which server was selected:\n%s", output)
	}
	wait.For(t, "the removal of the container after a passing test", func() bool { return !exists(passed) })

	output = p.run(t, "failing", false)
	failed := containerName.FindString(output)
	t.Cleanup(func() {
		if err := removeContainer(pool, failed); err != nil {
			t.Error(err)
		}
	})
	if rows := query(t, addressIn(t, output), "select value from public.evidence"); len(rows) != 1 {
		t.Errorf("the kept database contains %v, want 1 row", rows)
	}
	if !strings.Contains(output, "docker rm --force --volumes "+failed) {
		t.Errorf("the output does not say how to remove the container:\n%s", output)
	}
	if container, err := pool.Client.InspectContainer(failed); err != nil || container.NetworkSettings.Ports[postgresPort][0].HostIP != "127.0.0.1" {
		t.Errorf("the port is published on %+v, %v; want 127.0.0.1 only", container.NetworkSettings.Ports, err)
	}

	// The next run of the package removes the container. Then that run is killed.
	run := p.start(t, "waiting")
	waitReady(t, p)
	if exists(failed) {
		t.Error("the container of the failed test still exists after the next run started")
	}
	run.kill()
	killed := containerName.FindString(run.output.String())
	wait.For(t, "the removal of the container of the killed run", func() bool { return !exists(killed) })
}

func TestPublishAddresses(t *testing.T) {
	t.Parallel()
	for endpoint, want := range map[string][2]string{
		"unix:///var/run/docker.sock": {"127.0.0.1", "127.0.0.1"},
		"tcp://127.0.0.1:2375":        {"127.0.0.1", "127.0.0.1"},
		"tcp://localhost:2375":        {"127.0.0.1", "127.0.0.1"},
		"tcp://docker:2376":           {"0.0.0.0", "docker"},
		"https://192.0.2.7:2376":      {"0.0.0.0", "192.0.2.7"},
	} {
		if bind, dial := publishAddresses(endpoint); bind != want[0] || dial != want[1] {
			t.Errorf("%s: got publish address %s and connect address %s, want %v", endpoint, bind, dial, want)
		}
	}
}
