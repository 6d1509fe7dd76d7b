// Package faultproxy is a TCP proxy in front of PostgreSQL for tests. It breaks or stalls a
// connection at a chosen message of a chosen call.
//
// It parses as much of PostgreSQL's protocol as it needs to know which statement a client is about
// to execute and when the server has committed it. Encrypted connections are forwarded unchanged,
// without faults.
package faultproxy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
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
	cancelRequests atomic.Int64

	mu       sync.Mutex
	thawed   *sync.Cond
	listener net.Listener
	faultFor func(sql string) Fault
	frozen   bool
	down     bool
	closed   bool
	pairs    map[*pair]struct{}
	running  sync.WaitGroup
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
func (p *Proxy) Inject(faultFor func(sql string) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faultFor = faultFor
}

// Freeze stops forwarding in both directions until Thaw. New connections are accepted but not
// forwarded.
func (p *Proxy) Freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = true
}

// Thaw ends Freeze. Data that was held back is forwarded.
func (p *Proxy) Thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = false
	p.thawed.Broadcast()
}

// SetDown makes the server seem down or up. While it is down, all connections are cut, new ones as
// soon as they are accepted.
func (p *Proxy) SetDown(down bool) {
	p.mu.Lock()
	p.down = down
	p.mu.Unlock()
	if down {
		p.CutAll()
	}
}

// CutAll cuts all open connections.
func (p *Proxy) CutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.pairs {
		c.cut()
	}
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
	p.mu.Lock()
	p.closed, p.frozen = true, false
	_ = p.listener.Close()
	for c := range p.pairs {
		c.cut()
	}
	p.thawed.Broadcast()
	p.mu.Unlock()
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
	c := &pair{proxy: p, client: client, server: server}
	p.mu.Lock()
	if p.closed || p.down {
		c.cut()
	}
	p.pairs[c] = struct{}{}
	p.mu.Unlock()

	var responses sync.WaitGroup
	responses.Go(func() {
		c.forwardResponses()
		c.cut()
	})
	c.forwardCalls()
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

func (p *Proxy) fault(sql string) Fault {
	p.mu.Lock()
	faultFor := p.faultFor
	p.mu.Unlock()
	if faultFor == nil {
		return Pass
	}
	return faultFor(sql)
}

// pair is one forwarded connection: both ends, and the fault of the call in progress.
type pair struct {
	proxy          *Proxy
	client, server net.Conn

	mu                  sync.Mutex
	fault               Fault
	encryptionRequested bool // the server's next byte answers the client's request for encryption
}

// cut resets both connections. It may be called more than once.
func (c *pair) cut() {
	for _, conn := range []net.Conn{c.client, c.server} {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // send RST instead of FIN
		}
		_ = conn.Close()
	}
}

// takeEncryptionRequest reports whether the server's next byte answers a request for encryption. It
// is true once for each request.
func (c *pair) takeEncryptionRequest() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	requested := c.encryptionRequested
	c.encryptionRequested = false
	return requested
}

func (c *pair) setFault(f Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = f
}

func (c *pair) currentFault() Fault {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fault
}

// send forwards a message, after a Thaw if the proxy is frozen. It reports whether it was written.
func (c *pair) send(to net.Conn, message []byte) bool {
	c.proxy.waitThawed()
	_, err := to.Write(message)
	return err == nil
}

// copy forwards an encrypted stream.
func (c *pair) copy(to net.Conn, from io.Reader) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 && !c.send(to, buffer[:n]) || err != nil {
			return
		}
	}
}

// The codes of a client's first message, besides the protocol version.
const (
	cancelRequest = 80877102
	sslRequest    = 80877103
	gssRequest    = 80877104
)

// forwardCalls forwards the client's messages and applies the fault of each call.
func (c *pair) forwardCalls() {
	from := bufio.NewReader(c.client)
	for {
		message, err := readMessage(from, 0)
		if err != nil {
			return
		}
		code := 0
		if len(message) >= 8 {
			code = int(binary.BigEndian.Uint32(message[4:]))
		}
		if code == cancelRequest {
			c.proxy.cancelRequests.Add(1)
		}
		encryption := code == sslRequest || code == gssRequest
		c.mu.Lock()
		c.encryptionRequested = encryption
		c.mu.Unlock()
		if !c.send(c.server, message) {
			return
		}
		if !encryption {
			break
		}
		// The length of a message begins with a zero byte. Anything else is encrypted.
		if first, err := from.Peek(1); err != nil || first[0] != 0 {
			c.copy(c.server, from)
			return
		}
	}

	statements := make(map[string]string) // prepared statements: name to SQL
	portals := make(map[string]string)    // bound portals: name to SQL
	for {
		message, err := readMessage(from, 1)
		if err != nil {
			return
		}
		var fields [2]string
		rest := message[5:]
		for i := range fields {
			field, after, _ := bytes.Cut(rest, []byte{0})
			fields[i], rest = string(field), after
		}

		switch message[0] {
		case 'P': // Parse: statement, SQL
			statements[fields[0]] = fields[1]
		case 'B': // Bind: portal, statement
			portals[fields[0]] = statements[fields[1]]
		case 'E', 'Q': // Execute: portal; Query: SQL
			sql := fields[0]
			if message[0] == 'E' {
				sql = portals[fields[0]]
			}
			f := c.proxy.fault(sql)
			if message[0] == 'Q' && (f == CutBeforeCommit || f == CutAnsweredBeforeCommit) {
				f = CutBeforeCall // a simple query commits in the same message
			}
			switch f {
			case CutBeforeCall:
				return
			case Stall:
				_, _ = io.Copy(io.Discard, from)
				return
			}
			c.setFault(f)
		case 'S': // Sync: commit
			switch c.currentFault() {
			case CutBeforeCommit, CutAnsweredBeforeCommit:
				message[0] = 'H' // Flush: execute without the commit; forwardResponses cuts the connection
			}
		}
		if !c.send(c.server, message) {
			return
		}
		if c.currentFault() == CutDuring && (message[0] == 'S' || message[0] == 'Q') {
			return
		}
	}
}

// forwardResponses forwards the server's messages as far as the call's fault permits.
func (c *pair) forwardResponses() {
	from := bufio.NewReader(c.server)
	for {
		if _, err := from.Peek(1); err != nil {
			return
		}
		if c.takeEncryptionRequest() {
			reply, _ := from.ReadByte() // N means no, any other byte means yes
			if !c.send(c.client, []byte{reply}) {
				return
			}
			if reply != 'N' {
				c.copy(c.client, from)
				return
			}
			continue
		}

		message, err := readMessage(from, 1)
		if err != nil {
			return
		}
		switch f := c.currentFault(); message[0] {
		case 'C': // CommandComplete
			switch f {
			case CutBeforeCommit:
				return
			case CutAnsweredBeforeCommit:
				c.send(c.client, message)
				return
			}
		case 'Z': // ReadyForQuery: committed
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
		if !c.send(c.client, message) {
			return
		}
	}
}

// readMessage reads one message: header bytes, then its length (4 bytes, which include themselves),
// then the rest.
func readMessage(from *bufio.Reader, header int) ([]byte, error) {
	start, err := from.Peek(header + 4)
	if err != nil {
		return nil, err
	}
	message := make([]byte, header+int(binary.BigEndian.Uint32(start[header:])))
	_, err = io.ReadFull(from, message)
	return message, err
}
