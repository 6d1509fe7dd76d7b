package main

import (
	"context"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"scalable-coupon-system/db"
)

// serveConfig is the configuration of `coupond serve`.
type serveConfig struct {
	Database databaseConfig
	Listen   listenConfig
	Service  serviceConfig
	Log      logConfig
}

func newServeCommand(vars environment, stderr *output) *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Serve coupons over HTTP from the PostgreSQL named by DATABASE_URL",
		Long: `Serve coupons over HTTP from the PostgreSQL named by DATABASE_URL.

The service waits for PostgreSQL and for a schema that is new enough. Until
then, GET /health returns 503 and the reason. The service never changes the
schema: run coupond migrate, before or while it runs.

SIGTERM, SIGINT or SIGHUP starts a graceful shutdown: /health returns 503, no
new connection is accepted, every request is answered, and the connections to
PostgreSQL are closed. A second SIGTERM or SIGINT ends the process at once.
Under nohup, SIGHUP is ignored.

The log goes to stderr. It never blocks the service: lines that are not read, or
cannot be written, are dropped and counted.`,
		Args:        noArguments,
		Annotations: map[string]string{environmentNote: describe(&serveConfig{})},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd.Context(), vars, stderr)
		},
	}
}

func serve(ctx context.Context, vars environment, stderr *output) error {
	surviveBrokenPipes()
	var config serveConfig
	if err := load(vars, &config); err != nil {
		return err
	}
	database, err := config.Database.connString()
	if err != nil {
		return err
	}
	log, err := newLogger(stderr, &config.Log)
	if err != nil {
		return err
	}
	listener, err := listenAt(ctx, config.Listen.Addr)
	if err != nil {
		return err
	}
	limitMemory(log)
	logStart(log, config.Database.address(), &config)
	s := service{config: config.Service, database: database, listener: listener, log: log, output: stderr}
	return s.run(ctx)
}

// logStart logs the build and the effective configuration. database is the address of the database,
// without a password.
func logStart(log zerolog.Logger, database string, config any) {
	b := readBuild()
	log.Info().
		Str("version", b.version).
		Str("commit", b.commit).
		Int32("schema_version", db.Version()).
		Str("database", database).
		Str("memory_limit", formatLimit(memoryLimit())).
		Dict("config", effective(config)).
		Msg("starting")
}
