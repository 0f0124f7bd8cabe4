// Package standin behaves as Firecracker does towards its driver, for tests: the same API on the same kind of socket, the same vsock protocol,
// and real files. It is as strict as Firecracker is, per release: a field or call that a release does not have is refused, calls have
// their order, and a failed load is the end. It is there in this process (Serve), for tests of what makes calls, and as a program with
// Firecracker's command line (Install), for tests of what starts, jails and loses a process.
//
// What it runs is no machine but a few lines of Go (guest.go). All that they know lies in the machine's memory, which is mapped as
// Firecracker maps it, so what is right or wrong about a snapshot's memory file is so for the guest. A memory file that is not what was
// written is a dead guest.
//
// A test binary is the program: its TestMain calls Run first, and Install makes it a file that a driver can be told to use. What must go
// wrong is part of the Profile. Called jailer, it is Firecracker's jailer; InstallJailed makes both, out of a program that needs nothing but itself.
//
// It was written from Firecracker's published API and from observing what its releases do. It holds nothing of theirs.
package standin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"warmboot/internal/programtest"
)

// Profile is what the program is.
type Profile struct {
	Version string // "1.15.1"
	// SnapshotVersion is the format of its snapshots, "9.0.0"; empty: that of the release.
	SnapshotVersion string
	Faults          Faults
	Jailer          JailerFaults
}

// JailerFaults is what goes wrong with the jailer.
type JailerFaults struct {
	Says string // it says this and ends
	Hang bool   // it does nothing
}

// Faults is what goes wrong. The zero value is nothing.
type Faults struct {
	NoSocket    bool             // the process lives, and never makes its API socket
	ExitAtStart int              // it ends with this status instead of making one
	Calls       map[string]Fault // by call, as in "PUT /snapshot/load"
	Vsock       VsockFaults
	BootSays    string        // what the kernel prints before the machine ends, instead of booting
	BootTime    time.Duration // until the guest listens
	Stubborn    bool          // the guest ignores Ctrl-Alt-Del, and yields none of its memory

	// What no Firecracker does, to see that a test would notice.
	SharedMemory bool // a restored machine writes to its snapshot's memory file
	FirstBreaks  bool // the first connection to a restored guest breaks when the guest has taken it, as in no release from 1.16 on
	Hollow       bool // the balloon tells of memory that the guest still has
	Restless     bool // a paused machine goes on
	AnyState     bool // a damaged state file is loaded as if it were empty
}

// Accepts returns why a release refuses a call with this body, or nil if it knows the call and every field.
func Accepts(version, call string, body []byte) error {
	r := parse(version)
	if !exists(r, call) {
		return fmt.Errorf("there is no such call: %s", call)
	}
	return check(r, bodies[call], body)
}

// Fault is what goes wrong with one call.
type Fault struct {
	Nth    int    // when it is made this many times, counted from 1; 0: each time
	Refuse string // the call is refused with this message; a refused load ends the process
	Exit   int    // the process ends with this status instead of answering, killed if negative
	After  bool   // it does so after answering
	Hang   bool   // there is no answer
	Flood  bool   // the answer never ends
	Answer string // is the answer, instead of HTTP
}

// VsockFaults is what goes wrong with the first connections to the guest, in this order, and with the rest.
type VsockFaults struct {
	Refuse   int           // the guest does not listen
	Reset    int           // the connection ends as soon as it has been taken, before anything is said
	Silent   int           // nothing is ever said
	Cut      int           // the connection ends in the middle of OK
	Late     time.Duration // until the guest takes a connection
	Greeting string        // is said instead of OK and the number
	Flood    bool          // the guest sends without end
}

// profileFile lies beside the program.
const profileFile = "standin.json"

// Install makes the program with a profile and returns its path. Everyone on this machine may run it; it is gone at the end of the
// test.
func Install(t testing.TB, p Profile) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "standin-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, profileFile), text, 0o644); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "firecracker")
	if os.Link(self, path) == nil {
		return path
	}
	content, err := os.ReadFile(self)
	if err := errors.Join(err, programtest.Write(path, content)); err != nil {
		t.Fatal(err)
	}
	return path
}

// ProgramVar names the environment variable with the built program standin/program, for where there is no Go to build it with.
const ProgramVar = "WARMBOOT_TEST_STANDIN"

// Build builds the program that a jail can hold into a directory, unless it is built already, and returns its path.
func Build(dir string) (string, error) {
	if path := os.Getenv(ProgramVar); path != "" {
		return path, nil
	}
	path := filepath.Join(dir, "standin")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, "warmboot/internal/vmm/firecracker/standin/program")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the stand-in: %w\n%s", err, out)
	}
	return path, nil
}

// InstallJailed makes the program, and the jailer beside it, out of one that Build made. The profile is part of both: in a jail nothing is beside
// them.
func InstallJailed(t testing.TB, p Profile, program string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "standin-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"jailer", "firecracker"} {
		if err := writeWithProfile(filepath.Join(dir, name), content, p); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "firecracker")
}

// mark begins a profile at a program's end. It is put together here so that the program itself does not contain it.
var mark = []byte("\n" + strings.Repeat("=", 8) + " profile " + strings.Repeat("=", 8) + "\n")

// Change gives an installed program another profile.
func Change(program string, p Profile) error {
	beside := filepath.Join(filepath.Dir(program), profileFile)
	if _, err := os.Stat(beside); err == nil {
		text, err := json.Marshal(p)
		if err != nil {
			return err
		}
		return os.WriteFile(beside, text, 0o644)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	content, _, _ = bytes.Cut(content, mark)
	return writeWithProfile(program, content, p)
}

// writeWithProfile writes a program with the profile at its end.
func writeWithProfile(path string, program []byte, p Profile) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return programtest.Write(path, slices.Concat(program, mark, text))
}

// profile finds the profile of this process, if it was started as the program.
func profile() (p Profile, ok bool, err error) {
	text, err := os.ReadFile(filepath.Join(filepath.Dir(os.Args[0]), profileFile))
	if err != nil {
		content, err := os.ReadFile(os.Args[0]) // a jail has no /proc
		if err != nil {
			return p, false, nil //nolint:nilerr // it was not
		}
		if _, text, ok = bytes.Cut(content, mark); !ok {
			return p, false, nil
		}
	}
	return p, true, json.Unmarshal(text, &p)
}

// Run makes this process the program if it was started as such, and never returns then.
func Run() {
	mains := map[string]func(Profile, []string) int{"firecracker": run, "jailer": jailer}
	run, ok := mains[filepath.Base(os.Args[0])]
	if !ok {
		return
	}
	p, ok, err := profile()
	if err != nil {
		fmt.Fprintln(os.Stderr, "stand-in:", err)
		os.Exit(exitArguments)
	}
	if ok {
		os.Exit(run(p, os.Args[1:]))
	}
}

// The exit statuses, which are Firecracker's.
const (
	exitError     = 1
	exitSIGBUS    = 149
	exitConfig    = 152
	exitArguments = 153
)
