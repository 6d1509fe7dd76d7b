package localpg

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func TestDataAndAddressSurviveARestart(t *testing.T) {
	t.Parallel()
	dir, log := newDir(t), &journal{}

	first := startWith(t, Options{Dir: dir, Log: log, Settings: map[string]string{"fsync": "off"}})
	if !strings.Contains(log.String(), "making a PostgreSQL") {
		t.Errorf("the user was not told that a cluster is made: %q", log)
	}
	before := first.URL("postgres")
	query(t, before, "create table kept as select 'yes' as value")
	must(t, first.Stop())
	must(t, first.Stop()) // does nothing
	wantGone(t, dir)
	if _, err := os.Stat(first.SocketDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket's folder stays behind: %v", err)
	}

	second := startIn(t, dir)
	if second.URL("postgres") != before {
		t.Errorf("the address changed from %s to %s", before, second.URL("postgres"))
	}
	wantQuery(t, before, "select value from kept", "yes")
	wantQuery(t, before, "show server_encoding", "UTF8")
	if got := query(t, before, "show server_version")[0]; !strings.HasPrefix(got, second.Version()) {
		t.Errorf("Version says %s, the server %s", second.Version(), got)
	}
}

func TestKilledServerRecoversWhatWasCommitted(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	o := Options{Dir: dir} // with fsync, as in production

	server := startWith(t, o)
	query(t, server.URL("postgres"), "create table kept (n int); insert into kept select generate_series(1, 1000)")
	must(t, server.Kill())
	must(t, server.Stop()) // does nothing

	server = startWith(t, o)
	wantQuery(t, server.URL("postgres"), "select count(*) from kept", "1000")
	log, err := os.ReadFile(filepath.Join(dir, "server.log"))
	must(t, err)
	if !strings.Contains(string(log), "automatic recovery in progress") {
		t.Error("the server did not recover, so Kill was no crash")
	}
}

// A fault test kills the postmaster behind our back. Its sessions hold on to the data a moment longer; a Start at once waits.
func TestStartAfterThePostmasterWasKilled(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	server := startIn(t, dir)
	query(t, server.URL("postgres"), "create table kept as select 1")
	session, err := pgx.Connect(t.Context(), server.URL("postgres"))
	must(t, err)
	defer session.Close(context.Background())

	backend := int(session.PgConn().PID())
	must(t, syscall.Kill(backend, syscall.SIGSTOP)) // or else it is gone at once
	must(t, syscall.Kill(server.Pid(), syscall.SIGKILL))
	<-server.Done()
	time.AfterFunc(500*time.Millisecond, func() { _ = syscall.Kill(backend, syscall.SIGCONT) })
	wantError(t, server.Stop(), "ended by itself", "137") // 128 + SIGKILL
	wantQuery(t, startIn(t, dir).URL("postgres"), "select count(*) from kept", "1")
}

func TestStopEndsAFrozenServer(t *testing.T) {
	t.Parallel()
	server := startIn(t, newCluster(t))
	must(t, syscall.Kill(server.Pid(), syscall.SIGSTOP))
	must(t, server.Stop())
}

func TestSettings(t *testing.T) {
	t.Parallel()
	server := startWith(t, Options{Dir: newCluster(t), Settings: map[string]string{
		"fsync": "off", "max_connections": "37", "application.name": "it's \"quoted\" $HOME",
	}})
	wantQuery(t, server.URL("postgres"), "show max_connections", "37")
	wantQuery(t, server.URL("postgres"), "show application.name", "it's \"quoted\" $HOME")

	for name, part := range map[string]string{
		"port": "not to be chosen", "data_directory": "not to be chosen", "-c": "no name of a setting", "": "no name of a setting",
	} {
		_, err := Start(t.Context(), Options{Dir: newDir(t), Settings: map[string]string{name: "1"}})
		wantError(t, err, part)
	}
}

func TestErrorCarriesWhatTheServerSaid(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	must(t, startIn(t, dir).Stop())

	_, err := Start(t.Context(), Options{Dir: dir, Settings: map[string]string{"shared_buffers": "banana"}})
	wantError(t, err, "did not start", "exit status 1", `invalid value for parameter "shared_buffers": "banana"`)
	if strings.Contains(err.Error(), "database system is shut down") {
		t.Errorf("the error shows lines of an earlier life: %v", err)
	}
	startIn(t, dir) // and nothing is broken
}

