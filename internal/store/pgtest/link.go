package pgtest

import (
	"io"
	"net"
	"net/url"
	"path"
	"path/filepath"
	"sync"
	"testing"
)

// Link is a connection to a server over TCP that a test can cut: what runs over it then breaks, and nothing new gets through.
type Link struct {
	URL string // of the database, over this link

	listener net.Listener
	socket   string
	mu       sync.Mutex
	cut      bool
	conns    map[net.Conn]bool
	copies   sync.WaitGroup
}

func newLink(t testing.TB, s *Server, database string) *Link {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	l := &Link{socket: filepath.Join(s.dir, ".s.PGSQL.5432"), conns: map[net.Conn]bool{}}
	if l.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	l.URL = "postgres://" + account + "@" + l.listener.Addr().String() + "/" + path.Base(u.Path) + "?sslmode=disable"
	l.copies.Go(l.accept)
	t.Cleanup(func() {
		l.listener.Close()
		l.Cut()
		l.copies.Wait()
	})
	return l
}

func (l *Link) accept() {
	for {
		client, err := l.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("unix", l.socket)
		if err != nil {
			client.Close()
			continue
		}
		l.mu.Lock()
		if l.cut {
			client.Close()
			server.Close()
		} else {
			l.conns[client], l.conns[server] = true, true
			l.pass(client, server)
			l.pass(server, client)
		}
		l.mu.Unlock()
	}
}

// pass copies one way until either end goes.
func (l *Link) pass(from, to net.Conn) {
	l.copies.Go(func() {
		_, _ = io.Copy(to, from)
		from.Close()
		to.Close()
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.conns, from)
	})
}

// Cut breaks every connection and lets no new one through.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
	for conn := range l.conns {
		conn.Close()
	}
}

// Mend lets new connections through again.
func (l *Link) Mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = false
}
