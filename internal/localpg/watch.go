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

// Orders to the watchdog: the names of signals, and keep.
const (
	orderFast      = "INT"  // end all sessions, write everything down, stop
	orderImmediate = "QUIT" // stop as in a crash
	orderEnd       = "KILL"
	orderKeep      = "keep" // go on when our end of the pipe closes
)

// run is one life of the server, watchdog included.
type run struct {
	cmd     *exec.Cmd // the watchdog
	held    *lock
	sockets string
	log     string // the server's log, and how long it was before this life
	begin   int64

	mu     sync.Mutex // guards the two below, and what the lock file says
	orders *os.File   // the pipe whose closing ends the server
	asked  bool       // the server was told to end

	done  chan struct{} // closed when watchdog and server have ended
	ended error         // how, valid after done: nil is an orderly end
}

// watch starts the server under its watchdog.
func (c *cluster) watch(sockets, postgres string, arguments []string, held *lock) (*run, error) {
	logFile, begin, err := c.openLog()
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer reader.Close()

	r := &run{
		held:    held.share(),
		sockets: sockets,
		log:     logFile.Name(),
		begin:   begin,
		orders:  writer,
		done:    make(chan struct{}),
	}
	// The server's life is not that of the context of Start.
	r.cmd = c.account.command(context.Background(), "/bin/sh",
		append([]string{"-c", watchdog, "localpg", sockets, postgres}, arguments...)...)
	r.cmd.Stdout, r.cmd.Stderr = logFile, logFile
	r.cmd.ExtraFiles = []*os.File{reader, held.file} // fd 3 and 4
	if err := r.cmd.Start(); err != nil {
		held.close()
		_ = writer.Close()
		return nil, err
	}
	go r.wait()
	return r, nil
}

// wait takes note of the server's end.
func (r *run) wait() {
	ended := r.cmd.Wait()

	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = ended
	_ = r.orders.Close()
	_ = os.RemoveAll(r.sockets) // for a watchdog that was killed
	// After kill -9 of the postmaster its sessions hold the lock a moment longer: nobody answers for them any more.
	_ = r.held.write(state{Port: readState(r.held.file).Port})
	r.held.close()
	close(r.done)
}

// note writes s to the lock file, unless the server has ended.
func (r *run) note(s state) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.done:
		return fmt.Errorf("it has ended: %w", r.ended)
	default:
		return r.held.write(s)
	}
}

// order tells the watchdog something.
func (r *run) order(order string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if order != orderKeep {
		r.asked = true
	}
	_, err := io.WriteString(r.orders, order+"\n")
	return err
}

// insist gives an order until the server has ended, for so long. It repeats itself every second, because a server that has only
// just been started does not listen to signals yet.
func (r *run) insist(order string, d time.Duration) bool {
	deadline := time.After(d)
	for {
		_ = r.order(order) // it fails when the server is just ending, which is waited for all the same
		select {
		case <-r.done:
			return true
		case <-deadline:
			return false
		case <-time.After(time.Second):
		}
	}
}

// stop ends the server in an orderly way.
func (r *run) stop() error {
	r.mu.Lock()
	asked := r.asked
	r.mu.Unlock()
	select {
	case <-r.done:
		if !asked {
			return fmt.Errorf("it had ended by itself: %w", r.ended)
		}
		return nil
	default:
	}

	switch {
	case r.insist(orderFast, time.Minute):
		return r.ended
	case r.insist(orderImmediate, 10*time.Second):
		return errors.New("it did not stop within a minute, and was shut down immediately")
	case r.insist(orderEnd, 10*time.Second):
		return errors.New("it did not stop within a minute, and was killed")
	default:
		return errEternal
	}
}

// kill ends the server as a crash does. The postmaster itself gives its children 5 seconds.
func (r *run) kill() error {
	if r.insist(orderImmediate, 10*time.Second) || r.insist(orderEnd, 10*time.Second) {
		return nil
	}
	return errEternal
}

var errEternal = errors.New("it does not end, not even by SIGKILL")

// maxLog is the size from which the server's log is put aside at a start, in bytes.
const maxLog = 10 << 20

// openLog opens the server's log for appending and tells its size.
func (c *cluster) openLog() (*os.File, int64, error) {
	path := filepath.Join(c.dir, "server.log")
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".old"); err != nil {
			return nil, 0, err
		}
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, 0, err
	}
	size, err := file.Seek(0, io.SeekEnd)
	return file, size, err
}

// lastLines are those that the server has logged in this life, for the end of an error.
func (r *run) lastLines() string {
	file, err := os.Open(r.log)
	if err != nil {
		return ""
	}
	defer file.Close()
	begin := r.begin
	if info, err := file.Stat(); err == nil {
		begin = max(begin, info.Size()-8<<10)
	}
	text, _ := io.ReadAll(io.NewSectionReader(file, begin, 8<<10))
	return tail(string(text))
}

// tail returns the last lines of a text, each on a line of its own below an error.
func tail(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if lines[0] == "" {
		return ""
	}
	lines = lines[max(0, len(lines)-12):]
	return "\n\t" + strings.Join(lines, "\n\t")
}

func isWrongPassword(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == pgerrcode.InvalidPassword
}
