package localpg

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"scalable-coupon-system/internal/wait"
)

func TestStart_keepsDataAndAddress(t *testing.T) {
	t.Parallel()
	dir, log := newDir(t), &logBuffer{}

	first := startWith(t, Options{Dir: dir, Log: log, Settings: map[string]string{"fsync": "off"}})
	if !strings.Contains(log.String(), "creating a PostgreSQL") {
		t.Errorf("the log does not say that a cluster is created: %q", log)
	}
	before := first.URL("postgres")
	query(t, before, "create table kept as select 'yes' as value")
	must(t, first.Stop())
	must(t, first.Stop()) // does nothing
	wantGone(t, dir)
	if _, err := os.Stat(first.SocketDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket directory still exists: %v", err)
	}

	second := startIn(t, dir)
	if second.URL("postgres") != before {
		t.Errorf("the address changed from %s to %s", before, second.URL("postgres"))
	}
	wantQuery(t, before, "select value from kept", "yes")
	wantQuery(t, before, "show server_encoding", "UTF8")
	if got := query(t, before, "show server_version")[0]; !strings.HasPrefix(got, second.Version()) {
		t.Errorf("Version is %s, server_version is %s", second.Version(), got)
	}
}

func TestStart_recoversAfterKill(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	options := Options{Dir: dir} // with fsync, as in production

	server := startWith(t, options)
	query(t, server.URL("postgres"), "create table kept (n int); insert into kept select generate_series(1, 1000)")
	must(t, server.Kill())
	must(t, server.Stop()) // does nothing

	server = startWith(t, options)
	wantQuery(t, server.URL("postgres"), "select count(*) from kept", "1000")
	log, err := os.ReadFile(filepath.Join(dir, "server.log"))
	must(t, err)
	if !strings.Contains(string(log), "automatic recovery in progress") {
		t.Error("the server log mentions no recovery, so Kill did not act like a crash")
	}
}

// A fault test kills the postmaster. Its backends use the data a little longer, and Start waits for
// them.
func TestStart_afterPostmasterIsKilled(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	server := startIn(t, dir)
	query(t, server.URL("postgres"), "create table kept as select 1")
	session, err := pgx.Connect(t.Context(), server.URL("postgres"))
	must(t, err)
	defer session.Close(context.Background())

	backend := int(session.PgConn().PID())
	must(t, syscall.Kill(backend, syscall.SIGSTOP)) // otherwise it ends at once
	must(t, syscall.Kill(server.Pid(), syscall.SIGKILL))
	<-server.Done()
	time.AfterFunc(500*time.Millisecond, func() { _ = syscall.Kill(backend, syscall.SIGCONT) })
	wantError(t, server.Stop(), "ended by itself", "137") // 128 + SIGKILL
	wantQuery(t, startIn(t, dir).URL("postgres"), "select count(*) from kept", "1")
}

func TestServer_Stop_afterSIGSTOP(t *testing.T) {
	t.Parallel()
	server := startIn(t, newCluster(t))
	must(t, syscall.Kill(server.Pid(), syscall.SIGSTOP))
	must(t, server.Stop())
}

func TestStart_settings(t *testing.T) {
	t.Parallel()
	server := startWith(t, Options{Dir: newCluster(t), Settings: map[string]string{
		"fsync": "off", "max_connections": "37", "application.name": "it's \"quoted\" $HOME",
	}})
	wantQuery(t, server.URL("postgres"), "show max_connections", "37")
	wantQuery(t, server.URL("postgres"), "show application.name", "it's \"quoted\" $HOME")

	for name, part := range map[string]string{
		"port": "is reserved", "data_directory": "is reserved", "-c": "not a valid setting name", "": "not a valid setting name",
	} {
		_, err := Start(t.Context(), Options{Dir: newDir(t), Settings: map[string]string{name: "1"}})
		wantError(t, err, part)
	}
}

func TestStart_errorHasServerLog(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	must(t, startIn(t, dir).Stop())

	_, err := Start(t.Context(), Options{Dir: dir, Settings: map[string]string{"shared_buffers": "banana"}})
	wantError(t, err, "did not start", "exit status 1", `invalid value for parameter "shared_buffers": "banana"`)
	if strings.Contains(err.Error(), "database system is shut down") {
		t.Errorf("the error contains log lines of the previous run: %v", err)
	}
	startIn(t, dir) // the cluster still works
}

