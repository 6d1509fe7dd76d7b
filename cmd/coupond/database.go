package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"scalable-coupon-system/pgstore"
)

// databaseConfig names the database.
type databaseConfig struct {
	URL          string `env:"DATABASE_URL"           fallback:"required"  form:"database"                                                 help:"PostgreSQL connection string" secret:"true"`
	PasswordFile string `env:"DATABASE_PASSWORD_FILE" form:"password file" help:"file with the password, which replaces one in DATABASE_URL"`
}

// errNoDatabase is the problem if DATABASE_URL is not set.
var errNoDatabase = errors.New("DATABASE_URL is not set: use DATABASE_URL=postgres://user@host:5432/database," +
	" or try the service with a private PostgreSQL: coupond dev")

// conflict returns a problem with a connection string and a password file that are valid on their
// own, or "".
func (c databaseConfig) conflict() string {
	_, urlErr := pgstore.ParseURL(c.URL)
	password, fileErr := readPassword(c.PasswordFile)
	if c.URL == "" || c.PasswordFile == "" || urlErr != nil || fileErr != nil {
		return ""
	}
	if _, err := pgstore.WithPassword(c.URL, password); err != nil {
		return "DATABASE_URL: " + err.Error() + ", and DATABASE_PASSWORD_FILE is set; set only one of the two"
	}
	return ""
}

// connString returns the connection string with the password. load has checked the configuration.
func (c databaseConfig) connString() (string, error) {
	if c.PasswordFile == "" {
		config, err := pgstore.ParseURL(c.URL)
		if err != nil {
			return "", fmt.Errorf("DATABASE_URL: %w", err)
		}
		return config.ConnString(), nil
	}
	password, err := readPassword(c.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("DATABASE_PASSWORD_FILE=%q: %w", c.PasswordFile, err)
	}
	return pgstore.WithPassword(c.URL, password)
}

func readPassword(path string) (string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		if cause, ok := errors.AsType[*os.PathError](err); ok {
			err = cause.Err // without the path, which the caller shows
		}
		return "", err
	}
	content = bytes.TrimSuffix(content, []byte("\n"))
	content = bytes.TrimSuffix(content, []byte("\r"))
	if len(content) == 0 {
		return "", errors.New("the file is empty")
	}
	if bytes.ContainsAny(content, "\n\x00") {
		return "", errors.New("the file has more than one line")
	}
	return string(content), nil
}

// address returns user, host, port and database for log and error messages, without the password.
func (c databaseConfig) address() string {
	parsed, err := pgstore.ParseURL(c.URL)
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
