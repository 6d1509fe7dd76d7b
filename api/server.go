package api

import (
	"log" // http.Server takes no other logger; serverLog carries it into zerolog
	"net/http"
	"strings"
	"time"

	"github.com/rs/zerolog"
)

// The bounds of a connection. The body's stands in body.go.
const (
	headerTimeout  = 5 * time.Second  // for the whole header of a request
	idleTimeout    = 2 * time.Minute  // between two requests of a connection
	stallTimeout   = 30 * time.Second // an answer, or the next part of a big one, that nobody takes
	maxHeaderBytes = 32 << 10         // a name takes 3 KiB of a path at the most; the rest is for cookies of others
)

// NewServer makes the http.Server that coupond and the tests share, so that both
// keep the same bounds: a header of 32 KiB within 5 s, 2 min between requests,
// 30 s for an answer to be taken. It has no address: call Serve with a listener.
// What net/http has to report goes to logger as warnings.
func NewServer(h http.Handler, logger zerolog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		// No ReadTimeout: it counts from the beginning of the header. The body has a
		// deadline of its own (exchange.setReadDeadline).
		//
		// WriteTimeout begins with the request; answers that come late or in parts
		// renew it (exchange.renewWriteDeadline).
		WriteTimeout:   stallTimeout,
		IdleTimeout:    idleTimeout,
		MaxHeaderBytes: maxHeaderBytes,
		// OPTIONS * is answered by Handler, as any other path it does not know.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(serverLog{logger}, "", 0),
	}
}

// serverLog carries net/http's own log into ours, line by line.
type serverLog struct{ log zerolog.Logger }

func (l serverLog) Write(line []byte) (int, error) {
	l.log.Warn().Msg(strings.TrimSuffix(string(line), "\n"))
	return len(line), nil
}
