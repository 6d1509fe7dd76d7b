// Package db holds the SQL of the coupon system and installs it in a database.
//
//	migrations/  state: tables, constraints, types; numbered, never edited after a release
//	functions/   behaviour, roles and privileges: one file per function; reinstalled on every deploy
//	proxy/       functions with the same signatures for PL/Proxy
//	tests/       pgTAP tests, which serve as the specification of the functions
//
// Apply and the script for psql (Script) install the same: prepare.sql and roles.sql, the
// migrations, the functions. Everything is in the schema coupond.
package db

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"text/template"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/tern/v2/migrate"
)

//go:embed migrations/*.sql functions/*.sql roles.sql
var files embed.FS

//go:embed prepare.sql
var prepareSQL string

// versionTable is the table in which tern stores the number of the newest installed migration.
// coupon_schema_version() reads it.
const versionTable = "coupond.schema_version"

// versionComment is the beginning of the version table's comment, which ends with the version.
const versionComment = "One row: the number of the newest migration that is installed. " +
	"If the row is lost, coupond migrate restores it from this comment: version "

// oldestServer is the oldest supported PostgreSQL, as server_version_num.
const oldestServer = 150000

// Errors of Apply and ApplyProxy that the caller can fix. Each is wrapped in an error text that
// says what is wrong and what to do.
var (
	ErrServerTooOld     = errors.New("PostgreSQL is too old")
	ErrNotUTF8          = errors.New("the database is not encoded in UTF8")
	ErrMissingPrivilege = errors.New("the login lacks a privilege")
	ErrOldInstallation  = errors.New("the database has an installation from before the schema coupond")
	ErrForeignSchema    = errors.New("the schema coupond belongs to another program")
	ErrSchemaIsNewer    = errors.New("the schema is newer than this program")
	ErrVersionUnknown   = errors.New("the version of the schema is unknown")
	ErrNotAProxy        = errors.New("the database has coupons of its own")
	ErrIsAProxy         = errors.New("the database is a proxy")
)

// refusals are the errors that prepare.sql raises, by SQLSTATE.
var refusals = map[string]error{
	"UC001": ErrOldInstallation,
	"UC002": ErrNotAProxy,
	"UC003": ErrIsAProxy,
	"UC004": ErrForeignSchema,
	"UC005": ErrMissingPrivilege,
	"UC006": ErrSchemaIsNewer,
	"UC007": ErrVersionUnknown,
}

// Options of Apply and ApplyProxy.
type Options struct {
	// Log is called with a line that says which session holds a lock that Apply waits for, or what
	// Apply has repaired. It may be nil.
	Log func(line string)

	lockTimeout time.Duration // 0: defaultLockTimeout; set by tests only
}

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
// schema's owner, and the login must be allowed to act as that role. Errors that the caller can fix
// are those above.
//
// Apply resets the settings and the role of conn's session.
func Apply(ctx context.Context, conn *pgx.Conn, options Options) (Result, error) {
	return applyFiles(ctx, conn, files, options)
}

func applyFiles(ctx context.Context, conn *pgx.Conn, files fs.FS, options Options) (Result, error) {
	i := newInstaller(conn, options)
	defer i.close(ctx)
	result, err := i.apply(ctx, files)
	return result, explain(err)
}

func (i *installer) apply(ctx context.Context, files fs.FS) (Result, error) {
	code, err := loadFunctions(files, "functions")
	if err != nil {
		return Result{}, err
	}
	if err := i.begin(ctx, files, prepareData{Version: version(files), Program: "program"}); err != nil {
		return Result{}, err
	}

	migrator, err := i.migrator(ctx, files)
	if err != nil {
		return Result{}, err
	}
	result := Result{To: version(files)}
	if result.From, err = migrator.GetCurrentVersion(ctx); err != nil {
		return Result{}, fmt.Errorf("schema version: %w", err)
	}
	for _, migration := range migrator.Migrations[min(result.From, result.To):] {
		err := i.step(ctx, "migration "+migration.Name, func() error {
			return migrator.MigrateTo(ctx, migration.Sequence)
		})
		if err != nil {
			return result, fmt.Errorf("migrate: %w", err)
		}
	}
	return result, i.install(ctx, code, nil)
}

