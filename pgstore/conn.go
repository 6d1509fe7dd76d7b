package pgstore

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// serverConn is one connection to PostgreSQL, below pgx. It does what pgx has no option for:
//
//   - It never sends a cancel request. When a context ends or a connection breaks, pgx dials the
//     server again to cancel the running statement (pgconn.asyncClose). A claim that waits for a
//     synchronous standby would then return "claimed" although only the local disk has it (ADR
//     0013). So a dial for a cancel request closes the connection instead. That also frees its
//     place in the pool at once; pgx would keep it for up to 15 s if the server does not answer.
//   - It notes the warning by which PostgreSQL reports that the wait for the standby ended for
//     another reason (an administrator's cancel, for example).
//   - It measures the duration of each function call.
//   - It notes whether anything of a failed call was sent for execution. On a new connection,
//     preparing the statement is a separate round trip before it.
//
// It is the pgx tracer of this one connection. Except for dial, its methods run on the goroutine
// that makes the connection or the call.
type serverConn struct {
	mu      sync.Mutex
	netConn net.Conn // nil until the connection is made

	prepareFailed bool        // the current call failed while its statement was prepared
	sent          atomic.Bool // something was written since the call began, or since its statement was prepared
	ambiguous     bool        // the current call was answered, but perhaps the standby does not have its commit

	kind serverKind // of the server that the session is on

	metrics *metrics
	began   time.Time // of the current call
	sql     string    // of the current call
}

// errClosedNotCancelled is returned to pgx when it dials for a cancel request.
var errClosedNotCancelled = errors.New("closed instead of cancelled")

// dialer detects within half a minute that the server of an idle connection is gone. Calls are
// bounded by their contexts. A probe is not, and needs the keep-alive.
var dialer = net.Dialer{
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
}

// connecting is the context key that marks the contexts in which connections are made.
type connecting struct{}

// serverConnKey is the key of the serverConn in a connection's custom data.
const serverConnKey = "pgstore.serverConn"

// instrument installs a serverConn below the connection that cfg is about to make. cfg belongs to
// that connection alone.
func instrument(cfg *pgx.ConnConfig, m *metrics) {
	sc := &serverConn{metrics: m}
	cfg.Tracer = sc
	cfg.DialFunc = sc.dial
	cfg.OnNotice = sc.notice
	validate := cfg.ValidateConnect
	// If it returns an error, the next host of the connection string is tried.
	cfg.ValidateConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		ctx, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout)
		defer cancel()
		if validate != nil {
			if err := validate(ctx, conn); err != nil {
				return err
			}
		}
		return sc.prepare(ctx, conn)
	}
}

// serverConnOf returns the serverConn below conn. TraceConnectEnd has set it.
func serverConnOf(conn *pgx.Conn) *serverConn {
	sc, _ := conn.PgConn().CustomData()[serverConnKey].(*serverConn)
	return sc
}

// beginCall returns the serverConn below conn and resets what it noted about the previous call.
func beginCall(conn *pgx.Conn) *serverConn {
	sc := serverConnOf(conn)
	sc.prepareFailed, sc.ambiguous = false, false
	sc.sent.Store(false)
	return sc
}

// executed reports whether the current call may have been sent for execution.
func (sc *serverConn) executed() bool { return sc.sent.Load() && !sc.prepareFailed }

// noteWrites is a network connection that notes when something is written to it.
type noteWrites struct {
	net.Conn
	sent *atomic.Bool
}

func (c noteWrites) Write(b []byte) (int, error) {
	c.sent.Store(true)
	return c.Conn.Write(b)
}

// dial makes a connection. Several dials may be needed for one (sslmode=prefer, many hosts). A dial
// outside of connecting is for a cancel request: it closes the connection instead.
func (sc *serverConn) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if ctx.Value(connecting{}) != nil {
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return noteWrites{conn, &sc.sent}, nil
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if sc.netConn != nil { // else pgx closes the attempt itself
		_ = sc.netConn.Close()
	}
	return nil, errClosedNotCancelled
}

// notice marks the current call as ambiguous when PostgreSQL warns that its commit did not wait for
// the synchronous standby: 01000, or 57P01 if the session ends as well. Other warnings have these
// codes too (RAISE WARNING in a trigger, auto_explain), so the function in PostgreSQL's source that
// reports it counts. Unlike the text, it is not translated. It is the same in PostgreSQL 15 to 18.
func (sc *serverConn) notice(_ *pgconn.PgConn, n *pgconn.Notice) {
	if n.Code != "01000" && n.Code != "57P01" {
		return
	}
	switch n.Routine {
	case "SyncRepWaitForLSN":
		sc.ambiguous = true
	case "plproxy_remote_error":
		// PL/Proxy forwards a shard's warning without its function, but with its detail and
		// context. This one has a detail, and no context because the commit is not part of a
		// statement.
		sc.ambiguous = sc.ambiguous || n.Detail != "" && !strings.Contains(n.Where, "Remote context: ")
	case "": // not from PostgreSQL itself
		sc.ambiguous = true
	}
}

// TraceConnectStart marks the context for dial.
func (sc *serverConn) TraceConnectStart(ctx context.Context, _ pgx.TraceConnectStartData) context.Context {
	return context.WithValue(ctx, connecting{}, true)
}

// TraceConnectEnd stores the network connection and registers the serverConn.
func (sc *serverConn) TraceConnectEnd(_ context.Context, data pgx.TraceConnectEndData) {
	if data.Err != nil {
		return
	}
	pgConn := data.Conn.PgConn()
	netConn := pgConn.Conn()
	if encrypted, ok := netConn.(*tls.Conn); ok {
		netConn = encrypted.NetConn() // closing the TLS layer may take up to 5 s
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	sc.netConn = netConn
	pgConn.CustomData()[serverConnKey] = sc
}

// TracePrepareStart does nothing. pgx requires it together with TracePrepareEnd.
func (sc *serverConn) TracePrepareStart(ctx context.Context, _ *pgx.Conn, _ pgx.TracePrepareStartData) context.Context {
	return ctx
}

// TracePrepareEnd notes whether preparing the statement failed.
func (sc *serverConn) TracePrepareEnd(_ context.Context, _ *pgx.Conn, data pgx.TracePrepareEndData) {
	sc.prepareFailed = data.Err != nil
	sc.sent.Store(false)
}

// TraceQueryStart notes the start of a call.
func (sc *serverConn) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	sc.began, sc.sql = time.Now(), data.SQL
	return ctx
}

// TraceQueryEnd counts the call and its duration, when all rows were read.
func (sc *serverConn) TraceQueryEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	sc.metrics.countCall(sc.sql, time.Since(sc.began), data.Err)
}
