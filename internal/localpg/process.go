package localpg

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

//go:embed watchdog.sh
var watchdog string

// Commands to the watchdog.
const (
	stopFast      = "fast"      // end all sessions, write a checkpoint
	stopImmediate = "immediate" // no checkpoint: the next start recovers, as after a crash
)

const logFile = "server.log"

// launch starts the watchdog, which starts the server. The server outlives the context of Start.
// When it has ended, the cluster is unlocked.
func (s *Server) launch(settings map[string]string) (err error) {
	c := s.cluster
	log, err := openFile(filepath.Join(c.dir, logFile), os.O_APPEND|os.O_WRONLY)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	if s.logStart, err = log.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	// Not in $TMPDIR, because the path of a unix socket is limited to 107 bytes (103 on macOS).
	if s.sockets, err = os.MkdirTemp("/tmp", "localpg-"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(s.sockets)
		}
	}()
	if err := c.account.chown(s.sockets); err != nil {
		return err
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = reader.Close() }()

	arguments := []string{
		"-c", watchdog, "localpg", s.sockets, filepath.Join(s.installation.dir, "postgres"), // see watchdog.sh
		"-D", c.data, "-c", "listen_addresses=127.0.0.1",
		"-c", "port=" + strconv.Itoa(s.port), "-c", "unix_socket_directories=" + s.sockets,
	}
	for name, value := range settings {
		arguments = append(arguments, "-c", name+"="+value)
	}
	s.commands = writer
	s.watchdog = c.account.command(context.Background(), "/bin/sh", arguments...)
	s.watchdog.Stdout, s.watchdog.Stderr = log, log
	s.watchdog.ExtraFiles = []*os.File{reader, c.running} // fd 3 and 4
	if err := s.watchdog.Start(); err != nil {
		return errors.Join(err, writer.Close())
	}
	_ = c.running.Close() // the watchdog has a copy
	go func() {
		_ = s.watchdog.Wait() // the result is in ProcessState
		_ = s.commands.Close()
		_ = os.RemoveAll(s.sockets) // the watchdog does this, unless it was killed
		c.unlock()
		close(s.done)
	}()
	return nil
}

// Stop shuts the server down in fast mode (sessions are ended, and a checkpoint is written) and
// waits until it has ended. If that takes more than a minute, immediate mode and then SIGKILL
// follow. It returns an error if the server had already ended by itself. After Stop or Kill it does
// nothing.
func (s *Server) Stop() error {
	if err := s.end(stopFast); err != nil {
		return fmt.Errorf("localpg: stop PostgreSQL in %s: %w%s", s.Dir(), err, s.logTail())
	}
	return nil
}

// Kill shuts the server down in immediate mode, which is like a crash, and waits until it has
// ended. The next Start in the same Dir recovers all committed transactions.
func (s *Server) Kill() error {
	_ = s.end(stopImmediate) // fails also if the server has ended by itself
	return nil
}

// Done returns a channel that is closed when the server has ended, for any reason.
func (s *Server) Done() <-chan struct{} { return s.done }

// end sends a command that stops the server, and waits until it has ended. It returns an error if
// the server failed, or if it had ended by itself.
func (s *Server) end(command string) error {
	select {
	case <-s.done:
		if !s.stopped.Load() {
			return fmt.Errorf("the server had already ended by itself: %s", s.watchdog.ProcessState)
		}
		return nil
	default:
	}
	s.stopped.Store(true)
	_, _ = io.WriteString(s.commands, command+"\n") // fails if the server has just ended
	_ = s.commands.Close()
	<-s.done
	if !s.watchdog.ProcessState.Success() {
		return errors.New(s.watchdog.ProcessState.String())
	}
	return nil
}

// logTail returns the last lines that this run of the server has logged, to be appended to an error
// message.
func (s *Server) logTail() string {
	text, err := os.ReadFile(filepath.Join(s.Dir(), logFile))
	if err != nil {
		return ""
	}
	return lastLines(string(text[s.logStart:]))
}

// lastLines returns the last 12 lines of text, each on an indented line, to be appended to an error
// message.
func lastLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return "\n\t" + strings.Join(lines[max(0, len(lines)-12):], "\n\t")
}
