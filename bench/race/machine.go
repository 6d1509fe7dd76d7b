package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"

	"github.com/dustin/go-humanize/english"
	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/localpg"
)

// machine is what the race runs on: a private PostgreSQL with fsync on, which is removed after the
// race.
type machine struct {
	dir       string
	postgres  *localpg.Server
	conn      *pgx.Conn      // to the database postgres
	processes sync.WaitGroup // those that the race has started
}

// newMachine starts PostgreSQL in a new temporary folder.
func newMachine(ctx context.Context) (*machine, error) {
	m := &machine{}
	var err error
	if m.dir, err = os.MkdirTemp("", "race-"); err == nil {
		err = os.Chmod(m.dir, 0o755) // PostgreSQL may run as another user
	}
	if err == nil {
		m.postgres, err = localpg.Start(ctx, localpg.Options{
			Dir: filepath.Join(m.dir, "postgres"),
			Log: os.Stderr,
			Settings: map[string]string{
				"shared_buffers": "512MB", "max_wal_size": "8GB", "max_connections": "200", "track_io_timing": "off",
			},
		})
	}
	if err == nil {
		m.conn, err = pgx.Connect(ctx, m.postgres.URL("postgres"))
	}
	if err != nil {
		m.close()
	}
	return m, err
}

func (m *machine) close() {
	if m.postgres != nil {
		_ = m.postgres.Stop()
	}
	_ = os.RemoveAll(m.dir) // it is in the system's temporary folder
}

// createDatabase creates the database of an entry with its schema, and prepares it.
func (m *machine) createDatabase(ctx context.Context, e *entry) error {
	if _, err := m.conn.Exec(ctx, "create database "+e.database+" encoding 'UTF8' template template0"); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, m.postgres.URL(e.database))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if e.Binary == "" {
		_, err = db.Apply(ctx, conn, db.Options{})
	} else {
		migrate := exec.CommandContext(ctx, e.Binary, "migrate")
		migrate.Env = append(os.Environ(), "DATABASE_URL="+m.postgres.URL(e.database))
		migrate.Stderr = os.Stderr
		err = migrate.Run()
	}
	if err == nil && e.variant.setUp != nil {
		err = e.variant.setUp(ctx, conn)
	}
	return err
}

// hold executes SQL in a transaction of a session of its own, as a forgotten psql does. Both end
// when the session is closed.
func (m *machine) hold(ctx context.Context, database, sql string) (*pgx.Conn, error) {
	psql, err := pgx.Connect(ctx, m.postgres.URL(database))
	if err == nil {
		_, err = psql.Exec(ctx, "begin; "+sql)
	}
	return psql, err
}

// describe returns what the results say about the race and the machine.
func (m *machine) describe(ctx context.Context, o options) []string {
	about := []string{fmt.Sprintf("%s of %v", english.Plural(o.Rounds, "round", ""), o.Duration), english.Plural(runtime.NumCPU(), "CPU", "")}
	info, _ := os.ReadFile("/proc/cpuinfo") // only Linux has it
	if model := regexp.MustCompile(`model name\s*: (.+)`).FindSubmatch(info); model != nil {
		about = append(about, string(model[1]))
	}
	about = append(about, runtime.GOOS+"/"+runtime.GOARCH, runtime.Version(), "PostgreSQL "+m.postgres.Version())
	if out, err := exec.CommandContext(ctx, "redis-server", "--version").Output(); err == nil {
		version, _, _ := strings.Cut(string(out), " sha")
		about = append(about, version)
	}
	if out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12").Output(); err == nil {
		about = append(about, "commit "+strings.TrimSpace(string(out)))
	}
	return about
}
