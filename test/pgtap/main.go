// Command pgtap runs another command with a temporary database that has our schema and pgTAP:
//
//	go run ./test/pgtap COMMAND [ARGUMENT…]
//
// COMMAND gets the database in PGHOST, PGPORT, PGUSER, PGPASSWORD and PGDATABASE, and its exit code
// is that of pgtap. The database is created on the server of TEST_DATABASE_URL (as a superuser) or,
// without it, on a private server from binaries on this machine, and dropped afterwards.
//
// pgTAP is in the schema tap, which is the database's search_path, so tests must qualify every name
// of our schema.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/localpg"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "test/pgtap:", err)
		code = 1
	}
	os.Exit(code)
}

func run(ctx context.Context, command []string) (code int, err error) {
	if len(command) == 0 {
		return 2, errors.New("no command given; usage: pgtap COMMAND [ARGUMENT…]")
	}
	localpg.IgnoreEnvironment() // psql and pg_prove get their own variables below
	admin := os.Getenv("TEST_DATABASE_URL")
	if admin == "" {
		server, remove, err := start(ctx)
		if err != nil {
			return 1, err
		}
		defer func() { err = errors.Join(err, remove()) }()
		admin = server.URL("postgres")
	}
	config, drop, err := create(ctx, admin)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, drop()) }()

	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(),
		"PGHOST="+config.Host, "PGPORT="+strconv.Itoa(int(config.Port)), "PGDATABASE="+config.Database,
		"PGUSER="+config.User, "PGPASSWORD="+config.Password)
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(exit.ExitCode(), 1), nil // a signal has no code
	}
	return 0, err
}

// start starts a private server. remove stops it and deletes its data.
func start(ctx context.Context) (server *localpg.Server, remove func() error, err error) {
	dir, err := os.MkdirTemp("", "coupond-tests-")
	if err != nil {
		return nil, nil, err
	}
	remove = func() error {
		if server != nil {
			_ = server.Kill() // its data is deleted next, so a clean stop is not needed
		}
		return localpg.Remove(context.WithoutCancel(ctx), dir)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	server, err = localpg.Start(ctx, localpg.Options{
		Dir:      dir,
		Settings: map[string]string{"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"},
		Log:      os.Stderr,
	})
	if err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	return server, remove, nil
}

// create creates the database on the server that admin connects to. drop drops it.
func create(ctx context.Context, admin string) (config *pgx.ConnConfig, drop func() error, err error) {
	if config, err = pgx.ParseConfig(admin); err != nil {
		return nil, nil, err
	}
	maintenance := config.Copy()
	config.Database = "coupon_test_sql_" + strings.ToLower(rand.Text()[:10])

	drop = func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return execute(ctx, maintenance, "drop database if exists "+config.Database+" with (force)")
	}
	if err = execute(ctx, maintenance, "create database "+config.Database+" template template0 encoding 'UTF8'"); err != nil {
		return nil, nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err == nil {
		_, err = db.Apply(ctx, conn, db.Options{})
		_ = conn.Close(ctx)
	}
	if err == nil {
		err = execute(ctx, config,
			"create schema tap",
			"create extension pgtap schema tap",
			"grant usage on schema tap to public", // some tests run in the role coupon_service
			"alter database "+config.Database+" set search_path = tap, pg_catalog")
	}
	if err != nil {
		return nil, nil, errors.Join(err, drop())
	}
	return config, drop, nil
}

func execute(ctx context.Context, config *pgx.ConnConfig, statements ...string) error {
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}
