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
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"scalable-coupon-system/db"
)

// connectTimeout limits how long migrate tries to connect to PostgreSQL.
const connectTimeout = 10 * time.Second

// migrateConfig is the configuration of `coupond migrate`.
type migrateConfig struct {
	Database databaseConfig
}

func newMigrateCommand(vars environment, stdout io.Writer) *cobra.Command {
	var proxy bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Migrate the schema in DATABASE_URL to this version",
		Long: `Migrate the schema in the database of DATABASE_URL to the version of this
binary, and install its functions. A second run changes nothing. Several
migrations may run at the same time, and the service may run meanwhile.

The login must be a superuser, or own the database and have CREATEROLE.

With --proxy, DATABASE_URL names an empty database that becomes a proxy in front
of several servers (see deploy/shards). The login must be a superuser.`,
		Args:        noArguments,
		Annotations: map[string]string{environmentNote: describe(&migrateConfig{})},
		RunE: func(cmd *cobra.Command, _ []string) error {
			var config migrateConfig
			if err := load(vars, &config); err != nil {
				return err
			}
			database, err := config.Database.connString()
			if err != nil {
				return err
			}
			if proxy {
				return migrateProxy(cmd.Context(), database, config.Database.address(), stdout)
			}
			return migrate(cmd.Context(), database, config.Database.address(), stdout)
		},
	}
	cmd.Flags().BoolVar(&proxy, "proxy", false, "install the PL/Proxy functions of a proxy instead of the schema")
	return cmd
}

// migrateProxy installs the functions of a proxy in the database of connString, and writes the
// result to w. address names the database in messages.
func migrateProxy(ctx context.Context, connString, address string, w io.Writer) (err error) {
	conn, err := connect(ctx, connString)
	if err != nil {
		return fmt.Errorf("cannot connect to %s: %w", address, err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()

	if err := db.ApplyProxy(ctx, conn); err != nil {
		return fmt.Errorf("cannot set up %s as a proxy: %w", address, err)
	}
	_, err = fmt.Fprintf(w, "%s: proxy of schema version %d; functions installed\n", address, db.Version())
	return err
}

// migrate migrates the database of connString and writes the result to w. address names the
// database in messages.
func migrate(ctx context.Context, connString, address string, w io.Writer) (err error) {
	conn, err := connect(ctx, connString)
	if err != nil {
		return fmt.Errorf("cannot connect to %s: %w", address, err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()

	result, err := db.Apply(ctx, conn)
	if err != nil {
		return fmt.Errorf("cannot migrate %s: %w", address, err)
	}
	if result.From == result.To {
		_, err = fmt.Fprintf(w, "%s: schema version %d already; functions installed\n", address, result.To)
	} else {
		_, err = fmt.Fprintf(w, "%s: schema version %d → %d; functions installed\n", address, result.From, result.To)
	}
	return err
}

// connect connects within connectTimeout. Its error is one line without a password.
func connect(ctx context.Context, connString string) (*pgx.Conn, error) {
	// The pool's parser, because DATABASE_URL may hold settings for the service's pool.
	config, err := pgxpool.ParseConfig(connString)
	if err != nil {
		return nil, errors.New("cannot parse the connection string") // not err, which may hold a password
	}
	config.ConnConfig.ConnectTimeout = connectTimeout
	conn, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err != nil {
		return nil, connectError(err)
	}
	return conn, nil
}

// connectError returns why a connection failed, in one line: the error of the server, or else the
// error at each address that was tried.
func connectError(err error) error {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Errorf("%s (SQLSTATE %s)", pgErr.Message, pgErr.Code)
	}
	if inner := errors.Unwrap(err); inner != nil {
		err = inner // without the user and the database, which the caller adds
	}
	return errors.New(strings.Join(strings.Split(err.Error(), "\n"), "; "))
}
