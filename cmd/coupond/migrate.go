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

// connectTimeout bounds how long migrate waits for PostgreSQL to let it in.
const connectTimeout = 10 * time.Second

// migrateConfig is all that `coupond migrate` reads from the environment.
type migrateConfig struct {
	Database databaseConfig
}

func newMigrateCommand(vars environment, stdout io.Writer) *cobra.Command {
	var proxy bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the schema of DATABASE_URL up to date",
		Long: `Bring the schema of DATABASE_URL up to date, and install its functions as this
binary brings them. A second run changes nothing, several at once are safe, and
a service that runs meanwhile is not disturbed.

The login must be a superuser, or own the database and have CREATEROLE.

With --proxy, DATABASE_URL is an empty database that becomes a proxy before
several servers (deploy/shards); the login must be a superuser.`,
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
	cmd.Flags().BoolVar(&proxy, "proxy", false, "install the functions of a proxy (PL/Proxy), and no tables")
	return cmd
}

// migrateProxy makes a proxy of the database of connString and says so on w.
func migrateProxy(ctx context.Context, connString, address string, w io.Writer) (err error) {
	conn, err := connect(ctx, connString)
	if err != nil {
		return fmt.Errorf("cannot connect to %s: %w", address, err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()

	if err := db.ApplyProxy(ctx, conn); err != nil {
		return fmt.Errorf("cannot make a proxy of %s: %w", address, err)
	}
	_, err = fmt.Fprintf(w, "%s: proxy of schema version %d; functions installed\n", address, db.Version())
	return err
}

// migrate brings the database of connString up to date and says on w what it did. address names the database in errors.
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

// connect connects, within connectTimeout. Its error says why not in one line, without a password.
func connect(ctx context.Context, connString string) (*pgx.Conn, error) {
	// The pool's parser, so that a DATABASE_URL with settings for the service's pool serves here as well.
	config, err := pgxpool.ParseConfig(connString)
	if err != nil {
		return nil, errors.New("the connection string cannot be parsed") // never err: it may hold a password
	}
	config.ConnConfig.ConnectTimeout = connectTimeout
	conn, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err != nil {
		return nil, whyNot(err)
	}
	return conn, nil
}

// whyNot is why a connection failed, in one line: what the server said, or else what happened at each address that was tried.
func whyNot(err error) error {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Errorf("%s (SQLSTATE %s)", pgErr.Message, pgErr.Code)
	}
	if inner := errors.Unwrap(err); inner != nil {
		err = inner // without the user and the database, which our sentence names
	}
	return errors.New(strings.Join(strings.Split(err.Error(), "\n"), "; "))
}