func TestStart_port(t *testing.T) {
	t.Parallel()
	ports, err := candidatePorts(0, 0)
	must(t, err)
	server := startWith(t, Options{Dir: newCluster(t), Port: ports[0], Settings: map[string]string{"fsync": "off"}})
	if server.Port() != ports[0] {
		t.Errorf("the server listens on port %d, want %d", server.Port(), ports[0])
	}
	if u, err := url.Parse(server.URL("a database")); err != nil || u.Host != net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0])) {
		t.Errorf("URL is %v, %v; want port %d of 127.0.0.1", u, err, ports[0])
	}

	_, err = Start(t.Context(), Options{Dir: newDir(t), Port: server.Port()})
	wantError(t, err, "port "+strconv.Itoa(server.Port())+" on 127.0.0.1 is already in use")
	_, err = Start(t.Context(), Options{Dir: newDir(t), Port: 65536})
	wantError(t, err, "port 65536 is out of range")
}

// If another program uses the port of the previous run, Start chooses another one.
func TestStart_previousPortInUse(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	server := startIn(t, dir)
	must(t, server.Stop())
	other, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(server.Port())))
	must(t, err)
	defer other.Close()

	if restarted := startIn(t, dir); restarted.Port() == server.Port() {
		t.Errorf("the server listens on port %d, which another program uses", restarted.Port())
	}
}

func TestServer_requiresPassword(t *testing.T) {
	t.Parallel()
	server := startIn(t, newCluster(t))
	secret := filepath.Join(server.Dir(), passwordFile)
	info, err := os.Stat(secret)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("%s has mode %s", secret, info.Mode())
	}

	for _, host := range []string{"127.0.0.1", server.SocketDir()} {
		for _, password := range []string{"", "postgres"} {
			config, err := pgx.ParseConfig("user=postgres dbname=postgres sslmode=disable passfile=/dev/null")
			must(t, err)
			config.Host, config.Port, config.Password = host, uint16(server.Port()), password
			conn, err := pgx.ConnectConfig(t.Context(), config)
			pgErr, ok := errors.AsType[*pgconn.PgError](err)
			if !ok || pgErr.Code != "28P01" {
				t.Errorf("%s with password %q: %v, %v; want SQLSTATE 28P01", host, password, conn, err)
			}
		}
	}

	// The psql command works and does not contain the password.
	command := server.Psql("postgres")
	if strings.Contains(command, server.login.password) {
		t.Errorf("the psql command contains the password: %s", command)
	}
	_, quoted, _ := strings.Cut(command, " '")
	connString, peer, _ := strings.Cut(strings.TrimSuffix(quoted, "'"), "&requirepeer=") // pgx does not know the last one
	wantQuery(t, connString, "select 1", "1")
	owner, _ := ownerOf(filepath.Join(server.Dir(), "data"))
	if want := userName(owner); peer != want {
		t.Errorf("psql requires a server of %q, want %q", peer, want)
	}
}

