package localpg

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"scalable-coupon-system/internal/wait"
)

func TestStart_initdbFails(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	bin := fakeInstallation(t, `echo 15 >"${1#--pgdata=}/PG_VERSION"; echo "the disk is full" >&2; exit 3`)

	_, err := Start(t.Context(), Options{Dir: dir, BinDir: bin})
	wantError(t, err, "initdb", "exit status 3", "the disk is full")
	if _, err := os.Lstat(filepath.Join(dir, "data")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the data directory exists after a failed initdb: %v", err)
	}
	startIn(t, dir)
}

// If the locale C.UTF-8 is missing, C is used.
func TestStart_withoutLocaleCUTF8(t *testing.T) {
	t.Parallel()
	bin := fakeInstallation(t, `case "$*" in
*C.UTF-8*) echo 'invalid locale name "C.UTF-8"' >&2; exit 1 ;;
*) exec "$real/initdb" "$@" ;;
esac`)
	server := startWith(t, Options{Dir: newDir(t), BinDir: bin, Settings: map[string]string{"fsync": "off"}})
	wantQuery(t, server.URL("postgres"), "select datcollate from pg_database where datname = 'postgres'", "C")
	wantQuery(t, server.URL("postgres"), "show server_encoding", "UTF8")
}

// The process is killed during initdb, which continues. The next Start waits until it has ended.
func TestStart_afterKillDuringInitdb(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	bin := fakeInstallation(t, `"$real/initdb" "$@"; sleep 1`)
	c := startChild(t, "hold", dir, bin)
	newData := filepath.Join(dir, "data.new")
	wait.For(t, "initdb to write PG_VERSION", func() bool {
		_, err := os.Stat(filepath.Join(newData, "PG_VERSION"))
		return err == nil
	})
	c.kill()
	lock, err := os.Open(filepath.Join(dir, runningFile))
	must(t, err)
	defer func() { _ = lock.Close() }()
	if err := flock(lock, syscall.LOCK_SH); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Fatalf("initdb ended with its parent, so this test proves nothing: %v", err)
	}

	server := startIn(t, dir)
	wantQuery(t, server.URL("postgres"), "select 1", "1")
	if _, err := os.Stat(newData); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s still exists: %v", newData, err)
	}
}

func TestStart_contextCancelledDuringInitdb(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	bin := fakeInstallation(t, `touch "$0.runs"; sleep 60`)
	// The script runs as the server's account and writes to bin.
	account, err := serverAccount("")
	must(t, err)
	must(t, account.chown(bin))

	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		for !isFile(filepath.Join(bin, "initdb.runs")) && ctx.Err() == nil {
			<-time.After(pollInterval)
		}
		cancel(errors.New("the user has left"))
	}()
	start := time.Now()
	_, err = Start(ctx, Options{Dir: dir, BinDir: bin})
	wantError(t, err, "initdb", "the user has left")
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("Start took %s after its context was cancelled, want at most 30s", took)
	}
	wantGone(t, dir)
}

// After a power failure the process ID in postmaster.pid may belong to another process. If it has
// the same user, PostgreSQL alone would refuse to start.
func TestStart_stalePostmasterPid(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	server := startIn(t, dir)
	data := filepath.Join(server.Dir(), "data")
	stale, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	must(t, err)
	must(t, server.Kill())

	account, err := serverAccount(data)
	must(t, err)
	other := account.command(t.Context(), "sleep", "600")
	must(t, other.Start())
	t.Cleanup(func() { _ = other.Wait() })
	_, rest, _ := bytes.Cut(stale, []byte("\n"))
	file := filepath.Join(data, "postmaster.pid")
	must(t, os.WriteFile(file, append([]byte(strconv.Itoa(other.Process.Pid)+"\n"), rest...), 0o600))
	must(t, account.chown(file))

	wantQuery(t, startIn(t, dir).URL("postgres"), "select 1", "1")
	must(t, other.Process.Kill())
}

func TestStart_serverStartedByHand(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	server := startIn(t, dir)
	must(t, server.Stop())
	data := filepath.Join(server.Dir(), "data")
	account, err := serverAccount(data)
	must(t, err)
	byHand := account.command(t.Context(), filepath.Join(server.BinDir(), "postgres"), "-D", data,
		"-c", "port="+strconv.Itoa(server.Port()), "-c", "unix_socket_directories=")
	must(t, byHand.Start())
	wait.For(t, "the server to be ready", func() bool {
		text, _ := os.ReadFile(filepath.Join(data, "postmaster.pid"))
		return strings.Contains(string(text), "ready")
	})

	_, err = Start(t.Context(), Options{Dir: dir})
	running, ok := errors.AsType[*RunningError](err)
	if !ok || running.Pid != byHand.Process.Pid {
		t.Errorf("got %v, want ErrRunning of process %d", err, byHand.Process.Pid)
	}
	must(t, byHand.Process.Signal(syscall.SIGINT))
	must(t, byHand.Wait())
	startIn(t, dir)
}

func TestStart_otherMajorVersion(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	server := startIn(t, dir)
	must(t, server.Stop())
	data := filepath.Join(server.Dir(), "data")
	must(t, os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte("12\n"), 0o600))

	for _, bin := range []string{"", server.BinDir()} {
		_, err := Start(t.Context(), Options{Dir: dir, BinDir: bin})
		wantError(t, err, data+" was created by PostgreSQL 12", "the installed version is "+server.Version(),
			"install version 12 as well, or move "+data+" away")
	}
}

