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
)

func TestFailedInitdbLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	bin := fakeBins(t, `echo 15 >"${1#--pgdata=}/PG_VERSION"; echo "the disk is full" >&2; exit 3`)

	_, err := Start(t.Context(), Options{Dir: dir, BinDir: bin})
	wantError(t, err, "initdb", "exit status 3", "the disk is full")
	if _, err := os.Lstat(filepath.Join(dir, "data")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a data directory: %v", err)
	}
	startIn(t, dir)
}

// Where the locale C.UTF-8 is missing, C does.
func TestLocaleC(t *testing.T) {
	t.Parallel()
	bin := fakeBins(t, `case "$*" in
*C.UTF-8*) echo 'invalid locale name "C.UTF-8"' >&2; exit 1 ;;
*) exec "$real/initdb" "$@" ;;
esac`)
	server := startWith(t, Options{Dir: newDir(t), BinDir: bin, Settings: map[string]string{"fsync": "off"}})
	wantQuery(t, server.URL("postgres"), "select datcollate from pg_database where datname = 'postgres'", "C")
	wantQuery(t, server.URL("postgres"), "show server_encoding", "UTF8")
}

// The process is killed while initdb is at work. initdb goes on, so the next Start waits for its end before it makes its own.
func TestStartAfterAKilledInitdb(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	bin := fakeBins(t, `"$real/initdb" "$@"; sleep 1`)
	c := startChild(t, "hold", dir, bin)
	unfinished := filepath.Join(dir, "data.new")
	eventually(t, "initdb is at work", func() bool {
		_, err := os.Stat(filepath.Join(unfinished, "PG_VERSION"))
		return err == nil
	})
	c.kill()
	initdb, err := os.Open(filepath.Join(dir, lockFile))
	must(t, err)
	defer initdb.Close()
	if err := flock(initdb, syscall.LOCK_SH); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Fatalf("initdb ended with its process, so this test proves nothing: %v", err)
	}

	server := startIn(t, dir)
	wantQuery(t, server.URL("postgres"), "select 1", "1")
	if _, err := os.Stat(unfinished); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s stays behind: %v", unfinished, err)
	}
}

func TestContextEndsInitdb(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	bin := fakeBins(t, `touch "$0.runs"; sleep 60`)
	// The server's account must be able to write the mark.
	account, err := serverAccount("")
	must(t, err)
	must(t, account.own(bin))

	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		for !isFile(filepath.Join(bin, "initdb.runs")) && ctx.Err() == nil {
			<-pause()
		}
		cancel(errors.New("the user has gone"))
	}()
	begin := time.Now()
	_, err = Start(ctx, Options{Dir: dir, BinDir: bin})
	wantError(t, err, "initdb", "the user has gone")
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("Start took %s", took)
	}
	wantGone(t, dir)
}

// After a power cut postmaster.pid names a process that is somebody else's by now. PostgreSQL alone would refuse to start for as
// long as it lives, when it is of the same user.
func TestStalePostmasterPid(t *testing.T) {
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
	must(t, account.own(file))

	wantQuery(t, startIn(t, dir).URL("postgres"), "select 1", "1")
	must(t, other.Process.Kill())
}

func TestServerStartedByHandIsLeftAlone(t *testing.T) {
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
	eventually(t, "it runs", func() bool {
		text, _ := os.ReadFile(filepath.Join(data, "postmaster.pid"))
		return strings.Contains(string(text), "ready")
	})

	_, err = Start(t.Context(), Options{Dir: dir})
	var running *RunningError
	if !errors.As(err, &running) || running.Pid != byHand.Process.Pid {
		t.Errorf("got %v, want ErrRunning of process %d", err, byHand.Process.Pid)
	}
	must(t, byHand.Process.Signal(syscall.SIGINT))
	must(t, byHand.Wait())
	startIn(t, dir)
}

func TestDataOfAnotherMajorVersion(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	server := startIn(t, dir)
	must(t, server.Stop())
	data := filepath.Join(server.Dir(), "data")
	must(t, os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte("12\n"), 0o600))

	for _, bin := range []string{"", server.BinDir()} {
		_, err := Start(t.Context(), Options{Dir: dir, BinDir: bin})
		wantError(t, err, data+" was made by PostgreSQL 12", "the one on this machine is "+server.Version(),
			"install version 12 beside it, or move "+data+" away")
	}
}

func TestFolderThatIsNoCluster(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	must(t, os.Mkdir(filepath.Join(dir, "data"), 0o700))
	_, err := Start(t.Context(), Options{Dir: dir})
	wantError(t, err, filepath.Join(dir, "data")+" is no PostgreSQL data directory")

	_, err = Start(t.Context(), Options{})
	wantError(t, err, "no Dir")
}

