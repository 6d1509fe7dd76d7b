package main

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"charm.land/lipgloss/v2"
	"charm.land/lipgloss/v2/table"
	"github.com/dustin/go-humanize"
)

// metric is the name of a figure, as in the tables.
type metric string

// What a run measures. CPU times are those of one request.
const (
	rate        metric = "claims/s"
	p50         metric = "p50 ms" // latency of claims
	p99         metric = "p99 ms"
	cpu         metric = "CPU µs" // of the service and its database
	databaseCPU metric = "database CPU µs"
	loadCPU     metric = "load CPU µs"
	commits     metric = "commits per claim"
	unexpected  metric = "unexpected answers"
	readP50     metric = "GET ms" // median time of reading the stored coupon
)

// columns are the columns of the tables after the rate. A table has those that are not zero in
// every row.
var columns = []metric{p50, p99, cpu, databaseCPU, loadCPU, commits, unexpected, readP50}

// figures are the results of one run of a workload by one entry. A figure that was not measured is
// missing.
type figures map[metric]float64

// results are the figures of all runs.
type results struct {
	about     []string            // the race, and the machine, in words
	reference string              // the contestant that the others are compared with
	entries   map[string][]*entry // by workload
}

// referenceMedian returns the median of the reference in a workload; NaN: not measured.
func (r *results) referenceMedian(workload string, m metric) float64 {
	for _, e := range r.entries[workload] {
		if e.name == r.reference {
			middle, _ := e.median(m)
			return middle
		}
	}
	return math.NaN()
}

// median returns the median of a figure, and its spread: half of the difference between the largest
// and the smallest value, as a fraction of the median. Without a value both are NaN.
func (e *entry) median(m metric) (middle, spread float64) {
	var values []float64
	for _, f := range e.runs {
		if v, measured := f[m]; measured {
			values = append(values, v)
		}
	}
	n := len(values)
	if n == 0 {
		return math.NaN(), math.NaN()
	}
	slices.Sort(values)
	if m == unexpected { // one bad round is enough
		return values[n-1], 0
	}
	middle = (values[(n-1)/2] + values[n/2]) / 2
	return middle, (values[n-1] - values[0]) / 2 / middle
}

// format formats a figure with about three significant digits, and nothing if it was not measured.
func format(v float64) string {
	switch {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return ""
	case v >= 100:
		return humanize.Comma(int64(math.Round(v)))
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 1 || v == 0:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3f", v)
	}
}

// markdown returns a table, with the columns after the first two aligned to the right.
func markdown(headers []string, rows [][]string) string {
	return table.New().Border(lipgloss.MarkdownBorder()).BorderTop(false).BorderBottom(false).Headers(headers...).Rows(rows...).
		StyleFunc(func(_, column int) lipgloss.Style {
			style := lipgloss.NewStyle().Padding(0, 1)
			if column >= 2 {
				style = style.Align(lipgloss.Right)
			}
			return style
		}).String()
}

// table returns the table of workloads: medians over the rounds, and the compared figure of the
// reference as a multiple of each entry's.
func (r *results) table(workloads ...workload) string {
	headers := []string{"workload", "contestant", string(rate), "±", r.reference + " is"}
	shown := slices.DeleteFunc(slices.Clone(columns), func(m metric) bool {
		return !slices.ContainsFunc(workloads, func(w workload) bool {
			return slices.ContainsFunc(r.entries[w.name], func(e *entry) bool { v, _ := e.median(m); return v > 0 })
		})
	})
	for _, m := range shown {
		headers = append(headers, string(m))
	}
	var lines [][]string
	for _, w := range workloads {
		reference := r.referenceMedian(w.name, cmp.Or(w.compared, rate))
		for _, e := range r.entries[w.name] {
			middle, spread := e.median(rate)
			compared, _ := e.median(cmp.Or(w.compared, rate))
			ratio := times(reference / compared)
			if w.compared != "" && ratio != "" {
				ratio += " " + strings.TrimSuffix(string(w.compared), " ms")
			}
			line := []string{w.name, e.name, format(middle), fmt.Sprintf("%.0f %%", 100*spread), ratio}
			for _, m := range shown {
				v, _ := e.median(m)
				line = append(line, format(v))
			}
			lines = append(lines, line)
		}
	}
	return markdown(headers, lines)
}

func times(ratio float64) string {
	if math.IsNaN(ratio) {
		return ""
	}
	return format(ratio) + " ×"
}

// write writes the table and the charts of workloads to folder.
func (r *results) write(folder string, workloads []workload) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	page := fmt.Sprintf("# Results\n\nWritten by `make bench`: %s. Medians; ± is half the range of the rounds.\n\n%s\n",
		strings.Join(r.about, ", "), r.table(workloads...))
	for _, w := range workloads {
		if len(r.entries[w.name]) == 0 {
			continue
		}
		svg, err := r.chart(w)
		if err != nil {
			return fmt.Errorf("chart of %s: %w", w.name, err)
		}
		if err := os.WriteFile(filepath.Join(folder, chartName(w.name)), svg, 0o644); err != nil {
			return err
		}
		page += fmt.Sprintf("\n![%s: %s](%s)\n", w.name, w.description, chartName(w.name))
	}
	return os.WriteFile(filepath.Join(folder, "README.md"), []byte(page), 0o644)
}
