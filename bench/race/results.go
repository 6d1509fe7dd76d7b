package main

import (
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

// figures are the results of one run of a workload by one entry. One that was not measured is 0.
type figures map[metric]float64

// referenceMedian returns the compared figure of the reference; 0: it does not run the workload.
func (r *race) referenceMedian(w workload) float64 {
	first := w.entries[0]
	if first.title != r.reference {
		return 0
	}
	middle, _ := first.median(w.compared)
	return middle
}

// median returns the median of a figure, and its spread: half of the difference between the largest
// and the smallest value, as a fraction of the median.
func (e *entry) median(m metric) (middle, spread float64) {
	var values []float64
	for _, f := range e.runs {
		values = append(values, f[m])
	}
	slices.Sort(values)
	n := len(values)
	if m == unexpected { // one bad round is enough
		return values[n-1], 0
	}
	middle = (values[(n-1)/2] + values[n/2]) / 2
	return middle, (values[n-1] - values[0]) / 2 / middle
}

// format formats a figure with three significant digits, and nothing if it is zero.
func format(v float64) string {
	switch {
	case v == 0:
		return ""
	case v < 99.95:
		return fmt.Sprintf("%#.3g", v)
	default:
		return humanize.Comma(int64(math.Round(v)))
	}
}

// table returns a Markdown table of workloads: medians over the rounds, and the compared figure of
// the reference as a multiple of each entry's.
func (r *race) table(workloads ...workload) string {
	shown := slices.DeleteFunc(slices.Clone(columns), func(m metric) bool {
		return !slices.ContainsFunc(workloads, func(w workload) bool {
			return slices.ContainsFunc(w.entries, func(e *entry) bool { v, _ := e.median(m); return v > 0 })
		})
	})
	headers := []string{"workload", "contestant", string(rate), "±", r.reference + " is"}
	for _, m := range shown {
		headers = append(headers, string(m))
	}
	page := table.New().Border(lipgloss.MarkdownBorder()).BorderTop(false).BorderBottom(false).Headers(headers...)
	page.StyleFunc(func(_, column int) lipgloss.Style {
		style := lipgloss.NewStyle().Padding(0, 1)
		if column >= 2 {
			style = style.Align(lipgloss.Right)
		}
		return style
	})
	for _, w := range workloads {
		reference, unit := r.referenceMedian(w), ""
		if w.compared != rate {
			unit = " " + strings.TrimSuffix(string(w.compared), " ms")
		}
		for _, e := range w.entries {
			middle, spread := e.median(rate)
			compared, _ := e.median(w.compared)
			ratio := ""
			if reference > 0 {
				ratio = format(reference/compared) + " ×" + unit
			}
			row := []string{w.name, e.title, format(middle), fmt.Sprintf("%.0f %%", 100*spread), ratio}
			for _, m := range shown {
				v, _ := e.median(m)
				row = append(row, format(v))
			}
			page.Row(row...)
		}
	}
	return page.String()
}

// write writes the table and the charts of workloads to folder.
func (r *race) write(folder string, workloads []workload) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	page := fmt.Sprintf("# Results\n\nWritten by `make bench`: %s. Medians; ± is half the range of the rounds.\n\n%s\n",
		strings.Join(r.about, ", "), r.table(workloads...))
	for _, w := range workloads {
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
