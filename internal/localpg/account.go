package localpg

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// account is the user as whom initdb and postgres run; nil is the user we are.
type account struct {
	name     string
	uid, gid uint32
}

// serverAccount chooses the account for the cluster with data, a directory that may be missing yet: whoever owns it, so that a
// cluster keeps its user; else the user postgres; else nobody. Only root can choose.
func serverAccount(data string) (*account, error) {
	owner, owned := ownerOf(data)
	if os.Geteuid() != 0 {
		if owned && int(owner) != os.Geteuid() {
			return nil, fmt.Errorf("%s belongs to %s: run this as that user, or as root", data, userName(owner))
		}
		return nil, nil
	}
	if owned && owner != 0 {
		if u, err := user.LookupId(strconv.FormatUint(uint64(owner), 10)); err == nil {
			return accountOf(u)
		}
		return &account{name: userName(owner), uid: owner, gid: owner}, nil
	}
	for _, name := range []string{"postgres", "_postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil && u.Uid != "0" {
			return accountOf(u)
		}
	}
	return &account{name: "uid 65534", uid: 65534, gid: 65534}, nil // Linux's nobody, in an image without a list of users
}

func accountOf(u *user.User) (*account, error) {
	uid, err := parseID(u.Uid)
	if err != nil {
		return nil, err
	}
	gid, err := parseID(u.Gid)
	return &account{name: u.Username, uid: uid, gid: gid}, err
}

// parseID reads a user's or group's number; macOS writes nobody's as -2.
func parseID(text string) (uint32, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	return uint32(n), err
}

func userName(uid uint32) string {
	if u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		return u.Username
	}
	return "uid " + strconv.FormatUint(uint64(uid), 10)
}

// ownerOf tells whose a file is; false when there is none.
func ownerOf(path string) (uint32, bool) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return stat.Uid, true
}

// command prepares a program that runs as the account, from the root directory (which everybody may enter), in a process group
// of its own, so that the terminal's Ctrl-C does not reach it; when ctx ends, that whole group is killed. Variables by which
// libpq and postgres could be led elsewhere stay behind.
func (a *account) command(ctx context.Context, program string, arguments ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, arguments...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if a != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "PG") {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	return cmd
}

// canReach tells whether the account may pass through dir. It asks the kernel: modes are not all there is (access control
// lists, mounts, security modules).
func (a *account) canReach(ctx context.Context, dir string) bool {
	return a == nil || a.command(ctx, "/bin/sh", "-c", `cd -- "$0"`, dir).Run() == nil
}

// own gives paths to the account.
func (a *account) own(paths ...string) error {
	if a == nil {
		return nil
	}
	for _, path := range paths {
		if err := os.Lchown(path, int(a.uid), int(a.gid)); err != nil {
			return err
		}
	}
	return nil
}

// ownAll gives dir and everything below to the account.
func (a *account) ownAll(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return a.own(path)
	})
}
