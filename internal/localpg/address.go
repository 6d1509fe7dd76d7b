package localpg

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Address is where a running server is reached.
type Address struct {
	dir      string
	password string
	state    state
}

// Dir is the cluster's home, as an absolute path.
func (a *Address) Dir() string { return a.dir }

// Port is the server's TCP port on 127.0.0.1.
func (a *Address) Port() int { return a.state.Port }

// SocketDir is the folder of the server's unix socket: what psql takes as -h. Only the server's own user and root may enter it.
func (a *Address) SocketDir() string { return a.state.Sockets }

// Pid is the server's first process, the postmaster.
func (a *Address) Pid() int { return a.state.Postmaster }

// URL is the connection string of the superuser for database. It holds the password: it is for a driver, not for a screen.
func (a *Address) URL(database string) string {
	u := a.url(database)
	u.User = url.UserPassword(superuser, a.password)
	u.RawQuery = "sslmode=disable"
	return u.String()
}

// BinDir is the folder of the server's binaries. psql is there, too, unless they were downloaded.
func (a *Address) BinDir() string { return a.state.BinDir }

// Psql is the command line that opens database in psql, for a shell. It names the file with the password, not the password.
func (a *Address) Psql(database string) string {
	program := "psql"
	if _, err := exec.LookPath(program); err != nil {
		// Homebrew, for one, keeps older versions off the PATH.
		if beside := filepath.Join(a.state.BinDir, "psql"); isFile(beside) {
			program = quote(beside)
		}
	}
	u := a.url(database)
	u.User = url.User(superuser)
	// libpq takes a plus for a plus, and a bare slash reads better.
	u.RawQuery = "passfile=" + strings.NewReplacer("+", "%20", "%2F", "/").Replace(url.QueryEscape(filepath.Join(a.dir, passwordFile)))
	return program + " " + quote(u.String())
}

// quote makes one word for a shell.
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

const passwordFile = "pgpass"

// writePassword keeps password in dir, for libpq, too (its option passfile, or PGPASSFILE): any host, port and database.
func writePassword(dir, password string) error {
	path := filepath.Join(dir, passwordFile)
	return writeFile(path, "*:*:*:"+superuser+":"+password+"\n")
}

func readPassword(dir string) (string, error) {
	path := filepath.Join(dir, passwordFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s is missing, and without its password nobody can log in to the cluster beside it;"+
			" put the file back, or remove %s to start afresh", path, dir)
	}
	if err != nil {
		return "", err
	}
	password, ok := strings.CutPrefix(strings.TrimSpace(string(text)), "*:*:*:"+superuser+":")
	if !ok {
		return "", fmt.Errorf("%s does not hold what was written there: *:*:*:%s:<password>", path, superuser)
	}
	return password, nil
}
