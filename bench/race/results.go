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

// results are what all runs came to, in the form that is kept.
type results struct {
	When     string                          `json:"when"`
	Machine  map[string]string               `json:"machine"`
	Rounds   int                             `json:"rounds"`
	Duration string                          `json:"duration"`
	Runs     map[string]map[string][]figures `json:"runs"` // by workload, by contestant, one a round

	Targets []verdict `json:"targets"`

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

// measure is a figure with its name and how it is written.
type measure struct {
	name string
	form string
	of   func(figures) float64
}

// columns of the tables, behind claims/s. A table has those in which anybody has something.
var columns = []measure{
	{"p50 ms", "%.2f", func(f figures) float64 { return f.P50 }},
	{"p99 ms", "%.2f", func(f figures) float64 { return f.P99 }},
	{"p99.9 ms", "%.2f", func(f figures) float64 { return f.P999 }},
	{"service CPU µs", "%.0f", func(f figures) float64 { return f.ServiceCPU }},
	{"database CPU µs", "%.0f", func(f figures) float64 { return f.DataCPU }},
	{"proxy CPU µs", "%.0f", func(f figures) float64 { return f.ProxyCPU }},
	{"standby CPU µs", "%.0f", func(f figures) float64 { return f.StandbyCPU }},
	{"load CPU µs", "%.0f", func(f figures) float64 { return f.LoadCPU }},
	{"p50 when calm ms", "%.2f", func(f figures) float64 { return f.CalmP50 }},
	{"commits a claim", "%.3f", func(f figures) float64 { return f.Commits }},
	{"reads/s", "%.0f", readRate},
	{"× psql's COPY", "%.2f", func(f figures) float64 { return f.CopyTimes }},
	{"more MiB", "%.1f", func(f figures) float64 { return f.MoreMemory }},
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
	if len(runs) == 0 {
		return nil
	}
	ours, _ := median(runs[contestants.Coupond], rate)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	p := &printer{w: table}
	p.printf("\n%s: %s\n\tclaims/s\t±\tours is\t", of.name, of.what)
	shown := slices.DeleteFunc(slices.Clone(columns), func(c measure) bool {
		for _, some := range runs {
			if middle, _ := median(some, c.of); middle != 0 {
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
		p.printf("%s\t%.0f\t%.0f %%\t%.2f ×\t", name, middle, 100*spread, ours/middle)
		for _, c := range shown {
			if value, _ := median(runs[name], c.of); value != 0 {
				p.printf(c.form, value)
			}
			p.printf("\t")
		}
		p.printf("\n")
	}
	return errors.Join(p.err, table.Flush())
}

// keep writes results.json and the charts of workloads into folder.
func (r *results) keep(folder string, workloads []workload) error {
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
		svg, err := r.draw(w)
		if err != nil {
			return fmt.Errorf("chart of %s: %w", w.name, err)
		}
		if err := os.WriteFile(filepath.Join(folder, chartFile(w.name)), svg, 0o644); err != nil {
			return err
		}
	}
	return nil
}
