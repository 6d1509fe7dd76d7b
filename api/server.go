package api

import (
	"context"
	"log" // for http.Server.ErrorLog; serverLog forwards it to zerolog
	"net"
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
	maxHeaderBytes = 16 << 10         // a name takes at most 3 KiB of the path; cookies may need the rest
	socketBuffer   = chunkSize        // of the kernel, in each direction; otherwise it grows to megabytes
)

// NewServer returns an http.Server with the limits that openapi.yaml documents: a header of 16 KiB
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
		ConnContext:                  withConn,
	}
}

// tcpConn is what the API needs of a *net.TCPConn; a listener may wrap it.
type tcpConn interface {
	SetReadBuffer(bytes int) error
	SetWriteBuffer(bytes int) error
	SetLinger(seconds int) error
}

// connKey is the key of a request's tcpConn in its context.
type connKey struct{}

// withConn is the hook for http.Server.ConnContext. It bounds the kernel's buffers of a connection,
// and adds the connection to the context of its requests.
func withConn(ctx context.Context, c net.Conn) context.Context {
	conn, ok := c.(tcpConn)
	if !ok {
		return ctx
	}
	_ = conn.SetReadBuffer(socketBuffer) // if this fails, the connection is broken
	_ = conn.SetWriteBuffer(socketBuffer)
	return context.WithValue(ctx, connKey{}, conn)
}

// setLinger sets what happens when the connection is closed: 0 resets it, -1 is the default.
func (x *exchange) setLinger(seconds int) {
	if conn, ok := x.request.Context().Value(connKey{}).(tcpConn); ok { // always, except in tests
		_ = conn.SetLinger(seconds) // if this fails, the connection is broken
	}
}

// serverLog writes each line of net/http's log as a warning.
type serverLog struct{ log zerolog.Logger }

func (l serverLog) Write(line []byte) (int, error) {
	l.log.Warn().Msg(strings.TrimSuffix(string(line), "\n"))
	return len(line), nil
}
