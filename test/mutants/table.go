package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"unicode/utf8"
)

const preface = "# The tests against mutants\n" + `
Would the tests notice a bug? These were planted, one at a time, and each was caught by the test beside it: it failed by what
it asserts, and was green without the bug. The table is what ` + "`make mutants`" + ` wrote at the end of a run ([test/mutants](../test/mutants)
has the patches; a mutant that survives fails the run).

| bug | caught by | which said |
|---|---|---|
`

// place is where a test says something; lines move, so the table goes without.
var place = regexp.MustCompile(`^\w+\.go:\d+: `)

// writeTable writes who caught what, and by which words.
func writeTable(path string, mutants []mutant, verdicts []verdict) error {
	var text strings.Builder
	text.WriteString(preface)
	for i, m := range mutants {
		fmt.Fprintf(&text, "| [%s](../test/mutants/%s.patch) | `%s` in %s | %s |\n",
			m.title, m.name, m.test, strings.TrimPrefix(m.pkg, "./"), cell(place.ReplaceAllString(verdicts[i].says, "")))
	}
	return os.WriteFile(path, []byte(text.String()), 0o644)
}

// cell makes what a test has said fit for a cell of a table.
func cell(says string) string {
	const most = 160 // characters
	if utf8.RuneCountInString(says) > most {
		says = string([]rune(says)[:most]) + "…"
	}
	// As code, in which nothing has a meaning but the backquote and the bar.
	return "`" + strings.NewReplacer("`", "'", "|", `\|`).Replace(strings.TrimSpace(says)) + "`"
}
