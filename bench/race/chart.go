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

// chartFile is what the chart of a workload is called.
func chartFile(workload string) string {
	return strings.Trim(notInFileName.ReplaceAllString(strings.ToLower(workload), "-"), "-") + ".svg"
}

// draw makes the bar chart of a workload as an SVG: a bar for each contestant, ours in another colour, and beside each bar
// its median and how many times as much ours is.
func (r *results) draw(w workload) ([]byte, error) {
	const width, bar, head, around = 820, 34, 56, 72
	shown := w.shows
	if shown.of == nil {
		shown = measure{"claims a second", "%.0f", rate}
	}
	ourMiddle, _ := median(r.Runs[w.name][contestants.Coupond], shown.of)
	var names []string
	var ours, others []float64
	largest := 0.0
	// From the bottom up, so that the first is on top.
	for _, name := range slices.Backward(r.order) {
		runs := r.Runs[w.name][name]
		if len(runs) == 0 {
			continue
		}
		middle, _ := median(runs, shown.of)
		largest = max(largest, middle)
		// The library measures with its own font and the reader's browser writes in another: room for a wider one.
		names = append(names, name+"\u00a0\u00a0\u00a0")
		// Two series, stacked, of which each bar has one: so that ours has a colour of its own.
		if name == contestants.Coupond {
			ours, others = append(ours, middle), append(others, 0)
		} else {
			ours, others = append(ours, 0), append(others, middle)
		}
	}
	height := around + bar*len(names)
	painter := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: width, Height: height})
	painter.FilledRect(0, 0, width, height, charts.ColorWhite, charts.ColorTransparent, 0)
	chart := charts.NewBarChartOptionWithData([][]float64{ours, others})
	chart.Horizontal = true
	chart.StackSeries = new(true)
	// Every bar says its value, so there is no axis for it; but right of the longest bar there is room to say so.
	chart.Padding = charts.NewBox(12, head, 12, 12)
	chart.ValueAxis[0].Show = new(false)
	chart.ValueAxis[0].Min, chart.ValueAxis[0].Max = new(0.), new(1.4*largest)
	chart.Theme = charts.GetTheme(charts.ThemeLight).WithSeriesColors([]charts.Color{
		charts.ParseColor("#2da44e"), charts.ParseColor("#8c959f"),
	})
	chart.Legend.Show = new(false)
	chart.CategoryAxis.Labels = names
	text := func(v float64) string {
		s := fmt.Sprintf(shown.form, v)
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
				return "" // the other series has this bar
			case i == 0 || ourMiddle == 0:
				return text(v)
			default:
				return fmt.Sprintf("%s  (ours: %s ×)", text(v), threeDigits(ourMiddle/v))
			}
		}
	}
	if err := painter.BarChart(chart); err != nil {
		return nil, err
	}
	// The chart has painted its background: the title comes after it.
	painter.Text(w.name+": "+shown.name, 16, 26, 0, charts.FontStyle{FontSize: 13, FontColor: charts.ColorBlack})
	about := fmt.Sprintf("%s; median of %s, %s CPUs", w.what, english.Plural(r.Rounds, "round", ""), r.Machine["cpus"])
	painter.Text(about, 16, 44, 0, charts.FontStyle{FontSize: 10, FontColor: charts.ParseColor("#57606a")})
	return painter.Bytes()
}

// threeDigits writes a ratio so that it tells as much when it is small.
func threeDigits(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
