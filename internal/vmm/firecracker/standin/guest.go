package standin

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"strings"
	"time"
)

// guest is the machine's memory from inside. Everything that the guest knows is in it:
//
//	0   guestMagic
//	32  uptime in nanoseconds, as of the last pause, 8 bytes
//	40  how many MiB are filled, 8 bytes
//	1 MiB and up: what is filled
type guest []byte

const guestMagic = "the stand-in's guest lives"

const (
	uptimeAt = 32
	filledAt = 40
	fillAt   = 1 << 20
)

// needed is what the guest cannot do without, in MiB.
const needed = 16

// newGuest boots a guest in an empty memory.
func newGuest(memory []byte) { copy(memory, guestMagic) }

func guestOf(memory []byte) guest { return memory }

func (g guest) alive() bool { return bytes.HasPrefix(g, []byte(guestMagic)) }

func (g guest) word(at int) int        { return int(binary.LittleEndian.Uint64(g[at:])) }
func (g guest) setWord(at, v int)      { binary.LittleEndian.PutUint64(g[at:], uint64(v)) }
func (g guest) filled() int            { return g.word(filledAt) }
func (g guest) uptime() time.Duration  { return time.Duration(g.word(uptimeAt)) }
func (g guest) tick(ran time.Duration) { g.setWord(uptimeAt, g.word(uptimeAt)+int(ran)) }

// serveGuest is the guest's agent: it answers what vmmtest/guest answers, and more.
//
//	print N                     N lines are printed to the console: ok
//	disk ID OFFSET LENGTH       the bytes there, as a Go string
//	disk ID OFFSET = TEXT       TEXT is written there: ok, or the error
func (m *machine) serveGuest(conn net.Conn) {
	// Memory that cannot be read (its file was truncated) ends Firecracker by SIGBUS; it has a status for that.
	debug.SetPanicOnFault(true)
	defer func() {
		if recover() != nil {
			m.life.end(exitSIGBUS)
		}
	}()
	in := bufio.NewScanner(conn)
	for n := 0; in.Scan(); n = 0 {
		var answer string
		if k, _ := fmt.Sscanf(in.Text(), "print %d", &n); k == 1 {
			for range n {
				m.print("a line of some length that the guest prints to its console, for whoever reads it")
			}
		}
		m.when(func() { answer = m.command(in.Text()) })
		if answer == "" {
			m.down()
		}
		if _, err := fmt.Fprintln(conn, answer); err != nil {
			return
		}
	}
}

// command does one command; it has no answer if the guest went down. Runs with the lock.
func (m *machine) command(command string) string {
	g := guestOf(m.memory)
	var n, b, at int
	var id, text string
	switch command {
	case "ping":
		return "pong"
	case "counter":
		return fmt.Sprint(m.uptime().Milliseconds())
	case "poweroff":
		return ""
	case "release":
		g.setWord(filledAt, 0)
		return "ok"
	case "free":
		if m.profile.Faults.Hollow {
			return fmt.Sprint(m.unused())
		}
		return fmt.Sprint(m.unused() - m.given())
	case "read":
		first := g[fillAt]
		for _, b := range g[fillAt : fillAt+g.filled()<<20] {
			if b != first {
				return "-1"
			}
		}
		return fmt.Sprint(first)
	}
	if strings.HasPrefix(command, "print ") {
		return "ok"
	}
	if k, _ := fmt.Sscanf(command, "fill %d %d", &n, &b); k == 2 {
		if fillAt+n<<20 > len(g) {
			return "out of memory"
		}
		for i := range n << 20 {
			g[fillAt+i] = byte(b)
		}
		g.setWord(filledAt, n)
		return "ok"
	}
	if k, _ := fmt.Sscanf(command, "disk %s %d = %s", &id, &at, &text); k == 3 && m.drives[id] != nil {
		if _, err := m.drives[id].WriteAt([]byte(text), int64(at)); err != nil {
			return err.Error()
		}
		return "ok"
	}
	if k, _ := fmt.Sscanf(command, "disk %s %d %d", &id, &at, &n); k == 3 && m.drives[id] != nil {
		p := make([]byte, n)
		if _, err := m.drives[id].ReadAt(p, int64(at)); err != nil && err != io.EOF {
			return err.Error()
		}
		return fmt.Sprintf("%q", p)
	}
	return "unknown command"
}