// A clone under /root: nobody but root may enter, and postgres runs as somebody else.
func TestDirOutOfReach(t *testing.T) {
	onlyRoot(t)
	saved := elsewhere
	t.Cleanup(func() { elsewhere = saved })
	elsewhere = filepath.Join(newDir(t), "coupond")
	private := t.TempDir() // mode 0700
	must(t, os.Chmod(private, 0o700))
	dir := filepath.Join(private, ".coupond")
	log := &journal{}
	o := Options{Dir: dir, Log: log, Settings: map[string]string{"fsync": "off"}}

	server := startWith(t, o)
	query(t, server.URL("postgres"), "create table kept as select 1")
	must(t, server.Stop())
	home, err := filepath.EvalSymlinks(filepath.Join(dir, "data"))
	must(t, err)
	if filepath.Dir(filepath.Dir(home)) != elsewhere {
		t.Fatalf("the data is in %s, want a folder of %s", home, elsewhere)
	}
	if !strings.Contains(log.String(), "its data goes to "+filepath.Dir(home)) {
		t.Errorf("the user was not told where the data is: %s", log)
	}
	server = startWith(t, o)
	wantQuery(t, server.URL("postgres"), "select count(*) from kept", "1")
	must(t, server.Stop())

	// Who removes Dir wants to start afresh, but that is no reason to remove what is not in it.
	must(t, os.RemoveAll(dir))
	server = startWith(t, o)
	wantQuery(t, server.URL("postgres"), "select count(*) from pg_tables where tablename = 'kept'", "0")
	if !strings.Contains(log.String(), filepath.Dir(home)+" holds the data of an earlier") {
		t.Errorf("the user was not told what stays behind: %s", log)
	}
	must(t, server.Stop())

	// Linked, and then killed before initdb was done.
	home, err = filepath.EvalSymlinks(filepath.Join(dir, "data"))
	must(t, err)
	must(t, os.RemoveAll(home))
	must(t, startWith(t, o).Stop())

	// The disk with the data is away: an empty cluster in its place would hide that.
	must(t, os.Rename(filepath.Dir(home), filepath.Dir(home)+".away"))
	_, err = Start(t.Context(), o)
	wantError(t, err, "links to "+home+", which is not there")
	must(t, os.Rename(filepath.Dir(home)+".away", filepath.Dir(home)))

	must(t, Remove(t.Context(), dir))
	if _, err := os.Stat(filepath.Dir(home)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Remove left %s: %v", filepath.Dir(home), err)
	}
}

func TestRootServesDataOfOthers(t *testing.T) {
	onlyRoot(t)
	t.Parallel()
	dir := newCluster(t)
	server := startIn(t, dir)
	query(t, server.URL("postgres"), "create table kept as select 1")
	must(t, server.Stop())
	data := filepath.Join(server.Dir(), "data")

	for _, owner := range []uint32{
		0,    // copied or restored by root: given to the server's account
		4242, // made by somebody else, without an entry in the list of users: served as him
	} {
		must(t, (&account{uid: owner, gid: owner}).ownAll(data))
		server = startIn(t, dir)
		wantQuery(t, server.URL("postgres"), "select count(*) from kept", "1")
		must(t, server.Stop())
		if now, _ := ownerOf(data); now == 0 || (owner != 0 && now != owner) {
			t.Errorf("data of uid %d belongs to uid %d now", owner, now)
		}
	}
}

// All of this package's tests once more, as a user with no rights: root's way is not the usual one.
func TestAsAnUnprivilegedUser(t *testing.T) {
	onlyRoot(t)
	executable, err := os.Executable()
	must(t, err)
	home := newDir(t)
	nobody := &account{uid: 65534, gid: 65534}
	must(t, nobody.own(home))
	// go test puts its binary where only we may go.
	binary := filepath.Join(home, "localpg.test")
	must(t, copyFile(binary, executable))

	arguments := []string{"-test.timeout=9m", "-test.count=1"}
	if testing.Verbose() {
		arguments = append(arguments, "-test.v")
	}
	again := nobody.command(t.Context(), binary, arguments...)
	again.Env = append(again.Env, "HOME="+home, "XDG_CACHE_HOME="+filepath.Join(home, "cache"), "TMPDIR="+home)
	output, err := again.CombinedOutput()
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
	defer source.Close()
	target, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}

// onlyRoot is for what only root can do: to become somebody else. (Every other test runs as whoever we are.)
func onlyRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("we are not root, and cannot run a server as somebody else")
	}
}

func TestLogIsPutAsideBeforeItGrowsTooBig(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	log := filepath.Join(dir, "server.log")
	must(t, os.WriteFile(log, make([]byte, maxLog+1), 0o600))
	startIn(t, dir)
	info, err := os.Stat(log)
	must(t, err)
	if info.Size() > maxLog {
		t.Errorf("the log has %d bytes", info.Size())
	}
	if !isFile(log + ".old") {
		t.Error("the old log is gone")
	}
}
