// Command guest is the /init of the suite's test machines: the smallest guest that can show what a driver does to it.
// It answers line commands on the driver's guest channel, one connection after the other: on a virtio-serial port, or else on vsock. Before
// that it loads the modules in /lib/modules, in the order of their names.
//
//	ping         pong
//	counter      how often a loop in the guest has gone round, once a millisecond
//	fill N BYTE  N MiB of memory are set to BYTE
//	read         the byte that the memory was last set to, after checking all of it; -1 if it is not all the same, or released
//	release      the memory is the kernel's again: ok
//	free         how many MiB the kernel has free
//	patch N      the kernel changes the code of its scheduler N times and back, while it is busy on every CPU: ok
//	poweroff     the machine is powered off
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

const (
	portName  = "org.warmboot.agent.0"
	vsockPort = 5000
)

func main() {
	fmt.Fprintln(os.Stderr, "guest:", run()) // it returns only when something is wrong
	// Firecracker has no power to switch off, but ends when the machine restarts; QEMU is told to do the same (-no-reboot).
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
}

func run() error {
	for _, m := range [][2]string{{"devtmpfs", "/dev"}, {"sysfs", "/sys"}} {
		if err := syscall.Mount("none", m[1], m[0], 0, ""); err != nil && err != syscall.EBUSY {
			return fmt.Errorf("mount %s: %w", m[0], err)
		}
	}
	var g guest
	go func() {
		for range time.Tick(time.Millisecond) {
			g.counter.Add(1)
		}
	}()
	if err := loadModules(); err != nil {
		return err
	}
	path, err := port()
	if err != nil {
		if l, vsockErr := vsock.Listen(vsockPort, nil); vsockErr == nil {
			return g.serveVsock(l)
		}
		return err
	}
	// It stays open from one connection to the next: whatever has come in when a port is closed is thrown away, and that
	// may be the first words of the next connection.
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for {
		if err := g.serve(f); err != nil {
			return err
		}
		// The port reports an end of file for as long as nobody is connected to it on the host.
		time.Sleep(5 * time.Millisecond)
	}
}

func (g *guest) serveVsock(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		err = g.serve(conn)
		conn.Close()
		if errors.Is(err, errPoweroff) {
			return err
		}
	}
}

// loadModules loads what the kernel needs to find its devices. They may be compressed, as a distribution keeps them.
func loadModules() error {
	files, err := filepath.Glob("/lib/modules/*")
	for _, path := range files {
		f, openErr := os.Open(path)
		if openErr != nil {
			return openErr
		}
		flags := unix.MODULE_INIT_COMPRESSED_FILE
		if strings.HasSuffix(path, ".ko") {
			flags = 0
		}
		if loadErr := unix.FinitModule(int(f.Fd()), "", flags); loadErr != nil && loadErr != unix.EEXIST {
			err = errors.Join(err, fmt.Errorf("load %s: %w", path, loadErr))
		}
		f.Close()
	}
	return err
}

// port finds the device of the guest channel by its name.
func port() (string, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return "", err
	}
	for _, n := range names {
		name, err := os.ReadFile(n)
		if err == nil && strings.TrimSpace(string(name)) == portName {
			return "/dev/" + filepath.Base(filepath.Dir(n)), nil
		}
	}
	return "", fmt.Errorf("no port called %s among %v", portName, names)
}

type guest struct {
	counter atomic.Int64
	memory  []byte
}

var errPoweroff = fmt.Errorf("powering off")

func (g *guest) serve(rw io.ReadWriter) error {
	in := bufio.NewScanner(rw)
	for in.Scan() {
		answer, err := g.do(in.Text())
		if err != nil {
			return err
		}
		fmt.Fprintln(rw, answer)
	}
	return nil
}

func (g *guest) do(command string) (any, error) {
	var n, b int
	switch {
	case command == "ping":
		return "pong", nil
	case command == "counter":
		return g.counter.Load(), nil
	case command == "poweroff":
		return nil, errPoweroff
	case command == "release":
		g.memory = nil
		debug.FreeOSMemory()
		return "ok", nil
	case command == "free":
		var s unix.Sysinfo_t
		if err := unix.Sysinfo(&s); err != nil {
			return nil, err
		}
		return s.Freeram * uint64(s.Unit) >> 20, nil
	case command == "read" && len(g.memory) == 0:
		return -1, nil
	case command == "read":
		for _, b := range g.memory {
			if b != g.memory[0] {
				return -1, nil
			}
		}
		return g.memory[0], nil
	}
	if k, _ := fmt.Sscanf(command, "fill %d %d", &n, &b); k == 2 {
		if len(g.memory) != n<<20 {
			g.memory = make([]byte, n<<20)
		}
		for i := range g.memory {
			g.memory[i] = byte(b)
		}
		return "ok", nil
	}
	if k, _ := fmt.Sscanf(command, "patch %d", &n); k == 1 {
		return "ok", patch(n)
	}
	return "unknown command", nil
}

// patch makes the kernel change its own code by switching the statistics of its scheduler on and off: where they are taken is a jump that it
// writes anew each time, byte by byte, with a breakpoint in the place of the first.
func patch(n int) error {
	const op = "patch the kernel: %w"
	if err := syscall.Mount("none", "/proc", "proc", 0, ""); err != nil && err != syscall.EBUSY {
		return fmt.Errorf(op, err)
	}
	done := make(chan struct{})
	defer close(done)
	for range runtime.NumCPU() {
		go func() { // two threads that wake each other, so that the scheduler is never out of work
			a, b := make(chan struct{}), make(chan struct{})
			go func() {
				runtime.LockOSThread()
				for range a {
					b <- struct{}{}
				}
			}()
			runtime.LockOSThread()
			defer close(a)
			for {
				select {
				case <-done:
					return
				case a <- struct{}{}:
					<-b
				}
			}
		}()
	}
	for range n {
		for _, value := range []string{"1", "0"} {
			if err := os.WriteFile("/proc/sys/kernel/sched_schedstats", []byte(value), 0); err != nil {
				return fmt.Errorf(op, err)
			}
		}
	}
	return nil
}
