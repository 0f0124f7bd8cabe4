package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"warmboot"
	"warmboot/api"
	"warmboot/internal/guestrpc"
	"warmboot/internal/rollback"
	"warmboot/internal/snapshot"
)

// floor restores the snapshot as somebody would by hand. Under QEMU that is qemu-img for the disk, QEMU with the same machine, four commands over QMP, and a
// question to Docker; under Firecracker see handFirecracker. Nothing of the driver, the agent or the control plane has a part in it; what is
// faster than this cannot be reached by a better warmboot.
func (r *runner) floor(ctx context.Context) (_ Sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	fail := func(err error) (Sample, error) {
		return Sample{}, &warmboot.Error{Code: warmboot.Internal, Op: "restore by hand", Err: err}
	}
	if r.art.Metadata.Fingerprint.VMM == "firecracker" {
		if r.hand == nil {
			if r.hand, err = r.firecrackerByHand(ctx); err != nil {
				return fail(err)
			}
		}
		var s Sample
		phase, ready := s.stopwatch()
		if err := r.hand.restore(ctx, r.art, phase); err != nil {
			return fail(err)
		}
		ready()
		return s, nil
	}
	command, err := r.handCommand(ctx)
	if err != nil {
		return fail(err)
	}
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Unwind()) }()
	dir, err := os.MkdirTemp("/var/tmp", "warmboot-floor-")
	if err != nil {
		return fail(err)
	}
	undo.Push("remove directory", func() error { return os.RemoveAll(dir) })

	var s Sample
	phase, ready := s.stopwatch()
	overlay := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", r.art.File(snapshot.DataFile), filepath.Join(dir, "data"))
	if out, err := overlay.CombinedOutput(); err != nil {
		return fail(fmt.Errorf("qemu-img: %w: %s", err, out))
	}
	phase(warmboot.PhaseDisk)

	args := slices.Clone(command)
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], handDir, dir)
	}
	qemu := exec.CommandContext(ctx, args[0], args[1:]...)
	if err := qemu.Start(); err != nil {
		return fail(err)
	}
	undo.Push("end QEMU", func() error {
		err := qemu.Process.Kill()
		_ = qemu.Wait() // that it was killed
		return err
	})
	q, err := dialQMP(ctx, filepath.Join(dir, "qmp"))
	if err != nil {
		return fail(err)
	}
	defer q.conn.Close()
	phase(warmboot.PhaseVMM)

	for _, c := range []string{
		`{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"events","state":true},{"capability":"x-ignore-shared","state":true}]}}`,
		fmt.Sprintf(`{"execute":"migrate-incoming","arguments":{"uri":%q}}`, "exec:cat "+r.art.File(snapshot.StateFile)),
	} {
		if err := q.execute(c); err != nil {
			return fail(err)
		}
	}
	if err := q.await("MIGRATION", "completed"); err != nil {
		return fail(err)
	}
	if err := q.execute(`{"execute":"cont"}`); err != nil {
		return fail(err)
	}
	phase(warmboot.PhaseRestore)

	// The frozen guest has no other ear than the guest agent's.
	guest, err := guestrpc.Connect(ctx, func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, "guest"))
	})
	if err != nil {
		return fail(err)
	}
	undo.Push("close guest channel", guest.Close)
	if _, err := guest.WaitDocker(ctx, time.Minute); err != nil {
		return fail(err)
	}
	phase(warmboot.PhaseDocker)
	ready()
	return s, nil
}

// stopwatch times a sample: phase ends a phase and begins the next, ready ends it all. What is cleaned up afterwards does not count.
func (s *Sample) stopwatch() (phase func(warmboot.PhaseName), ready func()) {
	start, last := time.Now(), time.Now()
	return func(name warmboot.PhaseName) {
			s.Phases = append(s.Phases, api.Phase{Name: string(name), Seconds: time.Since(last).Seconds()})
			last = time.Now()
		}, func() {
			s.Ready = last.Sub(start).Seconds()
		}
}

