package main

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/go-analyze/charts"
)

var notInFileName = regexp.MustCompile(`[^a-z0-9]+`)

// chartName returns the file name of a workload's chart.
func chartName(workload string) string {
	return strings.Trim(notInFileName.ReplaceAllString(strings.ToLower(workload), "-"), "-") + ".svg"
}

// chart draws the SVG bar chart of a workload: a bar for each entry, the reference's in green, and
// beside each bar its median and the reference's as a multiple of it.
func (r *results) chart(w workload) ([]byte, error) {
	const width, barHeight, otherHeight = 820, 34, 84
	shown := cmp.Or(w.compared, rate)
	compared := r.referenceMedian(w.name, shown)
	var names []string
	var reference, others []float64
	// In reverse, because the library draws from the bottom up.
	for _, e := range slices.Backward(r.entries[w.name]) {
		middle, _ := e.median(shown)
		// The library measures text in its own font. The blanks leave room for a wider one.
		names = append(names, e.name+"\u00a0\u00a0\u00a0")
		// Two stacked series give the reference a colour of its own. Each bar is zero in one of them.
		if e.name == r.reference {
			reference, others = append(reference, middle), append(others, 0)
		} else {
			reference, others = append(reference, 0), append(others, middle)
		}
	}
	chart := charts.NewBarChartOptionWithData([][]float64{reference, others})
	chart.Horizontal = true
	chart.StackSeries = new(true)
	chart.Padding = charts.NewBoxEqual(12)
	chart.Title.Text = w.name + ": " + string(shown)
	chart.Title.Subtext = w.description + "; median of " + strings.Join(r.about[:2], ", ")
	chart.Title.Offset = charts.OffsetLeft
	chart.Title.FontStyle = charts.FontStyle{FontSize: 13, FontColor: charts.ColorBlack}
	chart.Title.SubtextFontStyle = charts.FontStyle{FontSize: 10, FontColor: charts.ParseColor("#57606a")}
	// Each bar is labelled with its value, so the axis is hidden. It is longer than the longest bar,
	// to leave room for the label.
	chart.ValueAxis[0].Show = new(false)
	chart.ValueAxis[0].Min, chart.ValueAxis[0].Max = new(0.), new(1.4*slices.Max(slices.Concat(reference, others)))
	chart.Theme = charts.GetTheme(charts.ThemeLight).WithSeriesColors([]charts.Color{
		charts.ParseColor("#2da44e"), charts.ParseColor("#8c959f"),
	})
	chart.Legend.Show = new(false)
	chart.CategoryAxis.Labels = names
	for i := range chart.SeriesList {
		chart.SeriesList[i].Label.Show = new(true)
		chart.SeriesList[i].Label.ValueFormatter = func(v float64) string {
			switch {
			case v == 0:
				return "" // this bar belongs to the other series
			case i == 0 || !(compared > 0): // also false for NaN
				return format(v)
			default:
				return fmt.Sprintf("%s  (%s: %s)", format(v), r.reference, times(compared/v))
			}
		}
	}
	painter := charts.NewPainter(charts.PainterOptions{
		OutputFormat: charts.ChartOutputSVG, Width: width, Height: otherHeight + barHeight*len(names),
	})
	if err := painter.BarChart(chart); err != nil {
		return nil, err
	}
	return painter.Bytes()
}
