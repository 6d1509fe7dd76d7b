// Package db holds the SQL of the coupon system and installs it in a database.
//
//	migrations/  state: tables, constraints, types; numbered, never edited after a release
//	functions/   behaviour and privileges: one file per function; reinstalled on every deploy
//	proxy/       functions with the same signatures for PL/Proxy
//	tests/       pgTAP tests, which serve as the specification of the functions
//
// Apply and the script for psql (Script) execute the same SQL: pins.sql, start.sql, prepare.sql,
// each missing migration (migration.sql), the functions, end.sql. Everything is in the schema
// coupond. All files are templates. Tern loads and runs the migrations.
package db

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"text/template"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/tern/v2/migrate"
)

//go:embed *.sql *.psql migrations/*.sql functions/*.sql proxy/*.sql
var files embed.FS

// versionTable is the table in which tern stores the number of the newest installed migration.
// coupon_schema_version() reads it.
const versionTable = "coupond.schema_version"

// Options of Apply and ApplyProxy.
type Options struct {
	// Log is called with a line that says which session holds a lock that Apply waits for, or what
	// Apply has repaired. It may be nil.
	Log func(line string)
}

// Result is the schema version before and after Apply.
type Result struct {
	From int32 // 0 for an empty database
	To   int32
}

// Version returns the schema version that Apply installs: the number of migrations.
func Version() int32 {
	names, err := fs.Glob(files, "migrations/*.sql")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	return int32(len(names))
}

// Apply brings the schema coupond of conn's database up to date: it runs the missing migrations,
// each in its own transaction, and then installs all functions in one transaction. Applying it
// again changes nothing. Concurrent calls wait for each other with a session-level advisory lock,
// so conn must not go through a transaction pooler. Other schemas are not changed.
//
// Sessions that call the functions meanwhile are not affected: functions are replaced, never
// dropped. A statement that needs a lock waits for it for half a second, because claims queue
// behind it. Then its transaction is rolled back and repeated when the lock is free, until ctx
// ends.
//
// The login must be a superuser, or own the database and be a member of coupon_service
// (deploy/roles.sql) or have CREATEROLE. Once the schema exists, all its objects belong to the
// schema's owner, and the login must be allowed to act as that role. A database that Apply must not
// change is refused with a SQLSTATE of class UC, and an error text that says what to do.
//
// Apply resets the settings and the role of conn's session, and releases its advisory locks.
func Apply(ctx context.Context, conn *pgx.Conn, options Options) (Result, error) {
	return applyFiles(ctx, conn, files, false, options)
}

// ApplyProxy makes conn's database a proxy, or brings one up to date: it installs PL/Proxy
// functions with the same signatures, which call the shard that owns the coupon. A proxy stores no
// coupons. The operator defines the shards with the foreign server "coupond" (deploy/shards).
// Applying it again changes nothing.
//
// The login must be a superuser, because PL/Proxy is not a trusted language. A database with
// coupons is refused.
func ApplyProxy(ctx context.Context, conn *pgx.Conn, options Options) error {
	_, err := applyFiles(ctx, conn, files, true, options)
	return err
}

// Script returns one script for psql that does what Apply does, without other files or Go. Like
// Apply, it does only what is missing, can be run again, and refuses a newer schema. Unlike Apply,
// it does not wait for a lock again. It uses psql's \if, so only psql can run it.
func Script() (string, error) { return scriptOf(files) }

func scriptOf(files fs.FS) (string, error) {
	p, err := load(context.Background(), files, "script", false)
	if err != nil {
		return "", err
	}
	return p.sql("script.psql", p)
}

func applyFiles(ctx context.Context, conn *pgx.Conn, files fs.FS, proxy bool, options Options) (Result, error) {
	p, err := load(ctx, files, "program", proxy)
	if err != nil {
		return Result{}, err
	}
	i := &installer{conn: conn, log: options.Log}
	if i.log == nil {
		i.log = func(string) {}
	}
	result, err := i.apply(ctx, p)
	return result, explain(err)
}

// program is what is installed. It is the data of the templates.
type program struct {
	Program    string // what the version belongs to: a program or a script
	Version    int32
	Proxy      bool
	Migrations []*migrate.Migration // none for a proxy

	templates *template.Template
}

