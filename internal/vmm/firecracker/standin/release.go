package standin

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// release is major, minor and patch. What releases have is written down here once more, and not taken from the driver: a test of the driver
// against its own table would prove nothing.
type release [3]int

func parse(text string) (r release) {
	if n, _ := fmt.Sscanf(text, "%d.%d.%d", &r[0], &r[1], &r[2]); n != 3 {
		fmt.Fprintf(os.Stderr, "stand-in: %q is no version\n", text)
		os.Exit(exitArguments)
	}
	return r
}

// from reports whether r is minor version 1.m, from patch on, or a later minor version.
func (r release) from(m, patch int) bool { return r[1] > m || r[1] == m && r[2] >= patch }

func always(release) bool { return true }

func from(m int) func(release) bool { return func(r release) bool { return r.from(m, 0) } }

// realtime: the field came with the last patches of two branches and with the next minor version.
func realtime(r release) bool {
	return r[1] == 14 && r[2] >= 4 || r[1] == 15 && r[2] >= 1 || r[1] >= 16
}

// deafAfterResume: a machine that was paused and resumed without a snapshot between takes no connections from the host any more.
func (r release) deafAfterResume() bool { return r[1] == 16 && r[2] <= 1 }

// netnsFlags are what its jailer opens a network namespace with: that of 1.16.0 follows no symbolic link
// (https://github.com/firecracker-microvm/firecracker/pull/5959).
func (r release) netnsFlags() int {
	if r == (release{1, 16, 0}) {
		return unix.O_NOFOLLOW
	}
	return 0
}

// snapshotVersion is the format of a release's snapshots.
func snapshotVersion(r release) string {
	var n int
	switch {
	case r[1] <= 9:
		n = r[1] - 6
	case r[1] == 10:
		n = 3 + min(r[2], 1)
	case r[1] <= 12:
		n = r[1] - 6
	case r[1] <= 14:
		n = 8
	case r[1] == 15:
		n = 9
	case r[1] == 16 && r[2] <= 1:
		n = 10
	case r[1] == 16:
		n = 11
	default:
		n = 12
	}
	return fmt.Sprintf("%d.0.0", n)
}
