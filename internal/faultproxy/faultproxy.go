// Package faultproxy is a TCP proxy in front of PostgreSQL for tests. It breaks or stalls a
// connection at a chosen message of a chosen call.
//
// Encrypted connections are forwarded without faults.
package faultproxy

import (
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Fault is what the proxy does to one call.
type Fault int

// The faults, in the order of the messages of a call. A cut resets both connections, as a broken
// network does: neither side gets a Terminate message or a regular TCP close.
const (
	// Pass forwards the call and its response.
	Pass Fault = iota
	// CutBeforeCall: the server never sees the call.
	CutBeforeCall
	// CutBeforeCommit: the server executes the call but does not get the Sync message that commits
	// it. In the simple query protocol one message does both, so there it is CutBeforeCall.
	CutBeforeCommit
	// CutAnsweredBeforeCommit: like CutBeforeCommit, but the client gets the whole response up to
	// the commit: rows and command tag.
	CutAnsweredBeforeCommit
	// CutDuring: the server has received the whole call, and the connection is cut immediately. The
	// server may or may not commit.
	CutDuring
	// CutAfterCommit: the server has committed; the client gets no byte of the response.
	CutAfterCommit
	// CutAnsweredAfterCommit: the server has committed; the client gets the whole response except
	// ReadyForQuery, which confirms the commit.
	CutAnsweredAfterCommit
	// Stall: the server never sees the call. The connection stays open and silent until the client
	// closes it.
	Stall
)

// Proxy forwards connections to one PostgreSQL server. Its methods may be called concurrently.
type Proxy struct {
	upstream       string
	listener       net.Listener
	running        sync.WaitGroup
	cancelRequests atomic.Int64
	faultFor       atomic.Value // a func(sql string) Fault

	mu     sync.Mutex
	thawed *sync.Cond
	frozen bool
	down   bool
	pairs  map[*pair]struct{}
}

// New starts a proxy on a free port of 127.0.0.1 for the server that connectionURL names (host and
// port). The caller must Close it.
func New(connectionURL string) (*Proxy, error) {
	u, err := url.Parse(connectionURL)
	if err != nil {
		return nil, errors.New("faultproxy: the connection string is not a URL")
	}
	p := &Proxy{upstream: u.Host, pairs: make(map[*pair]struct{})}
	p.thawed = sync.NewCond(&p.mu)
	if p.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	p.running.Go(p.accept)
	return p, nil
}

// URL returns connectionURL with the proxy's address instead of the server's.
func (p *Proxy) URL(connectionURL string) string {
	u, err := url.Parse(connectionURL)
	if err != nil {
		panic(err) // New has parsed it
	}
	u.Host = p.listener.Addr().String()
	return u.String()
}

// Inject sets the fault of each call from now on. faultFor gets the call's SQL; it is called once
// for each call, concurrently for several connections. nil lets all calls pass.
func (p *Proxy) Inject(faultFor func(sql string) Fault) { p.faultFor.Store(faultFor) }

// Freeze stops forwarding in both directions until Thaw. New connections are accepted but not
// forwarded.
func (p *Proxy) Freeze() { p.setFrozen(true) }

// Thaw ends Freeze. Data that was held back is forwarded.
func (p *Proxy) Thaw() { p.setFrozen(false) }

func (p *Proxy) setFrozen(frozen bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = frozen
	p.thawed.Broadcast()
}

// SetDown makes the server seem down or up. While it is down, all connections are cut, new ones as
// soon as they are accepted.
func (p *Proxy) SetDown(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = down
	if down {
		for c := range p.pairs {
			c.cut()
		}
	}
}

// CutAll cuts all open connections. It is SetDown(true) and then SetDown(false), so new connections
// are cut in between, and an outage that was set has ended.
func (p *Proxy) CutAll() {
	p.SetDown(true)
	p.SetDown(false)
}

// CancelRequests returns how many cancel requests clients have sent so far.
func (p *Proxy) CancelRequests() int { return int(p.cancelRequests.Load()) }

// Connections returns the number of open connections.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.pairs)
}

// Close cuts all connections and returns when all of the proxy's goroutines have ended.
func (p *Proxy) Close() {
	_ = p.listener.Close()
	p.SetDown(true)
	p.Thaw()
	p.running.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.running.Go(func() { p.serve(client) })
	}
}

// serve forwards one connection until either end or a fault closes it.
func (p *Proxy) serve(client net.Conn) {
	p.waitThawed()
	server, err := net.Dial("tcp", p.upstream)
	if err != nil {
		_ = client.Close()
		return
	}
	c := &pair{proxy: p, clientConn: gate{client, p}, serverConn: gate{server, p}}
	c.client, c.server = pgproto3.NewBackend(client, c.clientConn), pgproto3.NewFrontend(server, c.serverConn)
	p.mu.Lock()
	if p.down {
		c.cut()
	}
	p.pairs[c] = struct{}{}
	p.mu.Unlock()

	var responses sync.WaitGroup
	if c.forwardStartup() == nil {
		responses.Go(func() {
			c.forwardResponses()
			c.cut()
		})
		c.forwardCalls()
	}
	c.cut()
	responses.Wait()

	p.mu.Lock()
	delete(p.pairs, c)
	p.mu.Unlock()
}

