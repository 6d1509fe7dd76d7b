package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/alecthomas/kong"
	"github.com/dustin/go-humanize"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"scalable-coupon-system/api"
	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/drain"
	"scalable-coupon-system/pgstore"
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
func (c *serveCommand) Run(ctx context.Context, command *kong.Context, stderr *output) error {
	s, err := newService(ctx, c.Listen.ListenAddr, &c.Service, stderr)
	if err != nil {
		return err
	}
	limitMemory(s.log)
	s.database = c.Database.connString
	s.logStart(c.Database.address, command)
	return s.run(ctx)
}

// service serves the coupons of one database over HTTP on one listener. The commands serve and dev
// run it.
type service struct {
	settings    serviceSettings
	database    string // connection string, with the password
	listener    *drain.Listener
	output      *output // of both logs
	log         zerolog.Logger
	requestsLog zerolog.Logger // has a line for each request
	ready       func()         // if not nil, called once when claims can be made
}

// newService listens on address. It replaces the log format auto in settings.
func newService(ctx context.Context, address string, settings *serviceSettings, out *output) (*service, error) {
	surviveBrokenPipes()
	listener, err := drain.Listen(ctx, address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("cannot listen on %s: address already in use (choose another one with LISTEN_ADDR)", address)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s (LISTEN_ADDR): %w", address, err)
	}
	log := newLogger(out, settings)
	return &service{settings: *settings, listener: listener, output: out, log: log, requestsLog: log}, nil
}

// logStart logs the build and the settings. database is the address of the database, without a
// password.
func (s *service) logStart(database string, command *kong.Context) {
	version, commit := readBuild()
	s.log.Info().
		Str("version", version).
		Str("commit", commit).
		Int32("schema_version", db.Version()).
		Str("database", database).
		Str("memory_limit", formatLimit(memoryLimit())).
		Dict("config", effective(command)).
		Msg("starting")
}

// run serves until ctx is done. Then it shuts down in this order: /health returns 503, no new
// connection is accepted, every request is answered, the store is closed. It returns nil if all of
// this was done within SHUTDOWN_TIMEOUT.
func (s *service) run(ctx context.Context) error {
	store, err := pgstore.Open(pgstore.Config{
		URL:              s.database,
		MaxConns:         int32(s.settings.DBMaxConns),
		ClaimConcurrency: s.settings.ClaimConcurrency,
		ClaimQueue:       s.settings.ClaimQueue,
		ClaimTimeout:     s.settings.ClaimTimeout,
		SchemaVersion:    db.Version(),
		Log:              s.log,
	})
	if err != nil {
		return errors.Join(usageError{err}, s.listener.Close())
	}
	handler := api.New(store, api.Options{
		Log: s.requestsLog, Registry: newRegistry(store, s.output), MaxInFlight: maxInFlight(memoryLimit()),
	})
	server := api.NewServer(handler, s.log)
	server.IdleTimeout = s.settings.IdleTimeout
	server.ConnState = s.listener.ConnState
	maxConns := maxConnections(memoryLimit(), s.settings.DBMaxConns)
	s.listener.Limit(maxConns)

	started := time.Now()
	served := make(chan struct{})
	var serveErr error
	go func() {
		defer close(served)
		serveErr = server.Serve(s.listener)
	}()
	s.log.Info().Stringer("address", s.listener.Addr()).Int("max_connections", maxConns).Msg("listening")
	var background sync.WaitGroup
	starting, stopStarting := context.WithCancel(ctx)
	background.Go(func() { s.reportReady(starting, store) })
	defer background.Wait() // it writes to the log and to stdout
	defer stopStarting()

	select {
	case <-ctx.Done():
	case <-served: // the listener failed
		_ = server.Close()
		store.Close()
		return fmt.Errorf("no longer listening on %s: %w", s.listener.Addr(), serveErr)
	}

	stopping := time.Now()
	s.log.Info().AnErr("cause", context.Cause(ctx)).Stringer("timeout", s.settings.ShutdownTimeout).
		Msg(stoppingMessage)
	deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.settings.ShutdownTimeout)
	defer cancel()

	handler.Drain()
	cutOff := s.listener.Drain(deadline, served)
	_ = server.Close() // cuts off the remaining requests; the error is that of closing a connection

	closed := make(chan struct{})
	go func() {
		defer close(closed)
		store.Close()
	}()
	exceeded := ""
	select {
	case <-closed:
	case <-deadline.Done():
		exceeded = "connections to PostgreSQL cut off"
	}
	if cutOff > 0 {
		exceeded = fmt.Sprintf("%d request(s) cut off", cutOff)
	}
	s.log.Info().
		Int64("uptime_ms", stopping.Sub(started).Milliseconds()).
		Int64("shutdown_ms", time.Since(stopping).Milliseconds()).
		Any("claims", maps.Collect(store.Outcomes())).
		Int("requests_cut_off", cutOff).
		Msg("stopped")
	if exceeded != "" {
		return fmt.Errorf("SHUTDOWN_TIMEOUT (%s) exceeded: %s", s.settings.ShutdownTimeout, exceeded)
	}
	return nil
}