func load(ctx context.Context, files fs.FS, name string, proxy bool) (*program, error) {
	folder := "functions"
	if proxy {
		folder = "proxy"
	}
	migrations, err := fs.Sub(files, "migrations")
	if err != nil {
		return nil, err
	}
	// Without a connection, it can only load files.
	migrator, err := migrate.NewMigrator(ctx, nil, versionTable)
	if err != nil {
		return nil, err
	}
	if err := migrator.LoadMigrations(migrations); err != nil {
		return nil, fmt.Errorf("load migrations: %w", err)
	}
	p := &program{Program: name, Version: int32(len(migrator.Migrations)), Proxy: proxy}
	if p.templates, err = template.ParseFS(files, "*.sql", "*.psql", folder+"/*.sql"); err != nil || proxy {
		return p, err
	}
	p.Migrations = migrator.Migrations
	for _, m := range p.Migrations {
		if m.UpSQL, err = p.sql("migration.sql", m); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// sql executes a template.
func (p *program) sql(name string, data any) (string, error) {
	var b strings.Builder
	err := p.templates.ExecuteTemplate(&b, name, data)
	return b.String(), err
}

func (i *installer) apply(ctx context.Context, p *program) (Result, error) {
	var sql [5]string
	for n, name := range []string{"pins.sql", "start.sql", "prepare.sql", "install.sql", "end.sql"} {
		var err error
		if sql[n], err = p.sql(name, p); err != nil {
			return Result{}, err
		}
	}
	i.pins = sql[0]
	start, prepare, functions, end := sql[1], sql[2], sql[3], sql[4]

	// It fails only if the connection is lost, which ends the session.
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_, _ = i.conn.Exec(ctx, end)
	}()
	// The login's own time-outs must not end even the first query.
	if _, err := i.conn.Exec(ctx, i.pins); err != nil {
		return Result{}, fmt.Errorf("set the session's parameters: %w", err)
	}
	// Not the process ID of the protocol, which is a pooler's.
	if err := i.conn.QueryRow(ctx, "select pg_backend_pid()").Scan(&i.pid); err != nil {
		return Result{}, fmt.Errorf("read the process ID of the session: %w", err)
	}
	if err := i.execute(ctx, "the start", start); err != nil {
		return Result{}, err
	}
	if err := i.execute(ctx, "the preparation", prepare); err != nil {
		return Result{}, err
	}
	result := Result{To: p.Version}
	var repaired string
	err := i.conn.QueryRow(ctx, `
		select current_setting('coupond.version')::integer, current_setting('coupond.repaired')`).Scan(&result.From, &repaired)
	if err != nil {
		return Result{}, fmt.Errorf("read the schema version: %w", err)
	}
	for line := range strings.Lines(repaired) {
		i.log(strings.TrimSpace(line))
	}
	if err := i.migrate(ctx, p.Migrations, result.From); err != nil {
		return result, fmt.Errorf("migrate: %w", err)
	}
	if err := i.execute(ctx, "the functions", functions); err != nil {
		return result, fmt.Errorf("install functions: %w", err)
	}
	return result, nil
}

// migrate runs the migrations after from, each in a transaction of its own.
func (i *installer) migrate(ctx context.Context, migrations []*migrate.Migration, from int32) error {
	if int(from) >= len(migrations) {
		return nil
	}
	var migrator *migrate.Migrator
	err := i.step(ctx, "the schema version", func() (err error) {
		migrator, err = migrate.NewMigrator(ctx, i.conn, versionTable)
		return err
	})
	if err != nil {
		return err
	}
	migrator.Migrations = migrations
	for _, m := range migrations[from:] {
		if err := i.step(ctx, "migration "+m.Name, func() error { return migrator.MigrateTo(ctx, m.Sequence) }); err != nil {
			return err
		}
	}
	return nil
}

// explain adds to an error of the server what the caller needs to fix it: the server's detail and
// hint, and which privileges Apply needs. It returns every other error unchanged.
func explain(err error) error {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return err
	}
	reason := pgErr.Message
	for _, more := range []string{pgErr.Detail, pgErr.Hint} {
		if more != "" {
			reason = strings.TrimSuffix(reason, ".") + ". " + strings.ReplaceAll(more, "\n", " ")
		}
	}
	switch {
	case strings.HasPrefix(pgErr.Code, "UC"): // our own refusals
		return &explained{reason, err}
	case pgErr.Code == pgerrcode.InsufficientPrivilege:
		return &explained{
			fmt.Sprintf("the login lacks a privilege: %s (SQLSTATE %s). To migrate, it must be a superuser, own the database or be a member of the role that owns it", reason, pgErr.Code),
			err,
		}
	}
	return &explained{err.Error() + strings.TrimPrefix(reason, pgErr.Message), err}
}

// explained is an error with another text.
type explained struct {
	text string
	err  error
}

func (e *explained) Error() string { return e.text }

func (e *explained) Unwrap() error { return e.err }
