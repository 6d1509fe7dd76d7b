package localpg

import (
	"bufio"
	"bytes"
	"context"
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
	"time"

	"github.com/jackc/pgx/v5"
)

// The test binary runs itself again as a process that holds a server: this variable says what that one does with the cluster
// named by childDir.
const (
	childDoes = "LOCALPG_TEST_CHILD"
	childDir  = "LOCALPG_TEST_DIR"
	childBin  = "LOCALPG_TEST_BIN_DIR"
)

func TestMain(m *testing.M) {
	switch os.Getenv(childDoes) {
	case "":
		code := m.Run()
		if pristineDir != "" {
			_ = os.RemoveAll(pristineDir)
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
	}
}

func startInChild(then func(*Server) error) error {
	server, err := Start(context.Background(), Options{
		Dir: os.Getenv(childDir), BinDir: os.Getenv(childBin), Settings: map[string]string{"fsync": "off"},
	})
	if err != nil {
		return err
	}
	fmt.Println("ready", server.Pid(), server.run.cmd.Process.Pid)
	return then(server)
}

// child is a process of this test binary that works on a cluster.
type child struct {
	cmd      *exec.Cmd
	output   *bufio.Reader
	watchdog int // known when it is ready
}

func startChild(t *testing.T, does, dir, bin string) *child {
	t.Helper()
	executable, err := os.Executable()
	must(t, err)
	c := &child{cmd: exec.CommandContext(context.Background(), executable)}
	c.cmd.Env = append(os.Environ(), childDoes+"="+does, childDir+"="+dir, childBin+"="+bin)
	c.cmd.Stderr = os.Stderr
	output, err := c.cmd.StdoutPipe()
	must(t, err)
	c.output = bufio.NewReader(output)
	must(t, c.cmd.Start())
	t.Cleanup(c.kill)
	return c
}

// ready waits for the child's server and returns its postmaster.
func (c *child) ready(t *testing.T) (postmaster int) {
	t.Helper()
	line, _ := c.output.ReadString('\n')
	if _, err := fmt.Sscanf(line, "ready %d %d\n", &postmaster, &c.watchdog); err != nil {
		rest, _ := io.ReadAll(c.output)
		t.Fatalf("the child says: %s%s", line, rest)
	}
	return postmaster
}

// kill ends the child with SIGKILL and waits until it is gone.
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

// newDir is a folder within everybody's reach, as t.TempDir is not; whatever runs in it ends with the test.
func newDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "localpg-test-")
	must(t, err)
	must(t, os.Chmod(dir, 0o711))
	t.Cleanup(func() {
		if err := Remove(context.Background(), dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// newCluster is a newDir with a cluster that was made before. Making one takes seconds of a busy machine, copying it 0.1 s.
func newCluster(t *testing.T) string {
	t.Helper()
	made, err := pristine()
	must(t, err)
	dir := newDir(t)
	for _, name := range []string{"data", passwordFile} {
		must(t, exec.CommandContext(t.Context(), "cp", "-Rp", filepath.Join(made, name), dir).Run())
	}
	return dir
}

var (
	pristineDir string
	pristine    = sync.OnceValues(func() (string, error) {
		var err error
		if pristineDir, err = os.MkdirTemp("/tmp", "localpg-test-"); err != nil {
			return "", err
		}
		if err := os.Chmod(pristineDir, 0o711); err != nil {
			return "", err
		}
		server, err := Start(context.Background(), Options{Dir: pristineDir, Settings: map[string]string{"fsync": "off"}})
		if err != nil {
			return "", err
		}
		return pristineDir, server.Stop()
	})
)

// startIn starts a server in dir that does without fsync, like all here whose data no crash of the machine is to survive.
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

// query runs sql, as many commands as there are, and returns the first column of the last one's rows.
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
		t.Fatalf("no error; want one with %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error lacks %q: %v", part, err)
		}
	}
}

// eventually waits up to a minute.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); <-pause() {
		if time.Now().After(deadline) {
			t.Fatalf("still not true after a minute: %s", what)
		}
	}
}

// wantGone waits until nothing holds the lock of dir: initdb, watchdog and every process of the server have ended. (Not at
// once: what this process starts meanwhile, in parallel tests, has a copy of the lock until it becomes another program.)
func wantGone(t *testing.T, dir string) {
	t.Helper()
	file, err := os.Open(filepath.Join(dir, lockFile))
	must(t, err)
	defer file.Close()
	eventually(t, "nothing of the server lives on", func() bool {
		err := flock(file, syscall.LOCK_SH)
		if err != nil && !errors.Is(err, syscall.EWOULDBLOCK) {
			t.Fatal(err)
		}
		return err == nil
	})
}

// realBins are the binaries that the machine has.
var realBins = sync.OnceValues(func() (bins, error) {
	account, err := serverAccount("")
	if err != nil {
		return bins{}, err
	}
	return find(context.Background(), finder{account: account, say: func(string, ...any) {}})
})

// script writes a program for the shell into dir.
func script(t *testing.T, dir, name, text string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755))
}

// fakeBins is a folder of binaries whose initdb is the given script, in which $real is the folder of the true ones.
func fakeBins(t *testing.T, initdb string) string {
	t.Helper()
	found, err := realBins()
	must(t, err)
	dir := newDir(t)
	script(t, dir, "initdb", "real='"+found.dir+"'\n"+initdb)
	must(t, os.Symlink(filepath.Join(found.dir, "postgres"), filepath.Join(dir, "postgres")))
	return dir
}

// journal is a Log that can be read while it is written.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}
