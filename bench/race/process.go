package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/procfs"
	"github.com/rs/zerolog"

	"scalable-coupon-system/api"
	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
)

// startProcess starts cmd and waits until ready returns nil. The process ends with the context of
// cmd; m.processes waits for that.
func (m *machine) startProcess(cmd *exec.Cmd, ready func() error) (pid int, err error) {
	if _, err := cmd.StdinPipe(); err != nil { // it ends with this process: see serve
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	exited := make(chan error, 1)
	m.processes.Go(func() { exited <- cmd.Wait() })
	timeout := time.After(30 * time.Second)
	for {
		err := ready()
		if err == nil {
			return cmd.Process.Pid, nil
		}
		select {
		case exit := <-exited:
			return 0, fmt.Errorf("%s has ended: %w", cmd.Path, errors.Join(exit, err))
		case <-timeout:
			return 0, fmt.Errorf("%s is not ready: %w", cmd.Path, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// freePort returns a port of 127.0.0.1 that nothing listens on.
func freePort(ctx context.Context) (string, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return strconv.Itoa(listener.Addr().(*net.TCPAddr).Port), listener.Close()
}

// contestantVariable makes this program the service of a contestant. The race measures the CPU time
// of each process, so each contestant has its own.
const contestantVariable = "RACE_CONTESTANT"

// startService starts the service of an entry, and its Redis if it uses one. They end with ctx. The
// access log goes to the null device, because the race does not measure disks.
func (m *machine) startService(ctx context.Context, e *entry) (err error) {
	database := m.postgres.URL(e.database)
	switch {
	case e.Appendfsync != "":
		e.databasePid, database, err = m.startRedis(ctx, e.Appendfsync)
	case e.Table != "":
		e.databasePid = m.postgres.Pid()
	}
	port, errPort := freePort(ctx)
	self, errSelf := os.Executable()
	if err := errors.Join(err, errPort, errSelf); err != nil {
		return err
	}
	e.client = load.Service{Address: "127.0.0.1:" + port, Timeout: requestTimeout}
	cmd := exec.CommandContext(ctx, cmp.Or(e.Binary, self), "serve")
	if e.Binary == "" { // it writes the access log to standard output; a binary writes it here
		cmd.Stderr = os.Stderr
	}
	cmd.Env = append(os.Environ(),
		"DATABASE_URL="+database,
		"LISTEN_ADDR="+e.client.Address,
		"LOG_FORMAT=json",
		"DB_MAX_CONNS="+strconv.Itoa(contestants.MaxConns),
		contestantVariable+"="+e.Name,
	)
	e.pid, err = m.startProcess(cmd, func() error { return e.client.Create(ctx, "ready", 1) })
	return err
}

// serve runs the service of a contestant, with the settings of startService, until standard input
// is closed. That happens however the race ends.
func serve(ctx context.Context, name string) error {
	all := contestants.All()
	i := slices.IndexFunc(all, func(c contestants.Contestant) bool { return c.Name == name })
	store, errStore := all[i].Open(ctx, os.Getenv("DATABASE_URL"))
	listener, errListener := new(net.ListenConfig).Listen(ctx, "tcp", os.Getenv("LISTEN_ADDR"))
	if err := errors.Join(errStore, errListener); err != nil {
		return err
	}
	log := zerolog.New(os.Stdout).With().Timestamp().Logger()
	server := api.NewServer(api.New(store, api.Options{Log: log}), log)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = server.Close() // Serve returns then
	}()
	return server.Serve(listener)
}

// startRedis starts a Redis with an append-only file, in the machine's folder, and no snapshots.
// appendfsync is "always" or "everysec".
func (m *machine) startRedis(ctx context.Context, appendfsync string) (pid int, address string, err error) {
	port, err := freePort(ctx)
	if err != nil {
		return 0, "", err
	}
	cmd := exec.CommandContext(ctx, "redis-server", "--bind", "127.0.0.1", "--port", port,
		"--save", "", "--appendonly", "yes", "--appendfsync", appendfsync)
	if cmd.Dir, err = os.MkdirTemp(m.dir, "redis-"); err != nil {
		return 0, "", err
	}
	pid, err = m.startProcess(cmd, func() error { return exec.CommandContext(ctx, "redis-cli", "-p", port, "ping").Run() })
	return pid, "127.0.0.1:" + port, err
}

// cpuTime returns the CPU time of a process, withChildren that of its children, too: backends of
// PostgreSQL. Without /proc (macOS) it is 0, and the tables have no such column.
func cpuTime(pid int, withChildren bool) time.Duration {
	processes, err := procfs.AllProcs()
	if err != nil {
		return 0
	}
	ticks := 0
	for _, p := range processes {
		stat, err := p.Stat()
		if err != nil {
			continue // it has ended
		}
		if p.PID == pid || withChildren && stat.PPID == pid {
			ticks += int(stat.UTime + stat.STime)
		}
		if p.PID == pid && withChildren {
			ticks += stat.CUTime + stat.CSTime // of children that have ended
		}
	}
	return time.Duration(ticks) * (time.Second / 100) // USER_HZ is 100 on every Linux
}
