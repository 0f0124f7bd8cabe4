package qemu

import (
	"context"
	"errors"
	"regexp"
	"strings"

	"warmboot"
	"warmboot/internal/vmm/process"
)

// busyPort finds the rule that QEMU could not set up: "tcp:127.0.0.1:8080-100.64.0.15:80".
var busyPort = regexp.MustCompile(`Could not set up host forwarding rule '(tcp|udp):([^:']*):(\d+)-`)

// failure says in our words why a machine did not come up. said is what QEMU wrote before it ended.
func failure(ctx context.Context, op string, restoring bool, cause error, said string) error {
	last := process.Lines(said, 3)
	is := func(texts ...string) bool {
		for _, t := range texts {
			if strings.Contains(said, t) {
				return true
			}
		}
		return false
	}
	if m := busyPort.FindStringSubmatch(said); m != nil {
		return warmboot.Errorf(warmboot.Conflict, op, "%s port %s on %s cannot be published: another program on this host uses it, or it may not be used; publish another port", m[1], m[3], m[2])
	}
	switch {
	case is(`Failed to get "write" lock`, `Failed to get shared "write" lock`):
		return warmboot.Errorf(warmboot.Conflict, op, "another machine uses the disk (QEMU said %q); stop it first", last)
	case is("Cannot allocate memory", "cannot set up guest memory"):
		return warmboot.Errorf(warmboot.Exhausted, op, "this host has too little memory for the machine (QEMU said %q); stop others, or make this one smaller", last)
	case is("No space left on device"):
		return warmboot.Errorf(warmboot.Exhausted, op, "the disk is full (QEMU said %q); free space under the storage root", last)
	case is("Permission denied", "Operation not permitted"):
		return warmboot.Errorf(warmboot.Internal, op, "the user that the VMM runs as may not use a file it needs (QEMU said %q); check the owner and mode of that file and of the directories above it", last)
	case restoring && is("load of migration failed", "migration stream", "Unknown ramblock", "error while loading state", "Unknown savevm section"):
		return warmboot.Errorf(warmboot.Corrupt, op, "QEMU could not load the machine's state (%q): the state file is damaged, or was made by another kind of machine; rebuild the snapshot", last)
	case ctx.Err() != nil:
		return warmboot.Errorf(warmboot.CodeOf(ctx.Err()), op, "QEMU was not ready in time: %w", context.Cause(ctx))
	case last != "":
		return warmboot.Errorf(warmboot.Internal, op, "QEMU gave up: %s", last)
	}
	var refused *qmpError
	if errors.As(cause, &refused) && restoring && refused.command == "migration" {
		return warmboot.Errorf(warmboot.Corrupt, op, "%w; rebuild the snapshot", cause)
	}
	if refused != nil {
		return warmboot.Errorf(warmboot.Internal, op, "%w", cause)
	}
	return warmboot.Errorf(warmboot.Unavailable, op, "QEMU ended without a word, so something killed it; see the host's kernel log for a lack of memory, and try again: %w", cause)
}