// begin does what comes before the first migration: it checks the server, takes the lock, and runs
// prepare.sql and roles.sql in one transaction. A proxy has roles of its own.
func (i *installer) begin(ctx context.Context, files fs.FS, data prepareData) error {
	pins, err := pinsScript(i.lockTimeout)
	if err != nil {
		return err
	}
	// The login's own time-outs must not end even the first query.
	if _, err := i.conn.Exec(ctx, pins); err != nil {
		return fmt.Errorf("set the session's parameters: %w", err)
	}
	if err := checkServer(ctx, i.conn); err != nil {
		return err
	}
	// Not the process ID of the protocol, which is a pooler's.
	if err := i.conn.QueryRow(ctx, "select pg_catalog.pg_backend_pid()").Scan(&i.pid); err != nil {
		return fmt.Errorf("read the process ID of the session: %w", err)
	}
	prepare, err := prepareScript(files, data)
	if err != nil {
		return err
	}
	if err := i.lock(ctx); err != nil {
		return err
	}
	err = i.step(ctx, "the preparation", func() error {
		_, err := i.conn.Exec(ctx, prepare)
		return err
	})
	if err != nil {
		return err
	}
	var repaired string
	err = i.conn.QueryRow(ctx, "select pg_catalog.current_setting('coupond.repaired')").Scan(&repaired)
	for line := range strings.Lines(repaired) {
		i.log(strings.TrimSpace(line))
	}
	return err
}

// prepareData is the data of the template prepare.sql.
type prepareData struct {
	Version int32
	Program string // what the version belongs to: a program or a script
	Proxy   bool   // the database is to be a proxy
}

// VersionComment is for the template.
func (prepareData) VersionComment() string { return versionComment }

func prepareScript(files fs.FS, data prepareData) (string, error) {
	prepare, err := execute(prepareSQL, data)
	if err != nil || data.Proxy {
		return prepare, err
	}
	roles, err := fs.ReadFile(files, "roles.sql")
	return prepare + "\n" + string(roles), err
}

func execute(text string, data any) (string, error) {
	parsed, err := template.New("").Parse(text)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	err = parsed.Execute(&b, data)
	return b.String(), err
}

// lock waits until no other program migrates the database. It covers a whole Apply, from reading
// the version to the last function. Tern locks each of its steps separately, and between two of
// them a newer program could install its migrations and functions, which this one would then
// replace.
func (i *installer) lock(ctx context.Context) error {
	err := i.step(ctx, "the start", func() error {
		_, err := i.conn.Exec(ctx, "select pg_catalog.pg_advisory_lock($1)", applyLock)
		return err
	})
	if err != nil {
		return fmt.Errorf("wait for other programs that migrate: %w", err)
	}
	i.locked = true
	return nil
}

