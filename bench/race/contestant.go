package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/rs/zerolog"

	"scalable-coupon-system/api"
	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
)

// serveFlag makes this program the service of one rival, in a process of its own, so that its CPU time can be told from
// the load generator's.
const serveFlag = "-serve-rival"

// serve answers for the rival of that name until standard input closes, which it does when the race ends however it ends.
// It prints the address it listens on.
func serve(ctx context.Context, name string) error {
	rival, err := contestants.Find(name)
	if err != nil {
		return err
	}
	maxConns, err := strconv.Atoi(os.Getenv("RACE_MAX_CONNS"))
	if err != nil {
		return err
	}
	lanes, err := strconv.Atoi(os.Getenv("RACE_LANES"))
	if err != nil {
		return err
	}
	store, stop, err := rival.Open(ctx, contestants.Config{
		PostgresURL:  os.Getenv("RACE_POSTGRES"),
		RedisAddress: os.Getenv("RACE_REDIS"),
		MaxConns:     int32(maxConns),
		Lanes:        lanes,
	})
	if err != nil {
		return err
	}
	defer stop()

	// The access log is written as in the real service, to a file that costs nothing.
	sink, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = sink.Close() }() // nothing to lose there
	log := zerolog.New(sink).With().Timestamp().Logger()
	server := api.NewServer(api.New(store, api.Options{Log: log}), log)
	var listening net.ListenConfig
	listener, err := listening.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() { _ = server.Serve(listener) }() // ends by Close
	_, err = fmt.Fprintln(os.Stdout, listener.Addr())
	if err == nil {
		_, err = io.Copy(io.Discard, os.Stdin)
	}
	return errors.Join(err, server.Close())
}

// entry is who takes part in a workload: a rival, on a database, doing what run says.
type entry struct {
	name     string // what the tables call it
	rival    string // a name of selectRivals
	database string
	run      runner
}

// contestant is an entry's service under way.
type contestant struct {
	entry
	service load.Service
	cmd     *exec.Cmd
	stdin   io.Closer
	redis   *contestants.RedisServer // nil unless it is one of the two that need it
}

// start starts the service of an entry on the machine.
func (m *machine) start(ctx context.Context, e entry) (*contestant, error) {
	c := &contestant{entry: e}
	rival := e.rival
	if fsync, is := strings.CutPrefix(rival, redisPrefix); is {
		rival = "Redis"
		dir, err := os.MkdirTemp(m.dir, "redis-")
		if err != nil {
			return nil, err
		}
		if c.redis, err = contestants.StartRedis(ctx, dir, fsync); err != nil {
			return nil, err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c.cmd = exec.CommandContext(ctx, self, serveFlag, rival)
	c.cmd.Stderr = os.Stderr
	c.cmd.Env = append(os.Environ(),
		"RACE_POSTGRES="+m.at(c).url,
		"RACE_MAX_CONNS="+strconv.Itoa(maxConns),
		"RACE_LANES="+strconv.Itoa(m.lanes),
	)
	if c.redis != nil {
		c.cmd.Env = append(c.cmd.Env, "RACE_REDIS="+c.redis.Address)
	}
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		c.stop()
		return nil, fmt.Errorf("the service of %s did not start", e.name)
	}
	c.service = load.Service{Address: strings.TrimSpace(address), Timeout: serviceTimeout}
	return c, nil
}

func (c *contestant) stop() {
	_ = c.stdin.Close()
	_ = c.cmd.Wait() // its standard error has said what there is to say
	if c.redis != nil {
		c.redis.Stop()
	}
}
