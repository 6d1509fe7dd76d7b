package main

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"
	"github.com/go-analyze/charts"

	"scalable-coupon-system/bench/race/contestants"
)

var notInFileName = regexp.MustCompile(`[^a-z0-9]+`)

// chartName returns the file name of a workload's chart.
func chartName(workload string) string {
	return strings.Trim(notInFileName.ReplaceAllString(strings.ToLower(workload), "-"), "-") + ".svg"
}

// drawChart draws the SVG bar chart of a workload: one bar per entry, coupond's in another colour,
// and beside each bar its median and coupond's as a multiple of it.
func (r *results) drawChart(w workload) ([]byte, error) {
	const width, barHeight, titleHeight, otherHeight = 820, 34, 56, 72
	shown := w.charted
	if shown.value == nil {
		shown = metric{"claims per second", "%.0f", rate}
	}
	coupondMedian, _ := median(r.Runs[w.name][contestants.Coupond], shown.value)
	var names []string
	var coupond, others []float64
	largest := 0.0
	// In reverse, because the library draws from the bottom up.
	for _, name := range slices.Backward(r.order) {
		runs := r.Runs[w.name][name]
		if len(runs) == 0 {
			continue
		}
		middle, _ := median(runs, shown.value)
		largest = max(largest, middle)
		// The library measures text in its own font. The blanks leave room for a wider font of a
		// browser.
		names = append(names, name+"\u00a0\u00a0\u00a0")
		// Two stacked series give coupond a colour of its own. Each bar is zero in one of them.
		if name == contestants.Coupond {
			coupond, others = append(coupond, middle), append(others, 0)
		} else {
			coupond, others = append(coupond, 0), append(others, middle)
		}
	}
	height := otherHeight + barHeight*len(names)
	painter := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: width, Height: height})
	painter.FilledRect(0, 0, width, height, charts.ColorWhite, charts.ColorTransparent, 0)
	chart := charts.NewBarChartOptionWithData([][]float64{coupond, others})
	chart.Horizontal = true
	chart.StackSeries = new(true)
	// Each bar is labelled with its value, so the axis is hidden. It is longer than the longest
	// bar, to leave room for the label.
	chart.Padding = charts.NewBox(12, titleHeight, 12, 12)
	chart.ValueAxis[0].Show = new(false)
	chart.ValueAxis[0].Min, chart.ValueAxis[0].Max = new(0.), new(1.4*largest)
	chart.Theme = charts.GetTheme(charts.ThemeLight).WithSeriesColors([]charts.Color{
		charts.ParseColor("#2da44e"), charts.ParseColor("#8c959f"),
	})
	chart.Legend.Show = new(false)
	chart.CategoryAxis.Labels = names
	format := func(v float64) string {
		s := fmt.Sprintf(shown.format, v)
		if v >= 1000 {
			s = humanize.Comma(int64(math.Round(v)))
		}
		return s
	}
	for i := range chart.SeriesList {
		chart.SeriesList[i].Label.Show = new(true)
		chart.SeriesList[i].Label.ValueFormatter = func(v float64) string {
			switch {
			case v == 0:
				return "" // this bar belongs to the other series
			case i == 0 || coupondMedian == 0:
				return format(v)
			default:
				return fmt.Sprintf("%s  (coupond: %s ×)", format(v), formatRatio(coupondMedian/v))
			}
		}
	}
	if err := painter.BarChart(chart); err != nil {
		return nil, err
	}
	// After the chart: its background would cover the title.
	painter.Text(w.name+": "+shown.name, 16, 26, 0, charts.FontStyle{FontSize: 13, FontColor: charts.ColorBlack})
	subtitle := fmt.Sprintf("%s; median of %s, %s CPUs", w.description, english.Plural(r.Rounds, "round", ""), r.Machine["cpus"])
	painter.Text(subtitle, 16, 44, 0, charts.FontStyle{FontSize: 10, FontColor: charts.ParseColor("#57606a")})
	return painter.Bytes()
}

// formatRatio formats a ratio with about three significant digits.
func formatRatio(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
