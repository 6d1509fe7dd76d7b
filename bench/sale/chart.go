package main

import (
	"fmt"
	"os"
	"time"

	"github.com/go-analyze/charts"
)

// The chart has the colours of the light theme.
var (
	textColour = charts.ParseColor("#24292f")
	fills      = [kinds]string{
		claimed: "#2da44e", alreadyClaimed: "#d4a72c", outOfStock: "#afb8c1",
		unavailable: "#cf222e", noAnswer: "#8250df", unexpected: "#bf3989",
	}
	quantiles = []struct {
		name    string
		percent float64
		colour  string
	}{{"p50", 50, "#54aeff"}, {"p99", 99, "#0969da"}, {"p99.9", 99.9, "#0a3069"}}
)

// writeChart writes an SVG of the sale to file: the answers over time, and below them the latency.
func writeChart(o *options, s *series, file string) error {
	const width, height, header, split = 960, 600, 44, 370
	painter := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: width, Height: height})
	painter.FilledRect(0, 0, width, height, charts.ColorWhite, charts.ColorTransparent, 0)
	painter.Text(o.describe(), 20, 30, 0, charts.FontStyle{FontSize: 15, FontColor: textColour})

	answers, latency := answersChart(s), latencyChart(s)
	for _, part := range []struct {
		chart *charts.LineChartOption
		box   charts.Box
	}{{&answers, charts.NewBox(0, header, width, split)}, {&latency, charts.NewBox(0, split, width, height)}} {
		c, small := part.chart, charts.FontStyle{FontSize: 11, FontColor: textColour}
		c.Title.FontStyle, c.Legend.FontStyle, c.XAxis.LabelFontStyle = small, small, small
		c.Symbol.Shape = charts.SymbolNone
		c.Legend.Offset, c.Legend.Symbol = charts.OffsetRight, charts.SymbolSquare
		c.XAxis.Labels = s.labels()
		c.XAxis.LabelCount = min(len(s.points), 7)
		c.XAxis.BoundaryGap = new(false)
		c.YAxis = []charts.YAxisOption{{Min: new(0.0), LabelFontStyle: small}}
		if err := painter.Child(charts.PainterBoxOption(part.box)).LineChart(*c); err != nil {
			return err
		}
	}
	svg, err := painter.Bytes()
	if err != nil {
		return err
	}
	return os.WriteFile(file, svg, 0o644)
}

// labels returns the time at which each point begins.
func (s *series) labels() []string {
	var labels []string
	at := time.Duration(0)
	for _, p := range s.points {
		labels = append(labels, fmt.Sprintf("%.1f s", at.Seconds()))
		at += p.Elapsed
	}
	return labels
}

func answersChart(s *series) charts.LineChartOption {
	rates := make([][]float64, kinds)
	for _, p := range s.points {
		for k, n := range countByKind(p.Claims) {
			rates[k] = append(rates[k], rate(n, p.Elapsed))
		}
	}
	var shown [][]float64
	var names, colours []string
	for k := range kinds {
		if s.total[k] > 0 { // a line of zeros would cover the others
			shown, names, colours = append(shown, rates[k]), append(names, k.name()), append(colours, fills[k])
		}
	}
	c := charts.NewLineChartOptionWithData(shown)
	c.Title.Text = "claims per second, by answer"
	c.Legend.SeriesNames = names
	c.Theme = theme(colours)
	c.StackSeries = new(true)
	c.FillOpacity = 230
	c.LineStrokeWidth = 0.5 // more would draw the last answer over the others where it is 0
	c.ValueFormatter = func(v float64) string { return formatInt(int(v)) }
	return c
}

func latencyChart(s *series) charts.LineChartOption {
	var values [][]float64
	var names, colours []string
	for _, q := range quantiles {
		var line []float64
		for _, p := range s.points {
			v := charts.GetNullValue() // a gap
			if p.Claims.Answered() > 0 {
				v = float64(p.Claims.Quantile(q.percent)) / float64(time.Millisecond)
			}
			line = append(line, v)
		}
		values, names, colours = append(values, line), append(names, q.name), append(colours, q.colour)
	}
	c := charts.NewLineChartOptionWithData(values)
	c.Title.Text = "latency, ms"
	c.Legend.SeriesNames = names
	c.Theme = theme(colours)
	c.ValueFormatter = func(v float64) string { return fmt.Sprintf("%.4g", v) }
	return c
}

func theme(series []string) charts.ColorPalette {
	var colours []charts.Color
	for _, c := range series {
		colours = append(colours, charts.ParseColor(c))
	}
	return charts.GetTheme(charts.ThemeLight).WithSeriesColors(colours)
}
