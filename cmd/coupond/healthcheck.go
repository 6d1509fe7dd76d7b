package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// healthcheckTimeout limits the whole check. The service answers /health within 2 s, and the image
// gives this command 3 s: the reason must be printed before that.
const healthcheckTimeout = 2500 * time.Millisecond

type healthcheckCommand struct {
	Listen listenSettings `embed:"" set:"listen_addr=:8080"`
}

// Help returns the details of the command's help.
func (*healthcheckCommand) Help() string {
	return `Send GET /health to the service that listens on LISTEN_ADDR, and print the result in one line. The exit status is 0 if the service is ready, and 1 if it is not or does not answer within 2.5 s. If LISTEN_ADDR has no host or a wildcard, the request goes to this machine.

For containers that have no curl.`
}

// Run checks the service.
func (c *healthcheckCommand) Run(ctx context.Context, stdout io.Writer) error {
	if strings.HasSuffix(c.Listen.ListenAddr, ":0") {
		return usageError{errors.New("LISTEN_ADDR has port 0, which means any free port: only the service knows which one; set its port")}
	}
	ctx, cancel := context.WithTimeout(ctx, healthcheckTimeout)
	defer cancel()
	url := "http://" + c.Listen.ListenAddr + "/health" // without a host, or with a wildcard, Go connects to this machine
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	// Not a client, which may use an HTTP proxy from the process's environment, and follows redirects.
	response, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(request)
	if err != nil {
		return fmt.Errorf("unhealthy: %s: %w", url, err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err != nil {
		return fmt.Errorf("unhealthy: %s: %w", url, err)
	}
	if response.StatusCode != http.StatusOK {
		reason, _, _ := strings.Cut(string(body), "\n") // another program's response may have more lines
		return fmt.Errorf("unhealthy: %s: %s: %s", url, response.Status, reason)
	}
	_, err = fmt.Fprintln(stdout, "healthy:", url)
	return err
}
