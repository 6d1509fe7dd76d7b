package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"scalable-coupon-system/bench/race/contestants"
)

// results is the content of results.json: the figures of all runs.
type results struct {
	When     string                          `json:"when"`
	Machine  map[string]string               `json:"machine"`
	Rounds   int                             `json:"rounds"`
	Duration string                          `json:"duration"`
	Runs     map[string]map[string][]figures `json:"runs"` // by workload and entry, one per round

	Targets []targetResult `json:"targets"`

	order []string // names of the entries, in the order of their first run
}

func newResults(machine map[string]string, rounds int, duration time.Duration) *results {
	return &results{
		When:     time.Now().UTC().Format(time.RFC3339),
		Machine:  machine,
		Rounds:   rounds,
		Duration: duration.String(),
		Runs:     make(map[string]map[string][]figures),
	}
}

func (r *results) add(workload, entry string, f figures) {
	if r.Runs[workload] == nil {
		r.Runs[workload] = make(map[string][]figures)
	}
	r.Runs[workload][entry] = append(r.Runs[workload][entry], f)
	if !slices.Contains(r.order, entry) {
		r.order = append(r.order, entry)
	}
}

// median returns the median of one figure of the runs, and its spread: half of the difference
// between the largest and the smallest value, as a fraction of the median.
func median(runs []figures, figure func(figures) float64) (middle, spread float64) {
	values := make([]float64, 0, len(runs))
	for _, f := range runs {
		values = append(values, figure(f))
	}
	slices.Sort(values)
	n := len(values)
	if n == 0 {
		return 0, 0
	}
	middle = (values[(n-1)/2] + values[n/2]) / 2
	if middle > 0 {
		spread = (values[n-1] - values[0]) / 2 / middle
	}
	return middle, spread
}

func rate(f figures) float64 { return f.Rate }

// metric is a figure with its name and its format.
type metric struct {
	name   string
	format string // of fmt
	value  func(figures) float64
}

// columns are the columns of the tables, behind claims/s. A table has those that are not zero in
// every row.
var columns = []metric{
	{"p50 ms", "%.2f", func(f figures) float64 { return f.P50 }},
	{"p99 ms", "%.2f", func(f figures) float64 { return f.P99 }},
	{"p99.9 ms", "%.2f", func(f figures) float64 { return f.P999 }},
	{"service CPU µs", "%.0f", func(f figures) float64 { return f.ServiceCPU }},
	{"database CPU µs", "%.0f", func(f figures) float64 { return f.DatabaseCPU }},
	{"proxy CPU µs", "%.0f", func(f figures) float64 { return f.ProxyCPU }},
	{"standby CPU µs", "%.0f", func(f figures) float64 { return f.StandbyCPU }},
	{"load CPU µs", "%.0f", func(f figures) float64 { return f.LoadCPU }},
	{"p50 at 200/s ms", "%.2f", func(f figures) float64 { return f.LowRateP50 }},
	{"none locked claims/s", "%.0f", func(f figures) float64 { return f.FreeRate }},
	{"none locked p50 ms", "%.2f", func(f figures) float64 { return f.FreeP50 }},
	{"p50 × none locked", "%.2f", lockedRatio},
	{"claims/s × none locked", "%.3f", lockedRate},
	{"commits per claim", "%.3f", func(f figures) float64 { return f.Commits }},
	{"reads/s", "%.0f", readRate},
	{"× psql's COPY", "%.2f", func(f figures) float64 { return f.CopyRatio }},
	{"added MiB", "%.1f", func(f figures) float64 { return f.AddedMemory }},
}

// printer writes text and keeps the first error, so that the code of a table checks only one error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

// reference returns the entry of a workload that the others are compared with: coupond, or the
// first one if coupond did not run.
func (r *results) reference(workload string) string {
	runs := r.Runs[workload]
	if len(runs[contestants.Coupond]) > 0 {
		return contestants.Coupond
	}
	for _, name := range r.order {
		if len(runs[name]) > 0 {
			return name
		}
	}
	return ""
}

// printTable writes the table of a workload: medians over the rounds, and the claims/s of the
// reference as a multiple of each entry's.
func (r *results) printTable(w io.Writer, of workload) error {
	runs := r.Runs[of.name]
	if len(runs) == 0 {
		return nil
	}
	reference := r.reference(of.name)
	compared, _ := median(runs[reference], rate)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	p := &printer{w: table}
	p.printf("\n%s: %s\n\tclaims/s\t±\t%s is\t", of.name, of.description, reference)
	shown := slices.DeleteFunc(slices.Clone(columns), func(c metric) bool {
		for _, entryRuns := range runs {
			if middle, _ := median(entryRuns, c.value); middle != 0 {
				return false
			}
		}
		return true
	})
	for _, c := range shown {
		p.printf("%s\t", c.name)
	}
	p.printf("\n")
	for _, name := range r.order {
		if len(runs[name]) == 0 {
			continue
		}
		middle, spread := median(runs[name], rate)
		p.printf("%s\t%.0f\t%.0f %%\t%.2f ×\t", name, middle, 100*spread, compared/middle)
		for _, c := range shown {
			if value, _ := median(runs[name], c.value); value != 0 {
				p.printf(c.format, value)
			}
			p.printf("\t")
		}
		p.printf("\n")
	}
	return errors.Join(p.err, table.Flush())
}

// write writes results.json and the charts of workloads to folder.
func (r *results) write(folder string, workloads []workload) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	body, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, "results.json"), append(body, '\n'), 0o644); err != nil {
		return err
	}
	for _, w := range workloads {
		if len(r.Runs[w.name]) == 0 {
			continue
		}
		svg, err := r.drawChart(w)
		if err != nil {
			return fmt.Errorf("chart of %s: %w", w.name, err)
		}
		if err := os.WriteFile(filepath.Join(folder, chartName(w.name)), svg, 0o644); err != nil {
			return err
		}
	}
	return nil
}
