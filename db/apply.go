// Package db holds what a claim is: the SQL of the coupon system, and the means to bring it into a database.
//
//	migrations/  state: tables, constraints, types, the service's role. Numbered, never edited once landed.
//	functions/   behaviour: one file per function (and one for a view), as it is now, installed anew on every deploy.
//	tests/       pgTAP: what the functions promise, readable as a specification.
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

// versionTable is where tern keeps the number of the newest migration installed. coupon_schema_version() reads it.
const versionTable = "public.schema_version"

// oldestServer is the oldest PostgreSQL we run on, as server_version_num: from 15 on, not everybody may create objects in
// schema public, which our functions' safety rests on.
const oldestServer = 150000

// Errors that Apply can tell apart from a fault. Each is wrapped in one sentence that says what is missing and what to do.
var (
	ErrServerTooOld     = errors.New("PostgreSQL is too old")
	ErrNotUTF8          = errors.New("the database is not encoded in UTF8")
	ErrMissingPrivilege = errors.New("the login lacks a privilege")
	ErrSchemaIsNewer    = errors.New("the schema is newer than this program")
)

// Result tells what Apply found and what it left.
type Result struct {
	From int32 // schema version before, 0 for an empty database
	To   int32 // schema version after
}

// Version returns the schema version that this program brings: the number of its migrations.
func Version() int32 { return version(files) }

func version(files fs.FS) int32 {
	names, err := fs.Glob(files, "migrations/*.sql")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	return int32(len(names))
}

// applyLock is the key of the advisory lock that an Apply holds. Any number nobody else uses would do.
const applyLock = 2_611_230_107_433_187

// Apply brings the schema of conn's database up to date: it runs the migrations that are missing, each in a transaction of
// its own, and then installs all functions in one more. Running it again changes nothing, and several at once wait for each
// other (by an advisory lock, which must be the session's own: not through a transaction-pooling proxy).
//
// Sessions that are calling the functions meanwhile notice nothing: functions are replaced, never dropped.
//
// The login must be a superuser, or own the database and have CREATEROLE (or be a member of coupon_service already).
func Apply(ctx context.Context, conn *pgx.Conn) (Result, error) {
	return applyFiles(ctx, conn, files)
}

func applyFiles(ctx context.Context, conn *pgx.Conn, files fs.FS) (Result, error) {
	result, err := apply(ctx, conn, files)
	if err != nil {
		return result, explain(err)
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

// lock waits for other programs that migrate the database. One Apply at a time, from the first look at the version to the last
// function: tern locks each of its steps by itself, and between two of them a newer program could bring its migrations and
// functions, which ours would then replace.
func lock(ctx context.Context, conn *pgx.Conn) (unlock func(), err error) {
	if _, err := conn.Exec(ctx, "select pg_catalog.pg_advisory_lock($1)", applyLock); err != nil {
		return nil, fmt.Errorf("wait for other programs that migrate: %w", err)
	}
	return func() {
		// It can fail only with the connection, and then the lock is gone, too.
		_, _ = conn.Exec(context.WithoutCancel(ctx), "select pg_catalog.pg_advisory_unlock($1)", applyLock)
	}, nil
}

// refuseNewer keeps an older program's hands off what a newer one has brought.
func refuseNewer(database, program int32) error {
	if database <= program {
		return nil
	}
	return fmt.Errorf("%w: the database has version %d, this program brings %d; run the newer program's migrate",
		ErrSchemaIsNewer, database, program)
}

// install installs the functions of a folder, all in one transaction; data is for their templates.
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
		return fmt.Errorf("look at the server: %w", err)
	}
	return judgeServer(number, version, encoding)
}

func judgeServer(number int, version, encoding string) error {
	if number < oldestServer {
		return fmt.Errorf("%w: it is %s, and 15 is the oldest that works", ErrServerTooOld, version)
	}
	if encoding != "UTF8" {
		return fmt.Errorf("%w but in %s: names may be any text; create the database with encoding 'UTF8'", ErrNotUTF8, encoding)
	}
	return nil
}

// explain turns the server's "permission denied" into the sentence that says what to grant; every other error stays.
func explain(err error) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != pgerrcode.InsufficientPrivilege {
		return err
	}
	return fmt.Errorf("%w: it must be a superuser, or own the database and either have CREATEROLE or be granted the role"+
		" coupon_service by somebody who may (create role coupon_service nologin; create role coupon_monitor nologin;"+
		" grant coupon_service to <login>): %w",
		ErrMissingPrivilege, err)
}
