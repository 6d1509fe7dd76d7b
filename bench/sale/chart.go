package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/go-analyze/charts"

	"scalable-coupon-system/bench/load"
)

// chartLine is a line of a chart, with a colour of the light theme.
type chartLine struct {
	name, colour string
	value        func(load.Report) float64
}

// writeChart writes an SVG of the sale to file: the answers over time, and below them the latency.
func (s *sale) writeChart(file string) error {
	var answers []chartLine
	for _, row := range rows(s.series.all.Answers) {
		if s.series.all.Answers[row.answer] > 0 { // a line of zeros would cover the others
			answers = append(answers, chartLine{row.name, row.fill, func(r load.Report) float64 {
				return float64(r.Answers[row.answer]) / r.Elapsed.Seconds()
			}})
		}
	}
	quantile := func(percent float64) func(load.Report) float64 {
		return func(r load.Report) float64 {
			if r.Answered() == 0 {
				return charts.GetNullValue() // a gap
			}
			return float64(r.Quantile(percent)) / float64(time.Millisecond)
		}
	}
	latencies := []chartLine{{"p50", "#54aeff", quantile(50)}, {"p99", "#0969da", quantile(99)}, {"p99.9", "#0a3069", quantile(99.9)}}

	upper := s.series.chart("claims per second, by answer", answers)
	upper.StackSeries = new(true)
	upper.FillOpacity = 230
	upper.LineStrokeWidth = 0.5 // more would draw the last answer over the others where it is 0
	upper.ValueFormatter = func(v float64) string { return comma(int(v)) }
	lower := s.series.chart("latency, ms", latencies)

	const width, height, header, split = 960, 600, 44, 370
	painter := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: width, Height: height})
	painter.FilledRect(0, 0, width, header, charts.ColorWhite, charts.ColorTransparent, 0)
	painter.Text(s.options.describe(), 20, 30, 0, charts.FontStyle{FontSize: 15, FontColor: charts.ParseColor("#24292f")})
	draw := func(chart charts.LineChartOption, top, bottom int) error {
		return painter.Child(charts.PainterBoxOption(charts.NewBox(0, top, width, bottom))).LineChart(chart)
	}
	if err := errors.Join(draw(upper, header, split), draw(lower, split, height)); err != nil {
		return err
	}
	svg, err := painter.Bytes()
	if err != nil {
		return err
	}
	return os.WriteFile(file, svg, 0o644)
}

func (s *series) chart(title string, lines []chartLine) charts.LineChartOption {
	values, names, colours := make([][]float64, len(lines)), make([]string, len(lines)), make([]charts.Color, len(lines))
	var times []string
	at := time.Duration(0)
	for _, p := range s.points {
		times = append(times, fmt.Sprintf("%.1f s", at.Seconds()))
		at += p.Elapsed
	}
	for i, line := range lines {
		names[i], colours[i] = line.name, charts.ParseColor(line.colour)
		for _, p := range s.points {
			values[i] = append(values[i], line.value(p))
		}
	}
	c, small := charts.NewLineChartOptionWithData(values), charts.FontStyle{FontSize: 11, FontColor: charts.ParseColor("#24292f")}
	c.Theme = charts.GetTheme(charts.ThemeLight).WithSeriesColors(colours)
	c.Title.Text, c.Title.FontStyle = title, small
	c.Legend.SeriesNames, c.Legend.FontStyle = names, small
	c.Legend.Offset, c.Legend.Symbol = charts.OffsetRight, charts.SymbolSquare
	c.Symbol.Shape = charts.SymbolNone
	c.XAxis.Labels, c.XAxis.LabelCount, c.XAxis.BoundaryGap = times, min(len(times), 7), new(false)
	c.XAxis.LabelFontStyle = small
	c.YAxis = []charts.YAxisOption{{Min: new(0.0), LabelFontStyle: small}}
	return c
}
