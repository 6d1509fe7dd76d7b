// Package localpg runs a private PostgreSQL server from binaries on this machine, for `coupond
// dev`, tests and benchmarks.
//
// A cluster is one directory, Options.Dir:
//
//	data        the data directory, or a link to it (see below)
//	pgpass      the superuser's name and random password, as a libpq password file with mode 0600
//	server.log  the server's log
//	lock        locked by the process that called Start
//	running     locked while any process of the server is running
//
// The server listens on 127.0.0.1 and on a unix socket in a private directory, and requires the
// password on both.
//
// The server ends with the process that started it, even after SIGKILL: see watchdog.sh. Ctrl-C in
// the terminal does not reach the server, so that a service can drain before it calls Stop.
//
// PostgreSQL refuses to run as root. If root starts it, it runs as the user postgres, or else as
// nobody. If that user cannot enter Dir, for example below /root, the data is in a directory below
// /var/lib/coupond, and Dir/data is a link to it.
package localpg

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Options says which cluster Start runs, and how.
type Options struct {
	// Dir is the cluster's home directory. It is created if it is missing; an existing cluster is
	// started again.
	Dir string
	// Port is the TCP port on 127.0.0.1. 0 means one that depends on Dir, or a random one if that is
	// in use.
	Port int
	// Settings are settings of postgresql.conf, such as {"fsync": "off"}. They are passed on the
	// command line, so ALTER SYSTEM cannot change them.
	Settings map[string]string
	// Log receives messages for the user, such as where the data is. nil discards them.
	Log io.Writer
}

// Server is a PostgreSQL server that Start started.
type Server struct {
	cluster      *cluster
	installation installation
	login        *url.Userinfo // the superuser
	pid, port    int
	sockets      string // directory of the unix socket

	watchdog *exec.Cmd
	commands *os.File // the pipe to the watchdog, for one command; the server ends when it closes
	stopped  atomic.Bool
	done     chan struct{} // closed when the watchdog and the server have ended
	logStart int64         // size of the log when the server was started, in bytes
}

// Start starts the cluster in o.Dir and waits until it accepts connections. It creates the cluster
// if there is none. ctx ends the wait, but not a running server: that ends with Stop, Kill or this
// process. If the cluster is already running, Start fails.
//
// Start calls IgnoreEnvironment.
func Start(ctx context.Context, o Options) (*Server, error) {
	IgnoreEnvironment()
	server, err := start(ctx, o)
	if err == nil {
		return server, nil
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return nil, fmt.Errorf("localpg: %w", err)
}

// IgnoreEnvironment removes the variables of libpq (PG…) from the environment of this process, so
// that they have no effect on it and on the programs that it starts. pgx reads them, and a
// connection string cannot override all of them: PGSERVICE fails without its file.
func IgnoreEnvironment() {
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "PG") {
			_ = os.Unsetenv(name) // fails only for a name that is not valid
		}
	}
}

func start(ctx context.Context, o Options) (_ *Server, err error) {
	c, err := openCluster(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.unlock()
		}
	}()
	s := &Server{cluster: c, done: make(chan struct{})}
	if s.port, err = choosePort(o.Port, c.dir); err != nil {
		return nil, err
	}
	if s.installation, err = c.findInstallation(ctx); err != nil {
		return nil, err
	}
	if c.major == 0 {
		c.logf("creating a PostgreSQL %s cluster in %s", s.installation.version, c.data)
		if err := c.initialize(ctx, s.installation, o); err != nil {
			return nil, err
		}
	}
	stale, err := c.removeStalePid(ctx)
	if err != nil {
		return nil, err
	}
	if s.login, err = readLogin(c.dir); err != nil {
		return nil, err
	}
	if err := s.launch(o.Settings); err != nil {
		return nil, err
	}
	if err = s.waitReady(ctx, stale); err != nil {
		_ = s.end(stopImmediate)
		return nil, fmt.Errorf("PostgreSQL %s in %s did not start: %w%s", s.Version(), s.Dir(), err, s.logTail())
	}
	return s, nil
}

