package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"warmboot"
	"warmboot/internal/guestrpc"
	"warmboot/internal/netns"
	"warmboot/internal/rollback"
	"warmboot/internal/snapshot"
	"warmboot/internal/vmm"
)

// handFirecracker restores a snapshot as somebody would by hand who has Firecracker, its API's description and a network namespace with a TAP: a copy
// of the disk, the process, one call, and a question to Docker. It has no jailer, no user of its own, no limits; a warm boot has.
// https://github.com/firecracker-microvm/firecracker/blob/main/docs/snapshotting/snapshot-support.md
type handFirecracker struct {
	binary, rootfs string
	knock          bool     // see dialGuest
	ns             *os.File // with the TAP that the snapshot names; it goes with this
}

// firecrackerByHand makes ready what need not be made anew for each restore. What the snapshot keeps of the network is read from a warm boot.
func (r *runner) firecrackerByHand(ctx context.Context) (_ *handFirecracker, err error) {
	_, c, err := r.create(ctx, false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.api.DeleteContainer(context.WithoutCancel(ctx), c.ID, true)) }()
	text, err := os.ReadFile(filepath.Join(r.root, "containers", c.ID, "record.json"))
	if err != nil {
		return nil, err
	}
	var record struct {
		Network vmm.Network `json:"network"`
	}
	if err := json.Unmarshal(text, &record); err != nil {
		return nil, err
	}
	if r.binary == "" {
		return nil, errors.New("the server has not said where Firecracker is")
	}
	var major, minor int
	if _, err := fmt.Sscanf(r.art.Metadata.Fingerprint.Version, "%d.%d.", &major, &minor); err != nil {
		return nil, err
	}
	h := &handFirecracker{binary: r.binary, rootfs: r.Setup.Image.RootfsPath, knock: major == 1 && minor < 16}
	if h.ns, err = netns.New(); err != nil {
		return nil, err
	}
	r.undo.Push("make namespace", h.ns.Close)
	if tap := record.Network.TAP; tap != "" {
		err = netns.In(h.ns, func() error {
			for _, args := range []string{"tuntap add " + tap + " mode tap", "link set " + tap + " up"} {
				if out, err := exec.CommandContext(ctx, "ip", strings.Fields(args)...).CombinedOutput(); err != nil {
					return fmt.Errorf("ip %s: %w: %s", args, err, out)
				}
			}
			return nil
		})
	}
	return h, err
}

// restore restores once. The machine and everything of it is gone when it returns.
func (h *handFirecracker) restore(ctx context.Context, art *snapshot.Artifact, phase func(warmboot.PhaseName)) (err error) {
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Unwind()) }()
	dir, err := os.MkdirTemp("/var/tmp", "warmboot-floor-")
	if err != nil {
		return err
	}
	undo.Push("remove directory", func() error { return os.RemoveAll(dir) })
	clone := exec.CommandContext(ctx, "cp", "--reflink=auto", "--sparse=always", art.File(snapshot.DataFile), filepath.Join(dir, "data"))
	if out, err := clone.CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w: %s", err, out)
	}
	// The snapshot names its disks and its socket, and these are the names.
	if err := os.Symlink(h.rootfs, filepath.Join(dir, "rootfs")); err != nil {
		return err
	}
	phase(warmboot.PhaseDisk)

	process := exec.CommandContext(ctx, h.binary, "--api-sock", "api.sock", "--level", "Error")
	process.Dir = dir
	if err := netns.In(h.ns, process.Start); err != nil {
		return err
	}
	undo.Push("end Firecracker", func() error {
		err := process.Process.Kill()
		_ = process.Wait() // that it was killed
		return err
	})
	conn, err := dialSoon(ctx, filepath.Join(dir, "api.sock"))
	if err != nil {
		return err
	}
	phase(warmboot.PhaseVMM)

	client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
	defer client.CloseIdleConnections()
	body, err := json.Marshal(map[string]any{
		"snapshot_path": art.File(snapshot.StateFile), "resume_vm": true,
		"mem_backend": map[string]string{"backend_type": "File", "backend_path": art.File(snapshot.MemoryFile)},
	})
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://localhost/snapshot/load", bytes.NewReader(body))
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	said, err := io.ReadAll(io.LimitReader(answer.Body, 1<<16))
	if err = errors.Join(err, answer.Body.Close()); err != nil || answer.StatusCode != http.StatusNoContent {
		return fmt.Errorf("PUT /snapshot/load: %s: %s (%w)", answer.Status, said, err)
	}
	phase(warmboot.PhaseRestore)

	guest, err := guestrpc.Connect(ctx, func(ctx context.Context) (net.Conn, error) { return h.dialGuest(ctx, filepath.Join(dir, "guest.sock")) })
	if err != nil {
		return err
	}
	undo.Push("close guest channel", guest.Close)
	if _, err := guest.WaitDocker(ctx, time.Minute); err != nil {
		return err
	}
	phase(warmboot.PhaseDocker)
	return nil
}

// dialSoon connects as soon as somebody listens, which nothing tells.
func dialSoon(ctx context.Context, path string) (net.Conn, error) {
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			return conn, nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// dialGuest connects to the guest agent's port. Releases before 1.16 lose the first connection to a restored guest, so there it is one that is not needed.
// https://github.com/firecracker-microvm/firecracker/blob/main/docs/vsock.md
func (h *handFirecracker) dialGuest(ctx context.Context, socket string) (net.Conn, error) {
	if h.knock {
		if conn, err := connectPort(ctx, socket, 9); err == nil {
			_ = conn.Close()
		}
		time.Sleep(5 * time.Millisecond)
	}
	return connectPort(ctx, socket, 5000)
}

func connectPort(ctx context.Context, socket string, port int) (_ net.Conn, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return nil, err
	}
	for b := make([]byte, 1); ; {
		if _, err := io.ReadFull(conn, b); err != nil {
			return nil, err
		}
		if b[0] == '\n' { // "OK" and a number; a guest that does not listen hangs up
			return conn, conn.SetDeadline(time.Time{})
		}
	}
}
