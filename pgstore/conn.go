package pgstore

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// wire is one connection to PostgreSQL, below pgx. It does four things that pgx
// cannot be asked for:
//
// It never lets a cancel request out. When a context ends or a connection breaks,
// pgx dials the server again and asks it to cancel what the connection was doing
// (pgconn.asyncClose). A claim that waits for a synchronous standby would then be
// answered "claimed" although only the local disk has it. Dialling goes through
// the wire, which closes the connection instead. That also gives the place in the
// pool back at once: pgx would keep it for up to 15 s if the server does not answer.
//
// It hears the warning with which PostgreSQL says that it gave up that wait for
// another reason (an administrator's cancel, say).
//
// It measures how long each of our functions takes.
//
// It knows whether a call that failed had got beyond the preparing of its statement,
// which on a new connection is a round trip of its own.
//
// It is what pgx calls a tracer of this one connection. But for dial, its methods
// are called by the goroutine that makes the connection or the call.
type wire struct {
	mu   sync.Mutex
	conn net.Conn // nil until the connection is made

	unprepared bool // the call under way did not get beyond preparing
	inDoubt    bool // the call under way was answered, but its commit is not what it should be

	proxied bool // the session is as a proxy's must be

	metrics *metrics
	began   time.Time // the call under way
	sql     string    // of the call under way
}

// errClosedNotCancelled is what pgx hears instead of the connection it wanted for
// a cancel request.
var errClosedNotCancelled = errors.New("closed instead of cancelled")

// dialer notices within half a minute that an idle connection's server is gone.
// Calls need no such help: each of them is bounded by its context (but for inquiries).
var dialer = net.Dialer{
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
}

// connecting marks the contexts in which connections are made.
type connecting struct{}

// wireKey is where a connection's custom data hold its wire.
const wireKey = "pgstore.wire"

// newWire puts a wire under the connection that cfg, which is of this connection
// alone, is about to make; proxied: as a session of a proxy (behindProxy).
func newWire(cfg *pgx.ConnConfig, m *metrics, proxied bool) {
	w := &wire{metrics: m, proxied: proxied}
	cfg.Tracer = w
	cfg.DialFunc = w.dial
	cfg.OnNotice = w.notice
}

// wireOf returns the wire under conn, ready for the next call.
func wireOf(conn *pgx.Conn) *wire {
	w, _ := conn.PgConn().CustomData()[wireKey].(*wire) // each connection of ours has one
	w.unprepared, w.inDoubt = false, false
	return w
}

// dial makes a connection, or one of several attempts at it (sslmode=prefer, many
// hosts). If it is not for that, it is for a cancel request.
func (w *wire) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if ctx.Value(connecting{}) != nil {
		return dialer.DialContext(ctx, network, address)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn != nil { // else pgx closes the attempt itself
		_ = w.conn.Close() // nothing is left to be done about a connection that does not close
	}
	return nil, errClosedNotCancelled
}

// notice marks the call under way when PostgreSQL warns that its commit did not
// wait for the synchronous standby (01000; 57P01 when the session ends with it).
//
// 01000 is also the code of any other warning. Of these, a claim can meet only the
// two about a wraparound of transaction ids, which are about the server's future
// and would otherwise make every claim uncertain for days. What is not known stays
// in doubt.
func (w *wire) notice(_ *pgconn.PgConn, n *pgconn.Notice) {
	switch n.Code {
	case "01000", "57P01":
		switch n.Routine {
		case "GetNewTransactionId", "GetNewMultiXactId":
		case "check_old_conn": // PL/Proxy drops an idle connection to a shard, before it sends
		default:
			w.inDoubt = true
		}
	}
}

// TraceConnectStart lets dial know what it dials for.
func (w *wire) TraceConnectStart(ctx context.Context, _ pgx.TraceConnectStartData) context.Context {
	return context.WithValue(ctx, connecting{}, true)
}

// TraceConnectEnd takes hold of the connection.
func (w *wire) TraceConnectEnd(_ context.Context, data pgx.TraceConnectEndData) {
	if data.Err != nil {
		return
	}
	pgConn := data.Conn.PgConn()
	conn := pgConn.Conn()
	if encrypted, ok := conn.(*tls.Conn); ok {
		conn = encrypted.NetConn() // the TLS layer may wait up to 5 s to say goodbye
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conn = conn
	pgConn.CustomData()[wireKey] = w
}

// TracePrepareStart does nothing; pgx wants it beside TracePrepareEnd.
func (w *wire) TracePrepareStart(ctx context.Context, _ *pgx.Conn, _ pgx.TracePrepareStartData) context.Context {
	return ctx
}

// TracePrepareEnd notes whether the call under way goes on to be executed.
func (w *wire) TracePrepareEnd(_ context.Context, _ *pgx.Conn, data pgx.TracePrepareEndData) {
	w.unprepared = data.Err != nil
}

// TraceQueryStart notes which call begins.
func (w *wire) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	w.began, w.sql = time.Now(), data.SQL
	return ctx
}

// TraceQueryEnd hands on how long the call took. It comes when all rows are read.
func (w *wire) TraceQueryEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	w.metrics.called(w.sql, time.Since(w.began), data.Err)
}
