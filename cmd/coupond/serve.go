package main

import (
	"context"
	"io"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"scalable-coupon-system/db"
)

// serveConfig is all that `coupond serve` reads from the environment.
type serveConfig struct {
	Database databaseConfig
	Listen   listenConfig
	Service  serviceConfig
	Log      logConfig
}

func newServeCommand(vars environment, stderr io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Serve coupons over HTTP from the PostgreSQL named by DATABASE_URL",
		Long: `Serve coupons over HTTP from the PostgreSQL named by DATABASE_URL.

It waits for PostgreSQL and for a schema that is new enough: until then, GET
/health answers 503 and says why. It never changes the schema; run coupond
migrate for that, before or while this runs.

SIGTERM or SIGINT ends it: /health says 503, nobody new is let in, every request
is answered, the connections to PostgreSQL are closed. A second signal ends it
at once.`,
		Args:        noArguments,
		Annotations: map[string]string{environmentNote: describe(&serveConfig{})},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd.Context(), vars, stderr)
		},
	}
}

func serve(ctx context.Context, vars environment, stderr io.Writer) error {
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
	logStart(log, config.Database.address(), &config)
	s := service{config: config.Service, database: database, listener: listener, log: log}
	return s.run(ctx)
}

// logStart logs which program starts with which configuration. database says where that is, without a password.
func logStart(log zerolog.Logger, database string, config any) {
	b := readBuild()
	log.Info().
		Str("version", b.version).
		Str("commit", b.commit).
		Int32("schema_version", db.Version()).
		Str("database", database).
		Dict("config", effective(config)).
		Msg("starting")
}
