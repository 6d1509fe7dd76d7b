package pgtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

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
// server. With CI=true they keep no database on a server that ends with the command.
func Share(command *exec.Cmd) error {
	localpg.IgnoreEnvironment()
	s, err := selectServer()
	if err != nil {
		return err
	}
	command.Env = append(os.Environ(), urlVariable+"="+s.admin.String())
	if s.stop != nil {
		command.Env = append(command.Env, "CI=true")
	}
	err = command.Run()
	return errors.Join(err, s.finish())
}

// Local starts a server from binaries on this machine for a program that is not a test, and returns
// its superuser's connection string. stop ends it and removes its data.
func Local(ctx context.Context) (admin string, stop func() error, err error) {
	s, err := startLocal(ctx)
	if err != nil {
		return "", nil, err
	}
	return s.admin.String(), s.stop, nil
}

// selectServer returns the server for the tests, and prints which one it is.
func selectServer() (*instance, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // PostgreSQL may have to be downloaded
	defer cancel()
	if admin := os.Getenv(urlVariable); admin != "" {
		s, err := newInstance(admin, nil)
		if err == nil {
			err = s.dropLeftovers(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", urlVariable, err)
		}
		logf("using the server of %s", urlVariable)
		return s, nil
	}

	image := os.Getenv(imageVariable)
	s, err := startContainer(ctx, cmp.Or(image, defaultImage))
	if err == nil {
		return s, nil
	}
	if image != "" {
		// Tests for one PostgreSQL version must not run on another.
		return nil, fmt.Errorf("%s=%s: %w", imageVariable, image, err)
	}
	logf("no container: %v", err)
	return startLocal(ctx)
}

func startLocal(ctx context.Context) (*instance, error) {
	dir, err := newHomeDir()
	if err != nil {
		return nil, err
	}
	running, err := localpg.Start(ctx, localpg.Options{Dir: dir, Settings: sharedSettings, Log: os.Stderr})
	if err != nil {
		return nil, errors.Join(err, removeHomeDir(dir))
	}
	logf("using PostgreSQL %s from %s", running.Version(), running.BinDir())
	return newInstance(running.URL("postgres"), func() error { return errors.Join(running.Kill(), removeHomeDir(dir)) })
}
