package localpg

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
)

//go:embed watchdog.sh
var watchdog string

// Commands to the watchdog.
const (
	stopFast      = "fast"      // end all sessions, write a checkpoint
	stopImmediate = "immediate" // no checkpoint: the next start recovers, as after a crash
	keepRunning   = "keep"      // keep the server running when this process ends
)

// process is one run of the server, with its watchdog.
type process struct {
	cmd      *exec.Cmd // the watchdog
	commands *os.File  // the pipe to the watchdog, for one command; the server ends when it closes
	stopped  atomic.Bool
	done     chan struct{} // closed when the watchdog and the server have ended

	log      string // path of the server's log
	logStart int64  // size of the log when the server was started, in bytes
}

// startProcess starts the watchdog, which starts the server. The server outlives the context of
// Start. When it has ended, the cluster is unlocked.
func (c *cluster) startProcess(arguments []string) (*process, error) {
	log, err := openFile(filepath.Join(c.dir, "server.log"), os.O_APPEND|os.O_WRONLY)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	size, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = reader.Close() }()

	p := &process{commands: writer, done: make(chan struct{}), log: log.Name(), logStart: size}
	p.cmd = c.account.command(context.Background(), "/bin/sh", append([]string{"-c", watchdog, "localpg"}, arguments...)...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.ExtraFiles = []*os.File{reader, c.running} // fd 3 and 4
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(err, writer.Close())
	}
	_ = c.running.Close() // the watchdog has a copy
	sockets := arguments[0]
	go func() {
		_ = p.cmd.Wait() // the result is in ProcessState
		_ = p.commands.Close()
		_ = os.RemoveAll(sockets) // the watchdog does this, unless it was killed
		c.unlock()
		close(p.done)
	}()
	return p, nil
}

func (p *process) command(command string) error {
	_, err := io.WriteString(p.commands, command+"\n")
	return errors.Join(err, p.commands.Close())
}

// end sends a command that stops the server, and waits until it has ended. It returns an error if
// the server failed, or if it had ended by itself.
func (p *process) end(command string) error {
	select {
	case <-p.done:
		if !p.stopped.Load() {
			return fmt.Errorf("the server had already ended by itself: %s", p.cmd.ProcessState)
		}
		return nil
	default:
	}
	p.stopped.Store(true)
	_ = p.command(command) // fails if the server has just ended
	<-p.done
	if !p.cmd.ProcessState.Success() {
		return errors.New(p.cmd.ProcessState.String())
	}
	return nil
}

// logTail returns the last lines that this run of the server has logged, to be appended to an error
// message.
func (p *process) logTail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return ""
	}
	return lastLines(string(text[p.logStart:]))
}

// lastLines returns the last 12 lines of text, each on an indented line, to be appended to an error
// message.
func lastLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return "\n\t" + strings.Join(lines[max(0, len(lines)-12):], "\n\t")
}
