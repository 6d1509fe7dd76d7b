package api

import (
	"log" // for http.Server.ErrorLog; serverLog forwards it to zerolog
	"net/http"
	"strings"
	"time"

	"github.com/rs/zerolog"
)

// The limits of a connection; those of a request body are in body.go.
const (
	headerTimeout  = 5 * time.Second  // to receive the header of a request
	idleTimeout    = 2 * time.Minute  // between two requests of a connection
	stallTimeout   = 30 * time.Second // for the client to read a response, or the next chunk of a large one
	maxHeaderBytes = 32 << 10         // a name takes at most 3 KiB of the path; cookies may need the rest
)

// NewServer returns an http.Server with the limits that openapi.yaml documents: a header of 32 KiB
// within 5 s, 2 min between requests, 30 s for the client to read the response. It has no address:
// call Serve with a listener. Errors that net/http logs go to logger as warnings.
func NewServer(h http.Handler, logger zerolog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		// No ReadTimeout: it would include the time for the header. The body has its own deadline
		// (exchange.setReadDeadline).
		//
		// WriteTimeout starts with the request. Late or large responses renew it
		// (exchange.renewWriteDeadline).
		WriteTimeout:   stallTimeout,
		IdleTimeout:    idleTimeout,
		MaxHeaderBytes: maxHeaderBytes,
		// Handler responds to OPTIONS * as to any unknown path.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(serverLog{logger}, "", 0),
	}
}

// serverLog writes each line of net/http's log as a warning.
type serverLog struct{ log zerolog.Logger }

func (l serverLog) Write(line []byte) (int, error) {
	l.log.Warn().Msg(strings.TrimSuffix(string(line), "\n"))
	return len(line), nil
}
