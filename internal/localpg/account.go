package localpg

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

// account is the operating system user that initdb and postgres run as. nil is the current user.
type account struct{ uid, gid uint32 }

// serverAccount returns the account for a data directory, which may not exist yet. Only root can
// choose one: the owner of data, so that a cluster keeps its user. If data does not exist, it is
// the user postgres, or else nobody, which has no privileges.
func serverAccount(data string) (*account, error) {
	owner, owned := ownerOf(data)
	switch {
	case os.Geteuid() != 0 && owned && int(owner) != os.Geteuid():
		return nil, fmt.Errorf("%s is owned by %s: run this as that user or as root", data, userName(owner))
	case os.Geteuid() != 0:
		return nil, nil
	case owned && owner == 0:
		return nil, fmt.Errorf("%s is owned by root, and PostgreSQL does not run as root: chown -R postgres %[1]s", data)
	case owned:
		a := &account{uid: owner, gid: owner}
		if u, err := user.LookupId(strconv.FormatUint(uint64(owner), 10)); err == nil {
			a.gid = parseID(u.Gid)
		}
		return a, nil
	}
	for _, name := range []string{"postgres", "_postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil && u.Uid != "0" {
			return &account{uid: parseID(u.Uid), gid: parseID(u.Gid)}, nil
		}
	}
	const nobody = 65534 // on Linux, for an image without /etc/passwd
	return &account{uid: nobody, gid: nobody}, nil
}

// parseID parses a user or group ID. On macOS the user nobody has the ID -2.
func parseID(text string) uint32 {
	n, _ := strconv.ParseInt(text, 10, 64) // IDs are numbers on Unix
	return uint32(n)
}

func userName(uid uint32) string {
	if u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		return u.Username
	}
	return "uid " + strconv.FormatUint(uint64(uid), 10)
}

// ownerOf returns the user ID of the owner of path, and false if path does not exist.
func ownerOf(path string) (uint32, bool) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return stat.Uid, ok
}

// command prepares a program that runs as the account. Its working directory is /, which every user
// may enter. It has its own process group, so that the terminal's Ctrl-C does not reach it; when
// ctx ends, the whole group is killed.
func (a *account) command(ctx context.Context, program string, arguments ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, arguments...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if a != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

// canEnter reports whether the account may enter dir. The kernel decides, because access control
// lists, mounts and security modules matter as well as file modes.
func (a *account) canEnter(ctx context.Context, dir string) bool {
	return a == nil || a.command(ctx, "/bin/sh", "-c", `cd -- "$0"`, dir).Run() == nil
}

// chown makes the account the owner of path.
func (a *account) chown(path string) error {
	if a == nil {
		return nil
	}
	return os.Lchown(path, int(a.uid), int(a.gid))
}
