package main

import (
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// stdoutOf runs coupond, which must succeed, and returns its stdout.
func stdoutOf(t *testing.T, args ...string) string {
	t.Helper()
	p := start(t, nil, args...)
	if code := p.wait(t); code != 0 || p.stderr.String() != "" {
		t.Errorf("coupond %s: exit code %d, %s", args, code, p.stderr.String())
	}
	return p.stdout.String()
}

// Each command has help, by --help and by the command help, that fits into a terminal of 80
// columns.
func TestHelp(t *testing.T) {
	t.Parallel()
	root := newRootCommand(nil, io.Discard, nil)
	commands := []string{""}
	for _, command := range root.Commands() {
		commands = append(commands, command.Name())
	}
	if len(commands) < 7 {
		t.Errorf("only %q have help", commands)
	}
	for _, command := range commands {
		args := strings.Fields(command)
		text := stdoutOf(t, append(slices.Clone(args), "--help")...)
		if !strings.Contains(text, "\nUsage:\n  coupond") {
			t.Errorf("help of %q: %s", command, text)
		}
		if command == "" && !strings.Contains(text, "Exit status: 0 success, 1 failure, 2 wrong usage or configuration.\n") {
			t.Errorf("the help lacks the exit statuses: %s", text)
		}
		for line := range strings.Lines(text) {
			if utf8.RuneCountInString(strings.TrimSuffix(line, "\n")) > 80 || strings.Contains(line, "\t") || strings.HasSuffix(line, " \n") {
				t.Errorf("help of %q: a line has more than 80 columns, a tab or a trailing space:\n%s", command, line)
			}
		}
		if same := stdoutOf(t, append([]string{"help"}, args...)...); same != text {
			t.Errorf("coupond help %s differs from coupond %[1]s --help:\n%s", command, same)
		}
	}
}

func TestFold(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":               "",
		"one":            "one",
		"one two":        "one two",
		"one two three":  "one two|three",
		"widestwordhere": "widestwordhere",
		"… … … … …":      "… … … …|…",
	} {
		if got := strings.Join(fold(text, 7), "|"); got != want {
			t.Errorf("fold(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestHelpAndCompletion_wrongUsage(t *testing.T) {
	t.Parallel()
	expect(t, exitUsage, `unknown command "srve"; did you mean serve?`, nil, "help", "srve")
	expect(t, exitUsage, `unknown command "serve now"`, nil, "help", "serve", "now")
	expect(t, exitUsage, `coupond completion takes one shell (bash, zsh, fish, powershell), got []`, nil, "completion")
	expect(t, exitUsage, `got ["tcsh"] (see: coupond completion --help)`, nil, "completion", "tcsh")
	expect(t, exitUsage, `got ["bash" "zsh"]`, nil, "completion", "bash", "zsh")
}

// cobra implements completion. This test checks that it knows the commands, flags and arguments of
// coupond.
func TestCompletion(t *testing.T) {
	t.Parallel()
	for _, typed := range []struct{ args, want string }{
		{"h", "healthcheck\t"},
		{"help s", "serve\t"},
		{"completion z", "zsh\n"},
		{"dev --d", "--dir\t"},
	} {
		p := start(t, nil, append([]string{"__complete"}, strings.Fields(typed.args)...)...)
		if code := p.wait(t); code != 0 || !strings.Contains("\n"+p.stdout.String(), "\n"+typed.want) {
			t.Errorf("%q: exit code %d, %s", typed.args, code, p.stdout.String())
		}
	}
	for _, shell := range shells {
		script := stdoutOf(t, "completion", shell)
		if !strings.Contains(script, "coupond") {
			t.Errorf("script for %s: %s", shell, script)
		}
		if shell == "bash" {
			check := exec.Command("bash", "-n")
			check.Stdin = strings.NewReader(script)
			if output, err := check.CombinedOutput(); err != nil {
				t.Errorf("bash rejects its script: %v: %s", err, output)
			}
		}
	}
}
