package main

import (
	"context"

	"github.com/alecthomas/kong"
	"github.com/rs/zerolog"

	"scalable-coupon-system/db"
)

type serveCommand struct {
	Database databaseSettings `embed:""`
	Listen   listenSettings   `embed:"" set:"listen_addr=:8080"`
	Service  serviceSettings  `embed:""`
}

// Help returns the details of the command's help.
func (*serveCommand) Help() string {
	return `The service waits for PostgreSQL and for a schema that is new enough. Until then, GET /health returns 503 and the reason. The service never changes the schema: run coupond migrate, before or while it runs.

SIGTERM, SIGINT or SIGHUP starts a graceful shutdown: /health returns 503, no new connection is accepted, every request is answered, and the connections to PostgreSQL are closed. A second SIGTERM or SIGINT ends the process at once. Under nohup, SIGHUP is ignored.

The log goes to stderr. It never blocks the service: lines that are not read, or cannot be written, are dropped and counted.

Each setting is an environment variable and a flag; the flag wins. Other users of the machine see flags, so a password belongs into a variable or a file.`
}

// Run serves until ctx is done.
func (c *serveCommand) Run(ctx context.Context, command *kong.Context, std streams) error {
	surviveBrokenPipes()
	log, err := newLogger(std.stderr, &c.Service)
	if err != nil {
		return err
	}
	listener, err := listenAt(ctx, c.Listen.ListenAddr)
	if err != nil {
		return err
	}
	limitMemory(log)
	logStart(log, c.Database.address(), command)
	s := service{settings: c.Service, database: c.Database.connString, listener: listener, log: log, output: std.stderr}
	return s.run(ctx)
}

// logStart logs the build and the settings. database is the address of the database, without a
// password.
func logStart(log zerolog.Logger, database string, command *kong.Context) {
	b := readBuild()
	log.Info().
		Str("version", b.version).
		Str("commit", b.commit).
		Int32("schema_version", db.Version()).
		Str("database", database).
		Str("memory_limit", formatLimit(memoryLimit())).
		Dict("config", effective(command)).
		Msg("starting")
}