// migrator returns tern's migrator with our migrations.
func (i *installer) migrator(ctx context.Context, files fs.FS) (migrator *migrate.Migrator, err error) {
	err = i.step(ctx, "the schema version", func() (err error) {
		migrator, err = migrate.NewMigrator(ctx, i.conn, versionTable)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("schema version: %w", err)
	}
	return migrator, loadMigrations(migrator, files)
}

// loadMigrations loads the migrations and adds what all of them need.
func loadMigrations(migrator *migrate.Migrator, files fs.FS) error {
	migrations, err := fs.Sub(files, "migrations")
	if err != nil {
		return err
	}
	if err := migrator.LoadMigrations(migrations); err != nil {
		return fmt.Errorf("load migrations: %w", err)
	}
	for _, m := range migrator.Migrations {
		// Tern updates the version after it has reset lock_timeout, so the update must not have to wait:
		// its locks are taken first. The comment is the version for prepare.sql.
		m.UpSQL = fmt.Sprintf("update %[1]s set version = version;\n%[2]s%[3]s\n;\ncomment on table %[1]s is '%[4]s%[5]d';",
			versionTable, dropInvalidIndexes(m.UpSQL), m.UpSQL, versionComment, m.Sequence)
	}
	return nil
}

var indexIfNotExists = regexp.MustCompile(
	`(?i)\bcreate\s+(?:unique\s+)?index\s+(?:concurrently\s+)?if\s+not\s+exists\s+(?:"([^"]+)"|(\w+))`)

// dropInvalidIndexes returns the SQL that drops each index that sql would create if it does not
// exist, if it is INVALID: CREATE INDEX IF NOT EXISTS would take what a failed CREATE INDEX
// CONCURRENTLY has left for the index. An index that is being built is INVALID, too, but the build
// has the lock. The lock is not waited for, because the build waits for this session's snapshot.
func dropInvalidIndexes(sql string) string {
	var b strings.Builder
	for _, match := range indexIfNotExists.FindAllStringSubmatch(sql, -1) {
		name := pgx.Identifier{"coupond", match[1] + strings.ToLower(match[2])}.Sanitize()
		fmt.Fprintf(&b, `do $drop$
declare
  v_index constant pg_catalog.text := %[1]s;
  v_table pg_catalog.regclass;
begin
  select i.indrelid into v_table
  from pg_catalog.pg_index as i
  where i.indexrelid = pg_catalog.to_regclass(v_index)
    and not i.indisvalid;
  if not found then
    return;
  end if;

  begin
    execute pg_catalog.format('lock table %%s in share update exclusive mode nowait', v_table);
  exception
    when lock_not_available then
      raise exception 'process %% builds the index %% or vacuums its table', (
          select pg_catalog.string_agg(l.pid::pg_catalog.text, ', ')
          from pg_catalog.pg_locks as l
          where l.relation = v_table
            and l.mode = 'ShareUpdateExclusiveLock'
            and l.granted
        ), v_index
        using errcode = 'lock_not_available', hint = 'Run this again when it is done.';
  end;

  if exists (
    select
    from pg_catalog.pg_index as i
    where i.indexrelid = pg_catalog.to_regclass(v_index)
      and not i.indisvalid
  ) then
    drop index %[2]s;
  end if;
end;
$drop$;
`, "'"+strings.ReplaceAll(name, "'", "''")+"'", name)
	}
	return b.String()
}

// install installs functions in one transaction. data is the data of their templates.
func (i *installer) install(ctx context.Context, code *migrate.CodePackage, data map[string]any) error {
	err := i.step(ctx, "the functions", func() error {
		return migrate.InstallCodePackage(ctx, i.conn, data, code)
	})
	if err != nil {
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
		  pg_catalog.current_setting('server_version_num')::pg_catalog.int4,
		  pg_catalog.current_setting('server_version'),
		  pg_catalog.current_setting('server_encoding')`).Scan(&number, &version, &encoding)
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
	switch refusal := refusals[pgErr.Code]; {
	case refusal != nil:
		return &explained{reason, errors.Join(refusal, err)}
	case pgErr.Code == pgerrcode.InsufficientPrivilege:
		return &explained{
			fmt.Sprintf("%v: %s (SQLSTATE %s). To migrate, it must be a superuser, own the database or be a member of the role that owns it", ErrMissingPrivilege, reason, pgErr.Code),
			errors.Join(ErrMissingPrivilege, err),
		}
	case reason != pgErr.Message:
		return &explained{err.Error() + strings.TrimPrefix(reason, pgErr.Message), err}
	}
	return err
}

// explained is an error with another text.
type explained struct {
	text string
	err  error
}

func (e *explained) Error() string { return e.text }

func (e *explained) Unwrap() error { return e.err }
