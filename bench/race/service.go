package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/rs/zerolog"

	"scalable-coupon-system/api"
	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
)

// serveFlag makes this program the service of one contestant. It is a process of its own, so that
// its CPU time can be separated from the load generator's.
const serveFlag = "--serve-contestant"

// serve runs the service of a contestant until standard input is closed. That happens however the
// race ends. It prints the address it listens on.
func serve(ctx context.Context, name string) error {
	contestant, err := contestants.Find(name)
	if err != nil {
		return err
	}
	maxConns, err := strconv.ParseInt(os.Getenv("RACE_MAX_CONNS"), 10, 32)
	if err != nil {
		return err
	}
	concurrency, err := strconv.Atoi(os.Getenv("RACE_CLAIM_CONCURRENCY"))
	if err != nil {
		return err
	}
	store, stop, err := contestant.Open(ctx, contestants.Config{
		PostgresURL:      os.Getenv("RACE_POSTGRES"),
		RedisAddress:     os.Getenv("RACE_REDIS"),
		MaxConns:         int32(maxConns),
		ClaimConcurrency: concurrency,
	})
	if err != nil {
		return err
	}
	defer stop()

	// The access log is written as in coupond, but without the cost of a disk.
	sink, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = sink.Close() }() // discards everything, so a failed close loses nothing
	log := zerolog.New(sink).With().Timestamp().Logger()
	server := api.NewServer(api.New(store, api.Options{Log: log}), log)
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() { _ = server.Serve(listener) }() // returns after Close
	_, err = fmt.Fprintln(os.Stdout, listener.Addr())
	if err == nil {
		_, err = io.Copy(io.Discard, os.Stdin)
	}
	return errors.Join(err, server.Close())
}

// entry is one row of a workload's table: a contestant, its database and what it runs.
type entry struct {
	name       string // in tables and results
	contestant string // a name of selectContestants
	database   string // "": the contestant's own
	instances  int    // processes that share the load; 0: one
	run        runner
}

// service is the running service of an entry.
type service struct {
	entry
	client    load.Service // of the first instance
	instances []*instance
	redis     *contestants.RedisServer // nil unless the contestant uses Redis
}

// startService starts the service of an entry, and its Redis if it uses one.
func (m *machine) startService(ctx context.Context, e entry) (*service, error) {
	e.database = cmp.Or(e.database, m.databaseOf(e.contestant))
	s := &service{entry: e}
	if fsync, usesRedis := strings.CutPrefix(e.contestant, redisPrefix); usesRedis {
		dir, err := os.MkdirTemp(m.dir, "redis-")
		if err != nil {
			return nil, err
		}
		if s.redis, err = contestants.StartRedis(ctx, dir, fsync); err != nil {
			return nil, err
		}
	}
	for range max(1, e.instances) {
		one, err := m.startInstance(ctx, s)
		if err != nil {
			s.stop()
			return nil, fmt.Errorf("the service of %s did not start: %w", e.name, err)
		}
		s.instances = append(s.instances, one)
	}
	s.client = load.Service{Address: s.instances[0].address, Timeout: serviceTimeout}
	return s, nil
}

func (s *service) stop() {
	for _, one := range s.instances {
		one.stop()
	}
	if s.redis != nil {
		s.redis.Stop()
	}
}

// instance is a process of a service.
type instance struct {
	address string
	cmd     *exec.Cmd
	stdin   io.Closer // its end stops the service of a contestant; nil: a program, which a signal stops
}

// startInstance starts a process of a service: of this program, or of one of --coupond.
func (m *machine) startInstance(ctx context.Context, s *service) (*instance, error) {
	if path, isProgram := m.programs[s.contestant]; isProgram {
		return m.startProgram(ctx, path, m.siteOf(s).url)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	contestant := s.contestant
	if s.redis != nil {
		contestant = "Redis"
	}
	cmd := exec.CommandContext(ctx, self, serveFlag, contestant)
	cmd.Stderr = os.Stderr
	cmd.Env = append(os.Environ(),
		"RACE_POSTGRES="+m.siteOf(s).url,
		"RACE_MAX_CONNS="+strconv.Itoa(maxConns),
		"RACE_CLAIM_CONCURRENCY="+strconv.Itoa(m.concurrency),
	)
	if s.redis != nil {
		cmd.Env = append(cmd.Env, "RACE_REDIS="+s.redis.Address)
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	one := &instance{cmd: cmd, stdin: stdin}
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		one.stop()
		return nil, errors.New("its error is above")
	}
	one.address = strings.TrimSpace(address)
	return one, nil
}

func (i *instance) stop() {
	if i.stdin != nil {
		_ = i.stdin.Close()
	} else {
		_ = i.cmd.Process.Signal(syscall.SIGTERM) // it may have exited already
	}
	_ = i.cmd.Wait() // the service has printed its own error
}
