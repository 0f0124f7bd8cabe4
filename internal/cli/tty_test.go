package cli_test

import (
	"context"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/internal/controlplane"
)

// terminal is a pseudo-terminal. What the program writes to it is collected in screen.
type terminal struct {
	user    *os.File // the side that somebody sits at
	program *os.File
	screen  output
}

func newTerminal(t *testing.T, columns, rows uint16) *terminal {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { user.Close() })
	fd := int(user.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{user: user, program: program}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(&term.screen, user) // ends with an error when the program's side is closed
	}()
	t.Cleanup(func() {
		_, _ = user.WriteString("\n") // ends a read of the program's standard input, which a process would end by exiting
		program.Close()
		<-done
	})
	return term
}

func (term *terminal) settings(t *testing.T) *unix.Termios {
	t.Helper()
	s, err := unix.IoctlGetTermios(int(term.program.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestExecOnATerminal(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	start(t, s, "run", "-d", "--name", "web", "nginx").exits(t, 0)
	sized := newTerminal(t, 101, 41)
	startOn(t, s, sized, "exec", "-it", "web", "size").exits(t, 0)
	says(t, &sized.screen, "101x41")

	term := newTerminal(t, 80, 25)
	before := term.settings(t)
	i := startOn(t, s, term, "exec", "-it", "web", "cat")
	if err := eventually(func() (bool, error) { return term.settings(t).Lflag&unix.ECHO == 0, nil }); err != nil {
		t.Fatalf("the terminal does not become raw: %v", err)
	}
	// A raw terminal hands Ctrl-C on and does not wait for the end of a line.
	if _, err := term.user.WriteString("\x03typed"); err != nil {
		t.Fatal(err)
	}
	says(t, &term.screen, "\x03typed")
	i.signals <- os.Interrupt // as `kill` would; the container's cat never ends
	i.exits(t, 130)
	if diff := cmp.Diff(before, term.settings(t)); diff != "" {
		t.Errorf("the terminal is not as it was (-before +after):\n%s", diff)
	}
}

func TestRunShowsThePhasesOnATerminal(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	booted, pulled := make(chan struct{}), make(chan struct{})
	s.host.OnCold = func(context.Context, controlplane.MachineSpec) error { <-booted; return nil }
	s.host.OnStart = func(ctx context.Context, c warmboot.Container) error { <-pulled; return s.onStart(ctx, c) }
	term := newTerminal(t, 120, 40)
	i := startOn(t, s, term, "run", "--name", "web", "say", "hello")
	says(t, &term.screen, "s  bringing up a microVM")
	close(booted)
	says(t, &term.screen, "s  cold boot in 13.1s; pulling say")
	close(pulled)
	i.exits(t, 0)
	says(t, &term.screen, "web: cold boot in 13.1s: No runtime snapshot available (disk 10ms, vmm 60ms, boot 4.00s, docker 9.00s), pulled in 1.00s, started in 0.30s\r\n")
	says(t, &term.screen, "hello\r\n")
	if last := term.screen.String()[strings.LastIndex(term.screen.String(), "pulling say"):]; !strings.Contains(last, "\x1b[J") {
		t.Errorf("the changing line is not taken away: %q", last)
	}
}

// startOn is start with a terminal in place of all streams.
func startOn(t *testing.T, s *server, term *terminal, args ...string) *invocation {
	t.Helper()
	i := &invocation{}
	i.run(t, s, term.program, term.program, term.program, args)
	return i
}
