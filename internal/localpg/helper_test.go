package localpg

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/internal/wait"
)

// The test binary runs itself again as a child process that starts a server. childMode says what
// the child does with the cluster in childDir.
const (
	childMode = "LOCALPG_TEST_CHILD"
	childDir  = "LOCALPG_TEST_DIR"
	childBin  = "LOCALPG_TEST_BIN_DIR"
)

func TestMain(m *testing.M) {
	switch os.Getenv(childMode) {
	case "":
		code := m.Run()
		if sourceDir != "" {
			_ = os.RemoveAll(sourceDir)
		}
		os.Exit(code)
	case "hold":
		err := startInChild(func(*Server) error { select {} })
		fmt.Println(err)
		os.Exit(1)
	case "detach":
		if err := startInChild((*Server).Detach); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	case "query":
		if err := queryInChild(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
}

// queryInChild prints what the environment could change in a session.
func queryInChild() error {
	ctx := context.Background()
	server, err := Start(ctx, Options{Dir: os.Getenv(childDir), Settings: map[string]string{"fsync": "off", "TimeZone": "UTC"}})
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, server.URL("postgres"))
	if err != nil {
		return err
	}
	var session string
	if err := conn.QueryRow(ctx, `
		select concat_ws(' ', current_user, current_database(), current_setting('transaction_read_only'),
			current_setting('application_name'), current_setting('TimeZone'), current_setting('DateStyle'), current_setting('client_encoding'))`,
	).Scan(&session); err != nil {
		return err
	}
	fmt.Println(session)
	return errors.Join(conn.Close(ctx), server.Stop())
}

func startInChild(then func(*Server) error) error {
	server, err := Start(context.Background(), Options{
		Dir: os.Getenv(childDir), BinDir: os.Getenv(childBin), Settings: map[string]string{"fsync": "off"},
	})
	if err != nil {
		return err
	}
	fmt.Println("ready", server.Pid(), server.process.cmd.Process.Pid)
	return then(server)
}

// child is a process of this test binary that runs a server.
type child struct {
	cmd      *exec.Cmd
	output   *bufio.Reader
	watchdog int // process ID, known after ready
}

func startChild(t *testing.T, mode, dir, bin string, environment ...string) *child {
	t.Helper()
	executable, err := os.Executable()
	must(t, err)
	c := &child{cmd: exec.CommandContext(context.Background(), executable)}
	c.cmd.Env = append(append(os.Environ(), childMode+"="+mode, childDir+"="+dir, childBin+"="+bin), environment...)
	c.cmd.Stderr = os.Stderr
	output, err := c.cmd.StdoutPipe()
	must(t, err)
	c.output = bufio.NewReader(output)
	must(t, c.cmd.Start())
	t.Cleanup(c.kill)
	return c
}

// ready waits for the child's server and returns the process ID of its postmaster.
func (c *child) ready(t *testing.T) (postmaster int) {
	t.Helper()
	line, _ := c.output.ReadString('\n')
	if _, err := fmt.Sscanf(line, "ready %d %d\n", &postmaster, &c.watchdog); err != nil {
		rest, _ := io.ReadAll(c.output)
		t.Fatalf("the child printed %s%s, want ready and two process IDs", line, rest)
	}
	return postmaster
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
	must(t, mkdirTraversable(dir))
	t.Cleanup(func() {
		if err := Remove(context.Background(), dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// newCluster returns a newDir with a copy of a cluster. Copying one is much faster than initdb.
func newCluster(t *testing.T) string {
	t.Helper()
	source, err := sourceCluster()
	must(t, err)
	dir := newDir(t)
	for _, name := range []string{"data", passwordFile} {
		must(t, exec.CommandContext(t.Context(), "cp", "-Rp", filepath.Join(source, name), dir).Run())
	}
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
		server, err := Start(context.Background(), Options{Dir: sourceDir, Settings: map[string]string{"fsync": "off"}})
		if err != nil {
			return "", err
		}
		return sourceDir, server.Stop()
	})
)

// startIn starts a server in dir without fsync. Tests of a crash of the machine need fsync, other
// tests do not.
func startIn(t *testing.T, dir string) *Server {
	t.Helper()
	return startWith(t, Options{Dir: dir, Settings: map[string]string{"fsync": "off"}})
}

func startWith(t *testing.T, o Options) *Server {
	t.Helper()
	server, err := Start(t.Context(), o)
	must(t, err)
	t.Cleanup(func() { _ = server.Stop() })
	return server
}

// query runs sql, which may contain several statements, and returns the first column of the last
// one's rows.
func query(t *testing.T, url, sql string) []string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	must(t, err)
	defer conn.Close(context.Background())
	results, err := conn.PgConn().Exec(t.Context(), sql).ReadAll()
	must(t, err)
	rows := results[len(results)-1].Rows
	values := make([]string, 0, len(rows))
	for _, row := range rows {
		values = append(values, string(row[0]))
	}
	return values
}

func wantQuery(t *testing.T, url, sql, want string) {
	t.Helper()
	if got := strings.Join(query(t, url, sql), " "); got != want {
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

// wantGone waits until the lock on dir is free: initdb, the watchdog and all processes of the
// server have ended. This takes a moment, because a process that a parallel test starts has a copy
// of the lock until its exec.
func wantGone(t *testing.T, dir string) {
	t.Helper()
	file, err := os.Open(filepath.Join(dir, runningFile))
	must(t, err)
	defer func() { _ = file.Close() }()
	wait.For(t, "the processes of the server to end", func() bool {
		err := flock(file, syscall.LOCK_SH)
		if err != nil && !errors.Is(err, syscall.EWOULDBLOCK) {
			t.Fatal(err)
		}
		return err == nil
	})
}

// realInstallation returns the installation of this machine.
var realInstallation = sync.OnceValues(func() (installation, error) {
	account, err := serverAccount("")
	if err != nil {
		return installation{}, err
	}
	return findInstallation(context.Background(), finder{account: account, logf: func(string, ...any) {}})
})

// script writes a shell script to dir.
func script(t *testing.T, dir, name, text string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755))
}

// fakeInstallation returns a directory with the machine's postgres and a script as initdb. In the
// script, $real is the directory of the real programs.
func fakeInstallation(t *testing.T, initdb string) string {
	t.Helper()
	found, err := realInstallation()
	must(t, err)
	dir := newDir(t)
	script(t, dir, "initdb", "real='"+found.dir+"'\n"+initdb)
	must(t, os.Symlink(filepath.Join(found.dir, "postgres"), filepath.Join(dir, "postgres")))
	return dir
}

// logBuffer is an Options.Log that can be read while it is written.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
