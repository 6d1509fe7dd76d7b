// Package localpg runs a private PostgreSQL server from binaries on this machine, for `coupond
// dev`, tests and benchmarks.
//
// A cluster is one directory, Options.Dir:
//
//	data        the data directory, or a link to it (see below)
//	pgpass      the superuser's name and random password, as a libpq password file with mode 0600
//	server.log  the server's log
//	lock        locked by the process that started the server; contains its ID and the address
//	running     locked while any process of the server is running
//
// The server listens on 127.0.0.1 and on a unix socket, and requires the password on both: other
// users of the machine can connect, but not log in. The socket is in a private directory below
// /tmp, because its path is limited to 107 bytes (103 on macOS).
//
// The server ends with the process that started it, even after SIGKILL. A small shell script
// (watchdog.sh) runs between the two and reads a pipe; only this process has the write end. When
// the process ends, the kernel closes the pipe, and the script stops the server. PR_SET_PDEATHSIG
// would not do: it exists on Linux only, and it fires when the starting thread ends, which in a Go
// program may be earlier. Ctrl-C in the terminal does not reach the server, so that a service can
// drain before it calls Stop.
//
// PostgreSQL refuses to run as root. If root starts it, it runs as the user postgres, or else as
// nobody. If that user cannot enter Dir, for example below /root, the data is in a directory below
// /var/lib/coupond, and Dir/data is a link to it.
package localpg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Options says which cluster Start runs, and how.
type Options struct {
	// Dir is the cluster's home directory. It is created if it is missing; an existing cluster is
	// started again.
	Dir string
	// User is the name of the superuser of a new cluster. "" means postgres.
	User string
	// Port is the TCP port on 127.0.0.1. 0 means the port of the previous run, or a free one.
	Port int
	// Settings are settings of postgresql.conf, such as {"fsync": "off"}. They are passed on the
	// command line, so ALTER SYSTEM cannot change them. Settings of the data directory and of the
	// addresses are rejected, because Start chooses those.
	Settings map[string]string
	// Log receives messages for the user: what is installed, and where the data is. nil discards
	// them.
	Log io.Writer
	// BinDir contains initdb and postgres, version 15 or newer. If it is "", Start searches the
	// directory that pg_config prints, that of postgres on PATH, /usr/lib/postgresql/*, Homebrew
	// and Postgres.app, and otherwise installs PostgreSQL: see install.
	BinDir string
}

// Server is a PostgreSQL server that Start started. Its methods may be called concurrently.
type Server struct {
	*Address

	version string
	process *process
}

// oldestMajor is the oldest supported major version of PostgreSQL.
const oldestMajor = 15

const defaultUser = "postgres"

// Start starts the cluster in o.Dir and waits until it answers queries. It creates the cluster if
// there is none. ctx ends the wait and the installation, but not a running server: that ends with
// Stop, Kill or this process.
//
// If the cluster is already running, the error is a *RunningError (errors.Is ErrRunning). Other
// errors say what to do; if the server did not start, they include the last lines of its log.
//
// Start calls IgnoreEnvironment.
func Start(ctx context.Context, o Options) (*Server, error) {
	server, err := start(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("localpg: %w", err)
	}
	return server, nil
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

func start(ctx context.Context, o Options) (*Server, error) {
	IgnoreEnvironment()
	if o.User == "" {
		o.User = defaultUser
	}
	if o.Dir == "" {
		return nil, errors.New("Options.Dir is empty; set it to a directory for the cluster")
	}
	if err := checkSettings(o.Settings); err != nil {
		return nil, err
	}
	logf := func(format string, args ...any) {
		if o.Log != nil {
			_, _ = fmt.Fprintf(o.Log, format+"\n", args...)
		}
	}

	dir, err := makeDir(o.Dir)
	if err != nil {
		return nil, err
	}
	lock, err := acquireLock(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer lock.release() // the running server has its own reference

	ports, err := candidatePorts(o.Port, lock.previous.Port)
	if err != nil {
		return nil, err
	}
	c, err := openCluster(ctx, dir, logf)
	if err != nil {
		return nil, err
	}
	lock.removeStaleSocketDir(ctx, c.account)
	pg, err := findInstallation(ctx, finder{account: c.account, want: c.major, binDir: o.BinDir, data: c.data, logf: logf})
	if err != nil {
		return nil, err
	}
	if c.major == 0 {
		logf("creating a PostgreSQL %s cluster in %s", pg.version, c.data)
		if err := c.initialize(ctx, pg, o.User, o.Settings["fsync"] == "off", lock); err != nil {
			return nil, err
		}
	}
	if err := c.removeStalePid(ctx); err != nil {
		return nil, err
	}
	login, err := readLogin(dir)
	if err != nil {
		return nil, err
	}

	for i, port := range ports {
		server, err := c.startServer(ctx, pg, port, login, o.Settings, lock)
		// Another process may take the port between our check and the server's bind. Only then try
		// the next one.
		if err == nil || ctx.Err() != nil || i == len(ports)-1 || portIsFree(port) {
			return server, err
		}
	}
	panic("unreachable: candidatePorts returns at least one port")
}

// startServer starts the server on port and waits until it answers.
func (c *cluster) startServer(
	ctx context.Context, pg installation, port int, login login, settings map[string]string, lock *dirLock,
) (*Server, error) {
	sockets, err := c.makeSocketDir()
	if err != nil {
		return nil, err
	}

	arguments := []string{
		"-D", c.data,
		"-c", "listen_addresses=127.0.0.1",
		"-c", "port=" + strconv.Itoa(port),
		"-c", "unix_socket_directories=" + sockets,
	}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		arguments = append(arguments, "-c", name+"="+settings[name])
	}

	started, err := c.startProcess(sockets, filepath.Join(pg.dir, "postgres"), arguments, lock)
	if err != nil {
		_ = os.RemoveAll(sockets)
		return nil, err
	}

	address := &Address{
		dir:   c.dir,
		login: login,
		state: serverState{Owner: os.Getpid(), Port: port, Sockets: sockets, BinDir: pg.dir},
	}
	err = started.waitReady(ctx, address)
	if err == nil {
		// postmaster.pid is that of this server only when the server answers.
		address.state.Postmaster, err = postmasterPid(c.data)
	}
	if err == nil {
		err = started.record(address.state)
	}
	if err != nil {
		_ = started.kill()
		return nil, fmt.Errorf("PostgreSQL %s in %s did not start: %w%s", pg.version, c.dir, err, started.logTail())
	}
	return &Server{Address: address, version: pg.version, process: started}, nil
}

// waitReady waits until the server answers a query or ends, or until ctx ends. It connects to the
// unix socket, which no other server can have; the TCP port may have been taken by another one.
func (p *process) waitReady(ctx context.Context, a *Address) error {
	config, err := pgx.ParseConfig(a.URL("postgres"))
	if err != nil {
		return err
	}
	config.Host = a.state.Sockets
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		conn, err := pgx.ConnectConfig(attempt, config)
		if err == nil {
			_, err = conn.Exec(attempt, "select 1")
			_ = conn.Close(attempt)
		}
		cancel()
		if err == nil {
			return nil
		}
		if isWrongPassword(err) {
			return fmt.Errorf("its password is not the one in %s; restore the file, or remove %s to start with a new cluster",
				filepath.Join(a.dir, passwordFile), a.dir)
		}
		select {
		case <-p.done:
			return fmt.Errorf("the server ended: %w", p.exitErr)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pollInterval):
		}
	}
}

