package main

import (
	"context"
	"errors"
	"fmt"
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

// service is what serve and dev have in common: the coupons of one database, over HTTP on one listener.
type service struct {
	config   serviceConfig
	database string // connection string with the password
	listener *drain.Listener
	log      zerolog.Logger
	ready    func() // when not nil, called once when the first claim could be made
}

// listenAt opens the door; its error names the address.
func listenAt(ctx context.Context, address string) (*drain.Listener, error) {
	d, err := drain.Listen(ctx, address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("cannot listen on %s: another program does already (choose another address with LISTEN_ADDR)", address)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s (LISTEN_ADDR): %w", address, err)
	}
	return d, nil
}

// run serves until ctx is done, then ends in this order: /health says no, nobody new is let in, every request is answered, the
// store is closed. It returns nil when all of it was done within SHUTDOWN_TIMEOUT.
func (s *service) run(ctx context.Context) error {
	store, err := pgstore.Open(pgstore.Config{
		URL:              s.database,
		MaxConns:         s.config.MaxConns,
		ClaimConcurrency: s.config.ClaimLanes,
		ClaimQueue:       s.config.ClaimQueue,
		ClaimTimeout:     s.config.ClaimTimeout,
		SchemaVersion:    db.Version(),
		Log:              s.log,
	})
	if err != nil {
		return errors.Join(usageError{err}, s.listener.Close())
	}
	handler := api.New(store, api.Options{Log: s.log, Registry: newRegistry(store)})
	server := api.NewServer(handler, s.log)
	server.ConnState = s.listener.ConnState
	most := drain.MaxConns(s.config.MaxConns)
	s.listener.Limit(most)

	started := time.Now()
	served := make(chan struct{})
	var serveErr error
	go func() {
		defer close(served)
		serveErr = server.Serve(s.listener)
	}()
	s.log.Info().Stringer("address", s.listener.Addr()).Int("most_connections", most).Msg("listening")
	var watching sync.WaitGroup
	watch, stopWatching := context.WithCancel(ctx)
	watching.Go(func() { s.tellReadiness(watch, store) })
	defer watching.Wait() // it writes to the log and to stdout
	defer stopWatching()

	select {
	case <-ctx.Done():
	case <-served: // never without a cause: the listener broke
		_ = server.Close()
		store.Close()
		return fmt.Errorf("cannot listen on %s any more: %w", s.listener.Addr(), serveErr)
	}

	stopping := time.Now()
	s.log.Info().AnErr("cause", context.Cause(ctx)).Stringer("at_most", s.config.ShutdownTimeout).
		Msg(stoppingMessage)
	deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.ShutdownTimeout)
	defer cancel()

	handler.Drain()
	cut := s.listener.Drain(deadline, served)
	_ = server.Close() // what is left is cut; an error would be that of closing a connection

	closed := make(chan struct{})
	go func() {
		defer close(closed)
		store.Close()
	}()
	err = nil
	select {
	case <-closed:
	case <-deadline.Done():
		err = fmt.Errorf("cut off after SHUTDOWN_TIMEOUT (%s): the connections to PostgreSQL", s.config.ShutdownTimeout)
	}
	if cut > 0 {
		requests := "requests"
		if cut == 1 {
			requests = "request"
		}
		err = fmt.Errorf("cut off after SHUTDOWN_TIMEOUT (%s): %d %s without a whole answer", s.config.ShutdownTimeout, cut, requests)
	}
	s.log.Info().
		Int64("up_ms", stopping.Sub(started).Milliseconds()).
		Int64("stop_ms", time.Since(stopping).Milliseconds()).
		Dict("claims", summary(store)).
		Int("requests_cut", cut).
		Msg("stopped")
	return err
}

// summary counts the claims by what came of them.
func summary(store *pgstore.Store) *zerolog.Event {
	dict := zerolog.Dict()
	for outcome, n := range store.Outcomes() {
		dict.Int64(outcome, n)
	}
	return dict
}

// newRegistry has all that GET /metrics shows but for the requests.
func newRegistry(store *pgstore.Store) *prometheus.Registry {
	b := readBuild()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "coupond_build_info",
		Help:        "Which program this is; always 1.",
		ConstLabels: prometheus.Labels{"version": b.version, "commit": b.commit, "go_version": runtime.Version()},
	})
	info.Set(1)
	registry := prometheus.NewRegistry()
	registry.MustRegister(store, info,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// stoppingMessage is logged at the first signal.
const stoppingMessage = "stopping: every request is answered first; a second signal ends it at once"

// readinessPause is how often a start looks whether claims can be made.
const readinessPause = 200 * time.Millisecond

// tellReadiness logs when the first claim can be made. What it waits for until then is in the store's own log.
func (s *service) tellReadiness(ctx context.Context, store *pgstore.Store) {
	for store.Ready(ctx) != nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(readinessPause):
		}
	}
	s.log.Info().Msg("ready for claims")
	if s.ready != nil {
		s.ready()
	}
}
