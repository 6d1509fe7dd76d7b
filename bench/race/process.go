package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/redis/rueidis"
	"github.com/rs/zerolog"

	"scalable-coupon-system/api"
	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
)

// startProcess starts cmd and waits until ready returns nil. The process ends with the context of
// cmd; m.processes waits for that.
func (m *machine) startProcess(ctx context.Context, cmd *exec.Cmd, ready func() error) error {
	// Not a kill: the docker client then stops its container.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if _, err := cmd.StdinPipe(); err != nil { // it ends with this process: see serve
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan error, 1)
	m.processes.Go(func() { exited <- cmd.Wait() })
	timeout := time.After(30 * time.Second)
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case exit := <-exited:
			return fmt.Errorf("%s has ended: %w", cmd.Path, errors.Join(exit, err))
		case <-ctx.Done():
			return ctx.Err()
		case <-timeout:
			return fmt.Errorf("%s is not ready: %w", cmd.Path, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// freeAddress returns an address that nothing listens on.
func freeAddress(ctx context.Context) (string, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// service is the running service of a contestant.
type service struct {
	contestant contestants.Contestant
	database   string
	client     load.Service
	pid        int
	redis      rueidis.Client // nil: it uses none
}

// startService starts the service of a contestant, and its Redis if it uses one. They end with ctx.
// The access log goes to the null device, because the race does not measure disks.
func (r *race) startService(ctx context.Context, c contestants.Contestant, database string) (*service, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	s := &service{contestant: c, database: database, client: load.Service{Address: address, Timeout: requestTimeout}}
	var redisAddress string
	if c.Appendfsync != "" {
		if s.redis, redisAddress, err = r.startRedis(ctx, c.Appendfsync); err != nil {
			return nil, err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, cmp.Or(c.Binary, self), "serve")
	if c.Binary == "" {
		cmd.Stderr = os.Stderr
	}
	cmd.Env = append(os.Environ(),
		"DATABASE_URL="+r.postgres.URL(database),
		"LISTEN_ADDR="+address,
		"LOG_FORMAT=json",
		"DB_MAX_CONNS="+strconv.Itoa(maxConns),
		"CLAIM_CONCURRENCY="+cmp.Or(os.Getenv("CLAIM_CONCURRENCY"), "1"),
		redisVariable+"="+redisAddress,
		contestantVariable+"="+c.Name,
	)
	err = r.startProcess(ctx, cmd, func() error {
		if err := s.client.Create(ctx, "ready", 1); !errors.Is(err, load.ErrCouponExists) {
			return err
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.pid = cmd.Process.Pid
	return s, nil
}

// contestantVariable makes this program the service of a contestant. The race measures the CPU time
// of each process, so each contestant has its own.
const (
	contestantVariable = "RACE_CONTESTANT"
	redisVariable      = "RACE_REDIS"
)

// serve runs the service of a contestant, with the settings of startService, until ctx ends, or
// until standard input is closed. That happens however the race ends.
func serve(ctx context.Context, name string) error {
	contestant, err := contestants.Find(name)
	if err != nil {
		return err
	}
	concurrency, errConcurrency := strconv.Atoi(os.Getenv("CLAIM_CONCURRENCY"))
	store, errStore := contestant.Open(ctx, contestants.Config{
		PostgresURL: os.Getenv("DATABASE_URL"), RedisAddress: os.Getenv(redisVariable), MaxConns: maxConns, ClaimConcurrency: concurrency,
	})
	sink, errSink := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	listener, errListener := new(net.ListenConfig).Listen(ctx, "tcp", os.Getenv("LISTEN_ADDR"))
	if err := errors.Join(errConcurrency, errStore, errSink, errListener); err != nil {
		return err
	}
	log := zerolog.New(sink).With().Timestamp().Logger()
	server := api.NewServer(api.New(store, api.Options{Log: log}), log)
	context.AfterFunc(ctx, func() { _ = server.Close() }) // Serve returns then
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = server.Close()
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// redisImage is the container image of Redis that is used where no redis-server is installed.
const redisImage = "redis:7"

// redisCommand returns the command that runs Redis on this machine, or nil. On systems other than
// Linux, containers run in a virtual machine behind a port proxy, which would slow Redis down.
func redisCommand(ctx context.Context) []string {
	if _, err := exec.LookPath("redis-server"); err == nil {
		return []string{"redis-server"}
	}
	if runtime.GOOS == "linux" && exec.CommandContext(ctx, "docker", "image", "inspect", redisImage).Run() == nil {
		return []string{"docker", "run", "--rm", "--network", "host", redisImage}
	}
	return nil
}

// startRedis starts a Redis with an append-only file and no snapshots. appendfsync is "always" or
// "everysec". Its data are in the machine's folder or in its container.
func (m *machine) startRedis(ctx context.Context, appendfsync string) (client rueidis.Client, address string, err error) {
	if address, err = freeAddress(ctx); err != nil {
		return nil, "", err
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, "", err
	}
	command := append(redisCommand(ctx), "--bind", host, "--port", port, "--save", "", "--appendonly", "yes", "--appendfsync", appendfsync)
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	if cmd.Dir, err = os.MkdirTemp(m.dir, "redis-"); err != nil {
		return nil, "", err
	}
	err = m.startProcess(ctx, cmd, func() (err error) {
		client, err = rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{address}, DisableCache: true})
		return err
	})
	if err != nil {
		return nil, "", err
	}
	context.AfterFunc(ctx, client.Close)
	return client, address, nil
}

var redisCPU = regexp.MustCompile(`used_cpu_(?:sys|user)(?:_children)?:([0-9.]+)`)

// redisCPUTime returns the CPU time that Redis reports of itself and its children.
func redisCPUTime(ctx context.Context, client rueidis.Client) (total time.Duration, err error) {
	info, err := client.Do(ctx, client.B().Info().Section("cpu").Build()).ToString()
	if err != nil {
		return 0, err
	}
	for _, match := range redisCPU.FindAllStringSubmatch(info, -1) {
		one, err := time.ParseDuration(match[1] + "s")
		if err != nil {
			return 0, err
		}
		total += one
	}
	return total, nil
}
