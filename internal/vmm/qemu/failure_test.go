package qemu

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"warmboot"
)

// The texts are what QEMU 7.2 said in each case.
func TestFailure(t *testing.T) {
	t.Parallel()
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx       context.Context
		restoring bool
		cause     error
		said      string
		code      warmboot.Code
		says      string
	}{
		"taken port": {said: "qemu-system-x86_64: -netdev user,id=net: Could not set up host forwarding rule 'tcp:127.0.0.1:8080-100.64.0.15:80'",
			code: warmboot.Conflict, says: "tcp port 8080 on 127.0.0.1"},
		"locked disk": {said: `qemu-system-x86_64: -blockdev {}: Failed to get "write" lock` + "\nIs another process using the image [/d]?",
			code: warmboot.Conflict, says: "another machine uses the disk"},
		"no memory":       {said: "qemu-system-x86_64: cannot set up guest memory 'ram': Cannot allocate memory", code: warmboot.Exhausted, says: "too little memory"},
		"not allowed":     {said: "qemu-system-x86_64: -blockdev {}: Could not open '/d': Permission denied", code: warmboot.Internal, says: "owner and mode"},
		"bad state":       {restoring: true, said: "qemu-system-x86_64: load of migration failed: Invalid argument", code: warmboot.Corrupt, says: "rebuild"},
		"refused state":   {restoring: true, cause: &qmpError{command: "migration", Desc: "failed"}, code: warmboot.Corrupt, says: "rebuild"},
		"refused command": {cause: &qmpError{command: "cont", Desc: "no"}, code: warmboot.Internal, says: "QEMU refused cont: no"},
		"other words":     {said: "qemu-system-x86_64: Error loading uncompressed kernel without PVH ELF Note", code: warmboot.Internal, says: "PVH"},
		"no words":        {code: warmboot.Unavailable, says: "killed"},
		"caller gone":     {ctx: over, code: warmboot.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.ctx == nil {
				c.ctx = t.Context()
			}
			if c.cause == nil {
				c.cause = io.EOF
			}
			err := failure(c.ctx, "create machine", c.restoring, c.cause, c.said)
			if warmboot.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %s: %v; want %s with %q", warmboot.CodeOf(err), err, c.code, c.says)
			}
			if c.ctx == over && !errors.Is(err, context.Canceled) {
				t.Errorf("%v is not the context's error", err)
			}
		})
	}
}
