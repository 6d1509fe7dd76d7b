package procmem

import (
	"bytes"
	"net"
	"os"
	"testing"
	"time"
)

// Not parallel: the peak is that of all tests of this process.
func TestPeak_ofThisProcess(t *testing.T) {
	skipWithoutProc(t)
	const size = 64 << 20
	pid := os.Getpid()
	if err := ResetPeak(pid); err != nil {
		t.Fatal(err)
	}
	before, err := Peak(pid)
	if err != nil {
		t.Fatal(err)
	}
	grown := bytes.Repeat([]byte{1}, size)
	after, err := Peak(pid)
	if added := after - before; err != nil || added < size*3/4 || added > 4*size {
		t.Errorf("allocated %d bytes, measured %d, %v", size, added, err)
	}
	if grown[size-1] != 1 {
		t.Error("the memory was not written") // this check also keeps it reachable
	}
}

func TestSendBuffers_ofAReaderThatDoesNotRead(t *testing.T) {
	skipWithoutProc(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	reader, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	_ = reader.(*net.TCPConn).SetReadBuffer(4 << 10)
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)) // the buffers are full long before
	sent, err := conn.Write(make([]byte, 16<<20))
	if err == nil {
		t.Fatalf("%d bytes were sent to a reader that does not read", sent)
	}
	if n, err := SendBuffers(listener.Addr().String()); err != nil || n < int64(sent)/2 {
		t.Errorf("%d bytes were sent, %d are in send buffers, %v", sent, n, err)
	}
	if n, err := SendBuffers(reader.LocalAddr().String()); err != nil || n > 0 {
		t.Errorf("%d bytes are in the send buffer of the reader, %v", n, err)
	}
	for _, address := range []string{"", "127.0.0.1", "127.0.0.1:http"} {
		if _, err := SendBuffers(address); err == nil {
			t.Errorf("%q: no error", address)
		}
	}
}

func skipWithoutProc(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/proc/net/tcp"); err != nil {
		t.Skip("no /proc here")
	}
}
