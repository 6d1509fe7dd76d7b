package pgtest

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ory/dockertest/v3"
)

// engine is the Docker engine of this machine.
func engine(t *testing.T) *dockertest.Pool {
	t.Helper()
	pool, err := dockertest.NewPool("")
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := pool.Client.PingWithContext(ctx); err != nil {
		t.Skipf("no Docker engine here: %v", err)
	}
	if _, err := pool.Client.InspectImage(defaultImage); err != nil {
		t.Skipf("no image %s here: %v", defaultImage, err)
	}
	return pool
}

var containerName = regexp.MustCompile(`coupon-dbtest-[0-9a-f]{8}-\d+-[0-9a-f]{8}`)

func TestContainer(t *testing.T) {
	t.Parallel()
	pool := engine(t)
	isThere := func(name string) bool {
		_, err := pool.Client.InspectContainer(name)
		return err == nil
	}
	p := newPackage(t)

	output := p.run(t, "passing", true)
	passed := containerName.FindString(output)
	if passed == "" || !strings.Contains(output, "of "+defaultImage) {
		t.Fatalf("it is not said which server was taken:\n%s", output)
	}
	eventually(t, "the container of the passing test is gone", func() bool { return !isThere(passed) })

	output = p.run(t, "failing", false)
	failed := containerName.FindString(output)
	t.Cleanup(func() {
		if err := removeContainer(pool, failed); err != nil {
			t.Error(err)
		}
	})
	if evidence := query(t, addressIn(t, output), "select value from public.evidence"); len(evidence) != 1 {
		t.Errorf("what the test has left is %v", evidence)
	}
	if !strings.Contains(output, "docker rm --force --volumes "+failed) {
		t.Errorf("it is not said how to remove it:\n%s", output)
	}
	if container, err := pool.Client.InspectContainer(failed); err != nil || container.NetworkSettings.Ports[postgresPort][0].HostIP != "127.0.0.1" {
		t.Errorf("the port is published at %+v, %v; want 127.0.0.1 only", container.NetworkSettings.Ports, err)
	}

	// The next run of the package removes it, and is killed in turn.
	run := p.start(t, "holding")
	eventually(t, "the run holds databases", func() bool { _, err := os.Stat(filepath.Join(p.dir, "holds")); return err == nil })
	if isThere(failed) {
		t.Error("the container of the failed test outlives the next run")
	}
	run.kill()
	killed := containerName.FindString(run.output.String())
	eventually(t, "the container of the killed run is gone", func() bool { return !isThere(killed) })
}

func TestPublishedAt(t *testing.T) {
	t.Parallel()
	for endpoint, want := range map[string][2]string{
		"unix:///var/run/docker.sock": {"127.0.0.1", "127.0.0.1"},
		"tcp://127.0.0.1:2375":        {"127.0.0.1", "127.0.0.1"},
		"tcp://localhost:2375":        {"127.0.0.1", "127.0.0.1"},
		"tcp://docker:2376":           {"0.0.0.0", "docker"},
		"https://192.0.2.7:2376":      {"0.0.0.0", "192.0.2.7"},
	} {
		if bind, dial := publishedAt(endpoint); bind != want[0] || dial != want[1] {
			t.Errorf("%s: published at %s and reached at %s, want %v", endpoint, bind, dial, want)
		}
	}
}