// handTAP is the network interface of a machine that is restored by hand.
const handTAP = "wbfloor0"

// handDir stands for a restore's own directory in the command line.
const handDir = "@DIR@"

// handCommand is the command line of a machine that fits the snapshot. It is that of a warm boot, read from the kernel, with what is
// not the machine taken out: our file descriptors, the sandbox, published ports.
func (r *runner) handCommand(ctx context.Context) (_ []string, err error) {
	if r.handArgs != nil {
		return r.handArgs, nil
	}
	_, c, err := r.create(ctx, false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.api.DeleteContainer(context.WithoutCancel(ctx), c.ID, true)) }()
	dir := filepath.Join(r.root, "containers", c.ID)
	args, err := commandLineWith(dir)
	if err != nil {
		return nil, err
	}
	disk := regexp.MustCompile(regexp.QuoteMeta(dir) + `/[^"]*`)
	socket := map[string]string{"id=qmp": "qmp", "id=guest": "guest"}
	for i := 0; i < len(args); i++ {
		args[i] = disk.ReplaceAllString(args[i], handDir+"/data")
		switch {
		case args[i] == "-sandbox":
			args = slices.Delete(args, i, i+2)
			i--
		case args[i] == "-netdev" && strings.HasPrefix(args[i+1], "tap,"):
			// One that QEMU makes, and that goes with it. It must be a TAP: in user mode the machine would be another one.
			args[i+1] = "tap,id=net,ifname=" + handTAP + ",script=no,downscript=no"
		case args[i] == "-chardev" && strings.Contains(args[i+1], "id=console"):
			args[i+1] = "null,id=console"
		case args[i] == "-chardev":
			for id, name := range socket {
				if strings.Contains(args[i+1], id) {
					args[i+1] = "socket," + id + ",path=" + handDir + "/" + name + ",server=on,wait=off"
				}
			}
		}
	}
	r.handArgs = args
	return args, nil
}

// commandLineWith finds the process whose command line names a directory.
func commandLineWith(dir string) ([]string, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(text), dir+"/") {
			return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00"), nil
		}
	}
	return nil, fmt.Errorf("no VMM has %s in its command line", dir)
}

// handQMP speaks just as much of QMP as a restore by hand needs:
// https://www.qemu.org/docs/master/interop/qmp-spec.html
type handQMP struct {
	conn net.Conn
	in   *json.Decoder
}

type handReply struct {
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
	Error  json.RawMessage `json:"error"`
	Return json.RawMessage `json:"return"`
	QMP    json.RawMessage `json:"QMP"`
}

// dialQMP connects as soon as QEMU listens, which nothing tells.
func dialQMP(ctx context.Context, path string) (*handQMP, error) {
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			q := &handQMP{conn, json.NewDecoder(bufio.NewReader(conn))}
			var greeting handReply
			if err := q.in.Decode(&greeting); err != nil {
				return nil, err
			}
			return q, q.execute(`{"execute":"qmp_capabilities"}`)
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (q *handQMP) execute(command string) error {
	if _, err := q.conn.Write([]byte(command + "\n")); err != nil {
		return err
	}
	for {
		var reply handReply
		if err := q.in.Decode(&reply); err != nil {
			return err
		}
		if reply.Error != nil {
			return fmt.Errorf("%s: %s", command, reply.Error)
		}
		if reply.Return != nil {
			return nil
		}
	}
}

// await reads on until an event carries a status.
func (q *handQMP) await(event, status string) error {
	for {
		var reply handReply
		if err := q.in.Decode(&reply); err != nil {
			return err
		}
		if reply.Event != event {
			continue
		}
		if strings.Contains(string(reply.Data), `"`+status+`"`) {
			return nil
		}
		if strings.Contains(string(reply.Data), `"failed"`) {
			return errors.New("QEMU could not load the state")
		}
	}
}
