// Package localpg runs a private PostgreSQL from binaries on this machine: for `coupond dev`, for tests and for benchmarks.
//
// A cluster lives in one folder, Options.Dir:
//
//	data        the data directory (or a link to it, see below)
//	pgpass      the superuser's password, made at random by the first Start, in the format of libpq's password file; mode 0600
//	server.log  what the server says
//	lock        held while any process of the server lives; also notes who started it, and where it listens
//
// The server listens on 127.0.0.1 and on a unix socket in a private folder under /tmp (the path of a socket may have 107 bytes,
// 103 on macOS, which Dir easily exceeds), and asks for the password on both: another user of the machine can connect, but not
// log in.
//
// It ends with the process that started it, however that one ends: between the two stands a few lines of shell (watchdog.sh)
// that read a pipe which only we hold, and stop the server when it closes. The kernel closes it for a process killed with
// SIGKILL, too. (PR_SET_PDEATHSIG was not taken: it exists on Linux only, and fires when the starting thread ends, of which a
// Go program has many.) A Ctrl-C in the terminal does not reach the server, so that a service can drain before it calls Stop.
//
// PostgreSQL refuses to run as root. Started by root, it runs as the user postgres, or else as nobody; where that user cannot
// reach Dir (a clone under /root, say) the data goes to a folder under /var/lib/coupond, and Dir/data links to it.
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
	"time"

	"github.com/jackc/pgx/v5"
)

// Options says which cluster Start is to run, and how.
type Options struct {
	// Dir is the cluster's home. It is created when missing; a cluster that is there already is started again.
	Dir string
	// Port is the TCP port on 127.0.0.1. 0 takes the port that the cluster had the last time, or a free one.
	Port int
	// Settings are those of postgresql.conf, such as {"fsync": "off"}. They stand on the server's command line, so ALTER SYSTEM
	// cannot change them. Where the server listens and what it serves is Start's own business and refused here.
	Settings map[string]string
	// Log gets what the user should know: that something is being installed, and where data goes. nil is silence.
	Log io.Writer
	// BinDir is where initdb and postgres are, 15 or newer. "" has them found (pg_config's folder, that of a postgres on PATH,
	// /usr/lib/postgresql/*, Homebrew, Postgres.app), or else got: see the comment on get.
	BinDir string
}

// Server is a running PostgreSQL that Start started. Its methods may be called concurrently.
type Server struct {
	*Address

	version string
	run     *run
}

// oldestMajor is the oldest PostgreSQL the coupon system works with.
const oldestMajor = 15

// superuser is the name of the cluster's first role.
const superuser = "postgres"

// Start starts the cluster in o.Dir, made first when there is none, and waits until it answers queries. ctx bounds the waiting
// and the making, not the server's life: that ends with Stop, Kill, or this process.
//
// Errors: *RunningError (errors.Is ErrRunning) when the cluster runs already; all others say what to do, and where the server
// itself gave up they carry the last lines of its log.
func Start(ctx context.Context, o Options) (*Server, error) {
	server, err := start(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("localpg: %w", err)
	}
	return server, nil
}

