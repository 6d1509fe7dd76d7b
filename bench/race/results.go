package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"scalable-coupon-system/bench/rivals"
)

// results are what all runs came to, in the form that is kept.
type results struct {
	When     string                          `json:"when"`
	Machine  map[string]string               `json:"machine"`
	Rounds   int                             `json:"rounds"`
	Duration string                          `json:"duration"`
	Runs     map[string]map[string][]figures `json:"runs"` // by workload, by contestant, one a round

	order []string // contestants, as they came
}

func newResults(about map[string]string, rounds int, duration time.Duration) *results {
	return &results{
		When:     time.Now().UTC().Format(time.RFC3339),
		Machine:  about,
		Rounds:   rounds,
		Duration: duration.String(),
		Runs:     make(map[string]map[string][]figures),
	}
}

func (r *results) add(workload, contestant string, f figures) {
	if r.Runs[workload] == nil {
		r.Runs[workload] = make(map[string][]figures)
	}
	r.Runs[workload][contestant] = append(r.Runs[workload][contestant], f)
	if !slices.Contains(r.order, contestant) {
		r.order = append(r.order, contestant)
	}
}

// median of what the runs say of one figure, and how far they lie apart: half of the difference between the largest and
// the smallest, as a part of the median.
func median(runs []figures, of func(figures) float64) (middle, spread float64) {
	values := make([]float64, 0, len(runs))
	for _, f := range runs {
		values = append(values, of(f))
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

// columns of the table, with what each takes from the figures.
var columns = []struct {
	name string
	of   func(figures) float64
	form string
}{
	{"p50 ms", func(f figures) float64 { return f.P50 }, "%.2f"},
	{"p99 ms", func(f figures) float64 { return f.P99 }, "%.2f"},
	{"p99.9 ms", func(f figures) float64 { return f.P999 }, "%.2f"},
	{"CPU µs service", func(f figures) float64 { return f.ServiceCPU }, "%.0f"},
	{"CPU µs database", func(f figures) float64 { return f.DataCPU }, "%.0f"},
	{"commits a claim", func(f figures) float64 { return f.Commits }, "%.3f"},
	{"reads/s", func(f figures) float64 { return f.ReadRate }, "%.0f"},
	{"extra", func(f figures) float64 { return f.Extra }, "%.2f"},
}

// printer writes text and keeps the first error, so that a table is told from top to bottom.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

// print writes the table of a workload: medians over the rounds, and how many times as fast ours is.
func (r *results) print(w io.Writer, of workload) error {
	runs := r.Runs[of.name]
	ours, _ := median(runs[rivals.Ours], rate)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	p := &printer{w: table}
	p.printf("\n%s: %s\n\tclaims/s\t±\tours is\t", of.name, of.what)
	for _, c := range columns {
		p.printf("%s\t", c.name)
	}
	p.printf("\n")
	for _, name := range r.order {
		if len(runs[name]) == 0 {
			continue
		}
		middle, spread := median(runs[name], rate)
		p.printf("%s\t%.0f\t%.0f %%\t%.2f ×\t", name, middle, 100*spread, ours/middle)
		for _, c := range columns {
			if value, _ := median(runs[name], c.of); value != 0 {
				p.printf(c.form, value)
			}
			p.printf("\t")
		}
		p.printf("\n")
	}
	return errors.Join(p.err, table.Flush())
}

// keep writes results.json and the charts into folder.
func (r *results) keep(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil { //nolint:gosec // results to be read
		return err
	}
	body, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, "results.json"), append(body, '\n'), 0o644); err != nil { //nolint:gosec // as above
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(r.Runs)) {
		if err := r.draw(folder, name); err != nil {
			return fmt.Errorf("chart of %s: %w", name, err)
		}
	}
	return nil
}
