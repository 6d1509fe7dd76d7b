package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"time"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/procmem"
)

// instance is a coupond process. It keeps its address when it is restarted.
type instance struct {
	log, binary, database string
	address               string

	// Only the goroutine that injects faults into the service uses it. It is nil after kill and stop.
	cmd *exec.Cmd
}

// start starts the process. It must not run already.
func (i *instance) start() error {
	log, err := os.OpenFile(i.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the process has a descriptor of its own
	// Without a context that ends: it runs until stop or kill.
	cmd := exec.CommandContext(context.Background(), i.binary, "serve")
	cmd.Env = append(os.Environ(), "DATABASE_URL="+i.database, "LISTEN_ADDR="+i.address, "CLAIM_TIMEOUT="+claimTimeout.String(),
		"LOG_LEVEL=warn", "LOG_FORMAT=json", procmem.GoLimit)
	cmd.Stdout, cmd.Stderr = log, log
	// An interrupt from the terminal must reach this program only.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	i.cmd = cmd
	return nil
}

// kill kills the process, as a crash would.
func (i *instance) kill() {
	if i.cmd != nil {
		_ = i.cmd.Process.Kill() // it may have exited already
		_ = i.cmd.Wait()
		i.cmd = nil
	}
}

// stop sends SIGTERM and waits until the process exits. It fails if the process does not exit in
// time, or with a status other than 0, which means that it did not answer every request.
func (i *instance) stop() error {
	if i.cmd == nil {
		return errors.New("the instance is not running")
	}
	cmd := i.cmd
	i.cmd = nil
	tooLate := time.AfterFunc(recoveryTimeout, func() { _ = cmd.Process.Kill() })
	defer tooLate.Stop()
	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
		return fmt.Errorf("an instance did not exit with status 0 within %s of SIGTERM: %w; see %s", recoveryTimeout, err, i.log)
	}
	return nil
}

// waitHealthy waits until /health returns 200.
func (i *instance) waitHealthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, recoveryTimeout)
	defer cancel()
	client := load.NewClient(i.address, 5*time.Second)
	defer client.Close()
	for {
		response, err := client.Get(ctx, "/health")
		if err == nil && response.Status == http.StatusOK {
			return nil
		}
		client.Close() // the next attempt may reach another process
		if pause(ctx, 20*time.Millisecond); ctx.Err() != nil {
			return fmt.Errorf("%s is not healthy: status %d %s: %w", i.address, response.Status, response.Body, errors.Join(err, ctx.Err()))
		}
	}
}

// memory returns the peak of the resident set of the process since the last call, and the bytes
// that wait in the send buffers of its HTTP connections; in all.
func (i *instance) memory() (int64, error) {
	if i.cmd == nil {
		return 0, errors.New("the instance is not running")
	}
	pid := i.cmd.Process.Pid
	peak, err := procmem.Peak(pid)
	queued, problem := procmem.SendBuffers(i.address)
	return peak + queued, errors.Join(err, procmem.ResetPeak(pid), problem)
}
