package localpg

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"scalable-coupon-system/internal/wait"
)

func TestStart_initdbFails(t *testing.T) {
	o, path := fast(newDir(t)), os.Getenv("PATH")
	t.Setenv("PATH", fakeInstallation(t, `echo 15 >"${1#--pgdata=}/PG_VERSION"; echo "the disk is full" >&2; exit 3`, ""))
	_, err := Start(t.Context(), o)
	wantError(t, err, "initdb", "exit status 3", "the disk is full")
	if exists(filepath.Join(o.Dir, "data")) {
		t.Error("the data directory exists after a failed initdb")
	}
	t.Setenv("PATH", path)
	startIn(t, o.Dir)
}

// The process is killed during initdb, which continues. The next Start waits until it has ended.
func TestStart_afterKillDuringInitdb(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	newData, release := filepath.Join(dir, "data.new"), filepath.Join(dir, "release")
	t.Cleanup(func() { _ = os.WriteFile(release, nil, 0o600) })
	c := startChild(t, dir, "PATH="+fakeInstallation(t, `"$real/initdb" "$@"; while [ ! -e '`+release+`' ]; do sleep 0.05; done`, ""))
	wait.For(t, "initdb to write PG_VERSION", func() bool { return exists(filepath.Join(newData, "PG_VERSION")) })
	c.kill()
	lock, err := os.Open(filepath.Join(dir, runningFile))
	must(t, err)
	defer func() { _ = lock.Close() }()
	if err := flock(lock, syscall.LOCK_SH); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Fatalf("initdb ended with its parent, so this test proves nothing: %v", err)
	}
	time.AfterFunc(2*pollInterval, func() { _ = os.WriteFile(release, nil, 0o600) })
	wantQuery(t, startIn(t, dir).URL("postgres"), "select 1", "1")
	if exists(newData) {
		t.Errorf("%s still exists", newData)
	}
}

func TestStart_contextCancelledDuringInitdb(t *testing.T) {
	o := fast(newDir(t))
	t.Setenv("PATH", fakeInstallation(t, `echo >"${1#--pgdata=}/started"; sleep 600`, ""))
	ctx := cancelWhen(t, func() bool { return exists(filepath.Join(o.Dir, "data.new", "started")) })
	_, err := Start(ctx, o)
	wantError(t, err, "initdb", "the user has left")
	waitGone(t, o.Dir)
}

// After a power failure the process ID in postmaster.pid may belong to another process. If it has
// the same user, PostgreSQL alone would refuse to start.
func TestStart_stalePostmasterPid(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	server := startIn(t, dir)
	account, file := server.cluster.account, filepath.Join(server.cluster.data, pidFile)
	stale, err := os.ReadFile(file)
	must(t, err)
	must(t, server.Kill())

	other := account.command(t.Context(), "sleep", "600")
	must(t, other.Start())
	t.Cleanup(func() { _ = other.Wait() })
	_, rest, _ := bytes.Cut(stale, []byte("\n"))
	must(t, os.WriteFile(file, append([]byte(strconv.Itoa(other.Process.Pid)+"\n"), rest...), 0o600))
	must(t, account.chown(file))
	wantQuery(t, startIn(t, dir).URL("postgres"), "select 1", "1")
}

func TestStart_serverStartedByHand(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	server := startIn(t, dir)
	must(t, server.Stop())
	data := server.cluster.data
	byHand := server.cluster.account.command(t.Context(), filepath.Join(server.BinDir(), "postgres"), "-D", data,
		"-c", "port="+strconv.Itoa(server.Port()+1), "-c", "unix_socket_directories=")
	must(t, byHand.Start())
	wait.For(t, "the server to be ready", func() bool {
		text, _ := os.ReadFile(filepath.Join(data, pidFile))
		return strings.Contains(string(text), "ready")
	})

	_, err := Start(t.Context(), fast(dir))
	wantError(t, err, "did not start", "(PID "+strconv.Itoa(byHand.Process.Pid)+") running")
	must(t, byHand.Process.Signal(syscall.SIGINT))
	must(t, byHand.Wait())
	startIn(t, dir)
}

func TestStart_otherMajorVersion(t *testing.T) {
	t.Parallel()
	o := fast(newCluster(t))
	data := filepath.Join(o.Dir, "data")
	must(t, os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte("12\n"), 0o600))
	_, err := Start(t.Context(), o)
	wantError(t, err, data+" was created by PostgreSQL 12: install that version", "apt-get install postgresql-12", "or move "+data+" away")
	must(t, os.Remove(filepath.Join(data, "PG_VERSION")))
	_, err = Start(t.Context(), o)
	wantError(t, err, data+" is not a PostgreSQL data directory")
}

