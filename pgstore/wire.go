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

// wire is one connection to PostgreSQL, below pgx. It does two things that pgx
// cannot be asked for:
//
// It never lets a cancel request out. When a context ends or a connection breaks,
// pgx dials the server again and asks it to cancel what the connection was doing
// (pgconn.asyncClose). A claim that waits for a synchronous standby would then be
// answered "claimed" although only the local disk has it. Dialling goes through
// the wire, which, once connected, closes the connection instead. That also gives
// the place in the pool back at once: pgx would keep it for up to 15 s if the
// server does not answer.
//
// It hears the warning with which PostgreSQL says that it gave up that wait for
// another reason (an administrator's cancel, say).
type wire struct {
	mu   sync.Mutex
	conn net.Conn // the connection once it is made; nil while it is being made

	// inDoubt: the call under way was answered, but its commit is not what it should
	// be. Notices are handled by the goroutine that makes the call.
	inDoubt bool
}

// errClosedNotCancelled is what pgx hears instead of the connection it wanted for
// a cancel request.
var errClosedNotCancelled = errors.New("closed instead of cancelled")

// dialer notices within half a minute that an idle connection's server is gone.
// Calls need no such help: each of them is bounded by its context.
var dialer = net.Dialer{
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
}

// wireKey is where a connection's custom data hold its wire.
const wireKey = "pgstore.wire"

// newWire puts a wire under the connection that cfg, which is of this connection
// alone, is about to make.
func newWire(cfg *pgx.ConnConfig) {
	w := new(wire)
	cfg.DialFunc = w.dial
	cfg.OnNotice = w.notice
	cfg.AfterConnect = w.connected
}

// wireOf returns the wire under conn.
func wireOf(conn *pgx.Conn) *wire {
	return conn.PgConn().CustomData()[wireKey].(*wire)
}

// dial connects, several times if need be (sslmode=prefer, many hosts), until
// there is a connection. Asked again after that, it can only be for a cancel
// request. One that is asked for earlier, for a connection that broke while it was
// being made, does no harm: no claim is on it.
func (w *wire) dial(ctx context.Context, network, address string) (net.Conn, error) {
	w.mu.Lock()
	conn := w.conn
	w.mu.Unlock()
	if conn != nil {
		_ = conn.Close() // nothing is left to be done about a connection that does not close
		return nil, errClosedNotCancelled
	}
	return dialer.DialContext(ctx, network, address)
}

// connected is called once the connection is made.
func (w *wire) connected(_ context.Context, pgConn *pgconn.PgConn) error {
	conn := pgConn.Conn()
	if encrypted, ok := conn.(*tls.Conn); ok {
		conn = encrypted.NetConn() // closing the TLS layer would wait up to 5 s to say goodbye
	}
	w.mu.Lock()
	w.conn = conn
	w.mu.Unlock()
	pgConn.CustomData()[wireKey] = w
	return nil
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
		default:
			w.inDoubt = true
		}
	}
}