// waitReady waits until the server is ready or ends, or until ctx ends. stale is the content of the
// postmaster.pid that an earlier server has left.
func (s *Server) waitReady(ctx context.Context, stale string) error {
	for {
		text, err := os.ReadFile(filepath.Join(s.cluster.data, pidFile))
		lines := strings.Split(string(text), "\n")
		if err == nil && string(text) != stale && len(lines) > 7 && strings.TrimSpace(lines[7]) == "ready" {
			s.pid, err = strconv.Atoi(lines[0])
			return err
		}
		select {
		case <-s.done:
			return fmt.Errorf("the server ended: %s", s.watchdog.ProcessState)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollInterval):
		}
	}
}

// Dir returns the cluster's home directory as an absolute path.
func (s *Server) Dir() string { return s.cluster.dir }

// Version returns the server's version, such as "17.5".
func (s *Server) Version() string { return s.installation.version }

// BinDir returns the directory of the server's binaries. It also contains psql, unless the binaries
// were downloaded.
func (s *Server) BinDir() string { return s.installation.dir }

// Psql returns a shell command that opens database in psql. It contains the path of the password
// file, not the password.
//
// psql connects to the unix socket, and only if the server runs as the user that it should: once
// this server has ended, another user could listen on its port and ask for the password.
func (s *Server) Psql(database string) string {
	// libpq does not decode a plus as a space, and a plain slash is easier to read.
	value := func(text string) string {
		return strings.NewReplacer("+", "%20", "%2F", "/").Replace(url.QueryEscape(text))
	}
	u := url.URL{Scheme: "postgres", User: url.User(s.login.Username()), Path: "/" + database}
	owner, _ := ownerOf(s.cluster.data)
	u.RawQuery = noTLS + "&host=" + value(s.sockets) + "&port=" + strconv.Itoa(s.port) +
		"&passfile=" + value(filepath.Join(s.Dir(), passwordFile)) + "&requirepeer=" + value(userName(owner))
	return "psql '" + strings.ReplaceAll(u.String(), "'", `'\''`) + "'"
}

// Port returns the server's TCP port on 127.0.0.1.
func (s *Server) Port() int { return s.port }

// Pid returns the process ID of the postmaster, the server's first process.
func (s *Server) Pid() int { return s.pid }

// noTLS also keeps pgx from reading the user's own root certificate, which may not be valid.
const noTLS = "sslmode=disable&sslrootcert="

// URL returns the superuser's connection string for database. It contains the password: do not log
// it.
func (s *Server) URL(database string) string {
	u := url.URL{
		Scheme: "postgres", User: s.login,
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)), Path: "/" + database, RawQuery: noTLS,
	}
	return u.String()
}

// Running reports whether a process of the server of the cluster in dir is running, whichever
// process started it.
func Running(dir string) bool {
	file, err := os.Open(filepath.Join(dir, runningFile))
	if err != nil {
		return false
	}
	defer func() { _ = file.Close() }()
	return flock(file, syscall.LOCK_SH) != nil
}

// choosePort returns the port to use. Without a wanted one it is below the range of ephemeral ports
// (from 32768 on Linux, from 49152 on macOS): an outgoing connection could take a port of that
// range while the server is restarting.
func choosePort(wanted int, dir string) (int, error) {
	if wanted != 0 {
		return wanted, listen(wanted)
	}
	const lowest, count = 20000, 12000
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(dir)) // never fails
	port := lowest + int(hash.Sum32()%count)
	for range 100 {
		if listen(port) == nil {
			return port, nil
		}
		port = lowest + rand.IntN(count)
	}
	return 0, listen(port)
}

// listen returns an error if nothing can listen on the port.
func listen(port int) error {
	var config net.ListenConfig
	listener, err := config.Listen(context.Background(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("PostgreSQL cannot use port %d (choose another one, or 0 for a free one): %w", port, err)
	}
	return listener.Close()
}
