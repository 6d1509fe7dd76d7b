package localpg

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func TestStart_keepsDataAndAddress(t *testing.T) {
	t.Parallel()
	o, log := fast(newDir(t)), &bytes.Buffer{}
	o.Log = log
	o.Settings["application.name"] = "it's \"quoted\" $HOME"

	first := startWith(t, o)
	if !strings.Contains(log.String(), "creating a PostgreSQL") {
		t.Errorf("the log does not say that a cluster is created: %q", log)
	}
	before := first.URL("postgres")
	wantQuery(t, before, "create table kept as select 'yes' as value", "")
	wantQuery(t, before, "show application.name", "it's \"quoted\" $HOME")
	for _, pid := range []int{first.Pid(), first.watchdog.Process.Pid} {
		if group, err := syscall.Getpgid(pid); err != nil || group == syscall.Getpgrp() {
			t.Errorf("process %d is in the process group of the test, which gets SIGINT on Ctrl-C (%v)", pid, err)
		}
	}
	must(t, first.Stop())
	must(t, first.Stop()) // does nothing
	waitGone(t, o.Dir)
	if exists(first.sockets) {
		t.Error("the socket directory still exists")
	}

	second := startWith(t, o)
	if second.URL("postgres") != before {
		t.Errorf("the address changed from %s to %s", before, second.URL("postgres"))
	}
	wantQuery(t, before, "select value from kept", "yes")
	wantQuery(t, before, "show server_encoding", "UTF8")
	wantQuery(t, before, "select split_part(current_setting('server_version'), ' ', 1)", second.Version())
}

func TestStart_recoversAfterKill(t *testing.T) {
	t.Parallel()
	o := Options{Dir: newCluster(t)} // with fsync, as in production
	server := startWith(t, o)
	wantQuery(t, server.URL("postgres"), "create table kept (n int); insert into kept select generate_series(1, 1000)", "")
	must(t, server.Kill())
	must(t, server.Stop()) // does nothing

	wantQuery(t, startWith(t, o).URL("postgres"), "select count(*) from kept", "1000")
	log, err := os.ReadFile(filepath.Join(o.Dir, "server.log"))
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
	wantQuery(t, server.URL("postgres"), "create table kept as select 1", "")
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

func TestStart_errorHasServerLog(t *testing.T) {
	t.Parallel()
	o := fast(newCluster(t))
	must(t, startWith(t, o).Stop())

	o.Settings["shared_buffers"] = "banana"
	_, err := Start(t.Context(), o)
	wantError(t, err, "did not start", "exit status 1", `invalid value for parameter "shared_buffers": "banana"`)
	if strings.Contains(err.Error(), "database system is shut down") {
		t.Errorf("the error contains log lines of the previous run: %v", err)
	}
	startIn(t, o.Dir) // the cluster still works
}

// If another program uses the cluster's port, Start chooses another one, unless it must not.
func TestStart_portInUse(t *testing.T) {
	t.Parallel()
	o := fast(newCluster(t))
	server := startWith(t, o)
	o.Port = server.Port()
	must(t, server.Stop())
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(o.Port)))
	must(t, err)
	defer listener.Close()

	_, err = Start(t.Context(), o)
	wantError(t, err, "cannot use port "+strconv.Itoa(o.Port), "address already in use")
	if restarted := startIn(t, o.Dir); restarted.Port() == o.Port {
		t.Errorf("the server listens on port %d, which another program uses", o.Port)
	}
	o.Port = 65536
	o.Dir = newDir(t)
	_, err = Start(t.Context(), o)
	wantError(t, err, "cannot use port 65536", "invalid port")
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

	for _, host := range []string{"127.0.0.1", server.sockets} {
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
	if password, _ := server.login.Password(); strings.Contains(command, password) {
		t.Errorf("the psql command contains the password: %s", command)
	}
	quoted := strings.TrimSuffix(strings.TrimPrefix(command, "psql '"), "'")
	connString, peer, _ := strings.Cut(quoted, "&requirepeer=") // pgx does not know the last one
	wantQuery(t, connString, "select 1", "1")
	owner, _ := ownerOf(server.cluster.data)
	if want := userName(owner); peer != want {
		t.Errorf("psql requires a server of %q, want %q", peer, want)
	}
}

