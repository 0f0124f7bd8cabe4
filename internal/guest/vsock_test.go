package guest

import (
	"net"
	"testing"

	"github.com/mdlayher/vsock"
)

// queue is a listener with connections that are there already.
type queue struct {
	net.Listener
	conns []net.Conn
}

func (q *queue) Accept() (net.Conn, error) {
	if len(q.conns) == 0 {
		return nil, net.ErrClosed
	}
	c := q.conns[0]
	q.conns = q.conns[1:]
	return c, nil
}

type from struct {
	net.Conn
	addr net.Addr
}

func (f from) RemoteAddr() net.Addr { return f.addr }

func TestOnlyTheHostIsHeardOnVsock(t *testing.T) {
	t.Parallel()
	var conns []net.Conn
	var ends []net.Conn
	for _, addr := range []net.Addr{&vsock.Addr{ContextID: vsock.Local}, &vsock.Addr{ContextID: 42}, &net.TCPAddr{}, &vsock.Addr{ContextID: vsock.Host}} {
		a, b := net.Pipe()
		defer b.Close()
		conns, ends = append(conns, from{a, addr}), append(ends, b)
	}
	want := conns[3]
	l := hostOnly{&queue{conns: conns}}
	if got, err := l.Accept(); err != nil || got != want {
		t.Errorf("accepted %v, %v", got, err)
	}
	for i, end := range ends[:3] {
		if _, err := end.Write([]byte{1}); err == nil {
			t.Errorf("connection %d was left open", i)
		}
	}
}
