package standin

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var (
	instanceID = regexp.MustCompile(`^[0-9A-Za-z-]{1,64}$`)
	logLevels  = map[string]bool{"off": true, "trace": true, "debug": true, "info": true, "warn": true, "warning": true, "error": true}
)

// run is the program's main.
func run(p Profile, args []string) int {
	signal.Ignore(syscall.SIGPIPE)
	a := newAPI(p, "", &life{Context: context.Background(), end: end})
	options := map[string]string{"--api-sock": "/run/firecracker.socket", "--id": "anonymous-instance"}
	given := map[string]bool{}
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; arg {
		case "--version":
			fmt.Printf("Firecracker v%s\n\n%s [anonymous-instance:main] exiting, exit_code=0\n", p.Version, time.Now().Format(time.RFC3339Nano))
			return 0
		case "--snapshot-version":
			fmt.Printf("v%s\n%s [anonymous-instance:main] exiting, exit_code=0\n", a.vm.profile.SnapshotVersion, time.Now().Format(time.RFC3339Nano))
			return 0
		case "--api-sock", "--id", "--level", "--start-time-us", "--start-time-cpu-us", "--parent-cpu-time-us":
			if _, twice := given[arg]; twice {
				return bad(exitArguments, "argument %s was provided more than once", arg)
			}
			given[arg] = true
			if i++; i == len(args) {
				return bad(exitArguments, "argument %s has no value", arg)
			}
			options[arg] = args[i]
		default:
			return bad(exitArguments, "argument %s is not known", arg)
		}
	}
	if !instanceID.MatchString(options["--id"]) {
		return bad(134, "invalid instance id %q", options["--id"]) // a panic, there
	}
	if l, ok := options["--level"]; ok && !logLevels[strings.ToLower(l)] {
		return bad(exitConfig, "invalid log level %q", l)
	}
	switch {
	case p.Faults.NoSocket:
		forever()
	case p.Faults.ExitAtStart != 0:
		return bad(p.Faults.ExitAtStart, "told to end with status %d", p.Faults.ExitAtStart)
	}
	l, err := net.Listen("unix", options["--api-sock"])
	if err != nil {
		return bad(exitError, "cannot open the API socket %s: %v", options["--api-sock"], err)
	}
	a.vm.id = options["--id"]
	a.serve(l)
	return exitError
}

// forever does nothing. (A select without cases ends the program if nothing else is going on in it.)
func forever() {
	for {
		time.Sleep(time.Hour)
	}
}

func bad(status int, format string, args ...any) int {
	fmt.Fprintf(os.Stderr, "Error: "+format+"\n", args...)
	return status
}

// end ends this process, as if killed if status is negative.
func end(status int) {
	if status < 0 {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		forever()
	}
	os.Exit(status)
}