// newRegistry returns a registry with all metrics except those of HTTP requests, which package api
// adds.
func newRegistry(store *pgstore.Store, logOutput *output) *prometheus.Registry {
	version, commit := readBuild()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "coupond_build_info",
		Help:        "Version, commit and Go version of this program; always 1.",
		ConstLabels: prometheus.Labels{"version": version, "commit": commit, "go_version": runtime.Version()},
	})
	info.Set(1)
	dropped := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "coupond_log_lines_dropped_total",
		Help: "Lines of the log that were dropped, because they were not read or could not be written.",
	}, logOutput.droppedLines)
	registry := prometheus.NewRegistry()
	registry.MustRegister(store, info, dropped,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// stoppingMessage is logged at the first signal.
const stoppingMessage = "stopping: waiting for open requests; a second signal ends the process at once"

// readyInterval is the time between two readiness checks at startup.
const readyInterval = 200 * time.Millisecond

// reportReady waits until claims can be made, logs that and calls s.ready. Until then the store
// logs what is missing.
func (s *service) reportReady(ctx context.Context, store *pgstore.Store) {
	for _, err := store.Ready(ctx); err != nil; _, err = store.Ready(ctx) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(readyInterval):
		}
	}
	s.log.Info().Msg("ready for claims")
	if s.ready != nil {
		s.ready()
	}
}

// How the memory is divided: half for connections, a quarter for the bodies and responses in
// flight, a quarter for everything else. None of these is a setting: GOMEMLIMIT, or the container's
// limit, sets them all.
const (
	// connMemory is what a connection takes in net/http: 20 KiB, or more with a large header.
	connMemory = 32 << 10

	// unlimitedInFlight is for a process whose memory is not limited.
	unlimitedInFlight = 256 << 20

	// reservedFDs is the number of file descriptors kept for the process itself (about ten) and its
	// resolver.
	reservedFDs = 32
)

// limitMemory sets the soft memory limit of Go's garbage collector to 90 % of the container's
// (cgroup's) limit, unless GOMEMLIMIT sets it. Go itself does not look at the container's limit.
func limitMemory(log zerolog.Logger) {
	_, err := memlimit.Set()
	if err != nil && !errors.Is(err, memlimit.ErrCgroupsNotSupported) && !errors.Is(err, memlimit.ErrNoCgroup) {
		log.Warn().Err(err).Msg("the container's memory limit is unknown; set GOMEMLIMIT to 90 % of it")
	}
}

// memoryLimit returns the soft memory limit in bytes; math.MaxInt64 if there is none.
func memoryLimit() int64 { return debug.SetMemoryLimit(-1) }

// formatLimit formats a memory limit for the log.
func formatLimit(bytes int64) string {
	if bytes == math.MaxInt64 {
		return "none"
	}
	return humanize.IBytes(uint64(bytes))
}

// maxInFlight returns how many bytes bodies and responses in flight may take.
func maxInFlight(memoryLimit int64) int64 {
	if memoryLimit == math.MaxInt64 {
		return unlimitedInFlight
	}
	return max(1, memoryLimit/4)
}

// maxConnections returns how many connections may be open: as many as the memory and the file
// descriptors suffice for. Otherwise clients could take all descriptors, and a lost connection to
// PostgreSQL could not be replaced.
func maxConnections(memoryLimit int64, toPostgreSQL int) int {
	n := min(math.MaxInt32, memoryLimit/2/connMemory)
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil && files.Cur < math.MaxInt32 {
		n = min(n, int64(files.Cur)-int64(toPostgreSQL)-reservedFDs)
	}
	return int(max(1, n))
}
