package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"

	"warmboot"
	"warmboot/internal/vmm/process"
)

// Firecracker's exit statuses that say something (its FcExitCode).
const (
	exitJailer     = 1 // whatever was wrong; it says what
	exitBadSyscall = 148
	exitSIGBUS     = 149
	exitSIGSEGV    = 150
	exitSIGXFSZ    = 151
	exitBadConfig  = 152
	exitArguments  = 153
)

// ending tells in words how a process ended.
func ending(how *os.ProcessState) string {
	if how == nil {
		return ""
	}
	if ws, ok := how.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		switch ws.Signal() {
		case syscall.SIGKILL:
			return "it was killed; see the host's kernel log for a lack of memory"
		case syscall.SIGSYS:
			return "its seccomp filter ended it for a system call that it may not make"
		default:
			return "signal " + ws.Signal().String()
		}
	}
	switch code := how.ExitCode(); code {
	case 0:
		return "the guest went down"
	case exitBadSyscall:
		return "its seccomp filter ended it for a system call that it may not make (exit status 148)"
	case exitSIGBUS:
		return "a file that it had mapped was truncated or could not be read (exit status 149)"
	case exitSIGSEGV:
		return "it crashed (exit status 150)"
	case exitSIGXFSZ:
		return "a file became larger than it may (exit status 151)"
	case exitBadConfig:
		return "its configuration is wrong (exit status 152)"
	case exitArguments:
		return "it does not understand its arguments (exit status 153)"
	default:
		return fmt.Sprintf("exit status %d", code)
	}
}

// Parts of fault messages, in the words of releases 1.7 to 1.17, by what must be done about them.
var (
	otherFormat = regexp.MustCompile(`(?i)invalid (data|format) version`)
	badState    = regexp.MustCompile(`(?i)load snapshot state from file|invalid snapshot state|snapshot file|crc64|magic value|deserializ`)
	badMemory   = regexp.MustCompile(`(?i)load guest memory`)
	noKVM       = regexp.MustCompile(`(?i)creating KVM object|could not access KVM|missing KVM capabilities|invalid KVM API version`)
)

// refusalError is the error of a command that a running machine has refused; the machine goes on.
func refusalError(op string, r *Refusal) error {
	if err := hostError(op, r.Fault); err != nil {
		return err
	}
	return warmboot.Errorf(warmboot.Internal, op, "%w", r)
}

// hostError recognises what is the host's fault in what Firecracker says; nil if nothing is.
func hostError(op, said string) error {
	is := func(texts ...string) bool {
		for _, t := range texts {
			if strings.Contains(said, t) {
				return true
			}
		}
		return false
	}
	// What the operating system says comes with its number, in Rust's words.
	switch {
	case is("(os error 28)", "No space left on device"):
		return warmboot.Errorf(warmboot.Exhausted, op, "the disk is full (Firecracker said %q); free space under the storage root", said)
	case is("(os error 12)", "Cannot allocate memory"):
		return warmboot.Errorf(warmboot.Exhausted, op, "this host has too little memory for the machine (Firecracker said %q); stop others, or make this one smaller", said)
	case is("(os error 16)", "Resource busy", "Device or resource busy"):
		return warmboot.Errorf(warmboot.Conflict, op, "something that the machine needs is in use, probably its TAP (Firecracker said %q); stop the other machine first", said)
	case is("(os error 13)", "(os error 1)", "Permission denied", "Operation not permitted"):
		return warmboot.Errorf(warmboot.Internal, op, "the user that the VMM runs as may not use a file or device it needs (Firecracker said %q); check the owner and mode of that file and of the directories above it", said)
	}
	return nil
}

// failure says in our words why a machine did not come up. said is what Firecracker wrote to its standard error, how the way its process
// ended, if it has.
func failure(ctx context.Context, op string, restoring bool, cause error, said string, how *os.ProcessState) error {
	var refused *Refusal
	var ours *warmboot.Error
	if errors.As(cause, &refused) {
		f := refused.Fault
		if noKVM.MatchString(f) {
			return warmboot.Errorf(warmboot.Unavailable, op, "Firecracker cannot use KVM (%q); give %s to a group that may read and write it, as with `chgrp kvm %[2]s && chmod 660 %[2]s`", f, process.KVMDevice)
		}
		if err := hostError(op, f); err != nil {
			return err
		}
		switch {
		case restoring && otherFormat.MatchString(f):
			return warmboot.Errorf(warmboot.Incompatible, op, "the snapshot was made by a Firecracker with another format (%q); rebuild the snapshot", f)
		case restoring && (badState.MatchString(f) || badMemory.MatchString(f)):
			return warmboot.Errorf(warmboot.Corrupt, op, "Firecracker could not load the snapshot (%q): its files are damaged, or are of another kind of machine; rebuild the snapshot", f)
		}
		return warmboot.Errorf(warmboot.Internal, op, "%w", refused)
	}
	last := process.Lines(said, 3)
	switch {
	case ctx.Err() != nil && how == nil:
		return warmboot.Errorf(warmboot.CodeOf(ctx.Err()), op, "Firecracker was not ready in time: %w", context.Cause(ctx))
	case how == nil && errors.As(cause, &ours):
		return cause
	case how == nil:
		return warmboot.Errorf(warmboot.Unavailable, op, "Firecracker does not answer as it should: %w", cause)
	}
	if err := hostError(op, last); err != nil {
		return err
	}
	if last != "" {
		last = "; it said: " + last
	}
	if restoring && how.ExitCode() == exitSIGBUS {
		return warmboot.Errorf(warmboot.Corrupt, op, "Firecracker ended while it loaded the snapshot: %s%s; rebuild the snapshot", ending(how), last)
	}
	code := warmboot.Internal
	if process.Killed(how) {
		code = warmboot.Unavailable
	}
	return warmboot.Errorf(code, op, "Firecracker ended before the machine was up: %s%s", ending(how), last)
}