func TestPortIsTheOneGiven(t *testing.T) {
	t.Parallel()
	ports, err := candidatePorts(0, 0)
	must(t, err)
	server := startWith(t, Options{Dir: newCluster(t), Port: ports[0], Settings: map[string]string{"fsync": "off"}})
	if server.Port() != ports[0] {
		t.Errorf("listens on %d, want %d", server.Port(), ports[0])
	}
	if u, err := url.Parse(server.URL("a database")); err != nil || u.Host != net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0])) {
		t.Errorf("URL: %v %v", u, err)
	}

	_, err = Start(t.Context(), Options{Dir: newDir(t), Port: server.Port()})
	wantError(t, err, "port "+strconv.Itoa(server.Port())+" of 127.0.0.1 is taken")
	_, err = Start(t.Context(), Options{Dir: newDir(t), Port: 65536})
	wantError(t, err, "65536 is no port")
}

// The port of the last time is only a wish: another program may have it by now.
func TestTakenPortOfTheLastTimeIsGivenUp(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	server := startIn(t, dir)
	must(t, server.Stop())
	other, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(server.Port())))
	must(t, err)
	defer other.Close()

	if again := startIn(t, dir); again.Port() == server.Port() {
		t.Error("two servers on one port")
	}
}

func TestOnlyThePasswordOpensTheServer(t *testing.T) {
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
			var pgErr *pgconn.PgError
			if !errors.As(err, &pgErr) || pgErr.Code != "28P01" {
				t.Errorf("%s with password %q: %v, %v; want SQLSTATE 28P01", host, password, conn, err)
			}
		}
	}

	// What psql is told works, and shows no password.
	command := server.Psql("postgres")
	if strings.Contains(command, server.password) {
		t.Errorf("the psql line shows the password: %s", command)
	}
	_, quoted, _ := strings.Cut(command, " '")
	wantQuery(t, strings.TrimSuffix(quoted, "'"), "select 1", "1")
}

func TestPsqlLineForAnyPath(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	bin := t.TempDir()
	a := &Address{dir: "/a b+c&d/it's", state: state{Port: 5, BinDir: bin}}

	const rest = ` 'postgres://postgres@127.0.0.1:5/x%20y?passfile=/a%20b%2Bc%26d/it%27s/pgpass'`
	if got, want := a.Psql("x y"), "psql"+rest; got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	script(t, bin, "psql", "")
	if got, want := a.Psql("x y"), "'"+bin+"/psql'"+rest; got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

func TestMissingPasswordFileIsNamed(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	secret := filepath.Join(dir, passwordFile)

	must(t, os.WriteFile(secret, []byte("*:*:*:postgres:wrong\n"), 0o600))
	_, err := Start(t.Context(), Options{Dir: dir})
	wantError(t, err, "its password is not the one in "+secret)

	must(t, os.WriteFile(secret, []byte("wrong\n"), 0o600))
	_, err = Start(t.Context(), Options{Dir: dir})
	wantError(t, err, secret+" does not hold")

	must(t, os.Remove(secret))
	_, err = Start(t.Context(), Options{Dir: dir})
	wantError(t, err, secret+" is missing")
}

func TestSecondStartSaysWhoRuns(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	_, err := Running(dir)
	if !errors.Is(err, ErrNotRunning) {
		t.Errorf("Running before: %v", err)
	}

	holder := startChild(t, "hold", dir, "")
	postmaster := holder.ready(t)
	_, err = Start(t.Context(), Options{Dir: dir})
	var running *RunningError
	if !errors.Is(err, ErrRunning) || !errors.As(err, &running) || running.Pid != holder.cmd.Process.Pid {
		t.Fatalf("got %v, want ErrRunning of process %d", err, holder.cmd.Process.Pid)
	}
	address, err := Running(dir)
	must(t, err)
	if address.Pid() != postmaster {
		t.Errorf("Running says postmaster %d, it is %d", address.Pid(), postmaster)
	}
	wantQuery(t, address.URL("postgres"), "select 1", "1")

	holder.kill()
	server := startIn(t, dir)
	_, err = Start(t.Context(), Options{Dir: dir})
	if !errors.As(err, &running) || running.Pid != os.Getpid() {
		t.Errorf("got %v, want ErrRunning of this process", err)
	}
	must(t, server.Stop())
	if _, err := Running(dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Running after: %v", err)
	}
}

func TestOneOfManyStartsWins(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	var wait sync.WaitGroup
	outcomes := make(chan error, 4)
	for range cap(outcomes) {
		wait.Go(func() {
			server, err := Start(t.Context(), Options{Dir: dir, Settings: map[string]string{"fsync": "off"}})
			if err == nil {
				t.Cleanup(func() { _ = server.Stop() })
			}
			outcomes <- err
		})
	}
	wait.Wait()
	close(outcomes)

	won := 0
	for err := range outcomes {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, ErrRunning):
			t.Errorf("a loser got %v, want ErrRunning", err)
		}
	}
	if won != 1 {
		t.Errorf("%d started, want 1", won)
	}
}