func TestAddress_Psql(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	bin := t.TempDir()
	a := &Address{dir: "/a b+c&d/it's", login: login{user: "postgres"}, state: serverState{Port: 5, Sockets: "/tmp/localpg-1", BinDir: bin}}

	const rest = ` 'postgres://postgres@/x%20y?sslmode=disable&sslrootcert=&host=/tmp/localpg-1&port=5&passfile=/a%20b%2Bc%26d/it%27s/pgpass'`
	if got, want := a.Psql("x y"), "psql"+rest; got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	script(t, bin, "psql", "")
	if got, want := a.Psql("x y"), "'"+bin+"/psql'"+rest; got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

func TestStart_wrongPasswordFile(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	secret := filepath.Join(dir, passwordFile)

	must(t, os.WriteFile(secret, []byte("*:*:*:postgres:wrong\n"), 0o600))
	_, err := Start(t.Context(), Options{Dir: dir})
	wantError(t, err, "its password is not the one in "+secret)

	must(t, os.WriteFile(secret, []byte("wrong\n"), 0o600))
	_, err = Start(t.Context(), Options{Dir: dir})
	wantError(t, err, secret+" does not contain")

	must(t, os.Remove(secret))
	_, err = Start(t.Context(), Options{Dir: dir})
	wantError(t, err, secret+" is missing")
}

// The name of the superuser belongs to the cluster: another Options.User has no effect on it.
func TestStart_user(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	for _, user := range []string{"coupond", "", "other"} {
		server := startWith(t, Options{Dir: dir, User: user, Settings: map[string]string{"fsync": "off"}})
		wantQuery(t, server.URL("postgres"), "select current_user, usesuper from pg_user", "coupond")
		must(t, server.Stop())
	}
}

// libpqEnvironment has a value for each variable of libpq that would keep a program from reaching
// its own server, or would change its sessions.
var libpqEnvironment = []string{
	"PGAPPNAME=other", "PGCHANNELBINDING=require", "PGCLIENTENCODING=LATIN1", "PGCONNECT_TIMEOUT=soon", "PGDATABASE=nowhere",
	"PGDATESTYLE=German", "PGGSSENCMODE=require", "PGHOST=nowhere.invalid", "PGHOSTADDR=192.0.2.1", "PGMAXPROTOCOLVERSION=2",
	"PGMINPROTOCOLVERSION=9", "PGOPTIONS=-c default_transaction_read_only=on", "PGPASSFILE=/nowhere", "PGPASSWORD=wrong", "PGPORT=1",
	"PGREQUIREAUTH=none", "PGREQUIREPEER=another", "PGSERVICE=nowhere", "PGSERVICEFILE=/nowhere", "PGSSLCERT=/nowhere",
	"PGSSLCERTMODE=require", "PGSSLKEY=/nowhere", "PGSSLMODE=verify-full", "PGSSLNEGOTIATION=direct", "PGSSLROOTCERT=/nowhere",
	"PGTARGETSESSIONATTRS=standby", "PGTZ=Mars/Phobos", "PGUSER=another",
}

// Start succeeds whatever the environment says, and afterwards its process ignores the variables of
// libpq, too.
func TestStart_ignoresEnvironment(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	must(t, os.Mkdir(filepath.Join(home, ".postgresql"), 0o700))
	must(t, os.WriteFile(filepath.Join(home, ".postgresql", "root.crt"), []byte("not a certificate"), 0o600))
	child := startChild(t, "query", newCluster(t), "", append(slices.Clone(libpqEnvironment), "HOME="+home)...)
	output, err := io.ReadAll(child.output)
	must(t, err)
	if want := "postgres postgres off  UTC ISO, MDY UTF8\n"; string(output) != want {
		t.Errorf("the child printed %q, want %q", output, want)
	}
}

// A process that a parallel test starts has a copy of the lock until its exec. Remove waits for it.
func TestRemove_afterFailedStart(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	lock, err := acquireLock(t.Context(), dir)
	must(t, err)
	fd, err := syscall.Dup(int(lock.running.Fd()))
	must(t, err)
	lock.release()
	time.AfterFunc(200*time.Millisecond, func() { _ = syscall.Close(fd) })
	must(t, Remove(t.Context(), dir))
}

func TestStart_alreadyRunning(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	_, err := Running(dir)
	if !errors.Is(err, ErrNotRunning) {
		t.Errorf("Running before Start: got %v, want ErrNotRunning", err)
	}

	child := startChild(t, "hold", dir, "")
	postmaster := child.ready(t)
	_, err = Start(t.Context(), Options{Dir: dir})
	running, ok := errors.AsType[*RunningError](err)
	if !errors.Is(err, ErrRunning) || !ok || running.Pid != child.cmd.Process.Pid {
		t.Fatalf("got %v, want ErrRunning of process %d", err, child.cmd.Process.Pid)
	}
	address, err := Running(dir)
	must(t, err)
	if address.Pid() != postmaster {
		t.Errorf("Running returns postmaster %d, want %d", address.Pid(), postmaster)
	}
	wantQuery(t, address.URL("postgres"), "select 1", "1")

	child.kill()
	server := startIn(t, dir)
	_, err = Start(t.Context(), Options{Dir: dir})
	running, ok = errors.AsType[*RunningError](err)
	if !ok || running.Pid != os.Getpid() {
		t.Errorf("got %v, want ErrRunning of this process", err)
	}
	must(t, server.Stop())
	if _, err := Running(dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Running after Stop: got %v, want ErrNotRunning", err)
	}
}

func TestStart_concurrent(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	var group sync.WaitGroup
	errs := make(chan error, 4)
	for range cap(errs) {
		group.Go(func() {
			server, err := Start(t.Context(), Options{Dir: dir, Settings: map[string]string{"fsync": "off"}})
			if err == nil {
				t.Cleanup(func() { _ = server.Stop() })
			}
			errs <- err
		})
	}
	group.Wait()
	close(errs)

	started := 0
	for err := range errs {
		switch {
		case err == nil:
			started++
		case !errors.Is(err, ErrRunning):
			t.Errorf("got %v, want nil or ErrRunning", err)
		}
	}
	if started != 1 {
		t.Errorf("%d calls of Start succeeded, want 1", started)
	}
}

// However its process ends, the server ends, too, and the next Start finds all committed data.
func TestServer_endsWithItsProcess(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*testing.T, *child, int){
		"SIGKILL": func(_ *testing.T, c *child, _ int) { c.kill() },
		"SIGTERM": func(t *testing.T, c *child, _ int) {
			t.Helper()
			must(t, c.cmd.Process.Signal(syscall.SIGTERM))
			_ = c.cmd.Wait()
		},
		"SIGKILL of the process and the watchdog": func(t *testing.T, c *child, _ int) {
			t.Helper()
			must(t, c.cmd.Process.Signal(syscall.SIGSTOP)) // otherwise the child would clean up
			must(t, syscall.Kill(c.watchdog, syscall.SIGKILL))
			c.kill()
		},
		"SIGKILL while the server is stopped": func(t *testing.T, c *child, postmaster int) {
			t.Helper()
			must(t, syscall.Kill(postmaster, syscall.SIGSTOP))
			c.kill()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := newCluster(t)
			child := startChild(t, "hold", dir, "")
			postmaster := child.ready(t)
			address, err := Running(dir)
			must(t, err)
			query(t, address.URL("postgres"), "create table kept as select 1")

			end(t, child, postmaster)
			server := startIn(t, dir)
			wantQuery(t, server.URL("postgres"), "select count(*) from kept", "1")
			must(t, server.Stop())
			wantGone(t, dir)
			if _, err := os.Stat(address.SocketDir()); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the socket directory still exists: %v", err)
			}
		})
	}
}

