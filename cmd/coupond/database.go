package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"scalable-coupon-system/db"
	"scalable-coupon-system/pgstore"
)

// databaseSettings names the database.
type databaseSettings struct {
	DatabaseURL          string `setting:"DATABASE_URL"           placeholder:"URL"  form:"database"      help:"PostgreSQL connection string; required" secret:""`
	DatabasePasswordFile string `setting:"DATABASE_PASSWORD_FILE" placeholder:"FILE" form:"password file" help:"file with the password, which replaces one in DATABASE_URL"`

	connString string // with the password
	address    string // user, host, port and database for log and error messages, without the password
}

// AfterApply sets connString and address, if both settings are valid. If not, decode has reported
// that.
func (d *databaseSettings) AfterApply(s *settings) error {
	config, err := pgstore.ParseURL(d.DatabaseURL)
	if d.DatabaseURL == "" {
		s.problem("DATABASE_URL is not set: use DATABASE_URL=postgres://user@host:5432/database," +
			" or try the service with a private PostgreSQL: coupond dev")
	} else if err == nil {
		conn := config.ConnConfig
		d.connString = config.ConnString()
		d.address = conn.User + "@" + net.JoinHostPort(conn.Host, strconv.Itoa(int(conn.Port))) + "/" + conn.Database
	}
	if password, err := readPassword(d.DatabasePasswordFile); d.connString != "" && err == nil {
		if d.connString, err = pgstore.WithPassword(d.DatabaseURL, password); err != nil {
			s.problem("DATABASE_URL: %v, and DATABASE_PASSWORD_FILE is set; set only one of the two", err)
		}
	}
	return nil
}

func readPassword(path string) (string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		if cause, ok := errors.AsType[*os.PathError](err); ok {
			err = cause.Err // without the path, which the caller shows
		}
		return "", err
	}
	password := strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	if password == "" || strings.ContainsAny(password, "\n\x00") {
		return "", errNotAllowed
	}
	return password, nil
}

type migrateCommand struct {
	Database databaseSettings `embed:""`
	Proxy    bool             `help:"Install the PL/Proxy functions of a proxy instead of the schema."`
}

// Help returns the details of the command's help.
func (*migrateCommand) Help() string {
	return `Migrate the schema coupond in the database of DATABASE_URL to the version of this binary, and install its functions. A second run changes nothing. Several migrations may run at the same time, and the service may run meanwhile. If a statement does not get a lock within half a second, migrate prints which session holds it, lets the service's calls pass, and tries again.

The login must be a superuser, or own the database and be a member of the role coupon_service, which an administrator creates once (deploy/roles.sql). All objects belong to the owner of the schema coupond; the login of a later migration must be allowed to act as that role.

With --proxy, DATABASE_URL names an empty database that becomes a proxy in front of several servers (see deploy/shards). The login must be a superuser.`
}

// Run migrates the database, or makes it a proxy.
func (m *migrateCommand) Run(ctx context.Context, stdout io.Writer, stderr *output) error {
	surviveBrokenPipes()
	return migrate(ctx, m.Database.connString, m.Database.address, m.Proxy, stdout, stderr)
}

// migrate installs the schema, or the functions of a proxy, in the database of connString. It
// writes the result to stdout, and what it waits for or repairs to stderr. address names the
// database in messages.
func migrate(ctx context.Context, connString, address string, proxy bool, stdout, stderr io.Writer) (err error) {
	conn, err := connect(ctx, connString)
	if err != nil {
		return fmt.Errorf("cannot connect to %s: %w", address, err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()

	options := db.Options{Log: func(line string) {
		_, _ = fmt.Fprintf(stderr, "%s: %s\n", address, line) // the migration is useful even if nothing reads stderr
	}}
	if proxy {
		if err := db.ApplyProxy(ctx, conn, options); err != nil {
			return fmt.Errorf("cannot set up %s as a proxy: %w", address, err)
		}
		_, err = fmt.Fprintf(stdout, "%s: proxy of schema version %d; functions installed\n", address, db.Version())
		return err
	}
	result, err := db.Apply(ctx, conn, options)
	if err != nil {
		return fmt.Errorf("cannot migrate %s: %w", address, err)
	}
	version := fmt.Sprintf("%d already", result.To)
	if result.From != result.To {
		version = fmt.Sprintf("%d → %d", result.From, result.To)
	}
	_, err = fmt.Fprintf(stdout, "%s: schema version %s; functions installed\n", address, version)
	return err
}

// connectTimeout limits how long connect tries to connect to PostgreSQL.
const connectTimeout = 10 * time.Second

// connect connects to PostgreSQL. Its error is one line without a password.
func connect(ctx context.Context, connString string) (*pgx.Conn, error) {
	// The pool's parser, because DATABASE_URL may hold settings for the service's pool.
	config, err := pgstore.ParseURL(connString)
	if err != nil {
		return nil, err
	}
	config.ConnConfig.ConnectTimeout = connectTimeout
	conn, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err == nil {
		return conn, nil
	}
	problem := pgstore.ConnectProblem(err)
	if _, ok := errors.AsType[*pgconn.PgError](err); !ok {
		// No server gave a reason: add the error at each address that was tried, without the user and
		// the database, which the caller adds.
		problem += " (" + strings.ReplaceAll(cmp.Or(errors.Unwrap(err), err).Error(), "\n", "; ") + ")"
	}
	return nil, errors.New(problem)
}
