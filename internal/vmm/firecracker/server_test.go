package firecracker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"warmboot/internal/vmm/firecracker/standin"
)

// clientOf connects to a stand-in in this process.
func clientOf(t *testing.T, s *standin.Server, version string) *Client {
	t.Helper()
	release, err := ParseRelease(version)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	c := NewClient(conn, release)
	t.Cleanup(func() { c.Close() })
	return c
}

// over waits for a stand-in's end.
func over(t *testing.T, s *standin.Server, status int) {
	t.Helper()
	select {
	case <-s.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("it has not ended")
	}
	if s.Status() != status {
		t.Errorf("it ended with status %d, want %d", s.Status(), status)
	}
	if conn, err := net.Dial("unix", s.Socket); err == nil {
		conn.Close()
		t.Error("it still listens")
	}
}

// tell gives the guest behind a vsock socket one command.
func tell(t *testing.T, socket, command string) string {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(10*time.Second)), greet(conn, guestPort))
	if _, err := fmt.Fprintln(conn, command); err != nil {
		t.Fatal(err)
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return answer[:len(answer)-1]
}

// What the program is, the stand-in is in this process too: a machine with memory, disk and guest, and two clones of it.
func TestAMachineInThisProcess(t *testing.T) {
	t.Parallel()
	const version = "1.16.2"
	dir, ctx := shared(t), t.Context()
	spec := machineSpec(t, dir)
	socket, state, memory := filepath.Join(dir, "v"), filepath.Join(dir, "state"), filepath.Join(dir, "memory")

	first := standin.Serve(t, standin.Profile{Version: version})
	c := clientOf(t, first, version)
	must(t, c.PutMachineConfig(ctx, MachineConfig{VCPUCount: 1, MemSizeMiB: 32}),
		c.PutBootSource(ctx, BootSource{KernelImagePath: spec.Kernel, InitrdPath: spec.Initrd}),
		c.PutDrive(ctx, Drive{DriveID: "data", PathOnHost: spec.DataDisk.Path}),
		c.PutVsock(ctx, Vsock{GuestCID: guestCID, UDSPath: socket}),
		c.Start(ctx))
	for _, command := range []string{"fill 2 7", "disk data 3 = abc"} {
		if got := tell(t, socket, command); got != "ok" {
			t.Errorf("%s: the guest answers %s", command, got)
		}
	}
	must(t, c.Pause(ctx), c.CreateSnapshot(ctx, SnapshotCreate{SnapshotType: "Full", SnapshotPath: state, MemFilePath: memory}), c.Resume(ctx), c.SendCtrlAltDel(ctx))
	over(t, first, 0)

	for clone := range 2 {
		must(t, os.Remove(socket))
		s := standin.Serve(t, standin.Profile{Version: version})
		c := clientOf(t, s, version)
		must(t, c.LoadSnapshot(ctx, SnapshotLoad{SnapshotPath: state, MemBackend: MemBackend{BackendType: "File", BackendPath: memory}}), c.Resume(ctx))
		if got := tell(t, socket, "read"); got != "7" {
			t.Errorf("clone %d reads %s in its memory, want 7", clone, got)
		}
		if got := tell(t, socket, "disk data 3 3"); got != `"abc"` {
			t.Errorf("clone %d reads %s on its disk", clone, got)
		}
		if got := tell(t, socket, "fill 2 9"); got != "ok" {
			t.Error(got)
		}
		must(t, c.Pause(ctx)) // it ends in a pause, as machines of failed tests do
	}
}

// A load that fails is the end of it, and of the connection; so is being told to die in the middle of a call.
func TestItEndsInThisProcess(t *testing.T) {
	t.Parallel()
	for _, version := range releases {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			s := standin.Serve(t, standin.Profile{Version: version})
			c := clientOf(t, s, version)
			nowhere := filepath.Join(shared(t), "nowhere")
			err := c.LoadSnapshot(t.Context(), SnapshotLoad{SnapshotPath: nowhere, MemBackend: MemBackend{BackendType: "File", BackendPath: nowhere}})
			var refusal *Refusal
			if !errors.As(err, &refusal) {
				t.Errorf("it answers the load with %v, want that it is refused", err)
			}
			over(t, s, 1)
			if _, err := c.Instance(t.Context()); err == nil || errors.As(err, &refusal) {
				t.Errorf("it answers after its end: %v", err)
			}

			s = standin.Serve(t, standin.Profile{Version: version, Faults: standin.Faults{Calls: map[string]standin.Fault{"GET /version": {Exit: -1}}}})
			c, other := clientOf(t, s, version), clientOf(t, s, version)
			if _, err := c.Version(t.Context()); err == nil || errors.As(err, &refusal) {
				t.Errorf("it answers while it dies: %v", err)
			}
			over(t, s, -1)
			if _, err := other.Instance(t.Context()); err == nil {
				t.Error("another connection outlives it")
			}
		})
	}
}

// A call without an answer does not keep it from ending with its test.
func TestItEndsInTheMiddleOfACall(t *testing.T) {
	t.Parallel()
	const version = "1.16.2"
	s := standin.Serve(t, standin.Profile{Version: version, Faults: standin.Faults{Calls: map[string]standin.Fault{"GET /version": {Hang: true}}}})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := clientOf(t, s, version).Version(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it answers with %v", err)
	}
}
