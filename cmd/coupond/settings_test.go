package main

import (
	"regexp"
	"strings"
	"testing"
)

// The table of settings in docs/operations.md equals the output of coupond serve --help.
func TestSettings_documented(t *testing.T) {
	t.Parallel()
	p := startProcess(t, []string{"COLUMNS=1000"}, "serve", "--help") // a line for each setting
	p.wait(t)
	var inHelp, inTable []string
	setting := regexp.MustCompile(`(?m)^ +--[a-z-]+=(?:[A-Z]+|"?([^ "]+)"?) +([A-Z_]+): (.+)\. Must be (.+)\.$`)
	for _, match := range setting.FindAllStringSubmatch(p.stdout.String(), -1) {
		inHelp = append(inHelp, strings.Join([]string{match[2], match[1], match[3], match[4]}, " | "))
	}
	row := regexp.MustCompile("(?m)^\\| (`[A-Z_]+` \\| .*) \\|$")
	for _, match := range row.FindAllStringSubmatch(readText(t, "../../docs/operations.md"), -1) {
		inTable = append(inTable, strings.ReplaceAll(match[1], "| |", "|  |"))
	}
	// Around code, --help has quotes and Markdown has backquotes.
	unquoted := func(lines []string) string {
		return strings.NewReplacer("'", "", "`", "").Replace(strings.Join(lines, "\n"))
	}
	if len(inHelp) == 0 || unquoted(inHelp) != unquoted(inTable) {
		t.Errorf("coupond serve --help:\n%s\ndocs/operations.md:\n%s", unquoted(inHelp), unquoted(inTable))
	}
}
