package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"scalable-coupon-system/internal/procmem"
)

// instance is a coupond process. It keeps its address when it is restarted.
type instance struct {
	binary, log, database string
	address               string

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{} // of cmd
}

// newInstance reserves an address for an instance that is started later.
func newInstance(ctx context.Context, binary, log, database string) (*instance, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return &instance{binary: binary, log: log, database: database, address: listener.Addr().String()}, listener.Close()
}

// start starts the process. It must not run already.
func (i *instance) start() error {
	i.mu.Lock()
	defer i.mu.Unlock()
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
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait() // stop reads the exit code
	}()
	i.cmd, i.exited = cmd, exited
	return nil
}

// kill kills the process, as a crash would. It may have exited already.
func (i *instance) kill() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.cmd != nil {
		_ = i.cmd.Process.Kill() // it may have exited already
		<-i.exited
		i.cmd = nil
	}
}

// stop sends SIGTERM and waits until the process exits. It fails if the process does not exit in
// time, or with a status other than 0, which means that it did not answer every request.
func (i *instance) stop() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.cmd == nil {
		return errors.New("the instance is not running")
	}
	if err := i.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-i.exited:
	case <-time.After(recoveryTimeout):
		_ = i.cmd.Process.Kill() // the error below is enough
		return fmt.Errorf("an instance did not exit within %s of SIGTERM", recoveryTimeout)
	}
	code := i.cmd.ProcessState.ExitCode()
	i.cmd = nil
	if code != 0 {
		return fmt.Errorf("an instance exited with status %d after SIGTERM; see %s", code, i.log)
	}
	return nil
}

// waitHealthy waits until /health returns 200, or until ctx ends.
func (i *instance) waitHealthy(ctx context.Context) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	last := "no answer"
	for ; ctx.Err() == nil; pause(ctx, 20*time.Millisecond) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+i.address+"/health", nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			last = err.Error()
			continue
		}
		_ = response.Body.Close() // only the status matters
		if response.StatusCode == http.StatusOK {
			return nil
		}
		last = response.Status
	}
	return fmt.Errorf("%s is not healthy: %s", i.address, last)
}

// memory returns the peak of the resident set of the process since the last call, and the bytes
// that wait in the send buffers of its HTTP connections; in all.
func (i *instance) memory() (int64, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.cmd == nil {
		return 0, errors.New("the instance is not running")
	}
	peak, err := procmem.Peak(i.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	if err = procmem.ResetPeak(i.cmd.Process.Pid); err != nil {
		return 0, err
	}
	queued, err := procmem.SendBuffers(i.address)
	return peak + queued, err
}
