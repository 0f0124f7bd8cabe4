// Command nested is the nested host by hand: it boots one, runs a command in it, and removes it.
//
//	go run ./test/nestedhost/nested                          a shell
//	go run ./test/nestedhost/nested -copy bin -- ls /root    one command, with bin copied to /root
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/term"

	"warmboot/test/nestedhost"
)

// sessionLimit ends a machine that somebody has forgotten.
const sessionLimit = 24 * time.Hour

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "nested:", err)
		code = 1
	}
	os.Exit(code)
}

func run() (code int, err error) {
	var paths []string
	memory := flag.Int("m", 0, "the machine's memory in MiB (default 4096)")
	suite := flag.String("suite", "", "its Debian suite (default trixie)")
	flag.Func("copy", "a `path` to copy to /root; may be repeated", func(p string) error { paths = append(paths, p); return nil })
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, sessionLimit)
	defer cancel()

	step := ""
	image, err := nestedhost.Build(ctx, nestedhost.BuildConfig{Suite: *suite, Progress: func(s, _ string) {
		if s != step {
			step = s
			fmt.Fprintln(os.Stderr, "nested:", s)
		}
	}})
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	m, err := nestedhost.Boot(ctx, nestedhost.Config{Image: image, MemoryMiB: *memory})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	for _, p := range paths {
		local, err := filepath.Abs(p)
		if err != nil {
			return 0, err
		}
		if err := m.CopyIn(ctx, local, "/root/"+filepath.Base(local)); err != nil {
			return 0, err
		}
	}
	fmt.Fprintf(os.Stderr, "nested: ready after %.1fs\n", time.Since(begin).Seconds())
	c := nestedhost.Command{Argv: flag.Args(), Dir: "/root", Env: []string{"TERM=" + os.Getenv("TERM")}, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if len(c.Argv) == 0 {
		c.Argv = []string{"bash", "-l"}
		if fd := int(os.Stdin.Fd()); term.IsTerminal(fd) {
			// script gives the shell a terminal of its own, which echoes and edits; ours only passes keys on.
			c.Argv = []string{"script", "-q", "-c", "bash -l", "/dev/null"}
			state, err := term.MakeRaw(fd)
			if err != nil {
				return 0, err
			}
			defer func() { err = errors.Join(err, term.Restore(fd, state)) }()
		}
	}
	return m.Exec(ctx, c)
}
