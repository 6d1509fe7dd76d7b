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
	"sync"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"
)

//go:embed watchdog.sh
var watchdog string

// Commands to the watchdog: signal names, and keep.
const (
	stopFast      = "INT"  // end all sessions, write a checkpoint
	stopImmediate = "QUIT" // no checkpoint: the next start recovers, as after a crash
	stopKill      = "KILL"
	keepRunning   = "keep" // keep the server running when our end of the pipe closes
)

// process is one run of the server, with its watchdog.
type process struct {
	cmd      *exec.Cmd // the watchdog
	lock     *dirLock
	sockets  string
	log      string // path of the server's log
	logStart int64  // size of the log when the server was started, in bytes

	mu            sync.Mutex // guards commands, stopRequested and the content of the lock file
	commands      *os.File   // the pipe to the watchdog; the server ends when it closes
	stopRequested bool       // a command to end was sent

	done    chan struct{} // closed when the watchdog and the server have ended
	exitErr error         // valid after done; nil if the server shut down normally
}

// startProcess starts the server under its watchdog.
func (c *cluster) startProcess(sockets, postgres string, arguments []string, lock *dirLock) (*process, error) {
	logFile, logStart, err := c.openLog()
	if err != nil {
		return nil, err
	}
	defer func() { _ = logFile.Close() }()
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = reader.Close() }()

	p := &process{
		lock:     lock.retain(),
		sockets:  sockets,
		log:      logFile.Name(),
		logStart: logStart,
		commands: writer,
		done:     make(chan struct{}),
	}
	// The server outlives the context of Start.
	p.cmd = c.account.command(context.Background(), "/bin/sh",
		append([]string{"-c", watchdog, "localpg", sockets, postgres}, arguments...)...)
	p.cmd.Stdout, p.cmd.Stderr = logFile, logFile
	p.cmd.ExtraFiles = []*os.File{reader, lock.running} // fd 3 and 4
	if err := p.cmd.Start(); err != nil {
		lock.release()
		_ = writer.Close()
		return nil, err
	}
	go p.wait()
	return p, nil
}

// wait waits until the watchdog, and with it the server, has ended.
func (p *process) wait() {
	exitErr := p.cmd.Wait()

	p.mu.Lock()
	defer p.mu.Unlock()
	p.exitErr = exitErr
	_ = p.commands.Close()
	_ = os.RemoveAll(p.sockets) // the watchdog does this, unless it was killed
	p.lock.release()
	close(p.done)
}

// record writes s to the lock file, unless the server has ended.
func (p *process) record(s serverState) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return fmt.Errorf("the server has ended: %w", p.exitErr)
	default:
		return p.lock.write(s)
	}
}

// send sends a command to the watchdog.
func (p *process) send(command string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if command != keepRunning {
		p.stopRequested = true
	}
	_, err := io.WriteString(p.commands, command+"\n")
	return err
}

// sendUntilEnded sends a command until the server has ended, and reports whether it ended within
// timeout. It repeats the command every second, because a server that was just started may not
// handle signals yet.
func (p *process) sendUntilEnded(command string, timeout time.Duration) bool {
	deadline := time.After(timeout)
	for {
		_ = p.send(command) // fails if the server has just ended
		select {
		case <-p.done:
			return true
		case <-deadline:
			return false
		case <-time.After(time.Second):
		}
	}
}

// stop shuts the server down in fast mode. If that does not succeed in a minute, it uses immediate
// mode, and then SIGKILL.
func (p *process) stop() error {
	p.mu.Lock()
	stopRequested := p.stopRequested
	p.mu.Unlock()
	select {
	case <-p.done:
		if !stopRequested {
			return fmt.Errorf("the server had already ended by itself: %w", p.exitErr)
		}
		return nil
	default:
	}

	switch {
	case p.sendUntilEnded(stopFast, time.Minute):
		return p.exitErr
	case p.sendUntilEnded(stopImmediate, 10*time.Second):
		return errors.New("the server did not stop within a minute; it was shut down in immediate mode")
	case p.sendUntilEnded(stopKill, 10*time.Second):
		return errors.New("the server did not stop within a minute; it was killed")
	default:
		return errUnkillable
	}
}

// kill shuts the server down in immediate mode, which is like a crash. The postmaster gives its
// children 5 seconds.
func (p *process) kill() error {
	if p.sendUntilEnded(stopImmediate, 10*time.Second) || p.sendUntilEnded(stopKill, 10*time.Second) {
		return nil
	}
	return errUnkillable
}

var errUnkillable = errors.New("the server does not end, not even after SIGKILL")

// maxLog is the size, in bytes, above which a start renames the server's log to server.log.old.
const maxLog = 10 << 20

// openLog opens the server's log for appending and returns its size.
func (c *cluster) openLog() (*os.File, int64, error) {
	path := filepath.Join(c.dir, "server.log")
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".old"); err != nil {
			return nil, 0, err
		}
	}
	file, err := openFile(path, os.O_APPEND|os.O_WRONLY)
	if err != nil {
		return nil, 0, err
	}
	size, err := file.Seek(0, io.SeekEnd)
	return file, size, err
}

// logTail returns the last lines that this run of the server has logged, to be appended to an error
// message.
func (p *process) logTail() string {
	file, err := os.Open(p.log)
	if err != nil {
		return ""
	}
	defer func() { _ = file.Close() }()
	start := p.logStart
	if info, err := file.Stat(); err == nil {
		start = max(start, info.Size()-8<<10)
	}
	text, _ := io.ReadAll(io.NewSectionReader(file, start, 8<<10))
	return lastLines(string(text))
}

// lastLines returns the last 12 lines of text, each on an indented line, to be appended to an error
// message.
func lastLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if lines[0] == "" {
		return ""
	}
	lines = lines[max(0, len(lines)-12):]
	return "\n\t" + strings.Join(lines, "\n\t")
}

func isWrongPassword(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == pgerrcode.InvalidPassword
}
