// Command warmboot-guest is the guest agent: the initrd's init, the machine's PID 1, or, as `warmboot-guest service`, a service under
// another init. It has no flags; everything it is to do comes from the host.
package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"warmboot/internal/guest"
)

func main() {
	pid1 := os.Getpid() == 1
	if pid1 && os.Args[0] == guest.InitrdName {
		log := newLog(os.Stderr)
		log.Error("cannot reach the root disk; nothing can run", "error", guest.Initrd(log))
		os.Exit(1) // the kernel panics and the VMM ends
	}
	if len(os.Args) > 1 && os.Args[1] == "version" {
		_, _ = os.Stdout.WriteString(version() + "\n")
		return
	}
	if !pid1 && (len(os.Args) != 2 || os.Args[1] != "service") {
		// Not by default: it mounts disks.
		_, _ = os.Stderr.WriteString("warmboot-guest is the guest agent of a microVM: its init, or under another init `warmboot-guest service`\n")
		os.Exit(2)
	}
	log := newLog(console(pid1))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGPWR)
	defer stop()
	g, err := guest.New(guest.Config{Version: version(), Log: log, Init: pid1})
	if err == nil {
		err = g.Run(ctx)
	}
	if err != nil && ctx.Err() == nil {
		log.Error("guest agent ends", "error", err)
		os.Exit(1)
	}
}

// console is where log lines go: as PID 1 to the kernel's log, which reaches every console that the machine has. It must be
// opened when /dev is there, so on the first line.
func console(pid1 bool) io.Writer {
	if pid1 {
		return &kmsg{}
	}
	return os.Stderr
}

type kmsg struct{ file *os.File }

func (k *kmsg) Write(p []byte) (int, error) {
	if k.file == nil {
		f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
		if err != nil {
			return os.Stderr.Write(p)
		}
		k.file = f
	}
	// Level 3 is shown on the console even if the kernel is told to be quiet. There are few lines, and a machine that
	// does not come up has nothing else to say why.
	return k.file.Write(append([]byte("<3>"), p...))
}

func newLog(w io.Writer) *slog.Logger {
	noTime := func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.TimeKey {
			return slog.Attr{} // the kernel's log and every init's have their own
		}
		return a
	}
	h := slog.NewTextHandler(&prefixed{w}, &slog.HandlerOptions{ReplaceAttr: noTime})
	return slog.New(h)
}

// prefixed marks each record, which slog writes with one call, as ours.
type prefixed struct{ w io.Writer }

func (p *prefixed) Write(b []byte) (int, error) {
	if _, err := p.w.Write(append([]byte("warmboot-guest: "), b...)); err != nil {
		return 0, err
	}
	return len(b), nil
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && (v == "" || v == "(devel)") {
			v = s.Value
		}
	}
	return v
}
