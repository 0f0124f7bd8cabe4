package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
)

// quiesce makes the machine ready to be frozen: Docker proven to run containers and to start by itself, nothing left of this machine's
// identity in the network, everything on disk, no memory used that need not be.
func (g *Guest) quiesce(ctx context.Context) (*guestv1.QuiesceResponse, error) {
	const op = "quiesce"
	resp := &guestv1.QuiesceResponse{}
	step := func(format string, args ...any) { resp.Steps = append(resp.Steps, fmt.Sprintf(format, args...)) }
	if err := g.letBoot(ctx, step); err != nil {
		return nil, err
	}
	if err := g.emptyCaches(); err != nil {
		return nil, internal(op, err)
	}
	step("memory: caches dropped")
	if err := g.rehearseContainer(ctx); err != nil {
		return nil, warmboot.Errorf(warmboot.Incompatible, op, "Docker answers, but cannot run a container in this machine, and neither could its clones; mend the runtime image and register it again: %w", err)
	}
	step("docker: has run a container, which is removed")
	if err := g.prepare(ctx, resp, step); err != nil {
		return nil, err
	}
	if err := g.rehearse(ctx); err != nil {
		return nil, internal(op+": rehearse the re-identification", err)
	}
	step("memory: what a clone needs first is in the caches")

	g.mu.Lock()
	defer g.mu.Unlock()
	g.docker.http.CloseIdleConnections()
	if n := g.registry.close(); n > 0 {
		step("network: %d registry port(s) are no longer forwarded", n)
	}
	g.gateway = ""
	network, err := flushNetwork()
	if err != nil {
		return nil, internal(op+": flush the network", err)
	}
	resp.Steps = append(resp.Steps, network...)
	runtime.GC() // so that a clone does not have to at once
	// Everything of ours in memory and mapped: a page of code that must be read from the disk costs milliseconds.
	if err := unix.Mlockall(unix.MCL_CURRENT); err != nil {
		return nil, internal(op+": lock the agent in memory", err)
	}
	unix.Sync()
	g.quiesced = true
	return resp, nil
}

// bootPatience is how long after Docker the rest of the machine may take to boot.
const bootPatience = time.Minute

// letBoot lets another init finish its boot: what is frozen in the middle of it, every clone would have to finish.
func (g *Guest) letBoot(ctx context.Context, step func(string, ...any)) error {
	if !g.underSystemd() {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, bootPatience)
	defer cancel()
	step("boot: systemd says %q", g.otherBooted(limited))
	return ctx.Err()
}

// prepare is everything of quiesce up to the rehearsal.
func (g *Guest) prepare(ctx context.Context, resp *guestv1.QuiesceResponse, step func(string, ...any)) error {
	const op = "quiesce"
	g.mu.Lock()
	defer g.mu.Unlock()

	info, err := g.docker.info(ctx)
	if err != nil {
		return unavailable(op, "Docker must answer before the machine is frozen", err)
	}
	resp.DockerVersion, resp.EngineId = info.ServerVersion, info.ID
	step("docker: version %s answers", info.ServerVersion)

	auto, how, err := g.dockerAutostart(ctx)
	if err != nil {
		return internal(op, err)
	}
	if !auto {
		return warmboot.Errorf(warmboot.Invalid, op, "Docker is not set to start by itself in the runtime image: %s; enable its service in the image and register that again", how)
	}
	resp.DockerAutostart = auto
	step("docker: %s", how)

	pid, err := g.dockerPID()
	if err != nil {
		return internal(op, err)
	}
	if file := g.engineIDFile(); file != info.ID {
		return warmboot.Errorf(warmboot.Incompatible, op, "Docker %s calls itself %q and not what %s says (%q), so its clones could not be told apart; use Docker 24 or later", info.ServerVersion, info.ID, engineIDPath, file)
	}
	ask := func(ctx context.Context) (string, error) {
		info, err := g.docker.info(ctx)
		return info.ID, err
	}
	if g.engine, err = findEngineID(ctx, pid, info.ID, ask); err != nil {
		return internal(op+": find Docker's engine id in its memory", err)
	}
	step("docker: engine id found at %d place(s) in process %d, each proven", len(g.engine.addresses), pid)

	for _, path := range []string{"/var/lib/systemd/random-seed", "/var/lib/urandom/random-seed", "/var/lib/misc/random-seed"} {
		switch err := os.Remove(g.path(path)); {
		case err == nil:
			step("random: %s removed", path)
		case errors.Is(err, unix.EROFS): // part of the image, and no program of ours ever loads it
			step("random: %s is on the read-only disk and unused", path)
		case !errors.Is(err, fs.ErrNotExist):
			return internal(op, err)
		}
	}

	unix.Sync()
	step("disk: written")
	if trimmed, err := trim(g.path("/var/lib/docker")); err == nil {
		step("disk: %d MiB of free space given back", trimmed>>20)
	} else {
		step("disk: free space not given back: %v", err) // costs disk space in the snapshot, nothing else
	}
	return nil
}

// emptyCaches lets the kernel forget what it has read from disks and need not know.
func (g *Guest) emptyCaches() error {
	unix.Sync() // what is not written yet cannot be forgotten
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// dockerAutostart tells whether Docker would start by itself in this machine, and how we know.
func (g *Guest) dockerAutostart(ctx context.Context) (bool, string, error) {
	// Its socket must be served by the very process that is supervised, not by one that somebody started by hand.
	pid, err := readPIDFile(g.path(dockerPIDFile))
	if err != nil {
		return false, "", err
	}
	if g.Init {
		if own := g.dockerd.pid(); own != pid {
			return false, fmt.Sprintf("process %d was not started by init, whose own is %d", pid, own), nil
		}
		return true, fmt.Sprintf("process %d was started by init and is supervised", pid), nil
	}
	return g.otherAutostart(ctx, pid)
}

// trim gives the free space of the file system at dir back to its disk and returns how many bytes that were.
func trim(dir string) (uint64, error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	const fitrim = 0xc0185879
	all := struct{ start, length, minimum uint64 }{length: ^uint64(0)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fitrim, uintptr(unsafe.Pointer(&all))); errno != 0 {
		return 0, errno
	}
	return all.length, nil
}

func readPIDFile(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("%s does not hold a process id: %w", path, err)
	}
	return pid, nil
}