// Without its watchdog the server ends, too.
func TestServer_endsWithItsWatchdog(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	server := startIn(t, dir)
	must(t, server.process.cmd.Process.Kill())
	wantGone(t, dir)
	if _, err := os.Stat(server.SocketDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket directory still exists: %v", err)
	}

	// On SIGTERM the watchdog stops the server.
	server = startIn(t, dir)
	must(t, server.process.cmd.Process.Signal(syscall.SIGTERM))
	<-server.Done()
	wantGone(t, dir)
}

func TestServer_hasItsOwnProcessGroup(t *testing.T) {
	t.Parallel()
	server := startIn(t, newCluster(t))
	for _, pid := range []int{server.Pid(), server.process.cmd.Process.Pid} {
		group, err := syscall.Getpgid(pid)
		must(t, err)
		if group == syscall.Getpgrp() {
			t.Errorf("process %d is in the process group of the test, which gets SIGINT on Ctrl-C", pid)
		}
	}
}

func TestServer_Detach(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	child := startChild(t, "detach", dir, "")
	postmaster := child.ready(t)
	must(t, child.cmd.Wait())

	_, err := Start(t.Context(), Options{Dir: dir})
	running, ok := errors.AsType[*RunningError](err)
	if !ok || !isAlive(running.Pid) || running.Pid == child.cmd.Process.Pid {
		t.Errorf("got %v, want ErrRunning of another process that is running", err)
	}
	address, err := Running(dir)
	must(t, err)
	wantQuery(t, address.URL("postgres"), "select 1", "1")

	must(t, Remove(t.Context(), dir))
	wait.For(t, "the postmaster to end", func() bool { return !isAlive(postmaster) })
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s still exists: %v", dir, err)
	}
	must(t, Remove(t.Context(), dir)) // a missing directory is not an error
}

func TestServer_Detach_thenStop(t *testing.T) {
	t.Parallel()
	server := startIn(t, newCluster(t))
	must(t, server.Detach())
	must(t, server.Stop())
	wantError(t, server.Detach(), "detach")
}

// The context ends while the server is starting and may not handle signals yet.
func TestStart_contextCancelled(t *testing.T) {
	t.Parallel()
	machine, err := realInstallation()
	must(t, err)
	dir, bin := newCluster(t), fakeInstallation(t, "exit 1")
	must(t, os.Remove(filepath.Join(bin, "postgres")))
	script(t, bin, "postgres", `[ "$1" = --version ] || sleep 2; exec '`+machine.dir+`/postgres' "$@"`)

	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(time.Second, func() { cancel(errors.New("the user has left")) })
	_, err = Start(ctx, Options{Dir: dir, BinDir: bin})
	// The log shows that the server handled the signal; otherwise it would have been killed.
	wantError(t, err, "did not start", "the user has left", "received immediate shutdown request")
	wantGone(t, dir)

	_, err = Start(ctx, Options{Dir: dir})
	wantError(t, err, "the user has left")
}
