package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/rs/zerolog"

	"scalable-coupon-system/api"
	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/drain"
	"scalable-coupon-system/pgstore"
)

// service serves the coupons of one database over HTTP on one listener. The commands serve and dev
// run it.
type service struct {
	settings serviceSettings
	database string // connection string, with the password
	listener *drain.Listener
	log      zerolog.Logger
	output   *output // of log
	ready    func()  // if not nil, called once when claims can be made
}

// listenAt listens on address. Its error names the address.
func listenAt(ctx context.Context, address string) (*drain.Listener, error) {
	l, err := drain.Listen(ctx, address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("cannot listen on %s: address already in use (choose another one with LISTEN_ADDR)", address)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s (LISTEN_ADDR): %w", address, err)
	}
	return l, nil
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
		Log: s.log, Registry: newRegistry(store, s.output), MaxInFlight: maxInFlight(memoryLimit()),
	})
	server := api.NewServer(handler, s.log)
	server.IdleTimeout = s.settings.IdleTimeout
	server.ConnState = s.listener.ConnState
	maxConns := maxConnections(memoryLimit(), int32(s.settings.DBMaxConns))
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
	b := readBuild()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "coupond_build_info",
		Help:        "Version, commit and Go version of this program; always 1.",
		ConstLabels: prometheus.Labels{"version": b.version, "commit": b.commit, "go_version": runtime.Version()},
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
	for {
		if _, err := store.Ready(ctx); err == nil {
			break
		}
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