// However its process ends, no server stays behind, and a Start right after finds all that was committed.
func TestServerEndsWithItsProcess(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*testing.T, *child, int){
		"SIGKILL": func(_ *testing.T, c *child, _ int) { c.kill() },
		"SIGTERM": func(t *testing.T, c *child, _ int) {
			t.Helper()
			must(t, c.cmd.Process.Signal(syscall.SIGTERM))
			_ = c.cmd.Wait()
		},
		"SIGKILL, its watchdog's too": func(t *testing.T, c *child, _ int) {
			t.Helper()
			must(t, c.cmd.Process.Signal(syscall.SIGSTOP)) // or else it would tidy up
			must(t, syscall.Kill(c.watchdog, syscall.SIGKILL))
			c.kill()
		},
		"SIGKILL with a frozen server": func(t *testing.T, c *child, postmaster int) {
			t.Helper()
			must(t, syscall.Kill(postmaster, syscall.SIGSTOP))
			c.kill()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := newCluster(t)
			holder := startChild(t, "hold", dir, "")
			postmaster := holder.ready(t)
			address, err := Running(dir)
			must(t, err)
			query(t, address.URL("postgres"), "create table kept as select 1")

			end(t, holder, postmaster)
			server := startIn(t, dir)
			wantQuery(t, server.URL("postgres"), "select count(*) from kept", "1")
			must(t, server.Stop())
			wantGone(t, dir)
			if _, err := os.Stat(address.SocketDir()); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the socket's folder stays behind: %v", err)
			}
		})
	}
}

// The watchdog is no weak point: without it the server ends, too.
func TestServerEndsWithItsWatchdog(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	server := startIn(t, dir)
	must(t, server.run.cmd.Process.Kill())
	wantGone(t, dir)
	if _, err := os.Stat(server.SocketDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket's folder stays behind: %v", err)
	}

	// And told to go, it takes the server along.
	server = startIn(t, dir)
	must(t, server.run.cmd.Process.Signal(syscall.SIGTERM))
	<-server.Done()
	wantGone(t, dir)
}

func TestCtrlCDoesNotReachTheServer(t *testing.T) {
	t.Parallel()
	server := startIn(t, newCluster(t))
	for _, pid := range []int{server.Pid(), server.run.cmd.Process.Pid} {
		group, err := syscall.Getpgid(pid)
		must(t, err)
		if group == syscall.Getpgrp() {
			t.Errorf("process %d is in our process group, to which a terminal sends SIGINT", pid)
		}
	}
}

func TestDetachedServerOutlivesItsProcess(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	holder := startChild(t, "detach", dir, "")
	postmaster := holder.ready(t)
	must(t, holder.cmd.Wait())

	var running *RunningError
	_, err := Start(t.Context(), Options{Dir: dir})
	if !errors.As(err, &running) || !isAlive(running.Pid) || running.Pid == holder.cmd.Process.Pid {
		t.Errorf("got %v, want ErrRunning of a process that lives", err)
	}
	address, err := Running(dir)
	must(t, err)
	wantQuery(t, address.URL("postgres"), "select 1", "1")

	must(t, Remove(t.Context(), dir))
	eventually(t, "the postmaster is gone", func() bool { return !isAlive(postmaster) })
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", dir, err)
	}
	must(t, Remove(t.Context(), dir)) // a dir that is not there is fine
}

func TestDetachedServerStillObeys(t *testing.T) {
	t.Parallel()
	server := startIn(t, newCluster(t))
	must(t, server.Detach())
	must(t, server.Stop())
	wantError(t, server.Detach(), "detach")
}

// The user gives up while the server is starting. What is ended then may be so young that it does not listen to signals yet.
func TestContextBoundsTheWaiting(t *testing.T) {
	t.Parallel()
	machine, err := realBins()
	must(t, err)
	dir, bin := newCluster(t), fakeBins(t, "exit 1")
	must(t, os.Remove(filepath.Join(bin, "postgres")))
	script(t, bin, "postgres", `[ "$1" = --version ] || sleep 2; exec '`+machine.dir+`/postgres' "$@"`)

	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(time.Second, func() { cancel(errors.New("the user has gone")) })
	_, err = Start(ctx, Options{Dir: dir, BinDir: bin})
	// That it was heard is what the last lines say; who is not heard must use SIGKILL in the end.
	wantError(t, err, "did not start", "the user has gone", "received immediate shutdown request")
	wantGone(t, dir)

	_, err = Start(ctx, Options{Dir: dir})
	wantError(t, err, "the user has gone")
}
