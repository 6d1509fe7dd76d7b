// Package faultproxy is a TCP proxy in front of PostgreSQL, for tests of what happens
// when the connection to it breaks or stalls at a chosen moment of a chosen call.
//
// It reads as much of PostgreSQL's protocol as it needs to know which statement a
// client is about to execute, and when the server has committed it. Of an encrypted
// connection it sees neither; it is forwarded as it is.
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

// The faults, in the order of a call's life. After each that cuts both connections are
// gone, as after a cable was cut: nobody says goodbye.
const (
	// Pass forwards the call and its answer.
	Pass Fault = iota
	// CutBeforeCall: the server never sees the call.
	CutBeforeCall
	// CutBeforeCommit: the server executes the call but is never told to commit it. (In
	// the simple query protocol the two are one; there it is CutBeforeCall.)
	CutBeforeCommit
	// CutAnsweredBeforeCommit: as CutBeforeCommit, but the client has got all of the
	// answer that comes before the commit: rows and command tag.
	CutAnsweredBeforeCommit
	// CutDuring: the server has got all of the call, and the connection is cut at
	// once. Whether it commits is for it to know.
	CutDuring
	// CutAfterCommit: the server has committed; the client gets no byte of the answer.
	CutAfterCommit
	// CutAnsweredAfterCommit: the server has committed; the client gets all of the
	// answer but the word that it is committed.
	CutAnsweredAfterCommit
	// Stall: the server never sees the call, and the connection stands, in silence, until
	// the client closes it.
	Stall
)

// Proxy forwards connections to one PostgreSQL server. Its methods may be called
// concurrently.
type Proxy struct {
	upstream       string
	cancelRequests atomic.Int64

	mu       sync.Mutex
	thawed   *sync.Cond
	listener net.Listener
	plan     func(sql string) Fault
	frozen   bool
	away     bool
	closed   bool
	pairs    map[*pair]struct{}
	running  sync.WaitGroup
}

// New starts a proxy on a free port of 127.0.0.1, in front of the server that the
// connection URL names (host and port). Close it.
func New(connectionURL string) (*Proxy, error) {
	u, err := url.Parse(connectionURL)
	if err != nil {
		return nil, errors.New("not a URL")
	}
	p := &Proxy{upstream: u.Host, pairs: make(map[*pair]struct{})}
	p.thawed = sync.NewCond(&p.mu)
	if p.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	p.running.Go(p.accept)
	return p, nil
}

// URL is connectionURL by way of the proxy.
func (p *Proxy) URL(connectionURL string) string {
	u, err := url.Parse(connectionURL)
	if err != nil {
		panic(err) // New has parsed it
	}
	u.Host = p.listener.Addr().String()
	return u.String()
}

// Inject sets what happens to calls from now on: plan is asked once for each, with
// its SQL, and may be asked by many connections at once. nil lets all of them pass.
func (p *Proxy) Inject(plan func(sql string) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plan = plan
}

// Freeze lets no byte through, in neither direction, until Thaw. New connections
// are accepted and find the same silence.
func (p *Proxy) Freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = true
}

// Thaw ends Freeze. What was held back goes on its way.
func (p *Proxy) Thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = false
	p.thawed.Broadcast()
}

// SetDown says whether the server is to seem away: then every connection is cut, and new
// ones are cut as soon as they are made.
func (p *Proxy) SetDown(away bool) {
	p.mu.Lock()
	p.away = away
	p.mu.Unlock()
	if away {
		p.CutAll()
	}
}

// CutAll cuts every connection there is.
func (p *Proxy) CutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.pairs {
		c.cut()
	}
}

// CancelRequests is the number of cancel requests that clients have made so far.
func (p *Proxy) CancelRequests() int { return int(p.cancelRequests.Load()) }

// Open is the number of connections that stand now.
func (p *Proxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.pairs)
}

// Close cuts everything and returns when nothing of the proxy runs any more.
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

