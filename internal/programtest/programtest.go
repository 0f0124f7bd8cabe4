// Package programtest installs programs that tests start.
package programtest

import (
	"os"
	"syscall"
)

// Write writes a program, or puts it in the place of the one that is there, which may be running. It can be started at once: while it is open for
// writing no process is forked, which would have a copy of the file until its exec, and nobody can start a program that somebody may write
// ("text file busy", https://go.dev/issue/22315).
func Write(path string, content []byte) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	draft := path + ".new"
	if err := os.WriteFile(draft, content, 0o755); err != nil {
		return err
	}
	return os.Rename(draft, path)
}