// Dir is below a directory that only root may enter, such as /root, but the server runs as another
// user.
func TestStart_fallbackDir(t *testing.T) {
	onlyRoot(t)
	saved := fallbackDir
	t.Cleanup(func() { fallbackDir = saved })
	fallbackDir = filepath.Join(newDir(t), "coupond")
	private := t.TempDir()
	must(t, os.Chmod(private, 0o700))
	o, log := fast(filepath.Join(private, ".coupond")), &bytes.Buffer{}
	o.Log = log

	server := startWith(t, o)
	wantQuery(t, server.URL("postgres"), "create table kept as select 1", "")
	must(t, server.Stop())
	home := filepath.Dir(server.cluster.data)
	if filepath.Dir(home) != fallbackDir {
		t.Fatalf("the data is in %s, want it below %s", home, fallbackDir)
	}
	if !strings.Contains(log.String(), "its data will be in "+home) {
		t.Errorf("the log does not say where the data is: %s", log)
	}
	server = startWith(t, o)
	wantQuery(t, server.URL("postgres"), "select count(*) from kept", "1")
	must(t, server.Stop())

	// The disk with the data is not mounted. A new cluster would hide that.
	must(t, os.Rename(home, home+".unmounted"))
	_, err := Start(t.Context(), o)
	wantError(t, err, "links to a directory that does not exist")
	must(t, os.Rename(home+".unmounted", home))

	must(t, Remove(t.Context(), o.Dir))
	if exists(home) || exists(o.Dir) {
		t.Errorf("Remove left %s or %s", home, o.Dir)
	}
}

func TestStart_rootKeepsOwnerOfData(t *testing.T) {
	onlyRoot(t)
	t.Parallel()
	dir := newCluster(t)
	data := filepath.Join(dir, "data")
	chown := func(owner string) {
		t.Helper()
		must(t, exec.CommandContext(t.Context(), "chown", "-R", owner, data).Run())
	}
	chown("0:0") // copied or restored by root
	_, err := Start(t.Context(), fast(dir))
	wantError(t, err, data+" is owned by root", "chown -R postgres "+data)

	chown("4242:4242") // another user, without an entry in /etc/passwd
	wantQuery(t, startIn(t, dir).URL("postgres"), "select 1", "1")
	if owner, _ := ownerOf(data); owner != 4242 {
		t.Errorf("the owner of the data changed to uid %d", owner)
	}
}

// The database's superuser runs programs as the server. They have no rights of root.
func TestStart_serverHasNoRightsOfRoot(t *testing.T) {
	onlyRoot(t)
	t.Parallel()
	server := startIn(t, newCluster(t))
	account := server.cluster.account
	wantQuery(t, server.URL("postgres"), `
		create table lines (line text);
		copy lines from program 'grep -E "^(Uid|Gid|Groups)" /proc/self/status | tr "\t" " "';
		select distinct id from lines, regexp_split_to_table(substr(line, strpos(line, ':') + 1), '\s+') as id where id not in ('`+
		strconv.Itoa(int(account.uid))+`', '`+strconv.Itoa(int(account.gid))+`', '')`, "")
	wantQuery(t, server.URL("postgres"), "select count(*) from lines", "3")
}

// Root may be using a directory of another user, with a link in it.
func TestStart_followsNoLink(t *testing.T) {
	t.Parallel()
	dir, target := newCluster(t), filepath.Join(newDir(t), "target")
	must(t, os.WriteFile(target, []byte("content"), 0o600))
	for _, name := range []string{ownerFile, runningFile, logFile} {
		link := filepath.Join(dir, name)
		_ = os.Remove(link) // the lock files exist from the second name on
		must(t, os.Symlink(target, link))
		server, err := Start(t.Context(), fast(dir))
		if !errors.Is(err, syscall.ELOOP) {
			t.Errorf("%s is a link: %v", name, err)
		}
		if err == nil {
			must(t, server.Stop())
		}
		if content, err := os.ReadFile(target); err != nil || string(content) != "content" {
			t.Errorf("%s is a link: its target has %q, %v", name, content, err)
		}
		must(t, os.Remove(link))
	}
}

// This runs tests of this package again as a user without privileges, because root takes other code
// paths.
func TestPackage_unprivilegedUser(t *testing.T) {
	onlyRoot(t)
	t.Parallel()
	executable, err := os.Executable()
	must(t, err)
	home := newDir(t)
	unprivileged := &account{uid: 65534, gid: 65534}
	must(t, unprivileged.chown(home))
	// go test puts the binary where only the current user may enter.
	binary := filepath.Join(home, "localpg.test")
	must(t, exec.CommandContext(t.Context(), "cp", executable, binary).Run())

	cmd := unprivileged.command(t.Context(), binary, "-test.timeout=9m", "-test.v",
		"-test.run=^Test(Start_keepsDataAndAddress|Server_endsWithItsWatchdog|Download.*)$")
	cmd.Env = append(os.Environ(), "HOME="+home, "XDG_CACHE_HOME="+filepath.Join(home, "cache"), "TMPDIR="+home)
	output, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(output), "\n--- PASS") != 5 {
		t.Errorf("as an unprivileged user: %v\n%s", err, output)
	}
}

// onlyRoot skips tests of what only root can do: run a server as another user.
func onlyRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can run a server as another user")
	}
}