func start(ctx context.Context, o Options) (*Server, error) {
	if o.Dir == "" {
		return nil, errors.New("no Dir to run a cluster in")
	}
	if err := checkSettings(o.Settings); err != nil {
		return nil, err
	}
	say := func(format string, args ...any) {
		if o.Log != nil {
			_, _ = fmt.Fprintf(o.Log, format+"\n", args...)
		}
	}

	dir, err := makeDir(o.Dir)
	if err != nil {
		return nil, err
	}
	held, err := acquire(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer held.close() // the running server has a share of its own by then

	held.dropStaleSockets()
	ports, err := candidatePorts(o.Port, held.last.Port)
	if err != nil {
		return nil, err
	}
	c, err := place(ctx, dir, say)
	if err != nil {
		return nil, err
	}
	bin, err := find(ctx, finder{account: c.account, want: c.major, binDir: o.BinDir, data: c.data, say: say})
	if err != nil {
		return nil, err
	}
	if c.major == 0 {
		say("making a PostgreSQL %s cluster in %s", bin.version, c.data)
		if err := c.initialize(ctx, bin, o.Settings["fsync"] == "off", held); err != nil {
			return nil, err
		}
	}
	if err := c.dropStalePid(ctx); err != nil {
		return nil, err
	}
	password, err := readPassword(dir)
	if err != nil {
		return nil, err
	}

	for i, port := range ports {
		server, err := c.run(ctx, bin, port, password, o.Settings, held)
		// Between our look at a free port and the server's bind somebody else may take it: only then is another one tried.
		if err == nil || ctx.Err() != nil || i == len(ports)-1 || portIsFree(port) {
			return server, err
		}
	}
	panic("unreachable: there is a port to try")
}

// run starts the server process on port and waits until it answers.
func (c *cluster) run(
	ctx context.Context, bin bins, port int, password string, settings map[string]string, held *lock,
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

	running, err := c.watch(sockets, filepath.Join(bin.dir, "postgres"), arguments, held)
	if err != nil {
		_ = os.RemoveAll(sockets)
		return nil, err
	}

	address := &Address{
		dir:      c.dir,
		password: password,
		state:    state{Owner: os.Getpid(), Port: port, Sockets: sockets, BinDir: bin.dir},
	}
	err = running.waitReady(ctx, address)
	if err == nil {
		// Only now that the server answers is postmaster.pid surely its own.
		address.state.Postmaster, err = postmasterPid(c.data)
	}
	if err == nil {
		err = running.note(address.state)
	}
	if err != nil {
		_ = running.kill()
		return nil, fmt.Errorf("PostgreSQL %s in %s did not start: %w%s", bin.version, c.dir, err, running.lastLines())
	}
	return &Server{Address: address, version: bin.version, run: running}, nil
}

// waitReady asks until the server answers a query, ends, or ctx does. It asks on the unix socket, which is surely ours: on the
// TCP port another server may have been faster.
func (r *run) waitReady(ctx context.Context, a *Address) error {
	config, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%d user=%s password=%s dbname=postgres sslmode=disable",
		a.state.Sockets, a.state.Port, superuser, a.password))
	if err != nil {
		return err
	}
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
			return fmt.Errorf("its password is not the one in %s; put the right file back, or remove %s to start afresh",
				filepath.Join(a.dir, passwordFile), a.dir)
		}
		select {
		case <-r.done:
			return fmt.Errorf("it ended: %w", r.ended)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-pause():
		}
	}
}

// Stop shuts the server down (fast: sessions are ended, what is committed is written to the data files) and waits for its end.
// A second Stop, or one after Kill, does nothing. The error tells of a server that ended by itself before, or that had to be
// killed because it did not stop within a minute.
func (s *Server) Stop() error {
	if err := s.run.stop(); err != nil {
		return fmt.Errorf("localpg: stop PostgreSQL in %s: %w%s", s.dir, err, s.run.lastLines())
	}
	return nil
}

// Kill ends the server as a crash does (immediate shutdown: nothing is written any more) and waits for its end. The next Start
// on the same Dir recovers what was committed.
func (s *Server) Kill() error {
	if err := s.run.kill(); err != nil {
		return fmt.Errorf("localpg: kill PostgreSQL in %s: %w", s.dir, err)
	}
	return nil
}

// Detach lets the server outlive this process; Stop and Kill work on meanwhile. Remove ends it later.
func (s *Server) Detach() error {
	err := s.run.order(orderKeep)
	if err == nil {
		detached := s.state
		detached.Owner = s.run.cmd.Process.Pid // from now on the watchdog answers for the server
		err = s.run.note(detached)
	}
	if err != nil {
		return fmt.Errorf("localpg: detach PostgreSQL in %s: %w", s.dir, err)
	}
	return nil
}

// Done is closed when the server has ended, whoever ended it.
func (s *Server) Done() <-chan struct{} { return s.run.done }

// Version is the server's version, such as "17.5".
func (s *Server) Version() string { return s.version }

var settingName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

func checkSettings(settings map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		switch {
		case !settingName.MatchString(name):
			return fmt.Errorf("%q is no name of a setting", name)
		case slices.Contains([]string{"data_directory", "listen_addresses", "port", "unix_socket_directories"}, name):
			return fmt.Errorf("setting %s is not to be chosen: Start says where the server listens", name)
		}
	}
	return nil
}

// candidatePorts lists the ports to try, in order: the wanted one alone, or else the one of the last time and some random ones.
//
// These are below the range from which the kernel takes the local port of an outgoing connection (from 32768 on Linux, 49152 on
// macOS): a port of that range can be lost to any connection while the server is down for a restart.
func candidatePorts(wanted, last int) ([]int, error) {
	if wanted != 0 {
		if wanted < 1 || wanted > 65535 {
			return nil, fmt.Errorf("%d is no port: it must be 1 to 65535, or 0 for a free one", wanted)
		}
		if !portIsFree(wanted) {
			return nil, fmt.Errorf("port %d of 127.0.0.1 is taken", wanted)
		}
		return []int{wanted}, nil
	}
	var ports []int
	if last != 0 && portIsFree(last) {
		ports = append(ports, last)
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
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	_ = listener.Close()
	return true
}
