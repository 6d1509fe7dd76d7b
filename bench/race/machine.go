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
	maxConns       = 16 // DB_MAX_CONNS's default, for every rival
	serviceTimeout = time.Minute
	redisPrefix    = "Redis "
)

// machine is what the race runs on: a private PostgreSQL with fsync on, made for this race and removed after it.
type machine struct {
	dir      string
	lanes    int
	postgres *localpg.Server
	conn     *pgx.Conn
	sites    map[string]site // of the contestants that are elsewhere, by their databases
}

func prepare(ctx context.Context, lanes int) (*machine, error) {
	dir, err := os.MkdirTemp("", "race-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	m := &machine{dir: dir, lanes: lanes, sites: make(map[string]site)}
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
	if m.conn, err = m.create(ctx, database); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// create makes a database with our schema, and returns a connection to it as its owner.
func (m *machine) create(ctx context.Context, name string) (*pgx.Conn, error) {
	return createOn(ctx, m.postgres, name)
}

// command runs SQL outside of any database of the race.
func (m *machine) command(ctx context.Context, sql string) error {
	return commandOn(ctx, m.postgres, sql)
}

func (m *machine) close() {
	if m.conn != nil {
		_ = m.conn.Close(context.Background())
	}
	if m.postgres != nil {
		_ = m.postgres.Stop()
	}
	_ = os.RemoveAll(m.dir) // in the system's folder for temporary files
}

// slowDisk makes every commit of PostgreSQL take 2 ms more, or no longer so. It is what commit_delay does when nobody
// else commits, and stands in for a disk whose fsync takes as long.
func (m *machine) slowDisk(ctx context.Context, slow bool) error {
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

// commits counts the transactions that wrote something so far: each of them took a number. (pg_stat_database counts
// commits, too, but a backend that is idle reports its own only after 10 s.)
func (m *machine) commits(ctx context.Context) (int64, error) {
	var n int64
	err := m.conn.QueryRow(ctx, "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint").Scan(&n)
	return n, err
}

// cpu is the CPU time, user and system, that a process and those of its children that have ended used so far. It is 0
// where there is no /proc (macOS): the tables then have no such column.
func cpu(pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	return cpuIn(string(stat))
}

// cpuIn reads /proc/*/stat.
func cpuIn(stat string) time.Duration {
	// Behind the name, which may have blanks and brackets of its own, come the state and 49 numbers.
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

// at is where a contestant's coupons are.
func (m *machine) at(c *contestant) site {
	if at, elsewhere := m.sites[c.database]; elsewhere {
		return at
	}
	return site{url: m.postgres.URL(c.database), database: []*localpg.Server{m.postgres}}
}

// serverCPU is cpu of all processes of PostgreSQL servers.
func serverCPU(servers []*localpg.Server) (total time.Duration) {
	for _, server := range servers {
		total += cpu(server.Pid())
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", server.Pid(), server.Pid()))
		if err != nil {
			continue
		}
		for child := range strings.FieldsSeq(string(children)) {
			pid, err := strconv.Atoi(child)
			if err == nil {
				total += cpu(pid)
			}
		}
	}
	return total
}

// usage is the CPU time that those who have to do with a contestant's claims used so far.
type usage struct{ generator, service, database, proxies, standbys time.Duration }

func (m *machine) usage(c *contestant) usage {
	at := m.at(c)
	u := usage{
		generator: cpu(os.Getpid()),
		service:   cpu(c.cmd.Process.Pid),
		database:  serverCPU(at.database),
		proxies:   serverCPU(at.proxies),
		standbys:  serverCPU(at.standbys),
	}
	if c.redis != nil {
		u.database = cpu(c.redis.Pid())
	}
	return u
}

// forgetPeak lets a process's peak of memory begin anew at what it has now, which it returns; and peak is the most that it
// had since then, both in MiB. They are 0 where there is no /proc.
func forgetPeak(pid int) float64 {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		return 0
	}
	return peak(pid)
}

func peak(pid int) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	return peakIn(string(status))
}

// peakIn reads /proc/*/status.
func peakIn(status string) float64 {
	for line := range strings.Lines(status) {
		if value, found := strings.CutPrefix(line, "VmHWM:"); found {
			kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")))
			if err == nil {
				return float64(kib) / 1024
			}
		}
	}
	return 0
}

// about describes the machine for the results.
func (m *machine) about(ctx context.Context) map[string]string {
	about := map[string]string{
		"cpus":       strconv.Itoa(runtime.NumCPU()),
		"os":         runtime.GOOS + "/" + runtime.GOARCH,
		"go":         runtime.Version(),
		"postgresql": m.postgres.Version(),
	}
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
				about["cpu"] = strings.TrimSpace(value)
				break
			}
		}
	}
	if version := contestants.RedisVersion(ctx); version != "" {
		about["redis"] = version
	}
	if out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12").Output(); err == nil {
		about["commit"] = strings.TrimSpace(string(out))
	}
	return about
}
