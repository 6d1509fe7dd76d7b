//go:build dba

package handbook_test

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write into docs/dba.md what the programs answer")

// The handbook does not lie: all that its ```console blocks type is typed, from top to bottom, and every answer compared.
//
//	$ command      in a shell, whose PostgreSQL programs find the database; $NEW is another, empty one on a fresh cluster
//	A=# statement  in the psql session A, which stays; lines that go on begin with A-#
//	… -- waits     that statement has to wait for a lock, and has no answer yet
//	A:             its answer, which has come by now
//
// What differs between runs is made equal before it is compared: see alike.
func TestHandbook(t *testing.T) {
	// Without autovacuum, which could come at any moment, the handbook's counts are the same in each run.
	c, fresh := newCluster(t), newCluster(t)
	must(t, c.env("postgres", "postgres"), `psql -qc "alter system set autovacuum = off" -c "select pg_reload_conf()"`)
	for _, each := range []*cluster{c, fresh} {
		must(t, each.env("postgres", "postgres"), `psql -qc "create database coupons template template0 encoding 'UTF8'"`)
	}
	h := &hands{
		t:        t,
		env:      append(c.env("postgres", "coupons"), "NEW="+fresh.URL("coupons"), "SERVER="+fmt.Sprintf("127.0.0.1:%d", c.Port())),
		sessions: map[string]*session{},
		admin:    c,
	}
	must(t, h.env, "coupond migrate")

	text, err := os.ReadFile("../../docs/dba.md")
	if err != nil {
		t.Fatal(err)
	}
	written, commands := h.typeAll(strings.Split(string(text), "\n"))
	if commands < 30 {
		t.Errorf("only %d commands were found", commands)
	}
	if *update {
		if err := os.WriteFile("../../docs/dba.md", []byte(strings.Join(written, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// hands type.
type hands struct {
	t        *testing.T
	env      []string
	sessions map[string]*session
	admin    *cluster
}

var (
	shellLine   = regexp.MustCompile(`^\$ (.*)$`)
	sessionLine = regexp.MustCompile(`^([A-Z])=# (.*)$`)
	moreLine    = regexp.MustCompile(`^[A-Z]-# (.*)$`)
	answerLine  = regexp.MustCompile(`^([A-Z]):$`)
)

func isTyped(line string) bool {
	return shellLine.MatchString(line) || sessionLine.MatchString(line) || answerLine.MatchString(line)
}

// typeAll returns the document with the real answers, and how many commands it has.
func (h *hands) typeAll(lines []string) (written []string, commands int) {
	inside := false
	for i := 0; i < len(lines); {
		line := lines[i]
		i++
		written = append(written, line)
		switch {
		case line == "```console":
			inside = true
			continue
		case line == "```":
			inside = false
			continue
		case !inside:
			continue
		case !isTyped(line):
			h.t.Fatalf("line %d of a console is nobody's answer: %s", i, line)
		}

		commands++
		begin := i
		var answer string
		switch {
		case shellLine.MatchString(line):
			command := shellLine.FindStringSubmatch(line)[1]
			for strings.HasSuffix(command, `\`) {
				command += "\n" + lines[i]
				written = append(written, lines[i])
				i++
			}
			answer, _ = shell(h.t, h.env, command)
		case sessionLine.MatchString(line):
			match := sessionLine.FindStringSubmatch(line)
			statement := match[2]
			for moreLine.MatchString(lines[i]) {
				statement += "\n" + moreLine.FindStringSubmatch(lines[i])[1]
				written = append(written, lines[i])
				i++
			}
			answer = h.session(match[1]).answerTo(statement)
		default:
			answer = h.session(answerLine.FindStringSubmatch(line)[1]).answer()
		}

		end := i
		for lines[end] != "```" && !isTyped(lines[end]) {
			end++
		}
		wanted := strings.Join(lines[i:end], "\n")
		answer = strings.TrimRight(answer, "\n")
		if !*update && alike(answer) != alike(wanted) {
			h.t.Errorf("docs/dba.md, line %d: %s\n--- it says\n%s\n--- the answer is\n%s", begin, line, wanted, answer)
		}
		if answer != "" {
			written = append(written, strings.Split(answer, "\n")...)
			if lines[end] != "```" && strings.HasSuffix(answer, ")") { // an empty line after a table
				written = append(written, "")
			}
		}
		i = end
	}
	return written, commands
}

// What no two runs share: times, decimals (a rate, a duration), ports. And the widths that follow from them.
var unlike = []struct {
	pattern *regexp.Regexp
	alike   string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?(\+00)?`), "<time>"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "<address>"},
	{regexp.MustCompile(`\b\d+\.\d+\b`), "<decimal>"},
	{regexp.MustCompile(`-{2,}`), "-"},
	{regexp.MustCompile(`[ \t]+`), " "},
	{regexp.MustCompile(`(?m)^ | $`), ""},
	{regexp.MustCompile(`\n+`), "\n"},
}

func alike(text string) string {
	for _, u := range unlike {
		text = u.pattern.ReplaceAllString(text, u.alike)
	}
	return strings.TrimSpace(text)
}

// session is a psql that stays.
type session struct {
	t      *testing.T
	name   string
	admin  *cluster
	input  io.Writer
	output *bufio.Reader
}

const answered = "answered, says the test"

func (h *hands) session(name string) *session {
	if s := h.sessions[name]; s != nil {
		return s
	}
	cmd := exec.Command("psql", "--no-psqlrc")
	for _, variable := range h.env {
		if path, ok := strings.CutPrefix(variable, "PATH="); ok {
			cmd.Path = lookIn(h.t, path, "psql")
		}
	}
	cmd.Env = append(slices.Clone(h.env), "PGAPPNAME="+name)
	input, err := cmd.StdinPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		h.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = writer, writer
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	_ = writer.Close()
	h.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = reader.Close()
	})
	if err := reader.SetReadDeadline(time.Now().Add(2 * patience)); err != nil {
		h.t.Fatal(err)
	}
	s := &session{h.t, name, h.admin, input, bufio.NewReader(reader)}
	h.sessions[name] = s
	return s
}

func lookIn(t *testing.T, path, program string) string {
	t.Helper()
	for dir := range strings.SplitSeq(path, ":") {
		if info, err := os.Stat(dir + "/" + program); err == nil && !info.IsDir() {
			return dir + "/" + program
		}
	}
	t.Fatalf("there is no %s", program)
	return ""
}

// answerTo types a statement, and returns its answer, or "" for one that waits.
func (s *session) answerTo(statement string) string {
	s.t.Helper()
	if _, err := fmt.Fprintf(s.input, "%s\n\\warn %s\n", statement, answered); err != nil {
		s.t.Fatal(err)
	}
	if !strings.HasSuffix(statement, "-- waits") {
		return s.answer()
	}
	conn := connect(s.t, s.admin.URL("coupons"))
	waitFor(s.t, s.name+" to wait for a lock", func() bool {
		return get[int](s.t, conn, `
			select count(*)
			from pg_stat_activity
			where application_name = $1
			  and cardinality(pg_blocking_pids(pid)) > 0`, s.name) > 0
	})
	return ""
}

// answer is what has come since the last one.
func (s *session) answer() string {
	s.t.Helper()
	var all strings.Builder
	for {
		line, err := s.output.ReadString('\n')
		if err != nil {
			s.t.Fatalf("session %s: %v after %q", s.name, err, all.String())
		}
		if line == answered+"\n" {
			return all.String()
		}
		all.WriteString(line)
	}
}