func TestServer_Psql(t *testing.T) {
	t.Parallel()
	s := &Server{login: url.User("postgres"), port: 5, cluster: &cluster{dir: "/a b+c&d/it's", data: "/"}, sockets: "/tmp/localpg-1"}
	const want = `psql 'postgres://postgres@/x%20y?sslmode=disable&sslrootcert=&host=/tmp/localpg-1&port=5&passfile=/a%20b%2Bc%26d/it%27s/pgpass&requirepeer=root'`
	if got := s.Psql("x y"); got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

func TestStart_wrongPasswordFile(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	secret := filepath.Join(dir, passwordFile)
	must(t, os.WriteFile(secret, []byte("wrong\n"), 0o600))
	_, err := Start(t.Context(), fast(dir))
	wantError(t, err, "cannot be used without the password in "+secret, "restore the file, or remove "+dir)
	must(t, os.Remove(secret))
	_, err = Start(t.Context(), fast(dir))
	wantError(t, err, "cannot be used without the password in "+secret)
}

func TestStart_alreadyRunning(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	want := "PostgreSQL is already running in " + dir
	child := startChild(t, dir).ready(t)
	_, err := Start(t.Context(), fast(dir))
	wantError(t, err, want)
	wantQuery(t, child.url, "select 1", "1")

	child.kill()
	server := startIn(t, dir)
	if !Running(dir) {
		t.Error("Running: false")
	}
	_, err = Start(t.Context(), fast(dir))
	wantError(t, err, want)
	must(t, server.Stop())
	waitGone(t, dir)
}

// However its process ends, the server ends, too, and the next Start finds all committed data.
func TestServer_endsWithItsProcess(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*testing.T, *child){
		"SIGKILL": func(_ *testing.T, c *child) { c.kill() },
		"SIGKILL of the process and the watchdog": func(t *testing.T, c *child) {
			t.Helper()
			must(t, c.cmd.Process.Signal(syscall.SIGSTOP)) // otherwise the child would clean up
			must(t, syscall.Kill(c.watchdog, syscall.SIGKILL))
			c.kill()
		},
		"SIGKILL while the server is stopped": func(t *testing.T, c *child) {
			t.Helper()
			must(t, syscall.Kill(c.postmaster, syscall.SIGSTOP))
			c.kill()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := newCluster(t)
			child := startChild(t, dir).ready(t)
			wantQuery(t, child.url, "create table kept as select 1", "")

			end(t, child)
			server := startIn(t, dir)
			wantQuery(t, server.URL("postgres"), "select count(*) from kept", "1")
			must(t, server.Stop())
			waitGone(t, dir)
			if exists(server.sockets) {
				t.Errorf("the socket directory %s still exists", server.sockets)
			}
		})
	}
}

// Without its watchdog the server ends, too.
func TestServer_endsWithItsWatchdog(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	for _, signal := range []os.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		server := startIn(t, dir)
		must(t, server.watchdog.Process.Signal(signal))
		<-server.Done()
		waitGone(t, dir)
		if exists(server.sockets) {
			t.Errorf("%s: the socket directory still exists", signal)
		}
	}
}

// The context ends while the server is starting and may not handle signals yet.
func TestStart_contextCancelled(t *testing.T) {
	o := fast(newCluster(t))
	t.Setenv("PATH", fakeInstallation(t, "", `[ "$1" = --version ] || { echo starting; sleep 0.5; }; exec "$real/postgres" "$@"`))
	ctx := cancelWhen(t, func() bool {
		log, _ := os.ReadFile(filepath.Join(o.Dir, logFile))
		return strings.Contains(string(log), "starting")
	})
	_, err := Start(ctx, o)
	// The log shows that the server handled the signal; otherwise it would have been killed.
	wantError(t, err, "did not start", "the user has left", "received immediate shutdown request")
	waitGone(t, o.Dir)
	_, err = Start(ctx, o)
	wantError(t, err, "the user has left")
}
