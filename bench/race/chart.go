package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/go-analyze/charts"

	"scalable-coupon-system/bench/rivals"
)

var notInFileName = regexp.MustCompile(`[^a-z0-9]+`)

// draw makes a bar chart of a workload's medians: a bar for each contestant, ours in another colour.
func (r *results) draw(folder, workload string) error {
	const width, bar, around = 760, 34, 70
	var names []string
	var ours, others []float64
	// From the bottom up, so that the first is on top.
	for _, name := range slices.Backward(r.order) {
		runs := r.Runs[workload][name]
		if len(runs) == 0 {
			continue
		}
		middle, _ := median(runs, rate)
		names = append(names, name)
		if name == rivals.Ours {
			ours, others = append(ours, middle), append(others, 0)
		} else {
			ours, others = append(ours, 0), append(others, middle)
		}
	}
	painter := charts.NewPainter(charts.PainterOptions{
		OutputFormat: charts.ChartOutputSVG, Width: width, Height: around + bar*len(names),
	})
	painter.FilledRect(0, 0, width, around+bar*len(names), charts.ColorWhite, charts.ColorTransparent, 0)
	chart := charts.NewBarChartOptionWithData([][]float64{ours, others})
	chart.Horizontal = true
	chart.StackSeries = new(true)
	chart.Title.Text = workload + ": claims a second, median of " + humanize.Comma(int64(r.Rounds)) + " rounds, " + r.Machine["cpus"] + " CPUs"
	chart.Theme = charts.GetTheme(charts.ThemeLight).WithSeriesColors([]charts.Color{
		charts.ParseColor("#2da44e"), charts.ParseColor("#8c959f"),
	})
	chart.Legend.Show = new(false)
	chart.CategoryAxis.Labels = names
	chart.ValueFormatter = func(v float64) string { return humanize.Comma(int64(v)) }
	for i := range chart.SeriesList {
		chart.SeriesList[i].Label.Show = new(true)
		chart.SeriesList[i].Label.ValueFormatter = func(v float64) string {
			if v == 0 {
				return "" // the other series has this bar
			}
			return humanize.Comma(int64(v))
		}
	}
	if err := painter.BarChart(chart); err != nil {
		return err
	}
	svg, err := painter.Bytes()
	if err != nil {
		return err
	}
	file := strings.Trim(notInFileName.ReplaceAllString(strings.ToLower(workload), "-"), "-") + ".svg"
	return os.WriteFile(filepath.Join(folder, file), svg, 0o644) //nolint:gosec // a picture to be shown around
}
