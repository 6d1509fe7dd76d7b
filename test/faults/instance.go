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
)

// instance is one coupond, a process of its own, that keeps its address through its restarts.
type instance struct {
	binary, log, database string
	address               string

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{} // of cmd
}

func newInstance(binary, log, database string) (*instance, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return &instance{binary: binary, log: log, database: database, address: listener.Addr().String()}, listener.Close()
}

// start starts the process; a second one would find the port taken.
func (i *instance) start() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	log, err := os.OpenFile(i.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(i.binary, "serve")
	cmd.Env = append(os.Environ(), "DATABASE_URL="+i.database, "LISTEN_ADDR="+i.address, "CLAIM_TIMEOUT="+claimTimeout.String(),
		"LOG_LEVEL=warn", "LOG_FORMAT=json")
	cmd.Stdout, cmd.Stderr = log, log
	// The terminal's Ctrl-C is ours.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait() // its exit code tells
	}()
	i.cmd, i.exited = cmd, exited
	return nil
}

// kill ends the process as a crash does; one that has ended is fine.
func (i *instance) kill() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.cmd == nil {
		return
	}
	_ = i.cmd.Process.Kill() // it may have ended already
	<-i.exited
	i.cmd = nil
}

// stop asks the process to end, and waits. The error tells when it did not answer every request, or did not end.
func (i *instance) stop() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.cmd == nil {
		return errors.New("the instance does not run")
	}
	if err := i.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-i.exited:
	case <-time.After(comeBackWithin):
		_ = i.cmd.Process.Kill() // the error says all
		return fmt.Errorf("an instance did not end within %s of SIGTERM", comeBackWithin)
	}
	code := i.cmd.ProcessState.ExitCode()
	i.cmd = nil
	if code != 0 {
		return fmt.Errorf("an instance ended with %d after SIGTERM; see %s", code, i.log)
	}
	return nil
}

// healthy waits until /health says so.
func (i *instance) healthy(ctx context.Context) error {
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
		_ = response.Body.Close() // the status is all
		if response.StatusCode == http.StatusOK {
			return nil
		}
		last = response.Status
	}
	return fmt.Errorf("%s is not healthy: %s", i.address, last)
}