func TestStart_notADataDirectory(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	must(t, os.Mkdir(filepath.Join(dir, "data"), 0o700))
	_, err := Start(t.Context(), Options{Dir: dir})
	wantError(t, err, filepath.Join(dir, "data")+" is not a PostgreSQL data directory")

	_, err = Start(t.Context(), Options{})
	wantError(t, err, "Options.Dir is empty")
}

// Dir is below a directory that only root may enter, such as /root, but the server runs as another
// user.
func TestStart_fallbackDir(t *testing.T) {
	onlyRoot(t)
	saved := fallbackDir
	t.Cleanup(func() { fallbackDir = saved })
	fallbackDir = filepath.Join(newDir(t), "coupond")
	private := t.TempDir() // mode 0700
	must(t, os.Chmod(private, 0o700))
	dir := filepath.Join(private, ".coupond")
	log := &logBuffer{}
	o := Options{Dir: dir, Log: log, Settings: map[string]string{"fsync": "off"}}

	server := startWith(t, o)
	query(t, server.URL("postgres"), "create table kept as select 1")
	must(t, server.Stop())
	home, err := filepath.EvalSymlinks(filepath.Join(dir, "data"))
	must(t, err)
	if filepath.Dir(filepath.Dir(home)) != fallbackDir {
		t.Fatalf("the data is in %s, want it below %s", home, fallbackDir)
	}
	if !strings.Contains(log.String(), "its data will be in "+filepath.Dir(home)) {
		t.Errorf("the log does not say where the data is: %s", log)
	}
	server = startWith(t, o)
	wantQuery(t, server.URL("postgres"), "select count(*) from kept", "1")
	must(t, server.Stop())

	// If the user removes Dir, Start creates a new cluster but does not remove the old data.
	must(t, os.RemoveAll(dir))
	server = startWith(t, o)
	wantQuery(t, server.URL("postgres"), "select count(*) from pg_tables where tablename = 'kept'", "0")
	if !strings.Contains(log.String(), filepath.Dir(home)+" holds the data of an earlier cluster") {
		t.Errorf("the log does not mention the old data: %s", log)
	}
	must(t, server.Stop())

	// The process was killed between the link and the end of initdb.
	home, err = filepath.EvalSymlinks(filepath.Join(dir, "data"))
	must(t, err)
	must(t, os.RemoveAll(home))
	must(t, startWith(t, o).Stop())

	// The disk with the data is not mounted. A new cluster would hide that.
	must(t, os.Rename(filepath.Dir(home), filepath.Dir(home)+".unmounted"))
	_, err = Start(t.Context(), o)
	wantError(t, err, "links to "+home+", which does not exist")
	must(t, os.Rename(filepath.Dir(home)+".unmounted", filepath.Dir(home)))

	must(t, Remove(t.Context(), dir))
	if _, err := os.Stat(filepath.Dir(home)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Remove left %s: %v", filepath.Dir(home), err)
	}
}

func TestStart_rootKeepsOwnerOfData(t *testing.T) {
	onlyRoot(t)
	t.Parallel()
	dir := newCluster(t)
	server := startIn(t, dir)
	query(t, server.URL("postgres"), "create table kept as select 1")
	must(t, server.Stop())
	data := filepath.Join(server.Dir(), "data")

	for _, owner := range []uint32{
		0,    // copied or restored by root: Start gives it to the server's account
		4242, // another user, without an entry in /etc/passwd: the server runs as that user
	} {
		must(t, (&account{uid: owner, gid: owner}).chownAll(data))
		server = startIn(t, dir)
		wantQuery(t, server.URL("postgres"), "select count(*) from kept", "1")
		must(t, server.Stop())
		if now, _ := ownerOf(data); now == 0 || (owner != 0 && now != owner) {
			t.Errorf("the owner of the data changed from uid %d to uid %d", owner, now)
		}
	}
}

// This runs all tests of the package again as a user without privileges, because root takes other
// code paths.
func TestPackage_unprivilegedUser(t *testing.T) {
	onlyRoot(t)
	executable, err := os.Executable()
	must(t, err)
	home := newDir(t)
	unprivileged := &account{uid: 65534, gid: 65534}
	must(t, unprivileged.chown(home))
	// go test puts the binary where only the current user may enter.
	binary := filepath.Join(home, "localpg.test")
	must(t, copyFile(binary, executable))

	arguments := []string{"-test.timeout=9m", "-test.count=1"}
	if testing.Verbose() {
		arguments = append(arguments, "-test.v")
	}
	cmd := unprivileged.command(t.Context(), binary, arguments...)
	cmd.Env = append(cmd.Env, "HOME="+home, "XDG_CACHE_HOME="+filepath.Join(home, "cache"), "TMPDIR="+home)
	output, err := cmd.CombinedOutput()
	t.Logf("%s", output)
	if err != nil {
		t.Errorf("as an unprivileged user: %v", err)
	}
}

func copyFile(to, from string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }()
	target, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}

// onlyRoot skips tests of what only root can do: run a server as another user.
func onlyRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can run a server as another user")
	}
}

func TestStart_rotatesLog(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	log := filepath.Join(dir, "server.log")
	must(t, os.WriteFile(log, make([]byte, maxLog+1), 0o600))
	startIn(t, dir)
	info, err := os.Stat(log)
	must(t, err)
	if info.Size() > maxLog {
		t.Errorf("the log has %d bytes, want at most %d", info.Size(), maxLog)
	}
	if !isFile(log + ".old") {
		t.Error("the old log was not kept as server.log.old")
	}
}
