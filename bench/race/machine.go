package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize/english"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/procfs"

	"scalable-coupon-system/bench/race/contestants"
	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/localpg"
)

const maxConns = 16 // the default of DB_MAX_CONNS, for every contestant

// machine is what the race runs on: a private PostgreSQL with fsync on, which is removed after the
// race.
type machine struct {
	dir       string
	postgres  *localpg.Server
	conn      *pgx.Conn      // to the database postgres
	processes sync.WaitGroup // those that the race has started
}

// newMachine starts PostgreSQL in a new temporary folder.
func newMachine(ctx context.Context) (_ *machine, err error) {
	m := &machine{}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	if m.dir, err = os.MkdirTemp("", "race-"); err != nil {
		return nil, err
	}
	if err = os.Chmod(m.dir, 0o755); err != nil { // PostgreSQL may run as another user
		return nil, err
	}
	m.postgres, err = localpg.Start(ctx, localpg.Options{
		Dir: filepath.Join(m.dir, "postgres"),
		Log: os.Stderr,
		Settings: map[string]string{
			"shared_buffers": "512MB", "max_wal_size": "8GB", "max_connections": "200", "track_io_timing": "off",
		},
	})
	if err != nil {
		return nil, err
	}
	m.conn, err = pgx.Connect(ctx, m.postgres.URL("postgres"))
	return m, err
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

// createDatabase creates a database with the schema of a contestant and calls setUp, which may be
// nil.
func (m *machine) createDatabase(ctx context.Context, name string, c contestants.Contestant, setUp func(context.Context, *pgx.Conn) error) error {
	if _, err := m.conn.Exec(ctx, "create database "+name+" encoding 'UTF8' template template0"); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, m.postgres.URL(name))
	if err != nil {
		return err
	}
	if c.Binary == "" {
		_, err = db.Apply(ctx, conn, db.Options{})
	} else {
		migrate := exec.CommandContext(ctx, c.Binary, "migrate")
		migrate.Env = append(os.Environ(), "DATABASE_URL="+m.postgres.URL(name))
		var out []byte
		if out, err = migrate.CombinedOutput(); err != nil {
			err = fmt.Errorf("%s migrate: %w\n%s", c.Binary, err, out)
		}
	}
	if err == nil && setUp != nil {
		err = setUp(ctx, conn)
	}
	if err == nil {
		_, err = conn.Exec(ctx, "checkpoint") // so that none runs during the first round
	}
	return errors.Join(err, conn.Close(ctx))
}

// hold executes SQL in a transaction of a session of its own, as a forgotten psql does. The
// transaction stays open until end is called.
func (m *machine) hold(ctx context.Context, database, sql string, args ...any) (end func() error, err error) {
	psql, err := pgx.Connect(ctx, m.postgres.URL(database))
	if err != nil {
		return nil, err
	}
	end = func() error { return psql.Close(context.WithoutCancel(ctx)) }
	if _, err = psql.Exec(ctx, "begin"); err == nil {
		_, err = psql.Exec(ctx, sql, args...)
	}
	if err != nil {
		return nil, errors.Join(err, end())
	}
	return end, nil
}

// countCommits counts the transactions that have written something: each has a transaction ID.
// pg_stat_database would be late, because an idle backend does not report its commits at once.
func (m *machine) countCommits(ctx context.Context) (n int64, err error) {
	err = m.conn.QueryRow(ctx, "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint").Scan(&n)
	return n, err
}

// cpuTime returns the CPU time of a process. If it is a PostgreSQL server, that includes its
// backends. Without /proc (macOS) it is 0, and the tables have no such column.
func cpuTime(pid int, withBackends bool) time.Duration {
	processes, err := procfs.AllProcs()
	if err != nil {
		return 0
	}
	ticks := 0
	for _, p := range processes {
		stat, err := p.Stat()
		if err != nil {
			continue // it has ended
		}
		if p.PID == pid || withBackends && stat.PPID == pid {
			ticks += int(stat.UTime + stat.STime)
		}
		if p.PID == pid && withBackends {
			ticks += stat.CUTime + stat.CSTime // of backends that have ended
		}
	}
	return time.Duration(ticks) * (time.Second / 100) // USER_HZ is 100 on every Linux
}

var cpuModel = regexp.MustCompile(`model name\s*: (.+)`)

// describe returns what the results say about the race and the machine.
func (m *machine) describe(ctx context.Context, o options) []string {
	about := []string{fmt.Sprintf("%s of %v", english.Plural(o.Rounds, "round", ""), o.Duration), english.Plural(runtime.NumCPU(), "CPU", "")}
	info, _ := os.ReadFile("/proc/cpuinfo") // only Linux has it
	if model := cpuModel.FindSubmatch(info); model != nil {
		about = append(about, string(model[1]))
	}
	about = append(about, runtime.GOOS+"/"+runtime.GOARCH, runtime.Version(), "PostgreSQL "+m.postgres.Version())
	if redis := redisCommand(ctx); redis != nil {
		out, err := exec.CommandContext(ctx, redis[0], append(redis[1:], "--version")...).Output()
		if version, _, _ := strings.Cut(string(out), " sha"); err == nil {
			about = append(about, version)
		}
	}
	if out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12").Output(); err == nil {
		about = append(about, "commit "+strings.TrimSpace(string(out)))
	}
	return about
}
