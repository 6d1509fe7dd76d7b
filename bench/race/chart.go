package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/go-analyze/charts"
)

// chartName returns the file name of a workload's chart.
func chartName(workload string) string {
	return strings.NewReplacer(" ", "-", ",", "-").Replace(strings.ToLower(workload)) + ".svg"
}

// chart draws the SVG bar chart of a workload: a bar for each entry, the reference's in green, and
// beside each bar its median and the reference's as a multiple of it.
func (r *race) chart(w workload) ([]byte, error) {
	const width, barHeight, otherHeight = 820, 34, 84
	compared := r.referenceMedian(w)
	var names []string
	var reference, others []float64
	// In reverse, because the library draws from the bottom up.
	for _, e := range slices.Backward(w.entries) {
		// The library measures text in its own font. The blanks leave room for a wider one.
		names = append(names, e.title+"\u00a0\u00a0\u00a0")
		// Two stacked series give the reference a colour of its own. Each bar is zero in one of them.
		middle, _ := e.median(w.compared)
		if e.title == r.reference {
			reference, others = append(reference, middle), append(others, 0)
		} else {
			reference, others = append(reference, 0), append(others, middle)
		}
	}
	chart := charts.NewBarChartOptionWithData([][]float64{reference, others})
	chart.Horizontal = true
	chart.StackSeries = new(true)
	chart.Padding = charts.NewBoxEqual(12)
	chart.Title.Text = w.name + ": " + string(w.compared)
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
	chart.SeriesList[0].Label = charts.SeriesLabel{Show: new(true), ValueFormatter: format}
	chart.SeriesList[1].Label = charts.SeriesLabel{Show: new(true), ValueFormatter: func(v float64) string {
		if v == 0 || compared == 0 {
			return format(v)
		}
		return fmt.Sprintf("%s  (%s: %s ×)", format(v), r.reference, format(compared/v))
	}}
	painter := charts.NewPainter(charts.PainterOptions{
		OutputFormat: charts.ChartOutputSVG, Width: width, Height: otherHeight + barHeight*len(names),
	})
	if err := painter.BarChart(chart); err != nil {
		return nil, err
	}
	return painter.Bytes()
}
