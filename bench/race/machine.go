package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/bench/race/contestants"
	"scalable-coupon-system/internal/localpg"
)

const (
	database       = "race"
	maxConns       = 16 // the default of DB_MAX_CONNS, for every contestant
	serviceTimeout = time.Minute
	redisPrefix    = "Redis "
)

// machine is what the race runs on: a private PostgreSQL with fsync on, which is removed after the
// race.
type machine struct {
	dir         string
	concurrency int               // CLAIM_CONCURRENCY of coupond
	programs    map[string]string // paths of coupond programs, by contestant
	postgres    *localpg.Server
	conn        *pgx.Conn       // to database, as its owner
	sites       map[string]site // of databases on other servers, by name
}

// newMachine starts PostgreSQL in a new temporary folder and creates the database of the race, and
// one for each program.
func newMachine(ctx context.Context, concurrency int, programs map[string]string) (*machine, error) {
	dir, err := os.MkdirTemp("", "race-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	m := &machine{dir: dir, concurrency: concurrency, programs: programs, sites: make(map[string]site)}
	m.postgres, err = localpg.Start(ctx, localpg.Options{
		Dir: filepath.Join(dir, "postgres"),
		Log: os.Stderr,
		Settings: map[string]string{
			"shared_buffers": "512MB", "max_wal_size": "8GB", "max_connections": "200", "track_io_timing": "off",
		},
	})
	if err != nil {
		m.close()
		return nil, err
	}
	if m.conn, err = m.createDatabase(ctx, database); err != nil {
		m.close()
		return nil, err
	}
	if err := m.installPrograms(ctx); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// createDatabase creates a database with our schema, and returns a connection to it as its owner.
func (m *machine) createDatabase(ctx context.Context, name string) (*pgx.Conn, error) {
	return createDatabase(ctx, m.postgres, name)
}

// exec runs SQL in the database postgres.
func (m *machine) exec(ctx context.Context, sql string) error {
	return execOn(ctx, m.postgres, sql)
}

func (m *machine) close() {
	if m.conn != nil {
		_ = m.conn.Close(context.Background())
	}
	if m.postgres != nil {
		_ = m.postgres.Stop()
	}
	_ = os.RemoveAll(m.dir) // it is in the system's temporary folder
}

// setSlowDisk makes every commit take 2 ms longer, or ends that. It sets commit_delay, so that a
// commit takes as long as on a disk with a slower fsync.
func (m *machine) setSlowDisk(ctx context.Context, slow bool) error {
	for _, set := range map[bool][]string{
		true:  {"alter system set commit_delay = 2000", "alter system set commit_siblings = 0"},
		false: {"alter system reset commit_delay", "alter system reset commit_siblings"},
	}[slow] {
		if _, err := m.conn.Exec(ctx, set); err != nil {
			return err
		}
	}
	if _, err := m.conn.Exec(ctx, "select pg_reload_conf()"); err != nil {
		return err
	}
	time.Sleep(200 * time.Millisecond) // a backend reads the new settings before its next command
	return nil
}

// commits counts the transactions that have written something: each of them has taken a transaction
// ID. pg_stat_database would be up to 10 s late, because an idle backend reports its commits that
// late.
func (m *machine) commits(ctx context.Context) (int64, error) {
	var n int64
	err := m.conn.QueryRow(ctx, "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint").Scan(&n)
	return n, err
}

// cpuTime returns the CPU time, user and system, of a process and of its children that have ended.
// Without /proc (macOS) it is 0, and the tables have no such column.
func cpuTime(pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	return parseCPUTime(string(stat))
}

// parseCPUTime reads the CPU time in the content of /proc/*/stat.
func parseCPUTime(stat string) time.Duration {
	// The name may contain blanks and brackets. Behind it are the state and 49 numbers.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 15 {
		return 0
	}
	ticks := 0
	for _, field := range fields[11:15] { // utime, stime, cutime, cstime
		n, err := strconv.Atoi(field)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100) // USER_HZ is 100 on every Linux
}

// siteOf returns the servers that store the coupons of a service.
func (m *machine) siteOf(s *service) site {
	if found, ok := m.sites[s.database]; ok {
		return found
	}
	return site{url: m.postgres.URL(s.database), database: []*localpg.Server{m.postgres}}
}

// serverCPU returns the CPU time of all processes of PostgreSQL servers.
func serverCPU(servers []*localpg.Server) (total time.Duration) {
	for _, server := range servers {
		total += cpuTime(server.Pid())
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", server.Pid(), server.Pid()))
		if err != nil {
			continue
		}
		for child := range strings.FieldsSeq(string(children)) {
			pid, err := strconv.Atoi(child)
			if err == nil {
				total += cpuTime(pid)
			}
		}
	}
	return total
}

// cpuUsage is the CPU time of all processes that take part in the claims of one service.
type cpuUsage struct{ generator, service, database, proxies, standbys time.Duration }

func (m *machine) cpuUsage(s *service) cpuUsage {
	at := m.siteOf(s)
	u := cpuUsage{
		generator: cpuTime(os.Getpid()),
		database:  serverCPU(at.database),
		proxies:   serverCPU(at.proxies),
		standbys:  serverCPU(at.standbys),
	}
	for _, one := range s.instances {
		u.service += cpuTime(one.cmd.Process.Pid)
	}
	if s.redis != nil {
		u.database = cpuTime(s.redis.Pid())
	}
	return u
}

// describe returns what the results say of the machine: its CPUs, versions and the commit.
func (m *machine) describe(ctx context.Context) map[string]string {
	description := map[string]string{
		"cpus":       strconv.Itoa(runtime.NumCPU()),
		"os":         runtime.GOOS + "/" + runtime.GOARCH,
		"go":         runtime.Version(),
		"postgresql": m.postgres.Version(),
	}
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
				description["cpu"] = strings.TrimSpace(value)
				break
			}
		}
	}
	if version := contestants.RedisVersion(ctx); version != "" {
		description["redis"] = version
	}
	if out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12").Output(); err == nil {
		description["commit"] = strings.TrimSpace(string(out))
	}
	return description
}