// Stop shuts the server down in fast mode (sessions are ended, and a checkpoint is written) and
// waits until it has ended. After Stop or Kill it does nothing. It returns an error if the server
// had already ended by itself, or if it did not stop within a minute and was killed.
func (s *Server) Stop() error {
	if err := s.process.stop(); err != nil {
		return fmt.Errorf("localpg: stop PostgreSQL in %s: %w%s", s.dir, err, s.process.logTail())
	}
	return nil
}

// Kill shuts the server down in immediate mode, which is like a crash, and waits until it has
// ended. The next Start in the same Dir recovers all committed transactions.
func (s *Server) Kill() error {
	if err := s.process.kill(); err != nil {
		return fmt.Errorf("localpg: kill PostgreSQL in %s: %w", s.dir, err)
	}
	return nil
}

// Detach lets the server outlive this process. Stop and Kill still work; Remove can end the server
// later.
func (s *Server) Detach() error {
	err := s.process.send(keepRunning)
	if err == nil {
		detached := s.state
		detached.Owner = s.process.cmd.Process.Pid // the watchdog owns the server from now on
		err = s.process.record(detached)
	}
	if err != nil {
		return fmt.Errorf("localpg: detach PostgreSQL in %s: %w", s.dir, err)
	}
	return nil
}

// Done returns a channel that is closed when the server has ended, for any reason.
func (s *Server) Done() <-chan struct{} { return s.process.done }

// Version returns the server's version, such as "17.5".
func (s *Server) Version() string { return s.version }

var settingName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

func checkSettings(settings map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		switch {
		case !settingName.MatchString(name):
			return fmt.Errorf("%q is not a valid setting name", name)
		case slices.Contains([]string{"data_directory", "listen_addresses", "port", "unix_socket_directories"}, name):
			return fmt.Errorf("setting %s is reserved: Start sets it", name)
		}
	}
	return nil
}

// candidatePorts returns the ports to try, in order: only the wanted one, or else the one of the
// previous run and some random ones.
//
// Random ports are below the range of ephemeral ports (from 32768 on Linux, from 49152 on macOS):
// an outgoing connection could take a port of that range while the server is restarting.
func candidatePorts(wanted, previous int) ([]int, error) {
	if wanted != 0 {
		if wanted < 1 || wanted > 65535 {
			return nil, fmt.Errorf("port %d is out of range (use 1 to 65535, or 0 for a free port)", wanted)
		}
		if !portIsFree(wanted) {
			return nil, fmt.Errorf("port %d on 127.0.0.1 is already in use; free it or choose another port", wanted)
		}
		return []int{wanted}, nil
	}
	var ports []int
	if previous != 0 && portIsFree(previous) {
		ports = append(ports, previous)
	}
	for range 1000 {
		if port := 20000 + rand.IntN(12000); portIsFree(port) {
			ports = append(ports, port)
		}
		if len(ports) == 5 {
			return ports, nil
		}
	}
	return nil, errors.New("found no free port on 127.0.0.1 between 20000 and 31999")
}

func portIsFree(port int) bool {
	var config net.ListenConfig
	listener, err := config.Listen(context.Background(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	_ = listener.Close()
	return true
}
