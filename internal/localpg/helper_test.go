package localpg

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/internal/wait"
)

// The test binary runs itself again as a child process that starts the cluster in childDir.
const childDir = "LOCALPG_TEST_DIR"

func TestMain(m *testing.M) {
	dir := os.Getenv(childDir)
	if dir == "" {
		code := m.Run()
		_ = os.RemoveAll(sourceDir)
		os.Exit(code)
	}
	server, err := Start(context.Background(), fast(dir))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready", server.Pid(), server.watchdog.Process.Pid, server.URL("postgres"))
	select {} // until it is killed
}

// child is a process of this test binary that runs a server.
type child struct {
	cmd                  *exec.Cmd
	output               *bufio.Reader
	postmaster, watchdog int // process IDs, known after ready
	url                  string
}

// startChild starts a child with environ in addition to this process's environment.
func startChild(t *testing.T, dir string, environ ...string) *child {
	t.Helper()
	executable, err := os.Executable()
	must(t, err)
	c := &child{cmd: exec.CommandContext(context.Background(), executable)}
	c.cmd.Env = slices.Concat(os.Environ(), environ, []string{childDir + "=" + dir})
	c.cmd.Stderr = os.Stderr
	output, err := c.cmd.StdoutPipe()
	must(t, err)
	c.output = bufio.NewReader(output)
	must(t, c.cmd.Start())
	t.Cleanup(c.kill)
	return c
}

// ready waits for the child's server.
func (c *child) ready(t *testing.T) *child {
	t.Helper()
	line, _ := c.output.ReadString('\n')
	if _, err := fmt.Sscanf(line, "ready %d %d %s\n", &c.postmaster, &c.watchdog, &c.url); err != nil {
		rest, _ := io.ReadAll(c.output)
		t.Fatalf("the child printed %s%s, want ready, two process IDs and a URL", line, rest)
	}
	return c
}

// kill kills the child with SIGKILL and waits until it has ended.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newDir returns a directory that the server's user can enter, unlike t.TempDir. At the end of the
// test it is removed, and a server in it killed.
func newDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join("/tmp", "localpg-test-"+rand.Text())
	must(t, os.Mkdir(dir, 0o700))
	must(t, os.Chmod(dir, 0o711)) // whatever the umask is
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		must(t, Remove(ctx, dir))
	})
	return dir
}

// newCluster returns a newDir with a copy of a cluster. Copying one is much faster than initdb.
func newCluster(t *testing.T) string {
	t.Helper()
	source, err := sourceCluster()
	must(t, err)
	dir := newDir(t)
	must(t, exec.CommandContext(t.Context(), "cp", "-Rp", filepath.Join(source, "data"), filepath.Join(source, passwordFile), dir).Run())
	return dir
}

var (
	sourceDir     string
	sourceCluster = sync.OnceValues(func() (string, error) {
		var err error
		if sourceDir, err = os.MkdirTemp("/tmp", "localpg-test-"); err != nil {
			return "", err
		}
		if err := os.Chmod(sourceDir, 0o711); err != nil {
			return "", err
		}
		server, err := Start(context.Background(), fast(sourceDir))
		if err != nil {
			return "", err
		}
		return sourceDir, server.Stop()
	})
)

// fast returns options without fsync. Tests of a crash of the machine need fsync, others do not.
func fast(dir string) Options {
	return Options{Dir: dir, Settings: map[string]string{"fsync": "off"}}
}

// startIn starts a server without fsync.
func startIn(t *testing.T, dir string) *Server {
	t.Helper()
	return startWith(t, fast(dir))
}

func startWith(t *testing.T, o Options) *Server {
	t.Helper()
	server, err := Start(t.Context(), o)
	must(t, err)
	t.Cleanup(func() { _ = server.Stop() })
	return server
}

// wantQuery runs sql, which may contain several statements, and compares the first column of the
// last one's rows.
func wantQuery(t *testing.T, url, sql, want string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	must(t, err)
	defer conn.Close(context.Background())
	results, err := conn.PgConn().Exec(t.Context(), sql).ReadAll()
	must(t, err)
	var values []string
	for _, row := range results[len(results)-1].Rows {
		values = append(values, string(row[0]))
	}
	if got := strings.Join(values, " "); got != want {
		t.Errorf("%s: got %q, want %q", sql, got, want)
	}
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("got no error, want one that contains %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not contain %q: %v", part, err)
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// waitGone waits until initdb, the watchdog and all processes of the server have ended. This takes
// a moment, because a process that a parallel test starts has a copy of the lock until its exec.
func waitGone(t *testing.T, dir string) {
	t.Helper()
	wait.For(t, "the processes of the server to end", func() bool { return !Running(dir) })
}

// cancelWhen returns a context that ends when condition becomes true.
func cancelWhen(t *testing.T, condition func() bool) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		for !condition() && t.Context().Err() == nil {
			time.Sleep(2 * time.Millisecond)
		}
		cancel(errors.New("the user has left"))
	}()
	return ctx
}

// script writes a shell script to dir.
func script(t *testing.T, dir, name, text string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755))
}

// realInstallation returns the installation of this machine.
var realInstallation = sync.OnceValues(func() (installation, error) {
	account, err := serverAccount("")
	if err != nil {
		return installation{}, err
	}
	return (&cluster{account: account, log: io.Discard}).findInstallation(context.Background())
})

// fakeInstallation returns a PATH that begins with a directory of scripts as initdb and postgres.
// "" means the machine's program. In a script, $real is the directory of the machine's programs.
func fakeInstallation(t *testing.T, initdb, postgres string) string {
	t.Helper()
	found, err := realInstallation()
	must(t, err)
	dir := newDir(t)
	for name, text := range map[string]string{"initdb": initdb, "postgres": postgres} {
		if text == "" {
			text = `exec "$real/` + name + `" "$@"`
		}
		script(t, dir, name, "real='"+found.dir+"'\n"+text)
	}
	return dir + ":" + os.Getenv("PATH")
}
