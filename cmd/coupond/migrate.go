package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"scalable-coupon-system/db"
	"scalable-coupon-system/pgstore"
)

// connectTimeout limits how long migrate tries to connect to PostgreSQL.
const connectTimeout = 10 * time.Second

// migrateConfig is the configuration of `coupond migrate`.
type migrateConfig struct {
	Database databaseConfig
}

func newMigrateCommand(vars environment, stdout, stderr io.Writer) *cobra.Command {
	var proxy bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Migrate the schema in DATABASE_URL to this version",
		Long: `Migrate the schema coupond in the database of DATABASE_URL to the version of
this binary, and install its functions. A second run changes nothing. Several
migrations may run at the same time, and the service may run meanwhile. If a
statement does not get a lock within two seconds, migrate prints which session
holds it, lets the service's calls pass, and tries again.

The login must be a superuser, or own the database and be a member of the role
coupon_service, which an administrator creates once (deploy/roles.sql). All
objects belong to the owner of the schema coupond; the login of a later
migration must be allowed to act as that role.

With --proxy, DATABASE_URL names an empty database that becomes a proxy in front
of several servers (see deploy/shards). The login must be a superuser.`,
		Args:        noArguments,
		Annotations: map[string]string{environmentNote: describe(&migrateConfig{})},
		RunE: func(cmd *cobra.Command, _ []string) error {
			surviveBrokenPipes()
			var config migrateConfig
			if err := load(vars, &config); err != nil {
				return err
			}
			database, err := config.Database.connString()
			if err != nil {
				return err
			}
			if proxy {
				return migrateProxy(cmd.Context(), database, config.Database.address(), stdout, stderr)
			}
			return migrate(cmd.Context(), database, config.Database.address(), stdout, stderr)
		},
	}
	cmd.Flags().BoolVar(&proxy, "proxy", false, "install the PL/Proxy functions of a proxy instead of the schema")
	return cmd
}

// migrateProxy installs the functions of a proxy in the database of connString. It writes the
// result to stdout, and what it waits for to stderr. address names the database in messages.
func migrateProxy(ctx context.Context, connString, address string, stdout, stderr io.Writer) (err error) {
	conn, err := connect(ctx, connString)
	if err != nil {
		return fmt.Errorf("cannot connect to %s: %w", address, err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()

	if err := db.ApplyProxy(ctx, conn, logTo(stderr, address)); err != nil {
		return fmt.Errorf("cannot set up %s as a proxy: %w", address, err)
	}
	_, err = fmt.Fprintf(stdout, "%s: proxy of schema version %d; functions installed\n", address, db.Version())
	return err
}

// migrate migrates the database of connString. It writes the result to stdout, and what it waits
// for or repairs to stderr. address names the database in messages.
func migrate(ctx context.Context, connString, address string, stdout, stderr io.Writer) (err error) {
	conn, err := connect(ctx, connString)
	if err != nil {
		return fmt.Errorf("cannot connect to %s: %w", address, err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()

	result, err := db.Apply(ctx, conn, logTo(stderr, address))
	if err != nil {
		return fmt.Errorf("cannot migrate %s: %w", address, err)
	}
	if result.From == result.To {
		_, err = fmt.Fprintf(stdout, "%s: schema version %d already; functions installed\n", address, result.To)
	} else {
		_, err = fmt.Fprintf(stdout, "%s: schema version %d → %d; functions installed\n", address, result.From, result.To)
	}
	return err
}

// logTo returns options that write Apply's log to w.
func logTo(w io.Writer, address string) db.Options {
	return db.Options{Log: func(line string) {
		_, _ = fmt.Fprintf(w, "%s: %s\n", address, line) // the migration is useful even if nothing reads stderr
	}}
}

// connect connects within connectTimeout. Its error is one line without a password.
func connect(ctx context.Context, connString string) (*pgx.Conn, error) {
	// The pool's parser, because DATABASE_URL may hold settings for the service's pool.
	config, err := pgstore.ParseURL(connString)
	if err != nil {
		return nil, errors.New(oneLine(err.Error()))
	}
	config.ConnConfig.ConnectTimeout = connectTimeout
	conn, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err != nil {
		return nil, connectError(err)
	}
	return conn, nil
}

// connectError returns why a connection failed, in one line. If no server gave a reason, it adds
// the error at each address that was tried.
func connectError(err error) error {
	problem := pgstore.ConnectProblem(err)
	if _, ok := errors.AsType[*pgconn.PgError](err); ok {
		return errors.New(problem)
	}
	if inner := errors.Unwrap(err); inner != nil {
		err = inner // without the user and the database, which the caller adds
	}
	return fmt.Errorf("%s (%s)", problem, oneLine(err.Error()))
}

func oneLine(text string) string { return strings.Join(strings.Split(text, "\n"), "; ") }
