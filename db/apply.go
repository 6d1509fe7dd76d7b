// Package db holds the SQL of the coupon system and installs it in a database.
//
//	migrations/  state: tables, constraints, types, roles; numbered, never edited after a release
//	functions/   behaviour: one file per function and one for the view; reinstalled on every deploy
//	proxy/       functions with the same signatures for PL/Proxy
//	tests/       pgTAP tests, which serve as the specification of the functions
package db

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/tern/v2/migrate"
)

//go:embed migrations/*.sql functions/*.sql
var files embed.FS

// versionTable is the table in which tern stores the number of the newest installed migration.
// coupon_schema_version() reads it.
const versionTable = "public.schema_version"

// oldestServer is the oldest supported PostgreSQL, as server_version_num. Since 15, PUBLIC cannot
// create objects in the schema public, which the security of the functions depends on.
const oldestServer = 150000

// Errors of Apply that its caller can fix. Each is wrapped in an error text that says what is
// missing and what to do.
var (
	ErrServerTooOld     = errors.New("PostgreSQL is too old")
	ErrNotUTF8          = errors.New("the database is not encoded in UTF8")
	ErrMissingPrivilege = errors.New("the login lacks a privilege")
	ErrSchemaIsNewer    = errors.New("the schema is newer than this program")
)

// Result is the schema version before and after Apply.
type Result struct {
	From int32 // 0 for an empty database
	To   int32
}

// Version returns the schema version that Apply installs: the number of migrations.
func Version() int32 { return version(files) }

func version(files fs.FS) int32 {
	names, err := fs.Glob(files, "migrations/*.sql")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	return int32(len(names))
}

// applyLock is the key of the advisory lock that Apply holds: an arbitrary number that no other
// program uses.
const applyLock = 2_611_230_107_433_187

// Apply brings the schema of conn's database up to date: it runs the missing migrations, each in
// its own transaction, and then installs all functions in one transaction. Applying it again
// changes nothing. Concurrent calls wait for each other with a session-level advisory lock, so conn
// must not go through a transaction pooler.
//
// Sessions that call the functions meanwhile are not affected: functions are replaced, never
// dropped.
//
// The login must be a superuser, or own the database and either have CREATEROLE or be a member of
// coupon_service already. If the caller can fix the cause, Apply returns ErrServerTooOld,
// ErrNotUTF8, ErrMissingPrivilege, ErrSchemaIsNewer or ErrIsAProxy.
func Apply(ctx context.Context, conn *pgx.Conn) (Result, error) {
	return applyFiles(ctx, conn, files)
}

func applyFiles(ctx context.Context, conn *pgx.Conn, files fs.FS) (Result, error) {
	result, err := apply(ctx, conn, files)
	if err != nil {
		return result, explainPrivilege(err)
	}
	return result, nil
}

func apply(ctx context.Context, conn *pgx.Conn, files fs.FS) (Result, error) {
	if err := checkServer(ctx, conn); err != nil {
		return Result{}, err
	}
	unlock, err := lock(ctx, conn)
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	if err := refuseProxy(ctx, conn); err != nil {
		return Result{}, err
	}

	migrations, err := fs.Sub(files, "migrations")
	if err != nil {
		return Result{}, err
	}
	migrator, err := migrate.NewMigrator(ctx, conn, versionTable)
	if err != nil {
		return Result{}, fmt.Errorf("schema version: %w", err)
	}
	if err := migrator.LoadMigrations(migrations); err != nil {
		return Result{}, fmt.Errorf("load migrations: %w", err)
	}

	result := Result{To: version(files)}
	if result.From, err = migrator.GetCurrentVersion(ctx); err != nil {
		return Result{}, fmt.Errorf("schema version: %w", err)
	}
	if err := refuseNewer(result.From, result.To); err != nil {
		return result, err
	}
	if err := migrator.Migrate(ctx); err != nil {
		return result, fmt.Errorf("migrate: %w", err)
	}

	return result, install(ctx, conn, files, "functions", nil)
}

// lock waits until no other program migrates the database. It covers a whole Apply, from reading
// the version to the last function. Tern locks each of its steps separately, and between two of
// them a newer program could install its migrations and functions, which this one would then
// replace.
func lock(ctx context.Context, conn *pgx.Conn) (unlock func(), err error) {
	if _, err := conn.Exec(ctx, "select pg_catalog.pg_advisory_lock($1)", applyLock); err != nil {
		return nil, fmt.Errorf("wait for other programs that migrate: %w", err)
	}
	return func() {
		// It fails only if the connection is lost, which releases the lock too.
		_, _ = conn.Exec(context.WithoutCancel(ctx), "select pg_catalog.pg_advisory_unlock($1)", applyLock)
	}, nil
}

// refuseNewer returns an error if a newer program has migrated the database.
func refuseNewer(database, program int32) error {
	if database <= program {
		return nil
	}
	return fmt.Errorf("%w: the database has version %d, this program installs version %d; run the newer program's migrate",
		ErrSchemaIsNewer, database, program)
}

// install installs the functions of a folder in one transaction. data is the data of their
// templates.
func install(ctx context.Context, conn *pgx.Conn, files fs.FS, folder string, data map[string]any) error {
	code, err := loadFunctions(files, folder)
	if err != nil {
		return err
	}
	if err := migrate.InstallCodePackage(ctx, conn, data, code); err != nil {
		return fmt.Errorf("install functions: %w", err)
	}
	return nil
}

func loadFunctions(files fs.FS, folder string) (*migrate.CodePackage, error) {
	functions, err := fs.Sub(files, folder)
	if err != nil {
		return nil, err
	}
	code, err := migrate.LoadCodePackage(functions)
	if err != nil {
		return nil, fmt.Errorf("load functions: %w", err)
	}
	return code, nil
}

func checkServer(ctx context.Context, conn *pgx.Conn) error {
	var number int
	var version, encoding string
	err := conn.QueryRow(ctx, `
		select
		  current_setting('server_version_num')::int,
		  current_setting('server_version'),
		  current_setting('server_encoding')`).Scan(&number, &version, &encoding)
	if err != nil {
		return fmt.Errorf("read the server's version and encoding: %w", err)
	}
	return validateServer(number, version, encoding)
}

func validateServer(number int, version, encoding string) error {
	if number < oldestServer {
		return fmt.Errorf("%w: version %s; use 15 or newer", ErrServerTooOld, version)
	}
	if encoding != "UTF8" {
		return fmt.Errorf("%w but in %s; names may contain any text, so create the database with encoding 'UTF8'", ErrNotUTF8, encoding)
	}
	return nil
}

// explainPrivilege turns the server's "permission denied" into an error that says what to grant. It
// returns every other error unchanged.
func explainPrivilege(err error) error {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || pgErr.Code != pgerrcode.InsufficientPrivilege {
		return err
	}
	return fmt.Errorf("%w: it must be a superuser, or own the database and either have CREATEROLE or be granted the role"+
		" coupon_service by an administrator (create role coupon_service nologin; create role coupon_monitor nologin;"+
		" grant coupon_service to <login>): %w",
		ErrMissingPrivilege, err)
}
