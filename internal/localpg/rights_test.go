package localpg

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// victim creates a directory of the current user with a file in it. check fails if that is gone.
func victim(t *testing.T, dir string) (check func()) {
	t.Helper()
	must(t, os.Mkdir(dir, 0o700))
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, []byte("content"), 0o600))
	return func() {
		t.Helper()
		if content, err := os.ReadFile(file); err != nil || string(content) != "content" {
			t.Errorf("%s: %q, %v", file, content, err)
		}
	}
}

// The database's superuser runs programs as the server's account. They inherit the server's open
// files, but cannot write what the next Start of root reads: it removes a directory named there.
func TestStart_ignoresWhatTheServerWrites(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	path := filepath.Join(newDir(t), "victim")
	check := victim(t, path)
	child := startChild(t, "hold", dir, "")
	child.ready(t)
	address, err := Running(dir)
	must(t, err)
	state := fmt.Sprintf(`{"sockets":"%s/../..%s"}`, filepath.Dir(path), path)
	query(t, address.URL("postgres"), fmt.Sprintf("copy (select rpad('%s', %d)) to program 'cat >&4'", state, stateSize)) // fd 4: see watchdog.sh
	if after, err := Running(dir); err != nil || after.state != address.state {
		t.Errorf("the state is %+v, %v; it was %+v", after, err, address.state)
	}
	child.kill() // it does not write the file any more

	server := startIn(t, dir)
	wantQuery(t, server.URL("postgres"), "select 1", "1")
	check()
}

// Whatever the lock file says, Start removes no directory but a socket directory of the server's
// account.
func TestStart_socketDirToRemove(t *testing.T) {
	t.Parallel()
	numbered := fmt.Sprintf("%s%d", socketPrefix, rand.Uint32())
	stale := fmt.Sprintf("%s%d", socketPrefix, rand.Uint32())
	account, err := serverAccount("")
	must(t, err)
	must(t, os.Mkdir(stale, 0o700))
	must(t, account.chown(stale))
	path := filepath.Join(newDir(t), "victim")
	checks := []func(){victim(t, path)}
	paths := []string{path, filepath.Dir(path) + "/../.." + path, stale + "/../.." + path, stale}
	if os.Geteuid() == 0 { // root's own directory, of a matching name; the account may not remove it
		paths, checks = append(paths, numbered), append(checks, victim(t, numbered))
	}
	for _, path := range paths {
		dir := newCluster(t)
		must(t, os.WriteFile(filepath.Join(dir, lockFile), fmt.Appendf(nil, `{"port":0,"sockets":%q}`, path), 0o600))
		must(t, startIn(t, dir).Stop())
	}
	for _, check := range checks {
		check()
	}
	if _, err := os.Stat(stale); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the stale socket directory was not removed: %v", err)
	}
}

// Root may be using a directory of another user, who has put a link there.
func TestStart_followsNoLink(t *testing.T) {
	t.Parallel()
	for _, name := range []string{lockFile, runningFile, "server.log"} {
		dir, target := newCluster(t), filepath.Join(newDir(t), "target")
		must(t, os.WriteFile(target, []byte("content"), 0o600))
		must(t, os.Symlink(target, filepath.Join(dir, name)))
		server, err := Start(t.Context(), Options{Dir: dir, Settings: map[string]string{"fsync": "off"}})
		if !errors.Is(err, syscall.ELOOP) {
			t.Errorf("%s is a link: %v", name, err)
		}
		if err == nil {
			must(t, server.Stop())
		}
		if content, err := os.ReadFile(target); err != nil || string(content) != "content" {
			t.Errorf("%s is a link: its target has %q, %v", name, content, err)
		}
		must(t, os.Remove(filepath.Join(dir, name)))
	}
}
