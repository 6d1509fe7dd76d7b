package main

import (
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// said is what coupond says when it succeeds.
func said(t *testing.T, args ...string) string {
	t.Helper()
	p := start(t, nil, args...)
	if code := p.wait(t); code != 0 || p.stderr.String() != "" {
		t.Errorf("coupond %s: exit code %d, %s", args, code, p.stderr.String())
	}
	return p.stdout.String()
}

// The help on each command is there by both its names, and is read in a terminal of 80 columns.
func TestHelp(t *testing.T) {
	t.Parallel()
	root := newRootCommand(nil, io.Discard, io.Discard)
	commands := []string{""}
	for _, command := range root.Commands() {
		commands = append(commands, command.Name())
	}
	if len(commands) < 7 {
		t.Errorf("only %q have help", commands)
	}
	for _, command := range commands {
		args := strings.Fields(command)
		text := said(t, append(slices.Clone(args), "--help")...)
		if !strings.Contains(text, "\nUsage:\n  coupond") {
			t.Errorf("the help on %q is %s", command, text)
		}
		if command == "" && !strings.Contains(text, "Exit status: 0 success, 1 failure, 2 wrong usage or configuration.\n") {
			t.Errorf("the help does not tell the exit status: %s", text)
		}
		for line := range strings.Lines(text) {
			if utf8.RuneCountInString(strings.TrimSuffix(line, "\n")) > 80 || strings.Contains(line, "\t") || strings.HasSuffix(line, " \n") {
				t.Errorf("the help on %q has a line that is wider than 80 columns, or holds a tab, or ends in a space:\n%s", command, line)
			}
		}
		if same := said(t, append([]string{"help"}, args...)...); same != text {
			t.Errorf("coupond help %s differs from its --help:\n%s", command, same)
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
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}

func TestWrongUsageOfHelpAndCompletion(t *testing.T) {
	t.Parallel()
	expect(t, exitUsage, `unknown command "srve"; did you mean serve?`, nil, "help", "srve")
	expect(t, exitUsage, `unknown command "serve now"`, nil, "help", "serve", "now")
	expect(t, exitUsage, `coupond completion takes one shell, bash, zsh, fish, powershell; got []`, nil, "completion")
	expect(t, exitUsage, `got ["tcsh"] (see: coupond completion --help)`, nil, "completion", "tcsh")
	expect(t, exitUsage, `got ["bash" "zsh"]`, nil, "completion", "bash", "zsh")
}

// What completes is what cobra gives; that it names ours is what we see to.
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
		script := said(t, "completion", shell)
		if !strings.Contains(script, "coupond") {
			t.Errorf("the script for %s is %s", shell, script)
		}
		if shell == "bash" {
			check := exec.Command("bash", "-n")
			check.Stdin = strings.NewReader(script)
			if output, err := check.CombinedOutput(); err != nil {
				t.Errorf("bash does not read its script: %v: %s", err, output)
			}
		}
	}
}
