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
	"scalable-coupon-system/internal/pgtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(max(exit.ExitCode(), 1)) // a signal has no code
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "test/pgtap:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, command []string) (err error) {
	if len(command) == 0 {
		return errors.New("no command given; usage: pgtap COMMAND [ARGUMENT…]")
	}
	localpg.IgnoreEnvironment() // psql and pg_prove get their own variables below
	admin := os.Getenv("TEST_DATABASE_URL")
	if admin == "" {
		var stop func() error
		if admin, stop, err = pgtest.Local(ctx); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	server, err := pgx.Connect(ctx, admin)
	if err != nil {
		return err
	}
	database := server.Config()
	database.Database = "coupon_test_sql_" + strings.ToLower(rand.Text()[:10])
	if _, err := server.Exec(ctx, "create database "+database.Database+" template template0 encoding 'UTF8'"); err != nil {
		return errors.Join(err, server.Close(ctx))
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		_, failed := server.Exec(ctx, "drop database "+database.Database+" with (force)")
		err = errors.Join(err, failed, server.Close(ctx))
	}()
	if err := prepare(ctx, database); err != nil {
		return err
	}

	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(),
		"PGHOST="+database.Host, "PGPORT="+strconv.Itoa(int(database.Port)), "PGDATABASE="+database.Database,
		"PGUSER="+database.User, "PGPASSWORD="+database.Password)
	return cmd.Run()
}

// prepare installs our schema and pgTAP in a database.
func prepare(ctx context.Context, database *pgx.ConnConfig) error {
	conn, err := pgx.ConnectConfig(ctx, database)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := db.Apply(ctx, conn, db.Options{}); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, `
		create schema tap;
		create extension pgtap schema tap;
		grant usage on schema tap to public; -- some tests run in the role coupon_service
		alter database `+database.Database+` set search_path = tap, pg_catalog`)
	return err
}