// serve forwards one connection until either end, or the plan, ends it.
func (p *Proxy) serve(client net.Conn) {
	p.hold()
	server, err := net.Dial("tcp", p.upstream)
	if err != nil {
		_ = client.Close()
		return
	}
	c := &pair{proxy: p, client: client, server: server}
	p.mu.Lock()
	if p.closed || p.away {
		c.cut()
	}
	p.pairs[c] = struct{}{}
	p.mu.Unlock()

	var answers sync.WaitGroup
	answers.Go(func() {
		c.forwardAnswers()
		c.cut()
	})
	c.forwardCalls()
	c.cut()
	answers.Wait()

	p.mu.Lock()
	delete(p.pairs, c)
	p.mu.Unlock()
}

// hold returns when the proxy is not frozen.
func (p *Proxy) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.frozen {
		p.thawed.Wait()
	}
}

func (p *Proxy) fault(sql string) Fault {
	p.mu.Lock()
	plan := p.plan
	p.mu.Unlock()
	if plan == nil {
		return Pass
	}
	return plan(sql)
}

// pair is one forwarded connection: its two ends, and the fault of the call that is
// under way.
type pair struct {
	proxy          *Proxy
	client, server net.Conn

	mu    sync.Mutex
	fault Fault
	asked bool // the client asked for encryption, and waits for the server's word
}

// cut ends both connections without a goodbye; twice does no harm.
func (c *pair) cut() {
	for _, conn := range []net.Conn{c.client, c.server} {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // reset, not closed in good order
		}
		_ = conn.Close()
	}
}

// negotiating tells, once for each request, that the server's next byte is its word
// about encryption.
func (c *pair) negotiating() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	asked := c.asked
	c.asked = false
	return asked
}

func (c *pair) set(f Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = f
}

func (c *pair) current() Fault {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fault
}

// send forwards bytes, later if the proxy is frozen.
func (c *pair) send(to net.Conn, message []byte) bool {
	c.proxy.hold()
	_, err := to.Write(message)
	return err == nil
}

// copy forwards bytes that are encrypted.
func (c *pair) copy(to net.Conn, from io.Reader) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 && !c.send(to, buffer[:n]) || err != nil {
			return
		}
	}
}

// What a client can begin a connection with, besides the protocol's version.
const (
	cancelRequest = 80877102
	sslRequest    = 80877103
	gssRequest    = 80877104
)

// forwardCalls forwards what the client sends and applies the plan to each call.
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
		c.asked = encryption
		c.mu.Unlock()
		if !c.send(c.server, message) {
			return
		}
		if !encryption {
			break
		}
		// A length begins with a zero; anything else is encrypted.
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
				f = CutBeforeCall // a simple query brings its commit along
			}
			switch f {
			case CutBeforeCall:
				return
			case Stall:
				_, _ = io.Copy(io.Discard, from)
				return
			}
			c.set(f)
		case 'S': // Sync: commit
			switch c.current() {
			case CutBeforeCommit, CutAnsweredBeforeCommit:
				message[0] = 'H' // Flush: all but the commit. forwardAnswers cuts.
			}
		}
		if !c.send(c.server, message) {
			return
		}
		if c.current() == CutDuring && (message[0] == 'S' || message[0] == 'Q') {
			return
		}
	}
}

// forwardAnswers forwards what the server sends, as far as the call's fault lets it.
func (c *pair) forwardAnswers() {
	from := bufio.NewReader(c.server)
	for {
		if _, err := from.Peek(1); err != nil {
			return
		}
		if c.negotiating() {
			word, _ := from.ReadByte() // a single byte: N, no; anything else, yes
			if !c.send(c.client, []byte{word}) {
				return
			}
			if word != 'N' {
				c.copy(c.client, from)
				return
			}
			continue
		}

		message, err := readMessage(from, 1)
		if err != nil {
			return
		}
		switch f := c.current(); message[0] {
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
			case CutAfterCommit, CutAnsweredAfterCommit, CutDuring: // the latter where the server is quicker than our own cut
				return
			}
			c.set(Pass)
		}
		switch c.current() {
		case CutBeforeCommit, CutAfterCommit, CutDuring:
			continue // the client gets nothing
		}
		if !c.send(c.client, message) {
			return
		}
	}
}

// readMessage reads a message whose length stands after a header of so many bytes.
func readMessage(from *bufio.Reader, header int) ([]byte, error) {
	start, err := from.Peek(header + 4)
	if err != nil {
		return nil, err
	}
	message := make([]byte, header+int(binary.BigEndian.Uint32(start[header:])))
	_, err = io.ReadFull(from, message)
	return message, err
}
