package api

import (
	"log"
	"net/http"
	"time"

	"github.com/rs/zerolog"
)

// The bounds of a connection. What one request may take is bounded in Handler.
const (
	headerTimeout  = 5 * time.Second  // the whole request header
	idleTimeout    = 2 * time.Minute  // a keep-alive connection between two requests
	stallTimeout   = 30 * time.Second // an answer nobody takes
	maxHeaderBytes = 32 << 10         // a name of 255 characters takes 3 KiB in a path
)

// NewServer makes the http.Server that coupond and the tests share, so that
// both keep the same bounds: header 5 s and 32 KiB, idle connections 2 min,
// answers 30 s. It has no address: give it a listener. What net/http has to
// report goes to log, as warnings.
func NewServer(h http.Handler, logger zerolog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		WriteTimeout:      stallTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          log.New(serverLog{logger}, "", 0),
	}
}

// serverLog is net/http's own log, line by line, in ours.
type serverLog struct{ log zerolog.Logger }

func (l serverLog) Write(line []byte) (int, error) {
	l.log.Warn().Msg(string(line))
	return len(line), nil
}
