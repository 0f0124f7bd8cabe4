package firecracker

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// withMounts runs f on a thread of its own in a mount namespace of its own: what f mounts, nobody else ever sees but the processes that f starts. It
// goes with the last of them.
func withMounts(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine, and its namespace with it.
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The first thread does not end. As long as this goroutine has it, the next one gets another.
			defer runtime.UnlockOSThread()
			done <- withMounts(f)
			return
		}
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("make mount namespace: %w", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return fmt.Errorf("keep mounts from the host: %w", err)
			}
			return f()
		}()
	}()
	return <-done
}