// waitThawed returns when the proxy is not frozen.
func (p *Proxy) waitThawed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.frozen {
		p.thawed.Wait()
	}
}

func (p *Proxy) faultOf(sql string) Fault {
	if faultFor, _ := p.faultFor.Load().(func(sql string) Fault); faultFor != nil {
		return faultFor(sql)
	}
	return Pass
}

// gate is a connection that is written to only while the proxy is not frozen.
type gate struct {
	net.Conn

	proxy *Proxy
}

func (g gate) Write(p []byte) (int, error) {
	g.proxy.waitThawed()
	return g.Conn.Write(p)
}

// pair is one forwarded connection: both ends, and the fault of the call in progress.
type pair struct {
	proxy                  *Proxy
	clientConn, serverConn gate
	client                 *pgproto3.Backend  // is the server of the client
	server                 *pgproto3.Frontend // is the client of the server
	encrypted              bool
	fault                  atomic.Int64 // a Fault
}

// cut resets both connections. It may be called more than once.
func (c *pair) cut() {
	for _, end := range []gate{c.clientConn, c.serverConn} {
		_ = end.Conn.(*net.TCPConn).SetLinger(0) // send RST instead of FIN
		_ = end.Close()
	}
}

func (c *pair) setFault(f Fault)    { c.fault.Store(int64(f)) }
func (c *pair) currentFault() Fault { return Fault(c.fault.Load()) }

func (c *pair) toServer(message pgproto3.FrontendMessage) error {
	c.server.Send(message)
	return c.server.Flush()
}

func (c *pair) toClient(message pgproto3.BackendMessage) error {
	c.client.Send(message)
	return c.client.Flush()
}

// forwardStartup forwards the client's first message, and what it and the server agree on
// encryption before that.
func (c *pair) forwardStartup() error {
	for {
		message, err := c.client.ReceiveStartupMessage()
		if err != nil {
			return err
		}
		if err := c.toServer(message); err != nil {
			return err
		}
		switch message.(type) {
		case *pgproto3.SSLRequest, *pgproto3.GSSEncRequest:
			var reply [1]byte // N means no, any other byte means yes
			if _, err := io.ReadFull(c.serverConn, reply[:]); err != nil {
				return err
			}
			c.encrypted = reply[0] != 'N'
			if _, err := c.clientConn.Write(reply[:]); err != nil || c.encrypted {
				return err
			}
		case *pgproto3.CancelRequest:
			c.proxy.cancelRequests.Add(1)
			return nil
		default:
			return nil
		}
	}
}

// forwardCalls forwards the client's messages and applies the fault of each call.
func (c *pair) forwardCalls() {
	if c.encrypted {
		_, _ = io.Copy(c.serverConn, c.clientConn)
		return
	}
	statements := make(map[string]string) // prepared statements: name to SQL
	portals := make(map[string]string)    // bound portals: name to SQL
	for {
		message, err := c.client.Receive()
		if err != nil {
			return
		}
		complete := false // the message is the last one of a call
		switch m := message.(type) {
		case *pgproto3.Parse:
			statements[m.Name] = m.Query
		case *pgproto3.Bind:
			portals[m.DestinationPortal] = statements[m.PreparedStatement]
		case *pgproto3.Execute:
			c.setFault(c.proxy.faultOf(portals[m.Portal]))
		case *pgproto3.Query:
			complete = true
			f := c.proxy.faultOf(m.String)
			if f == CutBeforeCommit || f == CutAnsweredBeforeCommit {
				f = CutBeforeCall // a simple query commits in the same message
			}
			c.setFault(f)
		case *pgproto3.Sync:
			complete = true
			if f := c.currentFault(); f == CutBeforeCommit || f == CutAnsweredBeforeCommit {
				message = &pgproto3.Flush{} // execute without the commit; forwardResponses cuts the connection
			}
		}
		switch c.currentFault() {
		case CutBeforeCall:
			return
		case Stall:
			_, _ = io.Copy(io.Discard, c.clientConn)
			return
		}
		if c.toServer(message) != nil || complete && c.currentFault() == CutDuring {
			return
		}
	}
}

// forwardResponses forwards the server's messages as far as the call's fault permits.
func (c *pair) forwardResponses() {
	if c.encrypted {
		_, _ = io.Copy(c.clientConn, c.serverConn)
		return
	}
	for {
		message, err := c.server.Receive()
		if err != nil {
			return
		}
		f := c.currentFault()
		switch message.(type) {
		case pgproto3.AuthenticationResponseMessage:
			_ = c.client.SetAuthType(c.server.GetAuthType()) // what the client answers depends on it
		case *pgproto3.CommandComplete:
			switch f {
			case CutBeforeCommit:
				return
			case CutAnsweredBeforeCommit:
				_ = c.toClient(message)
				return
			}
		case *pgproto3.ReadyForQuery: // committed
			switch f {
			case CutAfterCommit, CutAnsweredAfterCommit, CutDuring: // CutDuring gets here if the server answers before the cut
				return
			}
			c.setFault(Pass)
		}
		switch c.currentFault() {
		case CutBeforeCommit, CutAfterCommit, CutDuring:
			continue // the client gets nothing
		}
		if c.toClient(message) != nil {
			return
		}
	}
}
