package localpg

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
)

// Address says how to reach a running server.
type Address struct {
	dir   string
	login login
	state serverState
}

// Dir returns the cluster's home directory as an absolute path.
func (a *Address) Dir() string { return a.dir }

// Port returns the server's TCP port on 127.0.0.1.
func (a *Address) Port() int { return a.state.Port }

// SocketDir returns the directory of the server's unix socket, for psql --host. Only root and the
// server's own user may enter it.
func (a *Address) SocketDir() string { return a.state.Sockets }

// Pid returns the process ID of the postmaster, the server's first process.
func (a *Address) Pid() int { return a.state.Postmaster }

// URL returns the superuser's connection string for database. It contains the password: do not log
// it.
func (a *Address) URL(database string) string {
	u := a.url(database)
	u.User = url.UserPassword(a.login.user, a.login.password)
	u.RawQuery = noTLS
	return u.String()
}

// BinDir returns the directory of the server's binaries. It also contains psql, unless the binaries
// were downloaded.
func (a *Address) BinDir() string { return a.state.BinDir }

// Psql returns a shell command that opens database in psql. It contains the path of the password
// file, not the password. psql obeys the environment's variables of libpq (PG…).
//
// psql connects to the unix socket, and only if the server runs as the user that it should: once
// this server has ended, another user could listen on its port and ask for the password.
func (a *Address) Psql(database string) string {
	program := "psql"
	if _, err := exec.LookPath(program); err != nil {
		// Some packages, such as Homebrew's older versions, do not put psql on PATH.
		if beside := filepath.Join(a.state.BinDir, "psql"); isFile(beside) {
			program = quote(beside)
		}
	}
	u := a.url(database)
	u.User, u.Host = url.User(a.login.user), ""
	// libpq does not decode a plus as a space, and a plain slash is easier to read.
	value := func(text string) string {
		return strings.NewReplacer("+", "%20", "%2F", "/").Replace(url.QueryEscape(text))
	}
	u.RawQuery = noTLS + "&host=" + value(a.state.Sockets) + "&port=" + strconv.Itoa(a.state.Port) +
		"&passfile=" + value(filepath.Join(a.dir, passwordFile))
	if owner, ok := ownerOf(filepath.Join(a.dir, "data")); ok {
		// libpq knows users by name only, so the server's user must have one.
		if account, err := user.LookupId(strconv.FormatUint(uint64(owner), 10)); err == nil {
			u.RawQuery += "&requirepeer=" + value(account.Username)
		}
	}
	return program + " " + quote(u.String())
}

// quote quotes word for a shell.
func quote(word string) string { return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" }

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

func (a *Address) url(database string) *url.URL {
	return &url.URL{
		Scheme: "postgres",
		Host:   net.JoinHostPort("127.0.0.1", strconv.Itoa(a.state.Port)),
		Path:   "/" + database,
	}
}

// noTLS also keeps pgx from reading the user's own root certificate, which may not be valid.
const noTLS = "sslmode=disable&sslrootcert="

const passwordFile = "pgpass"

// login is the cluster's superuser.
type login struct{ user, password string }

// writeLogin writes l to dir in the format of libpq's password file, for any host, port and
// database.
func writeLogin(dir string, l login) error {
	path := filepath.Join(dir, passwordFile)
	return writeFile(path, anyDatabase+l.user+":"+l.password+"\n")
}

const anyDatabase = "*:*:*:"

func readLogin(dir string) (login, error) {
	path := filepath.Join(dir, passwordFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return login{}, fmt.Errorf("%s is missing, and the cluster cannot be used without the password in it;"+
			" restore the file, or remove %s to start with a new cluster", path, dir)
	}
	if err != nil {
		return login{}, err
	}
	line, isLogin := strings.CutPrefix(strings.TrimSpace(string(text)), anyDatabase)
	user, password, hasPassword := strings.Cut(line, ":")
	if !isLogin || !hasPassword {
		return login{}, fmt.Errorf("%s does not contain a line %s<user>:<password>;"+
			" restore the file, or remove %s to start with a new cluster", path, anyDatabase, dir)
	}
	return login{user, password}, nil
}
