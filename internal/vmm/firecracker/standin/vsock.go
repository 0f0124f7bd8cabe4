package standin

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
)

// guestPort is where the guest's agent listens.
const guestPort = 5000

// firstLocalPort is the host's end of the first connection; they are counted.
const firstLocalPort = 1 << 30

// serveVsock takes connections from the host, for as long as the machine lives.
func (m *machine) serveVsock() {
	if m.listen == nil {
		return
	}
	defer m.life.closeAtEnd(m.listen)()
	for n := 0; ; n++ {
		conn, err := m.listen.Accept()
		if err != nil {
			m.life.check()
			m.life.end(bad(exitError, "vsock: %v", err))
		}
		var deaf bool
		m.when(func() { deaf = m.deaf }) // nothing is served in a paused machine
		m.life.run(func() { m.connect(conn, n, deaf) })
	}
}

// connect leads one connection to the guest.
func (m *machine) connect(conn net.Conn, n int, deaf bool) {
	defer m.life.closeAtEnd(conn)()
	f := m.profile.Faults.Vsock
	reset, silent, cut := f.Refuse+f.Reset, f.Refuse+f.Reset+f.Silent, f.Refuse+f.Reset+f.Silent+f.Cut
	if n >= f.Refuse && n < reset {
		return
	}
	port, err := readConnect(conn)
	switch {
	case err != nil, n < f.Refuse, port != guestPort:
		return
	case n >= reset && n < silent, deaf:
		_, _ = conn.Read(make([]byte, 1)) // until the host gives up
		return
	case n >= silent && n < cut:
		_, _ = io.WriteString(conn, "O")
		return
	case m.restored && n == 0 && m.profile.Faults.FirstBreaks:
		_, _ = io.WriteString(conn, fmt.Sprintf("OK %d\n", firstLocalPort))
		_, _ = bufio.NewReader(conn).ReadString('\n') // else the host would find a reset, and not an end
		return
	case m.unsettled && n == 0:
		// The guest has taken it, and drops it with the connections of its former life. Its own end is told nothing.
		_, _ = io.WriteString(conn, fmt.Sprintf("OK %d\n", firstLocalPort))
		_, _ = io.Copy(io.Discard, conn)
		return
	}
	m.life.sleep(f.Late)
	greeting := f.Greeting
	if greeting == "" {
		greeting = fmt.Sprintf("OK %d\n", firstLocalPort+n)
	}
	// Before anybody is told of it: a snapshot may come right after.
	m.when(func() { m.conns[conn] = true })
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.conns, conn)
	}()
	if _, err := io.WriteString(conn, greeting); err != nil {
		return
	}
	for f.Flood {
		if _, err := conn.Write(bytes.Repeat([]byte{0xff}, 1<<16)); err != nil {
			return
		}
	}
	m.serveGuest(conn)
}

// readConnect reads "CONNECT n", byte by byte because what follows is the guest's.
func readConnect(r io.Reader) (port int, err error) {
	var line []byte
	for b := make([]byte, 1); len(line) < 32; line = append(line, b[0]) {
		if _, err := io.ReadFull(r, b); err != nil {
			return 0, err
		}
		if b[0] == '\n' {
			_, err := fmt.Sscanf(strings.ToLower(string(line)), "connect %d", &port)
			return port, err
		}
	}
	return 0, fmt.Errorf("the line is too long")
}
