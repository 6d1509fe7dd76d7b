package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/internal/localpg"
)

const (
	urlVariable   = "TEST_DATABASE_URL"
	imageVariable = "TEST_POSTGRES_IMAGE"
	defaultImage  = "postgres:17"
)

// sharedSettings are the settings of a server that only tests use. Its data need not survive a
// crash of the machine, and many parallel tests of several packages open a pool each.
var sharedSettings = map[string]string{
	"fsync":            "off",
	"full_page_writes": "off",
	"max_connections":  "1000",
}

// Share runs a command with TEST_DATABASE_URL, so that the tests of several packages share a
// server. If the command fails, the server is kept like that of a failed test.
func Share(command *exec.Cmd) error {
	localpg.IgnoreEnvironment()
	s, err := selectServer()
	if err != nil {
		return err
	}
	command.Env = append(os.Environ(), urlVariable+"="+s.admin.String())
	err = command.Run()
	s.kept.Store(mustKeep(err != nil))
	s.finish()
	return err
}

// selectServer returns the server for the tests, and prints which one it is.
func selectServer() (*instance, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // PostgreSQL may have to be downloaded
	defer cancel()
	s, err := startOrConnect(ctx)
	if err != nil {
		return nil, err
	}
	var version string
	conn, err := pgx.Connect(ctx, s.admin.String())
	if err == nil {
		err = conn.QueryRow(ctx, "show server_version").Scan(&version)
		_ = conn.Close(ctx)
	}
	if err != nil {
		s.finish()
		return nil, err
	}
	logf("PostgreSQL %s, %s", version, s.what)
	return s, nil
}

func startOrConnect(ctx context.Context) (*instance, error) {
	if connection := os.Getenv(urlVariable); connection != "" {
		s, err := newInstance(connection, "the server of "+urlVariable)
		if err == nil {
			err = s.dropLeftovers(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", urlVariable, err)
		}
		return s, nil
	}

	image, required := os.LookupEnv(imageVariable)
	if image == "" {
		image, required = defaultImage, false
	}
	s, err := startContainer(ctx, image)
	if err == nil {
		return s, nil
	}
	if required {
		// Tests for one PostgreSQL version must not run on another.
		return nil, fmt.Errorf("%s=%s: %w", imageVariable, image, err)
	}
	logf("no container: %v; using PostgreSQL from this machine", err)
	return startLocal(ctx)
}

func startLocal(ctx context.Context) (*instance, error) {
	dir, err := newHomeDir()
	if err != nil {
		return nil, err
	}
	running, err := localpg.Start(ctx, localpg.Options{Dir: dir, Settings: sharedSettings, Log: os.Stderr})
	if err != nil {
		return nil, errors.Join(err, localpg.Remove(ctx, dir))
	}
	s, err := newInstance(running.URL("postgres"), "from "+running.BinDir())
	s.keep = func() (string, error) { return "rm -r " + dir, running.Keep() }
	s.close = func() error { return errors.Join(running.Kill(), localpg.Remove(context.Background(), dir)) }
	return s, err
}
