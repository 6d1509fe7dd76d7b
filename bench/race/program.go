package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"scalable-coupon-system/bench/race/contestants"
)

// Programs are coupond binaries, for example of two commits, that take part as they are. They run
// wherever coupond does, in turn with it and with each other.

// programPrefix begins the names of programs among the names of contestants.
const programPrefix = contestants.Coupond + " "

// isCoupond reports whether a contestant is this source's coupond or a program.
func isCoupond(contestant string) bool {
	return contestant == contestants.Coupond || strings.HasPrefix(contestant, programPrefix)
}

var programName = regexp.MustCompile("^[a-z][a-z0-9]{0,19}$")

// parsePrograms returns the paths of the programs that the flag --coupond names, by contestant.
func parsePrograms(flags []string) (map[string]string, error) {
	programs := make(map[string]string, len(flags))
	for _, flag := range flags {
		name, path, _ := strings.Cut(flag, "=")
		if !programName.MatchString(name) || path == "" {
			return nil, fmt.Errorf("--coupond %q: want name=path, with a name of lower-case letters and digits, such as old=/tmp/coupond", flag)
		}
		if _, twice := programs[programPrefix+name]; twice {
			return nil, fmt.Errorf("--coupond %q: there is already a program of this name", flag)
		}
		found, err := exec.LookPath(path)
		if err != nil {
			return nil, fmt.Errorf("--coupond %q: %w", flag, err)
		}
		programs[programPrefix+name] = found
	}
	return programs, nil
}

// databaseOf returns the name of a contestant's own database on the race's server.
func (m *machine) databaseOf(contestant string) string {
	if _, isProgram := m.programs[contestant]; isProgram {
		return database + "_" + strings.TrimPrefix(contestant, programPrefix)
	}
	return database
}

// installPrograms creates the database of each program, with the schema that the program installs.
func (m *machine) installPrograms(ctx context.Context) error {
	for contestant, path := range m.programs {
		name := m.databaseOf(contestant)
		conn, err := createEmptyDatabase(ctx, m.postgres, name)
		if err != nil {
			return err
		}
		if err := conn.Close(ctx); err != nil {
			return err
		}
		migrate := exec.CommandContext(ctx, path, "migrate")
		migrate.Env = append(os.Environ(), "DATABASE_URL="+m.postgres.URL(name))
		if out, err := migrate.CombinedOutput(); err != nil {
			return fmt.Errorf("%s migrate: %w\n%s", path, err, out)
		}
	}
	return nil
}

// startProgram starts coupond at path and waits until it is healthy. It writes its access log to
// the null device, as the contestants do.
func (m *machine) startProgram(ctx context.Context, path, url string) (*instance, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	one := &instance{address: listener.Addr().String(), cmd: exec.CommandContext(ctx, path, "serve")}
	if err := listener.Close(); err != nil {
		return nil, err
	}
	one.cmd.Env = append(os.Environ(),
		"DATABASE_URL="+url,
		"LISTEN_ADDR="+one.address,
		"LOG_FORMAT=json",
		"DB_MAX_CONNS="+strconv.Itoa(maxConns),
		"CLAIM_CONCURRENCY="+strconv.Itoa(m.concurrency),
	)
	if err := one.cmd.Start(); err != nil {
		return nil, err
	}
	if err := waitHealthy(ctx, one.address); err != nil {
		one.stop()
		return nil, fmt.Errorf("%s serve: %w", path, err)
	}
	return one, nil
}

// waitHealthy waits until the service answers /health with 200, but not for long.
func waitHealthy(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	last := errors.New("no answer")
	for ctx.Err() == nil {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/health", nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err == nil {
			_ = response.Body.Close() // only the status matters
			if response.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(response.Status)
		}
		last = err
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("it did not become healthy: %w", last)
}
