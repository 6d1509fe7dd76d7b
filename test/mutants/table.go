package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"unicode/utf8"
)

const preface = "# Mutants: planted bugs and the tests that catch them\n" + `
Do the tests notice a bug? Each of these bugs was planted on its own, and the test beside it failed by an assertion. Without the
bug the test passes. ` + "`make mutants`" + ` writes this table at the end of a full run and fails if a mutant survives. The patches are in
[test/mutants](../test/mutants).

| bug | caught by | failure message |
|---|---|---|
`

// position is the file and line of a message, which change too often to be in the table.
var position = regexp.MustCompile(`^\w+\.go:\d+: `)

// writeTable writes which test caught which mutant, and with which message.
func writeTable(path string, mutants []mutant, results []result) error {
	var text strings.Builder
	text.WriteString(preface)
	for i, m := range mutants {
		fmt.Fprintf(&text, "| [%s](../test/mutants/%s.patch) | `%s` in %s | %s |\n",
			m.title, m.name, m.test, strings.TrimPrefix(m.pkg, "./"), cell(position.ReplaceAllString(results[i].message, "")))
	}
	return os.WriteFile(path, []byte(text.String()), 0o644)
}

// cell formats a test's message for a cell of the table: as code, shortened, and without rapid's
// instructions for repeating the failure.
func cell(message string) string {
	const limit = 160 // characters
	message, _, _ = strings.Cut(message, " To reproduce, specify")
	if utf8.RuneCountInString(message) > limit {
		message = string([]rune(message)[:limit]) + "…"
	}
	// In code, only the backquote and the bar have a meaning.
	return "`" + strings.NewReplacer("`", "'", "|", `\|`).Replace(strings.TrimSpace(message)) + "`"
}
