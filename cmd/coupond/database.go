package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"scalable-coupon-system/pgstore"
)

// databaseSettings names the database.
type databaseSettings struct {
	DatabaseURL          string `setting:"DATABASE_URL"           placeholder:"URL"  form:"database"      help:"PostgreSQL connection string; required" secret:""`
	DatabasePasswordFile string `setting:"DATABASE_PASSWORD_FILE" placeholder:"FILE" form:"password file" help:"file with the password, which replaces one in DATABASE_URL"`

	connString string // with the password
}

const noDatabase = "DATABASE_URL is not set: use DATABASE_URL=postgres://user@host:5432/database," +
	" or try the service with a private PostgreSQL: coupond dev"

// AfterApply sets connString, if both settings are valid. If not, decode has reported that.
func (d *databaseSettings) AfterApply(s *settings) error {
	config, err := pgstore.ParseURL(d.DatabaseURL)
	if d.DatabaseURL == "" {
		s.problem(noDatabase)
	} else if err == nil {
		d.connString = config.ConnString()
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
	if password == "" {
		return "", errors.New("the file is empty")
	}
	if strings.ContainsAny(password, "\n\x00") {
		return "", errors.New("the file has more than one line")
	}
	return password, nil
}

// address returns user, host, port and database for log and error messages, without the password.
func (d *databaseSettings) address() string {
	parsed, err := pgstore.ParseURL(d.DatabaseURL)
	if err != nil {
		return "(invalid connection string)"
	}
	conn := parsed.ConnConfig
	where := net.JoinHostPort(conn.Host, strconv.Itoa(int(conn.Port)))
	if strings.HasPrefix(conn.Host, "/") {
		where = fmt.Sprintf("%s:%d", conn.Host, conn.Port)
	}
	return fmt.Sprintf("%s@%s/%s", conn.User, where, conn.Database)
}

// connectTimeout limits how long connect tries to connect to PostgreSQL.
const connectTimeout = 10 * time.Second

// connect connects to PostgreSQL. Its error is one line without a password.
func connect(ctx context.Context, connString string) (*pgx.Conn, error) {
	// The pool's parser, because DATABASE_URL may hold settings for the service's pool.
	config, err := pgstore.ParseURL(connString)
	if err != nil {
		return nil, errors.New(oneLine(err.Error()))
	}
	config.ConnConfig.ConnectTimeout = connectTimeout
	conn, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err == nil {
		return conn, nil
	}
	problem := pgstore.ConnectProblem(err)
	if _, ok := errors.AsType[*pgconn.PgError](err); ok {
		return nil, errors.New(problem)
	}
	// No server gave a reason: add the error at each address that was tried.
	if inner := errors.Unwrap(err); inner != nil {
		err = inner // without the user and the database, which the caller adds
	}
	return nil, fmt.Errorf("%s (%s)", problem, oneLine(err.Error()))
}

func oneLine(text string) string { return strings.ReplaceAll(text, "\n", "; ") }
