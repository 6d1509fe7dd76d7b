package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestNewLogger(t *testing.T) {
	for _, c := range []struct {
		config logConfig
		json   bool
		lines  int
	}{
		{logConfig{Level: "info"}, true, 1}, // a buffer is not a terminal
		{logConfig{Level: "debug", Format: "json"}, true, 2},
		{logConfig{Level: "info", Format: "console"}, false, 1},
		{logConfig{Level: "error", Format: "console"}, false, 0},
	} {
		var text bytes.Buffer
		out := newOutput(&text)
		config := c.config
		log, err := newLogger(out, &config)
		if err != nil {
			t.Fatal(err)
		}
		log.Info().Str("key", "value").Msg("hello")
		log.Debug().Msg("details")
		out.close()
		if lines := strings.Count(text.String(), "\n"); lines != c.lines {
			t.Errorf("%+v: %d lines, want %d:\n%s", c.config, lines, c.lines, text.String())
		}
		for line := range strings.Lines(text.String()) {
			if json.Valid([]byte(line)) != c.json || strings.Contains(line, "\x1b") {
				t.Errorf("%+v: line %q", c.config, line)
			}
		}
		if want := map[bool]string{true: "json", false: "console"}[c.json]; config.Format != want {
			t.Errorf("%+v: config.Format is %q, want %q", c.config, config.Format, want)
		}
	}
}
